//! The account's limits: what a new cluster needs of each, what is in use, what is allowed.

use std::collections::BTreeMap;

use aws_config::Region;
use aws_sdk_iam::types::SummaryKeyType;
use aws_sdk_servicequotas::types::ServiceQuota;
use slipway_statemachine::{
    ClusterSpec, StepError,
    spec::{Capacity, Nat, NetworkSpec},
};

use super::{Findings, Observed, There};
use crate::{
    Context,
    aws::error::{During as _, code, refused},
};

/// A limit of the account, as Service Quotas numbers it.
#[derive(Debug, Clone, Copy)]
struct Quota {
    service: &'static str,
    code: &'static str,
    name: &'static str,
    /// What holds where nobody changed it.
    default: f64,
}

const VPCS: Quota = Quota { service: "vpc", code: "L-F678F1CE", name: "VPCs per Region", default: 5.0 };
const GATEWAYS: Quota =
    Quota { service: "vpc", code: "L-A4707A72", name: "Internet gateways per Region", default: 5.0 };
const ADDRESSES: Quota = Quota { service: "ec2", code: "L-0263D0A3", name: "EC2-VPC Elastic IPs", default: 5.0 };
const CLUSTERS: Quota = Quota { service: "eks", code: "L-1194D53C", name: "Clusters", default: 100.0 };
const RULES: Quota = Quota { service: "events", code: "L-244521F2", name: "Number of rules", default: 300.0 };
const ROLES: Quota = Quota { service: "iam", code: "L-FE177D64", name: "Roles per account", default: 1000.0 };
const POLICIES: Quota =
    Quota { service: "iam", code: "L-E95E4862", name: "Customer managed policies per account", default: 1500.0 };
const PROFILES: Quota =
    Quota { service: "iam", code: "L-6E65F664", name: "Instance profiles per account", default: 1000.0 };
const PROVIDERS: Quota =
    Quota { service: "iam", code: "L-858F3967", name: "OpenId connect providers per account", default: 100.0 };
const ON_DEMAND: Quota = Quota {
    service: "ec2",
    code: "L-1216C47A",
    name: "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
    default: 5.0,
};
const SPOT: Quota = Quota {
    service: "ec2",
    code: "L-34B43A08",
    name: "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests",
    default: 5.0,
};

/// Service Quotas knows IAM, which is global, in this region alone.
const IAM_REGION: &str = "us-east-1";

/// vCPUs of the smallest types that Karpenter takes for a pod of verify-capacity.
const SMALLEST_NODE_VCPUS: u32 = 2;

/// Used and allowed, by the quota's name; a quota that we may not see is not there.
#[derive(Debug, Default, Clone)]
pub(super) struct Room(BTreeMap<&'static str, Use>);

#[derive(Debug, Clone, Copy)]
struct Use {
    used: usize,
    limit: f64,
}

/// What was heard of the quotas.
pub(super) struct Heard(Vec<Answers>);

/// A quota, how much of it is used, and the limit.
type Answers = (Quota, Result<usize, StepError>, Result<f64, StepError>);

impl Heard {
    /// The room there is; a look that is denied is a finding.
    pub(super) fn told(self, findings: &mut Findings) -> Result<Room, StepError> {
        let mut room = Room::default();
        for (quota, used, limit) in self.0 {
            let (used, limit) = (findings.seen(used)?, findings.seen(limit)?);
            if let Some((used, limit)) = used.zip(limit) {
                room.0.insert(quota.name, Use { used, limit });
            }
        }
        Ok(room)
    }
}

/// What a new network, a new cluster, the core nodes and the first nodes of the pools need.
pub(super) fn check(spec: &ClusterSpec, seen: &Observed, findings: &mut Findings) {
    let mut needs: Vec<(&str, Quota, u32)> = Vec::new();
    if let (There::No, NetworkSpec::Create(create)) = (&seen.stack, &spec.network) {
        let addresses = match create.nat {
            Nat::Single => 1,
            Nat::PerZone => u32::from(create.zones),
        };
        let field = "network.create";
        needs.extend([(field, VPCS, 1), (field, GATEWAYS, 1), ("network.create.nat", ADDRESSES, addresses)]);
    }
    if let There::No = seen.cluster {
        // Cluster, core nodes, Karpenter's nodes, Karpenter; six policies; EKS's profile and Karpenter's.
        let iam = [(PROVIDERS, 1), (ROLES, 4), (POLICIES, 6), (PROFILES, 2)];
        needs.push(("name", CLUSTERS, 1));
        needs.extend(iam.map(|(quota, needed)| ("account", quota, needed)));
        needs.push(("region", RULES, 5));
        needs.extend(core_vcpus(spec, seen).map(|vcpus| ("core.size", ON_DEMAND, vcpus)));
    }
    for (field, quota, needed) in needs {
        if let Some(evidence) = seen.room.lacks(quota, needed) {
            findings.error(field, "quota", evidence, raise(quota));
        }
    }
    check_spot(spec, seen, findings);
}

/// vCPUs of the core group at its smallest type. Types of other letters have quotas of their own.
fn core_vcpus(spec: &ClusterSpec, seen: &Observed) -> Option<u32> {
    let standard = |name: &str| name.starts_with(['a', 'c', 'd', 'h', 'i', 'm', 'r', 't', 'z']);
    let types = seen.core_types.as_ref()?;
    let smallest = types.iter().filter(|kind| standard(&kind.name)).map(|kind| kind.vcpus).min()?;
    Some(smallest.saturating_mul(spec.core.size))
}

/// A pool that may fall back to on-demand capacity only loses its discount.
fn check_spot(spec: &ClusterSpec, seen: &Observed, findings: &mut Findings) {
    let on_spot: Vec<_> = spec.node_pools.iter().filter(|pool| pool.capacity.contains(&Capacity::Spot)).collect();
    let nodes = u32::try_from(on_spot.len()).unwrap_or(u32::MAX);
    let Some(evidence) = seen.room.lacks(SPOT, nodes.saturating_mul(SMALLEST_NODE_VCPUS)) else { return };
    if on_spot.iter().any(|pool| !pool.capacity.contains(&Capacity::OnDemand)) {
        findings.error("nodePools", "quota", evidence, raise(SPOT));
    } else {
        findings.warning("nodePools", "quota", format!("{evidence} Nodes will be on-demand."), raise(SPOT));
    }
}

impl Room {
    /// What is lacking of a quota, in words.
    fn lacks(&self, quota: Quota, needed: u32) -> Option<String> {
        let Use { used, limit } = *self.0.get(quota.name)?;
        let in_use = u32::try_from(used).unwrap_or(u32::MAX);
        (f64::from(in_use) + f64::from(needed) > limit)
            .then(|| format!("{used} of {limit} are in use, {needed} more are needed (\"{}\").", quota.name))
    }
}

fn raise(quota: Quota) -> String {
    format!("Delete what is unused, or have the quota {}/{} raised in Service Quotas.", quota.service, quota.code)
}

/// Looks at every quota and its use, side by side. vCPUs in use are not counted: what runs may end before the cluster
/// is there, so only a limit that could never do is told.
pub(super) async fn look(cx: &Context) -> Heard {
    let network = async { tokio::join!(vpcs(cx), gateways(cx), addresses(cx), clusters(cx)) };
    let global = async { tokio::join!(account_summary(cx), providers(cx), rules(cx)) };
    let (network, (summary, providers, rules)) = tokio::join!(network, global);
    let of = |key: SummaryKeyType| match &summary {
        Ok(summary) => Ok(summary.get(&key).copied().unwrap_or_default()),
        Err(error) => Err(error.clone()),
    };
    let count = |key| of(key).map(|count| usize::try_from(count).unwrap_or_default());
    let used = [
        (VPCS, network.0),
        (GATEWAYS, network.1),
        (ADDRESSES, network.2),
        (CLUSTERS, network.3),
        (PROVIDERS, providers),
        (RULES, rules),
        (ROLES, count(SummaryKeyType::Roles)),
        (POLICIES, count(SummaryKeyType::Policies)),
        (PROFILES, count(SummaryKeyType::InstanceProfiles)),
        (ON_DEMAND, Ok(0)),
        (SPOT, Ok(0)),
    ];
    let limits = futures::future::join_all(used.iter().map(|(quota, _)| limit(cx, *quota))).await;
    Heard(used.into_iter().zip(limits).map(|((quota, used), limit)| (quota, used, limit)).collect())
}

async fn vpcs(cx: &Context) -> Result<usize, StepError> {
    let vpcs = cx.aws.ec2().describe_vpcs().into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
    Ok(vpcs.during("ec2:DescribeVpcs")?.len())
}

async fn gateways(cx: &Context) -> Result<usize, StepError> {
    let gateways =
        cx.aws.ec2().describe_internet_gateways().into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
    Ok(gateways.during("ec2:DescribeInternetGateways")?.len())
}

async fn addresses(cx: &Context) -> Result<usize, StepError> {
    let addresses = cx.aws.ec2().describe_addresses().send().await.during("ec2:DescribeAddresses")?;
    Ok(addresses.addresses().len())
}

async fn clusters(cx: &Context) -> Result<usize, StepError> {
    let clusters = cx.aws.eks().list_clusters().into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
    Ok(clusters.during("eks:ListClusters")?.len())
}

async fn providers(cx: &Context) -> Result<usize, StepError> {
    let answer = cx.aws.iam().list_open_id_connect_providers().send().await;
    Ok(answer.during("iam:ListOpenIDConnectProviders")?.open_id_connect_provider_list().len())
}

async fn account_summary(cx: &Context) -> Result<BTreeMap<SummaryKeyType, i32>, StepError> {
    let answer = cx.aws.iam().get_account_summary().send().await.during("iam:GetAccountSummary")?;
    Ok(answer.summary_map.unwrap_or_default().into_iter().collect())
}

async fn rules(cx: &Context) -> Result<usize, StepError> {
    let (mut count, mut next) = (0, None);
    loop {
        let page = cx.aws.events().list_rules().set_next_token(next).send().await.during("events:ListRules")?;
        count += page.rules().len();
        next = page.next_token;
        if next.is_none() {
            return Ok(count);
        }
    }
}

/// The limit as it is set; Service Quotas knows only those that somebody raised or that it tracks, and says "no such
/// resource" for the rest, which have their default.
async fn limit(cx: &Context, quota: Quota) -> Result<f64, StepError> {
    let call = cx.aws.quotas().get_service_quota().service_code(quota.service).quota_code(quota.code);
    let answer = if quota.service == "iam" {
        let there = aws_sdk_servicequotas::Config::builder().region(Region::new(IAM_REGION));
        call.customize().config_override(there).send().await
    } else {
        call.send().await
    };
    match answer {
        Ok(answer) => Ok(answer.quota().and_then(ServiceQuota::value).unwrap_or(quota.default)),
        Err(error) if code(&error) == Some("NoSuchResourceException") => Ok(quota.default),
        Err(error) => Err(refused("servicequotas:GetServiceQuota", &error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::steps::preflight::Severity;

    /// An account with room for one cluster of the default spec and nothing more.
    pub(in super::super) fn just_enough() -> Room {
        let uses = [
            (VPCS, 4),
            (GATEWAYS, 4),
            (ADDRESSES, 4),
            (CLUSTERS, 99),
            (RULES, 295),
            (ROLES, 996),
            (POLICIES, 1494),
            (PROFILES, 998),
            (PROVIDERS, 99),
            (ON_DEMAND, 1),
            (SPOT, 1),
        ];
        Room(uses.map(|(quota, used)| (quota.name, Use { used, limit: quota.default })).into())
    }

    impl Room {
        pub(in super::super) fn set(&mut self, name: &'static str, used: usize, limit: f64) {
            assert!(self.0.insert(name, Use { used, limit }).is_some(), "there is no quota {name}");
        }
    }

    fn found(more: serde_json::Value, room: Room) -> Vec<(Severity, String)> {
        let mut spec = json!({"name": "demo", "version": "1.36"});
        if let (Some(spec), serde_json::Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        let spec = ClusterSpec::parse(&spec).unwrap();
        let mut findings = Findings::default();
        let seen = Observed { cluster: There::No, stack: There::No, room, ..Observed::default() };
        check(&spec, &seen, &mut findings);
        findings.0.into_iter().map(|finding| (finding.severity, finding.evidence)).collect()
    }

    #[test]
    fn an_account_with_just_enough_room_will_do() {
        assert_eq!(found(json!({}), just_enough()), []);
    }

    #[test]
    fn each_quota_that_one_more_cluster_would_pass_is_named() {
        let regional = [(VPCS, 5), (GATEWAYS, 5), (ADDRESSES, 5), (CLUSTERS, 100), (RULES, 296)];
        let global = [(PROVIDERS, 100), (ROLES, 997), (POLICIES, 1495), (PROFILES, 999)];
        for (quota, used) in regional.into_iter().chain(global) {
            let mut room = just_enough();
            room.set(quota.name, used, quota.default);
            let found = found(json!({}), room);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0 == Severity::Error && found[0].1.contains(quota.name), "{found:?}");
        }
    }

    #[test]
    fn too_little_spot_is_a_warning_where_a_pool_may_fall_back() {
        let mut room = just_enough();
        room.set(SPOT.name, 0, 1.0);
        let fallen = found(json!({}), room.clone());
        assert!(fallen.len() == 1 && fallen[0].0 == Severity::Warning, "{fallen:?}");
        let pool = json!({"nodePools": [{"name": "x86", "architecture": "amd64", "capacity": ["spot"]}]});
        assert_eq!(found(pool, room)[0].0, Severity::Error);
    }
}
