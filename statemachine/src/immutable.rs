//! What a cluster that is there cannot be changed to, since EKS fixes it when it makes one.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::spec::{ClusterSpec, NetworkSpec};
use crate::{ErrorName, Violation};

/// A cluster as it is, as far as it binds the next spec.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct There {
    /// The spec that the registry has of it; none of a cluster that is new to us.
    pub registered: Option<ClusterSpec>,
    /// It bears our tag.
    pub ours: bool,
    /// Kubernetes minor, `1.36`.
    pub version: String,
    /// `vpc-…`
    pub vpc_id: String,
    /// The KMS key that its secrets are encrypted with.
    pub encryption_key_arn: Option<String>,
    /// The types of its core node group, where it has one.
    pub core_instance_types: Option<Vec<String>>,
}

/// Everything that the spec asks for and the cluster cannot become: path, value, rule.
#[must_use]
pub fn violations(spec: &ClusterSpec, there: &There) -> Vec<Violation> {
    let mut found = Vec::new();
    version(spec, there, &mut found);
    network(spec, there, &mut found);
    // A key may be added to a cluster without one, once.
    if let Some(key) = &there.encryption_key_arn
        && spec.encryption_key_arn.as_ref() != Some(key)
    {
        let rule = format!("must stay {key}: EKS neither changes nor removes a cluster's key");
        found.push(immutable("$.encryptionKeyArn", &spec.encryption_key_arn, rule));
    }
    if let Some(types) = &there.core_instance_types {
        let set = |types: &[String]| types.iter().cloned().collect::<BTreeSet<_>>();
        if set(types) != set(&spec.core.instance_types) {
            let rule = format!("must stay {}: EKS changes no node group's types", types.join(", "));
            found.push(immutable("$.core.instanceTypes", &spec.core.instance_types, rule));
        }
    }
    if let Some(before) = &there.registered
        && before.karpenter.namespace != spec.karpenter.namespace
    {
        let namespace = &before.karpenter.namespace;
        let rule = format!("must stay {namespace}: a second Karpenter elsewhere would fight the first over its nodes");
        found.push(immutable("$.karpenter.namespace", &spec.karpenter.namespace, rule));
    }
    found
}

fn version(spec: &ClusterSpec, there: &There, found: &mut Vec<Violation>) {
    let minor = |version: &str| version.strip_prefix("1.").and_then(|minor| minor.parse::<u32>().ok());
    let Some(asked) = &spec.version else { return };
    if *asked == there.version {
        return;
    }
    let mut violation =
        immutable("$.version", asked, format!("must stay {}: EKS takes no version back", there.version));
    if minor(asked) > minor(&there.version) {
        violation.name = ErrorName::NotYetSupported;
        violation.rule = format!("must stay {}: this release upgrades no control plane", there.version);
    }
    found.push(violation);
}

fn network(spec: &ClusterSpec, there: &There, found: &mut Vec<Violation>) {
    let before = there.registered.as_ref().map(|spec| &spec.network);
    match (&spec.network, before) {
        (NetworkSpec::Existing(asked), _) if asked.vpc_id != there.vpc_id => {
            let rule = format!("must stay {}: no cluster moves to another VPC", there.vpc_id);
            found.push(immutable("$.network.existing.vpcId", &asked.vpc_id, rule));
        }
        (NetworkSpec::Existing(asked), Some(NetworkSpec::Existing(before))) => {
            let set = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
            if set(&asked.subnet_ids) != set(&before.subnet_ids) {
                let rule = format!("must stay {}: EKS changes no node group's subnets", before.subnet_ids.join(", "));
                found.push(immutable("$.network.existing.subnetIds", &asked.subnet_ids, rule));
            }
        }
        (NetworkSpec::Create(asked), Some(NetworkSpec::Create(before))) => {
            if asked.cidr != before.cidr {
                let rule = format!("must stay {}: a VPC keeps its block", before.cidr);
                found.push(immutable("$.network.create.cidr", &asked.cidr, rule));
            }
            if asked.zones != before.zones {
                let rule = format!("must stay {}: EKS adds no zone to a control plane", before.zones);
                found.push(immutable("$.network.create.zones", asked.zones, rule));
            }
        }
        // There is no stack of ours around it. What the registry has forgotten of a cluster of ours cannot be compared.
        (NetworkSpec::Create(_), before) if before.is_some() || !there.ours => {
            let rule = format!("must be existing with vpcId {}, in which the cluster is", there.vpc_id);
            found.push(immutable("$.network", &spec.network, rule));
        }
        (NetworkSpec::Create(_) | NetworkSpec::Existing(_), _) => {}
    }
}

fn immutable(path: &str, value: impl Serialize, rule: String) -> Violation {
    let value = serde_json::to_value(value).unwrap_or_default();
    Violation { path: path.to_owned(), value, rule, name: ErrorName::ImmutableChange }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1";

    fn spec(over: &Value) -> ClusterSpec {
        let mut spec = json!({"name": "demo", "version": "1.36"});
        for (key, value) in over.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn there() -> There {
        There {
            registered: Some(spec(&json!({}))),
            ours: true,
            version: "1.36".into(),
            vpc_id: "vpc-01234567".into(),
            encryption_key_arn: None,
            core_instance_types: Some(vec!["t4g.medium".into()]),
        }
    }

    fn refused(over: &Value, there: &There) -> Vec<(String, ErrorName)> {
        violations(&spec(over), there).into_iter().map(|found| (found.path, found.name)).collect()
    }

    #[test]
    fn what_can_change_is_not_held_against_a_spec() {
        let changed = json!({
            "logging": ["audit"], "tags": {"team": "a"}, "core": {"size": 3}, "encryptionKeyArn": KEY,
            "network": {"create": {"nat": "perZone", "flowLogs": true}}, "karpenter": {"version": "1.14.2"},
        });
        assert_eq!(refused(&changed, &there()), []);
    }

    #[test]
    fn what_eks_fixes_at_birth_is_refused_by_name() {
        let existing =
            json!({"existing": {"vpcId": "vpc-76543210", "subnetIds": ["subnet-01234567", "subnet-76543210"]}});
        for (over, path, name) in [
            (json!({"version": "1.35"}), "$.version", ErrorName::ImmutableChange),
            (json!({"version": "1.37"}), "$.version", ErrorName::NotYetSupported),
            (
                json!({"network": {"create": {"cidr": "10.30.0.0/16"}}}),
                "$.network.create.cidr",
                ErrorName::ImmutableChange,
            ),
            (json!({"network": {"create": {"zones": 3}}}), "$.network.create.zones", ErrorName::ImmutableChange),
            (json!({"network": existing}), "$.network.existing.vpcId", ErrorName::ImmutableChange),
            (json!({"core": {"instanceTypes": ["m7g.large"]}}), "$.core.instanceTypes", ErrorName::ImmutableChange),
            (json!({"karpenter": {"namespace": "kube-system"}}), "$.karpenter.namespace", ErrorName::ImmutableChange),
        ] {
            assert_eq!(refused(&over, &there()), [(path.to_owned(), name)], "{over}");
        }
    }

    #[test]
    fn a_key_is_added_but_never_changed_or_taken_away() {
        let encrypted = There { encryption_key_arn: Some(KEY.into()), ..there() };
        assert_eq!(refused(&json!({"encryptionKeyArn": KEY}), &encrypted), []);
        let path = "$.encryptionKeyArn".to_owned();
        for over in [json!({}), json!({"encryptionKeyArn": "arn:aws:kms:eu-west-1:111122223333:key/2"})] {
            assert_eq!(refused(&over, &encrypted), [(path.clone(), ErrorName::ImmutableChange)], "{over}");
        }
    }

    #[test]
    fn a_cluster_of_somebody_elses_making_keeps_its_vpc() {
        let strange = There { registered: None, ours: false, core_instance_types: None, ..there() };
        assert_eq!(refused(&json!({}), &strange), [("$.network".to_owned(), ErrorName::ImmutableChange)]);
        assert_eq!(refused(&json!({}), &There { ours: true, ..strange.clone() }), []);
        let existing =
            json!({"existing": {"vpcId": "vpc-01234567", "subnetIds": ["subnet-01234567", "subnet-76543210"]}});
        assert_eq!(refused(&json!({"network": existing}), &strange), []);
    }
}
