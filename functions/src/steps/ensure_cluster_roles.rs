//! ensure-cluster-roles: the roles of the control plane, of the core nodes and of Karpenter's nodes, and the four
//! service-linked roles that a first cluster in an account lacks.

use std::collections::BTreeMap;

use futures::future::{try_join, try_join_all, try_join3};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_statemachine::{ClusterKey, ErrorName, Run, Step, StepError, names, plan::Planned};

use crate::{
    Context,
    aws::{
        iam::{Role, ensure_role, ensure_service_linked_role, plan_role},
        partition,
    },
};

/// Makes the roles that a cluster and its nodes run as.
#[derive(Debug)]
pub struct EnsureClusterRoles;

/// For which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The spec's tags.
    pub tags: BTreeMap<String, String>,
}

/// The roles.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// What the control plane runs as.
    pub cluster_role_arn: String,
    /// What the core node group's instances run as.
    pub core_node_role_arn: String,
    /// What Karpenter's instances run as.
    pub karpenter_node_role_arn: String,
    /// The same by name, as an EC2NodeClass wants it.
    pub karpenter_node_role_name: String,
}

impl Step for EnsureClusterRoles {
    const NAME: &'static str = "ensure-cluster-roles";
    const ERRORS: &'static [ErrorName] = &[ErrorName::NotOurs];
    type Input = Input;
    type Output = Output;
}

/// What a node needs: to register, to give pods addresses, to pull images, and to be reached by Session Manager.
const NODE_POLICIES: [&str; 4] = [
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonSSMManagedInstanceCore",
];

/// EKS, its node groups, the Auto Scaling groups behind them, and Spot: each refuses its first use without its role.
const SERVICE_LINKED: [(&str, &str); 4] = [
    ("eks.amazonaws.com", "AWSServiceRoleForAmazonEKS"),
    ("eks-nodegroup.amazonaws.com", "AWSServiceRoleForAmazonEKSNodegroup"),
    ("autoscaling.amazonaws.com", "AWSServiceRoleForAutoScaling"),
    ("spot.amazonaws.com", "AWSServiceRoleForEC2Spot"),
];

/// The three roles as they should be: the cluster's, the core nodes', Karpenter's nodes'.
fn decide(cluster: &ClusterKey, tags: &BTreeMap<String, String>) -> [Role; 3] {
    let managed = |name: &str| format!("arn:{}:iam::aws:policy/{name}", partition(&cluster.region));
    let role = |suffix, description, trust, policies: &[&str]| Role {
        name: names::role(cluster, suffix),
        description,
        trust,
        policies: policies.iter().map(|name| managed(name)).collect(),
        tags: names::tags(cluster, tags),
    };
    [
        role("cluster", "The control plane of an EKS cluster", cluster_trust(), &["AmazonEKSClusterPolicy"]),
        role("core", "The core nodes of an EKS cluster", node_trust(), &NODE_POLICIES),
        role("node", "The nodes that Karpenter launches", node_trust(), &NODE_POLICIES),
    ]
}

fn cluster_trust() -> Value {
    trust("eks.amazonaws.com", &["sts:AssumeRole", "sts:TagSession"])
}

fn node_trust() -> Value {
    trust("ec2.amazonaws.com", &["sts:AssumeRole"])
}

fn trust(service: &str, actions: &[&str]) -> Value {
    json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Principal": { "Service": service }, "Action": actions }],
    })
}

/// Makes what is missing, corrects what differs.
///
/// # Errors
/// `NotOurs` when a role of the name is there without our tag.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Input { run, cluster, tags } = input;
    let [control_plane, core, node] = decide(&cluster, &tags);
    let roles = try_join3(
        ensure_role(cx, &run, &cluster, &control_plane),
        ensure_role(cx, &run, &cluster, &core),
        ensure_role(cx, &run, &cluster, &node),
    );
    let linked = try_join_all(SERVICE_LINKED.map(|(service, name)| ensure_service_linked_role(cx, service, name)));
    let ((cluster_role_arn, core_node_role_arn, karpenter_node_role_arn), _) = try_join(roles, linked).await?;
    Ok(Output { cluster_role_arn, core_node_role_arn, karpenter_node_role_arn, karpenter_node_role_name: node.name })
}

/// What would become of the roles. A service's own role is made by the first who needs it and costs nothing.
///
/// # Errors
/// `NotOurs` as in [`run`].
pub async fn plan(
    cx: &Context,
    cluster: &ClusterKey,
    tags: &BTreeMap<String, String>,
) -> Result<Vec<Planned>, StepError> {
    try_join_all(decide(cluster, tags).iter().map(|role| plan_role(cx, cluster, role))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_no_more_than_they_need_and_the_cluster_is_trusted_to_eks_alone() {
        let cluster = ClusterKey { account: "111122223333".into(), region: "cn-north-1".into(), name: "demo".into() };
        let [control_plane, core, node] = decide(&cluster, &BTreeMap::new());
        assert_eq!(control_plane.policies, ["arn:aws-cn:iam::aws:policy/AmazonEKSClusterPolicy"]);
        assert_eq!(control_plane.trust["Statement"][0]["Principal"], json!({"Service": "eks.amazonaws.com"}));
        assert_eq!(core.policies, node.policies);
        assert_eq!(node.policies.len(), 4);
        assert_ne!(core.name, node.name);
        assert_eq!(node.tags[names::CLUSTER_TAG], "demo");
    }
}
