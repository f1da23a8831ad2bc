//! IAM roles and policies as steps want them: observed, compared, changed only where they differ.

use std::collections::BTreeMap;

use aws_sdk_iam::types::Tag;
use serde_json::Value;
use slipway_statemachine::{ClusterKey, ErrorName, Run, StepError, plan::Planned};

use super::{
    documents::{document, same_document},
    error::{During as _, code, refused},
    partition,
    tags::{self, missing, ours},
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

/// What would become of a role.
///
/// # Errors
/// `NotOurs`, or what IAM refused.
pub async fn plan_role(cx: &Context, cluster: &ClusterKey, wanted: &Role) -> Result<Planned, StepError> {
    let found = role(cx, &wanted.name).await?;
    let changes = decide(cluster, wanted, found.as_ref())?;
    let told: Vec<String> = changes.iter().map(RoleChange::told).collect();
    Ok(Planned::of("IAM role", &wanted.name, found.map(|_| told.as_slice())))
}

impl RoleChange {
    /// In a few words.
    fn told(&self) -> String {
        match self {
            Self::Create => "it is not there".to_owned(),
            Self::Trust => "its trust policy differs".to_owned(),
            Self::Tags(tags) => tags::told(tags),
            Self::Attach(policy) => format!("it lacks {policy}"),
        }
    }
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

/// A customer managed policy as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundPolicy {
    /// What the version in force says.
    pub says: Value,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// One change to a policy.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyChange {
    /// It isn't there.
    Create,
    /// It says something else.
    Document,
    /// These tags are missing or differ.
    Tags(BTreeMap<String, String>),
}

/// What it takes to make a policy say `wanted`.
///
/// # Errors
/// `NotOurs` when a policy of that name is there without our tag.
pub fn decide_policy(
    cluster: &ClusterKey,
    arn: &str,
    wanted: &Value,
    tags: &BTreeMap<String, String>,
    found: Option<&FoundPolicy>,
) -> Result<Vec<PolicyChange>, StepError> {
    let Some(found) = found else { return Ok(vec![PolicyChange::Create]) };
    ours(cluster, &found.tags, &format!("The IAM policy {arn}"))?;
    let mut changes = Vec::new();
    if !same_document(&found.says, wanted) {
        changes.push(PolicyChange::Document);
    }
    let lacking = missing(tags, &found.tags);
    if !lacking.is_empty() {
        changes.push(PolicyChange::Tags(lacking));
    }
    Ok(changes)
}

/// The ARN of a customer managed policy of the cluster's account.
#[must_use]
pub fn policy_arn(cluster: &ClusterKey, name: &str) -> String {
    format!("arn:{}:iam::{}:policy/{name}", partition(&cluster.region), cluster.account)
}

/// The policy of an ARN, with what it says; none when there is none.
async fn policy(cx: &Context, arn: &str) -> Result<Option<FoundPolicy>, StepError> {
    let iam = cx.aws.iam();
    let policy = match iam.get_policy().policy_arn(arn).send().await {
        Ok(answer) => answer.policy,
        Err(error) if code(&error) == Some("NoSuchEntity") => None,
        Err(error) => return Err(refused("iam:GetPolicy", &error)),
    };
    let Some(policy) = policy else { return Ok(None) };
    let in_force = policy.default_version_id().unwrap_or("v1");
    let version = iam.get_policy_version().policy_arn(arn).version_id(in_force).send().await;
    let version = version.during("iam:GetPolicyVersion")?.policy_version;
    let says = version.and_then(|version| version.document).map(|text| document(&text)).unwrap_or_default();
    Ok(Some(FoundPolicy { says, tags: tags_of(policy.tags.as_deref().unwrap_or_default()) }))
}

/// What would become of a policy.
///
/// # Errors
/// `NotOurs`, or what IAM refused.
pub async fn plan_policy(
    cx: &Context,
    cluster: &ClusterKey,
    name: &str,
    wanted: &Value,
    tags: &BTreeMap<String, String>,
) -> Result<Planned, StepError> {
    let arn = policy_arn(cluster, name);
    let found = policy(cx, &arn).await?;
    let changes = decide_policy(cluster, &arn, wanted, tags, found.as_ref())?;
    let told: Vec<String> = changes
        .iter()
        .map(|change| match change {
            PolicyChange::Create => "it is not there".to_owned(),
            PolicyChange::Document => "it says something else".to_owned(),
            PolicyChange::Tags(tags) => tags::told(tags),
        })
        .collect();
    Ok(Planned::of("IAM policy", name, found.map(|_| told.as_slice())))
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
    let arn = policy_arn(cluster, name);
    let found = policy(cx, &arn).await?;
    let changes = decide_policy(cluster, &arn, wanted, tags, found.as_ref())?;
    if !changes.is_empty() {
        cx.state.hold(run, cluster).await?;
    }
    for change in changes {
        match change {
            PolicyChange::Create => {
                let call = iam.create_policy().policy_name(name).policy_document(wanted.to_string());
                match call.set_tags(Some(as_tags(tags)?)).send().await {
                    Ok(_) => {}
                    Err(error) if code(&error) == Some("EntityAlreadyExists") => {
                        let cause = format!("The policy {name} appeared while it was being made.");
                        return Err(StepError::new(ErrorName::PropagationPending, cause));
                    }
                    Err(error) => return Err(refused("iam:CreatePolicy", &error)),
                }
            }
            PolicyChange::Document => {
                make_room(cx, &arn).await?;
                let call = iam.create_policy_version().policy_arn(&arn).policy_document(wanted.to_string());
                call.set_as_default(true).send().await.during("iam:CreatePolicyVersion")?;
            }
            PolicyChange::Tags(lacking) => {
                let call = iam.tag_policy().policy_arn(&arn).set_tags(Some(as_tags(&lacking)?));
                call.send().await.during("iam:TagPolicy")?;
            }
        }
    }
    Ok(arn)
}

/// Removes the oldest version that is not in force where a policy has the five that IAM keeps.
async fn make_room(cx: &Context, arn: &str) -> Result<(), StepError> {
    let iam = cx.aws.iam();
    let versions = iam
        .list_policy_versions()
        .policy_arn(arn)
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>()
        .await
        .during("iam:ListPolicyVersions")?;
    if versions.len() >= 5
        && let Some(oldest) = versions.iter().filter(|v| !v.is_default_version()).min_by_key(|v| v.create_date())
    {
        let call = iam.delete_policy_version().policy_arn(arn).set_version_id(oldest.version_id.clone());
        call.send().await.during("iam:DeletePolicyVersion")?;
    }
    Ok(())
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
    fn a_policy_is_changed_where_it_differs_and_a_strangers_is_refused() {
        let (says, tags) = (json!({"Statement": [{"Action": "a"}]}), wanted().tags);
        let decided = |found: Option<FoundPolicy>| decide_policy(&demo(), "arn:p", &says, &tags, found.as_ref());
        assert_eq!(decided(None).unwrap(), [PolicyChange::Create]);
        let right = FoundPolicy { says: json!({"Statement": {"Action": ["a"]}}), tags: tags.clone() };
        assert_eq!(decided(Some(right.clone())).unwrap(), []);
        let other = FoundPolicy { says: json!({"Statement": []}), ..right.clone() };
        assert_eq!(decided(Some(other)).unwrap(), [PolicyChange::Document]);
        let strangers = FoundPolicy { tags: BTreeMap::new(), ..right };
        assert_eq!(decided(Some(strangers)).unwrap_err().name, ErrorName::NotOurs);
    }

    #[test]
    fn a_stranger_of_the_same_name_is_refused() {
        for tags in [BTreeMap::new(), BTreeMap::from([(names::CLUSTER_TAG.to_owned(), "other".to_owned())])] {
            let error = decide(&demo(), &wanted(), Some(&FoundRole { tags, ..found() })).unwrap_err();
            assert_eq!(error.name, ErrorName::NotOurs);
        }
    }
}
