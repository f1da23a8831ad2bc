//! What is wrong with Karpenter, from what can be observed of it alone: Deployment, ReplicaSets, pods, logs, events, and
//! what AWS says about the controller's identity.
//!
//! The art is in one distinction. A controller whose identity AWS does not believe *yet* and one whose identity AWS will
//! *never* believe exit with the same words. Only IAM can tell them apart, so a diagnosis that meets those words asks
//! for [`Identity::flaw`] ([`Report::asks_identity`]) and is made again with it.

pub mod capacity;
mod kind;
mod pods;
mod redaction;
mod words;

use std::fmt;

use serde_json::Value;
use slipway_statemachine::ErrorName;

pub use kind::{Kind, Scarcity};
pub use pods::Pod;
pub use redaction::redact;

use crate::identity::Flaw;
use pods::{Injected, State, text};
use words::Symptom;

/// The most of the evidence that a cause carries, in characters.
const EVIDENCE: usize = 6_000;

/// All that a diagnosis is made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The Deployment as the API server answers it; none if it is not there.
    pub deployment: Option<Value>,
    /// The ReplicaSets of its selector.
    pub replica_sets: Vec<Value>,
    /// The pods of its selector.
    pub pods: Vec<Pod>,
    /// The namespace's events.
    pub events: Vec<Value>,
    /// Which identity pods should have, and whether it can work.
    pub identity: Option<Identity>,
    /// The interruption queue that the controller is told of, and whether SQS knows it; none if it was not asked.
    pub queue: Option<Queue>,
}

/// An interruption queue as SQS sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// The name that the Deployment gives.
    pub name: String,
    /// Whether there is one.
    pub exists: bool,
}

/// What is known of the controller's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What pods should be given.
    pub expected: Expected,
    /// Why it can never work; none if IAM, EKS and the service account are as they should be. Not known until asked.
    pub flaw: Option<Option<Flaw>>,
}

/// What EKS should put into Karpenter's pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// IRSA: a web identity for this role.
    WebIdentity {
        /// The controller's role.
        role_arn: String,
    },
    /// The address of the Pod Identity agent.
    PodIdentity,
}

/// What it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diagnosis {
    /// Every replica is there, current and available, and nothing in their logs says that they do not work.
    Ready,
    /// On its way; nothing speaks against it.
    Progressing,
    /// AWS does not believe the controller's identity yet. It will; pods made anew start without back-off.
    IdentityRace,
    /// Something that does not mend by waiting.
    Fatal(Kind),
}

impl Diagnosis {
    /// The name under which a run ends if this stays.
    #[must_use]
    pub const fn name(&self) -> ErrorName {
        match self {
            Self::Ready | Self::Progressing => ErrorName::KarpenterNotReady,
            Self::IdentityRace => ErrorName::IdentityNotBelieved,
            Self::Fatal(kind) => kind.name(),
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("Ready"),
            Self::Progressing => f.write_str("Progressing"),
            Self::IdentityRace => f.write_str("IdentityRace"),
            Self::Fatal(kind) => f.write_str(kind.name().as_str()),
        }
    }
}

/// A diagnosis with what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What it comes to.
    pub diagnosis: Diagnosis,
    /// One line for whoever watches.
    pub detail: String,
    /// What is seen in pods, logs and events, redacted, a line each.
    pub evidence: String,
    /// Pods that fail and do not run again already. Making them anew heals a race and a missed injection.
    pub failing_pods: Vec<FailingPod>,
}

/// A pod whose container fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingPod {
    /// The pod's name.
    pub name: String,
    /// The pod's UID, so that a successor of the same name is never taken for it.
    pub uid: String,
    /// How it ended, with its last words.
    pub reason: String,
}

impl Report {
    /// Whether the diagnosis would be a better one if the identity's flaw were known.
    #[must_use]
    pub const fn asks_identity(&self) -> bool {
        matches!(self.diagnosis, Diagnosis::IdentityRace | Diagnosis::Fatal(Kind::NotInjected(None)))
    }

    /// Whether the diagnosis would be a better one if it were known whether the interruption queue is there: a controller
    /// is ready without, and SQS denies a name that is none before it says that there is no such queue.
    #[must_use]
    pub fn asks_queue(&self) -> bool {
        match &self.diagnosis {
            Diagnosis::Ready => true,
            Diagnosis::Fatal(Kind::Denied { action }) => action.starts_with("sqs:"),
            _ => false,
        }
    }

    /// Whether making the failing pods anew can help: AWS will believe them, or EKS will give them their identity.
    #[must_use]
    pub const fn healable(&self) -> bool {
        self.asks_identity()
    }

    /// What a failed run's cause says: the diagnosis, then what it rests on.
    #[must_use]
    pub fn cause(&self) -> String {
        let sentence = match &self.diagnosis {
            Diagnosis::Ready | Diagnosis::Progressing => format!("Karpenter is not ready: {}.", self.detail),
            Diagnosis::IdentityRace => "AWS does not believe Karpenter's identity, though provider, trust policy and \
                                        service account are as they should be."
                .to_owned(),
            Diagnosis::Fatal(kind) => kind.sentence(),
        };
        if self.evidence.is_empty() { sentence } else { format!("{sentence} Seen: {}", self.evidence) }
    }
}

/// Says what is wrong, or that nothing is.
#[must_use]
pub fn diagnose(observed: &Observed) -> Report {
    let Some(deployment) = &observed.deployment else {
        let detail = "the deployment is not there; was install-karpenter run?".to_owned();
        return Report {
            diagnosis: Diagnosis::Fatal(Kind::Unknown),
            evidence: detail.clone(),
            detail,
            failing_pods: Vec::new(),
        };
    };
    let rollout = Rollout::of(deployment);
    // What an earlier revision does is no news: its pods go once those of the current one are there.
    let observed = &current(observed);
    let finding = if rollout.available() { silent_failure(observed) } else { failure(observed, deployment) };
    let diagnosis = match &finding {
        Some(finding) => finding.diagnosis.clone(),
        None if rollout.available() => Diagnosis::Ready,
        None => Diagnosis::Progressing,
    };
    let detail = match &finding {
        Some(finding) => format!("{}; {}", rollout.tally(), finding.detail),
        None => rollout.tally(),
    };
    let failing_pods = if rollout.available() { Vec::new() } else { failing_pods(observed) };
    let evidence = if diagnosis == Diagnosis::Ready { String::new() } else { evidence(observed, &detail) };
    Report { diagnosis, detail, evidence, failing_pods }
}

/// What was observed, with the ReplicaSet of the latest revision and its pods alone; all of it where none is known.
fn current(observed: &Observed) -> Observed {
    let mut current = observed.clone();
    let revision = |set: &&Value| {
        let revision = set["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str()?;
        revision.parse::<u64>().ok()
    };
    let Some(latest) = observed.replica_sets.iter().max_by_key(revision).filter(|set| revision(set).is_some()) else {
        return current;
    };
    let uid = &latest["metadata"]["uid"];
    current.replica_sets.retain(|set| set["metadata"]["uid"] == *uid);
    current.pods.retain(|pod| {
        let owners = pod.object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        owners.is_none_or(|owners| owners.iter().any(|owner| owner["uid"] == *uid))
    });
    current
}

/// How far a rollout is.
struct Rollout {
    seen: bool,
    wanted: u64,
    updated: u64,
    available: u64,
    total: u64,
}

impl Rollout {
    fn of(deployment: &Value) -> Self {
        let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        Self {
            seen: number("/status/observedGeneration") >= number("/metadata/generation"),
            wanted: deployment.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1),
            updated: number("/status/updatedReplicas"),
            available: number("/status/availableReplicas"),
            total: number("/status/replicas"),
        }
    }

    /// Every replica that was asked for, at least one, is there, current and available, and no other.
    const fn available(&self) -> bool {
        self.seen
            && self.wanted > 0
            && self.updated >= self.wanted
            && self.available >= self.wanted
            && self.total <= self.wanted
    }

    fn tally(&self) -> String {
        format!("{} of {} replicas are ready", self.available.min(self.updated), self.wanted)
    }
}

/// What speaks against a rollout.
struct Finding {
    diagnosis: Diagnosis,
    detail: String,
}

impl Finding {
    fn new(diagnosis: Diagnosis, detail: impl Into<String>) -> Self {
        Self { diagnosis, detail: detail.into() }
    }

    fn fatal(kind: Kind, detail: impl Into<String>) -> Self {
        Self::new(Diagnosis::Fatal(kind), detail)
    }
}

/// The interruption queue that a Deployment tells the controller of; none if it tells of none.
#[must_use]
pub fn interruption_queue(deployment: &Value) -> Option<&str> {
    let containers = deployment.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let mut variables = containers.into_iter().flatten().filter_map(|container| container["env"].as_array()).flatten();
    let queue = variables.find(|variable| variable["name"] == "INTERRUPTION_QUEUE")?;
    queue["value"].as_str().filter(|name| !name.is_empty())
}

/// Controllers that are available and still do not do their work: nobody leads, or nobody hears of interruptions.
fn silent_failure(observed: &Observed) -> Option<Finding> {
    // Karpenter is ready without its queue, and says so once in a while at most.
    if let Some(queue) = observed.queue.as_ref().filter(|queue| !queue.exists) {
        return Some(Finding::fatal(Kind::QueueMissing, format!("SQS knows no queue {}", queue.name)));
    }
    let mut pods = observed.pods.iter().filter(|pod| !pod.leaving());
    pods.find_map(|pod| {
        let said = words::read(&pod.log)?;
        let kind = match said.symptom {
            Symptom::LeaderElection => Kind::LeaderElection,
            Symptom::QueueMissing => Kind::QueueMissing,
            // A queue that is another's. What else is denied, prices say, a controller may do without.
            Symptom::Denied(action) if action.starts_with("sqs:") => Kind::Denied { action },
            _ => return None,
        };
        Some(Finding::fatal(kind, format!("pod {} says: {}", pod.name(), said.line)))
    })
}

/// What keeps a rollout from being available, the surest sign first: what a controller says itself, what keeps it from
/// starting, what keeps its pods from being made, what keeps them from a node.
fn failure(observed: &Observed, deployment: &Value) -> Option<Finding> {
    let states: Vec<(&Pod, State)> = observed.pods.iter().map(|pod| (pod, pod.state())).collect();
    let failed = states.iter().filter(|(_, state)| matches!(state, State::Failed { .. }));
    let of_controllers = failed.map(|(pod, _)| controller_failure(pod, observed.identity.as_ref()));
    // An unknown failure of one pod gives way to a known one of another.
    let mut unknown = None;
    for finding in of_controllers {
        if finding.diagnosis != Diagnosis::Fatal(Kind::Unknown) {
            return Some(finding);
        }
        unknown = unknown.or(Some(finding));
    }
    let blocked = states.iter().find_map(|(pod, state)| match state {
        State::Blocked { reason, message } => Some(blocked(pod, reason, message)),
        _ => None,
    });
    let starting = || {
        states.iter().filter(|(_, state)| *state == State::Starting).find_map(|(pod, _)| {
            let said = pod.said()?;
            let kind = lasting(&said.symptom)?;
            Some(Finding::fatal(kind, format!("pod {} is not ready and says: {}", pod.name(), said.line)))
        })
    };
    let unscheduled = || {
        states.iter().find_map(|(pod, state)| match state {
            State::Unscheduled(message) if !message.is_empty() => Some(Finding::fatal(
                Kind::Unschedulable(Scarcity::of(message)),
                format!("pod {} waits for a node: {message}", pod.name()),
            )),
            _ => None,
        })
    };
    blocked.or_else(|| refused_pods(observed, deployment)).or(unknown).or_else(starting).or_else(unscheduled)
}

/// What a controller that exited died of.
fn controller_failure(pod: &Pod, identity: Option<&Identity>) -> Finding {
    let State::Failed { exit_code, .. } = pod.state() else {
        return Finding::fatal(Kind::Unknown, format!("pod {} fails", pod.name()));
    };
    let said = pod.said();
    let last = said.as_ref().map(|said| said.line.clone()).or_else(|| pod.last_lines(1).pop());
    let detail = format!(
        "pod {}: the controller exited with {exit_code}{}",
        pod.name(),
        last.map_or_else(String::new, |line| format!(": {line}"))
    );
    let known_flaw = identity.and_then(|identity| identity.flaw.clone()).flatten();
    let diagnosis = match said.map(|said| said.symptom) {
        Some(Symptom::Refused | Symptom::NoProvider | Symptom::NoCredentials)
            if !has_expected_identity(pod, identity) =>
        {
            Diagnosis::Fatal(Kind::NotInjected(known_flaw))
        }
        Some(Symptom::Refused | Symptom::NoProvider) => match known_flaw {
            None => Diagnosis::IdentityRace,
            Some(flaw @ Flaw::NoProvider { .. }) => Diagnosis::Fatal(Kind::NoOidcProvider(flaw)),
            Some(flaw @ (Flaw::NoAudience { .. } | Flaw::NoRole { .. } | Flaw::Trust { .. })) => {
                Diagnosis::Fatal(Kind::TrustRefused(flaw))
            }
            Some(flaw) => Diagnosis::Fatal(Kind::NotInjected(Some(flaw))),
        },
        Some(symptom) => Diagnosis::Fatal(lasting(&symptom).unwrap_or(Kind::Unknown)),
        None => Diagnosis::Fatal(Kind::Unknown),
    };
    Finding::new(diagnosis, detail)
}

/// Whether a pod has the identity that was meant for it, rather than none or that of an earlier configuration. Without
/// an expectation any identity will do.
fn has_expected_identity(pod: &Pod, identity: Option<&Identity>) -> bool {
    match (pod.injected(), identity.map(|identity| &identity.expected)) {
        (Injected::Nothing, _) => false,
        (Injected::WebIdentity(role), Some(Expected::WebIdentity { role_arn })) => role == *role_arn,
        (Injected::Agent, Some(Expected::PodIdentity)) | (_, None) => true,
        _ => false,
    }
}

/// The kind of a symptom that has nothing to do with who one is.
fn lasting(symptom: &Symptom) -> Option<Kind> {
    Some(match symptom {
        Symptom::Refused | Symptom::NoProvider | Symptom::NoCredentials => return None,
        Symptom::Unreachable => Kind::StsUnreachable,
        Symptom::Denied(action) => Kind::Denied { action: action.clone() },
        Symptom::QueueMissing => Kind::QueueMissing,
        Symptom::ZonalShift => Kind::ZonalShift,
        Symptom::ClusterEndpoint => Kind::ClusterEndpoint,
        Symptom::CrdMissing => Kind::CrdMissing,
        Symptom::LeaderElection => Kind::LeaderElection,
    })
}

/// A container that the kubelet cannot start.
fn blocked(pod: &Pod, reason: &str, message: &str) -> Finding {
    let detail = format!("pod {}: {reason}: {message}", pod.name());
    let kind = match reason {
        "InvalidImageName" => Kind::ImagePull { hopeless: true },
        _ if reason.contains("Image") || reason == "RegistryUnavailable" => Kind::ImagePull { hopeless: false },
        _ => Kind::Unknown,
    };
    Finding::fatal(kind, redact(&detail))
}

/// Pods that the API server does not let the ReplicaSet make: as the ReplicaSet's and Deployment's conditions and the
/// newest event say it.
fn refused_pods(observed: &Observed, deployment: &Value) -> Option<Finding> {
    let objects = observed.replica_sets.iter().chain([deployment]);
    let conditions =
        objects.filter_map(|object| object.pointer("/status/conditions").and_then(Value::as_array)).flatten();
    let condition = conditions
        .filter(|condition| condition["type"] == "ReplicaFailure" && condition["status"] == "True")
        .map(|condition| text(condition, "/message"))
        .find(|message| !message.is_empty())?;
    // The condition keeps its first message for as long as it holds; the events go on.
    let created = observed
        .events
        .iter()
        .filter(|event| event["reason"] == "FailedCreate" && text(event, "/involvedObject/kind") == "ReplicaSet");
    let newest = created.max_by_key(|event| happened(event).to_owned()).map(|event| text(event, "/message"));
    let message = newest.filter(|message| !message.is_empty()).unwrap_or(condition);
    let quota = [
        "exceeded quota",
        "failed quota",
        "status unknown for quota",
        "must specify limits",
        "must specify requests",
        "usage per Container",
        "usage per Pod",
        "limit to request ratio",
    ];
    let admission = [
        "admission webhook",
        "failed calling webhook",
        "violates PodSecurity",
        "ValidatingAdmissionPolicy",
        "denied the request",
    ];
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    let kind = if says(&quota) {
        Kind::Quota
    } else if says(&admission) {
        Kind::AdmissionRefused
    } else {
        Kind::Unknown
    };
    Some(Finding::fatal(kind, format!("its pods are refused: {}", redact(message))))
}

/// When an event happened last, as RFC 3339 sorts it.
fn happened(event: &Value) -> &str {
    let at = ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    at.iter().map(|at| text(event, at)).find(|at| !at.is_empty()).unwrap_or_default()
}

/// Pods that fail now. One whose container runs again may well succeed this time; if not, it is back here in seconds.
fn failing_pods(observed: &Observed) -> Vec<FailingPod> {
    let failing = observed.pods.iter().filter_map(|pod| match pod.state() {
        State::Failed { exit_code, retrying: false } => {
            let last = pod.last_lines(1).pop().map_or_else(String::new, |line| format!(": {line}"));
            Some((pod, format!("the controller exited with {exit_code}{last}")))
        }
        _ => None,
    });
    failing.map(|(pod, reason)| FailingPod { name: pod.name().to_owned(), uid: pod.uid().to_owned(), reason }).collect()
}

/// What a person would want to have seen: each pod that is not well, and the latest warnings.
fn evidence(observed: &Observed, detail: &str) -> String {
    let mut lines = vec![detail.to_owned()];
    for pod in &observed.pods {
        let how = match pod.state() {
            State::Fine => continue,
            State::Starting => "runs, not ready".to_owned(),
            State::Failed { exit_code, retrying } => {
                let now = if retrying { ", runs again" } else { "" };
                format!("exited with {exit_code}, {} restarts{now}", pod.restarts())
            }
            State::Blocked { reason, message } => format!("{reason}: {message}"),
            State::Unscheduled(message) => format!("unscheduled: {message}"),
        };
        let node = Some(text(&pod.object, "/spec/nodeName")).filter(|node| !node.is_empty()).unwrap_or("no node");
        let identity = match pod.injected() {
            Injected::Nothing => "no identity injected".to_owned(),
            Injected::WebIdentity(role) => format!("identity {role}"),
            Injected::Agent => "identity of the Pod Identity agent".to_owned(),
        };
        lines.push(redact(&format!("pod {} on {node}: {how}; {identity}", pod.name())));
        lines.extend(pod.last_lines(3).into_iter().map(|line| format!("  {line}")));
    }
    let mut warnings: Vec<_> = observed.events.iter().filter(|event| event["type"] == "Warning").collect();
    warnings.sort_by_key(|event| std::cmp::Reverse(happened(event).to_owned()));
    for event in warnings.into_iter().take(5) {
        let (object, reason) = (text(event, "/involvedObject/name"), text(event, "/reason"));
        lines.push(redact(&format!("event {reason} of {object}: {}", text(event, "/message"))));
    }
    bounded(&lines.join("\n"))
}

/// As much of the evidence as a cause carries.
fn bounded(whole: &str) -> String {
    if whole.chars().count() <= EVIDENCE {
        return whole.to_owned();
    }
    whole.chars().take(EVIDENCE).chain("…".chars()).collect()
}
