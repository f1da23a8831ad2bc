//! Why a pod that waits for a node of Karpenter's does not run: from the pod, Karpenter's claims and nodes, their events,
//! and what AWS says about the machines behind the claims.
//!
//! Claims that EC2 has no room for are deleted at once, so their events are all that is left of them. What a claim waits
//! for that was launched only AWS can tell: a diagnosis that meets one asks for [`Machines`] ([`Report::asks_machines`])
//! and is made again with them.

use std::collections::BTreeMap;

use serde_json::Value;
use slipway_statemachine::ErrorName;

use super::pods::text;
use super::{bounded, happened, redact};

/// All that a diagnosis is made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The pod, as the API server answers it.
    pub pod: Value,
    /// The NodeClaims of the pools that may carry it.
    pub claims: Vec<Value>,
    /// The nodes of those pools.
    pub nodes: Vec<Value>,
    /// The events of the pod's namespace and of the one where those of claims are.
    pub events: Vec<Value>,
    /// What AWS says of the machines; none if it was not asked.
    pub machines: Option<Machines>,
}

/// The machines behind claims, as AWS sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machines {
    /// Whether EKS lets the role of Karpenter's nodes join: it has an access entry of type `EC2_LINUX`.
    pub may_join: bool,
    /// State and reason by instance: `terminated, Client.InvalidKMSKey.InvalidState: …`.
    pub states: BTreeMap<String, String>,
}

/// What keeps a pod from running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// AWS denies Karpenter what a launch needs.
    Denied {
        /// As IAM writes it.
        action: String,
    },
    /// EC2 has none of what the pools may launch.
    NoCapacity,
    /// The account may not have more.
    Quota,
    /// Karpenter knows no instance type that fits pod, pools and limits.
    NothingFits,
    /// A launch fails for another reason, which the claim says.
    LaunchFails,
    /// A machine runs and does not become a node.
    NeverJoins {
        /// EKS does not let its role in.
        no_entry: bool,
    },
    /// A node has joined and is not ready.
    NodeNotReady,
    /// The pod's image cannot be had.
    ImagePull {
        /// No retry can help: the image's name is none.
        hopeless: bool,
    },
}

impl Kind {
    /// The error under which a run ends.
    #[must_use]
    pub const fn name(&self) -> ErrorName {
        match self {
            Self::Denied { .. } => ErrorName::ControllerDenied,
            Self::NoCapacity => ErrorName::CapacityUnavailable,
            Self::Quota => ErrorName::QuotaExceeded,
            Self::NothingFits => ErrorName::NoInstanceTypeFits,
            Self::NeverJoins { .. } => ErrorName::NodesNeverJoin,
            Self::LaunchFails | Self::NodeNotReady | Self::ImagePull { .. } => ErrorName::CapacityNotVerified,
        }
    }

    /// What it is, a whole sentence for a person.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::Denied { action } => format!("AWS denies Karpenter's controller {action}, so it launches nothing."),
            Self::NoCapacity => "EC2 has no capacity for anything that the node pools may launch.".to_owned(),
            Self::Quota => "A launch would exceed a quota of the account.".to_owned(),
            Self::NothingFits => "No instance type fits the pod, its node pools and their limits.".to_owned(),
            Self::LaunchFails => "Karpenter's launches fail.".to_owned(),
            Self::NeverJoins { no_entry: true } => {
                "Machines that Karpenter launches cannot join: the role of its nodes has no access entry of type \
                 EC2_LINUX."
                    .to_owned()
            }
            Self::NeverJoins { no_entry: false } => {
                "Machines that Karpenter launches do not become nodes of the cluster.".to_owned()
            }
            Self::NodeNotReady => "A node that Karpenter launched has joined and does not become ready.".to_owned(),
            Self::ImagePull { .. } => "The image of the test pod cannot be pulled.".to_owned(),
        }
    }

    /// For how many seconds it must have been seen without a break before it counts as final.
    #[must_use]
    pub const fn patience(&self) -> u32 {
        match self {
            // Nobody makes an access entry, or an image's name, but a person.
            Self::NeverJoins { no_entry: true } | Self::ImagePull { hopeless: true } => 0,
            // A fresh policy is believed within a minute.
            Self::Denied { .. } => 60,
            Self::ImagePull { hopeless: false } | Self::Quota => 120,
            // Karpenter tries every type, zone and way of paying once, then waits three minutes and tries again.
            Self::NoCapacity | Self::NothingFits | Self::LaunchFails => 300,
            // A machine is a ready node after one or two minutes; Karpenter gives it up after fifteen.
            Self::NeverJoins { no_entry: false } | Self::NodeNotReady => 600,
        }
    }
}

/// A diagnosis with what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What speaks against the pod's ever running; none if it is on its way as far as one can see.
    pub kind: Option<Kind>,
    /// One line for whoever watches.
    pub detail: String,
    /// What is seen, redacted, a line each.
    pub evidence: String,
    asks_machines: bool,
}

impl Report {
    /// Whether the diagnosis would be a better one if AWS were asked about the machines.
    #[must_use]
    pub const fn asks_machines(&self) -> bool {
        self.asks_machines
    }

    /// The name under which a run ends if this stays.
    #[must_use]
    pub fn name(&self) -> ErrorName {
        self.kind.as_ref().map_or(ErrorName::CapacityNotVerified, Kind::name)
    }

    /// What a failed run's cause says: the diagnosis, then what it rests on.
    #[must_use]
    pub fn cause(&self) -> String {
        let sentence = match &self.kind {
            Some(kind) => kind.sentence(),
            None => format!("A test pod does not run: {}.", self.detail.trim_end_matches('.')),
        };
        format!("{sentence} Seen: {}", self.evidence)
    }
}

/// Says why a pod does not run yet.
#[must_use]
pub fn diagnose(observed: &Observed) -> Report {
    let claims = own_claims(observed);
    let (kind, detail) = of_container(&observed.pod)
        .or_else(|| of_claims(&claims, observed))
        .or_else(|| of_events(observed))
        .unwrap_or_else(|| (None, waits(&observed.pod)));
    let asks_machines = observed.machines.is_none() && matches!(kind, Some(Kind::NeverJoins { .. }));
    let detail = bounded(&redact(&detail));
    let evidence = evidence(observed, &claims, &detail);
    Report { kind, detail, evidence, asks_machines }
}

type Finding = (Option<Kind>, String);

fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

fn conditions(object: &Value) -> impl Iterator<Item = &Value> {
    object.pointer("/status/conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    conditions(object).find(|condition| condition["type"] == kind)
}

fn holds(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}

/// Whether something happened since the pod was made: what an earlier try met is no news. To the second, since some
/// timestamps have no fraction.
fn since_pod(pod: &Value, at: &str) -> bool {
    let second = |at: &str| at.get(..19).map(str::to_owned);
    second(at).is_some() && second(at) >= second(text(pod, "/metadata/creationTimestamp"))
}

/// The claims that are the pod's: Karpenter said that it should run there, or they were made since it was. Karpenter says
/// so once in two minutes at most, so its word alone would miss the second claim.
fn own_claims(observed: &Observed) -> Vec<&Value> {
    let pod = &observed.pod;
    let nominated = |claim: &Value| {
        let says = format!("nodeclaim/{}", name(claim));
        observed
            .events
            .iter()
            .filter(|event| of(event, "Pod", name(pod)))
            .any(|event| text(event, "/message").split([' ', ',']).any(|word| word == says))
    };
    let own = |claim: &&Value| since_pod(pod, text(claim, "/metadata/creationTimestamp")) || nominated(claim);
    let stays = |claim: &&Value| claim.pointer("/metadata/deletionTimestamp").is_none();
    observed.claims.iter().filter(stays).filter(own).collect()
}

fn of(event: &Value, kind: &str, name: &str) -> bool {
    text(event, "/involvedObject/kind") == kind && text(event, "/involvedObject/name") == name
}

/// A pod that has its node and does not start there.
fn of_container(pod: &Value) -> Option<Finding> {
    let waiting = pod.pointer("/status/containerStatuses/0/state/waiting")?;
    let (reason, message) = (text(waiting, "/reason"), text(waiting, "/message"));
    let kind = match reason {
        "InvalidImageName" => Some(Kind::ImagePull { hopeless: true }),
        _ if reason.contains("Image") || reason == "RegistryUnavailable" => Some(Kind::ImagePull { hopeless: false }),
        _ => None,
    };
    Some((kind, format!("pod {} does not run yet: {reason} {message}", name(pod)).trim_end().to_owned()))
}

/// The claim that is farthest says how far the pod is.
fn of_claims(claims: &[&Value], observed: &Observed) -> Option<Finding> {
    let steps = ["Launched", "Registered", "Initialized"];
    let reached = |claim: &Value| steps.iter().take_while(|step| holds(claim, step)).count();
    // Among equals the newest, which is the one that Karpenter has to say something of.
    let claim = claims.iter().max_by_key(|claim| (reached(claim), text(claim, "/metadata/creationTimestamp")))?;
    let at = |step: &str| {
        let found = condition(claim, step);
        let said = |field: &str| found.map(|found| text(found, field)).unwrap_or_default();
        (said("/reason"), said("/message"))
    };
    match reached(claim) {
        0 => {
            let (reason, message) = at("Launched");
            let detail = format!("node claim {} is not launched yet: {reason} {message}", name(claim));
            // "Unknown" is also what it says before it was tried.
            let kind = match reason {
                "" | "AwaitingReconciliation" | "NodeClassReadinessUnknown" | "RequestLimitExceeded" => None,
                _ => Some(of_launch(&format!("{reason} {message}"))),
            };
            // What EC2 said to the claims before it counts for as long as none of them was launched.
            match (&kind, of_events(observed)) {
                (None, Some(earlier)) => Some(earlier),
                _ => Some((kind, detail.trim_end().to_owned())),
            }
        }
        1 => {
            let no_entry = observed.machines.as_ref().is_some_and(|machines| !machines.may_join);
            Some((Some(Kind::NeverJoins { no_entry }), format!("{} has not joined the cluster yet", machine(claim))))
        }
        2 => {
            let (reason, message) = at("Initialized");
            let node = observed.nodes.iter().find(|node| name(node) == text(claim, "/status/nodeName"));
            let ready = node.and_then(|node| condition(node, "Ready")).filter(|ready| ready["status"] != "True");
            let said = ready.map(|ready| format!("; kubelet: {} {}", text(ready, "/reason"), text(ready, "/message")));
            let detail = format!(
                "node {} has joined and is not ready: {reason} {message}{}",
                text(claim, "/status/nodeName"),
                said.unwrap_or_default()
            );
            Some((Some(Kind::NodeNotReady), detail))
        }
        // The scheduler binds the pod any moment now.
        _ => Some((None, waits(&observed.pod))),
    }
}

/// The machine of a claim: `instance i-1 (c7g.medium, spot, eu-west-1a) of node claim x`.
fn machine(claim: &Value) -> String {
    let label = |key: &str| claim["metadata"]["labels"][key].as_str().unwrap_or("?");
    format!(
        "instance {} ({}, {}, {}) of node claim {}",
        instance(claim).unwrap_or("?"),
        label("node.kubernetes.io/instance-type"),
        label("karpenter.sh/capacity-type"),
        label("topology.kubernetes.io/zone"),
        name(claim)
    )
}

/// The instance behind a claim, from its provider id `aws:///eu-west-1a/i-1`.
#[must_use]
pub fn instance(claim: &Value) -> Option<&str> {
    text(claim, "/status/providerID").rsplit('/').next().filter(|id| id.starts_with("i-"))
}

/// What a launch met, from Karpenter's reason and words, which carry EC2's codes.
fn of_launch(words: &str) -> Kind {
    let has = |any: &[&str]| any.iter().any(|one| words.contains(one));
    if has(&["SpotSLRCreationFailed", "ServiceLinkedRoleCreationNotPermitted"]) {
        return Kind::Denied { action: "iam:CreateServiceLinkedRole".to_owned() };
    }
    if has(&["Unauthorized", "AccessDenied", "AuthFailure", "not authorized"]) {
        let action = if has(&["launch template configs"]) {
            "ec2:CreateLaunchTemplate"
        } else if has(&["creating fleet request"]) {
            "ec2:CreateFleet"
        } else {
            "ec2:RunInstances"
        };
        return Kind::Denied { action: action.to_owned() };
    }
    // What any type, zone or way of paying lacks is capacity; a quota is what is left where all refuse for it.
    if has(&["InsufficientInstanceCapacity", "UnfulfillableCapacity", "InsufficientFreeAddressesInSubnet"]) {
        return Kind::NoCapacity;
    }
    if has(&[
        "VcpuLimitExceeded",
        "VCPULimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "SpotQuotaExceeded",
        "MaxFleetCountExceeded",
        "FleetQuotaExceeded",
        "PendingVerification",
    ]) {
        return Kind::Quota;
    }
    if has(&["unavailable during launch", "nsufficient capacity"]) { Kind::NoCapacity } else { Kind::LaunchFails }
}

/// What events say of the pod's claims that are gone, and of the pod.
fn of_events(observed: &Observed) -> Option<Finding> {
    let pod = &observed.pod;
    let recent = || observed.events.iter().filter(|event| since_pod(pod, happened(event)));
    let newest = |reason: &str, kind: &str, of: &str| {
        recent()
            .filter(|event| event["reason"] == reason && text(event, "/involvedObject/kind") == kind)
            .filter(|event| of.is_empty() || text(event, "/involvedObject/name") == of)
            .max_by_key(|event| happened(event).to_owned())
            .map(|event| text(event, "/message"))
    };
    // Karpenter's own, not the scheduler's of the same reason.
    let unfit =
        newest("FailedScheduling", "Pod", name(pod)).filter(|message| message.starts_with("Failed to schedule"));
    let pools = pools(pod);
    // Claims of other pools are other pods' business: claims are called after their pool.
    let of_pools = |claim: &str| pools.is_empty() || pools.iter().any(|pool| claim.starts_with(&format!("{pool}-")));
    let refused = recent()
        .filter(|event| event["reason"] == "InsufficientCapacityError" && of_pools(text(event, "/involvedObject/name")))
        .max_by_key(|event| happened(event).to_owned());
    if let Some(event) = refused {
        return Some((Some(of_launch(text(event, "/message"))), text(event, "/message").to_owned()));
    }
    unfit.map(|message| (Some(Kind::NothingFits), message.to_owned()))
}

/// The pools that a pod asks for by its node affinity; none if it asks for none.
fn pools(pod: &Value) -> Vec<&str> {
    let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let expressions = pod.pointer(terms).and_then(Value::as_array).into_iter().flatten();
    let expressions = expressions.filter_map(|term| term["matchExpressions"].as_array()).flatten();
    let values =
        expressions.filter(|one| one["key"] == "karpenter.sh/nodepool").filter_map(|one| one["values"].as_array());
    values.flatten().filter_map(Value::as_str).collect()
}

/// What a pod waits for, in the scheduler's words.
fn waits(pod: &Value) -> String {
    let scheduled = condition(pod, "PodScheduled").filter(|condition| condition["status"] == "False");
    let why = scheduled.map_or_else(
        || "it was not looked at yet".to_owned(),
        |condition| format!("{} {}", text(condition, "/reason"), text(condition, "/message")).trim().to_owned(),
    );
    format!("pod {} does not run yet: {why}", name(pod))
}

/// What a person would want to have seen: the pod, its claims and nodes with their machines, and the latest events.
fn evidence(observed: &Observed, claims: &[&Value], detail: &str) -> String {
    let mut lines = vec![detail.to_owned()];
    let pod = waits(&observed.pod);
    if pod != detail {
        lines.push(pod);
    }
    for claim in claims {
        let said: Vec<_> = conditions(claim)
            .filter(|one| {
                one["status"] != "True" && ["Launched", "Registered", "Initialized"].iter().any(|t| one["type"] == *t)
            })
            .map(|one| format!("{} {} ({})", text(one, "/type"), text(one, "/reason"), text(one, "/message")))
            .collect();
        lines.push(format!("node claim {}: {}", name(claim), said.join("; ")));
        let state = observed
            .machines
            .as_ref()
            .zip(instance(claim))
            .map(|(machines, id)| machines.states.get(id).map_or("EC2 does not know it", String::as_str));
        if let Some(state) = state {
            lines.push(format!("{}: {state}", machine(claim)));
        }
    }
    if let Some(machines) = &observed.machines {
        let whether = if machines.may_join { "has" } else { "has no" };
        lines.push(format!("the role of Karpenter's nodes {whether} access entry of type EC2_LINUX"));
    }
    let mut events: Vec<_> = observed
        .events
        .iter()
        .filter(|event| {
            let named = claims.iter().any(|claim| of(event, "NodeClaim", name(claim)));
            named || of(event, "Pod", name(&observed.pod)) || event["reason"] == "InsufficientCapacityError"
        })
        .filter(|event| since_pod(&observed.pod, happened(event)))
        .collect();
    events.sort_by_key(|event| std::cmp::Reverse(happened(event).to_owned()));
    for event in events.into_iter().take(5) {
        let (object, reason) = (text(event, "/involvedObject/name"), text(event, "/reason"));
        lines.push(format!("event {reason} of {object}: {}", text(event, "/message")));
    }
    bounded(&redact(&lines.join("\n")))
}
