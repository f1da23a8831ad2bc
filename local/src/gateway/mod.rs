//! One endpoint for every AWS call: identify, authorize, record, fault, route.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use tokio::net::TcpListener;

use self::authorize::{Authorizer, Use};
use self::call::{Answer, Aws, AwsError, Call, Dispatch, Principal};
use self::fault::Faults;
use self::identify::{Identities, Unidentified};
use self::record::Record;
use self::route::Routes;

pub mod authorize;
pub mod call;
mod denial;
pub mod fault;
pub mod identify;
mod lookup;
pub mod operations;
mod permissions;
pub mod policy;
mod presigned;
pub mod record;
pub mod route;
mod simulate;
pub mod wire;

/// The connection that a request came by: the caller's address and port. A host behind a balancer keeps its
/// connections, so what one host answers differently shows by connection.
pub const CONNECTION_HEADER: HeaderName = HeaderName::from_static("x-slipway-connection");

/// The gateway of one cloud.
pub struct Gateway {
    identities: Arc<Identities>,
    authorizer: OnceLock<Authorizer>,
    record: Record,
    faults: Faults,
    routes: Routes,
}

impl Gateway {
    /// A gateway that asks for nobody's policies and routes nowhere yet.
    #[must_use]
    pub fn new(identities: Arc<Identities>, record: Record) -> Arc<Self> {
        Arc::new(Self {
            identities,
            authorizer: OnceLock::new(),
            record,
            faults: Faults::default(),
            routes: Routes::default(),
        })
    }

    /// From now on, refuses what a role's policies do not allow.
    pub fn authorize_by(&self, authorizer: Authorizer) {
        // A second authorizer would be a second opinion; the first stays.
        let _ = self.authorizer.set(authorizer);
    }

    /// From now on, the account is in an organization with these service control policies beside `FullAWSAccess`. They
    /// bind its roles.
    pub fn organize(&self, policies: Vec<serde_json::Value>) {
        if let Some(authorizer) = self.authorizer.get() {
            authorizer.control(policies);
        }
    }

    /// What let roles do what they did so far.
    #[must_use]
    pub fn used(&self) -> BTreeSet<Use> {
        self.authorizer.get().map(Authorizer::used).unwrap_or_default()
    }

    /// Who may call.
    #[must_use]
    pub fn identities(&self) -> &Arc<Identities> {
        &self.identities
    }

    /// Which service answers what.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// What was called.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What is made to fail.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// A client of this gateway for a part of the cloud, in the name of an AWS service (`eks.amazonaws.com`).
    #[must_use]
    pub fn client(self: &Arc<Self>, service: &str, account: &str, region: &str) -> Aws {
        Aws {
            gateway: Arc::clone(self) as Arc<dyn Dispatch>,
            account: account.to_owned(),
            region: region.to_owned(),
            principal: Principal::service(service, account),
        }
    }

    /// Serves a listener until the task is aborted.
    ///
    /// # Errors
    /// Where the listener fails.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> anyhow::Result<()> {
        let router = axum::Router::new().fallback(receive).with_state(self);
        axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await?;
        Ok(())
    }

    async fn answer(&self, method: Method, request: Request) -> (Answer, String) {
        let (mut parts, body) = request.into_parts();
        if let Some(ConnectInfo(peer)) = parts.extensions.get::<ConnectInfo<SocketAddr>>()
            && let Ok(connection) = HeaderValue::from_str(&peer.to_string())
        {
            parts.headers.insert(CONNECTION_HEADER, connection);
        }
        let body = match axum::body::to_bytes(body, usize::MAX).await {
            Ok(body) => body,
            Err(error) => {
                let id = wire::request_id();
                let refusal = AwsError::new(400, "IncompleteBody", error.to_string());
                return (wire::error(wire::Protocol::RestJson, &refusal, &id), id);
            }
        };
        match self.identities.identify(method, parts.uri, parts.headers, body).await {
            Ok(mut call) => {
                if call.action.is_empty() {
                    call.action = self.routes.action(&call);
                }
                let id = call.request_id.clone();
                (self.dispatch(call).await, id)
            }
            Err(refused) => (refused.answer(), refused.call.request_id),
        }
    }
}

impl Gateway {
    /// A request that a part of the cloud passes on for whoever presigned it: EKS asks STS who a login token is.
    async fn presigner(&self, call: Call) -> Result<Call, Box<Unidentified>> {
        let secret = match wire::query_parameter(&call.uri, "X-Amz-Credential") {
            Some(credential) => {
                let access_key = credential.split('/').next().unwrap_or_default();
                self.identities.session(access_key).await.map(|session| session.secret)
            }
            None => None,
        };
        let signed = secret.is_some_and(|secret| presigned::is_signed_with(&secret, &call));
        let call = self.identities.identify(call.method, call.uri, call.headers, call.body).await?;
        if signed {
            Ok(call)
        } else {
            let message = "The request signature we calculated does not match the signature you provided.";
            let refusal = AwsError::new(403, "SignatureDoesNotMatch", message);
            Err(Box::new(Unidentified { call, refusal }))
        }
    }
}

#[async_trait]
impl Dispatch for Gateway {
    async fn dispatch(&self, mut call: Call) -> Answer {
        if call.principal.arn == "anonymous" && presigned::is_presigned(&call) {
            call = match self.presigner(call).await {
                Ok(call) => call,
                Err(refused) => return refused.answer(),
            };
        }
        if call.action.is_empty() {
            call.action = self.routes.action(&call);
        }
        let mut entry = self.record.open(&call);
        if let Some(authorizer) = self.authorizer.get()
            && let Err(refusal) = authorizer.check(&call, &self.routes).await
        {
            let answer = wire::refuse(&call, &refusal);
            entry.denied = Some(refusal.message);
            self.record.close(entry, &answer, None);
            return answer;
        }
        if authorize::is_dry_run(&call) {
            // That is all that a dry run asks.
            let answer = wire::refuse(&call, &denial::dry_run());
            self.record.close(entry, &answer, None);
            return answer;
        }
        if let Some(refusal) = self.faults.strike(&call) {
            let answer = wire::refuse(&call, &refusal);
            self.record.close(entry, &answer, Some(&refusal.code));
            return answer;
        }
        if let Some(authorizer) = self.authorizer.get().filter(|_| simulate::is_asked(&call)) {
            let answer = match authorizer.simulate(&call).await {
                Ok(result) => wire::query_answer(&call, &result),
                Err(refusal) => wire::refuse(&call, &refusal),
            };
            self.record.close(entry, &answer, None);
            return answer;
        }
        let changing = self.authorizer.get().map(|authorizer| (authorizer, call.clone()));
        let answer = self.routes.send(call).await;
        if let Some((authorizer, call)) = changing {
            authorizer.changed(&call);
        }
        self.record.close(entry, &answer, None);
        answer
    }
}

async fn receive(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let method = request.method().clone();
    let (answer, request_id) = gateway.answer(method.clone(), request).await;
    respond(&method, answer, &request_id)
}

/// An answer as HTTP. A HEAD's length is the length of what a GET would give, so it is kept only there.
fn respond(method: &Method, answer: Answer, request_id: &str) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    for (name, value) in &answer.headers {
        if name != header::CONTENT_LENGTH || method == Method::HEAD {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
    if method == Method::HEAD {
        let headers = std::mem::take(response.headers_mut());
        response = Response::new(Body::from(Bytes::new()));
        *response.status_mut() = answer.status;
        *response.headers_mut() = headers;
    }
    let name = HeaderName::from_static("x-amzn-requestid");
    if let Ok(value) = HeaderValue::from_str(request_id)
        && !response.headers().contains_key(&name)
    {
        response.headers_mut().insert(name, value);
    }
    response
}
