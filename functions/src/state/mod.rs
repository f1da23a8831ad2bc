//! The state table: the lease with its fencing number, the registry of clusters, their runs, and the runs' steps.
//!
//! One table. `pk = CLUSTER#<account>#<region>#<name>`; `sk` is one of
//!
//! | `sk` | holds |
//! |---|---|
//! | `SPEC` | the registry: the completed spec, `status` (`Provisioning`, `Ready`, `Deleting`, `Deleted`, `Failed`), the last run |
//! | `LEASE` | who may change the cluster: `run`, `execution`, and `fence`, which only grows |
//! | `RUN#<ulid>` | a run: `execution`, `purpose`, `startedAt`, and once it ended `outcome`, `error`, `cause`, `outputs`, `timeline` |
//! | `RUN#<ulid>#STEP#<name>` | a step of a run: see [`steps`] |
//!
//! Every write is conditional. Times are RFC 3339 in UTC, but `expires`, which is DynamoDB's TTL in epoch seconds.

mod attributes;
pub mod lease;
pub mod runs;
pub mod steps;

use std::collections::HashMap;

use aws_sdk_dynamodb::{Client, types::AttributeValue};
use serde_json::Value;
use slipway_statemachine::{ClusterKey, Run, StepError};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

use crate::aws::error::During as _;
use lease::Lease;

/// A row as DynamoDB has it.
type Row = HashMap<String, AttributeValue>;

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

    /// The completed spec that the cluster's last run was opened with.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn registered(&self, cluster: &ClusterKey) -> Result<Option<Value>, StepError> {
        Ok(self.row(cluster, "SPEC").await?.and_then(|row| row.get("spec").map(attributes::json)))
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
