//! Drift of a network of our own: what a cluster relies on and somebody changed behind CloudFormation's back.

use std::collections::BTreeMap;

use slipway_statemachine::names::{CLUSTER_TAG, DISCOVERY_TAG};

use super::Output;
use crate::aws::{networks::Network, tags::missing};

/// What is otherwise than the stack made it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drift {
    /// Tags to put back, by subnet.
    pub(crate) tags: BTreeMap<String, BTreeMap<String, String>>,
    /// What only a person can put right: sentences without their full stop.
    pub(crate) faults: Vec<String>,
}

/// Compares what the stack gives with what EC2 has.
pub(crate) fn drift(output: &Output, network: &Network, cluster: &str) -> Drift {
    let mut drift = Drift::default();
    let private = output.private_subnet_ids.iter().map(|id| (id, true));
    let public = output.public_subnet_ids.iter().map(|id| (id, false));
    for (id, is_private) in private.chain(public) {
        let kind = if is_private { "private" } else { "public" };
        let Some(subnet) = network.subnets.iter().find(|subnet| subnet.id == *id) else {
            drift.faults.push(format!("the {kind} subnet {id} is gone"));
            continue;
        };
        let route = format!("the default route of the {kind} subnet {id}, in {},", subnet.route_table);
        match (&subnet.way_out, is_private) {
            (None, _) => drift.faults.push(format!("{route} is gone")),
            (Some(out), true) if out.blackhole || !network.nat_gateways.contains(&out.target) => {
                let why =
                    if out.target.starts_with("nat-") { "which is gone" } else { "which is no NAT gateway of ours" };
                drift.faults.push(format!("{route} goes to {}, {why}", out.target));
            }
            (Some(out), false) if !out.target.starts_with("igw-") => {
                drift.faults.push(format!("{route} goes to {}, not to an internet gateway", out.target));
            }
            _ => {}
        }
        let lost = missing(&wanted(is_private, cluster), &subnet.tags);
        if !lost.is_empty() {
            drift.tags.insert(id.clone(), lost);
        }
    }
    drift
}

/// The tags by which Karpenter, load balancers and we ourselves find a subnet; as infra/network.yaml gives them.
fn wanted(is_private: bool, cluster: &str) -> BTreeMap<String, String> {
    let mut wanted = BTreeMap::from([(CLUSTER_TAG.to_owned(), cluster.to_owned())]);
    if is_private {
        wanted.insert(DISCOVERY_TAG.to_owned(), cluster.to_owned());
        wanted.insert("kubernetes.io/role/internal-elb".to_owned(), "1".to_owned());
    } else {
        wanted.insert("kubernetes.io/role/elb".to_owned(), "1".to_owned());
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::super::existing::tests::{network, subnet};
    use super::*;

    fn output() -> Output {
        Output {
            vpc_id: "vpc-1".to_owned(),
            private_subnet_ids: vec!["subnet-1".to_owned()],
            public_subnet_ids: vec!["subnet-2".to_owned()],
            zones: vec!["a".to_owned()],
            stack_name: None,
        }
    }

    fn as_made() -> Network {
        let mut subnets = [subnet("subnet-1", "a", Some("nat-1")), subnet("subnet-2", "a", Some("igw-1"))];
        subnets[0].tags = wanted(true, "demo");
        subnets[1].tags = wanted(false, "demo");
        network(&subnets)
    }

    #[test]
    fn a_network_as_it_was_made_has_no_drift() {
        assert_eq!(drift(&output(), &as_made(), "demo"), Drift::default());
    }

    #[test]
    fn a_lost_tag_is_put_back() {
        let mut network = as_made();
        network.subnets[0].tags.remove(DISCOVERY_TAG);
        let found = drift(&output(), &network, "demo");
        let back = BTreeMap::from([(DISCOVERY_TAG.to_owned(), "demo".to_owned())]);
        assert_eq!(found, Drift { tags: BTreeMap::from([("subnet-1".to_owned(), back)]), faults: Vec::new() });
    }

    #[test]
    fn a_lost_route_gateway_or_subnet_is_named() {
        let mut network = as_made();
        network.nat_gateways.clear();
        network.subnets[1].way_out = None;
        let told = drift(&output(), &network, "demo").faults;
        assert_eq!(
            told,
            [
                "the default route of the private subnet subnet-1, in rtb-1, goes to nat-1, which is gone",
                "the default route of the public subnet subnet-2, in rtb-1, is gone"
            ]
        );
        network.subnets.clear();
        assert_eq!(drift(&output(), &network, "demo").faults.len(), 2);
    }
}
