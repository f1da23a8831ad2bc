//! An existing network: which of its subnets a cluster takes, and everything that speaks against them. Nothing here
//! tags or changes it: the node class names its subnets by id (docs/adr/0006).

use std::collections::{BTreeMap, BTreeSet};

use slipway_statemachine::{ErrorName, StepError, names::DISCOVERY_TAG, spec::NetworkExisting};

use super::Output;
use crate::aws::networks::{Network, Subnet, Subnets};

/// Zones in which EKS makes no control plane, by id (UnsupportedAvailabilityZoneException; EKS user guide, "Subnet
/// requirements").
pub(crate) const REFUSED_ZONE_IDS: &[&str] = &["use1-az3", "usw1-az2", "cac1-az3"];

/// Addresses that EKS recommends to leave it in each subnet of a control plane (EKS user guide, "Subnet requirements").
const FREE_ADDRESSES: i32 = 16;

/// The tag by which load balancers find private subnets, with the value 1 or none.
const INTERNAL_LOAD_BALANCER_TAG: &str = "kubernetes.io/role/internal-elb";

/// What nodes and Karpenter need endpoints of where there is no way out (EKS user guide, "Private clusters").
const ENDPOINTS: &[&str] = &["ec2", "ecr.api", "ecr.dkr", "eks", "s3", "sqs", "ssm", "sts"];

/// Something that speaks against an existing network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The spec's field.
    pub(crate) field: String,
    /// What was seen: a sentence without its full stop.
    pub(crate) evidence: String,
}

/// Which subnets have to be looked at.
pub(crate) fn to_look_at(existing: &NetworkExisting) -> Subnets<'_> {
    if existing.subnet_ids.is_empty() { Subnets::OfVpc } else { Subnets::Ids(&existing.subnet_ids) }
}

/// The subnets that the cluster takes, each with its field: those listed, in their order; where none is listed, those
/// that bear the discovery tag with the cluster's name, else those marked for internal load balancers.
fn chosen<'a>(existing: &NetworkExisting, network: &'a Network, cluster: &str) -> Vec<(String, &'a Subnet)> {
    if !existing.subnet_ids.is_empty() {
        let listed = existing.subnet_ids.iter().enumerate();
        return listed
            .filter_map(|(index, id)| {
                let subnet = network.subnets.iter().find(|subnet| subnet.id == *id)?;
                Some((format!("network.existing.subnetIds[{index}]"), subnet))
            })
            .collect();
    }
    let bearing = |bears: &dyn Fn(&BTreeMap<String, String>) -> bool| -> Vec<&'a Subnet> {
        let mut bearing: Vec<&Subnet> = network.subnets.iter().filter(|subnet| bears(&subnet.tags)).collect();
        bearing.sort_by(|one, other| (&one.zone, &one.id).cmp(&(&other.zone, &other.id)));
        bearing
    };
    let discovered = bearing(&|tags| tags.get(DISCOVERY_TAG).is_some_and(|name| name == cluster));
    let found = if discovered.is_empty() {
        bearing(&|tags| tags.get(INTERNAL_LOAD_BALANCER_TAG).is_some_and(|value| value == "1" || value.is_empty()))
    } else {
        discovered
    };
    found.into_iter().map(|subnet| ("network.existing".to_owned(), subnet)).collect()
}

/// Everything about an existing network that a cluster of this name cannot use.
pub(crate) fn faults(existing: &NetworkExisting, network: &Network, cluster: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, evidence: String| faults.push(Fault { field: field.to_owned(), evidence });
    match &network.vpc {
        None => fault("network.existing.vpcId", format!("{} does not exist", existing.vpc_id)),
        Some(vpc) => {
            for (holds, name) in [(vpc.dns_support, "enableDnsSupport"), (vpc.dns_hostnames, "enableDnsHostnames")] {
                if !holds {
                    let evidence = format!("{} has {name} off, and nodes find the cluster by name", existing.vpc_id);
                    fault("network.existing.vpcId", evidence);
                }
            }
        }
    }
    for (index, id) in existing.subnet_ids.iter().enumerate() {
        let field = format!("network.existing.subnetIds[{index}]");
        if existing.subnet_ids[..index].contains(id) {
            fault(&field, format!("{id} is listed twice"));
        } else if network.subnets.iter().all(|subnet| subnet.id != *id) {
            fault(&field, format!("{id} does not exist"));
        }
    }
    let chosen = chosen(existing, network, cluster);
    let endpoints = network.vpc.as_ref().map(|vpc| &vpc.endpoints);
    for (field, subnet) in &chosen {
        for evidence in against(existing, network, subnet, endpoints) {
            fault(field, evidence);
        }
    }
    let field = if existing.subnet_ids.is_empty() { "network.existing" } else { "network.existing.subnetIds" };
    if chosen.is_empty() && existing.subnet_ids.is_empty() {
        let evidence = format!(
            "no subnet of {} bears {DISCOVERY_TAG}={cluster} or {INTERNAL_LOAD_BALANCER_TAG}=1, and none is listed",
            existing.vpc_id
        );
        fault(field, evidence);
        return faults;
    }
    let zones: BTreeSet<&str> = chosen.iter().map(|(_, subnet)| subnet.zone.as_str()).collect();
    if zones.len() < 2 {
        let evidence = format!("the subnets are in {} zone, EKS and Karpenter need two", zones.len());
        fault(field, evidence);
    }
    faults
}

/// What speaks against a subnet.
fn against(
    existing: &NetworkExisting,
    network: &Network,
    subnet: &Subnet,
    endpoints: Option<&BTreeSet<String>>,
) -> Vec<String> {
    let id = &subnet.id;
    let mut against = Vec::new();
    if subnet.vpc_id != existing.vpc_id {
        // Its routes are in its own VPC, which was not looked at.
        return vec![format!("{id} is in {}, not in {}", subnet.vpc_id, existing.vpc_id)];
    }
    match &subnet.way_out {
        Some(out) if out.target.starts_with("igw-") => against.push(format!(
            "{id} is public: its default route goes to {}, while nodes have no public address",
            out.target
        )),
        Some(out) if out.blackhole || gone(network, &out.target) => against.push(format!(
            "{id} has no way out: its default route in {} goes to {}, which is gone",
            subnet.route_table, out.target
        )),
        Some(_) => {}
        None => {
            let lacking: Vec<&str> = ENDPOINTS
                .iter()
                .copied()
                .filter(|service| endpoints.is_none_or(|endpoints| !endpoints.contains(*service)))
                .collect();
            if !lacking.is_empty() {
                against.push(format!(
                    "{id} has no route to 0.0.0.0/0 in {}, and the VPC has no endpoints of {}",
                    subnet.route_table,
                    lacking.join(", ")
                ));
            }
        }
    }
    if subnet.free_addresses < FREE_ADDRESSES {
        against.push(format!(
            "{id} has {} free addresses; EKS wants {FREE_ADDRESSES}, and every pod takes one",
            subnet.free_addresses
        ));
    }
    if REFUSED_ZONE_IDS.contains(&subnet.zone_id.as_str()) {
        against.push(format!("{id} is in {}, where EKS makes no control plane", subnet.zone_id));
    }
    against
}

fn gone(network: &Network, target: &str) -> bool {
    target.starts_with("nat-") && !network.nat_gateways.contains(target)
}

/// The network as later steps need it.
///
/// # Errors
/// `NetworkUnsuitable` with every fault.
pub(crate) fn decide(existing: &NetworkExisting, network: &Network, cluster: &str) -> Result<Output, StepError> {
    let faults = faults(existing, network, cluster);
    if !faults.is_empty() {
        let list: Vec<String> = faults.iter().map(|fault| format!("{}: {}", fault.field, fault.evidence)).collect();
        let cause = format!("The network {} cannot carry the cluster: {}.", existing.vpc_id, list.join("; "));
        return Err(StepError::new(ErrorName::NetworkUnsuitable, cause));
    }
    let chosen = chosen(existing, network, cluster);
    let zones: BTreeSet<&String> = chosen.iter().map(|(_, subnet)| &subnet.zone).collect();
    Ok(Output {
        vpc_id: existing.vpc_id.clone(),
        zones: zones.into_iter().cloned().collect(),
        private_subnet_ids: chosen.iter().map(|(_, subnet)| subnet.id.clone()).collect(),
        public_subnet_ids: Vec::new(),
        stack_name: None,
    })
}

/// The zones of the subnets that the cluster would take.
pub(crate) fn zones(existing: &NetworkExisting, network: &Network, cluster: &str) -> BTreeSet<String> {
    chosen(existing, network, cluster).into_iter().map(|(_, subnet)| subnet.zone.clone()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::aws::networks::{Vpc, WayOut};

    pub(crate) fn subnet(id: &str, zone: &str, way_out: Option<&str>) -> Subnet {
        Subnet {
            id: id.to_owned(),
            vpc_id: "vpc-1".to_owned(),
            zone: zone.to_owned(),
            zone_id: format!("id-{zone}"),
            free_addresses: 4000,
            route_table: "rtb-1".to_owned(),
            way_out: way_out.map(|target| WayOut { target: target.to_owned(), blackhole: false }),
            tags: BTreeMap::new(),
        }
    }

    pub(crate) fn network(subnets: &[Subnet]) -> Network {
        Network {
            vpc: Some(Vpc { dns_support: true, dns_hostnames: true, endpoints: BTreeSet::new() }),
            subnets: subnets.to_vec(),
            nat_gateways: BTreeSet::from(["nat-1".to_owned()]),
        }
    }

    fn existing(ids: &[&str]) -> NetworkExisting {
        NetworkExisting { vpc_id: "vpc-1".to_owned(), subnet_ids: ids.iter().map(|id| (*id).to_owned()).collect() }
    }

    #[test]
    fn a_good_network_is_taken_as_it_is() {
        let good = [
            subnet("subnet-1", "b", Some("nat-1")),
            subnet("subnet-2", "a", Some("tgw-1")),
            subnet("subnet-3", "a", Some("nat-1")),
        ];
        let output = decide(&existing(&["subnet-3", "subnet-1", "subnet-2"]), &network(&good), "demo").unwrap();
        assert_eq!(output.private_subnet_ids, ["subnet-3", "subnet-1", "subnet-2"], "in the spec's order");
        assert_eq!((output.zones, output.public_subnet_ids), (vec!["a".to_owned(), "b".to_owned()], Vec::new()));
    }

    #[test]
    fn subnets_are_found_by_tag() {
        let tagged = |id: &str, zone: &str, key: &str, value: &str| {
            let mut subnet = subnet(id, zone, Some("nat-1"));
            subnet.tags.insert(key.to_owned(), value.to_owned());
            subnet
        };
        let internal = [
            tagged("subnet-1", "b", INTERNAL_LOAD_BALANCER_TAG, "1"),
            tagged("subnet-2", "a", INTERNAL_LOAD_BALANCER_TAG, ""),
            tagged("subnet-3", "c", "kubernetes.io/role/elb", "1"),
        ];
        let found = decide(&existing(&[]), &network(&internal), "demo").unwrap();
        assert_eq!(found.private_subnet_ids, ["subnet-2", "subnet-1"]);
        let discovered = [
            tagged("subnet-4", "a", DISCOVERY_TAG, "demo"),
            tagged("subnet-5", "b", DISCOVERY_TAG, "demo"),
            tagged("subnet-6", "b", DISCOVERY_TAG, "demo-2"),
        ];
        let all = network(&[&internal[..], &discovered[..]].concat());
        assert_eq!(decide(&existing(&[]), &all, "demo").unwrap().private_subnet_ids, ["subnet-4", "subnet-5"]);
        let none = faults(&existing(&[]), &network(&[subnet("subnet-1", "a", Some("nat-1"))]), "demo");
        assert_eq!(none.len(), 1);
        assert!(none[0].evidence.starts_with("no subnet of vpc-1 bears karpenter.sh/discovery=demo"), "{none:?}");
    }

    #[test]
    fn every_fault_is_told_with_its_field() {
        let mut elsewhere = subnet("subnet-4", "a", Some("nat-1"));
        elsewhere.vpc_id = "vpc-2".to_owned();
        let mut narrow = subnet("subnet-5", "a", Some("nat-1"));
        narrow.free_addresses = 3;
        narrow.zone_id = "use1-az3".to_owned();
        let subnets = [
            subnet("subnet-1", "a", Some("igw-1")),
            subnet("subnet-2", "a", None),
            subnet("subnet-3", "a", Some("nat-gone")),
            elsewhere,
            narrow,
        ];
        let mut network = network(&subnets);
        network.vpc.as_mut().unwrap().dns_hostnames = false;
        let ids = ["subnet-1", "subnet-2", "subnet-3", "subnet-4", "subnet-5", "subnet-6", "subnet-1"];
        let error = decide(&existing(&ids), &network, "demo").unwrap_err();
        assert_eq!(error.name, ErrorName::NetworkUnsuitable);
        for told in [
            "network.existing.vpcId: vpc-1 has enableDnsHostnames off",
            "network.existing.subnetIds[0]: subnet-1 is public",
            "network.existing.subnetIds[1]: subnet-2 has no route to 0.0.0.0/0 in rtb-1, and the VPC has no endpoints of ec2",
            "network.existing.subnetIds[2]: subnet-3 has no way out: its default route in rtb-1 goes to nat-gone",
            "network.existing.subnetIds[3]: subnet-4 is in vpc-2, not in vpc-1",
            "network.existing.subnetIds[4]: subnet-5 has 3 free addresses",
            "network.existing.subnetIds[4]: subnet-5 is in use1-az3",
            "network.existing.subnetIds[5]: subnet-6 does not exist",
            "network.existing.subnetIds[6]: subnet-1 is listed twice",
            "network.existing.subnetIds: the subnets are in 1 zone",
        ] {
            assert!(error.cause.contains(told), "{told} is not in: {}", error.cause);
        }
    }

    #[test]
    fn endpoints_stand_in_for_a_way_out() {
        let mut network = network(&[subnet("subnet-1", "a", None), subnet("subnet-2", "b", None)]);
        network.vpc.as_mut().unwrap().endpoints = ENDPOINTS.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(faults(&existing(&["subnet-1", "subnet-2"]), &network, "demo"), []);
        network.vpc.as_mut().unwrap().endpoints.remove("sts");
        let told = faults(&existing(&["subnet-1", "subnet-2"]), &network, "demo");
        assert!(told.len() == 2 && told[0].evidence.ends_with("has no endpoints of sts"), "{told:?}");
    }
}
