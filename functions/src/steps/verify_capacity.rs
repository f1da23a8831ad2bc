//! verify-capacity: one tiny pod per architecture proves that Karpenter launches nodes of it; then all is tidied up.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use slipway_karpenter::diagnosis::capacity::{self, Machines, Observed, Report, diagnose};
use slipway_statemachine::spec::{Architecture, NodePoolSpec, VerifySpec, VerifyWhen};
use slipway_statemachine::{ClusterEndpoint, ClusterKey, Done, ErrorName, Run, Step, StepError, Waiting};

use crate::{
    Context,
    aws::{
        ec2::{filter, states_of},
        error::{code, refused},
    },
    cluster::{self, Cluster, Kind},
    suspect::Suspect,
};

/// Verifies capacity.
#[derive(Debug)]
pub struct VerifyCapacity;

/// What to verify.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that verifies.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Image, and when.
    pub verify: VerifySpec,
    /// The spec's pools.
    pub node_pools: Vec<NodePoolSpec>,
    /// Karpenter's version.
    pub karpenter_version: String,
    /// The role that the controller hands to its nodes.
    #[serde(default)]
    pub karpenter_node_role_arn: String,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
    /// Seconds that the machine has waited for the pods so far.
    #[serde(default)]
    pub waited: u32,
    /// What the last look suspected, as it answered it.
    #[serde(default)]
    pub suspect: Option<Suspect>,
}

/// Either not yet, or the proof.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Answer {
    /// The machine waits and asks again, with what is suspected.
    Looking(Looking),
    /// Every pod ran.
    Verified(Done<Output>),
}

/// Not yet.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Looking {
    /// What is waited for.
    #[serde(flatten)]
    pub waiting: Waiting,
    /// What to hand to the next look.
    pub suspect: Option<Suspect>,
}

/// What was seen.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {
    /// Nothing that matters has changed since it was verified last.
    pub skipped: bool,
    /// A node of each architecture, which ran a pod; empty if skipped.
    pub nodes: Vec<Node>,
}

/// A node that Karpenter launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name in Kubernetes.
    pub name: String,
    /// amd64 or arm64.
    pub architecture: Architecture,
    /// For example `c7g.medium`.
    pub instance_type: String,
    /// spot or on-demand.
    pub capacity_type: String,
    /// For example `eu-west-1a`.
    pub zone: String,
}

impl Step for VerifyCapacity {
    const NAME: &'static str = "verify-capacity";
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::ClusterUnreachable,
        ErrorName::KubernetesRefused,
        ErrorName::CrdNotServed,
        ErrorName::CapacityNotVerified,
        ErrorName::CapacityUnavailable,
        ErrorName::ControllerDenied,
        ErrorName::NoInstanceTypeFits,
        ErrorName::NodesNeverJoin,
    ];
    type Input = Input;
    type Output = Answer;
}

/// A namespace of its own, so that nothing else is ever touched.
const NAMESPACE: &str = "slipway-verify";

/// The namespace's annotation with what was verified last. It lives and dies with the cluster that it speaks of.
const VERIFIED: &str = "slipway/verified";

/// The label of a test pod: the run that made it.
const RUN: &str = "slipway/run";

const POD: Kind<'static> = ("v1", "Pod");

/// A pending pod runs on a new node after 4 s at best and a minute as a rule.
const ASK_AGAIN: u32 = 5;

/// Seconds after which it is no more waited for, whatever it may still become.
const LIMIT: u32 = 1_200;

/// What the proof depends on, as a digest: Karpenter, pools, image.
fn fingerprint(input: &Input) -> String {
    let facts = json!([input.karpenter_version, input.node_pools, input.verify.image]);
    Sha256::digest(facts.to_string()).iter().take(16).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn namespace(annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": { "pod-security.kubernetes.io/enforce": "restricted" },
            "annotations": annotations,
        },
    })
}

/// The architectures to prove, each with the pools that may prove it.
fn architectures(pools: &[NodePoolSpec]) -> BTreeMap<Architecture, Vec<&str>> {
    pools.iter().fold(BTreeMap::new(), |mut all, pool| {
        all.entry(pool.architecture).or_insert_with(Vec::new).push(&pool.name);
        all
    })
}

fn pod_name(architecture: Architecture) -> String {
    format!("verify-{}", architecture.as_str())
}

/// A pod that asks for next to nothing but its architecture and one of our pools.
fn pod(input: &Input, architecture: Architecture, pools: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": pod_name(architecture), "namespace": NAMESPACE, "labels": { RUN: input.run.id } },
        "spec": {
            "restartPolicy": "Never",
            // Gone by itself, should the run be stopped before it tidies up.
            "activeDeadlineSeconds": 1800,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "nodeSelector": { "kubernetes.io/arch": architecture.as_str() },
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "karpenter.sh/nodepool", "operator": "In", "values": pools },
                ] }],
            } } },
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65534,
                "runAsGroup": 65534,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "verify",
                "image": input.verify.image,
                "command": ["sleep", "1800"],
                "resources": {
                    "requests": { "cpu": "10m", "memory": "16Mi" },
                    "limits": { "memory": "32Mi" },
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    })
}

/// What to do about one architecture's pod.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// There is none: make it.
    Create,
    /// It is another run's, or it has ended: delete it, so that it can be made again.
    Delete,
    /// It is on its way out.
    Wait(String),
    /// It does not run yet: find out why.
    Diagnose,
    /// It runs on this node.
    Runs(String),
}

/// Decides from the pod as it is.
fn decide(pod: Option<&Value>, run: &str) -> Action {
    let Some(pod) = pod else { return Action::Create };
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = text("/metadata/name");
    if pod["metadata"].get("deletionTimestamp").is_some() {
        return Action::Wait(format!("pod {name} of an earlier try is on its way out"));
    }
    match text("/status/phase") {
        _ if pod["metadata"]["labels"][RUN] != run => Action::Delete,
        "Running" => Action::Runs(text("/spec/nodeName").to_owned()),
        "Failed" | "Succeeded" => Action::Delete,
        _ => Action::Diagnose,
    }
}

/// What a report means for the machine: a failure is believed once it was seen for as long as its kind asks for, and
/// nothing is waited for beyond the limit.
fn judge(report: &Report, input: &Input) -> Result<Option<Suspect>, StepError> {
    let suspect = report.kind.as_ref().map(|kind| Suspect::of(kind.name(), input.waited, input.suspect));
    let lasts = suspect.map_or(0, |suspect| suspect.lasts(input.waited));
    let believed = report.kind.as_ref().is_some_and(|kind| lasts >= kind.patience());
    if !believed && input.waited < LIMIT {
        return Ok(suspect);
    }
    let error = StepError::new(report.name(), report.cause());
    Err(match &report.kind {
        Some(capacity::Kind::Denied { action }) => error.remedy(format!(
            "Allow {action} for Karpenter's controller: look for a permissions boundary, an organisation's policy, or a \
             policy of an older Karpenter.",
        )),
        Some(capacity::Kind::NeverJoins { no_entry: true }) => {
            error.remedy("Start again: the run makes the access entry; find out who deleted it.")
        }
        Some(capacity::Kind::ImagePull { .. }) => {
            error.remedy("Correct verify.image in the spec, or let the nodes reach its registry.")
        }
        Some(capacity::Kind::Quota) => error.remedy("Raise the EC2 quota that the cause names in Service Quotas."),
        _ => error,
    })
}

/// The node as the output shows it; none if it is of another architecture than was asked for.
fn describe(node: &Value, architecture: Architecture) -> Option<Node> {
    let label = |key: &str| node["metadata"]["labels"][key].as_str().unwrap_or_default().to_owned();
    (label("kubernetes.io/arch") == architecture.as_str()).then(|| Node {
        name: node["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        architecture,
        instance_type: label("node.kubernetes.io/instance-type"),
        capacity_type: label("karpenter.sh/capacity-type"),
        zone: label("topology.kubernetes.io/zone"),
    })
}

/// Makes the pods, looks at them, tidies up once all run.
///
/// # Errors
/// `CapacityUnavailable`, `ControllerDenied`, `NoInstanceTypeFits`, `NodesNeverJoin` and `QuotaExceeded` as soon as waiting
/// helps no more; `CapacityNotVerified` for what has no name of its own, or if a pod runs where it should not be able to.
pub async fn run(cx: &Context, input: Input) -> Result<Answer, StepError> {
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    let fingerprint = fingerprint(&input);
    let there = cluster.get(("v1", "Namespace"), "", NAMESPACE).await?;
    let verified =
        there.as_ref().is_some_and(|there| there["metadata"]["annotations"][VERIFIED] == fingerprint.as_str());
    if verified && input.verify.when == VerifyWhen::Changed {
        return Ok(done(Output { skipped: true, nodes: Vec::new() }));
    }
    cx.state.hold(&input.run, &input.cluster).await?;
    if there.is_none() {
        cluster.apply(&namespace(&json!({}))).await?;
    }
    // Pods cannot be made before their namespace has its service account, a moment after it was made itself.
    if cluster.get(("v1", "ServiceAccount"), NAMESPACE, "default").await?.is_none() {
        return Ok(looking(1, format!("namespace {NAMESPACE} is being prepared"), None));
    }

    let mut nodes = Vec::new();
    let (mut waits, mut suspect) = (Vec::new(), None);
    for (architecture, pools) in architectures(&input.node_pools) {
        let name = pod_name(architecture);
        let seen = cluster.get(POD, NAMESPACE, &name).await?;
        match (decide(seen.as_ref(), &input.run.id), seen) {
            (Action::Create, _) => {
                cluster.create(&pod(&input, architecture, &pools)).await?;
                waits.push(format!("pod {name} was made"));
            }
            (Action::Delete, seen) => {
                let uid = seen.as_ref().and_then(|pod| pod["metadata"]["uid"].as_str());
                cluster.delete(POD, NAMESPACE, &name, uid).await?;
                waits.push(format!("pod {name} of an earlier try was deleted"));
            }
            (Action::Wait(why), _) => waits.push(why),
            (Action::Diagnose, pod) => {
                let report = look(cx, &cluster, &input, pod.unwrap_or_default(), &pools).await?;
                suspect = suspect.or(judge(&report, &input)?);
                waits.push(report.detail);
            }
            (Action::Runs(node), _) => {
                let seen = cluster.get(("v1", "Node"), "", &node).await?;
                match seen.as_ref().map(|node| describe(node, architecture)) {
                    Some(Some(node)) => nodes.push(node),
                    // Interrupted between the two looks; the pod goes with its node.
                    None => waits.push(format!("node {node} of pod {name} is gone")),
                    Some(None) => {
                        let cause = format!("Pod {name} runs on {node}, which is not {}.", architecture.as_str());
                        return Err(StepError::new(ErrorName::CapacityNotVerified, cause));
                    }
                }
            }
        }
    }
    if !waits.is_empty() {
        return Ok(looking(ASK_AGAIN, waits.join("; "), suspect));
    }
    tidy_up(&cluster, &input, &fingerprint).await?;
    Ok(done(Output { skipped: false, nodes }))
}

fn done(output: Output) -> Answer {
    Answer::Verified(Done { done: true, output })
}

fn looking(seconds: u32, detail: String, suspect: Option<Suspect>) -> Answer {
    Answer::Looking(Looking { waiting: Waiting { done: false, retry_after_seconds: seconds, detail }, suspect })
}

/// Looks at everything that a diagnosis needs; asks AWS about the machines only where one does not join.
async fn look(cx: &Context, cluster: &Cluster, input: &Input, pod: Value, pools: &[&str]) -> Result<Report, StepError> {
    let selector = format!("karpenter.sh/nodepool in ({})", pools.join(","));
    let claims = cluster.list(("karpenter.sh/v1", "NodeClaim"), None, &selector).await?;
    let nodes = cluster.list(("v1", "Node"), None, &selector).await?;
    let mut events = cluster.list(("v1", "Event"), Some(NAMESPACE), "").await?;
    // Events of objects without a namespace, such as claims, are in this one.
    events.extend(cluster.list(("v1", "Event"), Some("default"), "").await?);
    let mut observed = Observed { pod, claims, nodes, events, machines: None };
    let report = diagnose(&observed);
    if !report.asks_machines() {
        return Ok(report);
    }
    let instances: Vec<&str> = observed.claims.iter().filter_map(capacity::instance).collect();
    let states = states_of(cx, vec![filter("instance-id", instances)]).await?;
    observed.machines = Some(Machines { may_join: may_join(cx, input).await?, states });
    Ok(diagnose(&observed))
}

/// Whether EKS lets the role of Karpenter's nodes in.
async fn may_join(cx: &Context, input: &Input) -> Result<bool, StepError> {
    // A run that an older release began does not tell the role.
    if input.karpenter_node_role_arn.is_empty() {
        return Ok(true);
    }
    let call = cx.aws.eks().describe_access_entry().cluster_name(&input.cluster.name);
    match call.principal_arn(&input.karpenter_node_role_arn).send().await {
        Ok(answer) => Ok(answer.access_entry.is_some_and(|entry| entry.r#type.as_deref() == Some("EC2_LINUX"))),
        Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(false),
        Err(error) => Err(refused("eks:DescribeAccessEntry", &error)),
    }
}

/// Deletes the pods and remembers what they proved, in this order: what is remembered is never proven again.
async fn tidy_up(cluster: &Cluster, input: &Input, fingerprint: &str) -> Result<(), StepError> {
    for architecture in architectures(&input.node_pools).into_keys() {
        cluster.delete(POD, NAMESPACE, &pod_name(architecture), None).await?;
    }
    cluster.apply(&namespace(&json!({ VERIFIED: fingerprint }))).await?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn input(version: &str, image: &str) -> Input {
        serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "verify": { "image": image },
            "nodePools": [
                { "name": "x86", "architecture": "amd64" },
                { "name": "graviton", "architecture": "arm64" },
                { "name": "more", "architecture": "amd64" },
            ],
            "karpenterVersion": version,
            "endpoint": { "url": "https://example.com", "certificateAuthority": "" },
        }))
        .unwrap()
    }

    #[test]
    fn the_fingerprint_changes_with_what_the_proof_depends_on() {
        let base = fingerprint(&input("1.14.1", "busybox"));
        assert_eq!(base, fingerprint(&input("1.14.1", "busybox")));
        assert_ne!(base, fingerprint(&input("1.14.2", "busybox")));
        assert_ne!(base, fingerprint(&input("1.14.1", "alpine")));
        let mut pools = input("1.14.1", "busybox");
        pools.node_pools.pop();
        assert_ne!(base, fingerprint(&pools));
        assert_eq!(base.len(), 32);
    }

    #[test]
    fn one_pod_an_architecture_and_only_on_our_pools() {
        let input = input("1.14.1", "busybox");
        let wanted = architectures(&input.node_pools);
        assert_eq!(wanted[&Architecture::Amd64], ["x86", "more"]);
        assert_eq!(wanted[&Architecture::Arm64], ["graviton"]);
        let pod = pod(&input, Architecture::Amd64, &wanted[&Architecture::Amd64]);
        assert_eq!(pod["metadata"]["name"], "verify-amd64");
        assert_eq!(pod["spec"]["nodeSelector"], json!({ "kubernetes.io/arch": "amd64" }));
        assert!(pod["spec"]["affinity"].to_string().contains(r#""operator":"In","values":["x86","more"]"#));
    }

    fn seen(phase: &str, run: &str) -> Value {
        json!({
            "metadata": { "name": "verify-amd64", "uid": "1", "labels": { RUN: run } },
            "spec": { "nodeName": "ip-10-0-0-1" },
            "status": { "phase": phase },
        })
    }

    #[test]
    fn a_pod_is_made_watched_and_made_again_if_it_ended() {
        assert_eq!(decide(None, "01"), Action::Create);
        assert_eq!(decide(Some(&seen("Running", "01")), "01"), Action::Runs("ip-10-0-0-1".to_owned()));
        assert_eq!(decide(Some(&seen("Failed", "01")), "01"), Action::Delete);
        assert_eq!(decide(Some(&seen("Running", "00")), "01"), Action::Delete, "another run's");
        let mut leaving = seen("Running", "01");
        leaving["metadata"]["deletionTimestamp"] = json!("2026-11-22T09:00:00Z");
        assert!(matches!(decide(Some(&leaving), "01"), Action::Wait(_)));
        assert_eq!(decide(Some(&seen("Pending", "01")), "01"), Action::Diagnose);
    }

    fn report(waiting_for: &str) -> Report {
        let made = "2026-11-22T09:00:00Z";
        let pod = json!({ "metadata": { "name": "verify-amd64", "creationTimestamp": made } });
        let conditions = json!([
            { "type": "Launched", "status": "True" },
            { "type": "Registered", "status": "Unknown", "reason": "NodeNotFound", "message": waiting_for },
        ]);
        let claim = json!({
            "metadata": { "name": "x86-a", "creationTimestamp": made }, "status": { "conditions": conditions },
        });
        let machines = Some(Machines { may_join: waiting_for != "no entry", ..Machines::default() });
        diagnose(&Observed { pod, claims: vec![claim], machines, ..Observed::default() })
    }

    fn after(waited: u32, suspect: Option<Suspect>) -> Input {
        Input { waited, suspect, ..input("1.14.1", "busybox") }
    }

    #[test]
    fn what_nobody_but_a_person_mends_ends_at_once() {
        let error = judge(&report("no entry"), &after(0, None)).unwrap_err();
        assert_eq!(error.name, ErrorName::NodesNeverJoin);
        assert!(error.remedy.contains("access entry"), "{}", error.remedy);
    }

    #[test]
    fn what_may_still_pass_ends_once_it_was_seen_for_long_without_a_break() {
        let slow = report("Node not registered with cluster");
        let suspect = judge(&slow, &after(30, None)).unwrap();
        assert_eq!(suspect, Some(Suspect { error: ErrorName::NodesNeverJoin, since: 30 }));
        assert_eq!(judge(&slow, &after(625, suspect)).unwrap(), suspect);
        let error = judge(&slow, &after(630, suspect)).unwrap_err();
        assert_eq!(error.name, ErrorName::NodesNeverJoin);
        assert!(error.cause.contains("NodeNotFound"), "{}", error.cause);
    }

    #[test]
    fn nothing_is_waited_for_for_ever() {
        let unscheduled = diagnose(&Observed { pod: seen("Pending", "01"), ..Observed::default() });
        assert_eq!(judge(&unscheduled, &after(LIMIT - 1, None)).unwrap(), None);
        assert_eq!(judge(&unscheduled, &after(LIMIT, None)).unwrap_err().name, ErrorName::CapacityNotVerified);
    }

    #[test]
    fn a_node_proves_its_own_architecture_alone() {
        let node = json!({ "metadata": { "name": "n", "labels": {
            "kubernetes.io/arch": "arm64", "node.kubernetes.io/instance-type": "c7g.medium",
            "karpenter.sh/capacity-type": "spot", "topology.kubernetes.io/zone": "eu-west-1a",
        } } });
        let described = describe(&node, Architecture::Arm64).unwrap();
        assert_eq!(
            (described.instance_type.as_str(), described.capacity_type.as_str(), described.zone.as_str()),
            ("c7g.medium", "spot", "eu-west-1a")
        );
        assert!(describe(&node, Architecture::Amd64).is_none());
    }
}
