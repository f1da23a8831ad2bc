//! apply-node-pools: the EC2NodeClass and the spec's NodePools, until each says that it is Ready.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_karpenter::node_pools::{
    NodeClass, POOL_LABEL, POOL_LABEL_VALUE, Readiness, node_class, node_pool, readiness,
};
use slipway_statemachine::names;
use slipway_statemachine::plan::Planned;
use slipway_statemachine::spec::{Architecture, NodePoolSpec};
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError};

use crate::{
    Context,
    cluster::{self, Cluster, Kind},
};

/// Applies node pools.
#[derive(Debug)]
pub struct ApplyNodePools;

/// What may be launched, and as what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that applies.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The spec's pools.
    pub node_pools: Vec<NodePoolSpec>,
    /// The role of the nodes.
    pub karpenter_node_role_name: String,
    /// The subnets of a network that others made; none, where the discovery tag tells them.
    #[serde(default)]
    pub subnet_ids: Vec<String>,
    /// The cluster's own security group.
    pub security_group_id: String,
    /// The spec's tags.
    pub tags: BTreeMap<String, String>,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
}

/// The pools that are ready.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// In the spec's order.
    pub node_pools: Vec<Pool>,
}

/// A pool.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What its nodes are.
    pub architecture: Architecture,
}

impl Step for ApplyNodePools {
    const NAME: &'static str = "apply-node-pools";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::ClusterUnreachable, ErrorName::KubernetesRefused, ErrorName::NodePoolNotReady];
    type Input = Input;
    type Output = Progress<Output>;
}

const NODE_POOL: Kind<'static> = ("karpenter.sh/v1", "NodePool");

/// Ready comes within a second; what Karpenter did not find it looks for again after a minute.
const ASK_AGAIN: u32 = 5;

/// The node class, since pools without it are not ready, then the pools.
fn manifests(input: &Input) -> Vec<Value> {
    let tags = names::tags(&input.cluster, &input.tags);
    let class = NodeClass {
        cluster: &input.cluster.name,
        role_name: &input.karpenter_node_role_name,
        subnet_ids: &input.subnet_ids,
        security_group_id: &input.security_group_id,
        tags: &tags,
    };
    std::iter::once(node_class(&class)).chain(input.node_pools.iter().map(node_pool)).collect()
}

/// Done when all are ready; else what the first says that is not.
fn decide(input: &Input, applied: &[Value]) -> Progress<Output> {
    let waiting = applied.iter().find_map(|object| match readiness(object) {
        Readiness::Ready => None,
        Readiness::Waiting(why) => Some(why),
    });
    waiting.map_or_else(
        || {
            let pool = |pool: &NodePoolSpec| Pool { name: pool.name.clone(), architecture: pool.architecture };
            Progress::done(Output { node_pools: input.node_pools.iter().map(pool).collect() })
        },
        |why| Progress::wait(ASK_AGAIN, why),
    )
}

/// Applies class and pools, deletes the pools that the spec no longer has, and reads their conditions.
///
/// # Errors
/// `KubernetesRefused` with Karpenter's rule, if a pool breaks one.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    cx.state.hold(&input.run, &input.cluster).await?;
    let mut applied = Vec::new();
    for manifest in manifests(&input) {
        applied.push(cluster.apply(&manifest).await?);
    }
    for pool in cluster.list(NODE_POOL, None, &format!("{POOL_LABEL}={POOL_LABEL_VALUE}")).await? {
        let name = pool["metadata"]["name"].as_str().unwrap_or_default();
        if !input.node_pools.iter().any(|wanted| wanted.name == name) {
            cluster.delete(NODE_POOL, "", name, None).await?;
        }
    }
    Ok(decide(&input, &applied))
}

/// What would become of class and pools.
///
/// # Errors
/// As [`run`].
pub(crate) async fn plan(cluster: Option<&Cluster>, input: &Input) -> Result<Vec<Planned>, StepError> {
    cluster::plan(cluster, &manifests(input)).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input() -> Input {
        serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "nodePools": [
                { "name": "x86", "architecture": "amd64" },
                { "name": "graviton", "architecture": "arm64", "capacity": ["spot"] },
            ],
            "karpenterNodeRoleName": "demo-node",
            "securityGroupId": "sg-1",
            "tags": { "team": "platform" },
            "endpoint": { "url": "https://example.com", "certificateAuthority": "" },
        }))
        .unwrap()
    }

    #[test]
    fn the_class_comes_first_and_carries_our_tags() {
        let manifests = manifests(&input());
        let kinds: Vec<_> = manifests.iter().map(|one| one["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["EC2NodeClass", "NodePool", "NodePool"]);
        assert_eq!(manifests[0]["spec"]["tags"], json!({ "team": "platform", "slipway:cluster": "demo" }));
    }

    fn observed(ready: [bool; 3]) -> Vec<Value> {
        let mut applied = manifests(&input());
        for (object, ready) in applied.iter_mut().zip(ready) {
            let status = if ready { "True" } else { "False" };
            object["status"] = json!({ "conditions": [{ "type": "Ready", "status": status, "message": "not yet" }] });
        }
        applied
    }

    #[test]
    fn done_means_that_all_are_ready() {
        let pools = vec![
            Pool { name: "x86".to_owned(), architecture: Architecture::Amd64 },
            Pool { name: "graviton".to_owned(), architecture: Architecture::Arm64 },
        ];
        assert_eq!(decide(&input(), &observed([true; 3])), Progress::done(Output { node_pools: pools }));
        assert_eq!(
            decide(&input(), &observed([true, true, false])),
            Progress::wait(5, "NodePool graviton is not Ready: not yet")
        );
        assert!(matches!(decide(&input(), &manifests(&input())), Progress::Waiting(_)), "no status yet");
    }
}
