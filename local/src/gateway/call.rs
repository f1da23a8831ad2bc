//! One AWS request, identified and taken apart, and its answer: what every service of the local cloud speaks.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::Value;

/// Who calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Principal {
    /// For example `arn:aws:sts::111122223333:assumed-role/provision-ensure-network/ensure-network`, an IAM
    /// user's ARN, a service's name (`eks.amazonaws.com`) for calls that the cloud makes on its own, or `anonymous`.
    pub arn: String,
    /// The account that the principal belongs to.
    pub account: String,
    /// The role behind an assumed-role session.
    pub role_arn: Option<String>,
    /// The Lambda function behind the session, where it is one.
    pub function: Option<String>,
    /// The policies that the session was begun with: it may only what they allow, too.
    pub session_policies: Option<Arc<Vec<Value>>>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    /// The request id that the answer carries.
    pub request_id: String,
    /// The account that the request works in.
    pub account: String,
    /// The region that it was signed for.
    pub region: String,
    /// Who calls.
    pub principal: Principal,
    /// The service in the SigV4 scope: `ec2`, `eks`, `sts`, `states`, …
    pub service: String,
    /// The API's operation: `CreateCluster`. For REST protocols the service itself resolves it (see
    /// [`Service::action`]), so records and policies always see an operation's name.
    pub action: String,
    /// As received.
    pub method: Method,
    /// Path and query as received.
    pub uri: Uri,
    /// As received.
    pub headers: HeaderMap,
    /// As received.
    pub body: Bytes,
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers beyond length and date.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// AWS's error code, for the record.
    pub error_code: Option<String>,
}

/// An AWS error, before a wire protocol dresses it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct AwsError {
    /// HTTP status.
    pub status: u16,
    /// AWS's code, for example `ResourceInUseException`.
    pub code: String,
    /// AWS's words.
    pub message: String,
}

impl AwsError {
    /// An error with a status, a code and a message.
    pub fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into() }
    }
}

/// A service behind the gateway.
#[async_trait]
pub trait Service: Send + Sync {
    /// The operation that a request asks for, for protocols that name it by method and path. The gateway
    /// names it itself for query, ec2 and json protocols (form `Action`, `X-Amz-Target`).
    fn action(&self, _method: &Method, _uri: &Uri) -> Option<String> {
        None
    }

    /// Answers one call.
    async fn handle(&self, call: Call) -> Answer;
}

/// Where the cloud's own parts send calls of their own: through the same chain as everybody's.
#[async_trait]
pub trait Dispatch: Send + Sync {
    /// Sends a call through authorize, record, fault and route.
    async fn dispatch(&self, call: Call) -> Answer;
}

/// A client for the cloud's own parts (EKS making a security group, CloudFormation a subnet).
#[derive(Clone)]
pub struct Aws {
    /// The gateway.
    pub gateway: Arc<dyn Dispatch>,
    /// The account that is worked in.
    pub account: String,
    /// The region that is worked in.
    pub region: String,
    /// On whose behalf: a principal passed on (CloudFormation acts as its caller) or a service's own.
    pub principal: Principal,
}

impl Principal {
    /// A part of the cloud that acts for itself, for example `eks.amazonaws.com`.
    #[must_use]
    pub fn service(name: &str, account: &str) -> Self {
        Self { arn: name.to_owned(), account: account.to_owned(), ..Self::default() }
    }
}

impl Aws {
    /// Calls a query- or ec2-protocol API (`ec2`, `iam`, `sqs` by query is not offered) with flat parameters
    /// (`Filter.1.Name`) and answers the XML body.
    ///
    /// # Errors
    /// AWS's own error, taken from the XML.
    pub async fn query(&self, service: &str, action: &str, params: &[(&str, &str)]) -> Result<String, AwsError> {
        crate::gateway::wire::send_query(self, service, action, params).await
    }

    /// Calls a JSON-protocol API; `target` is the whole `X-Amz-Target`.
    ///
    /// # Errors
    /// AWS's own error, taken from the JSON.
    pub async fn json(&self, service: &str, target: &str, body: &Value) -> Result<Value, AwsError> {
        crate::gateway::wire::send_json(self, service, target, body).await
    }
}
