//! The events of an execution, as far as a reader needs them.

use aws_sdk_sfn::types::HistoryEvent;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// 1 and up.
    pub id: u64,
    /// The event before it in its branch; 0 at the start.
    pub previous: u64,
    /// Milliseconds since the epoch.
    pub at: i64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase")]
pub enum What {
    /// The execution began.
    Started {
        /// Its input.
        input: Value,
    },
    /// A state was entered.
    Entered {
        /// Its name.
        state: String,
        /// Its type: `Task`, `Wait`, `Choice`, …
        kind: String,
    },
    /// A state was left.
    Exited {
        /// Its name.
        state: String,
    },
    /// A nested state ended without being left.
    Aborted,
    /// A task began, or was tried again.
    Scheduled,
    /// A task answered.
    Answered {
        /// A function's own payload; the whole result of anything else.
        answer: Value,
    },
    /// A task failed or ran out of time.
    Failed {
        /// The error's name.
        error: String,
        /// The function's message, without the JSON around it.
        cause: String,
    },
    /// The branches or items of a state begin.
    LevelStarted,
    /// One item of a Map begins.
    IterationStarted,
    /// The execution is over.
    Ended {
        /// `SUCCEEDED`, `FAILED`, `ABORTED` or `TIMED_OUT`.
        status: String,
        /// The error's name, where it failed.
        error: Option<String>,
        /// The error's cause, where it failed.
        cause: Option<String>,
        /// Its output, where it succeeded.
        output: Option<Value>,
    },
    /// Anything else.
    Other,
}

impl Event {
    /// Reads an event of the API. A payload that is no JSON is taken as text.
    #[must_use]
    pub fn read(event: &HistoryEvent) -> Self {
        Self {
            id: event.id().unsigned_abs(),
            previous: event.previous_event_id().unsigned_abs(),
            at: event.timestamp().to_millis().unwrap_or_default(),
            what: what(event),
        }
    }
}

fn what(event: &HistoryEvent) -> What {
    let kind = event.r#type().as_str();
    if let (Some(kind), Some(details)) = (kind.strip_suffix("StateEntered"), event.state_entered_event_details()) {
        return What::Entered { state: details.name().to_owned(), kind: kind.to_owned() };
    }
    if let (true, Some(details)) = (kind.ends_with("StateExited"), event.state_exited_event_details()) {
        return What::Exited { state: details.name().to_owned() };
    }
    let ended = |status: &str, error: Option<&str>, cause: Option<&str>| What::Ended {
        status: status.to_owned(),
        error: error.map(str::to_owned),
        cause: cause.map(message),
        output: None,
    };
    let failed = |error: Option<&str>, cause: Option<&str>| What::Failed {
        error: error.unwrap_or("States.TaskFailed").to_owned(),
        cause: cause.map(message).unwrap_or_default(),
    };
    match kind {
        "ExecutionStarted" => {
            let details = event.execution_started_event_details();
            What::Started { input: json(details.and_then(|details| details.input())) }
        }
        "ExecutionSucceeded" => {
            let details = event.execution_succeeded_event_details();
            let output = Some(json(details.and_then(|details| details.output())));
            What::Ended { status: "SUCCEEDED".to_owned(), error: None, cause: None, output }
        }
        "ExecutionFailed" => {
            let details = event.execution_failed_event_details();
            ended("FAILED", details.and_then(|d| d.error()), details.and_then(|d| d.cause()))
        }
        "ExecutionAborted" => {
            let details = event.execution_aborted_event_details();
            ended("ABORTED", details.and_then(|d| d.error()), details.and_then(|d| d.cause()))
        }
        "ExecutionTimedOut" => {
            let details = event.execution_timed_out_event_details();
            ended("TIMED_OUT", details.and_then(|d| d.error()), details.and_then(|d| d.cause()))
        }
        "TaskScheduled" => What::Scheduled,
        "TaskSucceeded" => {
            let details = event.task_succeeded_event_details();
            let mut answer = json(details.and_then(|details| details.output()));
            let payload = answer.get_mut("Payload").map(Value::take);
            What::Answered { answer: payload.unwrap_or(answer) }
        }
        "TaskFailed" => {
            let details = event.task_failed_event_details();
            failed(details.and_then(|d| d.error()), details.and_then(|d| d.cause()))
        }
        "TaskTimedOut" => {
            let details = event.task_timed_out_event_details();
            failed(details.and_then(|d| d.error()), details.and_then(|d| d.cause()))
        }
        "ParallelStateStarted" | "MapStateStarted" => What::LevelStarted,
        "MapIterationStarted" => What::IterationStarted,
        _ if kind.ends_with("StateAborted") => What::Aborted,
        _ => What::Other,
    }
}

fn json(text: Option<&str>) -> Value {
    let text = text.unwrap_or_default();
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

/// A Lambda function's cause is JSON with its message inside; others are plain text.
fn message(cause: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(cause).ok();
    let message = parsed.as_ref().and_then(|value| value.get("errorMessage")).and_then(Value::as_str);
    message.unwrap_or(cause).to_owned()
}
