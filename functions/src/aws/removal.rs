//! Removes one thing that an audit found, each kind as its service wants it removed. What holds it is named by
//! `DeletionBlocked`; what is gone already is no error.

use slipway_statemachine::{ClusterKey, ErrorName, Finding, Kind, StepError};

use super::{
    error::{Deleted as _, During as _, code, is_gone, refused},
    logs,
};
use crate::Context;

/// Removes a finding, or asks its service to.
///
/// # Errors
/// `DeletionBlocked` where something else holds it, else what AWS refused.
pub async fn remove(cx: &Context, finding: &Finding) -> Result<(), StepError> {
    let Finding { arn, name, .. } = finding;
    let (ec2, eks, iam) = (cx.aws.ec2(), cx.aws.eks(), cx.aws.iam());
    let cluster = arn.split('/').nth(1).unwrap_or_default();
    match finding.kind {
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
            let cause = format!("{arn} is a {}, which a sweep leaves alone.", finding.kind.as_str());
            Err(StepError::new(ErrorName::Internal, cause))
        }
    }
    .map(|_| ())
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

/// Its rules go first: two groups whose rules name each other hold each other.
async fn security_group(cx: &Context, id: &str) -> Result<bool, StepError> {
    let ec2 = cx.aws.ec2();
    let described = ec2.describe_security_groups().group_ids(id).send().await;
    let groups = match described {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
        described => described.during("ec2:DescribeSecurityGroups")?.security_groups.unwrap_or_default(),
    };
    for group in groups {
        let names_a_group = |rule: &&aws_sdk_ec2::types::IpPermission| !rule.user_id_group_pairs().is_empty();
        let incoming: Vec<_> = group.ip_permissions().iter().filter(names_a_group).cloned().collect();
        if !incoming.is_empty() {
            let call = ec2.revoke_security_group_ingress().group_id(id).set_ip_permissions(Some(incoming));
            call.send().await.deleted("ec2:RevokeSecurityGroupIngress")?;
        }
        let outgoing: Vec<_> = group.ip_permissions_egress().iter().filter(names_a_group).cloned().collect();
        if !outgoing.is_empty() {
            let call = ec2.revoke_security_group_egress().group_id(id).set_ip_permissions(Some(outgoing));
            call.send().await.deleted("ec2:RevokeSecurityGroupEgress")?;
        }
    }
    ec2.delete_security_group().group_id(id).send().await.deleted("ec2:DeleteSecurityGroup")
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
    for policy in inline.during("iam:ListRolePolicies")? {
        let call = iam.delete_role_policy().role_name(name).policy_name(policy);
        call.send().await.deleted("iam:DeleteRolePolicy")?;
    }
    iam.delete_role().role_name(name).send().await.deleted("iam:DeleteRole")
}

/// Its old versions go first. Whoever still has it holds it.
async fn policy(cx: &Context, arn: &str) -> Result<bool, StepError> {
    let iam = cx.aws.iam();
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
    iam.delete_policy().policy_arn(arn).send().await.deleted("iam:DeletePolicy")
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
