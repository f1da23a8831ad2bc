//! audit: what still exists for a cluster, or in the account for clusters that nobody looks after, and why we believe so.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterKey, ErrorName, Finding, Kind, Run, Step, StepError, prices::Prices, teardown::Fate,
};
use time::OffsetDateTime;

use crate::{
    Context,
    aws::{
        error::During as _,
        inventory::{self, Place},
    },
    ownership::{self, Maker, Resource},
    state::Registered,
};

/// Lists what still exists.
#[derive(Debug)]
pub struct Audit;

/// From a teardown, or what a person asked the audit machine for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that ends with this audit.
    pub run: Option<Run>,
    /// Its cluster.
    pub cluster: Option<ClusterKey>,
    /// Whether the cluster's network was to stay, and is no finding then.
    #[serde(default = "keep")]
    pub network: Fate,
    /// The same for the control plane's log group.
    #[serde(default = "keep")]
    pub log_group: Fate,
    /// The cluster may have been made by somebody else, who calls things otherwise.
    #[serde(default)]
    pub adopt: bool,
    /// Raise `OrphansFound` unless nothing is found.
    #[serde(default)]
    pub expect_empty: bool,
    /// What the audit machine was started with; the fields above are a teardown's.
    pub request: Option<Request>,
}

const fn keep() -> Fate {
    Fate::Keep
}

const fn delete() -> Fate {
    Fate::Delete
}

/// What an audit is asked for: `{}` is everything in the account and region that no cluster of the registry needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// The cluster's name; the whole account and region without one.
    pub name: Option<String>,
    /// The clusters that are looked after, too: all that a sweep could take.
    #[serde(default)]
    pub all: bool,
    /// `keep`: a network is no finding.
    #[serde(default = "delete")]
    pub network: Fate,
    /// `keep`: a control plane's log group is no finding.
    #[serde(default = "delete")]
    pub log_group: Fate,
    /// The cluster of that name may have been made by somebody else: what others call and tag its things counts.
    #[serde(default)]
    pub adopt: bool,
    /// Raise `OrphansFound` unless nothing is found.
    #[serde(default)]
    pub expect_empty: bool,
}

/// What still exists.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// In the order in which it can be removed, at most 200.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub total: usize,
    /// US dollars a month at list prices, of all whose price is known.
    pub monthly_cost_usd: f64,
    /// How many cost something that is not known.
    pub unpriced: usize,
}

impl Step for Audit {
    const NAME: &'static str = "audit";
    const ERRORS: &'static [ErrorName] = &[ErrorName::OrphansFound];
    type Input = Input;
    type Output = Output;
}

/// More would not fit into a state of 256 KiB.
const LISTED: usize = 200;
/// Of so many an error's cause tells.
const TOLD: usize = 25;

/// What is looked at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scope {
    /// One cluster, and whether what others call and tag its things counts.
    Cluster(ClusterKey, bool),
    /// An account and region.
    Account {
        /// Twelve digits.
        account: String,
        /// For example `eu-west-1`.
        region: String,
        /// The clusters that are looked after, too.
        all: bool,
    },
}

/// What is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// Everything that may be a cluster's.
    pub(crate) resources: Vec<Resource>,
    /// The registry; empty for the audit of one cluster.
    pub(crate) registry: Vec<Registered>,
    /// The registered clusters that a run is at work on.
    pub(crate) busy: BTreeSet<String>,
}

/// What a scope and the wishes about it leave of what is there: findings in the order in which they can be removed.
pub(crate) fn decide(
    scope: &Scope,
    network: Fate,
    log_group: Fate,
    observed: &Observed,
    prices: &Prices,
    now: OffsetDateTime,
) -> Vec<Finding> {
    let (account, region) = match scope {
        Scope::Cluster(cluster, _) => (cluster.account.as_str(), cluster.region.as_str()),
        Scope::Account { account, region, .. } => (account.as_str(), region.as_str()),
    };
    let key = |name: &str| ClusterKey { account: account.into(), region: region.into(), name: name.into() };
    let there: BTreeSet<&str> =
        observed.resources.iter().filter(|r| r.kind == Kind::Cluster).map(|r| r.name.as_str()).collect();
    let registered: BTreeMap<&str, &Registered> = observed
        .registry
        .iter()
        .filter(|row| row.cluster == key(&row.cluster.name))
        .map(|row| (row.cluster.name.as_str(), row))
        .collect();
    let clusters: BTreeSet<String> = match scope {
        Scope::Cluster(cluster, _) => BTreeSet::from([cluster.name.clone()]),
        Scope::Account { .. } => observed
            .resources
            .iter()
            .flat_map(ownership::clusters_named)
            .chain(registered.keys().map(|name| (*name).to_owned()))
            .collect(),
    };

    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for name in &clusters {
        let row = registered.get(name.as_str());
        let looked_after = row.is_some() && there.contains(name.as_str());
        if let Scope::Account { all, .. } = scope
            && (observed.busy.contains(name) || looked_after && !all)
        {
            continue;
        }
        let standing = match (scope, row, there.contains(name.as_str())) {
            (Scope::Cluster(..), ..) | (_, Some(_), true) => String::new(),
            (_, Some(row), false) => format!("; the cluster is gone, and the registry has it as {}", row.status),
            (_, None, true) => "; no registry row knows the cluster".to_owned(),
            (_, None, false) => "; the cluster is gone, and no registry row knows it".to_owned(),
        };
        let adopt = matches!(scope, Scope::Cluster(_, true));
        for (resource, because) in ownership::of_cluster(&key(name), adopt, &observed.resources) {
            let in_network = resource.kind.is_network() || ownership::maker(resource) == Maker::Network;
            let kept =
                (in_network && network == Fate::Keep) || (resource.kind == Kind::LogGroup && log_group == Fate::Keep);
            if !kept && seen.insert(&resource.arn) {
                findings.push(finding(resource, name, region, because + &standing, prices, now));
            }
        }
        if let (Scope::Account { .. }, Some(row), false) = (scope, row, there.contains(name.as_str())) {
            findings.push(stale_row(row));
        }
    }
    findings.sort_by(|a, b| (a.kind, &a.cluster, &a.arn).cmp(&(b.kind, &b.cluster, &b.arn)));
    findings
}

fn finding(
    resource: &Resource,
    cluster: &str,
    region: &str,
    because: String,
    prices: &Prices,
    now: OffsetDateTime,
) -> Finding {
    let state = if resource.state.is_empty() { String::new() } else { format!(" ({})", resource.state) };
    Finding {
        arn: resource.arn.clone(),
        kind: resource.kind,
        name: resource.name.clone(),
        age_seconds: resource.created_at.and_then(|at| u64::try_from((now - at).whole_seconds()).ok()),
        cluster: Some(cluster.to_owned()),
        because: because + &state,
        monthly_cost_usd: ownership::monthly_cost_usd(prices, region, resource),
        removed_by: ownership::removed_by(resource).to_owned(),
        tagged: ownership::is_tagged(resource),
    }
}

fn stale_row(row: &Registered) -> Finding {
    let resource = Resource::new(Kind::RegistryRow, crate::state::partition(&row.cluster), &row.cluster.name);
    Finding {
        arn: resource.arn.clone(),
        kind: Kind::RegistryRow,
        name: resource.name.clone(),
        age_seconds: None,
        cluster: Some(row.cluster.name.clone()),
        because: format!("the registry has it as {} since {}, and EKS has no such cluster", row.status, row.changed_at),
        monthly_cost_usd: Some(0.0),
        removed_by: ownership::removed_by(&resource).to_owned(),
        tagged: true,
    }
}

/// What exists in a scope. Looks only.
///
/// # Errors
/// What AWS refused.
pub(crate) async fn observe(cx: &Context, scope: &Scope) -> Result<Observed, StepError> {
    let place = match scope {
        Scope::Cluster(cluster, adopt) => Place::of(cluster, *adopt),
        Scope::Account { account, region, .. } => Place { account, region, cluster: None, adopt: false },
    };
    let resources = inventory::resources(cx, place).await?;
    let (mut registry, mut busy) = (Vec::new(), BTreeSet::new());
    if place.cluster.is_none() {
        registry = cx.state.registry().await?;
        for row in &registry {
            if cx.state.lease(&row.cluster).await?.is_some_and(|lease| lease.holder.is_some()) {
                busy.insert(row.cluster.name.clone());
            }
        }
    }
    Ok(Observed { resources, registry, busy })
}

/// The scope of a request: its cluster, or the caller's account, in the region that we run in.
///
/// # Errors
/// What STS refused.
pub(crate) async fn scope(cx: &Context, name: Option<&str>, all: bool, adopt: bool) -> Result<Scope, StepError> {
    let caller = cx.aws.sts().get_caller_identity().send().await.during("sts:GetCallerIdentity")?;
    let (account, region) = (caller.account().unwrap_or_default().to_owned(), cx.aws.region().to_owned());
    Ok(match name {
        Some(name) => Scope::Cluster(ClusterKey { account, region, name: name.to_owned() }, adopt),
        None => Scope::Account { account, region, all },
    })
}

/// Lists what still exists.
///
/// # Errors
/// `OrphansFound` when nothing was to be found and something was; `Internal` when the price table cannot be read.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let (scope, network, log_group, expect_empty) = match (input.cluster, input.request) {
        (Some(cluster), _) => {
            (Scope::Cluster(cluster, input.adopt), input.network, input.log_group, input.expect_empty)
        }
        (None, Some(asked)) => {
            let scope = scope(cx, asked.name.as_deref(), asked.all, asked.adopt).await?;
            (scope, asked.network, asked.log_group, asked.expect_empty)
        }
        (None, None) => (scope(cx, None, false, false).await?, input.network, input.log_group, input.expect_empty),
    };
    let prices = prices()?;
    let observed = observe(cx, &scope).await?;
    let findings = decide(&scope, network, log_group, &observed, &prices, OffsetDateTime::now_utc());
    if expect_empty && !findings.is_empty() {
        return Err(orphans(&findings));
    }
    Ok(report(findings))
}

pub(crate) fn prices() -> Result<Prices, StepError> {
    Prices::published()
        .map_err(|error| StepError::new(ErrorName::Internal, format!("The price table cannot be read: {error}.")))
}

fn report(mut findings: Vec<Finding>) -> Output {
    let total = findings.len();
    let monthly_cost_usd = findings.iter().filter_map(|finding| finding.monthly_cost_usd).sum::<f64>();
    let unpriced = findings.iter().filter(|finding| finding.monthly_cost_usd.is_none()).count();
    findings.truncate(LISTED);
    Output { findings, total, monthly_cost_usd: (monthly_cost_usd * 100.0).round() / 100.0, unpriced }
}

/// The error that lists what should not be there.
pub(crate) fn orphans(findings: &[Finding]) -> StepError {
    let told = findings.iter().take(TOLD).map(|finding| {
        let Finding { kind, arn, because, removed_by, .. } = finding;
        format!("{} {arn}: {because}; removed by {removed_by}", kind.as_str())
    });
    let more = match findings.len().saturating_sub(TOLD) {
        0 => String::new(),
        more => format!(" And {more} more."),
    };
    let count = findings.len();
    let (thing, exist) = if count == 1 { ("thing", "exists") } else { ("things", "exist") };
    let listed = told.collect::<Vec<_>>().join(". ");
    StepError::new(ErrorName::OrphansFound, format!("{count} {thing} still {exist}. {listed}.{more}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use slipway_statemachine::names;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 20:00:00 UTC);

    fn key(name: &str) -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: name.into() }
    }

    fn account(all: bool) -> Scope {
        Scope::Account { account: "111122223333".into(), region: "eu-west-1".into(), all }
    }

    fn ours(kind: Kind, arn: &str, cluster: &str) -> Resource {
        let tags = BTreeMap::from([(names::CLUSTER_TAG.to_owned(), cluster.to_owned())]);
        Resource::new(kind, arn, arn.trim_start_matches("arn:")).tagged(tags)
    }

    fn row(name: &str, status: &str) -> Registered {
        Registered { cluster: key(name), status: status.into(), changed_at: "2026-11-22T19:00:00.000Z".into() }
    }

    fn found(scope: &Scope, observed: &Observed) -> Vec<Finding> {
        decide(scope, Fate::Delete, Fate::Delete, observed, &prices().unwrap(), NOW)
    }

    fn arns(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|finding| finding.arn.as_str()).collect()
    }

    #[test]
    fn one_clusters_audit_lists_it_alone_in_the_order_of_removal() {
        let group = ours(Kind::SecurityGroup, "arn:sg-1", "demo");
        let leaked =
            Resource::new(Kind::NetworkInterface, "arn:eni-1", "eni-1").part_of(["sg-1"]).in_state("available");
        let volume = ours(Kind::Volume, "arn:vol-1", "demo").made_at(Some(NOW.unix_timestamp() - 90));
        let neighbour = ours(Kind::Volume, "arn:vol-2", "demo-2");
        let observed = Observed { resources: vec![group, neighbour, leaked, volume], ..Observed::default() };
        let findings = found(&Scope::Cluster(key("demo"), false), &observed);
        assert_eq!(arns(&findings), ["arn:vol-1", "arn:eni-1", "arn:sg-1"]);
        assert_eq!(findings[0].age_seconds, Some(90));
        assert_eq!(findings[1].because, "it is part of sg-1, which is the cluster's (available)");
        assert!(findings[0].tagged && !findings[1].tagged);
    }

    #[test]
    fn what_was_to_stay_is_no_finding() {
        let stack = ours(Kind::Stack, "arn:stack", "demo");
        let group = ours(Kind::LogGroup, "arn:log", "demo");
        let part = BTreeMap::from([(ownership::STACK_TAG.to_owned(), names::stack(&key("demo")))]);
        let in_stack = Resource::new(Kind::SecurityGroup, "arn:sg", "sg")
            .tagged(part.into_iter().chain([(names::CLUSTER_TAG.to_owned(), "demo".to_owned())]).collect());
        let observed = Observed { resources: vec![stack, group, in_stack], ..Observed::default() };
        let scope = Scope::Cluster(key("demo"), false);
        let decide = |network, log_group| decide(&scope, network, log_group, &observed, &prices().unwrap(), NOW);
        assert_eq!(decide(Fate::Keep, Fate::Keep), []);
        assert_eq!(arns(&decide(Fate::Keep, Fate::Delete)), ["arn:log"]);
        assert_eq!(arns(&decide(Fate::Delete, Fate::Keep)), ["arn:sg", "arn:stack"]);
    }

    #[test]
    fn an_account_shows_clusters_that_no_registry_knows_and_rows_without_a_cluster() {
        let cluster = |name: &str| Resource::new(Kind::Cluster, format!("arn:cluster/{name}"), name);
        let observed = Observed {
            resources: vec![
                cluster("kept"),
                ours(Kind::Volume, "arn:vol-kept", "kept"),
                cluster("stranger"),
                ours(Kind::Volume, "arn:vol-gone", "gone"),
                ours(Kind::Role, "arn:role", "starting"),
                ours(Kind::Volume, "arn:vol-starting", "starting"),
            ],
            registry: vec![row("kept", "Ready"), row("lost", "Ready"), row("starting", "Provisioning")],
            busy: BTreeSet::from(["starting".to_owned()]),
        };
        let findings = found(&account(false), &observed);
        assert_eq!(arns(&findings), ["arn:cluster/stranger", "arn:vol-gone", "CLUSTER#111122223333#eu-west-1#lost"]);
        assert!(findings[0].because.ends_with("no registry row knows the cluster"), "{}", findings[0].because);
        assert!(findings[1].because.ends_with("the cluster is gone, and no registry row knows it"));
        assert!(findings[2].because.contains("as Ready since 2026-11-22T19"), "{}", findings[2].because);
        let all = found(&account(true), &observed);
        assert!(arns(&all).contains(&"arn:vol-kept"));
        assert!(!arns(&all).contains(&"arn:vol-starting"), "a run is at work on it");
    }

    #[test]
    fn an_error_lists_what_is_left_and_what_removes_it() {
        let resources = (0..30).map(|n| ours(Kind::Volume, &format!("arn:vol-{n:02}"), "demo")).collect();
        let findings = found(&Scope::Cluster(key("demo"), false), &Observed { resources, ..Observed::default() });
        let error = orphans(&findings);
        assert_eq!(error.name, ErrorName::OrphansFound);
        assert!(error.cause.starts_with("30 things still exist. volume arn:vol-00: its tag"), "{}", error.cause);
        assert!(error.cause.ends_with("And 5 more."), "{}", error.cause);
    }

    #[test]
    fn a_report_adds_up_what_has_a_price() {
        let mut small = ours(Kind::Volume, "arn:v", "demo");
        small.gib = Some(100);
        let unknown = ours(Kind::Volume, "arn:w", "demo");
        let gateway = ours(Kind::NatGateway, "arn:n", "demo");
        let observed = Observed { resources: vec![small, unknown, gateway], ..Observed::default() };
        let report = report(found(&Scope::Cluster(key("demo"), false), &observed));
        assert_eq!((report.total, report.unpriced), (3, 1));
        assert!((report.monthly_cost_usd - 43.84).abs() < 0.01, "{}", report.monthly_cost_usd);
    }
}
