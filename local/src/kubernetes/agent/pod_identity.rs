//! The Pod Identity agents of a cluster's nodes: they hand a pod's token to EKS Auth and the pod its credentials.
//!
//! On AWS each node's agent listens on 169.254.170.23; here all share one port of loopback, and the node is in the path.
//! What it answers is what <https://github.com/aws/eks-pod-identity-agent> answers.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;

use super::Cluster;
use crate::gateway::call::{Aws, Principal};
use crate::gateway::wire;
use crate::kubernetes::machines::Machine;
use crate::services::web_token;

/// The label of the agent's pods: those of EKS's add-on.
const APP: &str = "eks-pod-identity-agent";

/// How soon a listener that ran out of file descriptors accepts again.
const AGAIN: Duration = Duration::from_millis(500);

/// Where a process on a node finds the node's agent.
pub(super) fn address(port: u16, node: &str) -> String {
    format!("http://127.0.0.1:{port}/{node}/v1/credentials")
}

/// The agents' listener.
pub(super) struct Server {
    listener: TcpListener,
    port: u16,
}

/// No agent runs on the node: on AWS, nobody answers.
#[derive(Debug, thiserror::Error)]
#[error("no Pod Identity agent runs there")]
struct NoAgent;

/// An answer that is no credentials: status and text.
type Refusal = (StatusCode, String);

impl Server {
    pub(super) async fn bind() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port for Pod Identity")?;
        Ok(Self { port: listener.local_addr()?.port(), listener })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) async fn run(self, cluster: Arc<Cluster>) {
        loop {
            let Ok((connection, _)) = self.listener.accept().await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let served = cluster.clone();
            cluster.spawn(async move {
                let service = service_fn(|request| answer(served.clone(), request));
                let http = hyper::server::conn::http1::Builder::new();
                if let Err(error) = http.serve_connection(TokioIo::new(connection), service).await {
                    tracing::debug!(%error, "a connection to a Pod Identity agent broke");
                }
            });
        }
    }
}

async fn answer(cluster: Arc<Cluster>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, NoAgent> {
    let path = wire::path_segments(request.uri());
    let node = path.first().map(String::as_str).unwrap_or_default();
    let machine = cluster.machine_running(node, APP).ok_or(NoAgent)?;
    let known = request.method() == Method::GET && path.get(1..).is_some_and(|rest| rest == ["v1", "credentials"]);
    let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let outcome = if known {
        credentials(&cluster.config.aws, &cluster.config.cluster, &machine, token).await
    } else {
        Err((StatusCode::NOT_FOUND, "404 page not found".to_owned()))
    };
    Ok(respond(outcome))
}

fn respond(outcome: Result<Value, Refusal>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match outcome {
        Ok(credentials) => (StatusCode::OK, "application/json", credentials.to_string()),
        Err((status, text)) => (status, "text/plain; charset=utf-8", format!("{text}\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

/// Credentials for whoever a token is, from EKS Auth, which the node's role asks.
async fn credentials(aws: &Aws, cluster: &str, machine: &Machine, token: &str) -> Result<Value, Refusal> {
    check(token).map_err(|text| (StatusCode::BAD_REQUEST, text))?;
    let role = machine.role_arn.rsplit('/').next().unwrap_or_default();
    let principal = Principal {
        arn: format!("arn:aws:sts::{}:assumed-role/{role}/{}", aws.account, machine.instance),
        account: aws.account.clone(),
        role_arn: Some(machine.role_arn.clone()),
        function: None,
        session_policies: None,
    };
    let path = format!("/clusters/{cluster}/assume-role-for-pod-identity");
    let aws = Aws { principal, ..aws.clone() };
    let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, text);
    let mut call = wire::outgoing(&aws, "eks-auth", "AssumeRoleForPodIdentity", Method::POST, &path)
        .map_err(|error| failed(error.to_string()))?;
    call.body = Bytes::from(json!({"token": token}).to_string());
    let request_id = call.request_id.clone();
    let answer = aws.gateway.dispatch(call).await;
    if let Some(refusal) = wire::error_of(&answer) {
        let fault = if answer.status.is_client_error() { "client" } else { "server" };
        let text = format!("[{request_id}]: ({}): {}, fault: {fault}", refusal.code, refusal.message);
        return Err((answer.status, text));
    }
    let body: Value = serde_json::from_slice(&answer.body).map_err(|error| failed(error.to_string()))?;
    let given = &body["credentials"];
    let expiration = given["expiration"].as_i64().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let expiration = expiration.and_then(|at| at.format(&Rfc3339).ok());
    Ok(json!({
        "AccessKeyId": given["accessKeyId"],
        "SecretAccessKey": given["secretAccessKey"],
        "Token": given["sessionToken"],
        "AccountId": aws.account,
        "Expiration": expiration,
    }))
}

/// What the agent itself looks at: that there is a token, and that its time is not over.
fn check(token: &str) -> Result<(), String> {
    if token.is_empty() {
        return Err("Service account token cannot be empty".to_owned());
    }
    let claims = web_token::unverified_claims(token).ok_or_else(|| {
        "Service account token cannot be parsed: token is malformed: token contains an invalid number of segments"
            .to_owned()
    })?;
    if claims["exp"].as_i64().is_some_and(|expires| expires <= OffsetDateTime::now_utc().unix_timestamp()) {
        let text = "Service account token failed basic claim validations: token has invalid claims: token is expired";
        return Err(text.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::gateway::call::{Answer, AwsError, Call, Dispatch};
    use crate::kubernetes::machines::InstanceType;

    /// EKS Auth that gives credentials, or what it is told to say.
    struct Auth {
        refusal: Option<AwsError>,
        asked: Mutex<Vec<Call>>,
    }

    #[async_trait]
    impl Dispatch for Auth {
        async fn dispatch(&self, call: Call) -> Answer {
            self.asked.lock().unwrap().push(call.clone());
            match &self.refusal {
                Some(refusal) => wire::refuse(&call, refusal),
                None => wire::rest_json_answer(
                    StatusCode::OK,
                    &json!({"credentials": {"accessKeyId": "ASIA1", "secretAccessKey": "s", "sessionToken": "t",
                        "expiration": 1_800_000_000}}),
                ),
            }
        }
    }

    fn machine() -> Machine {
        let kind = InstanceType {
            name: "t4g.medium".into(),
            architecture: "arm64",
            vcpus: 2,
            memory_mib: 4096,
            interfaces: 3,
            addresses_per_interface: 6,
        };
        Machine {
            node: "ip-10-20-0-5".into(),
            instance: "i-5".into(),
            role_arn: "arn:aws:iam::111122223333:role/paths/core".into(),
            private_ip: "10.20.0.5".into(),
            region: "eu-west-1".into(),
            zone: "eu-west-1a".into(),
            kind: Arc::new(kind),
            labels: BTreeMap::new(),
            taints: Vec::new(),
        }
    }

    async fn ask(refusal: Option<AwsError>, token: &str) -> (Result<Value, Refusal>, Vec<Call>) {
        let auth = Arc::new(Auth { refusal, asked: Mutex::default() });
        let aws = Aws {
            gateway: auth.clone(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal: Principal::service("ec2.amazonaws.com", "111122223333"),
        };
        let outcome = credentials(&aws, "demo", &machine(), token).await;
        let asked = auth.asked.lock().unwrap().clone();
        (outcome, asked)
    }

    fn token(claims: &Value) -> String {
        web_token::tests::Issuer::new("https://issuer.example.com").token(claims)
    }

    #[tokio::test]
    async fn the_nodes_role_asks_and_the_pod_gets_credentials() {
        let token = token(&json!({}));
        let (given, asked) = ask(None, &token).await;
        let given = given.unwrap();
        assert_eq!((&given["AccessKeyId"], &given["Token"]), (&json!("ASIA1"), &json!("t")));
        assert_eq!(given["Expiration"], "2027-01-15T08:00:00Z");
        assert_eq!(asked[0].principal.arn, "arn:aws:sts::111122223333:assumed-role/core/i-5");
        assert_eq!(asked[0].uri.path(), "/clusters/demo/assume-role-for-pod-identity");
        assert_eq!(serde_json::from_slice::<Value>(&asked[0].body).unwrap()["token"], json!(token));
    }

    #[tokio::test]
    async fn what_cannot_be_a_token_is_not_passed_on() {
        let old = token(&json!({"exp": 1_700_000_000}));
        for (token, words) in [("", "cannot be empty"), ("Bearer x", "cannot be parsed"), (&old, "token is expired")] {
            let (refused, asked) = ask(None, token).await;
            let (status, text) = refused.unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(text.contains(words), "{text}");
            assert!(asked.is_empty());
        }
    }

    #[tokio::test]
    async fn a_refusal_of_eks_auth_reaches_the_pod_with_its_status() {
        let refusal = AwsError::new(404, "ResourceNotFoundException", "No association found.");
        let (refused, asked) = ask(Some(refusal), &token(&json!({}))).await;
        let text =
            format!("[{}]: (ResourceNotFoundException): No association found., fault: client", asked[0].request_id);
        assert_eq!(refused.unwrap_err(), (StatusCode::NOT_FOUND, text));
    }
}
