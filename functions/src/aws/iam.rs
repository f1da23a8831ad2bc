//! IAM roles and policies as steps want them: observed, compared, changed only where they differ.

use std::collections::BTreeMap;

use aws_sdk_iam::types::Tag;
use serde_json::Value;
use slipway_statemachine::{ClusterKey, ErrorName, Run, StepError};

use super::{
    documents::{document, same_document},
    error::{During as _, code, refused},
    partition,
    tags::{missing, ours},
};
use crate::Context;

/// A role as a step wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    /// At most 64 characters.
    pub name: String,
    /// For whoever reads the console.
    pub description: &'static str,
    /// Who may assume it.
    pub trust: Value,
    /// ARNs of the managed policies that it carries.
    pub policies: Vec<String>,
    /// All of them, ours included.
    pub tags: BTreeMap<String, String>,
}

/// A role as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundRole {
    /// Its ARN.
    pub arn: String,
    /// Who may assume it.
    pub trust: Value,
    /// ARNs of the managed policies that it carries.
    pub policies: Vec<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// One change to a role.
#[derive(Debug, Clone, PartialEq)]
pub enum RoleChange {
    /// It isn't there.
    Create,
    /// Somebody else may assume it.
    Trust,
    /// These tags are missing or differ.
    Tags(BTreeMap<String, String>),
    /// This policy is missing.
    Attach(String),
}

/// What it takes to make a role what it should be.
///
/// # Errors
/// `NotOurs` when a role of that name is there without our tag.
pub fn decide(cluster: &ClusterKey, wanted: &Role, found: Option<&FoundRole>) -> Result<Vec<RoleChange>, StepError> {
    let attach = |have: &[String]| -> Vec<RoleChange> {
        wanted.policies.iter().filter(|arn| !have.contains(arn)).cloned().map(RoleChange::Attach).collect()
    };
    let Some(found) = found else {
        return Ok([vec![RoleChange::Create], attach(&[])].concat());
    };
    ours(cluster, &found.tags, &format!("The IAM role {}", found.arn))?;
    let mut changes = Vec::new();
    if !same_document(&found.trust, &wanted.trust) {
        changes.push(RoleChange::Trust);
    }
    let tags = missing(&wanted.tags, &found.tags);
    if !tags.is_empty() {
        changes.push(RoleChange::Tags(tags));
    }
    changes.extend(attach(&found.policies));
    Ok(changes)
}

fn tags_of(tags: &[Tag]) -> BTreeMap<String, String> {
    tags.iter().map(|tag| (tag.key().to_owned(), tag.value().to_owned())).collect()
}

fn as_tags(tags: &BTreeMap<String, String>) -> Result<Vec<Tag>, StepError> {
    tags.iter()
        .map(|(key, value)| Tag::builder().key(key).value(value).build())
        .collect::<Result<_, _>>()
        .map_err(|error| StepError::new(ErrorName::Internal, format!("A tag could not be written: {error}.")))
}

/// The role of a name, with its policies; none when there is none.
///
/// # Errors
/// What IAM refused.
pub async fn role(cx: &Context, name: &str) -> Result<Option<FoundRole>, StepError> {
    let iam = cx.aws.iam();
    let role = match iam.get_role().role_name(name).send().await {
        Ok(answer) => answer.role,
        Err(error) if code(&error) == Some("NoSuchEntity") => None,
        Err(error) => return Err(refused("iam:GetRole", &error)),
    };
    let Some(role) = role else { return Ok(None) };
    let mut policies = Vec::new();
    let mut pages = iam.list_attached_role_policies().role_name(name).into_paginator().items().send();
    while let Some(policy) = pages.next().await {
        policies.extend(policy.during("iam:ListAttachedRolePolicies")?.policy_arn);
    }
    Ok(Some(FoundRole {
        arn: role.arn,
        trust: document(role.assume_role_policy_document.as_deref().unwrap_or_default()),
        policies,
        tags: tags_of(role.tags.as_deref().unwrap_or_default()),
    }))
}

/// Who may assume the role of a name; none when there is no such role.
///
/// # Errors
/// What IAM refused.
pub async fn trust(cx: &Context, name: &str) -> Result<Option<Value>, StepError> {
    match cx.aws.iam().get_role().role_name(name).send().await {
        Ok(answer) => Ok(answer.role.and_then(|role| role.assume_role_policy_document).map(|text| document(&text))),
        Err(error) if code(&error) == Some("NoSuchEntity") => Ok(None),
        Err(error) => Err(refused("iam:GetRole", &error)),
    }
}

/// The ARN of a role of ours.
#[must_use]
pub fn role_arn(cluster: &ClusterKey, name: &str) -> String {
    format!("arn:{}:iam::{}:role/{name}", partition(&cluster.region), cluster.account)
}

/// The ARN of the IAM OIDC provider of a cluster's issuer.
#[must_use]
pub fn oidc_provider_arn(cluster: &ClusterKey, issuer: &str) -> String {
    let path = issuer.trim_start_matches("https://");
    format!("arn:{}:iam::{}:oidc-provider/{path}", partition(&cluster.region), cluster.account)
}

/// Makes a role what it should be, and answers its ARN.
///
/// # Errors
/// `NotOurs`, `LeaseLost`, or what IAM refused.
pub async fn ensure_role(cx: &Context, run: &Run, cluster: &ClusterKey, wanted: &Role) -> Result<String, StepError> {
    let found = role(cx, &wanted.name).await?;
    let changes = decide(cluster, wanted, found.as_ref())?;
    let mut arn = found.map(|role| role.arn).unwrap_or_default();
    if changes.is_empty() {
        return Ok(arn);
    }
    cx.state.hold(run, cluster).await?;
    let iam = cx.aws.iam();
    for change in changes {
        match change {
            RoleChange::Create => {
                let created = iam
                    .create_role()
                    .role_name(&wanted.name)
                    .description(wanted.description)
                    .assume_role_policy_document(wanted.trust.to_string())
                    .set_tags(Some(as_tags(&wanted.tags)?))
                    .send()
                    .await;
                arn = match created {
                    Ok(answer) => answer.role.map(|role| role.arn).unwrap_or_default(),
                    // Another invocation of this step was faster; the next look adopts it.
                    Err(error) if code(&error) == Some("EntityAlreadyExists") => {
                        let cause = format!("The role {} appeared while it was being made.", wanted.name);
                        return Err(StepError::new(ErrorName::PropagationPending, cause));
                    }
                    Err(error) => return Err(refused("iam:CreateRole", &error)),
                };
            }
            RoleChange::Trust => {
                let trust = wanted.trust.to_string();
                let call = iam.update_assume_role_policy().role_name(&wanted.name).policy_document(trust);
                call.send().await.during("iam:UpdateAssumeRolePolicy")?;
            }
            RoleChange::Tags(tags) => {
                let call = iam.tag_role().role_name(&wanted.name).set_tags(Some(as_tags(&tags)?));
                call.send().await.during("iam:TagRole")?;
            }
            RoleChange::Attach(policy) => {
                let call = iam.attach_role_policy().role_name(&wanted.name).policy_arn(policy);
                call.send().await.during("iam:AttachRolePolicy")?;
            }
        }
    }
    Ok(arn)
}

/// Makes a customer managed policy say `wanted`, and answers its ARN. An older version is kept as long as IAM's limit of
/// five allows; then the oldest that is not in force goes.
///
/// # Errors
/// `NotOurs`, `LeaseLost`, or what IAM refused.
pub async fn ensure_policy(
    cx: &Context,
    run: &Run,
    cluster: &ClusterKey,
    name: &str,
    wanted: &Value,
    tags: &BTreeMap<String, String>,
) -> Result<String, StepError> {
    let iam = cx.aws.iam();
    let partition = partition(&cluster.region);
    let arn = format!("arn:{partition}:iam::{}:policy/{name}", cluster.account);
    let policy = match iam.get_policy().policy_arn(&arn).send().await {
        Ok(answer) => answer.policy,
        Err(error) if code(&error) == Some("NoSuchEntity") => None,
        Err(error) => return Err(refused("iam:GetPolicy", &error)),
    };
    let Some(policy) = policy else {
        cx.state.hold(run, cluster).await?;
        let created = iam
            .create_policy()
            .policy_name(name)
            .policy_document(wanted.to_string())
            .set_tags(Some(as_tags(tags)?))
            .send()
            .await;
        return match created {
            Ok(_) => Ok(arn),
            Err(error) if code(&error) == Some("EntityAlreadyExists") => {
                let cause = format!("The policy {name} appeared while it was being made.");
                Err(StepError::new(ErrorName::PropagationPending, cause))
            }
            Err(error) => Err(refused("iam:CreatePolicy", &error)),
        };
    };

    let found = tags_of(policy.tags.as_deref().unwrap_or_default());
    ours(cluster, &found, &format!("The IAM policy {arn}"))?;
    let in_force = policy.default_version_id().unwrap_or("v1");
    let version = iam.get_policy_version().policy_arn(&arn).version_id(in_force).send().await;
    let version = version.during("iam:GetPolicyVersion")?.policy_version;
    let says = version.and_then(|version| version.document).map(|text| document(&text));
    if says.is_none_or(|says| !same_document(&says, wanted)) {
        cx.state.hold(run, cluster).await?;
        let versions = iam.list_policy_versions().policy_arn(&arn).send().await.during("iam:ListPolicyVersions")?;
        let versions = versions.versions.unwrap_or_default();
        if versions.len() >= 5
            && let Some(oldest) = versions.iter().filter(|v| !v.is_default_version()).min_by_key(|v| v.create_date())
        {
            let call = iam.delete_policy_version().policy_arn(&arn).set_version_id(oldest.version_id.clone());
            call.send().await.during("iam:DeletePolicyVersion")?;
        }
        let call = iam.create_policy_version().policy_arn(&arn).policy_document(wanted.to_string());
        call.set_as_default(true).send().await.during("iam:CreatePolicyVersion")?;
    }
    let tags = missing(tags, &found);
    if !tags.is_empty() {
        cx.state.hold(run, cluster).await?;
        let call = iam.tag_policy().policy_arn(&arn).set_tags(Some(as_tags(&tags)?));
        call.send().await.during("iam:TagPolicy")?;
    }
    Ok(arn)
}

/// Makes sure that a service's own role is there; answers whether it was made now.
///
/// # Errors
/// What IAM refused.
pub async fn ensure_service_linked_role(cx: &Context, service: &str, name: &str) -> Result<bool, StepError> {
    let iam = cx.aws.iam();
    match iam.get_role().role_name(name).send().await {
        Ok(_) => return Ok(false),
        Err(error) if code(&error) == Some("NoSuchEntity") => {}
        Err(error) => return Err(refused("iam:GetRole", &error)),
    }
    match iam.create_service_linked_role().aws_service_name(service).send().await {
        Ok(_) => Ok(true),
        // IAM's words for one that appeared meanwhile: "Service role name … has been taken in this account".
        Err(error) if super::error::message(&error).is_some_and(|words| words.contains("has been taken")) => Ok(false),
        Err(error) => Err(refused("iam:CreateServiceLinkedRole", &error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use slipway_statemachine::names;

    use super::*;

    fn demo() -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() }
    }

    fn wanted() -> Role {
        Role {
            name: "r".into(),
            description: "",
            trust: json!({"Statement": [{"Action": "sts:AssumeRole"}]}),
            policies: vec!["arn:p1".into(), "arn:p2".into()],
            tags: names::tags(&demo(), &BTreeMap::from([("team".to_owned(), "a".to_owned())])),
        }
    }

    fn found() -> FoundRole {
        let Role { trust, policies, tags, .. } = wanted();
        FoundRole { arn: "arn:r".into(), trust, policies, tags }
    }

    #[test]
    fn a_role_as_it_should_be_is_left_alone() {
        assert_eq!(decide(&demo(), &wanted(), Some(&found())).unwrap(), []);
    }

    #[test]
    fn only_what_differs_is_changed() {
        let mut role = found();
        role.trust = json!({"Statement": []});
        role.policies.remove(0);
        role.tags.insert("team".to_owned(), "b".to_owned());
        let team = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        assert_eq!(
            decide(&demo(), &wanted(), Some(&role)).unwrap(),
            [RoleChange::Trust, RoleChange::Tags(team), RoleChange::Attach("arn:p1".into())]
        );
    }

    #[test]
    fn a_stranger_of_the_same_name_is_refused() {
        for tags in [BTreeMap::new(), BTreeMap::from([(names::CLUSTER_TAG.to_owned(), "other".to_owned())])] {
            let error = decide(&demo(), &wanted(), Some(&FoundRole { tags, ..found() })).unwrap_err();
            assert_eq!(error.name, ErrorName::NotOurs);
        }
    }
}
