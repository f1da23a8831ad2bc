//! The rows of a run's steps, one a step, written after each invocation: what a live view and a timeline read.
//!
//! `step`, `started` (first attempt began), `lastAttempt` (last attempt ended), `ended` (once it is over), `attempts`,
//! `busyMillis` (what the function ran, all attempts), `status`, `detail`, `error`.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Map, Value, json};
use slipway_statemachine::{ClusterKey, ErrorName, Run, StepError};
use time::OffsetDateTime;

use super::{Row, Table, attributes, expiry, key, written};
use crate::aws::error::During as _;

/// How a step stands after an invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It failed in a way that resolves by itself; the machine tries it again.
    Running {
        /// The error's name.
        error: ErrorName,
        /// What happened.
        detail: String,
    },
    /// It waits for something; the machine asks again.
    Waiting {
        /// For what.
        detail: String,
    },
    /// It is over.
    Done,
    /// It failed.
    Failed {
        /// The error's name.
        error: ErrorName,
        /// What happened.
        detail: String,
    },
}

impl Status {
    /// From what the step answered.
    #[must_use]
    pub fn of(result: &Result<Value, StepError>) -> Self {
        match result {
            // An answer that names a time to come back at is not the last one.
            Ok(answer) if asks_again(answer) => {
                let detail = answer.get("detail").and_then(Value::as_str).unwrap_or_default().to_owned();
                Self::Waiting { detail }
            }
            Ok(_) => Self::Done,
            Err(failure) if ErrorName::RETRIED.contains(&failure.name) => {
                Self::Running { error: failure.name, detail: failure.cause.clone() }
            }
            Err(failure) => Self::Failed { error: failure.name, detail: failure.cause.clone() },
        }
    }

    /// As the row has it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Running { .. } => "running",
            Self::Waiting { .. } => "waiting",
            Self::Done => "done",
            Self::Failed { .. } => "failed",
        }
    }

    /// What to tell a person about it.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Running { detail, .. } | Self::Waiting { detail } | Self::Failed { detail, .. } => Some(detail),
            Self::Done => None,
        }
    }

    fn error(&self) -> Option<ErrorName> {
        match self {
            Self::Running { error, .. } | Self::Failed { error, .. } => Some(*error),
            Self::Waiting { .. } | Self::Done => None,
        }
    }
}

fn asks_again(answer: &Value) -> bool {
    match answer.get("done").and_then(Value::as_bool) {
        Some(done) => !done,
        None => answer.get("retryAfterSeconds").and_then(Value::as_u64).is_some_and(|seconds| seconds > 0),
    }
}

/// One invocation of a step.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The step's name, with its phase where the machine runs it in several: `ensure-addons-before`.
    pub step: String,
    /// When it began.
    pub started: OffsetDateTime,
    /// When it ended.
    pub ended: OffsetDateTime,
    /// How the step stands now.
    pub status: Status,
}

impl Table {
    /// Writes an invocation into its step's row.
    ///
    /// # Errors
    /// What DynamoDB raises, also when the row belongs to another fencing number.
    pub async fn record(&self, cluster: &ClusterKey, run: &Run, attempt: &Attempt) -> Result<(), StepError> {
        let millis = (attempt.ended - attempt.started).whole_milliseconds().max(0);
        let (status, ended) = (&attempt.status, written(attempt.ended));
        let over = matches!(status, Status::Done | Status::Failed { .. });
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let optional = |value: Option<&str>| value.map_or(AttributeValue::Null(true), text);
        self.dynamodb
            .update_item()
            .table_name(&self.name)
            .set_key(Some(key(cluster, &format!("RUN#{}#STEP#{}", run.id, attempt.step))))
            .update_expression(
                "SET step = :step, fence = :fence, started = if_not_exists(started, :started), lastAttempt = :lastAttempt, \
                 ended = :ended, #status = :status, detail = :detail, #error = :error, expires = :expires \
                 ADD attempts :one, busyMillis :millis",
            )
            .condition_expression("attribute_not_exists(fence) OR fence = :fence")
            .expression_attribute_names("#status", "status")
            .expression_attribute_names("#error", "error")
            .expression_attribute_values(":step", text(&attempt.step))
            .expression_attribute_values(":fence", AttributeValue::N(run.fence.to_string()))
            .expression_attribute_values(":started", text(&written(attempt.started)))
            .expression_attribute_values(":lastAttempt", text(&ended))
            .expression_attribute_values(":ended", optional(over.then_some(&ended)))
            .expression_attribute_values(":status", text(status.as_str()))
            .expression_attribute_values(":detail", optional(status.detail()))
            .expression_attribute_values(":error", optional(status.error().map(ErrorName::as_str)))
            .expression_attribute_values(":expires", expiry(attempt.ended))
            .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
            .expression_attribute_values(":millis", AttributeValue::N(millis.to_string()))
            .send()
            .await
            .during("dynamodb:UpdateItem")?;
        Ok(())
    }

    /// The timeline of a run that ends, from its steps' rows.
    pub(super) async fn timeline(&self, cluster: &ClusterKey, run: &str) -> Result<Value, StepError> {
        Ok(timeline(&self.rows(cluster, &format!("RUN#{run}#STEP#")).await?))
    }
}

/// The steps in the order in which they began. What the machine gave up trying again has failed by then.
fn timeline(rows: &[Row]) -> Value {
    const FIELDS: [&str; 8] = ["step", "started", "ended", "attempts", "busyMillis", "status", "detail", "error"];
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| (attributes::text(row, "started"), attributes::text(row, "step")));
    let entry = |row: &Row| -> Value {
        let field = |name: &&str| {
            Some(((*name).to_owned(), row.get(*name).map(attributes::json).filter(|value| !value.is_null())?))
        };
        let mut entry: Map<String, Value> = FIELDS.iter().filter_map(field).collect();
        if entry.get("status").is_some_and(|status| status == "running") {
            entry.insert("status".to_owned(), json!("failed"));
            entry.insert("ended".to_owned(), json!(attributes::text(row, "lastAttempt")));
        }
        entry.into()
    };
    json!(rows.into_iter().map(entry).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_retries_is_still_running() {
        let failed = |name| Status::of(&Err(StepError::new(name, "Because."))).as_str();
        assert_eq!(failed(ErrorName::PropagationPending), "running");
        assert_eq!(failed(ErrorName::Throttled), "running");
        assert_eq!(failed(ErrorName::NetworkFailed), "failed");
    }

    #[test]
    fn an_answer_that_names_a_time_waits() {
        let status = |answer: Value| Status::of(&Ok(answer)).as_str();
        assert_eq!(status(json!({"done": false, "retryAfterSeconds": 5, "detail": "x"})), "waiting");
        assert_eq!(status(json!({"health": "Progressing", "retryAfterSeconds": 5})), "waiting");
        assert_eq!(status(json!({"health": "Ready", "retryAfterSeconds": 0})), "done");
        assert_eq!(status(json!({"done": true, "output": {"retryAfterSeconds": 5}})), "done");
    }

    #[test]
    fn a_timeline_is_in_order_of_beginning() {
        let row = |step: &str, started: &str, status: &str, error: Option<&str>| {
            let text = |t: &str| AttributeValue::S(t.to_owned());
            Row::from([
                ("sk".to_owned(), text("RUN#01#STEP#x")),
                ("step".to_owned(), text(step)),
                ("started".to_owned(), text(started)),
                ("lastAttempt".to_owned(), text("2026-11-22T20:00:10.000Z")),
                ("attempts".to_owned(), AttributeValue::N("2".to_owned())),
                ("status".to_owned(), text(status)),
                ("error".to_owned(), error.map_or(AttributeValue::Null(true), text)),
            ])
        };
        let rows = [
            row("b", "2026-11-22T20:00:09.500Z", "running", Some("Throttled")),
            row("a", "2026-11-22T20:00:01.000Z", "done", None),
        ];
        let (a, b) = ("2026-11-22T20:00:01.000Z", "2026-11-22T20:00:09.500Z");
        assert_eq!(
            timeline(&rows),
            json!([
                {"step": "a", "started": a, "attempts": 2, "status": "done"},
                {"step": "b", "started": b, "attempts": 2, "status": "failed", "error": "Throttled",
                 "ended": "2026-11-22T20:00:10.000Z"},
            ])
        );
    }
}
