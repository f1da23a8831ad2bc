//! Who calls what: from a signature's access key to a principal, from its scope to region and service.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};
use time::OffsetDateTime;

use super::call::{Answer, AwsError, Call, Principal};
use super::wire;

/// The access key of the local cloud's administrator, who may do everything.
pub const ADMIN_ACCESS_KEY: &str = "AKIASLIPWAYADMIN0001";
/// The administrator's secret. The cloud is on loopback and ends with its test; it protects nothing.
pub const ADMIN_SECRET_KEY: &str = "slipway-local-admin";

/// The header by which parts of the cloud that run outside of this process prove that they are such.
pub const SECRET_HEADER: &str = "x-slipway-secret";
const PRINCIPAL_HEADER: &str = "x-slipway-principal";
const SCOPE_HEADER: &str = "x-slipway-scope";

/// Credentials that somebody was given, and who that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Who the holder is.
    pub principal: Principal,
    /// The secret that signs.
    pub secret: String,
    /// The token that must accompany temporary credentials.
    pub token: Option<String>,
    /// When they end; `None` for an access key of a user.
    pub expires: Option<OffsetDateTime>,
}

/// Sessions that somebody else handed out: MiniStack gives each function one of its role.
#[async_trait]
pub trait SessionSource: Send + Sync {
    /// The session behind an access key.
    async fn session(&self, access_key: &str) -> Option<Session>;
}

/// Everybody who may call.
pub struct Identities {
    account: String,
    region: String,
    secret: String,
    sessions: RwLock<HashMap<String, Session>>,
    source: OnceLock<Arc<dyn SessionSource>>,
}

/// A request that nobody stands behind, with as much of the call as is needed to refuse it in its own protocol.
#[derive(Debug)]
pub struct Unidentified {
    /// The call, by an anonymous principal.
    pub call: Call,
    /// Why.
    pub refusal: AwsError,
}

impl Unidentified {
    /// The refusal, dressed.
    #[must_use]
    pub fn answer(&self) -> Answer {
        wire::refuse(&self.call, &self.refusal)
    }
}

/// What a signature names: `<access key>/<date>/<region>/<service>/aws4_request`.
#[derive(Debug, PartialEq, Eq)]
struct Scope {
    access_key: String,
    region: String,
    service: String,
}

impl Identities {
    /// An account with its administrator; `secret` is what the cloud's own outside parts show.
    #[must_use]
    pub fn new(account: &str, region: &str, secret: &str) -> Arc<Self> {
        let admin = Session {
            principal: Principal {
                arn: format!("arn:aws:iam::{account}:user/admin"),
                account: account.to_owned(),
                ..Principal::default()
            },
            secret: ADMIN_SECRET_KEY.to_owned(),
            token: None,
            expires: None,
        };
        Arc::new(Self {
            account: account.to_owned(),
            region: region.to_owned(),
            secret: secret.to_owned(),
            sessions: RwLock::new(HashMap::from([(ADMIN_ACCESS_KEY.to_owned(), admin)])),
            source: OnceLock::new(),
        })
    }

    /// Where to ask for keys that were not handed out here.
    pub fn ask(&self, source: Arc<dyn SessionSource>) {
        // The cloud has one such source; a second is ignored.
        let _ = self.source.set(source);
    }

    /// The account of the administrator.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// Hands out credentials. Those that ended are forgotten.
    pub fn add(&self, access_key: &str, session: Session) {
        let now = OffsetDateTime::now_utc();
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.expires.is_none_or(|end| end > now - time::Duration::HOUR));
        sessions.insert(access_key.to_owned(), session);
    }

    /// The session behind an access key, wherever it was handed out.
    pub async fn session(&self, access_key: &str) -> Option<Session> {
        let known = self.sessions.read().unwrap_or_else(PoisonError::into_inner).get(access_key).cloned();
        if known.is_some() {
            return known;
        }
        let session = self.source.get()?.session(access_key).await?;
        self.add(access_key, session.clone());
        Some(session)
    }

    /// Takes a request apart.
    ///
    /// # Errors
    /// AWS's refusal of a request that is unsigned, or signed by a key that nobody has or that has ended.
    pub async fn identify(
        &self,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Call, Box<Unidentified>> {
        let scope = scope(&headers, &uri);
        let mut call = Call {
            request_id: wire::request_id(),
            account: self.account.clone(),
            region: scope.as_ref().map_or_else(|| self.region.clone(), |scope| scope.region.clone()),
            principal: Principal { arn: "anonymous".to_owned(), account: self.account.clone(), ..Principal::default() },
            service: scope.as_ref().map_or_else(String::new, |scope| scope.service.clone()),
            action: String::new(),
            method,
            uri,
            headers,
            body,
        };
        if self.insider(&mut call) {
            call.action = action(&call);
            return Ok(call);
        }
        call.action = action(&call);
        let Some(scope) = scope else {
            // The two calls of STS that come without credentials, because they are how one gets them.
            if matches!(call.action.as_str(), "AssumeRoleWithWebIdentity" | "AssumeRoleWithSAML") {
                "sts".clone_into(&mut call.service);
                return Ok(call);
            }
            return Err(refuse(call, 403, "MissingAuthenticationToken", "Request is missing Authentication Token"));
        };
        let Some(session) = self.session(&scope.access_key).await else {
            let (status, code) = unknown_key(&call.service);
            return Err(refuse(call, status, code, "The security token included in the request is invalid."));
        };
        if session.expires.is_some_and(|end| end <= OffsetDateTime::now_utc()) {
            let message = "The security token included in the request is expired";
            return Err(refuse(call, 403, "ExpiredToken", message));
        }
        if session.token.is_some() && session.token != token(&call) {
            let (status, code) = unknown_key(&call.service);
            return Err(refuse(call, status, code, "The security token included in the request is invalid."));
        }
        call.account.clone_from(&session.principal.account);
        call.principal = session.principal;
        Ok(call)
    }

    /// Whether a request comes from a part of the cloud that runs outside of this process; if so, in whose name.
    fn insider(&self, call: &mut Call) -> bool {
        let text = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if text(SECRET_HEADER).as_deref() != Some(&self.secret) {
            return false;
        }
        let (Some(principal), Some(scope)) = (text(PRINCIPAL_HEADER), text(SCOPE_HEADER)) else {
            return false;
        };
        let mut parts = scope.splitn(3, '/').map(str::to_owned);
        let (Some(account), Some(region), Some(service)) = (parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        call.principal = Principal::service(&principal, &account);
        (call.account, call.region, call.service) = (account, region, service);
        true
    }
}

/// What AWS says to a key that nobody has differs by service.
fn unknown_key(service: &str) -> (u16, &'static str) {
    match service {
        "ec2" => (401, "AuthFailure"),
        "s3" => (403, "InvalidAccessKeyId"),
        "iam" | "sts" | "cloudformation" | "sqs" => (403, "InvalidClientTokenId"),
        _ => (403, "UnrecognizedClientException"),
    }
}

fn refuse(call: Call, status: u16, code: &str, message: &str) -> Box<Unidentified> {
    Box::new(Unidentified { call, refusal: AwsError::new(status, code, message) })
}

fn scope(headers: &HeaderMap, uri: &Uri) -> Option<Scope> {
    let signed = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let credential = match signed {
        Some(authorization) => {
            let (_, after) = authorization.split_once("Credential=")?;
            after.split([',', ' ']).next()?.to_owned()
        }
        None => wire::query_parameter(uri, "X-Amz-Credential")?,
    };
    let parts: Vec<&str> = credential.split('/').collect();
    let [access_key, _date, region, service, "aws4_request"] = parts[..] else {
        return None;
    };
    Some(Scope { access_key: access_key.to_owned(), region: region.to_owned(), service: service.to_owned() })
}

fn token(call: &Call) -> Option<String> {
    let header = call.headers.get("x-amz-security-token").and_then(|value| value.to_str().ok());
    header.map(str::to_owned).or_else(|| wire::query_parameter(&call.uri, "X-Amz-Security-Token"))
}

/// The operation, where the protocol names it; for REST protocols the empty name, which the route fills in.
fn action(call: &Call) -> String {
    if let Some(target) = call.headers.get("x-amz-target").and_then(|value| value.to_str().ok()) {
        return target.rsplit('.').next().unwrap_or(target).to_owned();
    }
    match wire::Protocol::of(&call.service, &call.headers) {
        wire::Protocol::Query | wire::Protocol::Ec2 => wire::parameters(call).remove("Action").unwrap_or_default(),
        _ if call.service.is_empty() => wire::parameters(call).remove("Action").unwrap_or_default(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn signed(access_key: &str, service: &str) -> HeaderMap {
        let value = format!(
            "AWS4-HMAC-SHA256 Credential={access_key}/20261122/eu-west-1/{service}/aws4_request, \
             SignedHeaders=host, Signature=00"
        );
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    fn form(body: &str) -> Bytes {
        Bytes::from(body.to_owned())
    }

    #[tokio::test]
    async fn the_scope_names_region_and_service_and_the_form_its_action() {
        let identities = Identities::new("111122223333", "eu-west-1", "s");
        let mut headers = signed(ADMIN_ACCESS_KEY, "ec2");
        headers.insert(header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8".parse().unwrap());
        let call = identities
            .identify(Method::POST, "/".parse().unwrap(), headers, form("Action=DescribeVpcs&Version=1"))
            .await
            .unwrap();
        assert_eq!(
            (call.service.as_str(), call.action.as_str(), call.region.as_str()),
            ("ec2", "DescribeVpcs", "eu-west-1")
        );
        assert_eq!(call.principal.arn, "arn:aws:iam::111122223333:user/admin");
    }

    #[tokio::test]
    async fn a_presigned_identity_question_is_understood() {
        let identities = Identities::new("111122223333", "eu-west-1", "s");
        let uri = format!(
            "/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Credential={ADMIN_ACCESS_KEY}%2F20261122%2Feu-west-1%2Fsts%2Faws4_request"
        );
        let call =
            identities.identify(Method::GET, uri.parse().unwrap(), HeaderMap::new(), Bytes::new()).await.unwrap();
        assert_eq!((call.service.as_str(), call.action.as_str()), ("sts", "GetCallerIdentity"));
    }

    #[tokio::test]
    async fn a_key_that_nobody_has_is_refused_in_its_services_words() {
        let identities = Identities::new("111122223333", "eu-west-1", "s");
        for (service, code) in
            [("sts", "InvalidClientTokenId"), ("ec2", "AuthFailure"), ("eks", "UnrecognizedClientException")]
        {
            let refused = identities
                .identify(Method::POST, "/".parse().unwrap(), signed("AKIANOBODY0000000000", service), Bytes::new())
                .await
                .unwrap_err();
            assert_eq!(refused.refusal.code, code);
        }
    }

    #[tokio::test]
    async fn only_web_identity_comes_without_a_signature() {
        let identities = Identities::new("111122223333", "eu-west-1", "s");
        let headers =
            HeaderMap::from_iter([(header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap())]);
        let call = identities
            .identify(Method::POST, "/".parse().unwrap(), headers.clone(), form("Action=AssumeRoleWithWebIdentity"))
            .await
            .unwrap();
        assert_eq!((call.service.as_str(), call.principal.arn.as_str()), ("sts", "anonymous"));
        let refused = identities
            .identify(Method::POST, "/".parse().unwrap(), headers, form("Action=GetCallerIdentity"))
            .await
            .unwrap_err();
        assert_eq!(refused.refusal.code, "MissingAuthenticationToken");
    }

    #[tokio::test]
    async fn temporary_credentials_need_their_token_and_end() {
        let identities = Identities::new("111122223333", "eu-west-1", "s");
        let principal = Principal::service("x", "111122223333");
        let mut session = Session { principal, secret: "s".into(), token: Some("t".into()), expires: None };
        identities.add("ASIA1", session.clone());
        let ask = |headers: HeaderMap| identities.identify(Method::POST, "/".parse().unwrap(), headers, Bytes::new());
        assert!(ask(signed("ASIA1", "eks")).await.is_err());
        let mut headers = signed("ASIA1", "eks");
        headers.insert("x-amz-security-token", "t".parse().unwrap());
        assert!(ask(headers.clone()).await.is_ok());
        session.expires = Some(OffsetDateTime::now_utc() - time::Duration::SECOND);
        identities.add("ASIA1", session);
        assert_eq!(ask(headers).await.unwrap_err().refusal.code, "ExpiredToken");
    }
}
