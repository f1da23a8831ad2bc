//! Whose a resource is, by its tags or its exact name. Never by a prefix: `demo`, `demo-2` and `demo_2` are three
//! clusters.

use std::collections::BTreeMap;

use slipway_statemachine::{
    ClusterKey,
    names::{CLUSTER_TAG, DISCOVERY_TAG},
};

/// The tags by which EKS, its nodes and Karpenter say whose something is; the value is the cluster's name.
pub const NAME_TAGS: [&str; 6] = [
    CLUSTER_TAG,
    "eks:cluster-name",
    "eks:eks-cluster-name",
    "aws:eks:cluster-name",
    "cluster.k8s.amazonaws.com/name",
    DISCOVERY_TAG,
];

/// CloudFormation's own tag. What has it goes with its stack, and not otherwise.
pub const STACK_TAG: &str = "aws:cloudformation:stack-name";

/// The tag that Kubernetes' controllers put on what they make; its value is `owned`, or `shared` for what they only use.
#[must_use]
pub fn kubernetes_tag(cluster: &ClusterKey) -> String {
    format!("kubernetes.io/cluster/{}", cluster.name)
}

/// The keys of all tags that may say that something is the cluster's, for a filter of AWS's.
#[must_use]
pub fn keys(cluster: &ClusterKey) -> Vec<String> {
    NAME_TAGS.iter().map(|&key| key.to_owned()).chain([kubernetes_tag(cluster)]).collect()
}

/// Whether tags say that a resource is the cluster's. What bears our tag for another cluster is that cluster's, whatever
/// else it says.
#[must_use]
pub fn owned(cluster: &ClusterKey, tags: &BTreeMap<String, String>) -> bool {
    if let Some(ours) = tags.get(CLUSTER_TAG) {
        return *ours == cluster.name;
    }
    tags.get(&kubernetes_tag(cluster)).is_some_and(|value| value == "owned")
        || NAME_TAGS.iter().any(|&key| tags.get(key) == Some(&cluster.name))
}

/// The same for what also has a name: it is the cluster's too if it is called what Slipway calls the cluster's.
#[must_use]
pub fn owned_or_named(cluster: &ClusterKey, tags: &BTreeMap<String, String>, name: &str, wanted: &[String]) -> bool {
    let stranger = tags.get(CLUSTER_TAG).is_some_and(|ours| *ours != cluster.name);
    !stranger && (wanted.iter().any(|wanted| wanted == name) || owned(cluster, tags))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: name.into() }
    }

    fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_tag_that_names_the_cluster_makes_it_its_own() {
        for key in NAME_TAGS {
            assert!(owned(&cluster("demo"), &tags(&[(key, "demo")])), "{key}");
            for neighbour in ["demo-2", "demo_2", "dem", "Demo", "demo2", ""] {
                assert!(!owned(&cluster("demo"), &tags(&[(key, neighbour)])), "{key}={neighbour}");
                assert!(!owned(&cluster("demo-2"), &tags(&[(key, "demo")])), "{key}");
            }
        }
        assert!(!owned(&cluster("demo"), &BTreeMap::new()));
    }

    #[test]
    fn what_a_cluster_only_shares_is_not_its_own() {
        assert!(owned(&cluster("demo"), &tags(&[("kubernetes.io/cluster/demo", "owned")])));
        assert!(!owned(&cluster("demo"), &tags(&[("kubernetes.io/cluster/demo", "shared")])));
        assert!(!owned(&cluster("demo"), &tags(&[("kubernetes.io/cluster/demo-2", "owned")])));
    }

    #[test]
    fn our_tag_decides_over_all_others_and_over_the_name() {
        let stranger =
            tags(&[(CLUSTER_TAG, "demo-2"), (DISCOVERY_TAG, "demo"), ("kubernetes.io/cluster/demo", "owned")]);
        assert!(!owned(&cluster("demo"), &stranger));
        let wanted = ["slipway-eks-demo".to_owned()];
        assert!(!owned_or_named(&cluster("demo"), &stranger, "slipway-eks-demo", &wanted));
        assert!(owned_or_named(&cluster("demo"), &BTreeMap::new(), "slipway-eks-demo", &wanted));
        assert!(!owned_or_named(&cluster("demo"), &BTreeMap::new(), "slipway-eks-demo-2", &wanted));
    }
}
