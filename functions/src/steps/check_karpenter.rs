//! check-karpenter: looks at the rollout of Karpenter, says how it is, and ends the run under a name of its own where no
//! waiting helps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_karpenter::diagnosis::{
    self, Diagnosis, Expected, Kind, Observed, Pod, Queue, Report, diagnose, interruption_queue,
};
use slipway_karpenter::policy::SERVICE_ACCOUNT;
use slipway_karpenter::render::RELEASE_LABEL;
use slipway_karpenter::values::RELEASE;
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, Run, Step, StepError, spec::Identity};

use crate::{
    Context,
    aws::error::{code, is_gone, refused},
    cluster::{self, Cluster},
    identity::{self, Subject},
    suspect::Suspect,
};

/// Checks Karpenter.
#[derive(Debug)]
pub struct CheckKarpenter;

/// Where Karpenter is, who it should be, and since when one looks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that asks.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Karpenter's namespace.
    pub namespace: String,
    /// How its controller proves who it is.
    pub identity: Identity,
    /// The cluster's issuer URL.
    pub issuer: String,
    /// The controller's role.
    pub controller_role_arn: String,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
    /// Seconds that the machine has waited for Karpenter so far.
    #[serde(default)]
    pub waited: u32,
    /// What the last look suspected, as it answered it.
    #[serde(default)]
    pub suspect: Option<Suspect>,
}

/// The state of the rollout.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// What the machine decides by.
    pub health: Health,
    /// In one word: `Ready`, `Progressing`, `IdentityRace`, or the name of an error.
    pub diagnosis: String,
    /// Seconds until it is worth asking again; 0 once it is ready.
    pub retry_after_seconds: u32,
    /// One line for whoever watches.
    pub detail: String,
    /// What heal-karpenter takes.
    pub failing_pods: Vec<FailingPod>,
    /// What to hand to the next look.
    pub suspect: Option<Suspect>,
    /// The error under which the run ends if it stays so.
    pub error: ErrorName,
    /// The cause that it then gives: the diagnosis, and all that it rests on.
    pub cause: String,
}

/// How Karpenter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Health {
    /// Every replica is there, current and available.
    Ready,
    /// On its way, or failing in a way that may still pass.
    Progressing,
    /// Pods fail that would not if they were made anew.
    Healable,
}

/// A pod whose container fails.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FailingPod {
    /// Its name.
    pub name: String,
    /// Its UID, so that a successor is never taken for it.
    pub uid: String,
    /// Why, with its last words.
    pub reason: String,
}

impl Step for CheckKarpenter {
    const NAME: &'static str = "check-karpenter";
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::ClusterUnreachable,
        ErrorName::KubernetesRefused,
        ErrorName::KarpenterNotReady,
        ErrorName::OidcProviderMissing,
        ErrorName::IdentityRefused,
        ErrorName::IdentityNotInjected,
        ErrorName::StsUnreachable,
        ErrorName::ControllerDenied,
        ErrorName::InterruptionQueueMissing,
        ErrorName::ImagePullFailed,
        ErrorName::KarpenterUnschedulable,
        ErrorName::CrdNotServed,
        ErrorName::AdmissionRefused,
        ErrorName::PodQuotaExceeded,
        ErrorName::ZonalShiftNotRegistered,
        ErrorName::ClusterEndpointWrong,
        ErrorName::LeaderElectionDenied,
    ];
    type Input = Input;
    type Output = Output;
}

/// A ready controller takes 5 s from its start; nodes that it waits for come within minutes.
const ASK_AGAIN: u32 = 5;

/// How far back the log of a controller that is ready may speak against it, in seconds: what it said before this run
/// mended something is no news. Shorter than the patience with what it may say.
const RECENT: i64 = 60;

/// What a report means for the machine: a failure is believed once it was seen for as long as its kind asks for.
pub(crate) fn decide(report: Report, input: &Input) -> Result<Output, StepError> {
    let error = report.diagnosis.name();
    let healable = report.healable();
    let mut suspect = None;
    if let Diagnosis::Fatal(kind) = &report.diagnosis
        && !healable
    {
        let seen = Suspect::of(error, input.waited, input.suspect);
        if seen.lasts(input.waited) >= kind.patience() {
            return Err(failure(kind, &report, input));
        }
        suspect = Some(seen);
    }
    let health = match &report.diagnosis {
        Diagnosis::Ready => Health::Ready,
        // Those that run again already have their chance.
        _ if healable && !report.failing_pods.is_empty() => Health::Healable,
        _ => Health::Progressing,
    };
    Ok(Output {
        health,
        diagnosis: report.diagnosis.to_string(),
        retry_after_seconds: if health == Health::Ready { 0 } else { ASK_AGAIN },
        suspect,
        error,
        cause: report.cause(),
        detail: report.detail,
        failing_pods: report
            .failing_pods
            .into_iter()
            .map(|pod| FailingPod { name: pod.name, uid: pod.uid, reason: pod.reason })
            .collect(),
    })
}

fn failure(kind: &Kind, report: &Report, input: &Input) -> StepError {
    let error = StepError::new(kind.name(), report.cause());
    match kind {
        Kind::NoOidcProvider(_) | Kind::TrustRefused(_) => error.remedy(format!(
            "Start again: the run sets the provider and the trust of {} right; if it persists, find out who changes them.",
            input.controller_role_arn
        )),
        Kind::Denied { action } => error.remedy(format!(
            "Allow {action} for {}: look for a permissions boundary, an organisation's policy, or a policy of an older \
             Karpenter.",
            input.controller_role_arn
        )),
        _ => error,
    }
}

/// The label selector of a deployment's pods.
fn selector(deployment: &Value) -> String {
    let labels = deployment.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let pairs = labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    pairs.collect::<Vec<_>>().join(",")
}

fn expected(input: &Input) -> Expected {
    match input.identity {
        Identity::Irsa => Expected::WebIdentity { role_arn: input.controller_role_arn.clone() },
        Identity::PodIdentity => Expected::PodIdentity,
    }
}

/// Looks at everything that a diagnosis needs; asks AWS about the identity only where pods fail because of theirs, and
/// about the interruption queue only where nothing else is wrong.
///
/// # Errors
/// `ClusterUnreachable` and `KubernetesRefused` from the API server; a Karpenter that fails for good ends under the name
/// of its failure.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let kubernetes = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    let mut observed = observe(&kubernetes, &input.namespace).await?;
    observed.identity = Some(diagnosis::Identity { expected: expected(&input), flaw: None });
    let mut report = diagnose(&observed);
    if report.asks_identity() {
        let deployment = observed.deployment.as_ref();
        let account =
            deployment.and_then(|d| d.pointer("/spec/template/spec/serviceAccountName")).and_then(Value::as_str);
        let subject = Subject {
            cluster: &input.cluster,
            identity: input.identity,
            namespace: &input.namespace,
            account: account.unwrap_or(SERVICE_ACCOUNT),
            issuer: &input.issuer,
            role_arn: &input.controller_role_arn,
        };
        let flaw = identity::decide(&subject, &identity::observe(cx, &kubernetes, &subject).await?);
        observed.identity = Some(diagnosis::Identity { expected: expected(&input), flaw: Some(flaw) });
        report = diagnose(&observed);
    }
    if report.asks_queue()
        && let Some(name) = observed.deployment.as_ref().and_then(interruption_queue)
    {
        observed.queue = Some(Queue { name: name.to_owned(), exists: has_queue(cx, name).await? });
        report = diagnose(&observed);
    }
    decide(report, &input)
}

async fn has_queue(cx: &Context, name: &str) -> Result<bool, StepError> {
    match cx.aws.sqs().get_queue_url().queue_name(name).send().await {
        Ok(_) => Ok(true),
        Err(error) if code(&error).is_some_and(is_gone) => Ok(false),
        Err(error) => Err(refused("sqs:GetQueueUrl", &error)),
    }
}

/// Deployment, ReplicaSets, pods with their logs, events.
pub(crate) async fn observe(kubernetes: &Cluster, namespace: &str) -> Result<Observed, StepError> {
    // By label, since values may rename it.
    let release = format!("{RELEASE_LABEL}={RELEASE}");
    let deployments = kubernetes.list(("apps/v1", "Deployment"), Some(namespace), &release).await?;
    let Some(deployment) = deployments.into_iter().next() else { return Ok(Observed::default()) };
    let selector = selector(&deployment);
    let replica_sets = kubernetes.list(("apps/v1", "ReplicaSet"), Some(namespace), &selector).await?;
    let mut pods = Vec::new();
    for object in kubernetes.list(("v1", "Pod"), Some(namespace), &selector).await? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut pod = Pod { object, ..Pod::default() };
        if pod.worth_reading() {
            pod.log = kubernetes.log(namespace, &name, false, None).await;
            pod.previous_log = kubernetes.log(namespace, &name, true, None).await;
        } else {
            pod.log = kubernetes.log(namespace, &name, false, Some(RECENT)).await;
        }
        pods.push(pod);
    }
    let events = kubernetes.list(("v1", "Event"), Some(namespace), "").await?;
    Ok(Observed { deployment: Some(deployment), replica_sets, pods, events, identity: None, queue: None })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use slipway_karpenter::identity::Flaw;

    use super::*;

    fn input(waited: u32, suspect: Option<Suspect>) -> Input {
        let mut input: Input = serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "namespace": "karpenter",
            "identity": "irsa",
            "issuer": "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC",
            "controllerRoleArn": "arn:aws:iam::111122223333:role/controller",
            "endpoint": { "url": "https://example.com", "certificateAuthority": "" },
        }))
        .unwrap();
        (input.waited, input.suspect) = (waited, suspect);
        input
    }

    fn report(diagnosis: Diagnosis, failing: bool) -> Report {
        let pod = diagnosis::FailingPod { name: "a".into(), uid: "1".into(), reason: "exit 1".into() };
        let failing_pods = if failing { vec![pod] } else { Vec::new() };
        Report { diagnosis, detail: "0 of 2".into(), evidence: "pod a: exit 1".into(), failing_pods }
    }

    #[test]
    fn what_is_ready_is_not_asked_again() {
        let output = decide(report(Diagnosis::Ready, false), &input(40, None)).unwrap();
        assert_eq!((output.health, output.retry_after_seconds), (Health::Ready, 0));
        let output = decide(report(Diagnosis::Progressing, false), &input(40, None)).unwrap();
        assert_eq!((output.health, output.retry_after_seconds), (Health::Progressing, ASK_AGAIN));
    }

    #[test]
    fn a_race_is_healed_unless_its_pods_run_again_already() {
        let output = decide(report(Diagnosis::IdentityRace, true), &input(0, None)).unwrap();
        assert_eq!((output.health, output.diagnosis.as_str()), (Health::Healable, "IdentityRace"));
        assert_eq!((output.error, output.failing_pods.len()), (ErrorName::IdentityNotBelieved, 1));
        assert!(output.cause.contains("pod a: exit 1"), "{}", output.cause);
        let output = decide(report(Diagnosis::IdentityRace, false), &input(0, None)).unwrap();
        assert_eq!(output.health, Health::Progressing);
        let output = decide(report(Diagnosis::Fatal(Kind::NotInjected(None)), true), &input(0, None)).unwrap();
        assert_eq!(output.health, Health::Healable);
    }

    #[test]
    fn what_configuration_decides_fails_at_once() {
        let flaw = Flaw::Trust { why: "it asks for another subject".to_owned() };
        let error = decide(report(Diagnosis::Fatal(Kind::TrustRefused(flaw)), true), &input(0, None)).unwrap_err();
        assert_eq!(error.name, ErrorName::IdentityRefused);
        assert!(error.cause.contains("another subject") && error.cause.contains("pod a: exit 1"), "{}", error.cause);
    }

    #[test]
    fn what_may_still_pass_fails_once_it_was_seen_for_long_without_a_break() {
        let crd = || report(Diagnosis::Fatal(Kind::CrdMissing), false);
        let first = decide(crd(), &input(100, None)).unwrap();
        let suspect = Some(Suspect { error: ErrorName::CrdNotServed, since: 100 });
        assert_eq!((first.health, first.suspect), (Health::Progressing, suspect));
        assert_eq!(decide(crd(), &input(155, suspect)).unwrap().suspect, suspect);
        assert_eq!(decide(crd(), &input(160, suspect)).unwrap_err().name, ErrorName::CrdNotServed);
        let other = Some(Suspect { error: ErrorName::AdmissionRefused, since: 0 });
        assert_eq!(decide(crd(), &input(160, other)).unwrap().suspect.unwrap().since, 160);
        assert_eq!(decide(report(Diagnosis::Progressing, false), &input(160, other)).unwrap().suspect, None);
    }

    #[test]
    fn what_a_log_said_before_it_was_mended_is_never_believed() {
        let sqs = Kind::Denied { action: "sqs:GetQueueUrl".to_owned() };
        for kind in [Kind::LeaderElection, Kind::QueueMissing, sqs] {
            assert!(i64::from(kind.patience()) > RECENT + i64::from(ASK_AGAIN), "{kind:?}");
        }
    }

    #[test]
    fn a_denial_says_what_to_allow_whom() {
        let denied = Diagnosis::Fatal(Kind::Denied { action: "ec2:DescribeInstanceTypes".to_owned() });
        let suspect = Some(Suspect { error: ErrorName::ControllerDenied, since: 0 });
        let error = decide(report(denied, true), &input(120, suspect)).unwrap_err();
        assert!(
            error.remedy.starts_with("Allow ec2:DescribeInstanceTypes for arn:aws:iam::111122223333:role/controller")
        );
    }

    #[test]
    fn pods_are_found_by_the_deployments_own_selector() {
        let deployment = json!({ "spec": { "selector": { "matchLabels": { "a": "1", "b": "2" } } } });
        assert_eq!(selector(&deployment), "a=1,b=2");
    }
}
