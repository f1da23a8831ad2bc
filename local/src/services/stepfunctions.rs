//! Step Functions behind the gateway: our own engine, whose tasks call Lambda and AWS in the name of the machine's role.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method};
use serde_json::{Value, json};
use slipway_states::api::{StepFunctions, TaskInvoker};
use slipway_states::failure::{Failure, RUNTIME, TaskError};
use tokio::sync::broadcast::error::RecvError;

use super::backend::MiniStack;
use crate::gateway::call::{Answer, Aws, AwsError, Call, Principal, Service};
use crate::gateway::wire;

/// The engine as a service of the gateway.
pub struct States {
    engine: StepFunctions,
}

impl States {
    /// Serves an engine.
    #[must_use]
    pub fn new(engine: StepFunctions) -> Self {
        Self { engine }
    }
}

#[async_trait]
impl Service for States {
    async fn handle(&self, call: Call) -> Answer {
        let body = match wire::json_body(&call) {
            Ok(body) => body,
            Err(refusal) => return wire::refuse(&call, &refusal),
        };
        match self.engine.handle(&call.action, &body).await {
            Ok(answer) => wire::json_answer(&call, &answer),
            Err(refusal) => wire::refuse(&call, &AwsError::new(400, refusal.code, refusal.message)),
        }
    }
}

/// Puts every status change of an execution on the default bus, as AWS does, until the engine is gone.
pub async fn announce(engine: StepFunctions, ministack: MiniStack, account: String, region: String) {
    let mut changes = engine.status_changes();
    loop {
        let detail = match changes.recv().await {
            Ok(detail) => detail,
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "execution status changes came faster than they could be told");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let resources: Vec<String> = detail["executionArn"].as_str().map(str::to_owned).into_iter().collect();
        let kind = "Step Functions Execution Status Change";
        if let Err(error) = ministack.put_event(&account, &region, "aws.states", kind, &resources, &detail).await {
            tracing::warn!(%error, "an execution's status change was not told");
        }
    }
}

/// What tasks call, through the gateway like everybody else.
pub struct Tasks {
    aws: Aws,
}

/// Services that a task may call beside Lambda: their name in the integration's ARN, in the scope, in the
/// `X-Amz-Target`, and before their error codes.
const INTEGRATIONS: &[(&str, &str, &str, &str)] = &[
    ("dynamodb", "dynamodb", "DynamoDB_20120810", "DynamoDB"),
    ("events", "events", "AWSEvents", "EventBridge"),
    ("sqs", "sqs", "AmazonSQS", "Sqs"),
    ("states", "states", "AWSStepFunctions", "StepFunctions"),
];

impl Tasks {
    /// Tasks that call through a gateway.
    #[must_use]
    pub fn new(aws: Aws) -> Self {
        Self { aws }
    }

    /// The gateway in the name of a session of the machine's role.
    fn of_role(&self, role_arn: &str) -> Aws {
        let account = role_arn.split(':').nth(4).unwrap_or(&self.aws.account).to_owned();
        let role = role_arn.rsplit('/').next().unwrap_or(role_arn);
        let principal = Principal {
            arn: format!("arn:aws:sts::{account}:assumed-role/{role}/StepFunctions"),
            account: account.clone(),
            role_arn: Some(role_arn.to_owned()),
            function: None,
            session_policies: None,
        };
        Aws { account, principal, ..self.aws.clone() }
    }
}

/// Invokes a function and waits for its answer; its own errors come back under their names.
///
/// # Errors
/// What the function or Lambda answered.
pub async fn invoke(aws: &Aws, function_name: &str, payload: &Value) -> Result<Value, TaskError> {
    let path = format!("/2015-03-31/functions/{}/invocations", function_name.replace(':', "%3A"));
    let mut call = wire::outgoing(aws, "lambda", "Invoke", Method::POST, &path)
        .map_err(|error| Failure::new("Lambda.SdkClientException", error.message))?;
    call.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    call.body = Bytes::from(payload.to_string());
    let answer = aws.gateway.dispatch(call).await;
    if let Some(refusal) = wire::error_of(&answer) {
        return Err(Failure::new(format!("Lambda.{}", refusal.code), refusal.message));
    }
    let payload: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    if answer.headers.contains_key("x-amz-function-error") {
        return Err(Failure::from_function_error(&payload));
    }
    Ok(payload)
}

#[async_trait]
impl TaskInvoker for Tasks {
    async fn invoke_lambda(&self, role_arn: &str, function_name: &str, payload: Value) -> Result<Value, TaskError> {
        invoke(&self.of_role(role_arn), function_name, &payload).await
    }

    async fn call(&self, role_arn: &str, resource: &str, arguments: Value) -> Result<Value, TaskError> {
        let unknown = || Failure::new(RUNTIME, format!("The local cloud does not offer the integration {resource}"));
        let mut parts = resource.trim_start_matches("arn:aws:states:::").split([':', '.']);
        let (service, action) = (parts.next().ok_or_else(unknown)?, parts.next().ok_or_else(unknown)?);
        let (_, scope, target, prefix) = INTEGRATIONS.iter().find(|(name, ..)| *name == service).ok_or_else(unknown)?;
        let action = format!("{}{}", action[..1].to_uppercase(), &action[1..]);
        self.of_role(role_arn)
            .json(scope, &format!("{target}.{action}"), &arguments)
            .await
            .map_err(|refusal| Failure::new(format!("{prefix}.{}", refusal.code), json!(refusal.message).to_string()))
    }
}
