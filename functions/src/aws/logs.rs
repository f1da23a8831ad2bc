//! CloudWatch Logs, as far as a teardown and an audit need it: log groups listed and deleted. Two calls, signed here:
//! its SDK brings event streams, which every other client would be built with.

use std::time::SystemTime;

use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use serde::Deserialize;
use serde_json::{Value, json};
use slipway_statemachine::{ErrorName, StepError};

use super::error::{classify, is_gone};
use crate::Context;

const TARGET: &str = "Logs_20140328";

/// A log group.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogGroup {
    /// `/aws/eks/<cluster>/cluster`
    pub log_group_name: String,
    /// Ends in `:*`, as this service's do.
    pub arn: String,
    /// Milliseconds since 1970.
    #[serde(default)]
    pub creation_time: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    log_groups: Vec<LogGroup>,
    #[serde(default)]
    next_token: Option<String>,
}

/// The log groups whose names begin so.
///
/// # Errors
/// What CloudWatch Logs refused.
pub async fn log_groups(cx: &Context, prefix: &str) -> Result<Vec<LogGroup>, StepError> {
    let mut found = Vec::new();
    let mut body = json!({ "logGroupNamePrefix": prefix });
    loop {
        let answer = call(cx, "DescribeLogGroups", &body).await?.unwrap_or_default();
        let page: Page = serde_json::from_value(answer)
            .map_err(|error| internal(&format!("logs:DescribeLogGroups cannot be read: {error}")))?;
        found.extend(page.log_groups);
        match page.next_token {
            Some(token) => body["nextToken"] = token.into(),
            None => return Ok(found),
        }
    }
}

/// Deletes a log group. False: it was gone already.
///
/// # Errors
/// What CloudWatch Logs refused.
pub async fn delete_log_group(cx: &Context, name: &str) -> Result<bool, StepError> {
    Ok(call(cx, "DeleteLogGroup", &json!({ "logGroupName": name })).await?.is_some())
}

/// One call; none where its subject is not there.
async fn call(cx: &Context, action: &str, body: &Value) -> Result<Option<Value>, StepError> {
    let (config, region) = (cx.aws.config(), cx.aws.region());
    let endpoint = match config.endpoint_url() {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None if region.starts_with("cn-") => format!("https://logs.{region}.amazonaws.com.cn"),
        None => format!("https://logs.{region}.amazonaws.com"),
    };
    let unsent = |error: &dyn std::fmt::Display| internal(&format!("logs:{action} could not be written: {error}"));
    let provider = config.credentials_provider().ok_or_else(|| internal("there are no credentials"))?;
    let credentials = provider.provide_credentials().await.map_err(|error| {
        StepError::new(ErrorName::AwsUnavailable, format!("logs:{action} found no credentials: {error}."))
    })?;
    let identity = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("logs")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| unsent(&error))?
        .into();
    let url = format!("{endpoint}/");
    let target = format!("{TARGET}.{action}");
    let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", target.as_str())];
    let text = body.to_string();
    let signable = SignableRequest::new("POST", &url, headers.into_iter(), SignableBody::Bytes(text.as_bytes()))
        .map_err(|error| unsent(&error))?;
    let (instructions, _) = sign(signable, &parameters).map_err(|error| unsent(&error))?.into_parts();
    let mut request = http::Request::post(&url).body(text).map_err(|error| unsent(&error))?;
    for (name, value) in headers {
        request.headers_mut().insert(name, http::HeaderValue::from_str(value).map_err(|error| unsent(&error))?);
    }
    instructions.apply_to_request_http1x(&mut request);
    let request = reqwest::Request::try_from(request).map_err(|error| unsent(&error))?;
    let late = |error: reqwest::Error| {
        StepError::new(ErrorName::AwsUnavailable, format!("logs:{action} did not get through: {error}."))
    };
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(10)).build().map_err(late)?;
    let answer = client.execute(request).await.map_err(late)?;
    let status = answer.status();
    let answer: Value = serde_json::from_str(&answer.text().await.map_err(late)?).unwrap_or_default();
    if status.is_success() {
        return Ok(Some(answer));
    }
    let code = answer["__type"].as_str().unwrap_or_default().rsplit('#').next().unwrap_or_default().to_owned();
    if is_gone(&code) {
        return Ok(None);
    }
    let message = answer["message"].as_str().or_else(|| answer["Message"].as_str()).unwrap_or("no message");
    let name = classify(&code, message, status.as_u16());
    Err(StepError::new(name, format!("logs:{action} was refused: {} ({code}).", message.trim_end_matches('.'))))
}

fn internal(cause: &str) -> StepError {
    StepError::new(ErrorName::Internal, format!("{cause}."))
}
