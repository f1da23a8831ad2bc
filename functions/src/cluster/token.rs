//! The token that logs in to a cluster: a presigned `sts:GetCallerIdentity`, which EKS sends to find out who asks.

use std::env;
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use slipway_statemachine::{ClusterKey, ErrorName, StepError};

use crate::{Context, aws::error::During as _};

/// The header that ties a token to one cluster.
const CLUSTER_HEADER: &str = "x-k8s-aws-id";

/// What EKS takes as the life of the signature; it honours a token for 15 minutes whatever this says.
const SIGNED_FOR: Duration = Duration::from_mins(1);

/// STS of a region, where its own endpoint answers: what is presigned for another host is refused by EKS.
/// The SDK's own variables override it, as they do for every client.
pub(crate) fn sts_endpoint(region: &str) -> String {
    let set = |name: &str| env::var(name).ok().filter(|url| !url.is_empty());
    set("AWS_ENDPOINT_URL_STS").or_else(|| set("AWS_ENDPOINT_URL")).map_or_else(
        || {
            let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            format!("https://sts.{region}.{suffix}")
        },
        |url| url.trim_end_matches('/').to_owned(),
    )
}

/// STS as somebody without credentials meets it, over connections that nobody else uses.
pub(crate) fn anonymous_sts(region: &str) -> aws_sdk_sts::Client {
    anonymous(&sts_endpoint(region), region)
}

/// The same at another place.
pub(crate) fn anonymous(endpoint: &str, region: &str) -> aws_sdk_sts::Client {
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .endpoint_url(endpoint)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(10)).build())
        .build();
    aws_sdk_sts::Client::from_conf(config)
}

/// A token of the cluster-access role for one cluster.
///
/// # Errors
/// What STS raises when the role is assumed.
pub(crate) async fn login(cx: &Context, cluster: &ClusterKey) -> Result<String, StepError> {
    let assumed = cx
        .aws
        .sts()
        .assume_role()
        .role_arn(&cx.settings.cluster_access_role_arn)
        .role_session_name("slipway")
        .duration_seconds(900)
        .send()
        .await
        .during("sts:AssumeRole")?;
    let keys = assumed.credentials().ok_or_else(|| internal("sts:AssumeRole answered without credentials"))?;
    let credentials = Credentials::new(
        keys.access_key_id(),
        keys.secret_access_key(),
        Some(keys.session_token().to_owned()),
        None,
        "cluster-access",
    );
    presign(&sts_endpoint(&cluster.region), cluster, credentials, SystemTime::now())
}

/// `k8s-aws-v1.` and the presigned URL in base64url.
fn presign(
    endpoint: &str,
    cluster: &ClusterKey,
    credentials: Credentials,
    at: SystemTime,
) -> Result<String, StepError> {
    let url = format!("{endpoint}/?Action=GetCallerIdentity&Version=2011-06-15");
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(SIGNED_FOR);
    let identity = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(&cluster.region)
        .name("sts")
        .time(at)
        .settings(settings)
        .build()
        .map_err(|error| internal(&format!("the login cannot be signed: {error}")))?
        .into();
    let headers = [(CLUSTER_HEADER, cluster.name.as_str())];
    let request = SignableRequest::new("GET", &url, headers.into_iter(), SignableBody::Bytes(&[]))
        .map_err(|error| internal(&format!("the login cannot be written: {error}")))?;
    let (instructions, _) = sign(request, &parameters)
        .map_err(|error| internal(&format!("the login cannot be signed: {error}")))?
        .into_parts();
    let mut signed = http::Request::builder()
        .uri(&url)
        .body(())
        .map_err(|error| internal(&format!("{endpoint} is no endpoint of STS: {error}")))?;
    instructions.apply_to_request_http1x(&mut signed);
    Ok(format!("k8s-aws-v1.{}", URL_SAFE_NO_PAD.encode(signed.uri().to_string())))
}

fn internal(cause: &str) -> StepError {
    StepError::new(ErrorName::Internal, format!("{cause}."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn token(name: &str) -> String {
        let cluster =
            ClusterKey { account: "111122223333".to_owned(), region: "eu-west-1".to_owned(), name: name.to_owned() };
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", Some("session/+=".to_owned()), None, "test");
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        presign("https://sts.eu-west-1.amazonaws.com", &cluster, credentials, at).unwrap()
    }

    #[test]
    fn the_token_is_a_presigned_url_as_eks_checks_it() {
        let token = token("demo");
        let encoded = token.strip_prefix("k8s-aws-v1.").unwrap();
        assert!(!encoded.contains('='));
        let url = url::Url::parse(&String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).unwrap()).unwrap()).unwrap();
        assert_eq!((url.host_str(), url.path()), (Some("sts.eu-west-1.amazonaws.com"), "/"));
        let query: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
        for (key, value) in [
            ("Action", "GetCallerIdentity"),
            ("Version", "2011-06-15"),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", "AKIDEXAMPLE/20261118/eu-west-1/sts/aws4_request"),
            ("X-Amz-Expires", "60"),
            ("X-Amz-SignedHeaders", "host;x-k8s-aws-id"),
            ("X-Amz-Security-Token", "session/+="),
        ] {
            assert_eq!(query[key], value, "{key}");
        }
        assert_eq!(query["X-Amz-Signature"].len(), 64);
        assert_eq!(query.len(), 9, "EKS refuses parameters that it doesn't know");
    }

    #[test]
    fn a_token_is_for_one_cluster() {
        assert_ne!(token("demo"), token("other"));
    }

    /// An STS that refuses everything and keeps what it was sent, one entry a connection.
    async fn refusing_sts(listener: tokio::net::TcpListener, connections: usize) -> Vec<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let mut heard = Vec::new();
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            // The token is the last thing that is sent.
            while !request.contains("WebIdentityToken=") {
                let mut part = [0; 4096];
                let length = stream.read(&mut part).await.unwrap();
                request.push_str(std::str::from_utf8(&part[..length]).unwrap());
            }
            let body = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error></ErrorResponse>";
            // The connection stays open: a client that were shared would use it again.
            let answer = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            heard.push(request);
            tokio::spawn(async move {
                let _held = stream;
                std::future::pending::<()>().await;
            });
        }
        heard
    }

    #[tokio::test]
    async fn each_anonymous_client_asks_unsigned_on_a_connection_of_its_own() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let sts = tokio::spawn(refusing_sts(listener, 2));
        for _ in 0..2 {
            let error = anonymous(&endpoint, "eu-west-1")
                .assume_role_with_web_identity()
                .role_arn("arn:aws:iam::111122223333:role/controller")
                .role_session_name("slipway-probe")
                .web_identity_token("secret-token")
                .send()
                .await
                .unwrap_err();
            assert_eq!(crate::aws::error::code(&error), Some("AccessDenied"));
            assert!(!crate::aws::error::refused("sts", &error).cause.contains("secret-token"));
        }
        let heard = tokio::time::timeout(Duration::from_secs(20), sts).await.unwrap().unwrap();
        assert!(heard.iter().all(|request| !request.to_lowercase().contains("authorization:")), "{heard:?}");
    }
}
