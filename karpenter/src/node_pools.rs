//! What Karpenter may launch: one EC2NodeClass for the cluster and one NodePool per pool of the spec.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use slipway_statemachine::names::DISCOVERY_TAG;
use slipway_statemachine::spec::NodePoolSpec;

/// The name of the one EC2NodeClass.
pub const NODE_CLASS: &str = "default";

/// The label by which our node class and pools are found, with the value [`POOL_LABEL_VALUE`].
pub const POOL_LABEL: &str = "slipway/node-pools";

/// The value of [`POOL_LABEL`].
pub const POOL_LABEL_VALUE: &str = "spec";

/// What the node class depends on.
#[derive(Debug, Clone, Copy)]
pub struct NodeClass<'a> {
    /// The EKS cluster's name, the value of the discovery tag on its private subnets.
    pub cluster: &'a str,
    /// Name, not ARN, of the role that nodes get.
    pub role_name: &'a str,
    /// The subnets, by id, of a network that others made; none: those with the discovery tag.
    pub subnet_ids: &'a [String],
    /// The cluster's own security group. By id, since EKS puts no tag of ours on it.
    pub security_group_id: &'a str,
    /// Tags of everything that Karpenter launches.
    pub tags: &'a BTreeMap<String, String>,
}

/// The EC2NodeClass: Amazon Linux 2023 in the cluster's private subnets.
#[must_use]
pub fn node_class(class: &NodeClass<'_>) -> Value {
    let subnets: Vec<Value> = if class.subnet_ids.is_empty() {
        vec![json!({ "tags": { DISCOVERY_TAG: class.cluster } })]
    } else {
        class.subnet_ids.iter().map(|id| json!({ "id": id })).collect()
    };
    json!({
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": { "name": NODE_CLASS, "labels": { POOL_LABEL: POOL_LABEL_VALUE } },
        "spec": {
            "role": class.role_name,
            "amiSelectorTerms": [{ "alias": "al2023@latest" }],
            "subnetSelectorTerms": subnets,
            "securityGroupSelectorTerms": [{ "id": class.security_group_id }],
            "tags": class.tags,
        },
    })
}

/// A NodePool of current instances of one architecture, replaced by cheaper or fewer ones whenever that is possible.
#[must_use]
pub fn node_pool(pool: &NodePoolSpec) -> Value {
    let requirement =
        |key: &str, operator: &str, values: Value| json!({ "key": key, "operator": operator, "values": values });
    json!({
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": { "name": pool.name, "labels": { POOL_LABEL: POOL_LABEL_VALUE } },
        "spec": {
            "template": { "spec": {
                "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": NODE_CLASS },
                "requirements": [
                    requirement("kubernetes.io/arch", "In", json!([pool.architecture.as_str()])),
                    requirement("kubernetes.io/os", "In", json!(["linux"])),
                    requirement("karpenter.sh/capacity-type", "In", json!(pool.capacity)),
                    requirement("karpenter.k8s.aws/instance-category", "In", json!(["c", "m", "r", "t"])),
                    requirement("karpenter.k8s.aws/instance-generation", "Gt", json!(["2"])),
                ],
            } },
            "disruption": { "consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "1m" },
        },
    })
}

/// How far a node class or pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Its Ready condition is true for what was applied last.
    Ready,
    /// Not yet, and why.
    Waiting(String),
    /// Karpenter tried out what a launch needs, and AWS denied it. It does not try again for half an hour, unless the
    /// object's annotations change ([`ASKED`]).
    Denied {
        /// As IAM writes it.
        action: String,
        /// What it says.
        why: String,
    },
}

/// The annotation that has Karpenter try out anew what AWS denied: any other value than before will do.
pub const ASKED: &str = "slipway/asked";

/// Reads the Ready condition of a node class or pool, as the API server answers it.
#[must_use]
pub fn readiness(object: &Value) -> Readiness {
    let name = || {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("?");
        format!("{} {}", text("/kind"), text("/metadata/name"))
    };
    let generation = &object["metadata"]["generation"];
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(ready) = conditions.iter().find(|condition| condition["type"] == "Ready") else {
        return Readiness::Waiting(format!("{} has no status yet", name()));
    };
    if ready.get("observedGeneration").is_some_and(|seen| seen != generation) {
        return Readiness::Waiting(format!("{} has changed and was not looked at yet", name()));
    }
    if ready["status"] == "True" {
        return Readiness::Ready;
    }
    // Ready only counts the others that are not; those say why.
    let reasons: Vec<_> = conditions
        .iter()
        .filter(|condition| condition["type"] != "Ready" && condition["status"] != "True")
        .map(|condition| {
            let text = |field: &str| condition[field].as_str().unwrap_or_default();
            format!("{} {} ({})", text("type"), text("reason"), text("message"))
        })
        .collect();
    let why = if reasons.is_empty() {
        format!("{} is not Ready: {}", name(), ready["message"].as_str().unwrap_or_default())
    } else {
        format!("{} is not Ready: {}", name(), reasons.join("; "))
    };
    // `CreateFleetAuthCheckFailed`, `RunInstancesAuthCheckFailed`, `CreateLaunchTemplateAuthCheckFailed`
    let denied = conditions.iter().find_map(|condition| condition["reason"].as_str()?.strip_suffix("AuthCheckFailed"));
    match denied {
        Some(call) => Readiness::Denied { action: format!("ec2:{call}"), why },
        None => Readiness::Waiting(why),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use slipway_statemachine::spec::{Architecture, Capacity};

    use super::*;

    #[test]
    fn the_node_class_takes_one_group_by_id_and_subnets_by_tag() {
        let tags = BTreeMap::from([("slipway:cluster".to_owned(), "demo".to_owned())]);
        let class = NodeClass {
            cluster: "demo",
            role_name: "demo-node",
            subnet_ids: &[],
            security_group_id: "sg-1",
            tags: &tags,
        };
        assert_eq!(
            node_class(&class)["spec"],
            json!({
                "role": "demo-node",
                "amiSelectorTerms": [{ "alias": "al2023@latest" }],
                "subnetSelectorTerms": [{ "tags": { "karpenter.sh/discovery": "demo" } }],
                "securityGroupSelectorTerms": [{ "id": "sg-1" }],
                "tags": { "slipway:cluster": "demo" },
            })
        );
        let ids = ["subnet-1", "subnet-2"].map(str::to_owned);
        let selected = &node_class(&NodeClass { subnet_ids: &ids, ..class })["spec"]["subnetSelectorTerms"];
        assert_eq!(
            *selected,
            json!([{ "id": "subnet-1" }, { "id": "subnet-2" }]),
            "another's subnets bear no tag of ours"
        );
    }

    #[test]
    fn a_pool_asks_for_its_architecture_and_capacity() {
        let pool = NodePoolSpec {
            name: "graviton".to_owned(),
            architecture: Architecture::Arm64,
            capacity: vec![Capacity::Spot, Capacity::OnDemand],
        };
        let manifest = node_pool(&pool);
        assert_eq!(manifest["metadata"]["name"], "graviton");
        let requirements = manifest.pointer("/spec/template/spec/requirements").unwrap();
        let values = |key: &str| {
            requirements.as_array().unwrap().iter().find(|one| one["key"] == key).unwrap()["values"].clone()
        };
        assert_eq!(values("kubernetes.io/arch"), json!(["arm64"]));
        assert_eq!(values("karpenter.sh/capacity-type"), json!(["spot", "on-demand"]));
        assert_eq!(values("karpenter.k8s.aws/instance-category"), json!(["c", "m", "r", "t"]));
        assert_eq!(values("karpenter.k8s.aws/instance-generation"), json!(["2"]));
    }

    fn object(status: &Value) -> Value {
        json!({ "kind": "EC2NodeClass", "metadata": { "name": "default", "generation": 2 }, "status": status })
    }

    #[test]
    fn ready_counts_for_the_generation_that_was_applied() {
        let ready = |generation: u32| {
            object(&json!({ "conditions": [{ "type": "Ready", "status": "True", "observedGeneration": generation }] }))
        };
        assert_eq!(readiness(&ready(2)), Readiness::Ready);
        assert!(matches!(readiness(&ready(1)), Readiness::Waiting(_)));
        assert_eq!(
            readiness(&object(&json!({}))),
            Readiness::Waiting("EC2NodeClass default has no status yet".to_owned())
        );
    }

    #[test]
    fn what_is_not_ready_says_which_condition_and_why() {
        let waiting = object(&json!({ "conditions": [
            { "type": "SubnetsReady", "status": "False", "reason": "SubnetsNotFound", "message": "no subnet matches" },
            { "type": "AMIsReady", "status": "True", "reason": "AMIsReady", "message": "" },
            { "type": "Ready", "status": "False", "reason": "UnhealthyDependents", "message": "SubnetsReady=False" },
        ] }));
        assert_eq!(
            readiness(&waiting),
            Readiness::Waiting(
                "EC2NodeClass default is not Ready: SubnetsReady SubnetsNotFound (no subnet matches)".to_owned()
            )
        );
    }

    #[test]
    fn a_launch_that_aws_denies_is_told_by_its_action() {
        let message = "Controller isn't authorized to call ec2:CreateFleet: User is not authorized to perform this operation \
                       because no identity-based policy allows it";
        let denied = object(&json!({ "conditions": [
            { "type": "ValidationSucceeded", "status": "False", "reason": "CreateFleetAuthCheckFailed", "message": message },
            { "type": "Ready", "status": "False", "reason": "UnhealthyDependents", "message": "ValidationSucceeded=False" },
        ] }));
        let Readiness::Denied { action, why } = readiness(&denied) else { panic!("{:?}", readiness(&denied)) };
        assert_eq!(action, "ec2:CreateFleet");
        assert!(why.contains("no identity-based policy allows it"), "{why}");
    }
}
