//! The emulators behind the gateway: moto and MiniStack, spoken to as AWS would be.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::gateway::call::{Answer, AwsError, Call, Principal, Service};
use crate::gateway::identify::{SECRET_HEADER, Session, SessionSource};
use crate::gateway::wire;

type Http = Client<HttpConnector, Full<Bytes>>;

/// An emulator on a loopback port.
#[derive(Debug, Clone)]
struct Origin {
    authority: String,
    http: Http,
}

impl Origin {
    fn new(port: u16) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { authority: format!("127.0.0.1:{port}"), http: Client::builder(TokioExecutor::new()).build(connector) }
    }

    async fn send(&self, call: &Call, path: &str, headers: HeaderMap) -> Answer {
        match self.exchange(call.method.clone(), path, headers, call.body.clone()).await {
            Ok(mut answer) => {
                answer.error_code = wire::error_of(&answer).map(|refusal| refusal.code);
                answer
            }
            Err(error) => {
                let message = format!("the emulator of {} does not answer: {error:#}; see its log", call.service);
                wire::refuse(call, &AwsError::new(503, "ServiceUnavailable", message))
            }
        }
    }

    async fn exchange(&self, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> anyhow::Result<Answer> {
        let uri = Uri::builder().scheme("http").authority(self.authority.as_str()).path_and_query(path).build()?;
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let (mut parts, body) = self.http.request(request).await?.into_parts();
        for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::DATE, header::SERVER] {
            parts.headers.remove(name);
        }
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body, error_code: None })
    }
}

/// Asks an emulator for pages of a size at most: see `corrections` of either.
const PAGE_SIZE_HEADER: HeaderName = HeaderName::from_static("x-slipway-page-size");

/// Has lists come in small pages, but for the cloud's own parts: they ask without signing, and read one page.
fn shorten(page_size: Option<u32>, call: &Call, headers: &mut HeaderMap) {
    headers.remove(PAGE_SIZE_HEADER);
    if let Some(size) = page_size
        && call.headers.contains_key(header::AUTHORIZATION)
    {
        headers.insert(PAGE_SIZE_HEADER, HeaderValue::from(size));
    }
}

/// moto: EC2, IAM, SSM and whatever else nobody nearer answers.
#[derive(Debug, Clone)]
pub struct Moto {
    origin: Origin,
    page_size: Option<u32>,
}

impl Moto {
    /// moto on a loopback port; its lists have at most `page_size` items a page.
    #[must_use]
    pub fn new(port: u16, page_size: Option<u32>) -> Self {
        Self { origin: Origin::new(port), page_size }
    }
}

#[async_trait]
impl Service for Moto {
    async fn handle(&self, call: Call) -> Answer {
        let mut headers = resigned(&call, "AKIAIOSFODNN7EXAMPLE");
        if let Ok(account) = HeaderValue::from_str(&call.account) {
            headers.insert(HeaderName::from_static("x-moto-account-id"), account);
        }
        shorten(self.page_size, &call, &mut headers);
        self.origin.send(&call, &unsigned_path(&call.uri), headers).await
    }
}

/// MiniStack: Lambda, DynamoDB, S3, SQS, EventBridge, Scheduler, logs, and CloudFormation for the SAM template.
#[derive(Debug, Clone)]
pub struct MiniStack {
    origin: Origin,
    secret: String,
    page_size: Option<u32>,
}

impl MiniStack {
    /// MiniStack on a loopback port; `secret` opens its inner door, its lists have at most `page_size` items a page.
    #[must_use]
    pub fn new(port: u16, secret: &str, page_size: Option<u32>) -> Self {
        Self { origin: Origin::new(port), secret: secret.to_owned(), page_size }
    }

    /// Puts an event of one of AWS's own sources on the default bus, which PutEvents refuses to everybody.
    ///
    /// # Errors
    /// Where MiniStack does not answer, or refuses.
    pub async fn put_event(
        &self,
        account: &str,
        region: &str,
        source: &str,
        detail_type: &str,
        resources: &[String],
        detail: &Value,
    ) -> anyhow::Result<()> {
        let entry = json!({
            "Source": source,
            "DetailType": detail_type,
            "Resources": resources,
            "Detail": detail.to_string(),
        });
        let body = json!({"account": account, "region": region, "entries": [entry]});
        let answer = self.door(Method::POST, "/_slipway/events", Bytes::from(body.to_string())).await?;
        anyhow::ensure!(answer.status == StatusCode::OK, "MiniStack refused an event: {:?}", answer.body);
        Ok(())
    }

    async fn door(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Answer> {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(SECRET_HEADER), self.secret.parse()?)]);
        self.origin.exchange(method, path, headers, body).await
    }
}

#[async_trait]
impl Service for MiniStack {
    async fn handle(&self, call: Call) -> Answer {
        if call.principal.function.is_some() && call.headers.contains_key(header::AUTHORIZATION) {
            // A function's session is MiniStack's own: it checks the signature and the role's policies itself. What
            // was signed (the host, too) must arrive as it was sent.
            let path = call.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let mut headers = passed_on(&call.headers);
            shorten(self.page_size, &call, &mut headers);
            return self.origin.send(&call, &path, headers).await;
        }
        // Everybody else was identified here; an account's number is MiniStack's key for all that it may do.
        let mut headers = resigned(&call, &call.account);
        if let Some(host) = call.headers.get(header::HOST) {
            // Queue URLs are made from the host that was asked, which is the gateway.
            headers.insert(header::HOST, host.clone());
        }
        shorten(self.page_size, &call, &mut headers);
        self.origin.send(&call, &unsigned_path(&call.uri), headers).await
    }
}

#[async_trait]
impl SessionSource for MiniStack {
    async fn session(&self, access_key: &str) -> Option<Session> {
        if !access_key.chars().all(|character| character.is_ascii_alphanumeric()) {
            return None;
        }
        let path = format!("/_slipway/sessions/{access_key}");
        let answer = self.door(Method::GET, &path, Bytes::new()).await.ok()?;
        if answer.status != StatusCode::OK {
            return None;
        }
        let body: Value = serde_json::from_slice(&answer.body).ok()?;
        let expires = body["Expiration"]
            .as_f64()
            .map(|seconds| OffsetDateTime::UNIX_EPOCH + time::Duration::seconds_f64(seconds));
        Some(Session {
            principal: function_principal(body["Arn"].as_str()?)?,
            secret: body["SecretAccessKey"].as_str()?.to_owned(),
            token: body["SessionToken"].as_str().map(str::to_owned),
            expires,
        })
    }
}

/// `arn:aws:sts::<account>:assumed-role/<role>/<function>`, as MiniStack names a function's session.
fn function_principal(arn: &str) -> Option<Principal> {
    let account = arn.split(':').nth(4)?;
    let mut session = arn.split_once(":assumed-role/")?.1.split('/');
    let (role, function) = (session.next()?, session.next()?);
    Some(Principal {
        arn: arn.to_owned(),
        account: account.to_owned(),
        role_arn: Some(format!("arn:aws:iam::{account}:role/{role}")),
        function: Some(function.to_owned()),
        session_policies: None,
    })
}

/// The headers of a request without those of its connection.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in [header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING, header::EXPECT, header::TE] {
        kept.remove(name);
    }
    kept
}

/// The headers of a request as if another key had signed it: the emulators read the scope and check no signature.
fn resigned(call: &Call, access_key: &str) -> HeaderMap {
    let mut headers = passed_on(&call.headers);
    for name in ["host", "authorization", "x-amz-security-token", SECRET_HEADER] {
        headers.remove(name);
    }
    let now = OffsetDateTime::now_utc();
    let date = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
    let (region, service) = (&call.region, &call.service);
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/{date}/{region}/{service}/aws4_request, SignedHeaders=host, \
         Signature=0000000000000000000000000000000000000000000000000000000000000000"
    );
    if let Ok(value) = HeaderValue::from_str(&authorization) {
        headers.insert(header::AUTHORIZATION, value);
    }
    headers
}

/// Path and query without a presigned URL's signature.
fn unsigned_path(uri: &Uri) -> String {
    let query: Vec<&str> =
        uri.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("X-Amz-")).collect();
    if query.is_empty() { uri.path().to_owned() } else { format!("{}?{}", uri.path(), query.join("&")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_functions_session_is_told_by_its_arn() {
        let principal =
            function_principal("arn:aws:sts::111122223333:assumed-role/slipway-open-run/slipway-open-run").unwrap();
        assert_eq!(principal.role_arn.as_deref(), Some("arn:aws:iam::111122223333:role/slipway-open-run"));
        assert_eq!(principal.function.as_deref(), Some("slipway-open-run"));
        assert_eq!(function_principal("arn:aws:iam::111122223333:user/admin"), None);
    }

    #[test]
    fn a_presigned_url_loses_its_signature_and_keeps_the_rest() {
        let uri: Uri = "/b/k%2F1?versionId=3&X-Amz-Signature=0&X-Amz-Date=1".parse().unwrap();
        assert_eq!(unsigned_path(&uri), "/b/k%2F1?versionId=3");
        assert_eq!(unsigned_path(&"/?X-Amz-Date=1".parse().unwrap()), "/");
    }
}
