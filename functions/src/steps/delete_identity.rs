//! delete-identity: instance profiles, roles, managed policies and OIDC providers of a cluster. Service-linked roles stay.

use std::collections::BTreeMap;

use aws_sdk_iam::types::{PolicyScopeType, Tag};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_karpenter::policy::{Scope, controller_policies};
use slipway_statemachine::{ClusterKey, ErrorName, Run, Step, StepError, names};

use crate::{
    Context,
    aws::error::{Deleted as _, During as _, code, is_gone, refused},
    ownership::{owned, owned_or_named},
};

/// Deletes a cluster's identities.
#[derive(Debug)]
pub struct DeleteIdentity;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
}

/// What was deleted by this call.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Names of instance profiles.
    pub instance_profiles: Vec<String>,
    /// Names of roles.
    pub roles: Vec<String>,
    /// ARNs of managed policies.
    pub policies: Vec<String>,
    /// ARNs of OIDC providers.
    pub providers: Vec<String>,
}

impl Step for DeleteIdentity {
    const NAME: &'static str = "delete-identity";
    const ERRORS: &'static [ErrorName] = &[ErrorName::DeletionBlocked];
    type Input = Input;
    type Output = Output;
}

/// What the roles of a cluster are for, as [`names::role`] takes it.
const ROLES: [&str; 4] = ["cluster", "core", "node", "controller"];

/// The names that Slipway gives to a cluster's roles.
fn role_names(cluster: &ClusterKey) -> Vec<String> {
    ROLES.iter().map(|suffix| names::role(cluster, suffix)).collect()
}

/// The names that Slipway gives to a cluster's managed policies.
fn policy_names(cluster: &ClusterKey) -> Vec<String> {
    let nowhere = Scope {
        account: &cluster.account,
        region: &cluster.region,
        cluster: &cluster.name,
        cluster_arn: "",
        queue_arn: "",
        node_role_arn: "",
    };
    controller_policies(&nowhere).iter().map(|policy| names::policy(cluster, policy.part)).collect()
}

/// The path of the profiles that Karpenter makes for a cluster. It ends in a slash, so that no longer name begins so.
fn karpenter_path(cluster: &ClusterKey) -> String {
    format!("/karpenter/{}/{}/", cluster.region, cluster.name)
}

/// Whether a role or policy is worth asking for its tags, which IAM's lists leave out: it is called what we call ours,
/// or after the cluster.
fn candidate(cluster: &ClusterKey, name: &str, wanted: &[String]) -> bool {
    wanted.iter().any(|wanted| wanted == name)
        || name.to_ascii_lowercase().contains(&cluster.name.to_ascii_lowercase())
        // A long name of ours is cut short.
        || name.starts_with("slipway-eks-")
}

/// Deletes what is there: profiles first, then roles, which may not be in one, then policies, which may be on none.
///
/// # Errors
/// `DeletionBlocked` names what still holds a role or policy.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Input { run, cluster } = &input;
    let mut deleted = Output::default();
    let roles = roles(cx, cluster).await?;
    for (profile, role) in profiles(cx, cluster, &roles).await? {
        cx.state.hold(run, cluster).await?;
        if let Some(role) = role {
            let call = cx.aws.iam().remove_role_from_instance_profile().instance_profile_name(&profile).role_name(role);
            call.send().await.deleted("iam:RemoveRoleFromInstanceProfile")?;
        }
        let call = cx.aws.iam().delete_instance_profile().instance_profile_name(&profile);
        call.send().await.deleted("iam:DeleteInstanceProfile")?;
        deleted.instance_profiles.push(profile);
    }
    for role in roles {
        cx.state.hold(run, cluster).await?;
        delete_role(cx, &role).await?;
        deleted.roles.push(role);
    }
    for arn in policies(cx, cluster).await? {
        cx.state.hold(run, cluster).await?;
        delete_policy(cx, &arn).await?;
        deleted.policies.push(arn);
    }
    for arn in providers(cx, cluster).await? {
        cx.state.hold(run, cluster).await?;
        let call = cx.aws.iam().delete_open_id_connect_provider().open_id_connect_provider_arn(&arn);
        call.send().await.deleted("iam:DeleteOpenIDConnectProvider")?;
        deleted.providers.push(arn);
    }
    Ok(deleted)
}

fn tags_of(tags: Option<Vec<Tag>>) -> BTreeMap<String, String> {
    tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect()
}

/// The cluster's roles.
async fn roles(cx: &Context, cluster: &ClusterKey) -> Result<Vec<String>, StepError> {
    let (iam, wanted) = (cx.aws.iam(), role_names(cluster));
    let mut pages = iam.list_roles().into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(role) = pages.next().await {
        let role = role.during("iam:ListRoles")?;
        if role.path.starts_with("/aws-service-role/") || !candidate(cluster, &role.role_name, &wanted) {
            continue;
        }
        let tags = match iam.get_role().role_name(&role.role_name).send().await {
            Ok(answer) => tags_of(answer.role.and_then(|role| role.tags)),
            Err(error) if code(&error).is_some_and(is_gone) => continue,
            Err(error) => return Err(refused("iam:GetRole", &error)),
        };
        if owned_or_named(cluster, &tags, &role.role_name, &wanted) {
            found.push(role.role_name);
        }
    }
    Ok(found)
}

/// The instance profiles that Karpenter made for the cluster, or that hold a role of it; each with its role.
async fn profiles(
    cx: &Context,
    cluster: &ClusterKey,
    roles: &[String],
) -> Result<BTreeMap<String, Option<String>>, StepError> {
    let iam = cx.aws.iam();
    let mut found = BTreeMap::new();
    let mut pages = iam.list_instance_profiles().path_prefix(karpenter_path(cluster)).into_paginator().items().send();
    while let Some(profile) = pages.next().await {
        let profile = profile.during("iam:ListInstanceProfiles")?;
        let role = profile.roles.into_iter().next().map(|role| role.role_name);
        found.insert(profile.instance_profile_name, role);
    }
    for role in roles {
        let mut pages = iam.list_instance_profiles_for_role().role_name(role).into_paginator().items().send();
        while let Some(profile) = pages.next().await {
            match profile {
                Ok(profile) => {
                    found.insert(profile.instance_profile_name, Some(role.clone()));
                }
                Err(error) if code(&error).is_some_and(is_gone) => break,
                Err(error) => return Err(refused("iam:ListInstanceProfilesForRole", &error)),
            }
        }
    }
    Ok(found)
}

/// A role goes only without policies.
async fn delete_role(cx: &Context, role: &str) -> Result<(), StepError> {
    let iam = cx.aws.iam();
    let attached: Result<Vec<_>, _> =
        iam.list_attached_role_policies().role_name(role).into_paginator().items().send().collect().await;
    let attached = match attached {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(()),
        attached => attached.during("iam:ListAttachedRolePolicies")?,
    };
    for arn in attached.into_iter().filter_map(|policy| policy.policy_arn) {
        let call = iam.detach_role_policy().role_name(role).policy_arn(arn);
        call.send().await.deleted("iam:DetachRolePolicy")?;
    }
    let inline: Result<Vec<_>, _> =
        iam.list_role_policies().role_name(role).into_paginator().items().send().collect().await;
    for name in inline.during("iam:ListRolePolicies")? {
        let call = iam.delete_role_policy().role_name(role).policy_name(name);
        call.send().await.deleted("iam:DeleteRolePolicy")?;
    }
    iam.delete_role()
        .role_name(role)
        .send()
        .await
        .deleted("iam:DeleteRole")
        .map_err(|error| held("role", role, error))?;
    Ok(())
}

fn held(kind: &str, name: &str, mut error: StepError) -> StepError {
    if error.name == ErrorName::DeletionBlocked {
        error.cause = format!("The {kind} {name} is still held: {}", error.cause);
    }
    error
}

/// ARNs of the cluster's managed policies.
async fn policies(cx: &Context, cluster: &ClusterKey) -> Result<Vec<String>, StepError> {
    let (iam, wanted) = (cx.aws.iam(), policy_names(cluster));
    let mut pages = iam.list_policies().scope(PolicyScopeType::Local).into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(policy) = pages.next().await {
        let policy = policy.during("iam:ListPolicies")?;
        let (Some(name), Some(arn)) = (policy.policy_name, policy.arn) else { continue };
        if !candidate(cluster, &name, &wanted) {
            continue;
        }
        let tags = match iam.get_policy().policy_arn(&arn).send().await {
            Ok(answer) => tags_of(answer.policy.and_then(|policy| policy.tags)),
            Err(error) if code(&error).is_some_and(is_gone) => continue,
            Err(error) => return Err(refused("iam:GetPolicy", &error)),
        };
        if owned_or_named(cluster, &tags, &name, &wanted) {
            found.push(arn);
        }
    }
    Ok(found)
}

/// A policy goes only when nobody has it, and without old versions. Whoever else has it is somebody's own choice, and
/// named.
async fn delete_policy(cx: &Context, arn: &str) -> Result<(), StepError> {
    let iam = cx.aws.iam();
    let mut pages = iam.list_entities_for_policy().policy_arn(arn).into_paginator().send();
    let mut holders = Vec::new();
    while let Some(page) = pages.next().await {
        match page {
            Ok(page) => {
                holders.extend(page.policy_roles.unwrap_or_default().into_iter().filter_map(|role| role.role_name));
                holders.extend(page.policy_users.unwrap_or_default().into_iter().filter_map(|user| user.user_name));
                holders.extend(page.policy_groups.unwrap_or_default().into_iter().filter_map(|group| group.group_name));
            }
            Err(error) if code(&error).is_some_and(is_gone) => return Ok(()),
            Err(error) => return Err(refused("iam:ListEntitiesForPolicy", &error)),
        }
    }
    if !holders.is_empty() {
        let cause = format!("The policy {arn} is attached to {}, which Slipway did not make.", holders.join(", "));
        return Err(StepError::new(ErrorName::DeletionBlocked, cause));
    }
    let versions: Result<Vec<_>, _> =
        iam.list_policy_versions().policy_arn(arn).into_paginator().items().send().collect().await;
    for version in versions.during("iam:ListPolicyVersions")? {
        if let Some(id) = version.version_id.filter(|_| !version.is_default_version) {
            let call = iam.delete_policy_version().policy_arn(arn).version_id(id);
            call.send().await.deleted("iam:DeletePolicyVersion")?;
        }
    }
    let gone = iam.delete_policy().policy_arn(arn).send().await.deleted("iam:DeletePolicy");
    gone.map_err(|error| held("policy", arn, error)).map(|_| ())
}

/// ARNs of EKS's issuers' providers that bear the cluster's tag. The provider of a cluster that is still there goes with
/// it (see `delete-cluster`); these are of clusters that went without us.
async fn providers(cx: &Context, cluster: &ClusterKey) -> Result<Vec<String>, StepError> {
    let iam = cx.aws.iam();
    let all = iam.list_open_id_connect_providers().send().await.during("iam:ListOpenIDConnectProviders")?;
    let issuer = format!("/oidc.eks.{}.", cluster.region);
    let mut found = Vec::new();
    for arn in all.open_id_connect_provider_list.unwrap_or_default().into_iter().filter_map(|provider| provider.arn) {
        if !arn.contains(&issuer) {
            continue;
        }
        match iam.get_open_id_connect_provider().open_id_connect_provider_arn(&arn).send().await {
            Ok(answer) if owned(cluster, &tags_of(answer.tags.clone())) => found.push(arn),
            Ok(_) => {}
            Err(error) if code(&error).is_some_and(is_gone) => {}
            Err(error) => return Err(refused("iam:GetOpenIDConnectProvider", &error)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: name.into() }
    }

    #[test]
    fn what_is_made_is_what_is_looked_for() {
        let demo = cluster("demo");
        assert_eq!(role_names(&demo).len(), 4);
        assert_eq!(policy_names(&demo).len(), 6);
        assert!(policy_names(&demo).contains(&"slipway-eks-demo-eu-west-1-interruption".to_owned()));
    }

    #[test]
    fn neighbours_share_no_path_and_no_name() {
        for neighbour in ["demo-2", "demo_2", "dem", "demo-eu-west-1"] {
            let other = cluster(neighbour);
            let path = karpenter_path(&cluster("demo"));
            assert!(!karpenter_path(&other).starts_with(&path) && !path.starts_with(&karpenter_path(&other)));
            for names in [role_names, policy_names] {
                let own = names(&cluster("demo"));
                assert!(names(&other).iter().all(|name| !own.contains(name)), "{neighbour}");
            }
        }
    }

    #[test]
    fn whatever_may_be_ours_is_asked_for_its_tags_and_nothing_else() {
        let long = cluster(&"n".repeat(100));
        assert!(candidate(&long, "slipway-eks-nnnn-1a2b3c4d-addon", &[]));
        assert!(candidate(&cluster("demo"), "KarpenterNodeRole-demo", &[]));
        assert!(!candidate(&cluster("demo"), "AdministratorAccess", &[]));
    }
}
