//! Removes one thing of a cluster, each kind as its service wants it removed: for the teardown's steps and the sweep, which
//! find what goes. What holds it is named by `DeletionBlocked`; what is gone already is no error.

use aws_sdk_ec2::types::{IpPermission, SecurityGroup};
use slipway_statemachine::{ClusterKey, ErrorName, Kind, StepError};

use super::{
    ec2::filter,
    error::{Deleted as _, During as _, code, is_gone, refused},
    interfaces, logs,
};
use crate::Context;

/// Removes a thing by its ARN and what its service calls it, or asks its service to. False: it was gone already.
///
/// # Errors
/// `DeletionBlocked` where something else holds it, else what AWS refused.
pub async fn remove(cx: &Context, kind: Kind, arn: &str, name: &str) -> Result<bool, StepError> {
    let (ec2, eks, iam) = (cx.aws.ec2(), cx.aws.eks(), cx.aws.iam());
    // `arn:…:nodegroup/<cluster>/<name>/<id>`
    let cluster = arn.split('/').nth(1).unwrap_or_default();
    match kind {
        Kind::NodeGroup => {
            let call = eks.delete_nodegroup().cluster_name(cluster).nodegroup_name(name);
            call.send().await.deleted("eks:DeleteNodegroup")
        }
        Kind::FargateProfile => {
            let call = eks.delete_fargate_profile().cluster_name(cluster).fargate_profile_name(name);
            call.send().await.deleted("eks:DeleteFargateProfile")
        }
        Kind::Cluster => eks.delete_cluster().name(name).send().await.deleted("eks:DeleteCluster"),
        Kind::Instance => ec2.terminate_instances().instance_ids(name).send().await.deleted("ec2:TerminateInstances"),
        Kind::LoadBalancer => balancer(cx, arn, name).await,
        Kind::TargetGroup => {
            let call = cx.aws.elbv2().delete_target_group().target_group_arn(arn);
            call.send().await.deleted("elasticloadbalancing:DeleteTargetGroup")
        }
        Kind::Volume => ec2.delete_volume().volume_id(name).send().await.deleted("ec2:DeleteVolume"),
        Kind::NetworkInterface => {
            let call = ec2.delete_network_interface().network_interface_id(name);
            call.send().await.deleted("ec2:DeleteNetworkInterface")
        }
        Kind::LaunchTemplate => {
            let call = ec2.delete_launch_template().launch_template_id(name);
            call.send().await.deleted("ec2:DeleteLaunchTemplate")
        }
        Kind::SecurityGroup => security_group(cx, name).await,
        Kind::Rule => rule(cx, name).await,
        Kind::Queue => queue(cx, name).await,
        Kind::InstanceProfile => instance_profile(cx, name).await,
        Kind::Role => role(cx, name).await,
        Kind::Policy => policy(cx, arn).await,
        Kind::OidcProvider => {
            let call = iam.delete_open_id_connect_provider().open_id_connect_provider_arn(arn);
            call.send().await.deleted("iam:DeleteOpenIDConnectProvider")
        }
        Kind::LogGroup => logs::delete_log_group(cx, name).await,
        Kind::Stack => {
            let call = cx.aws.cloudformation().delete_stack().stack_name(name);
            call.send().await.deleted("cloudformation:DeleteStack")
        }
        Kind::RegistryRow => forget(cx, arn).await,
        Kind::NatGateway | Kind::Address | Kind::VpcEndpoint | Kind::Vpc | Kind::Other => {
            let cause = format!("{arn} is a {}, which goes with its network or is not known.", kind.as_str());
            Err(StepError::new(ErrorName::Internal, cause))
        }
    }
}

async fn balancer(cx: &Context, arn: &str, name: &str) -> Result<bool, StepError> {
    // `loadbalancer/net/<name>/<id>` is of the second generation, `loadbalancer/<name>` of the first.
    let action = "elasticloadbalancing:DeleteLoadBalancer";
    if arn.split('/').count() > 2 {
        cx.aws.elbv2().delete_load_balancer().load_balancer_arn(arn).send().await.deleted(action)
    } else {
        cx.aws.elb().delete_load_balancer().load_balancer_name(name).send().await.deleted(action)
    }
}

/// The permissions of a group that name groups: such a rule keeps the group that it names from going.
fn naming_groups(permissions: &[IpPermission]) -> Vec<IpPermission> {
    permissions.iter().filter(|rule| !rule.user_id_group_pairs().is_empty()).cloned().collect()
}

/// Its rules go first: two groups whose rules name each other hold each other.
async fn security_group(cx: &Context, id: &str) -> Result<bool, StepError> {
    let ec2 = cx.aws.ec2();
    let groups = match ec2.describe_security_groups().group_ids(id).send().await {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
        described => described.during("ec2:DescribeSecurityGroups")?.security_groups.unwrap_or_default(),
    };
    for group in groups {
        let incoming = naming_groups(group.ip_permissions());
        if !incoming.is_empty() {
            let call = ec2.revoke_security_group_ingress().group_id(id).set_ip_permissions(Some(incoming));
            call.send().await.deleted("ec2:RevokeSecurityGroupIngress")?;
        }
        let outgoing = naming_groups(group.ip_permissions_egress());
        if !outgoing.is_empty() {
            let call = ec2.revoke_security_group_egress().group_id(id).set_ip_permissions(Some(outgoing));
            call.send().await.deleted("ec2:RevokeSecurityGroupEgress")?;
        }
    }
    match ec2.delete_security_group().group_id(id).send().await.deleted("ec2:DeleteSecurityGroup") {
        Err(error) if error.name == ErrorName::DeletionBlocked => {
            Err(StepError::new(error.name, format!("{} {}", holders_of_group(cx, id).await?, error.cause)))
        }
        other => other,
    }
}

/// A sentence on what holds a security group: whose interfaces, or which groups' rules.
async fn holders_of_group(cx: &Context, group: &str) -> Result<String, StepError> {
    let users = interfaces::described(cx, filter("group-id", [group])).await?;
    if !users.is_empty() {
        return Ok(format!("The security group {group} is in use by {}.", users.join(", ")));
    }
    let naming = cx.aws.ec2().describe_security_groups().filters(filter("ip-permission.group-id", [group]));
    let naming: Result<Vec<SecurityGroup>, _> = naming.into_paginator().items().send().collect().await;
    let naming: Vec<String> =
        naming.during("ec2:DescribeSecurityGroups")?.into_iter().filter_map(|other| other.group_id).collect();
    Ok(match naming.as_slice() {
        [] => format!("EC2 does not say what holds the security group {group}."),
        naming => format!("The security group {group} is named by rules of {}.", naming.join(", ")),
    })
}

async fn rule(cx: &Context, name: &str) -> Result<bool, StepError> {
    let events = cx.aws.events();
    let mut token = None;
    loop {
        let page = match events.list_targets_by_rule().rule(name).set_next_token(token).send().await {
            Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
            page => page.during("events:ListTargetsByRule")?,
        };
        let ids: Vec<String> = page.targets().iter().map(|target| target.id().to_owned()).collect();
        if !ids.is_empty() {
            let call = events.remove_targets().rule(name).set_ids(Some(ids));
            call.send().await.deleted("events:RemoveTargets")?;
        }
        token = page.next_token;
        if token.is_none() {
            return events.delete_rule().name(name).send().await.deleted("events:DeleteRule");
        }
    }
}

async fn queue(cx: &Context, name: &str) -> Result<bool, StepError> {
    let sqs = cx.aws.sqs();
    match sqs.get_queue_url().queue_name(name).send().await {
        Ok(found) => sqs.delete_queue().set_queue_url(found.queue_url).send().await.deleted("sqs:DeleteQueue"),
        Err(error) if code(&error).is_some_and(is_gone) => Ok(false),
        Err(error) => Err(refused("sqs:GetQueueUrl", &error)),
    }
}

async fn instance_profile(cx: &Context, name: &str) -> Result<bool, StepError> {
    let iam = cx.aws.iam();
    let profile = match iam.get_instance_profile().instance_profile_name(name).send().await {
        Ok(answer) => answer.instance_profile,
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
        Err(error) => return Err(refused("iam:GetInstanceProfile", &error)),
    };
    for role in profile.map(|profile| profile.roles).unwrap_or_default() {
        let call = iam.remove_role_from_instance_profile().instance_profile_name(name).role_name(role.role_name);
        call.send().await.deleted("iam:RemoveRoleFromInstanceProfile")?;
    }
    iam.delete_instance_profile().instance_profile_name(name).send().await.deleted("iam:DeleteInstanceProfile")
}

/// It goes only without policies.
async fn role(cx: &Context, name: &str) -> Result<bool, StepError> {
    let iam = cx.aws.iam();
    let attached: Result<Vec<_>, _> =
        iam.list_attached_role_policies().role_name(name).into_paginator().items().send().collect().await;
    let attached = match attached {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
        attached => attached.during("iam:ListAttachedRolePolicies")?,
    };
    for arn in attached.into_iter().filter_map(|policy| policy.policy_arn) {
        let call = iam.detach_role_policy().role_name(name).policy_arn(arn);
        call.send().await.deleted("iam:DetachRolePolicy")?;
    }
    let inline: Result<Vec<_>, _> =
        iam.list_role_policies().role_name(name).into_paginator().items().send().collect().await;
    let inline = match inline {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
        inline => inline.during("iam:ListRolePolicies")?,
    };
    for policy in inline {
        let call = iam.delete_role_policy().role_name(name).policy_name(policy);
        call.send().await.deleted("iam:DeleteRolePolicy")?;
    }
    let deleted = iam.delete_role().role_name(name).send().await.deleted("iam:DeleteRole");
    deleted.map_err(|error| held("role", name, error))
}

fn held(kind: &str, name: &str, mut error: StepError) -> StepError {
    if error.name == ErrorName::DeletionBlocked {
        error.cause = format!("The {kind} {name} is still held: {}", error.cause);
    }
    error
}

/// It goes only when nobody has it, and without old versions. Whoever else has it is somebody's own choice, and named.
async fn policy(cx: &Context, arn: &str) -> Result<bool, StepError> {
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
            Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
            Err(error) => return Err(refused("iam:ListEntitiesForPolicy", &error)),
        }
    }
    if !holders.is_empty() {
        let cause = format!("The policy {arn} is attached to {}, which stays.", holders.join(", "));
        return Err(StepError::new(ErrorName::DeletionBlocked, cause));
    }
    let versions: Result<Vec<_>, _> =
        iam.list_policy_versions().policy_arn(arn).into_paginator().items().send().collect().await;
    let versions = match versions {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
        versions => versions.during("iam:ListPolicyVersions")?,
    };
    for version in versions.into_iter().filter(|version| !version.is_default_version) {
        let call = iam.delete_policy_version().policy_arn(arn).set_version_id(version.version_id);
        call.send().await.deleted("iam:DeletePolicyVersion")?;
    }
    let deleted = iam.delete_policy().policy_arn(arn).send().await.deleted("iam:DeletePolicy");
    deleted.map_err(|error| held("policy", arn, error))
}

/// The registry's row, whose key is the finding's ARN; unless a run was opened for the cluster since it was read.
async fn forget(cx: &Context, partition: &str) -> Result<bool, StepError> {
    let rows = cx.state.registry().await?;
    let is_it = |cluster: &ClusterKey| crate::state::partition(cluster) == partition;
    match rows.into_iter().find(|row| is_it(&row.cluster)) {
        Some(row) => cx.state.forget(&row.cluster, &row.changed_at).await,
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_that_name_groups_are_revoked() {
        let pair = aws_sdk_ec2::types::UserIdGroupPair::builder().group_id("sg-1").build();
        let naming = IpPermission::builder().user_id_group_pairs(pair).build();
        let open = IpPermission::builder().ip_protocol("-1").build();
        assert_eq!(naming_groups(&[naming.clone(), open]), [naming]);
    }
}
