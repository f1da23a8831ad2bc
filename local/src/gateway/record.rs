//! The call record: one JSON line a call, in the order of their starts' numbers, and the same in memory for tests.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::call::{Answer, Call};
use super::{authorize, operations, wire};

/// One call.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Numbered from 1 in the order in which calls came in; lines are written in the order of their answers.
    pub seq: u64,
    /// RFC 3339, when it came in.
    pub at: String,
    /// The account worked in.
    pub account: String,
    /// The region worked in.
    pub region: String,
    /// `ec2`
    pub service: String,
    /// `CreateVpc`
    pub action: String,
    /// Whether it changes something. A dry run does not.
    pub mutating: bool,
    /// Who called.
    pub principal: String,
    /// The function that called, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The name that the caller's software gives itself in its user agent (`AWS_SDK_UA_APP_ID`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
    /// As answered.
    pub request_id: String,
    /// HTTP status.
    pub status: u16,
    /// AWS's error code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// Names, ids and ARNs that the request named.
    pub resources: Vec<String>,
    /// Why the caller was not allowed to call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denied: Option<String>,
    /// The error that was injected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// The record of one cloud.
#[derive(Debug)]
pub struct Record {
    next: AtomicU64,
    file: Mutex<File>,
    entries: Mutex<Vec<Entry>>,
}

impl Record {
    /// A record in a new file.
    ///
    /// # Errors
    /// Where the file cannot be made.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("make the call record {}", path.display()))?;
        Ok(Self { next: AtomicU64::new(1), file: Mutex::new(file), entries: Mutex::default() })
    }

    /// The calls that were answered so far.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A call came in.
    pub(super) fn open(&self, call: &Call) -> Entry {
        Entry {
            seq: self.next.fetch_add(1, Ordering::Relaxed),
            at: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            account: call.account.clone(),
            region: call.region.clone(),
            service: call.service.clone(),
            action: call.action.clone(),
            mutating: operations::mutating(&call.action) && !authorize::is_dry_run(call),
            principal: call.principal.arn.clone(),
            function: call.principal.function.clone(),
            app_id: app_id(call),
            request_id: call.request_id.clone(),
            status: 0,
            error_code: None,
            resources: resources(call),
            denied: None,
            fault: None,
        }
    }

    /// It was answered.
    pub(super) fn close(&self, mut entry: Entry, answer: &Answer, fault: Option<&str>) {
        entry.status = answer.status.as_u16();
        entry.error_code = answer.error_code.clone().or_else(|| Some(wire::error_of(answer)?.code));
        entry.fault = fault.map(str::to_owned);
        if let Ok(mut line) = serde_json::to_vec(&entry) {
            line.push(b'\n');
            // A full disk must not fail the call; the entry stays in memory.
            let _ = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
        }
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

/// `… app/slipway-open-run …`, as the SDKs write it.
fn app_id(call: &Call) -> Option<String> {
    let agents =
        ["user-agent", "x-amz-user-agent"].into_iter().filter_map(|name| call.headers.get(name)?.to_str().ok());
    agents.flat_map(str::split_whitespace).find_map(|part| part.strip_prefix("app/")).map(str::to_owned)
}

/// What a request names: the values of its members that end in Name, Id, Arn, Url or a plural of them, and of a
/// REST path the segments after the first.
fn resources(call: &Call) -> Vec<String> {
    let mut found: Vec<String> = match wire::Protocol::of(&call.service, &call.headers) {
        wire::Protocol::Query | wire::Protocol::Ec2 => wire::parameters(call)
            .into_iter()
            .filter(|(name, _)| names_a_resource(name))
            .map(|(_, value)| value)
            .collect(),
        wire::Protocol::Json => match serde_json::from_slice::<Value>(&call.body) {
            Ok(Value::Object(members)) => members
                .iter()
                .filter(|(name, _)| names_a_resource(name))
                .filter_map(|(_, value)| value.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        },
        wire::Protocol::RestJson | wire::Protocol::RestXml => wire::path_segments(&call.uri),
    };
    found.dedup();
    found
}

fn names_a_resource(member: &str) -> bool {
    let name = member.split('.').find(|part| *part != "member" && part.parse::<u32>().is_err()).unwrap_or(member);
    let depth = member.split('.').filter(|part| *part != "member" && part.parse::<u32>().is_err()).count();
    depth == 1
        && ["Name", "Id", "Arn", "ARN", "Url"]
            .iter()
            .any(|ending| name == ending.to_lowercase() || name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gateway::call::Principal;
    use bytes::Bytes;
    use http::{HeaderMap, Method, StatusCode};

    fn call(service: &str, action: &str, body: &str) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
        Call {
            request_id: "r".into(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal: Principal::service("eks.amazonaws.com", "111122223333"),
            service: service.into(),
            action: action.into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers,
            body: Bytes::from(body.to_owned()),
        }
    }

    #[test]
    fn a_line_says_who_did_what_to_what() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calls.jsonl");
        let record = Record::create(&path).unwrap();
        let body = "Action=DeleteVpc&VpcId=vpc-1&TagSpecification.1.ResourceType=vpc&Filter.1.Name=x";
        let entry = record.open(&call("ec2", "DeleteVpc", body));
        let refusal = crate::gateway::call::AwsError::new(400, "DependencyViolation", "in use");
        let answer = wire::error(wire::Protocol::Ec2, &refusal, "r");
        record.close(entry, &answer, None);
        let line: Value = serde_json::from_str(std::fs::read_to_string(&path).unwrap().trim()).unwrap();
        assert_eq!(line["seq"], 1);
        assert_eq!(line["mutating"], true);
        assert_eq!(line["status"], 400);
        assert_eq!(line["errorCode"], "DependencyViolation");
        assert_eq!(line["resources"], serde_json::json!(["vpc-1"]));
        assert_eq!(line["principal"], "eks.amazonaws.com");
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::create(&folder.path().join("calls.jsonl")).unwrap();
        assert!(!record.open(&call("ec2", "CreateVpc", "Action=CreateVpc&DryRun=true")).mutating);
        let entry = record.open(&call("ec2", "CreateVpc", "Action=CreateVpc"));
        assert!(entry.mutating);
        let answer = Answer { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::new(), error_code: None };
        record.close(entry, &answer, None);
        assert_eq!(record.entries().len(), 1);
    }
}
