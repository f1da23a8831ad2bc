//! The wire protocols, apart from the services: how each is told, read, answered and refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use serde_json::{Value, json};

use super::call::{Answer, Aws, AwsError, Call};

/// How a service dresses what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Form in, XML out: IAM, STS, CloudFormation.
    Query,
    /// EC2's own shape of it.
    Ec2,
    /// `X-Amz-Target` in, JSON out: SSM, Step Functions, DynamoDB, SQS, EventBridge, Pricing.
    Json,
    /// Method and path in, JSON out: EKS, Lambda, Scheduler.
    RestJson,
    /// Method and path in, XML out: S3.
    RestXml,
}

impl Protocol {
    /// The protocol that a service's clients speak. A service with two (SQS, SNS) is told by the request's headers.
    #[must_use]
    pub fn of(service: &str, headers: &HeaderMap) -> Self {
        if headers.contains_key("x-amz-target") {
            return Self::Json;
        }
        match service {
            "ec2" => Self::Ec2,
            "s3" => Self::RestXml,
            "iam" | "sts" | "cloudformation" | "autoscaling" | "elasticloadbalancing" | "sns" | "sqs" => Self::Query,
            _ => Self::RestJson,
        }
    }
}

/// A fresh request id in AWS's shape.
#[must_use]
pub fn request_id() -> String {
    let id = format!("{:032x}", ulid::Ulid::generate().0);
    format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..])
}

/// The parameters of a query or ec2 request: its form, and what its URL carries (presigned requests).
#[must_use]
pub fn parameters(call: &Call) -> BTreeMap<String, String> {
    let mut parameters: BTreeMap<String, String> =
        url::form_urlencoded::parse(call.uri.query().unwrap_or("").as_bytes())
            .filter(|(name, _)| !name.starts_with("X-Amz-"))
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
    if is_form(&call.headers) {
        parameters.extend(form(&call.body));
    }
    parameters
}

/// The pairs of a form body.
#[must_use]
pub fn form(body: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(body).map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

/// A query-protocol request's body.
#[must_use]
pub fn form_body(action: &str, version: &str, parameters: &[(&str, &str)]) -> Bytes {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("Action", action).append_pair("Version", version).extend_pairs(parameters);
    Bytes::from(form.finish())
}

/// Whether a request says that its body is a form.
#[must_use]
pub fn is_form(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"))
}

/// The members `prefix.1`, `prefix.2`, … of a flat query list, in order, for example `Filter.1.Value` for
/// `list(&parameters, "Filter.1.Value")`. `member.` infixes (IAM, CloudFormation) belong to the prefix.
#[must_use]
pub fn list(parameters: &BTreeMap<String, String>, prefix: &str) -> Vec<String> {
    (1..).map_while(|n| parameters.get(&format!("{prefix}.{n}")).cloned()).collect()
}

/// The body of a JSON or REST-JSON request; an empty body is an empty object.
///
/// # Errors
/// `SerializationException` (400) where the body is no JSON.
pub fn json_body(call: &Call) -> Result<Value, AwsError> {
    if call.body.is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(&call.body)
        .map_err(|error| AwsError::new(400, "SerializationException", format!("the body is not JSON: {error}")))
}

/// The value of a URL's query parameter.
#[must_use]
pub fn query_parameter(uri: &Uri, name: &str) -> Option<String> {
    url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes())
        .find(|(found, _)| found == name)
        .map(|(_, value)| value.into_owned())
}

/// The segments of a URL's path, percent-decoded (an ARN in a path is one segment).
#[must_use]
pub fn path_segments(uri: &Uri) -> Vec<String> {
    uri.path().split('/').filter(|segment| !segment.is_empty()).map(percent_decode).collect()
}

/// Text with its `%XX` decoded; `+` stays what it is.
#[must_use]
pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let decoded = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|digits| hex::decode(digits).ok());
        if let Some(byte) = decoded {
            bytes.extend(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Text as XML character data.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// `<name>text</name>`, escaped.
#[must_use]
pub fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

/// A query-protocol answer (IAM, STS, CloudFormation) around the members of its result.
#[must_use]
pub fn query_answer(call: &Call, result_xml: &str) -> Answer {
    let action = &call.action;
    let namespace = namespace(&call.service);
    let id = &call.request_id;
    xml(
        StatusCode::OK,
        &format!(
            "<{action}Response xmlns=\"{namespace}\"><{action}Result>{result_xml}</{action}Result>\
             <ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></{action}Response>"
        ),
    )
}

/// An EC2 answer around its members.
#[must_use]
pub fn ec2_answer(call: &Call, members_xml: &str) -> Answer {
    let action = &call.action;
    let namespace = namespace("ec2");
    let id = &call.request_id;
    xml(
        StatusCode::OK,
        &format!("<{action}Response xmlns=\"{namespace}\"><requestId>{id}</requestId>{members_xml}</{action}Response>"),
    )
}

/// A JSON-protocol answer, in the version (1.0 or 1.1) of its request.
#[must_use]
pub fn json_answer(call: &Call, body: &Value) -> Answer {
    let kind = match call.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
        Some(b"application/x-amz-json-1.0") => "application/x-amz-json-1.0",
        _ => "application/x-amz-json-1.1",
    };
    answer(StatusCode::OK, kind, body.to_string())
}

/// A REST-JSON answer.
#[must_use]
pub fn rest_json_answer(status: StatusCode, body: &Value) -> Answer {
    answer(status, "application/json", body.to_string())
}

/// An error in the words of a protocol.
#[must_use]
pub fn error(protocol: Protocol, error: &AwsError, request_id: &str) -> Answer {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (code, message) = (escape(&error.code), escape(&error.message));
    let kind = if error.status < 500 { "Sender" } else { "Receiver" };
    let mut refused = match protocol {
        Protocol::Query => xml(
            status,
            &format!(
                "<ErrorResponse><Error><Type>{kind}</Type><Code>{code}</Code><Message>{message}</Message></Error>\
                 <RequestId>{request_id}</RequestId></ErrorResponse>"
            ),
        ),
        Protocol::Ec2 => xml(
            status,
            &format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
                 <RequestID>{request_id}</RequestID></Response>"
            ),
        ),
        Protocol::RestXml => xml(
            status,
            &format!(
                "<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{request_id}</RequestId></Error>"
            ),
        ),
        Protocol::Json => answer(
            status,
            "application/x-amz-json-1.1",
            json!({"__type": error.code, "message": error.message}).to_string(),
        ),
        Protocol::RestJson => {
            let mut refused = answer(status, "application/json", json!({"message": error.message}).to_string());
            if let Ok(value) = HeaderValue::from_str(&error.code) {
                refused.headers.insert(HeaderName::from_static("x-amzn-errortype"), value);
            }
            refused
        }
    };
    refused.error_code = Some(error.code.clone());
    refused
}

/// The error in the words of the protocol that a call came by.
#[must_use]
pub fn refuse(call: &Call, refusal: &AwsError) -> Answer {
    error(Protocol::of(&call.service, &call.headers), refusal, &call.request_id)
}

/// The error that an answer carries, whichever protocol it speaks; `None` for a success.
#[must_use]
pub fn error_of(answer: &Answer) -> Option<AwsError> {
    if !answer.status.is_client_error() && !answer.status.is_server_error() {
        return None;
    }
    let text = String::from_utf8_lossy(&answer.body);
    let from_json = serde_json::from_str::<Value>(&text).ok().map(|body| {
        let code = answer
            .headers
            .get("x-amzn-errortype")
            .and_then(|value| value.to_str().ok())
            .or_else(|| ["__type", "code", "Code"].iter().find_map(|name| body[name].as_str()))
            .unwrap_or("Unknown");
        let message = ["message", "Message", "errorMessage"].iter().find_map(|name| body[name].as_str());
        (bare_code(code).to_owned(), message.unwrap_or("").to_owned())
    });
    let (code, message) = from_json.or_else(|| xml_error(&text)).unwrap_or_else(|| {
        let code = answer.error_code.clone().unwrap_or_else(|| "Unknown".to_owned());
        (code, text.chars().take(300).collect())
    });
    Some(AwsError::new(answer.status.as_u16(), code, message))
}

/// `com.amazonaws.dynamodb.v20120810#ResourceInUseException:http://…` is `ResourceInUseException`.
fn bare_code(code: &str) -> &str {
    let code = code.split(':').next().unwrap_or(code);
    code.rsplit('#').next().unwrap_or(code)
}

fn xml_error(text: &str) -> Option<(String, String)> {
    let document = roxmltree::Document::parse(text).ok()?;
    let find = |name: &str| document.descendants().find(|node| node.tag_name().name() == name)?.text();
    Some((find("Code")?.to_owned(), find("Message").unwrap_or("").to_owned()))
}

fn namespace(service: &str) -> &'static str {
    match service {
        "ec2" => "http://ec2.amazonaws.com/doc/2016-11-15/",
        "iam" => "https://iam.amazonaws.com/doc/2010-05-08/",
        "sts" => "https://sts.amazonaws.com/doc/2011-06-15/",
        "cloudformation" => "http://cloudformation.amazonaws.com/doc/2010-05-15/",
        _ => "https://amazonaws.com/doc/",
    }
}

/// The version of the API of classic load balancers.
const CLASSIC_BALANCERS: &str = "2012-06-01";

pub(super) fn version(service: &str) -> &'static str {
    match service {
        "ec2" => "2016-11-15",
        "iam" => "2010-05-08",
        "sts" => "2011-06-15",
        "cloudformation" => "2010-05-15",
        "elasticloadbalancing" => "2015-12-01",
        _ => "",
    }
}

fn xml(status: StatusCode, body: &str) -> Answer {
    answer(status, "text/xml", format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}"))
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Answer { status, headers, body: Bytes::from(body), error_code: None }
}

/// Calls a query- or ec2-protocol API as a part of the cloud.
pub(crate) async fn send_query(
    aws: &Aws,
    service: &str,
    action: &str,
    params: &[(&str, &str)],
) -> Result<String, AwsError> {
    let mut call = outgoing(aws, service, action, Method::POST, "/")?;
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    // Both generations of load balancers have one name in the scope, and are told apart by the version alone.
    let classic = params.iter().any(|(name, _)| name.starts_with("LoadBalancerName"));
    let version = if classic { CLASSIC_BALANCERS } else { version(service) };
    call.body = form_body(action, version, params);
    let answer = aws.gateway.dispatch(call).await;
    match error_of(&answer) {
        Some(refusal) => Err(refusal),
        None => Ok(String::from_utf8_lossy(&answer.body).into_owned()),
    }
}

/// Calls a JSON-protocol API as a part of the cloud.
pub(crate) async fn send_json(aws: &Aws, service: &str, target: &str, body: &Value) -> Result<Value, AwsError> {
    let action = target.rsplit('.').next().unwrap_or(target);
    let mut call = outgoing(aws, service, action, Method::POST, "/")?;
    let kind = match service {
        "dynamodb" | "states" | "sqs" => "application/x-amz-json-1.0",
        _ => "application/x-amz-json-1.1",
    };
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let target = HeaderValue::from_str(target).map_err(|error| internal(&error))?;
    call.headers.insert(HeaderName::from_static("x-amz-target"), target);
    call.body = Bytes::from(body.to_string());
    read_json(&aws.gateway.dispatch(call).await)
}

/// Calls a REST-JSON API as a part of the cloud, for example `("eks", "DescribeCluster", GET, "/clusters/demo")`.
///
/// # Errors
/// AWS's own error, taken from the JSON.
pub async fn send_rest_json(
    aws: &Aws,
    service: &str,
    action: &str,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Value, AwsError> {
    let mut call = outgoing(aws, service, action, method, path)?;
    if call.method != Method::GET {
        call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        call.body = Bytes::from(body.to_string());
    }
    read_json(&aws.gateway.dispatch(call).await)
}

/// A call that a part of the cloud makes: no signature, since the gateway takes its principal as given.
pub(crate) fn outgoing(aws: &Aws, service: &str, action: &str, method: Method, path: &str) -> Result<Call, AwsError> {
    Ok(Call {
        request_id: request_id(),
        account: aws.account.clone(),
        region: aws.region.clone(),
        principal: aws.principal.clone(),
        service: service.to_owned(),
        action: action.to_owned(),
        method,
        uri: path.parse().map_err(|error| internal(&error))?,
        headers: HeaderMap::new(),
        body: Bytes::new(),
    })
}

fn read_json(answer: &Answer) -> Result<Value, AwsError> {
    if let Some(refusal) = error_of(answer) {
        return Err(refusal);
    }
    if answer.body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&answer.body).map_err(|error| internal(&error))
}

fn internal(error: &dyn std::fmt::Display) -> AwsError {
    AwsError::new(500, "InternalFailure", error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gateway::call::Principal;

    fn call(service: &str, action: &str) -> Call {
        Call {
            request_id: request_id(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal: Principal::service("eks.amazonaws.com", "111122223333"),
            service: service.into(),
            action: action.into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    #[test]
    fn an_error_survives_every_protocol() {
        let refusal = AwsError::new(400, "ResourceInUseException", "it <is> there & busy");
        for protocol in [Protocol::Query, Protocol::Ec2, Protocol::Json, Protocol::RestJson, Protocol::RestXml] {
            assert_eq!(error_of(&error(protocol, &refusal, "r")), Some(refusal.clone()), "{protocol:?}");
        }
    }

    #[test]
    fn a_namespaced_error_code_is_bare() {
        assert_eq!(bare_code("com.amazonaws.dynamodb.v20120810#ResourceInUseException"), "ResourceInUseException");
        assert_eq!(bare_code("ConflictException:http://internal"), "ConflictException");
    }

    #[test]
    fn lists_end_at_the_first_gap() {
        let parameters = form(b"Filter.1.Value.1=a&Filter.1.Value.2=b&Filter.1.Value.4=d");
        assert_eq!(list(&parameters, "Filter.1.Value"), ["a", "b"]);
    }

    #[test]
    fn an_arn_in_a_path_is_one_segment() {
        let uri: Uri = "/clusters/demo/access-entries/arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fa%2Fb".parse().unwrap();
        assert_eq!(path_segments(&uri), ["clusters", "demo", "access-entries", "arn:aws:iam::1:role/a/b"]);
    }

    #[test]
    fn answers_are_named_after_their_action() {
        let answer = query_answer(&call("sts", "GetCallerIdentity"), "<Account>1</Account>");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(
            text.contains("<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">"),
            "{text}"
        );
        let answer = ec2_answer(&call("ec2", "CreateVpc"), "<vpc/>");
        assert!(String::from_utf8_lossy(&answer.body).contains("</requestId><vpc/></CreateVpcResponse>"));
    }
}
