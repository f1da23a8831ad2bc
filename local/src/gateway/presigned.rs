//! Presigned requests: whether a URL was signed with a secret, for exactly these headers (Signature Version 4 in
//! the query string).

use std::fmt::Write as _;

use aws_lc_rs::{digest, hmac};

use super::call::Call;
use super::wire;

/// Whether a request carries its signature in its URL.
pub(crate) fn is_presigned(call: &Call) -> bool {
    wire::query_parameter(&call.uri, "X-Amz-Signature").is_some()
}

/// Whether the request was presigned with this secret. What was signed includes the headers named in
/// `X-Amz-SignedHeaders`, so a request that comes with others than it was made for does not pass.
pub(crate) fn is_signed_with(secret: &str, call: &Call) -> bool {
    let parameter = |name: &str| wire::query_parameter(&call.uri, name).unwrap_or_default();
    let credential = parameter("X-Amz-Credential");
    let Some((_, scope)) = credential.split_once('/') else { return false };
    let mut query: Vec<(String, String)> = url::form_urlencoded::parse(call.uri.query().unwrap_or("").as_bytes())
        .filter(|(name, _)| name != "X-Amz-Signature")
        .map(|(name, value)| (encode(&name), encode(&value)))
        .collect();
    query.sort();
    let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let signed_headers = parameter("X-Amz-SignedHeaders");
    let headers: String = signed_headers.split(';').fold(String::new(), |mut lines, name| {
        let value = call.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let _ = writeln!(lines, "{name}:{}", value.trim());
        lines
    });
    let request = format!(
        "{}\n{}\n{}\n{headers}\n{signed_headers}\n{}",
        call.method,
        call.uri.path(),
        query.join("&"),
        sha256(&call.body)
    );
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", parameter("X-Amz-Date"), sha256(request.as_bytes()));
    let key = scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec()
    });
    let Ok(signature) = hex::decode(parameter("X-Amz-Signature")) else { return false };
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes(), &signature).is_ok()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// Percent-encoding of RFC 3986, as signatures want it.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::gateway::call::Principal;

    // Made by botocore 1.42 for the access key ASIAEXAMPLE, the secret below and the session token `to+ken/=`.
    const SECRET: &str = "verysecret/+=";
    const URL: &str = "/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256\
        &X-Amz-Credential=ASIAEXAMPLE%2F20261122%2Feu-west-1%2Fsts%2Faws4_request&X-Amz-Date=20261122T203123Z\
        &X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id&X-Amz-Security-Token=to%2Bken%2F%3D\
        &X-Amz-Signature=43ac0be4af1df9558f7c55abc1e125af345c93a840b39ca3d955b5a564e72e0d";

    fn presigned(url: &str, cluster: &'static str) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("sts.eu-west-1.amazonaws.com"));
        headers.insert("x-k8s-aws-id", HeaderValue::from_static(cluster));
        Call {
            request_id: wire::request_id(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal: Principal::service("anonymous", "111122223333"),
            service: "sts".into(),
            action: "GetCallerIdentity".into(),
            method: Method::GET,
            uri: url.parse().unwrap(),
            headers,
            body: Bytes::new(),
        }
    }

    #[test]
    fn a_signature_is_for_one_secret_and_one_set_of_headers() {
        assert!(is_presigned(&presigned(URL, "demo")));
        assert!(is_signed_with(SECRET, &presigned(URL, "demo")));
        assert!(!is_signed_with("other", &presigned(URL, "demo")));
        assert!(!is_signed_with(SECRET, &presigned(URL, "other-cluster")));
        assert!(!is_signed_with(SECRET, &presigned(&URL.replace("GetCallerIdentity", "GetSessionToken"), "demo")));
        assert!(!is_signed_with(SECRET, &presigned("/?Action=GetCallerIdentity&X-Amz-Signature=zz", "demo")));
    }
}
