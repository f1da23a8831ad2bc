//! The state table: the lease with its fencing number, the registry of clusters, their runs, and the runs' steps.
//!
//! One table. `pk = CLUSTER#<account>#<region>#<name>`; `sk` is one of
//!
//! | `sk` | holds |
//! |---|---|
//! | `SPEC` | the registry: the completed spec, `status` (`Provisioning`, `Ready`, `Deleting`, `Deleted`, `Failed`), the last run (none once a sweep removed anything) |
//! | `LEASE` | who may change the cluster: `run`, `execution`, and `fence`, which only grows |
//! | `RUN#<ulid>` | a run: `execution`, `purpose`, `startedAt`, `release`, `resumes` (the failed run that it goes on with), and once it ended `outcome`, `error`, `cause`, `outputs`, `made` (how far it came), `timeline` |
//! | `RUN#<ulid>#STEP#<name>` | a step of a run: see [`steps`] |
//!
//! Every write is conditional. Times are RFC 3339 in UTC, but `expires`, which is DynamoDB's TTL in epoch seconds.

mod attributes;
pub mod lease;
pub mod runs;
pub mod steps;

use std::collections::HashMap;

use aws_sdk_dynamodb::{
    Client,
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    types::AttributeValue,
};
use serde_json::Value;
use slipway_statemachine::{ClusterKey, Run, StepError};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

use crate::aws::error::{During as _, code};
use lease::Lease;

/// A row as DynamoDB has it.
type Row = HashMap<String, AttributeValue>;

/// What a registered cluster may be, but for `Deleted`.
const STATUSES: [&str; 4] = ["Provisioning", "Ready", "Failed", "Deleting"];

/// A cluster as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Which cluster.
    pub cluster: ClusterKey,
    /// `Provisioning`, `Ready`, `Failed` or `Deleting`.
    pub status: String,
    /// Since when, RFC 3339.
    pub changed_at: String,
}

impl Registered {
    fn of(row: &Row) -> Option<Self> {
        let text = |name| attributes::text(row, name);
        let pk = text("pk")?;
        let mut parts = pk.strip_prefix("CLUSTER#")?.split('#').map(str::to_owned);
        let cluster = ClusterKey { account: parts.next()?, region: parts.next()?, name: parts.next()? };
        Some(Self { cluster, status: text("status")?, changed_at: text("changedAt")? })
    }
}

/// What the registry has of a cluster's last run.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The completed spec that it was opened with.
    pub spec: Value,
    /// ULID of the run, if it failed.
    pub failed: Option<String>,
}

/// How long a run and its steps are kept.
const KEPT: Duration = Duration::days(90);

/// The state table.
#[derive(Debug, Clone)]
pub struct Table {
    dynamodb: Client,
    name: String,
}

impl Table {
    /// The table of a name.
    #[must_use]
    pub fn new(dynamodb: Client, name: String) -> Self {
        Self { dynamodb, name }
    }

    /// The cluster's lease as it is now.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn lease(&self, cluster: &ClusterKey) -> Result<Option<Lease>, StepError> {
        Ok(self.row(cluster, "LEASE").await?.as_ref().map(Lease::of))
    }

    /// Says whether the run still has the cluster to itself. A step calls it just before it changes anything.
    ///
    /// # Errors
    /// `LeaseLost`, or what DynamoDB raises.
    pub async fn hold(&self, run: &Run, cluster: &ClusterKey) -> Result<(), StepError> {
        lease::held(self.lease(cluster).await?.as_ref(), run)
    }

    /// What the cluster's last run was opened with.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn registered(&self, cluster: &ClusterKey) -> Result<Option<Registration>, StepError> {
        Ok(self.row(cluster, "SPEC").await?.and_then(|row| {
            let text = |name| attributes::text(&row, name);
            let failed = text("run").filter(|_| text("status").as_deref() == Some("Failed"));
            Some(Registration { spec: attributes::json(row.get("spec")?), failed })
        }))
    }

    /// The clusters that the registry has and that were not taken away, eventually consistent.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn registry(&self) -> Result<Vec<Registered>, StepError> {
        let mut found = Vec::new();
        for status in STATUSES {
            let rows: Vec<Row> = self
                .dynamodb
                .query()
                .table_name(&self.name)
                .index_name("by-status")
                .key_condition_expression("#status = :status")
                .expression_attribute_names("#status", "status")
                .expression_attribute_values(":status", AttributeValue::S(status.to_owned()))
                .into_paginator()
                .items()
                .send()
                .collect::<Result<Vec<_>, _>>()
                .await
                .during("dynamodb:Query")?;
            // A run's steps have a status, too.
            let specs = rows.iter().filter(|row| attributes::text(row, "sk").as_deref() == Some("SPEC"));
            found.extend(specs.filter_map(Registered::of));
        }
        Ok(found)
    }

    /// No run goes on with the cluster's last one if that failed: something was removed since by somebody who takes no
    /// lease. A run that is at work keeps its row, or it could not close.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn distrust(&self, cluster: &ClusterKey) -> Result<(), StepError> {
        let removed = self
            .dynamodb
            .update_item()
            .table_name(&self.name)
            .set_key(Some(key(cluster, "SPEC")))
            .update_expression("REMOVE run")
            .condition_expression("#status = :failed")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":failed", AttributeValue::S("Failed".to_owned()))
            .send()
            .await;
        if_so(removed, "dynamodb:UpdateItem").map(|_| ())
    }

    /// Forgets a cluster that was never taken away by a run and is gone. Its lease stays, so that fencing numbers go on.
    /// False: the registry has heard of it since, and it stays.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn forget(&self, cluster: &ClusterKey, as_of: &str) -> Result<bool, StepError> {
        let deleted = self
            .dynamodb
            .delete_item()
            .table_name(&self.name)
            .set_key(Some(key(cluster, "SPEC")))
            .condition_expression("attribute_not_exists(pk) OR changedAt = :then")
            .expression_attribute_values(":then", AttributeValue::S(as_of.to_owned()))
            .send()
            .await;
        if_so(deleted, "dynamodb:DeleteItem")
    }

    /// One row, strongly consistent.
    async fn row(&self, cluster: &ClusterKey, sk: &str) -> Result<Option<Row>, StepError> {
        let answer = self
            .dynamodb
            .get_item()
            .table_name(&self.name)
            .set_key(Some(key(cluster, sk)))
            .consistent_read(true)
            .send()
            .await
            .during("dynamodb:GetItem")?;
        Ok(answer.item)
    }

    /// The rows whose `sk` starts so, strongly consistent, in order.
    async fn rows(&self, cluster: &ClusterKey, prefix: &str) -> Result<Vec<Row>, StepError> {
        self.dynamodb
            .query()
            .table_name(&self.name)
            .key_condition_expression("pk = :pk AND begins_with(sk, :prefix)")
            .expression_attribute_values(":pk", AttributeValue::S(partition(cluster)))
            .expression_attribute_values(":prefix", AttributeValue::S(prefix.to_owned()))
            .consistent_read(true)
            .into_paginator()
            .items()
            .send()
            .collect::<Result<Vec<_>, _>>()
            .await
            .during("dynamodb:Query")
    }
}

/// Whether a write was made; false: its condition does not hold.
fn if_so<T, E>(written: Result<T, SdkError<E, HttpResponse>>, action: &str) -> Result<bool, StepError>
where
    E: ProvideErrorMetadata,
{
    match written {
        Err(error) if code(&error) == Some("ConditionalCheckFailedException") => Ok(false),
        other => other.map(|_| true).during(action),
    }
}

/// `CLUSTER#<account>#<region>#<name>`
#[must_use]
pub fn partition(cluster: &ClusterKey) -> String {
    format!("CLUSTER#{}#{}#{}", cluster.account, cluster.region, cluster.name)
}

fn key(cluster: &ClusterKey, sk: &str) -> Row {
    Row::from([
        ("pk".to_owned(), AttributeValue::S(partition(cluster))),
        ("sk".to_owned(), AttributeValue::S(sk.to_owned())),
    ])
}

/// RFC 3339 with exactly three digits of a second, so that times compare as text.
fn written(at: OffsetDateTime) -> String {
    let millis = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    at.to_offset(time::UtcOffset::UTC).format(millis).unwrap_or_default()
}

fn read(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// The TTL of a row written now.
fn expiry(now: OffsetDateTime) -> AttributeValue {
    AttributeValue::N((now + KEPT).unix_timestamp().to_string())
}
