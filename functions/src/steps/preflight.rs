//! preflight: finds everything that would fail fifteen minutes later, at once, and chooses the zones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use aws_sdk_ec2::types::{Filter, LocationType, ProcessorInfo, VCpuInfo};
use ipnet::Ipv4Net;
use schemars::JsonSchema;
use semver::Version;
use serde::{Deserialize, Serialize};
use slipway_karpenter::policy::{MANAGED_POLICY_CHARACTERS, Scope, characters, controller_policies};
use slipway_statemachine::{
    ClusterKey, ClusterSpec, ErrorName, Run, Step, StepError,
    names::{self, CLUSTER_TAG},
    spec::{Architecture, NetworkSpec, UpgradePolicy},
};

use super::ensure_network::existing::{self, REFUSED_ZONE_IDS};
use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        networks::{self, Network},
        stacks::{self, Stack},
    },
    cluster::chart,
};

mod permissions;
mod quotas;

/// Looks before anything is made.
#[derive(Debug)]
pub struct Preflight;

/// For which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// The cluster.
    pub cluster: ClusterKey,
    /// The completed spec.
    pub spec: ClusterSpec,
}

/// What may be relied on.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// By name, as many as the network has.
    pub zones: Vec<String>,
    /// Warnings; an error is a failure of the step.
    pub findings: Vec<Finding>,
}

/// One thing that is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Whether the run can go on.
    pub severity: Severity,
    /// The spec's field, `core.instanceTypes`.
    pub field: String,
    /// What was looked at.
    pub check: String,
    /// What was seen.
    pub evidence: String,
    /// What to do.
    pub remedy: String,
}

/// Whether the run can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can.
    Warning,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {} {}", self.field, self.check, self.evidence, self.remedy)
    }
}

impl Step for Preflight {
    const NAME: &'static str = "preflight";
    const ERRORS: &'static [ErrorName] = &[ErrorName::PreflightFailed, ErrorName::EndpointUnreachable];
    type Input = Input;
    type Output = Output;
}

/// Types that a pool of an architecture would start with; a zone without any of them is not worth having.
const fn common_types(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Amd64 => &["m5.large", "m6i.large", "m6a.large", "c5.large", "c6i.large"],
        Architecture::Arm64 => &["m6g.large", "m7g.large", "c6g.large", "c7g.large"],
    }
}

/// The first Karpenter that supports a Kubernetes minor (Karpenter's compatibility matrix).
const FIRST_KARPENTER: &[(u64, Version)] = &[
    (29, Version::new(0, 34, 0)),
    (30, Version::new(0, 37, 0)),
    (31, Version::new(1, 0, 5)),
    (32, Version::new(1, 2, 0)),
    (33, Version::new(1, 5, 0)),
    (34, Version::new(1, 6, 0)),
    (35, Version::new(1, 9, 0)),
    (36, Version::new(1, 13, 0)),
];

/// What was seen; none where we may not look, which is a finding of its own.
#[derive(Debug, Default)]
struct Observed {
    zones: Option<Vec<Zone>>,
    /// Where the types that matter are offered: type to zones.
    offerings: Option<BTreeMap<String, BTreeSet<String>>>,
    core_types: Option<Vec<InstanceType>>,
    /// Kubernetes minors that EKS makes clusters of.
    versions: Option<Vec<Offered>>,
    cluster: There<ThereCluster>,
    stack: There<Stack>,
    /// Of an existing network.
    network: Option<Network>,
    room: quotas::Room,
    /// What the steps will not be let.
    refused: Vec<permissions::Refused>,
    /// Whether the chart is where the spec says.
    chart: Option<Result<(), StepError>>,
}

/// Something that may be there.
#[derive(Debug, Default)]
enum There<T> {
    /// We may not look.
    #[default]
    Unseen,
    No,
    Yes(T),
}

impl<T> From<Option<Option<T>>> for There<T> {
    fn from(seen: Option<Option<T>>) -> Self {
        seen.map_or(Self::Unseen, |there| there.map_or(Self::No, Self::Yes))
    }
}

#[derive(Debug, Clone)]
struct Zone {
    name: String,
    id: String,
    /// Available, ordinary and opted in.
    usable: bool,
}

#[derive(Debug, Clone)]
struct InstanceType {
    name: String,
    architecture: Option<Architecture>,
    vcpus: u32,
}

#[derive(Debug, Clone)]
struct Offered {
    version: String,
    standard_support: bool,
}

#[derive(Debug, Clone)]
struct ThereCluster {
    version: String,
    owner: Option<String>,
}

/// The findings of a run, errors and warnings.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, field: &str, check: &str, evidence: String, remedy: impl Into<String>) {
        let (field, check) = (field.to_owned(), check.to_owned());
        self.0.push(Finding { severity, field, check, evidence, remedy: remedy.into() });
    }

    fn error(&mut self, field: &str, check: &str, evidence: String, remedy: impl Into<String>) {
        self.add(Severity::Error, field, check, evidence, remedy);
    }

    fn warning(&mut self, field: &str, check: &str, evidence: String, remedy: impl Into<String>) {
        self.add(Severity::Warning, field, check, evidence, remedy);
    }

    /// What was seen. A look that is denied is a finding, so that it hides no other; what may pass is tried again.
    fn seen<T>(&mut self, look: Result<T, StepError>) -> Result<Option<T>, StepError> {
        match look {
            Ok(seen) => Ok(Some(seen)),
            Err(error) if error.name == ErrorName::AccessDenied => {
                self.error("account", "permissions", error.cause, error.remedy);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The zones, unless there is an error.
    fn conclude(self, zones: Vec<String>) -> Result<Output, StepError> {
        let errors: Vec<&Finding> = self.0.iter().filter(|finding| finding.severity == Severity::Error).collect();
        if errors.is_empty() {
            return Ok(Output { zones, findings: self.0 });
        }
        let (count, noun) = (errors.len(), if errors.len() == 1 { "thing" } else { "things" });
        let list: Vec<String> =
            errors.iter().zip(1..).map(|(finding, number)| format!("[{number}] {finding}")).collect();
        let cause = format!("The run would fail later for {count} {noun}: {}", list.join(" "));
        let reach_alone = errors.iter().all(|finding| finding.check == REACH);
        Err(StepError::new(
            if reach_alone { ErrorName::EndpointUnreachable } else { ErrorName::PreflightFailed },
            cause,
        ))
    }
}

/// Everything that speaks against the run, and the zones.
fn decide(cluster: &ClusterKey, spec: &ClusterSpec, seen: &Observed, findings: &mut Findings) -> Vec<String> {
    check_cluster(spec, seen, findings);
    check_versions(spec, seen, findings);
    check_core(spec, seen, findings);
    check_reach(spec, findings);
    check_policies(cluster, findings);
    check_chart(seen, findings);
    quotas::check(spec, seen, findings);
    permissions::check(seen, findings);
    zones(cluster, spec, seen, findings)
}

fn check_cluster(spec: &ClusterSpec, seen: &Observed, findings: &mut Findings) {
    let There::Yes(there) = &seen.cluster else { return };
    let wanted = spec.version.as_deref().unwrap_or_default();
    if there.owner.as_deref() != Some(spec.name.as_str()) && !(spec.adopt && there.owner.is_none()) {
        let evidence = format!("A cluster {} exists without the tag {CLUSTER_TAG}={}.", spec.name, spec.name);
        findings.error("name", "ownership", evidence, "Choose another name, or delete that cluster.");
    } else if there.version != wanted {
        let evidence = format!("The cluster runs {}, the spec asks for {wanted}.", there.version);
        let remedy = format!("This release upgrades no control plane; ask for {}.", there.version);
        findings.error("version", "upgrade", evidence, remedy);
    }
}

fn check_versions(spec: &ClusterSpec, seen: &Observed, findings: &mut Findings) {
    let version = spec.version.as_deref().unwrap_or_default();
    if let Some(versions) = &seen.versions {
        let names: Vec<&str> = versions.iter().map(|offered| offered.version.as_str()).collect();
        match versions.iter().find(|offered| offered.version == version) {
            None => {
                let evidence = format!("EKS does not offer {version}; it offers {}.", names.join(", "));
                findings.error("version", "version", evidence, "Ask for one that is offered.");
            }
            Some(offered) if !offered.standard_support && spec.upgrade_policy == UpgradePolicy::Standard => {
                let evidence = format!("{version} is in extended support, which costs extra.");
                findings.error(
                    "version",
                    "version",
                    evidence,
                    "Ask for a newer one, or set upgradePolicy to EXTENDED.",
                );
            }
            Some(_) => {}
        }
    }
    let minor = version.strip_prefix("1.").and_then(|minor| minor.parse::<u64>().ok());
    if let (Some(minor), Ok(karpenter)) = (minor, Version::parse(&spec.karpenter.version)) {
        match FIRST_KARPENTER.iter().find(|(known, _)| *known == minor) {
            Some((_, first)) if karpenter < *first => {
                let evidence = format!("Karpenter {karpenter} does not support Kubernetes {version}.");
                findings.error("karpenter.version", "compatibility", evidence, format!("Ask for {first} or newer."));
            }
            Some(_) => {}
            None => {
                let evidence =
                    format!("Whether Karpenter {karpenter} supports Kubernetes {version} is not known here.");
                findings.warning("karpenter.version", "compatibility", evidence, "Look into its compatibility matrix.");
            }
        }
    }
}

fn check_core(spec: &ClusterSpec, seen: &Observed, findings: &mut Findings) {
    let Some(types) = &seen.core_types else { return };
    let field = "core.instanceTypes";
    let unknown: Vec<&str> = spec
        .core
        .instance_types
        .iter()
        .map(String::as_str)
        .filter(|name| types.iter().all(|t| t.name != **name))
        .collect();
    if !unknown.is_empty() {
        let evidence = format!("EC2 has no type {} in this region.", unknown.join(", "));
        findings.error(field, "instance types", evidence, "Ask for types that the region offers.");
    }
    let architectures: BTreeSet<&str> =
        types.iter().map(|t| t.architecture.map_or("neither amd64 nor arm64", Architecture::as_str)).collect();
    if architectures.len() > 1 {
        let evidence =
            format!("The types are {}, but a node group has one image.", Vec::from_iter(architectures).join(" and "));
        findings.error(field, "architecture", evidence, "List types of one architecture.");
    }
}

/// The check that has an error name of its own.
const REACH: &str = "EndpointUnreachable";

/// The functions that log in to the cluster have no fixed address.
fn check_reach(spec: &ClusterSpec, findings: &mut Findings) {
    let endpoint = &spec.access.endpoint;
    let blocks: Vec<Ipv4Net> = endpoint.cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect();
    let open = endpoint.public && Ipv4Net::aggregate(&blocks).iter().any(|block| block.prefix_len() == 0);
    if !open {
        let evidence = if endpoint.public {
            format!("The endpoint is open to {} only.", endpoint.cidrs.join(", "))
        } else {
            "The endpoint is private.".to_owned()
        };
        let remedy = "This release speaks to the cluster from outside its VPC, from addresses of AWS Lambda that change: \
                      set access.endpoint.public to true and its cidrs to [\"0.0.0.0/0\"]; every call still needs a login.";
        findings.error("access.endpoint", REACH, evidence, remedy);
    }
}

/// The policies name the cluster often; a long name makes them long.
fn check_policies(cluster: &ClusterKey, findings: &mut Findings) {
    let ClusterKey { account, region, name } = cluster;
    let scope = Scope {
        account,
        region,
        cluster: name,
        cluster_arn: &format!("arn:aws:eks:{region}:{account}:cluster/{name}"),
        queue_arn: &format!("arn:aws:sqs:{region}:{account}:{}", names::queue(cluster)),
        node_role_arn: &format!("arn:aws:iam::{account}:role/{}", names::role(cluster, "node")),
    };
    for policy in controller_policies(&scope) {
        let size = characters(&policy.document);
        if size > MANAGED_POLICY_CHARACTERS {
            let evidence = format!(
                "Karpenter's policy {} would have {size} characters, IAM takes {MANAGED_POLICY_CHARACTERS}.",
                policy.part
            );
            findings.error("name", "policy size", evidence, "Choose a shorter name.");
        }
    }
}

/// A chart that cannot be had would end the run only when the control plane is there.
fn check_chart(seen: &Observed, findings: &mut Findings) {
    if let Some(Err(error)) = &seen.chart {
        findings.error("karpenter.version", "chart", error.cause.clone(), error.remedy.clone());
    }
}

/// What speaks against a zone; nothing for a good one.
fn against(zone: &Zone, spec: &ClusterSpec, offerings: Option<&BTreeMap<String, BTreeSet<String>>>) -> Option<String> {
    if REFUSED_ZONE_IDS.contains(&zone.id.as_str()) {
        return Some(format!("EKS makes no control plane in {}", zone.id));
    }
    if !zone.usable {
        return Some("it is not available to this account".to_owned());
    }
    let offerings = offerings?;
    let offered = |name: &str| offerings.get(name).is_some_and(|zones| zones.contains(&zone.name));
    if !spec.core.instance_types.iter().any(|name| offered(name)) {
        return Some(format!("it offers no {}", spec.core.instance_types.join(", ")));
    }
    let missing = spec
        .node_pools
        .iter()
        .map(|pool| pool.architecture)
        .find(|architecture| !common_types(*architecture).iter().any(|name| offered(name)));
    missing.map(|architecture| format!("it offers no common {} types", architecture.as_str()))
}

/// The zones: those of a network that is there; else the first good ones by name, so that every run chooses the same.
fn zones(cluster: &ClusterKey, spec: &ClusterSpec, seen: &Observed, findings: &mut Findings) -> Vec<String> {
    let known = |name: &str| seen.zones.iter().flatten().find(|zone| zone.name == name);
    match &spec.network {
        NetworkSpec::Existing(given) => {
            let Some(network) = &seen.network else { return Vec::new() };
            for fault in existing::faults(given, network, &cluster.name) {
                findings.error(
                    &fault.field,
                    "network",
                    format!("{}.", fault.evidence),
                    "Correct the network, or list other subnets.",
                );
            }
            let zones = existing::zones(given, network, &cluster.name);
            for zone in zones.iter().filter_map(|name| known(name)) {
                // The faults speak of EKS's own refusals already.
                if let Some(reason) = against(zone, spec, seen.offerings.as_ref())
                    && !REFUSED_ZONE_IDS.contains(&zone.id.as_str())
                {
                    let field = "network.existing.subnetIds";
                    findings.error(field, "zones", format!("{}: {reason}.", zone.name), "List subnets of other zones.");
                }
            }
            zones.into_iter().collect()
        }
        NetworkSpec::Create(create) => {
            // A stack that is there has its zones; another choice would be another network.
            if let There::Yes(stack) = &seen.stack
                && !stack.status.starts_with("ROLLBACK_")
            {
                let names = ["Zone1", "Zone2", "Zone3"].iter().filter_map(|name| stack.parameters.get(*name));
                let names: Vec<String> = names.filter(|name| !name.is_empty()).cloned().collect();
                if names.len() != usize::from(create.zones) {
                    let evidence =
                        format!("{} zones are asked for, the network is in {}.", create.zones, names.join(", "));
                    let remedy =
                        "Zones are chosen once: ask for as many as there are, or make a cluster of another name.";
                    findings.error("network.create.zones", "zones", evidence, remedy);
                }
                return names;
            }
            let Some(zones) = &seen.zones else { return Vec::new() };
            let mut good: Vec<&Zone> =
                zones.iter().filter(|zone| against(zone, spec, seen.offerings.as_ref()).is_none()).collect();
            good.sort_by(|one, other| one.name.cmp(&other.name));
            let wanted = usize::from(create.zones);
            if good.len() < wanted {
                let reasons: Vec<String> = zones
                    .iter()
                    .filter_map(|zone| {
                        Some(format!("{}: {}", zone.name, against(zone, spec, seen.offerings.as_ref())?))
                    })
                    .collect();
                let evidence = format!("{wanted} zones are asked for, {} will do; {}.", good.len(), reasons.join("; "));
                let remedy = "Ask for fewer zones, other core types, or another region.";
                findings.error("network.create.zones", "zones", evidence, remedy);
            }
            good.into_iter().take(wanted).map(|zone| zone.name.clone()).collect()
        }
    }
}

/// Looks at everything, side by side, and reports all that it finds.
///
/// # Errors
/// `PreflightFailed` with every finding that is an error.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let (zones, findings) = look(cx, &input.cluster, &input.spec).await?;
    findings.conclude(zones)
}

/// The zones, and everything that was found.
///
/// # Errors
/// What AWS refused in a way that may pass.
pub(super) async fn look(
    cx: &Context,
    cluster: &ClusterKey,
    spec: &ClusterSpec,
) -> Result<(Vec<String>, Findings), StepError> {
    let mut findings = Findings::default();
    // Boxed: forty calls side by side are 60 KB and more.
    let seen = Box::pin(observe(cx, cluster, spec, &mut findings)).await?;
    let zones = decide(cluster, spec, &seen, &mut findings);
    Ok((zones, findings))
}

async fn observe(
    cx: &Context,
    cluster: &ClusterKey,
    spec: &ClusterSpec,
    findings: &mut Findings,
) -> Result<Observed, StepError> {
    let (stack_name, network) = (names::stack(cluster), async {
        match &spec.network {
            NetworkSpec::Existing(given) => {
                networks::survey(cx.aws.ec2(), &given.vpc_id, existing::to_look_at(given)).await
            }
            NetworkSpec::Create(_) => Ok(Network::default()),
        }
    });
    let places = async { tokio::join!(availability_zones(cx), offerings(cx, spec), core_types(cx, spec)) };
    let there = async {
        let stack = stacks::describe(cx.aws.cloudformation(), &stack_name);
        tokio::join!(versions(cx), there_cluster(cx, cluster), stack, network)
    };
    let chart = chart::reachable(&spec.karpenter.chart, &spec.karpenter.version);
    let (places, there, account, chart) = tokio::join!(
        places,
        there,
        async { tokio::join!(quotas::look(cx), permissions::look(cx, cluster, spec)) },
        chart
    );
    let (room, permissions) = account;
    let severity = if cx.settings.permissions_warn { Severity::Warning } else { Severity::Error };
    Ok(Observed {
        zones: findings.seen(places.0)?,
        offerings: findings.seen(places.1)?,
        core_types: findings.seen(places.2)?,
        versions: findings.seen(there.0)?,
        cluster: findings.seen(there.1)?.into(),
        stack: findings.seen(there.2)?.into(),
        network: findings.seen(there.3)?,
        room: room.told(findings)?,
        refused: permissions::told(permissions, severity, findings)?,
        chart: Some(chart),
    })
}

async fn availability_zones(cx: &Context) -> Result<Vec<Zone>, StepError> {
    let answer = cx.aws.ec2().describe_availability_zones().send().await.during("ec2:DescribeAvailabilityZones")?;
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    Ok(answer
        .availability_zones()
        .iter()
        .map(|zone| Zone {
            name: text(zone.zone_name()),
            id: text(zone.zone_id()),
            usable: zone.state().is_none_or(|state| state.as_str() == "available")
                && zone.zone_type().is_none_or(|kind| kind == "availability-zone")
                && zone.opt_in_status().is_none_or(|status| status.as_str() != "not-opted-in"),
        })
        .collect())
}

fn types_filter<'a>(names: impl Iterator<Item = &'a str>) -> Filter {
    let names: BTreeSet<String> = names.map(str::to_owned).collect();
    Filter::builder().name("instance-type").set_values(Some(names.into_iter().collect())).build()
}

async fn offerings(cx: &Context, spec: &ClusterSpec) -> Result<BTreeMap<String, BTreeSet<String>>, StepError> {
    let pools = spec.node_pools.iter().flat_map(|pool| common_types(pool.architecture)).copied();
    let types = spec.core.instance_types.iter().map(String::as_str).chain(pools);
    let offerings = cx
        .aws
        .ec2()
        .describe_instance_type_offerings()
        .location_type(LocationType::AvailabilityZone)
        .filters(types_filter(types))
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>()
        .await
        .during("ec2:DescribeInstanceTypeOfferings")?;
    let mut zones = BTreeMap::<String, BTreeSet<String>>::new();
    for offering in &offerings {
        if let (Some(kind), Some(zone)) = (offering.instance_type(), offering.location()) {
            zones.entry(kind.as_str().to_owned()).or_default().insert(zone.to_owned());
        }
    }
    Ok(zones)
}

async fn core_types(cx: &Context, spec: &ClusterSpec) -> Result<Vec<InstanceType>, StepError> {
    // By filter, which leaves out what does not exist, where names would fail for the first.
    let types = cx
        .aws
        .ec2()
        .describe_instance_types()
        .filters(types_filter(spec.core.instance_types.iter().map(String::as_str)))
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>()
        .await
        .during("ec2:DescribeInstanceTypes")?;
    let architecture = |name: &str| match name {
        "x86_64" => Some(Architecture::Amd64),
        "arm64" => Some(Architecture::Arm64),
        _ => None,
    };
    Ok(types
        .iter()
        .map(|kind| InstanceType {
            name: kind.instance_type().map(|name| name.as_str().to_owned()).unwrap_or_default(),
            architecture: kind
                .processor_info()
                .into_iter()
                .flat_map(ProcessorInfo::supported_architectures)
                .find_map(|name| architecture(name.as_str())),
            vcpus: kind.v_cpu_info().and_then(VCpuInfo::default_v_cpus).and_then(|n| n.try_into().ok()).unwrap_or(0),
        })
        .collect())
}

async fn versions(cx: &Context) -> Result<Vec<Offered>, StepError> {
    let versions = cx
        .aws
        .eks()
        .describe_cluster_versions()
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>()
        .await
        .during("eks:DescribeClusterVersions")?;
    Ok(versions
        .iter()
        .filter_map(|offered| {
            let status = offered.version_status().map_or("STANDARD_SUPPORT", |status| status.as_str());
            let standard_support = status == "STANDARD_SUPPORT";
            (status != "UNSUPPORTED")
                .then(|| Some(Offered { version: offered.cluster_version()?.to_owned(), standard_support }))?
        })
        .collect())
}

async fn there_cluster(cx: &Context, cluster: &ClusterKey) -> Result<Option<ThereCluster>, StepError> {
    match cx.aws.eks().describe_cluster().name(&cluster.name).send().await {
        Ok(answer) => Ok(answer.cluster().map(|there| ThereCluster {
            version: there.version().unwrap_or_default().to_owned(),
            owner: there.tags().and_then(|tags| tags.get(CLUSTER_TAG)).cloned(),
        })),
        Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(None),
        Err(error) => Err(refused("eks:DescribeCluster", &error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;

    fn cluster() -> ClusterKey {
        ClusterKey { account: "111122223333".to_owned(), region: "us-east-1".to_owned(), name: "demo".to_owned() }
    }

    fn spec(more: serde_json::Value) -> ClusterSpec {
        let mut spec = json!({"name": "demo", "version": "1.36"});
        if let (Some(spec), serde_json::Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        ClusterSpec::parse(&spec).unwrap()
    }

    /// An account in which everything is fine: zones a to e, of which c is refused by EKS and e has no Graviton.
    fn fine() -> Observed {
        let zone =
            |letter: &str, id: &str| Zone { name: format!("us-east-1{letter}"), id: id.to_owned(), usable: true };
        let zones: Vec<Zone> =
            [("d", "use1-az4"), ("a", "use1-az1"), ("c", "use1-az3"), ("b", "use1-az2"), ("e", "use1-az5")]
                .map(|(letter, id)| zone(letter, id))
                .into();
        let everywhere: BTreeSet<String> = zones.iter().map(|zone| zone.name.clone()).collect();
        let without_e: BTreeSet<String> = everywhere.iter().filter(|name| !name.ends_with('e')).cloned().collect();
        let offerings = [("t4g.medium", &everywhere), ("m5.large", &everywhere), ("m6g.large", &without_e)]
            .map(|(name, zones)| (name.to_owned(), zones.clone()));
        let t4g = InstanceType { name: "t4g.medium".to_owned(), architecture: Some(Architecture::Arm64), vcpus: 2 };
        let offered = |version: &str, standard_support| Offered { version: version.to_owned(), standard_support };
        Observed {
            zones: Some(zones),
            offerings: Some(offerings.into()),
            core_types: Some(vec![t4g]),
            versions: Some(vec![offered("1.36", true), offered("1.32", false)]),
            cluster: There::No,
            stack: There::No,
            network: Some(Network::default()),
            room: quotas::tests::just_enough(),
            refused: Vec::new(),
            chart: Some(Ok(())),
        }
    }

    fn decided(spec: &ClusterSpec, seen: &Observed) -> Result<Output, StepError> {
        let mut findings = Findings::default();
        let zones = decide(&cluster(), spec, seen, &mut findings);
        findings.conclude(zones)
    }

    /// The fields that are found wrong.
    fn wrong(more: serde_json::Value, seen: &Observed) -> Vec<String> {
        let mut findings = Findings::default();
        decide(&cluster(), &spec(more), seen, &mut findings);
        findings
            .0
            .into_iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(|finding| finding.field)
            .collect()
    }

    #[test]
    fn the_first_good_zones_by_name_are_chosen() {
        let two = decided(&spec(json!({})), &fine()).unwrap();
        assert_eq!(two, Output { zones: vec!["us-east-1a".to_owned(), "us-east-1b".to_owned()], findings: Vec::new() });
        let three = decided(&spec(json!({"network": {"create": {"zones": 3}}})), &fine()).unwrap();
        assert_eq!(three.zones, ["us-east-1a", "us-east-1b", "us-east-1d"]);
    }

    #[test]
    fn too_few_zones_are_told_one_by_one() {
        let mut seen = fine();
        seen.zones.as_mut().unwrap().retain(|zone| !["us-east-1a", "us-east-1b"].contains(&zone.name.as_str()));
        let error = decided(&spec(json!({})), &seen).unwrap_err();
        assert_eq!(error.name, ErrorName::PreflightFailed);
        assert!(error.cause.contains("us-east-1c: EKS makes no control plane in use1-az3"), "{}", error.cause);
        assert!(error.cause.contains("us-east-1e: it offers no common arm64 types"), "{}", error.cause);
    }

    #[test]
    fn a_network_that_is_there_keeps_its_zones_and_needs_no_room() {
        let mut seen = fine();
        seen.room.set("VPCs per Region", 5, 5.0);
        let parameters = [("Zone1", "us-east-1d"), ("Zone2", "us-east-1b"), ("Zone3", "")];
        let stack = Stack {
            id: "arn".to_owned(),
            status: "CREATE_IN_PROGRESS".to_owned(),
            tags: BTreeMap::new(),
            parameters: parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            outputs: BTreeMap::new(),
            protected: false,
            created_at: OffsetDateTime::UNIX_EPOCH,
            changed_at: OffsetDateTime::UNIX_EPOCH,
        };
        seen.stack = There::Yes(stack.clone());
        assert_eq!(wrong(json!({"network": {"create": {"zones": 3}}}), &seen), ["network.create.zones"]);
        assert_eq!(decided(&spec(json!({})), &seen).unwrap().zones, ["us-east-1d", "us-east-1b"]);
        // What a failed creation left is cleared away: its zones may have been what failed.
        seen.stack = There::Yes(Stack { status: "ROLLBACK_COMPLETE".to_owned(), ..stack });
        assert_eq!(decided(&spec(json!({})), &seen).unwrap().zones, ["us-east-1a", "us-east-1b"]);
    }

    #[test]
    fn all_findings_come_at_once() {
        let mut seen = fine();
        seen.room.set("VPCs per Region", 5, 5.0);
        seen.room.set("EC2-VPC Elastic IPs", 3, 5.0);
        seen.room.set("Clusters", 100, 100.0);
        seen.room.set("Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 0, 1.0);
        seen.chart = Some(Err(StepError::new(ErrorName::ChartNotFound, "The registry has no such chart.")));
        seen.refused = vec![permissions::tests::denied("wait-oidc")];
        let more = json!({
            "version": "1.31", "karpenter": {"version": "1.0.0"}, "core": {"instanceTypes": ["t4g.medium", "z9.huge"]},
            "network": {"create": {"zones": 3, "nat": "perZone"}}, "access": {"endpoint": {"cidrs": ["198.51.100.0/24"]}},
        });
        assert_eq!(
            wrong(more, &seen),
            [
                "version",
                "karpenter.version",
                "core.instanceTypes",
                "access.endpoint",
                "karpenter.version",
                "network.create",
                "network.create.nat",
                "name",
                "core.size",
                "account",
            ]
        );
    }

    #[test]
    fn versions_must_be_offered_and_fit() {
        assert_eq!(wrong(json!({"karpenter": {"version": "1.12.9"}}), &fine()), ["karpenter.version"]);
        assert_eq!(wrong(json!({"version": "1.32"}), &fine()), ["version"]);
        assert_eq!(wrong(json!({"version": "1.32", "upgradePolicy": "EXTENDED"}), &fine()), [""; 0]);
        let mut newer = fine();
        newer.versions.as_mut().unwrap().push(Offered { version: "1.37".to_owned(), standard_support: true });
        let output = decided(&spec(json!({"version": "1.37"})), &newer).unwrap();
        assert_eq!(output.findings.len(), 1);
        assert_eq!(output.findings[0].severity, Severity::Warning);
    }

    #[test]
    fn a_cluster_that_is_there_must_be_ours_and_of_the_version() {
        let there = |owner: Option<&str>, version: &str| {
            let cluster = ThereCluster { version: version.to_owned(), owner: owner.map(str::to_owned) };
            Observed { cluster: There::Yes(cluster), ..fine() }
        };
        assert_eq!(wrong(json!({}), &there(Some("demo"), "1.36")), [""; 0]);
        assert_eq!(wrong(json!({}), &there(None, "1.36")), ["name"]);
        assert_eq!(wrong(json!({}), &there(Some("demo"), "1.35")), ["version"]);
    }

    #[test]
    fn core_types_are_of_one_architecture() {
        let mut seen = fine();
        let m5 = InstanceType { name: "m5.large".to_owned(), architecture: Some(Architecture::Amd64), vcpus: 2 };
        seen.core_types.as_mut().unwrap().push(m5);
        assert_eq!(
            wrong(json!({"core": {"instanceTypes": ["t4g.medium", "m5.large"]}}), &seen),
            ["core.instanceTypes"]
        );
    }

    #[test]
    fn what_may_not_be_looked_at_is_a_finding_beside_the_others() {
        let mut findings = Findings::default();
        let denied = StepError::new(ErrorName::AccessDenied, "ec2:DescribeVpcs was refused.");
        assert!(findings.seen::<()>(Err(denied)).unwrap().is_none());
        assert!(findings.seen::<()>(Err(StepError::new(ErrorName::Throttled, "Slow down."))).is_err());
        let mut seen = fine();
        seen.room = quotas::Room::default();
        let zones = decide(&cluster(), &spec(json!({"version": "1.20"})), &seen, &mut findings);
        let error = findings.conclude(zones).unwrap_err();
        assert!(error.cause.contains("[1] account (permissions): ec2:DescribeVpcs was refused."), "{}", error.cause);
        assert!(error.cause.contains("[2] version"), "{}", error.cause);
    }

    #[test]
    fn the_longest_name_renders_policies_that_fit() {
        let mut findings = Findings::default();
        check_policies(&ClusterKey { name: "n".repeat(100), ..cluster() }, &mut findings);
        assert!(findings.0.is_empty(), "{:#?}", findings.0);
        // EKS takes no longer name; a policy that names the cluster more often would be found out here.
        check_policies(&ClusterKey { name: "n".repeat(600), ..cluster() }, &mut findings);
        assert!(findings.0.iter().any(|finding| finding.check == "policy size"), "{:#?}", findings.0);
    }
}
