//! What a state, a task or an execution fails with.

use serde_json::{Value, json};

/// An error's name and its cause, as Catch sees them in `$states.errorOutput`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}: {cause}")]
pub struct Failure {
    /// The name that Retry and Catch match, at most 256 characters.
    pub error: String,
    /// Text: JSON from a Lambda function, plain words from most others. At most 32 KiB.
    pub cause: String,
}

/// How a task fails; the same shape as the failure of a state.
pub type TaskError = Failure;

/// An expression failed, was undefined, or gave a value of the wrong type.
pub const QUERY_EVALUATION_ERROR: &str = "States.QueryEvaluationError";
/// A payload beyond 256 KiB.
pub const DATA_LIMIT_EXCEEDED: &str = "States.DataLimitExceeded";
/// What no Retry and no Catch may handle.
pub const RUNTIME: &str = "States.Runtime";
/// TimeoutSeconds passed.
pub const TIMEOUT: &str = "States.Timeout";
/// HeartbeatSeconds passed without a heartbeat.
pub const HEARTBEAT_TIMEOUT: &str = "States.HeartbeatTimeout";
/// A wildcard in ErrorEquals; also what a failed nested execution is called.
pub const TASK_FAILED: &str = "States.TaskFailed";
/// The widest wildcard in ErrorEquals.
pub const ALL: &str = "States.ALL";
/// No Choice rule matched and there is no Default.
pub const NO_CHOICE_MATCHED: &str = "States.NoChoiceMatched";

impl Failure {
    /// A failure with a name and a cause.
    pub fn new(error: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { error: error.into(), cause: cause.into() }
    }

    /// What Step Functions makes of a Lambda answer with `X-Amz-Function-Error`: the error is the payload's
    /// `errorType`, or `Lambda.Unknown` where the payload has none; the cause is the whole payload as JSON text.
    #[must_use]
    pub fn from_function_error(payload: &Value) -> Self {
        let error = payload.get("errorType").and_then(Value::as_str).filter(|name| !name.is_empty());
        Self::new(error.unwrap_or("Lambda.Unknown"), payload.to_string())
    }

    /// `{"Error": …, "Cause": …}`, the form of `$states.errorOutput`; a failure without a cause has no Cause.
    #[must_use]
    pub fn output(&self) -> Value {
        if self.cause.is_empty() {
            return json!({ "Error": self.error });
        }
        json!({ "Error": self.error, "Cause": self.cause })
    }
}
