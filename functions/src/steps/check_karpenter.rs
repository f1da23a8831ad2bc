//! check-karpenter: reads the rollout of Karpenter's deployment and says whether it is ready, on its way or failing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_karpenter::health::{self, State, diagnose};
use slipway_karpenter::render::RELEASE_LABEL;
use slipway_karpenter::values::RELEASE;
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, Run, Step, StepError};

use crate::{Context, cluster};

/// Checks Karpenter.
#[derive(Debug)]
pub struct CheckKarpenter;

/// Where Karpenter is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that asks.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Karpenter's namespace.
    pub namespace: String,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
}

/// The state of the rollout.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// What the machine decides by.
    pub health: Health,
    /// Seconds until it is worth asking again.
    pub retry_after_seconds: u32,
    /// One line for whoever watches, and for the cause if it stays so.
    pub detail: String,
    /// What heal-karpenter takes.
    pub failing_pods: Vec<FailingPod>,
}

/// How Karpenter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Health {
    /// Every replica is there and ready.
    Ready,
    /// On its way.
    Progressing,
    /// Something fails that does not mend by waiting.
    Failed,
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
    const ERRORS: &'static [ErrorName] = &[ErrorName::ClusterUnreachable, ErrorName::KubernetesRefused];
    type Input = Input;
    type Output = Output;
}

/// A ready controller takes 5 s from its start; nodes that it waits for come within minutes.
const ASK_AGAIN: u32 = 5;

fn decide(deployment: Option<&Value>, pods: &[Value]) -> Output {
    let health::Health { state, detail, failing_pods } = diagnose(deployment, pods);
    let failing_pods =
        failing_pods.into_iter().map(|pod| FailingPod { name: pod.name, uid: pod.uid, reason: pod.reason }).collect();
    let health = match state {
        State::Ready => Health::Ready,
        State::Progressing => Health::Progressing,
        State::Failed => Health::Failed,
    };
    Output { health, retry_after_seconds: ASK_AGAIN, detail, failing_pods }
}

/// The label selector of a deployment's pods.
fn selector(deployment: &Value) -> String {
    let labels = deployment.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let pairs = labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    pairs.collect::<Vec<_>>().join(",")
}

/// The statuses of containers that ended without leaving a message, where their log can speak for them.
fn wordless(pod: &mut Value) -> Vec<&mut Value> {
    let statuses = pod.pointer_mut("/status/containerStatuses").and_then(Value::as_array_mut);
    statuses
        .into_iter()
        .flatten()
        .filter(|status| status["ready"] != true)
        .filter_map(|status| {
            let at = if status.pointer("/state/terminated").is_some() { "state" } else { "lastState" };
            status.get_mut(at)?.get_mut("terminated")
        })
        .filter(|ended| ended["message"].as_str().is_none_or(str::is_empty))
        .collect()
}

/// Looks at deployment, pods and the logs of those that fail.
///
/// # Errors
/// `ClusterUnreachable` and `KubernetesRefused` from the API server; a failing Karpenter is an answer, not an error.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    let namespace = input.namespace.as_str();
    // By label, since values may rename it.
    let release = format!("{RELEASE_LABEL}={RELEASE}");
    let deployments = cluster.list(("apps/v1", "Deployment"), Some(namespace), &release).await?;
    let Some(deployment) = deployments.first() else { return Ok(decide(None, &[])) };
    let mut pods = cluster.list(("v1", "Pod"), Some(namespace), &selector(deployment)).await?;
    for pod in &mut pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        for ended in wordless(pod) {
            ended["message"] = json!(cluster.last_lines(namespace, &name).await);
        }
    }
    Ok(decide(Some(deployment), &pods))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_every_field_whatever_the_health() {
        let answer = serde_json::to_value(decide(None, &[])).unwrap();
        assert_eq!((&answer["health"], &answer["failingPods"]), (&json!("Failed"), &json!([])));
        let deployment = json!({
            "spec": { "replicas": 1 },
            "status": { "updatedReplicas": 1, "readyReplicas": 1, "replicas": 1 },
        });
        let answer = serde_json::to_value(decide(Some(&deployment), &[])).unwrap();
        assert_eq!(
            answer,
            json!({
                "health": "Ready", "retryAfterSeconds": 5, "detail": "1 of 1 replicas are ready", "failingPods": [],
            })
        );
    }

    #[test]
    fn pods_are_found_by_the_deployments_own_selector() {
        let deployment = json!({ "spec": { "selector": { "matchLabels": { "a": "1", "b": "2" } } } });
        assert_eq!(selector(&deployment), "a=1,b=2");
    }

    #[test]
    fn only_containers_that_ended_in_silence_are_asked_for_their_log() {
        let mut pod = json!({ "status": { "containerStatuses": [
            { "ready": false, "state": { "waiting": {} }, "lastState": { "terminated": { "exitCode": 1 } } },
            { "ready": false, "state": { "terminated": { "exitCode": 1, "message": "said" } } },
            { "ready": true, "state": { "running": {} }, "lastState": { "terminated": { "exitCode": 1 } } },
            { "ready": false, "state": { "waiting": { "reason": "ContainerCreating" } } },
        ] } });
        let silent = wordless(&mut pod);
        assert_eq!(silent.len(), 1);
    }
}
