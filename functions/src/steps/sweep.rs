//! sweep: removes what an audit found, one kind of thing a call, in the order of dependencies; by default only says what
//! would go.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Finding, Kind, Progress, Step, StepError, teardown::Fate};
use time::OffsetDateTime;
use tracing::info;

use super::audit::{self, Scope};
use crate::{
    Context,
    aws::{removal::remove, stacks},
};

/// Removes what an audit found.
#[derive(Debug)]
pub struct Sweep;

/// From the sweep machine.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// What the machine was started with.
    pub request: Request,
}

/// What is to go. `{}` is a dry run over all leftovers of the account and region.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// False removes; anything else only lists.
    #[serde(default = "yes")]
    pub dry_run: bool,
    /// The account's number, as a confirmation: it must be the one that the sweep runs in.
    pub account: Option<String>,
    /// Clusters whose names fit it: `*` is any characters, `?` one. Needed to remove anything.
    pub name_pattern: Option<String>,
    /// What may go although it does not bear our tag, each by its ARN.
    #[serde(default)]
    pub arns: BTreeSet<String>,
    /// Only this cluster's.
    pub name: Option<String>,
    /// The clusters that are looked after, too.
    #[serde(default)]
    pub all: bool,
    /// `keep`: networks stay.
    #[serde(default = "delete")]
    pub network: Fate,
    /// `keep`: control planes' log groups stay.
    #[serde(default = "delete")]
    pub log_group: Fate,
}

const fn yes() -> bool {
    true
}

const fn delete() -> Fate {
    Fate::Delete
}

/// What goes, and what stays.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Nothing was removed.
    pub dry_run: bool,
    /// What would go, in order, at most 200; empty after a sweep that was not dry.
    pub plan: Vec<Finding>,
    /// What was found and stays, at most 200.
    pub skipped: Vec<Skipped>,
}

/// Something that was found and stays.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Skipped {
    /// Its ARN.
    pub arn: String,
    /// Why it stays.
    pub because: String,
}

impl Step for Sweep {
    const NAME: &'static str = "sweep";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::SweepUnconfirmed, ErrorName::SweepNotAllowed, ErrorName::LeaseHeld];
    type Input = Input;
    type Output = Progress<Output>;
}

/// More would not fit into a state of 256 KiB.
const LISTED: usize = 200;
/// How many things one call removes, so that it ends long before its function does.
const AT_ONCE: usize = 40;

/// Says whether a sweep may remove anything. A dry run may always look.
///
/// # Errors
/// `InvalidInput` without a name pattern, `SweepUnconfirmed` without the right account, `SweepNotAllowed` where the
/// deployment does not allow it.
pub(crate) fn permit(request: &Request, caller: &str, allowed: &[String]) -> Result<(), StepError> {
    if request.dry_run {
        return Ok(());
    }
    let pattern = request.name_pattern.as_deref().unwrap_or_default();
    if pattern.is_empty() {
        let cause = "`request.namePattern` is missing: a sweep removes only what belongs to clusters that it names.";
        return Err(StepError::new(ErrorName::InvalidInput, cause));
    }
    match request.account.as_deref() {
        Some(account) if account == caller => {}
        Some(other) => {
            let cause = format!("`account` is {other:?}, and this sweep runs in {caller}.");
            return Err(StepError::new(ErrorName::SweepUnconfirmed, cause));
        }
        None => {
            let cause = format!("\"dryRun\" is false and `account` is missing; this sweep runs in {caller}.");
            return Err(StepError::new(ErrorName::SweepUnconfirmed, cause));
        }
    }
    if allowed.iter().any(|account| account == caller) {
        return Ok(());
    }
    let cause = format!("The account {caller} is not among this deployment's SweepAccounts.");
    Err(StepError::new(ErrorName::SweepNotAllowed, cause))
}

/// What goes of what was found, in order, and what stays, with the reason.
pub(crate) fn decide(request: &Request, findings: Vec<Finding>) -> Output {
    let stacks: BTreeSet<Option<String>> =
        findings.iter().filter(|finding| finding.kind == Kind::Stack).map(|finding| finding.cluster.clone()).collect();
    let (mut plan, mut skipped) = (Vec::new(), Vec::new());
    for finding in findings {
        let named = request.arns.contains(&finding.arn);
        let called = finding.cluster.as_deref().unwrap_or(&finding.name);
        let fits = request.name_pattern.as_deref().is_none_or(|pattern| fits(pattern, called));
        let because = match finding.kind {
            _ if !named && !fits => Some(format!("{called} does not fit the name pattern")),
            _ if !named && !finding.tagged => {
                Some("it does not bear the tag slipway:cluster; name its ARN in \"arns\" if it is to go".to_owned())
            }
            Kind::Other => Some("a sweep does not know this type; remove it by its own service".to_owned()),
            kind if kind.is_network() && kind != Kind::Stack => Some(if stacks.contains(&finding.cluster) {
                "it goes with its stack".to_owned()
            } else {
                "its stack is gone; remove it by hand".to_owned()
            }),
            _ => None,
        };
        match because {
            Some(because) => skipped.push(Skipped { arn: finding.arn, because }),
            None => plan.push(finding),
        }
    }
    let known = |arn: &String| plan.iter().any(|f| f.arn == *arn) || skipped.iter().any(|s| s.arn == *arn);
    let unknown: Vec<&String> = request.arns.iter().filter(|arn| !known(arn)).collect();
    let because = "the audit does not find it: it is gone, or no cluster's";
    skipped.extend(unknown.into_iter().map(|arn| Skipped { arn: arn.clone(), because: because.to_owned() }));
    plan.sort_by(|a, b| (a.kind, &a.cluster, &a.arn).cmp(&(b.kind, &b.cluster, &b.arn)));
    Output { dry_run: request.dry_run, plan, skipped }
}

/// Whether a name fits a pattern of `*` and `?`.
fn fits(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = &pattern[1..];
            name.char_indices().any(|(at, _)| fits(rest, &name[at..])) || fits(rest, "")
        }
        (Some(asked), Some(is)) if asked == '?' || asked == is => {
            fits(&pattern[asked.len_utf8()..], &name[is.len_utf8()..])
        }
        _ => false,
    }
}

/// Whether its service is at work on removing it already.
fn is_leaving(finding: &Finding) -> bool {
    ["(shutting-down)", "(DELETING)", "(DELETE_IN_PROGRESS)", "(deleting)"]
        .iter()
        .any(|state| finding.because.ends_with(state))
}

/// Lists what would go, or removes the next kind of it.
///
/// # Errors
/// See [`permit`]; `LeaseHeld` while a run is at work on the cluster that was named.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let request = input.request;
    let scope = audit::scope(cx, request.name.as_deref(), request.all, false).await?;
    let (Scope::Cluster(ClusterKey { account, .. }, _) | Scope::Account { account, .. }) = &scope;
    permit(&request, account, &cx.settings.sweep_accounts)?;
    if let Scope::Cluster(cluster, _) = &scope
        && let Some(holder) = cx.state.lease(cluster).await?.and_then(|lease| lease.holder)
    {
        let cause = format!("Run {} of {} is at work on {}.", holder.run, holder.execution, cluster.name);
        return Err(StepError::new(ErrorName::LeaseHeld, cause));
    }
    let observed = audit::observe(cx, &scope).await?;
    let now = OffsetDateTime::now_utc();
    let findings = audit::decide(&scope, request.network, request.log_group, &observed, &audit::prices()?, now);
    let mut output = decide(&request, findings);
    if request.dry_run || output.plan.is_empty() {
        output.plan.truncate(LISTED);
        output.skipped.truncate(LISTED);
        return Ok(Progress::done(output));
    }
    sweep(cx, &scope, &output.plan).await
}

/// Removes the first kinds of a plan: up to the one of which anything went, so that what it held is free at the next look.
async fn sweep(cx: &Context, scope: &Scope, plan: &[Finding]) -> Result<Progress<Output>, StepError> {
    // What a failed run found in order is so no longer.
    for cluster in plan.iter().filter_map(|finding| cluster_of(scope, finding)).collect::<HashSet<_>>() {
        cx.state.distrust(&cluster).await?;
    }
    let mut kinds: BTreeMap<Kind, Vec<&Finding>> = BTreeMap::new();
    for finding in plan {
        kinds.entry(finding.kind).or_default().push(finding);
    }
    let mut blocked = Vec::new();
    for (kind, findings) in kinds {
        let (leaving, staying): (Vec<&Finding>, Vec<&Finding>) = findings.into_iter().partition(|f| is_leaving(f));
        let mut removed = 0;
        for finding in staying.into_iter().take(AT_ONCE) {
            free(cx, scope, finding).await?;
            // It is asked to go once more; if that goes on, whoever waits knows why.
            if finding.kind == Kind::Stack && finding.because.ends_with("(DELETE_FAILED)") {
                let reason = stacks::reason(cx.aws.cloudformation(), &finding.name, "DELETE_FAILED").await?;
                blocked.push(format!("The stack {} was DELETE_FAILED: {reason}.", finding.name));
            }
            match remove(cx, finding.kind, &finding.arn, &finding.name).await {
                Ok(_) => {
                    info!(arn = finding.arn, because = finding.because, "removed");
                    removed += 1;
                }
                Err(error) if [ErrorName::DeletionBlocked, ErrorName::AwsRefused].contains(&error.name) => {
                    blocked.push(format!("{}: {}", finding.arn, error.cause));
                }
                Err(error) => return Err(error),
            }
        }
        if removed + leaving.len() > 0 {
            let (kind, of, left) = (kind.as_str(), plan.len(), leaving.len());
            let mut detail = format!("removed {removed} of kind {kind}, {left} are leaving; {of} were there");
            for why in blocked {
                detail.push_str(". ");
                detail.push_str(&why);
            }
            return Ok(Progress::wait(if kind == "cluster" || kind == "node-group" { 30 } else { 5 }, detail));
        }
    }
    Ok(Progress::wait(30, format!("nothing can go yet. {}", blocked.join(" "))))
}

/// Whose a finding is.
fn cluster_of(scope: &Scope, finding: &Finding) -> Option<ClusterKey> {
    match (scope, &finding.cluster) {
        (Scope::Cluster(cluster, _), _) => Some(cluster.clone()),
        (Scope::Account { account, region, .. }, Some(name)) => {
            Some(ClusterKey { account: account.clone(), region: region.clone(), name: name.clone() })
        }
        (Scope::Account { .. }, None) => None,
    }
}

/// Refuses to touch a cluster that a run is at work on: the last look before the act.
async fn free(cx: &Context, scope: &Scope, finding: &Finding) -> Result<(), StepError> {
    let Some(key) = cluster_of(scope, finding) else { return Ok(()) };
    match cx.state.lease(&key).await?.and_then(|lease| lease.holder) {
        None => Ok(()),
        Some(holder) => {
            let cause = format!("Run {} of {} has begun work on {}.", holder.run, holder.execution, key.name);
            Err(StepError::new(ErrorName::LeaseHeld, cause))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runtime::parse;

    const HERE: &str = "111122223333";

    fn request(json: serde_json::Value) -> Request {
        parse(json).unwrap()
    }

    fn finding(kind: Kind, arn: &str, cluster: &str, tagged: bool) -> Finding {
        Finding {
            arn: arn.into(),
            kind,
            name: arn.into(),
            age_seconds: None,
            cluster: Some(cluster.into()),
            because: "its tag slipway:cluster is demo".into(),
            monthly_cost_usd: None,
            removed_by: "sweep".into(),
            tagged,
        }
    }

    #[test]
    fn nothing_is_removed_unless_everything_is_said() {
        let allowed = [HERE.to_owned()];
        let whole = json!({"dryRun": false, "account": HERE, "namePattern": "demo*"});
        assert_eq!(permit(&request(whole.clone()), HERE, &allowed), Ok(()));
        let refusal = |field: &str, value: serde_json::Value, allowed: &[String]| {
            let mut asked = whole.clone();
            asked[field] = value;
            permit(&request(asked), HERE, allowed).unwrap_err().name
        };
        assert_eq!(refusal("account", json!(null), &allowed), ErrorName::SweepUnconfirmed);
        assert_eq!(refusal("account", json!("444455556666"), &allowed), ErrorName::SweepUnconfirmed);
        assert_eq!(refusal("namePattern", json!(null), &allowed), ErrorName::InvalidInput);
        assert_eq!(refusal("namePattern", json!(""), &allowed), ErrorName::InvalidInput);
        assert_eq!(refusal("account", json!(HERE), &[]), ErrorName::SweepNotAllowed);
        assert_eq!(refusal("account", json!(HERE), &["444455556666".to_owned()]), ErrorName::SweepNotAllowed);
        assert!(request(json!({})).dry_run, "a sweep that says nothing removes nothing");
        assert_eq!(permit(&request(json!({})), HERE, &[]), Ok(()));
        assert_eq!(parse::<Request>(json!({"dryrun": false})).unwrap_err().name, ErrorName::InvalidInput);
    }

    #[test]
    fn what_goes_fits_the_pattern_and_bears_our_tag_or_is_named() {
        let findings = || {
            vec![
                finding(Kind::SecurityGroup, "arn:sg", "demo", true),
                finding(Kind::Volume, "arn:untagged", "demo", false),
                finding(Kind::Volume, "arn:named", "demo", false),
                finding(Kind::Volume, "arn:neighbour", "prod", true),
                finding(Kind::Other, "arn:other", "demo", true),
                finding(Kind::NodeGroup, "arn:group", "demo", true),
            ]
        };
        let asked = request(json!({"namePattern": "dem?", "arns": ["arn:named", "arn:lost"]}));
        let output = decide(&asked, findings());
        let goes: Vec<&str> = output.plan.iter().map(|finding| finding.arn.as_str()).collect();
        assert_eq!(goes, ["arn:group", "arn:named", "arn:sg"]);
        let stays: BTreeMap<&str, &str> =
            output.skipped.iter().map(|skipped| (skipped.arn.as_str(), skipped.because.as_str())).collect();
        assert!(stays["arn:untagged"].contains("name its ARN"));
        assert!(stays["arn:neighbour"].starts_with("prod does not fit"));
        assert!(stays["arn:other"].contains("does not know this type"));
        assert!(stays["arn:lost"].contains("does not find it"));
    }

    #[test]
    fn a_networks_parts_go_with_their_stack() {
        let stack = finding(Kind::Stack, "arn:stack", "demo", true);
        let gateway = finding(Kind::NatGateway, "arn:nat", "demo", true);
        let orphan = finding(Kind::NatGateway, "arn:nat-2", "lost", true);
        let output = decide(&request(json!({})), vec![gateway, stack, orphan]);
        assert_eq!(output.plan.len(), 1);
        assert_eq!(output.skipped[0].because, "it goes with its stack");
        assert_eq!(output.skipped[1].because, "its stack is gone; remove it by hand");
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, is) in [
            ("demo", "demo", true),
            ("demo", "demo-2", false),
            ("demo*", "demo-2", true),
            ("*-2", "demo-2", true),
            ("d?mo*", "demo_2", true),
            ("*", "", true),
            ("?", "", false),
            ("*o*2", "demo-2", true),
            ("", "demo", false),
        ] {
            assert_eq!(fits(pattern, name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_leaving_is_not_asked_to_leave_again() {
        let mut instance = finding(Kind::Instance, "arn:i", "demo", true);
        assert!(!is_leaving(&instance));
        instance.because += " (shutting-down)";
        assert!(is_leaving(&instance));
    }
}
