//! delete-remnants: what nodes and their controllers leave in EC2: launch templates, detached network interfaces, volumes
//! of nodes, security groups.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{IpPermission, SecurityGroup, VolumeState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Progress, Run, Step, StepError, names::DISCOVERY_TAG};

use crate::{
    Context,
    aws::{
        ec2::{cluster_filter, filter, tags_of},
        error::{Deleted as _, During as _},
        interfaces,
    },
    ownership::{STACK_TAG, owned},
};

/// Deletes what is left in EC2.
#[derive(Debug)]
pub struct DeleteRemnants;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// What only bears the tag by which Karpenter discovers it goes too: somebody else made it for this cluster.
    #[serde(default)]
    pub adopt: bool,
    /// Seconds that this run has waited for what holds a security group.
    #[serde(default)]
    pub waited: u32,
}

/// What was deleted by this call.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Ids of launch templates.
    pub launch_templates: Vec<String>,
    /// Ids of network interfaces.
    pub network_interfaces: Vec<String>,
    /// Ids of volumes.
    pub volumes: Vec<String>,
    /// Ids of security groups.
    pub security_groups: Vec<String>,
}

impl Step for DeleteRemnants {
    const NAME: &'static str = "delete-remnants";
    const ERRORS: &'static [ErrorName] = &[ErrorName::DeletionBlocked];
    type Input = Input;
    type Output = Progress<Output>;
}

/// Interfaces of what was just deleted leave a security group within minutes.
const ASK_AGAIN: u32 = 15;
/// After so many seconds what holds a security group is the run's failure.
const PATIENCE: u32 = 600;

/// Whether a thing goes with the cluster: its tags say so, and no stack has it. The discovery tag alone counts only for
/// an adopted cluster: people put it on what is theirs, so that Karpenter finds it.
fn goes(cluster: &ClusterKey, tags: &BTreeMap<String, String>, adopt: bool) -> bool {
    let mut tags = tags.clone();
    if !adopt {
        tags.remove(DISCOVERY_TAG);
    }
    !tags.contains_key(STACK_TAG) && owned(cluster, &tags)
}

/// Whether an interface that nothing uses is the cluster's: by its tags, or as EKS and the VPC CNI describe theirs.
fn leaked(cluster: &ClusterKey, tags: &BTreeMap<String, String>, description: &str) -> bool {
    goes(cluster, tags, false) || description == format!("Amazon EKS {}", cluster.name)
}

/// Whether a volume is a node's own disk. One that holds somebody's data, made for a claim, is never ours to delete.
fn nodes_own(cluster: &ClusterKey, tags: &BTreeMap<String, String>) -> bool {
    let of_claim = tags.keys().any(|key| key.starts_with("kubernetes.io/created-for/") || key == "CSIVolumeName");
    let of_node = tags.keys().any(|key| key.starts_with("karpenter.sh/nodepool") || key == "eks:nodegroup-name");
    !of_claim && of_node && goes(cluster, tags, false)
}

/// Deletes what is left, in the order in which things hold each other.
///
/// # Errors
/// `DeletionBlocked` names the interface, and whose it is, that holds a security group.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let mut deleted = Output {
        launch_templates: delete_launch_templates(cx, &input).await?,
        network_interfaces: delete_interfaces(cx, &input).await?,
        volumes: delete_volumes(cx, &input).await?,
        security_groups: Vec::new(),
    };
    let mut held = Vec::new();
    for group in groups(cx, &input).await? {
        match delete_group(cx, &input, &group).await {
            Ok(()) => deleted.security_groups.extend(group.group_id),
            Err(error) if error.name == ErrorName::DeletionBlocked => {
                held.push(holders(cx, group.group_id().unwrap_or_default()).await?);
            }
            Err(error) => return Err(error),
        }
    }
    if held.is_empty() {
        Ok(Progress::done(deleted))
    } else if input.waited >= PATIENCE {
        Err(StepError::new(ErrorName::DeletionBlocked, held.join(" ")))
    } else {
        Ok(Progress::wait(ASK_AGAIN, held.join(" ")))
    }
}

async fn delete_launch_templates(cx: &Context, input: &Input) -> Result<Vec<String>, StepError> {
    let ec2 = cx.aws.ec2();
    let mut pages =
        ec2.describe_launch_templates().filters(cluster_filter(&input.cluster)).into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(template) = pages.next().await {
        let template = template.during("ec2:DescribeLaunchTemplates")?;
        if goes(&input.cluster, &tags_of(template.tags()), input.adopt) {
            found.extend(template.launch_template_id);
        }
    }
    for id in &found {
        cx.state.hold(&input.run, &input.cluster).await?;
        ec2.delete_launch_template().launch_template_id(id).send().await.deleted("ec2:DeleteLaunchTemplate")?;
    }
    Ok(found)
}

async fn delete_interfaces(cx: &Context, input: &Input) -> Result<Vec<String>, StepError> {
    let ec2 = cx.aws.ec2();
    let unused = filter("status", ["available"]);
    let mut pages = ec2.describe_network_interfaces().filters(unused).into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(interface) = pages.next().await {
        let interface = interface.during("ec2:DescribeNetworkInterfaces")?;
        let tags = tags_of(interface.tag_set());
        if leaked(&input.cluster, &tags, interface.description().unwrap_or_default()) {
            found.extend(interface.network_interface_id);
        }
    }
    for id in &found {
        cx.state.hold(&input.run, &input.cluster).await?;
        let call = ec2.delete_network_interface().network_interface_id(id);
        call.send().await.deleted("ec2:DeleteNetworkInterface")?;
    }
    Ok(found)
}

async fn delete_volumes(cx: &Context, input: &Input) -> Result<Vec<String>, StepError> {
    let ec2 = cx.aws.ec2();
    let mut pages = ec2.describe_volumes().filters(cluster_filter(&input.cluster)).into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(volume) = pages.next().await {
        let volume = volume.during("ec2:DescribeVolumes")?;
        let unused = volume.state() == Some(&VolumeState::Available);
        if unused && nodes_own(&input.cluster, &tags_of(volume.tags())) {
            found.extend(volume.volume_id);
        }
    }
    for id in &found {
        cx.state.hold(&input.run, &input.cluster).await?;
        ec2.delete_volume().volume_id(id).send().await.deleted("ec2:DeleteVolume")?;
    }
    Ok(found)
}

/// The security groups that EKS, Karpenter or Kubernetes' controllers made for the cluster.
async fn groups(cx: &Context, input: &Input) -> Result<Vec<SecurityGroup>, StepError> {
    let call = cx.aws.ec2().describe_security_groups().filters(cluster_filter(&input.cluster));
    let all: Result<Vec<SecurityGroup>, _> = call.into_paginator().items().send().collect().await;
    let mut groups = all.during("ec2:DescribeSecurityGroups")?;
    groups.retain(|group| goes(&input.cluster, &tags_of(group.tags()), input.adopt));
    Ok(groups)
}

/// The permissions of a group that name groups: such a rule keeps the group that it names from going.
fn naming_groups(permissions: &[IpPermission]) -> Vec<IpPermission> {
    permissions.iter().filter(|rule| !rule.user_id_group_pairs().is_empty()).cloned().collect()
}

async fn delete_group(cx: &Context, input: &Input, group: &SecurityGroup) -> Result<(), StepError> {
    let (ec2, id) = (cx.aws.ec2(), group.group_id().unwrap_or_default());
    cx.state.hold(&input.run, &input.cluster).await?;
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
    ec2.delete_security_group().group_id(id).send().await.deleted("ec2:DeleteSecurityGroup").map(|_| ())
}

/// A sentence on what holds a security group.
async fn holders(cx: &Context, group: &str) -> Result<String, StepError> {
    let users = interfaces::described(cx, filter("group-id", [group])).await?;
    if !users.is_empty() {
        return Ok(format!("The security group {group} is in use by {}.", users.join(", ")));
    }
    let naming = cx.aws.ec2().describe_security_groups().filters(filter("ip-permission.group-id", [group]));
    let naming: Result<Vec<SecurityGroup>, _> = naming.into_paginator().items().send().collect().await;
    let naming: Vec<String> =
        naming.during("ec2:DescribeSecurityGroups")?.into_iter().filter_map(|other| other.group_id).collect();
    Ok(format!("The security group {group} is named by rules of {}.", naming.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() }
    }

    fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_stack_has_stays_with_its_stack() {
        let made = [("slipway:cluster", "demo")];
        assert!(goes(&demo(), &tags(&made), false));
        assert!(!goes(&demo(), &tags(&[made[0], (STACK_TAG, "slipway-network-demo")]), false));
    }

    #[test]
    fn what_karpenter_only_discovers_goes_with_an_adopted_cluster_alone() {
        let found = tags(&[(DISCOVERY_TAG, "demo")]);
        assert!(!goes(&demo(), &found, false));
        assert!(goes(&demo(), &found, true));
        assert!(!goes(&demo(), &tags(&[(DISCOVERY_TAG, "demo-2")]), true));
    }

    #[test]
    fn interfaces_are_told_apart_by_the_whole_name() {
        assert!(leaked(&demo(), &tags(&[]), "Amazon EKS demo"));
        assert!(leaked(&demo(), &tags(&[("cluster.k8s.amazonaws.com/name", "demo")]), "aws-K8S-i-0123"));
        for neighbour in ["demo-2", "demo_2"] {
            assert!(!leaked(&demo(), &tags(&[]), &format!("Amazon EKS {neighbour}")));
            assert!(!leaked(&demo(), &tags(&[("cluster.k8s.amazonaws.com/name", neighbour)]), "aws-K8S-i-0123"));
        }
    }

    #[test]
    fn a_volume_with_somebodys_data_is_never_deleted() {
        let node = ("karpenter.sh/nodepool", "x86");
        let owned = ("kubernetes.io/cluster/demo", "owned");
        assert!(nodes_own(&demo(), &tags(&[node, owned])));
        assert!(!nodes_own(&demo(), &tags(&[owned])), "who knows what it is");
        assert!(!nodes_own(&demo(), &tags(&[node, owned, ("kubernetes.io/created-for/pvc/name", "data")])));
        assert!(!nodes_own(&demo(), &tags(&[node, ("kubernetes.io/cluster/demo-2", "owned")])));
    }

    #[test]
    fn only_rules_that_name_groups_are_revoked() {
        let pair = aws_sdk_ec2::types::UserIdGroupPair::builder().group_id("sg-1").build();
        let naming = IpPermission::builder().user_id_group_pairs(pair).build();
        let open = IpPermission::builder().ip_protocol("-1").build();
        assert_eq!(naming_groups(&[naming.clone(), open]), [naming]);
    }
}
