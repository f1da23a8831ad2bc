//! IAM: moto has what the product makes, MiniStack the roles of the template; whoever has a thing answers for it.

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::Value;

use super::backend::{MiniStack, Moto};
use crate::gateway::authorize::RolePolicies;
use crate::gateway::call::{Answer, Call, Principal, Service};
use crate::gateway::{operations, wire};

/// IAM over both emulators.
#[derive(Debug, Clone)]
pub struct Iam {
    moto: Moto,
    ministack: MiniStack,
}

/// What STS needs to know of a role.
#[derive(Debug, Clone)]
pub struct Role {
    /// `AROA…`
    pub id: String,
    /// Who may assume it.
    pub trust: Value,
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
    /// IAM over moto and MiniStack.
    #[must_use]
    pub fn new(moto: Moto, ministack: MiniStack) -> Self {
        Self { moto, ministack }
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
        let answer = self.moto.handle(call.clone()).await;
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
        Some(Role {
            id: texts(&answer, "RoleId").into_iter().next()?,
            trust: document(texts(&answer, "AssumeRolePolicyDocument").first()?)?,
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

    async fn arn(&self, account: &str, kind: &str, name: &str) -> Option<String> {
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

impl Iam {
    async fn managed(&self, role_arn: &str, policy_arn: &str) -> Option<Value> {
        let answer = self.ask(role_arn, "GetPolicy", &[("PolicyArn", policy_arn)]).await?;
        let version = texts(&answer, "DefaultVersionId").into_iter().next()?;
        let parameters = [("PolicyArn", policy_arn), ("VersionId", version.as_str())];
        let answer = self.ask(role_arn, "GetPolicyVersion", &parameters).await?;
        document(texts(&answer, "Document").first()?)
    }
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
}
