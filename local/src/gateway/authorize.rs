//! What a role's policies would not allow. Such calls are listed as warnings; they are not refused.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use super::call::Call;
use super::policy::{Decision, Question, decide};
use super::wire;

/// Where the identity policies of a role are.
#[async_trait]
pub trait RolePolicies: Send + Sync {
    /// The documents attached to a role and written into it; `None` if nobody has the role.
    async fn policies(&self, role_arn: &str) -> Option<Vec<Value>>;

    /// The whole ARN of a thing of IAM's, whose path its name does not tell. `kind` is as in the ARN: `role`,
    /// `instance-profile`. `None` if there is no such thing.
    async fn arn(&self, account: &str, kind: &str, name: &str) -> Option<String>;
}

/// A call that its role's policies would not allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    /// The call's request id.
    pub request_id: String,
    /// The role that lacks it.
    pub role: String,
    /// `ec2:CreateVpc`
    pub action: String,
    /// What it would have to be allowed on, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Whether a statement denies it, rather than none allowing it.
    pub denied: bool,
}

/// The judge of calls by roles.
pub struct Authorizer {
    roles: Arc<dyn RolePolicies>,
    known: Mutex<HashMap<String, Known>>,
    file: Mutex<File>,
    warnings: Mutex<Vec<Warning>>,
}

/// A role's policies, and when they were asked for.
type Known = (Instant, Arc<Vec<Value>>);

/// Policies change while a cloud runs; this old, they are asked for again.
const STALE: Duration = Duration::from_secs(3);

impl Authorizer {
    /// A judge that writes its warnings into a new file, a JSON line each.
    ///
    /// # Errors
    /// Where the file cannot be made.
    pub fn create(roles: Arc<dyn RolePolicies>, path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("make the list of warnings {}", path.display()))?;
        Ok(Self { roles, known: Mutex::default(), file: Mutex::new(file), warnings: Mutex::default() })
    }

    /// The warnings so far.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Judges one call.
    pub(super) async fn check(&self, call: &Call) {
        let Some(role) = &call.principal.role_arn else {
            return;
        };
        let Some(mut question) = question(call) else {
            return;
        };
        if let Some((kind, name)) = question.resource.as_deref().and_then(named_alone)
            && let Some(arn) = self.roles.arn(&call.account, kind, name).await
        {
            question.resource = Some(arn);
        }
        let Some(policies) = self.policies(role).await else {
            return;
        };
        let decision = decide(&policies, &question);
        if decision == Decision::Allow {
            return;
        }
        let warning = Warning {
            request_id: call.request_id.clone(),
            role: role.clone(),
            action: question.action,
            resource: question.resource,
            denied: decision == Decision::Deny,
        };
        if let Ok(mut line) = serde_json::to_vec(&warning) {
            line.push(b'\n');
            // A full disk must not fail the call; the warning stays in memory.
            let _ = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
        }
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
    }

    async fn policies(&self, role: &str) -> Option<Arc<Vec<Value>>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(role).cloned();
        if let Some((asked, policies)) = known
            && asked.elapsed() < STALE
        {
            return Some(policies);
        }
        let policies = Arc::new(self.roles.policies(role).await?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(role.to_owned(), (Instant::now(), Arc::clone(&policies)));
        Some(policies)
    }
}

/// What a call has to be allowed to do; `None` for calls that need no permission.
fn question(call: &Call) -> Option<Question> {
    let name = match (call.service.as_str(), call.action.as_str()) {
        // The first two need no permission; each item of a transaction needs its own, which DynamoDB's emulator judges.
        ("sts", "GetCallerIdentity" | "AssumeRoleWithWebIdentity")
        | ("dynamodb", "TransactWriteItems" | "TransactGetItems" | "ExecuteTransaction") => return None,
        ("lambda", "Invoke") => "InvokeFunction",
        ("s3", "ListObjectsV2" | "HeadBucket") => "ListBucket",
        ("s3", "HeadObject") => "GetObject",
        (_, action) => action,
    };
    let context = BTreeMap::from([
        ("aws:RequestedRegion".to_owned(), vec![call.region.clone()]),
        ("aws:PrincipalAccount".to_owned(), vec![call.principal.account.clone()]),
        ("aws:PrincipalArn".to_owned(), vec![call.principal.role_arn.clone()?]),
        ("aws:SecureTransport".to_owned(), vec!["true".to_owned()]),
    ]);
    Some(Question { action: format!("{}:{name}", call.service), resource: resource(call), context, lenient: true })
}

/// The ARN that a call acts on, where its request alone tells.
fn resource(call: &Call) -> Option<String> {
    let account = &call.account;
    let region = &call.region;
    let json = || serde_json::from_slice::<Value>(&call.body).unwrap_or_default();
    let path = || wire::path_segments(&call.uri);
    match call.service.as_str() {
        "iam" => {
            let named = wire::parameters(call);
            // An instance profile's role is beside it, and passed rather than acted on.
            let kinds = [
                ("InstanceProfileName", "instance-profile"),
                ("RoleName", "role"),
                ("PolicyName", "policy"),
                ("PolicyArn", ""),
                ("OpenIDConnectProviderArn", ""),
            ];
            let (kind, value) = kinds.iter().find_map(|(member, kind)| Some((*kind, named.get(*member)?)))?;
            let path = named.get("Path").map_or("/", String::as_str);
            match kind {
                "" => Some(value.clone()),
                _ => Some(format!("arn:aws:iam::{account}:{kind}{path}{value}")),
            }
        }
        "sts" => wire::parameters(call).remove("RoleArn"),
        "dynamodb" => Some(format!("arn:aws:dynamodb:{region}:{account}:table/{}", json()["TableName"].as_str()?)),
        "sqs" => {
            let body = json();
            let name = body["QueueName"].as_str().or_else(|| body["QueueUrl"].as_str()?.rsplit('/').next())?;
            Some(format!("arn:aws:sqs:{region}:{account}:{name}"))
        }
        "eks" => match path().as_slice() {
            [clusters, name, ..] if clusters == "clusters" => {
                Some(format!("arn:aws:eks:{region}:{account}:cluster/{name}")).filter(|_| path().len() == 2)
            }
            _ => None,
        },
        _ => None,
    }
}

/// Kind and name in the ARN of a role or an instance profile that was named without its path.
fn named_alone(arn: &str) -> Option<(&str, &str)> {
    let (kind, name) = arn.splitn(6, ':').nth(5)?.split_once('/')?;
    (matches!(kind, "role" | "instance-profile") && arn.contains(":iam:") && !name.contains('/'))
        .then_some((kind, name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gateway::call::Principal;
    use bytes::Bytes;
    use http::{HeaderMap, Method};
    use serde_json::json;

    struct OnePolicy(Value);

    #[async_trait]
    impl RolePolicies for OnePolicy {
        async fn policies(&self, _role_arn: &str) -> Option<Vec<Value>> {
            Some(vec![self.0.clone()])
        }

        async fn arn(&self, account: &str, kind: &str, name: &str) -> Option<String> {
            (kind == "instance-profile").then(|| format!("arn:aws:iam::{account}:{kind}/karpenter/{name}"))
        }
    }

    fn call(service: &str, action: &str) -> Call {
        Call {
            request_id: "r".into(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal: Principal {
                arn: "arn:aws:sts::1:assumed-role/step/step".into(),
                account: "111122223333".into(),
                role_arn: Some("arn:aws:iam::1:role/step".into()),
                function: Some("step".into()),
            },
            service: service.into(),
            action: action.into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn a_thing_with_a_path_is_judged_by_its_whole_arn() {
        let folder = tempfile::tempdir().unwrap();
        let policy = json!({"Statement": [{"Effect": "Allow", "Action": "iam:*",
            "Resource": "arn:aws:iam::111122223333:instance-profile/karpenter/*"}]});
        let authorizer =
            Authorizer::create(Arc::new(OnePolicy(policy)), &folder.path().join("warnings.jsonl")).unwrap();
        let mut add = call("iam", "AddRoleToInstanceProfile");
        add.headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
        add.body = Bytes::from("Action=AddRoleToInstanceProfile&InstanceProfileName=p&RoleName=r");
        authorizer.check(&add).await;
        assert_eq!(authorizer.warnings(), []);
    }

    #[tokio::test]
    async fn what_the_role_lacks_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("warnings.jsonl");
        let policy = json!({"Statement": [{"Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*"}]});
        let authorizer = Authorizer::create(Arc::new(OnePolicy(policy)), &path).unwrap();
        authorizer.check(&call("ec2", "DescribeVpcs")).await;
        authorizer.check(&call("sts", "GetCallerIdentity")).await;
        assert_eq!(authorizer.warnings(), []);
        authorizer.check(&call("ec2", "CreateVpc")).await;
        let warnings = authorizer.warnings();
        assert_eq!(warnings.len(), 1);
        assert_eq!((warnings[0].action.as_str(), warnings[0].denied), ("ec2:CreateVpc", false));
        assert!(std::fs::read_to_string(path).unwrap().contains("\"action\":\"ec2:CreateVpc\""));
    }
}
