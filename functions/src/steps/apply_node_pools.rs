//! apply-node-pools: the EC2NodeClass and the spec's NodePools, until each says that it is Ready.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_karpenter::node_pools::{
    ASKED, NODE_CLASS, NodeClass, POOL_LABEL, POOL_LABEL_VALUE, Readiness, node_class, node_pool, readiness,
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
    /// Seconds that the machine has waited for them so far.
    #[serde(default)]
    pub waited: u32,
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
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::ClusterUnreachable,
        ErrorName::KubernetesRefused,
        ErrorName::CrdNotServed,
        ErrorName::NodePoolNotReady,
        ErrorName::ControllerDenied,
    ];
    type Input = Input;
    type Output = Progress<Output>;
}

const NODE_POOL: Kind<'static> = ("karpenter.sh/v1", "NodePool");
const NODE_CLASS_KIND: Kind<'static> = ("karpenter.k8s.aws/v1", "EC2NodeClass");

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

/// For how many seconds AWS may deny what a launch needs: a fresh policy is believed within a minute.
const DENIED: u32 = 60;

/// What to do about what was applied.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Done(Output),
    Wait(String),
    /// Karpenter holds to a denial for half an hour: have it ask again.
    AskAgain(String),
}

/// Done when all are ready; else what the first says that is not.
fn decide(input: &Input, applied: &[Value]) -> Result<Action, StepError> {
    let states = applied.iter().map(readiness);
    match states.into_iter().find(|state| *state != Readiness::Ready) {
        None | Some(Readiness::Ready) => {
            let pool = |pool: &NodePoolSpec| Pool { name: pool.name.clone(), architecture: pool.architecture };
            Ok(Action::Done(Output { node_pools: input.node_pools.iter().map(pool).collect() }))
        }
        Some(Readiness::Waiting(why)) => Ok(Action::Wait(why)),
        Some(Readiness::Denied { why, .. }) if input.waited < DENIED => Ok(Action::AskAgain(why)),
        Some(Readiness::Denied { action, why }) => {
            let cause = format!("AWS denies Karpenter's controller {action}, so it would launch nothing: {why}.");
            Err(StepError::new(ErrorName::ControllerDenied, cause))
        }
    }
}

/// Applies class and pools, deletes the pools that the spec no longer has, and reads their conditions.
///
/// # Errors
/// `KubernetesRefused` with Karpenter's rule, if a pool breaks one; `ControllerDenied` if AWS denies what a launch needs.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    cx.state.hold(&input.run, &input.cluster).await?;
    let mut applied = Vec::new();
    for manifest in manifests(&input) {
        applied.push(cluster.apply(&manifest).await?);
    }
    for name in dismissed(&cluster, &input).await? {
        cluster.delete(NODE_POOL, "", &name, None).await?;
    }
    match decide(&input, &applied)? {
        Action::Done(output) => Ok(Progress::done(output)),
        Action::Wait(why) => Ok(Progress::wait(ASK_AGAIN, why)),
        Action::AskAgain(why) => {
            // As good as a clock: another one whenever the class has changed, which this asking does itself.
            let asked = &applied[0]["metadata"]["resourceVersion"];
            let patch = json!({ "metadata": { "annotations": { ASKED: asked } } });
            cluster.merge(NODE_CLASS_KIND, "", NODE_CLASS, &patch).await?;
            Ok(Progress::wait(ASK_AGAIN, why))
        }
    }
}

/// The pools of ours that the spec no longer has, but for those that are on their way out.
async fn dismissed(cluster: &Cluster, input: &Input) -> Result<Vec<String>, StepError> {
    let ours = cluster.list(NODE_POOL, None, &format!("{POOL_LABEL}={POOL_LABEL_VALUE}")).await?;
    Ok(no_longer_named(input, &ours))
}

fn no_longer_named(input: &Input, ours: &[Value]) -> Vec<String> {
    let staying = ours.iter().filter(|pool| pool["metadata"]["deletionTimestamp"].is_null());
    let names = staying.filter_map(|pool| pool["metadata"]["name"].as_str());
    names.filter(|name| input.node_pools.iter().all(|wanted| wanted.name != *name)).map(str::to_owned).collect()
}

/// What would become of class and pools.
///
/// # Errors
/// As [`run`].
pub(crate) async fn plan(cluster: Option<&Cluster>, input: &Input) -> Result<Vec<Planned>, StepError> {
    let mut planned = cluster::plan(cluster, &manifests(input)).await?;
    // Before Karpenter is installed the API server knows no pools.
    if let Some(cluster) = cluster
        && cluster.api_versions().await?.contains(NODE_POOL.0)
    {
        let dismissed = dismissed(cluster, input).await?.into_iter();
        let deleted = |name: String| Planned::delete("Kubernetes NodePool", &name, "the spec no longer names it");
        planned.extend(dismissed.map(deleted));
    }
    Ok(planned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
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

    #[test]
    fn a_pool_that_the_spec_no_longer_names_goes_once() {
        let pool = |name: &str, leaving: Value| json!({"metadata": {"name": name, "deletionTimestamp": leaving}});
        let ours = [pool("x86", Value::Null), pool("gpu", Value::Null), pool("old", json!("2026-11-22T09:00:00Z"))];
        assert_eq!(no_longer_named(&input(), &ours), ["gpu"]);
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
        assert_eq!(decide(&input(), &observed([true; 3])).unwrap(), Action::Done(Output { node_pools: pools }));
        assert_eq!(
            decide(&input(), &observed([true, true, false])).unwrap(),
            Action::Wait("NodePool graviton is not Ready: not yet".to_owned())
        );
        assert!(matches!(decide(&input(), &manifests(&input())).unwrap(), Action::Wait(_)), "no status yet");
    }

    #[test]
    fn a_denial_is_asked_about_again_for_a_minute_and_then_named() {
        let mut applied = observed([true; 3]);
        applied[0]["status"]["conditions"] = json!([
            { "type": "ValidationSucceeded", "status": "False", "reason": "CreateFleetAuthCheckFailed", "message": "no" },
            { "type": "Ready", "status": "False" },
        ]);
        assert!(matches!(decide(&input(), &applied).unwrap(), Action::AskAgain(why) if why.contains("CreateFleet")));
        let error = decide(&Input { waited: DENIED, ..input() }, &applied).unwrap_err();
        assert_eq!(error.name, ErrorName::ControllerDenied);
        assert!(error.cause.contains("ec2:CreateFleet"), "{}", error.cause);
    }
}
