//! Names of REST operations of the services that an emulator answers, and which operations change something.

use http::{Method, Uri};

use super::wire;

/// One REST operation: its method and its path, where `*` is one segment.
type Operation = (&'static str, &'static str, &'static str);

const LAMBDA: &[Operation] = &[
    ("POST", "2015-03-31/functions/*/invocations", "Invoke"),
    ("POST", "2015-03-31/functions", "CreateFunction"),
    ("GET", "2015-03-31/functions", "ListFunctions"),
    ("GET", "2015-03-31/functions/*", "GetFunction"),
    ("DELETE", "2015-03-31/functions/*", "DeleteFunction"),
    ("GET", "2015-03-31/functions/*/configuration", "GetFunctionConfiguration"),
    ("PUT", "2015-03-31/functions/*/configuration", "UpdateFunctionConfiguration"),
    ("PUT", "2015-03-31/functions/*/code", "UpdateFunctionCode"),
    ("GET", "2015-03-31/functions/*/aliases", "ListAliases"),
    ("GET", "2015-03-31/functions/*/aliases/*", "GetAlias"),
    ("GET", "2015-03-31/functions/*/versions", "ListVersionsByFunction"),
    ("GET", "2015-03-31/functions/*/policy", "GetPolicy"),
];

const SCHEDULER: &[Operation] = &[
    ("POST", "schedules/*", "CreateSchedule"),
    ("GET", "schedules/*", "GetSchedule"),
    ("PUT", "schedules/*", "UpdateSchedule"),
    ("DELETE", "schedules/*", "DeleteSchedule"),
    ("GET", "schedules", "ListSchedules"),
    ("POST", "schedule-groups/*", "CreateScheduleGroup"),
    ("GET", "schedule-groups/*", "GetScheduleGroup"),
    ("DELETE", "schedule-groups/*", "DeleteScheduleGroup"),
    ("GET", "schedule-groups", "ListScheduleGroups"),
];

/// The name of a REST operation.
pub(super) fn name(service: &str, method: &Method, uri: &Uri) -> Option<String> {
    match service {
        "lambda" => find(LAMBDA, method, uri),
        "scheduler" => find(SCHEDULER, method, uri),
        "s3" => Some(s3(method, uri)),
        _ => None,
    }
}

fn find(operations: &[Operation], method: &Method, uri: &Uri) -> Option<String> {
    let path = wire::path_segments(uri);
    operations
        .iter()
        .find(|(verb, pattern, _)| {
            let pattern: Vec<&str> = pattern.split('/').collect();
            method == verb
                && pattern.len() == path.len()
                && pattern.iter().zip(&path).all(|(expected, segment)| *expected == "*" || expected == segment)
        })
        .map(|(_, _, name)| (*name).to_owned())
}

/// S3 says what is meant by the verb, by whether there is a key, and by a subresource in the query.
fn s3(method: &Method, uri: &Uri) -> String {
    let subresources = [
        ("policy", "BucketPolicy"),
        ("tagging", "Tagging"),
        ("versioning", "BucketVersioning"),
        ("encryption", "BucketEncryption"),
        ("publicAccessBlock", "PublicAccessBlock"),
        ("lifecycle", "BucketLifecycleConfiguration"),
        ("location", "BucketLocation"),
        ("acl", "Acl"),
        ("uploads", "MultipartUpload"),
        ("delete", "Objects"),
    ];
    let of_object = wire::path_segments(uri).len() > 1;
    let subresource = subresources.iter().find(|(name, _)| wire::query_parameter(uri, name).is_some());
    let verb = match method.as_str() {
        "GET" => "Get",
        "HEAD" => "Head",
        "DELETE" => "Delete",
        "POST" if subresource.is_some_and(|(name, _)| *name == "delete") => "Delete",
        "POST" if subresource.is_some_and(|(name, _)| *name == "uploads") => "Create",
        _ => "Put",
    };
    match subresource {
        Some((_, name)) => format!("{verb}{name}"),
        None if of_object => format!("{verb}Object"),
        None => match method.as_str() {
            "GET" if wire::path_segments(uri).is_empty() => "ListBuckets".to_owned(),
            "GET" => "ListObjectsV2".to_owned(),
            "PUT" => "CreateBucket".to_owned(),
            _ => format!("{verb}Bucket"),
        },
    }
}

/// Beginnings of operations that only look.
const READING: &[&str] = &[
    "BatchGet",
    "Check",
    "Describe",
    "Detect",
    "Estimate",
    "Filter",
    "Get",
    "Head",
    "List",
    "Lookup",
    "Poll",
    "Query",
    "Receive",
    "Scan",
    "Search",
    "Select",
    "Simulate",
    "Test",
    "TransactGet",
    "Validate",
    "View",
];

/// Whole names of others that only look: credentials are not a change (CloudTrail calls these read-only too).
const ALSO_READING: &[&str] = &[
    "AccessKubernetesApi",
    "AssumeRole",
    "AssumeRoleForPodIdentity",
    "AssumeRoleWithSAML",
    "AssumeRoleWithWebIdentity",
    "DecodeAuthorizationMessage",
    "StartQuery",
];

/// Whether an operation changes something that a later call would see. Invoking a function does: its work is unknown.
#[must_use]
pub fn mutating(action: &str) -> bool {
    let begins = |beginning: &&str| {
        // `Getaway…` is not `Get…`: a word ends before the next capital.
        action.strip_prefix(*beginning).is_some_and(|rest| rest.chars().next().is_none_or(char::is_uppercase))
    };
    !(ALSO_READING.contains(&action) || READING.iter().any(begins))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn operations_that_look_are_told_from_those_that_change() {
        for looking in [
            "DescribeVpcs",
            "GetCallerIdentity",
            "ListRoles",
            "AssumeRoleWithWebIdentity",
            "HeadObject",
            "Query",
            "Scan",
            "BatchGetItem",
            "TransactGetItems",
            "ReceiveMessage",
            "ValidateTemplate",
            "SimulatePrincipalPolicy",
            "GetExecutionHistory",
            "FilterLogEvents",
            "GetObject",
            "ListObjectsV2",
            "DetectStackDrift",
        ] {
            assert!(!mutating(looking), "{looking}");
        }
        for changing in [
            "CreateCluster",
            "PutItem",
            "UpdateItem",
            "TransactWriteItems",
            "RunInstances",
            "CreateFleet",
            "TagResource",
            "DeleteRole",
            "AttachRolePolicy",
            "PutEvents",
            "StartExecution",
            "Invoke",
            "SendMessage",
            "DeleteMessage",
            "AllocateAddress",
            "AssociateAccessPolicy",
            "ModifyVpcAttribute",
            "PutObject",
            "CreateBucket",
        ] {
            assert!(mutating(changing), "{changing}");
        }
    }

    #[test]
    fn rest_operations_have_their_names() {
        let name = |service: &str, method: Method, path: &str| name(service, &method, &path.parse().unwrap());
        let arn = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A1%3Afunction%3Aa/invocations";
        assert_eq!(name("lambda", Method::POST, arn).as_deref(), Some("Invoke"));
        assert_eq!(name("s3", Method::PUT, "/bucket").as_deref(), Some("CreateBucket"));
        assert_eq!(name("s3", Method::PUT, "/bucket/key/of/it").as_deref(), Some("PutObject"));
        assert_eq!(name("s3", Method::GET, "/bucket?policy").as_deref(), Some("GetBucketPolicy"));
        assert_eq!(name("s3", Method::POST, "/bucket?delete").as_deref(), Some("DeleteObjects"));
        assert_eq!(name("scheduler", Method::GET, "/schedules").as_deref(), Some("ListSchedules"));
    }
}
