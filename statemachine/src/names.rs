//! What everything that Slipway makes is called, and the tags that say whose it is.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::ClusterKey;

/// The tag by which everything that Slipway made is recognised as ours; its value is the cluster's name.
pub const CLUSTER_TAG: &str = "slipway:cluster";
/// The tag by which Karpenter finds the private subnets; its value is the cluster's name.
pub const DISCOVERY_TAG: &str = "karpenter.sh/discovery";
/// The node group that carries Karpenter itself.
pub const CORE_NODE_GROUP: &str = "core";
/// The service account of Karpenter's controller, in the spec's namespace.
pub const KARPENTER_SERVICE_ACCOUNT: &str = "karpenter";

// Limits of AWS: IAM roles and EventBridge rules 64, SQS queues 80, IAM policies and CloudFormation stacks 128.
const ROLE_LIMIT: usize = 64;
const RULE_LIMIT: usize = 64;
const QUEUE_LIMIT: usize = 80;
const POLICY_LIMIT: usize = 128;

/// The IAM role `slipway-eks-<cluster>-<region>-<suffix>`, at most 64 characters. Suffixes: `cluster`, `core`,
/// `node`, `controller`.
#[must_use]
pub fn role(cluster: &ClusterKey, suffix: &str) -> String {
    iam_name(cluster, suffix, ROLE_LIMIT)
}

/// The role of an add-on's pods, `slipway-eks-<cluster>-<region>-addon-<addon>`, at most 64 characters.
#[must_use]
pub fn addon_role(cluster: &ClusterKey, addon: &str) -> String {
    role(cluster, &format!("addon-{addon}"))
}

/// The partition of a region: `aws`, `aws-cn` or `aws-us-gov`.
#[must_use]
pub fn partition(region: &str) -> &'static str {
    match region {
        _ if region.starts_with("cn-") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// The IAM policy `slipway-eks-<cluster>-<region>-<part>`, at most 128 characters.
#[must_use]
pub fn policy(cluster: &ClusterKey, part: &str) -> String {
    iam_name(cluster, part, POLICY_LIMIT)
}

/// The interruption queue `slipway-eks-<cluster>`, at most 80 characters.
#[must_use]
pub fn queue(cluster: &ClusterKey) -> String {
    fit(&format!("slipway-eks-{}", cluster.name), "", QUEUE_LIMIT)
}

/// The EventBridge rule `slipway-eks-<cluster>.<kind>`, at most 64 characters. The dot, which a cluster's name
/// cannot have, keeps cluster `a` with kind `b-c` apart from cluster `a-b` with kind `c`.
#[must_use]
pub fn rule(cluster: &ClusterKey, kind: &str) -> String {
    fit(&format!("slipway-eks-{}", cluster.name), &format!(".{kind}"), RULE_LIMIT)
}

/// The network's CloudFormation stack `slipway-network-<cluster>`. A stack's name has no `_`: it becomes `-`, and a
/// hash keeps `a_b` apart from `a-b`.
#[must_use]
pub fn stack(cluster: &ClusterKey) -> String {
    let whole = format!("slipway-network-{}", cluster.name);
    let written = whole.replace('_', "-");
    if written == whole { whole } else { format!("{written}-{}", hash(&whole)) }
}

/// The tags of everything that is made for a cluster: the spec's own and ours. The same on every run, so that a
/// second run changes nothing.
#[must_use]
pub fn tags(cluster: &ClusterKey, spec: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut tags = spec.clone();
    tags.insert(CLUSTER_TAG.to_owned(), cluster.name.clone());
    tags
}

/// IAM is one namespace for all regions of an account, hence the region; and it does not tell capitals apart, while
/// EKS does, hence a hash for names that have any.
fn iam_name(cluster: &ClusterKey, suffix: &str, limit: usize) -> String {
    let stem = format!("slipway-eks-{}-{}", cluster.name, cluster.region);
    let suffix = format!("-{suffix}");
    if stem.chars().any(|c| c.is_ascii_uppercase()) {
        hashed(&stem, &suffix, limit)
    } else {
        fit(&stem, &suffix, limit)
    }
}

fn fit(stem: &str, suffix: &str, limit: usize) -> String {
    if stem.len() + suffix.len() <= limit { format!("{stem}{suffix}") } else { hashed(stem, suffix, limit) }
}

/// As much of the stem as fits, a hash of the whole, the suffix.
fn hashed(stem: &str, suffix: &str, limit: usize) -> String {
    let hash = hash(&format!("{stem}{suffix}"));
    let room = limit.saturating_sub(suffix.len() + hash.len() + 1);
    let kept: String = stem.chars().take(room).collect();
    format!("{}-{hash}{suffix}", kept.trim_end_matches(['-', '_']))
}

/// Eight hex digits of SHA-256.
fn hash(whole: &str) -> String {
    let digest = Sha256::digest(whole.as_bytes());
    format!("{:08x}", u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn key(name: &str) -> ClusterKey {
        in_region(name, "eu-west-1")
    }

    fn in_region(name: &str, region: &str) -> ClusterKey {
        ClusterKey { account: "111122223333".to_owned(), region: region.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn ordinary_names_are_plain() {
        let demo = key("innovate-dev");
        assert_eq!(role(&demo, "core"), "slipway-eks-innovate-dev-eu-west-1-core");
        assert_eq!(policy(&demo, "node-lifecycle"), "slipway-eks-innovate-dev-eu-west-1-node-lifecycle");
        assert_eq!(queue(&demo), "slipway-eks-innovate-dev");
        assert_eq!(stack(&demo), "slipway-network-innovate-dev");
        assert_eq!(rule(&demo, "health"), "slipway-eks-innovate-dev.health");
    }

    #[test]
    fn near_names_stay_apart() {
        let long = "n".repeat(99);
        let keys = [
            key("a-b"),
            key("a_b"),
            key("A-B"),
            key("a-B"),
            in_region("a-b", "eu-west-2"),
            key("a-b-eu-west-1"),
            key(&format!("{long}a")),
            key(&format!("{long}b")),
            in_region(&format!("{long}b"), "ap-southeast-1"),
        ];
        // IAM compares without regard to case.
        let roles: BTreeSet<_> = keys.iter().map(|k| role(k, "node").to_lowercase()).collect();
        let policies: BTreeSet<_> = keys.iter().map(|k| policy(k, "node").to_lowercase()).collect();
        assert_eq!((roles.len(), policies.len()), (keys.len(), keys.len()));

        let regional: Vec<_> = keys.iter().filter(|k| k.region == "eu-west-1").collect();
        let queues: BTreeSet<_> = regional.iter().map(|k| queue(k)).collect();
        let stacks: BTreeSet<_> = regional.iter().map(|k| stack(k)).collect();
        assert_eq!((queues.len(), stacks.len()), (regional.len(), regional.len()));
        assert_ne!(rule(&key("a"), "b-c"), rule(&key("a-b"), "c"));
    }

    #[test]
    fn clusters_side_by_side_share_no_name() {
        let keys = ["demo", "demo-2", "demo_2", "demo-core", "demo-addon", "Demo"].map(key);
        let mut seen = BTreeSet::new();
        for key in &keys {
            let suffixes = ["cluster", "core", "node", "controller"];
            let kinds = ["health", "spot-interruption", "rebalance", "state-change", "capacity-reservation"];
            let roles = suffixes.iter().map(|suffix| role(key, suffix));
            // IAM tells roles, policies and profiles apart by kind, and does not tell capitals apart.
            let made = roles
                .chain([addon_role(key, "aws-ebs-csi-driver"), addon_role(key, "core")])
                .map(|name| format!("role {}", name.to_lowercase()))
                .chain(
                    ["node-lifecycle", "interruption"]
                        .map(|part| format!("policy {}", policy(key, part).to_lowercase())),
                )
                .chain(kinds.iter().map(|kind| format!("rule {}", rule(key, kind))))
                .chain([format!("queue {}", queue(key)), format!("stack {}", stack(key))]);
            for name in made {
                assert!(seen.insert(name.clone()), "{name} is two things' name");
            }
        }
    }

    #[test]
    fn overlong_names_are_cut_and_keep_their_suffix() {
        let longest = in_region(&"x".repeat(100), "ap-southeast-1");
        let name = role(&longest, "controller");
        assert_eq!(name.len(), 64);
        assert!(name.starts_with("slipway-eks-xxxx") && name.ends_with("-controller"), "{name}");
        assert_eq!(queue(&longest).len(), 80);
    }

    #[test]
    fn ours_is_tagged_over_whatever_the_spec_says() {
        let spec = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        let tags = tags(&key("demo"), &spec);
        assert_eq!(tags.get(CLUSTER_TAG).unwrap(), "demo");
        assert_eq!(tags.get("team").unwrap(), "shop");
    }

    proptest! {
        #[test]
        fn every_name_fits_and_has_only_allowed_characters(name in "[A-Za-z0-9][A-Za-z0-9_-]{0,99}", suffix in "[a-z-]{1,24}") {
            let key = in_region(&name, "ap-southeast-1");
            let word = |s: &str, extra: &str| s.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c));
            for (made, limit, extra) in [
                (role(&key, &suffix), 64, "-_"),
                (rule(&key, &suffix), 64, "-_."),
                (queue(&key), 80, "-_"),
                (policy(&key, &suffix), 128, "-_"),
                (stack(&key), 128, "-"),
            ] {
                prop_assert!(made.len() <= limit && word(&made, extra) && made.starts_with("slipway-"), "{made}");
            }
        }

        #[test]
        fn different_clusters_have_different_roles(a in "[a-c_-]{1,60}", b in "[a-c_-]{1,60}") {
            prop_assume!(a != b);
            prop_assert_ne!(role(&key(&a), "node"), role(&key(&b), "node"));
            prop_assert_ne!(queue(&key(&a)), queue(&key(&b)));
            prop_assert_ne!(stack(&key(&a)), stack(&key(&b)));
        }
    }
}
