//! IAM: moto has what the product makes, MiniStack the roles of the template; whoever has a thing answers for it. What
//! is changed here the other services hear of later.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::backend::{MiniStack, Moto};
use crate::gateway::authorize::RolePolicies;
use crate::gateway::call::{Answer, AwsError, Call, Principal, Service};
use crate::gateway::{operations, wire};
use crate::propagation::Changes;

/// IAM over both emulators.
#[derive(Debug, Clone)]
pub struct Iam {
    moto: Moto,
    ministack: MiniStack,
    changes: Arc<Changes>,
}

/// What STS needs to know of a role.
#[derive(Debug, Clone)]
pub struct Role {
    /// `AROA…`
    pub id: String,
    /// Who may assume it.
    pub trust: Value,
    /// `MaxSessionDuration`, in seconds.
    pub longest_session: i64,
}

/// Whoever knows roles and identity providers.
#[async_trait]
pub trait Roles: RolePolicies {
    /// A role, by its ARN; `None` if nobody has it.
    async fn role(&self, role_arn: &str) -> Option<Role>;

    /// An OIDC provider's client ids, by the provider's ARN; `None` if there is no such provider.
    async fn client_ids(&self, provider_arn: &str) -> Option<Vec<String>>;
}

impl Iam {
    /// IAM over moto and MiniStack, which writes down what is changed.
    #[must_use]
    pub fn new(moto: Moto, ministack: MiniStack, changes: Arc<Changes>) -> Self {
        Self { moto, ministack, changes }
    }

    /// Asks about a thing, in the account that its ARN names. The question is the cloud's own: it is not recorded.
    async fn ask(&self, arn: &str, action: &str, parameters: &[(&str, &str)]) -> Option<String> {
        let account = arn.split(':').nth(4)?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let call = Call {
            request_id: wire::request_id(),
            account: account.to_owned(),
            region: "us-east-1".to_owned(),
            principal: Principal::service("iam.amazonaws.com", account),
            service: "iam".to_owned(),
            action: action.to_owned(),
            method: Method::POST,
            uri: http::Uri::from_static("/"),
            headers,
            body: wire::form_body(action, "2010-05-08", parameters),
        };
        let answer = self.handle(call).await;
        answer.status.is_success().then(|| String::from_utf8_lossy(&answer.body).into_owned())
    }
}

#[async_trait]
impl Service for Iam {
    async fn handle(&self, call: Call) -> Answer {
        let parameters = wire::parameters(&call);
        if let Some(refusal) = self.unknown_principal(&call, &parameters).await {
            return wire::refuse(&call, &refusal);
        }
        let changed = self.about_to_change(&call, &parameters).await;
        let answer = self.moto.handle(call.clone()).await;
        if answer.status.is_success() {
            self.write_down(&call.action, &answer, changed);
        }
        let missing = answer.error_code.as_deref() == Some("NoSuchEntity");
        if !missing || operations::mutating(&call.action) {
            return answer;
        }
        let second = self.ministack.handle(call).await;
        if second.status.is_success() { second } else { answer }
    }
}

#[async_trait]
impl Roles for Iam {
    async fn role(&self, role_arn: &str) -> Option<Role> {
        let answer = self.ask(role_arn, "GetRole", &[("RoleName", role_name(role_arn)?)]).await?;
        // A role of the same name but another path is another role.
        let found = texts(&answer, "Arn").into_iter().next()?;
        if found != role_arn {
            return None;
        }
        let longest = texts(&answer, "MaxSessionDuration").first().and_then(|seconds| seconds.parse().ok());
        Some(Role {
            id: texts(&answer, "RoleId").into_iter().next()?,
            trust: document(texts(&answer, "AssumeRolePolicyDocument").first()?)?,
            longest_session: longest.unwrap_or(3600),
        })
    }

    async fn client_ids(&self, provider_arn: &str) -> Option<Vec<String>> {
        let answer =
            self.ask(provider_arn, "GetOpenIDConnectProvider", &[("OpenIDConnectProviderArn", provider_arn)]).await?;
        Some(members(&answer, "ClientIDList"))
    }
}

#[async_trait]
impl RolePolicies for Iam {
    async fn policies(&self, role_arn: &str) -> Option<Vec<Value>> {
        let name = role_name(role_arn)?;
        let mut documents = Vec::new();
        let inline = self.ask(role_arn, "ListRolePolicies", &[("RoleName", name)]).await?;
        for policy in members(&inline, "PolicyNames") {
            let answer = self.ask(role_arn, "GetRolePolicy", &[("RoleName", name), ("PolicyName", &policy)]).await?;
            documents.extend(texts(&answer, "PolicyDocument").iter().filter_map(|text| document(text)));
        }
        let attached = self.ask(role_arn, "ListAttachedRolePolicies", &[("RoleName", name)]).await?;
        for policy in texts(&attached, "PolicyArn") {
            documents.extend(self.managed(role_arn, &policy).await);
        }
        Some(documents)
    }

    async fn boundary(&self, role_arn: &str) -> Option<Value> {
        let answer = self.ask(role_arn, "GetRole", &[("RoleName", role_name(role_arn)?)]).await?;
        let boundary = texts(&answer, "PermissionsBoundaryArn").into_iter().next()?;
        self.managed(role_arn, &boundary).await
    }

    async fn managed(&self, role_arn: &str, policy_arn: &str) -> Option<Value> {
        let answer = self.ask(role_arn, "GetPolicy", &[("PolicyArn", policy_arn)]).await?;
        let version = texts(&answer, "DefaultVersionId").into_iter().next()?;
        let parameters = [("PolicyArn", policy_arn), ("VersionId", version.as_str())];
        let answer = self.ask(role_arn, "GetPolicyVersion", &parameters).await?;
        document(texts(&answer, "Document").first()?)
    }

    async fn tags(&self, role_arn: &str) -> BTreeMap<String, String> {
        let Some(name) = role_name(role_arn) else {
            return BTreeMap::new();
        };
        let answer = self.ask(role_arn, "ListRoleTags", &[("RoleName", name)]).await.unwrap_or_default();
        texts(&answer, "Key").into_iter().zip(texts(&answer, "Value")).collect()
    }
}

impl Iam {
    /// IAM's refusal of a trust policy that names a role or user that does not exist, or that IAM has not heard of
    /// yet: it stores principals by their ids.
    async fn unknown_principal(&self, call: &Call, parameters: &BTreeMap<String, String>) -> Option<AwsError> {
        let document = match call.action.as_str() {
            "CreateRole" => parameters.get("AssumeRolePolicyDocument")?,
            "UpdateAssumeRolePolicy" => parameters.get("PolicyDocument")?,
            _ => return None,
        };
        // What is no JSON, moto refuses.
        let trust: Value = serde_json::from_str(document).ok()?;
        for principal in principals(&trust) {
            let known = if principal.contains(":role/") {
                self.role(&principal).await.is_some() && self.changes.believed(&principal, "iam")
            } else {
                let name = principal.rsplit('/').next().unwrap_or_default();
                self.ask(&principal, "GetUser", &[("UserName", name)]).await.is_some()
            };
            if !known {
                let message = format!("Invalid principal in policy: \"AWS\":\"{principal}\"");
                return Some(AwsError::new(400, "MalformedPolicyDocument", message));
            }
        }
        None
    }

    /// The thing that a call changes, and what it is before.
    async fn about_to_change(
        &self,
        call: &Call,
        parameters: &BTreeMap<String, String>,
    ) -> Option<(String, Option<Value>)> {
        let named = |member: &str| parameters.get(member).map(String::as_str);
        match call.action.as_str() {
            "UpdateAssumeRolePolicy" => {
                let arn = self.arn(&call.account, "role", named("RoleName")?).await?;
                let trust = self.role(&arn).await?.trust;
                Some((arn, Some(trust)))
            }
            "AddClientIDToOpenIDConnectProvider" | "RemoveClientIDFromOpenIDConnectProvider" => {
                let arn = named("OpenIDConnectProviderArn")?;
                Some((arn.to_owned(), Some(json!(self.client_ids(arn).await?))))
            }
            "AddRoleToInstanceProfile" => {
                let arn = self.arn(&call.account, "instance-profile", named("InstanceProfileName")?).await?;
                // Without a role in it a profile is none to anybody.
                Some((arn, None))
            }
            _ => None,
        }
    }

    fn write_down(&self, action: &str, answer: &Answer, changed: Option<(String, Option<Value>)>) {
        let made = match action {
            "CreateRole" | "CreateInstanceProfile" => Some("Arn"),
            "CreateOpenIDConnectProvider" => Some("OpenIDConnectProviderArn"),
            _ => None,
        };
        let arn = made.and_then(|name| texts(&String::from_utf8_lossy(&answer.body), name).into_iter().next());
        if let Some(arn) = arn {
            self.changes.record(&arn, None);
        } else if let Some((arn, before)) = changed {
            self.changes.record(&arn, before);
        }
    }

    /// The whole ARN of a thing of IAM's, whose path its name does not tell.
    pub(super) async fn arn(&self, account: &str, kind: &str, name: &str) -> Option<String> {
        let (action, member) = match kind {
            "role" => ("GetRole", "RoleName"),
            "instance-profile" => ("GetInstanceProfile", "InstanceProfileName"),
            _ => return None,
        };
        let account = format!("arn:aws:iam::{account}:");
        let answer = self.ask(&account, action, &[(member, name)]).await?;
        // An instance profile's answer has its role's ARN as well.
        texts(&answer, "Arn").into_iter().find(|arn| arn.starts_with(&format!("{account}{kind}/")))
    }
}

/// The roles and users that a trust policy names, by ARN.
fn principals(trust: &Value) -> Vec<String> {
    let statements = match &trust["Statement"] {
        Value::Array(statements) => statements.iter().collect(),
        one => vec![one],
    };
    let named = statements.into_iter().flat_map(|statement| match &statement["Principal"]["AWS"] {
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect::<Vec<_>>(),
    });
    named.filter(|arn| arn.contains(":role/") || arn.contains(":user/")).map(str::to_owned).collect()
}

/// The name at the end of a role's ARN, behind its path.
fn role_name(arn: &str) -> Option<&str> {
    arn.split_once(":role/")?.1.rsplit('/').next()
}

/// The texts of all elements of a name.
fn texts(xml: &str, name: &str) -> Vec<String> {
    let Ok(parsed) = roxmltree::Document::parse(xml) else {
        return Vec::new();
    };
    parsed
        .descendants()
        .filter(|node| node.tag_name().name() == name)
        .filter_map(|node| node.text())
        .map(|text| text.trim().to_owned())
        .collect()
}

/// The members of a list.
fn members(xml: &str, list: &str) -> Vec<String> {
    let Ok(parsed) = roxmltree::Document::parse(xml) else {
        return Vec::new();
    };
    parsed
        .descendants()
        .filter(|node| node.tag_name().name() == list)
        .flat_map(|node| node.children())
        .filter_map(|node| node.text())
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
        .collect()
}

/// A policy document as IAM gives it: JSON, percent-encoded.
fn document(text: &str) -> Option<Value> {
    // A document without a percent sign needs no decoding, and in one with, `+` stands for itself.
    serde_json::from_str(text).ok().or_else(|| serde_json::from_str(&wire::percent_decode(text)).ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn answers_are_read() {
        let xml = "<R xmlns=\"x\"><PolicyNames><member>a</member><member>b</member></PolicyNames></R>";
        assert_eq!(members(xml, "PolicyNames"), ["a", "b"]);
        assert_eq!(document("%7B%22Version%22%3A%221%22%7D").unwrap()["Version"], "1");
        assert_eq!(role_name("arn:aws:iam::1:role/a/b/c"), Some("c"));
    }

    #[test]
    fn only_roles_and_users_are_looked_for_in_a_trust_policy() {
        let trust = json!({"Statement": [
            {"Principal": {"AWS": "arn:aws:iam::1:root"}},
            {"Principal": {"AWS": ["arn:aws:iam::1:role/a/b", "arn:aws:iam::1:user/ann", "*", "111122223333"]}},
            {"Principal": {"Service": "eks.amazonaws.com"}},
            {"Principal": "*"},
        ]});
        assert_eq!(principals(&trust), ["arn:aws:iam::1:role/a/b", "arn:aws:iam::1:user/ann"]);
        assert!(principals(&json!({"Statement": {"Principal": {"Federated": "arn:x:role/y"}}})).is_empty());
    }
}
