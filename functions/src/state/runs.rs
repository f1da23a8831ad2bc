//! Opening and closing a run: the lease, the run's row and the registry change together or not at all.

use aws_sdk_dynamodb::{
    operation::transact_write_items::TransactWriteItemsError,
    types::{AttributeValue, Put, TransactWriteItem, Update},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use slipway_statemachine::{ClusterKey, ErrorName, Made, Run, StepError};
use time::OffsetDateTime;

use super::{Row, Table, attributes, expiry, key, partition, read, written};
use crate::{
    aws::error::{During as _, refused},
    resume::Resumption,
    runtime,
};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// The cluster is as its spec asks.
    Succeeded,
    /// It is not.
    Failed,
}

impl Outcome {
    /// As the table has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// What a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The cluster is to be as its spec says.
    Provision,
    /// The cluster is to go.
    Teardown,
}

impl Purpose {
    /// As a run's row has it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "Provision",
            Self::Teardown => "Teardown",
        }
    }

    /// The cluster's `status` while such a run is at work.
    const fn status(self) -> &'static str {
        match self {
            Self::Provision => "Provisioning",
            Self::Teardown => "Deleting",
        }
    }

    /// The cluster's `status` after it.
    const fn status_after(self, outcome: Outcome) -> &'static str {
        match (outcome, self) {
            (Outcome::Succeeded, Self::Provision) => "Ready",
            (Outcome::Succeeded, Self::Teardown) => "Deleted",
            (Outcome::Failed, _) => "Failed",
        }
    }
}

/// What a run is opened with.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The run and its fencing number, one more than the lease's last.
    pub run: &'a Run,
    /// ARN of the execution that takes the lease.
    pub execution: &'a str,
    /// The release that opens it.
    pub release: &'a str,
    /// What for.
    pub purpose: Purpose,
    /// The completed spec.
    pub spec: &'a Value,
    /// The failed run that it goes on with.
    pub resumes: Option<&'a Resumption>,
    /// Now.
    pub at: OffsetDateTime,
}

/// What a run is closed with.
#[derive(Debug, Clone)]
pub struct Closing {
    /// How it ended.
    pub outcome: Outcome,
    /// The error's name, of a failed run.
    pub error: Option<String>,
    /// What happened, of a failed run.
    pub cause: Option<String>,
    /// What the run made; null if nothing is known.
    pub outputs: Value,
    /// How far a failed run came; null if it did not say.
    pub made: Value,
    /// Now.
    pub at: OffsetDateTime,
    /// When the lease may be taken again, if functions of the run may still be at work.
    pub free_at: Option<OffsetDateTime>,
}

/// A run's row.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// The run.
    pub run: Run,
    /// What for.
    pub purpose: Purpose,
    /// ARN of its execution.
    pub execution: String,
    /// How it ended; none while it is open.
    pub outcome: Option<Outcome>,
    /// The error's name, of a failed run.
    pub error: Option<String>,
    /// What happened, of a failed run.
    pub cause: Option<String>,
    /// What the run made.
    pub outputs: Value,
    /// The bus has heard how it ended.
    pub announced: bool,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// The release that opened it.
    pub release: Option<String>,
    /// How far it came, of a failed run that said so in words that this release knows.
    pub made: Option<Made>,
    /// The failed run that it goes on with.
    pub resumes: Option<Resumption>,
}

impl RunRow {
    fn of(row: &Row) -> Option<Self> {
        let text = |name| attributes::text(row, name);
        let outcome = match text("outcome").as_deref() {
            Some("Succeeded") => Some(Outcome::Succeeded),
            Some("Failed") => Some(Outcome::Failed),
            _ => None,
        };
        Some(Self {
            run: Run { id: text("sk")?.strip_prefix("RUN#")?.to_owned(), fence: attributes::number(row, "fence")? },
            // A run of the first release says nothing: there was nothing but provisions.
            purpose: if text("purpose").as_deref() == Some("Teardown") {
                Purpose::Teardown
            } else {
                Purpose::Provision
            },
            execution: text("execution")?,
            outcome,
            error: text("error"),
            cause: text("cause"),
            outputs: row.get("outputs").map(attributes::json).unwrap_or_default(),
            announced: row.contains_key("announcedAt"),
            ended_at: text("endedAt").as_deref().and_then(read),
            release: text("release"),
            made: parsed(row, "made"),
            resumes: parsed(row, "resumes"),
        })
    }
}

impl Table {
    /// Takes the lease, opens the run and registers the cluster. False: somebody else was faster.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn open(&self, cluster: &ClusterKey, opening: Opening<'_>) -> Result<bool, StepError> {
        let Opening { run, execution, release, purpose, spec, resumes, at } = opening;
        let (now, fence) = (text(&written(at)), AttributeValue::N(run.fence.to_string()));

        // The number is one more than the last taking's, or this is the first; a lease that was taken meanwhile has
        // a higher one.
        let lease = Update::builder()
            .table_name(&self.name)
            .set_key(Some(key(cluster, "LEASE")))
            .update_expression("SET run = :run, execution = :execution, fence = :fence, takenAt = :now REMOVE freeAt")
            .expression_attribute_values(":run", text(&run.id))
            .expression_attribute_values(":execution", text(execution))
            .expression_attribute_values(":fence", fence.clone())
            .expression_attribute_values(":now", now.clone());
        let lease = match run.fence.checked_sub(1).filter(|last| *last > 0) {
            None => lease.condition_expression("attribute_not_exists(fence)"),
            Some(last) => lease
                .condition_expression("fence = :last")
                .expression_attribute_values(":last", AttributeValue::N(last.to_string())),
        };
        let lease = lease.build().map_err(incomplete)?;

        let mut row = key(cluster, &format!("RUN#{}", run.id));
        row.extend([
            ("execution".to_owned(), text(execution)),
            ("purpose".to_owned(), text(purpose.as_str())),
            ("fence".to_owned(), fence.clone()),
            ("startedAt".to_owned(), now.clone()),
            ("release".to_owned(), text(release)),
            ("expires".to_owned(), expiry(at)),
        ]);
        if let Some(resumes) = resumes {
            row.insert("resumes".to_owned(), attributes::attribute(&runtime::answer(resumes)?));
        }
        let opened = Put::builder()
            .table_name(&self.name)
            .set_item(Some(row))
            .condition_expression("attribute_not_exists(pk)")
            .build()
            .map_err(incomplete)?;

        let registry = Update::builder()
            .table_name(&self.name)
            .set_key(Some(key(cluster, "SPEC")))
            .update_expression(
                "SET spec = :spec, #status = :status, run = :run, fence = :fence, changedAt = :now, \
                 registeredAt = if_not_exists(registeredAt, :now)",
            )
            .condition_expression("attribute_not_exists(fence) OR fence < :fence")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":spec", attributes::attribute(spec))
            .expression_attribute_values(":status", text(purpose.status()))
            .expression_attribute_values(":run", text(&run.id))
            .expression_attribute_values(":fence", fence)
            .expression_attribute_values(":now", now)
            .build()
            .map_err(incomplete)?;

        self.transact(vec![
            TransactWriteItem::builder().update(lease).build(),
            TransactWriteItem::builder().put(opened).build(),
            TransactWriteItem::builder().update(registry).build(),
        ])
        .await
    }

    /// The row of a run.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn run(&self, cluster: &ClusterKey, id: &str) -> Result<Option<RunRow>, StepError> {
        Ok(self.row(cluster, &format!("RUN#{id}")).await?.as_ref().and_then(RunRow::of))
    }

    /// The run that an execution opened.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn run_of(&self, cluster: &ClusterKey, execution: &str) -> Result<Option<RunRow>, StepError> {
        if let Some(holder) = self.lease(cluster).await?.and_then(|lease| lease.holder)
            && holder.execution == execution
        {
            return self.run(cluster, &holder.run).await;
        }
        let rows = self.rows(cluster, "RUN#").await?;
        Ok(rows.iter().filter_map(RunRow::of).find(|row| row.execution == execution))
    }

    /// Closes a run: its outcome and timeline, the cluster's status, the lease. A run that is closed stays as it is;
    /// one that lost its lease closes its own row alone. Answers the row as it is then.
    ///
    /// # Errors
    /// What DynamoDB raises; `Internal` when there is no such run.
    pub async fn close(&self, cluster: &ClusterKey, run: &Run, closing: &Closing) -> Result<RunRow, StepError> {
        let timeline = self.timeline(cluster, &run.id).await?;
        let purpose = self.run(cluster, &run.id).await?.map_or(Purpose::Provision, |row| row.purpose);
        let row = self.closed_row(cluster, run, closing, &timeline)?;
        let status = purpose.status_after(closing.outcome);
        let all = vec![
            row.clone(),
            self.released_lease(cluster, run, closing)?,
            self.settled_spec(cluster, run, closing, status)?,
        ];
        if !self.transact(all).await? {
            self.transact(vec![row]).await?;
        }
        self.run(cluster, &run.id).await?.ok_or_else(|| {
            StepError::new(ErrorName::Internal, format!("There is no run {} of {}.", run.id, partition(cluster)))
        })
    }

    /// Remembers that the bus has heard how the run ended.
    ///
    /// # Errors
    /// What DynamoDB raises.
    pub async fn announced(&self, cluster: &ClusterKey, run: &str, at: OffsetDateTime) -> Result<(), StepError> {
        self.dynamodb
            .update_item()
            .table_name(&self.name)
            .set_key(Some(key(cluster, &format!("RUN#{run}"))))
            .update_expression("SET announcedAt = if_not_exists(announcedAt, :now)")
            .condition_expression("attribute_exists(outcome)")
            .expression_attribute_values(":now", text(&written(at)))
            .send()
            .await
            .during("dynamodb:UpdateItem")?;
        Ok(())
    }

    fn closed_row(
        &self,
        cluster: &ClusterKey,
        run: &Run,
        closing: &Closing,
        timeline: &Value,
    ) -> Result<TransactWriteItem, StepError> {
        let optional = |value: Option<&str>| value.map_or(AttributeValue::Null(true), text);
        let update = Update::builder()
            .table_name(&self.name)
            .set_key(Some(key(cluster, &format!("RUN#{}", run.id))))
            .update_expression(
                "SET outcome = :outcome, #error = :error, cause = :cause, #outputs = :outputs, made = :made, \
                 timeline = :timeline, endedAt = :now",
            )
            .condition_expression("attribute_exists(pk) AND attribute_not_exists(outcome)")
            .expression_attribute_names("#error", "error")
            .expression_attribute_names("#outputs", "outputs")
            .expression_attribute_values(":outcome", text(closing.outcome.as_str()))
            .expression_attribute_values(":error", optional(closing.error.as_deref()))
            .expression_attribute_values(":cause", optional(closing.cause.as_deref()))
            .expression_attribute_values(":outputs", attributes::attribute(&closing.outputs))
            .expression_attribute_values(":made", attributes::attribute(&closing.made))
            .expression_attribute_values(":timeline", attributes::attribute(timeline))
            .expression_attribute_values(":now", text(&written(closing.at)))
            .build()
            .map_err(incomplete)?;
        Ok(TransactWriteItem::builder().update(update).build())
    }

    fn released_lease(
        &self,
        cluster: &ClusterKey,
        run: &Run,
        closing: &Closing,
    ) -> Result<TransactWriteItem, StepError> {
        let mut update = Update::builder()
            .table_name(&self.name)
            .set_key(Some(key(cluster, "LEASE")))
            .condition_expression("run = :run AND fence = :fence")
            .expression_attribute_values(":run", text(&run.id))
            .expression_attribute_values(":fence", AttributeValue::N(run.fence.to_string()));
        update = match closing.free_at {
            Some(at) => update
                .update_expression("SET freeAt = :freeAt REMOVE run, execution, takenAt")
                .expression_attribute_values(":freeAt", text(&written(at))),
            None => update.update_expression("REMOVE run, execution, takenAt"),
        };
        Ok(TransactWriteItem::builder().update(update.build().map_err(incomplete)?).build())
    }

    fn settled_spec(
        &self,
        cluster: &ClusterKey,
        run: &Run,
        closing: &Closing,
        status: &str,
    ) -> Result<TransactWriteItem, StepError> {
        let update = Update::builder()
            .table_name(&self.name)
            .set_key(Some(key(cluster, "SPEC")))
            .update_expression("SET #status = :status, changedAt = :now")
            .condition_expression("run = :run AND fence = :fence")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":status", text(status))
            .expression_attribute_values(":now", text(&written(closing.at)))
            .expression_attribute_values(":run", text(&run.id))
            .expression_attribute_values(":fence", AttributeValue::N(run.fence.to_string()))
            .build()
            .map_err(incomplete)?;
        Ok(TransactWriteItem::builder().update(update).build())
    }

    /// All or nothing. False: a condition does not hold.
    async fn transact(&self, items: Vec<TransactWriteItem>) -> Result<bool, StepError> {
        let Err(error) = self.dynamodb.transact_write_items().set_transact_items(Some(items)).send().await else {
            return Ok(true);
        };
        if let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) = error.as_service_error() {
            let reasons: Vec<&str> =
                cancelled.cancellation_reasons().iter().filter_map(|reason| reason.code()).collect();
            if reasons.contains(&"ConditionalCheckFailed") {
                return Ok(false);
            }
            if reasons.contains(&"TransactionConflict") {
                let cause = "dynamodb:TransactWriteItems met another write to the same rows.";
                return Err(StepError::new(ErrorName::Throttled, cause));
            }
        }
        Err(refused("dynamodb:TransactWriteItems", &error))
    }
}

/// A part of a row, if it is there in a form that this release knows.
fn parsed<T: DeserializeOwned>(row: &Row, name: &str) -> Option<T> {
    serde_json::from_value(attributes::json(row.get(name)?)).ok()
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn incomplete(error: impl std::fmt::Display) -> StepError {
    StepError::new(ErrorName::Internal, format!("A write to the state table is incomplete: {error}."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::attributes::attribute;

    /// A row of DynamoDB from its JSON.
    fn row(json: &Value) -> RunRow {
        let row: Row = json.as_object().unwrap().iter().map(|(name, value)| (name.clone(), attribute(value))).collect();
        RunRow::of(&row).unwrap()
    }

    #[test]
    fn how_far_a_run_came_is_read_as_it_was_written() {
        let made: Made = serde_json::from_value(json!({
            "next": "CheckKarpenter", "replacedIdentity": null, "addons": [], "karpenter": { "applied": 20, "pruned": 0 },
        }))
        .unwrap();
        let resumes = Resumption { run: "01A".to_owned(), fence: 2, made: made.clone() };
        let read = row(&json!({
            "sk": "RUN#01B", "fence": 3, "execution": "arn", "outcome": "Failed", "endedAt": "2026-11-30T09:00:00.000Z",
            "made": made, "resumes": resumes,
        }));
        assert_eq!((read.made, read.resumes), (Some(made), Some(resumes)));
        assert_eq!(read.ended_at.unwrap().unix_timestamp(), 1_796_029_200);
    }

    #[test]
    fn a_row_of_another_release_is_read_as_far_as_it_goes() {
        let bare = json!({ "sk": "RUN#01B", "fence": 3, "execution": "arn", "made": null });
        assert_eq!(row(&bare).made, None);
        let mut newer = bare;
        newer["made"] = json!({ "next": "SomeStageOfLater" });
        assert_eq!(row(&newer).made, None);
    }
}
