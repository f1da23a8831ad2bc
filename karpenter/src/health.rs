//! Whether Karpenter works, read from its deployment and pods alone.

use serde_json::Value;

/// The longest part of a container's last words that a cause carries.
const LAST_WORDS: usize = 600;

/// The state of the rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Every replica that was asked for is there, current and ready.
    Ready,
    /// On its way, nothing speaks against it yet.
    Progressing,
    /// Something fails that does not mend by waiting.
    Failed,
}

/// The state with what a watcher wants to know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The state.
    pub state: State,
    /// One line: how many replicas are ready, or what fails and its last words.
    pub detail: String,
    /// Pods whose container fails; a pod made anew starts with fresh tokens and without back-off.
    pub failing_pods: Vec<FailingPod>,
}

/// A pod whose container fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingPod {
    /// The pod's name.
    pub name: String,
    /// The pod's UID, so that a successor of the same name is never taken for it.
    pub uid: String,
    /// Why, with the container's last words.
    pub reason: String,
}

/// Judges a rollout.
///
/// `deployment` is the Deployment as the API server answers it, none if it is not there; `pods` are the pods that its
/// selector finds.
#[must_use]
pub fn diagnose(deployment: Option<&Value>, pods: &[Value]) -> Health {
    let Some(deployment) = deployment else {
        let detail = "the deployment is not there; was install-karpenter run?".to_owned();
        return Health { state: State::Failed, detail, failing_pods: Vec::new() };
    };
    let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let wanted = deployment.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    let seen = number("/status/observedGeneration") >= number("/metadata/generation");
    let (updated, ready, total) =
        (number("/status/updatedReplicas"), number("/status/readyReplicas"), number("/status/replicas"));
    let tally = format!("{ready} of {wanted} replicas are ready");
    if seen && updated >= wanted && ready >= wanted && total <= wanted {
        return Health { state: State::Ready, detail: tally, failing_pods: Vec::new() };
    }
    let failing_pods: Vec<_> = pods.iter().filter_map(failing).collect();
    if let Some(first) = failing_pods.first() {
        let detail = format!("{tally}; pod {}: {}", first.name, first.reason);
        return Health { state: State::Failed, detail, failing_pods };
    }
    let pending = pods.iter().find_map(unschedulable);
    let detail = pending.map_or_else(|| tally.clone(), |why| format!("{tally}; {why}"));
    Health { state: State::Progressing, detail, failing_pods: Vec::new() }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A pod that will not become ready by itself: its container exited with an error and waits or was started again, or
/// its image cannot be had.
fn failing(pod: &Value) -> Option<FailingPod> {
    if pod["metadata"].get("deletionTimestamp").is_some() {
        return None;
    }
    let statuses = pod["status"]["containerStatuses"].as_array()?;
    let reason = statuses.iter().filter(|status| status["ready"] != true).find_map(|status| {
        let waiting = text(status, "/state/waiting/reason");
        if ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"].contains(&waiting) {
            return Some(format!("{waiting}: {}", text(status, "/state/waiting/message")));
        }
        let ended = ["/state/terminated", "/lastState/terminated"]
            .into_iter()
            .find_map(|pointer| status.pointer(pointer).filter(|ended| ended["exitCode"] != 0))?;
        // One that runs again may well succeed this time; if not, it is back here in seconds.
        status["state"].get("running").is_none().then(|| {
            let (code, words) = (&ended["exitCode"], last_words(text(ended, "/message")));
            format!("the controller exited with {code}{words}")
        })
    })?;
    Some(FailingPod {
        name: text(pod, "/metadata/name").to_owned(),
        uid: text(pod, "/metadata/uid").to_owned(),
        reason,
    })
}

/// The end of a log that tells most: its last line with an error, cut to a readable length.
fn last_words(log: &str) -> String {
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.contains("ERROR") || line.contains("panic")).or_else(|| lines().next_back());
    line.map_or_else(String::new, |line| format!(": {}", line.chars().take(LAST_WORDS).collect::<String>()))
}

fn unschedulable(pod: &Value) -> Option<String> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let scheduled = conditions.iter().find(|condition| condition["type"] == "PodScheduled")?;
    (scheduled["status"] == "False")
        .then(|| format!("pod {} waits for a node: {}", text(pod, "/metadata/name"), text(scheduled, "/message")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use serde_json::json;

    use super::*;

    fn deployment(updated: u64, ready: u64, total: u64) -> Value {
        json!({
            "metadata": { "generation": 3 },
            "spec": { "replicas": 2 },
            "status": { "observedGeneration": 3, "updatedReplicas": updated, "readyReplicas": ready, "replicas": total },
        })
    }

    fn pod(name: &str, status: &Value) -> Value {
        json!({ "metadata": { "name": name, "uid": format!("uid-{name}") }, "status": status })
    }

    /// The words of a real Karpenter whose identity STS does not believe yet.
    const REFUSED: &str = concat!(
        r#"{"level":"INFO","message":"discovered karpenter version"}"#,
        "\n",
        r#"{"level":"ERROR","message":"ec2 api connectivity check failed","error":"operation error EC2: DescribeInstanceTypes, "#,
        r#"get identity: get credentials: AssumeRoleWithWebIdentity, StatusCode: 403, AccessDenied: Not authorized"}"#,
        "\n"
    );

    fn crashed(state: &Value) -> Value {
        json!({ "containerStatuses": [{
            "ready": false, "restartCount": 1, "state": state,
            "lastState": { "terminated": { "exitCode": 1, "reason": "Error", "message": REFUSED } },
        }] })
    }

    #[test]
    fn all_replicas_ready_and_current_is_ready() {
        assert_eq!(diagnose(Some(&deployment(2, 2, 2)), &[]).state, State::Ready);
    }

    #[test]
    fn old_replicas_or_an_unseen_change_are_not_ready_yet() {
        assert_eq!(diagnose(Some(&deployment(2, 2, 3)), &[]).state, State::Progressing);
        assert_eq!(diagnose(Some(&deployment(1, 2, 2)), &[]).state, State::Progressing);
        let mut unseen = deployment(2, 2, 2);
        unseen["metadata"]["generation"] = json!(4);
        assert_eq!(diagnose(Some(&unseen), &[]).state, State::Progressing);
    }

    #[test]
    fn a_container_in_back_off_fails_with_its_last_words() {
        let pods = [pod("a", &crashed(&json!({ "waiting": { "reason": "CrashLoopBackOff" } }))), pod("b", &json!({}))];
        let health = diagnose(Some(&deployment(2, 0, 2)), &pods);
        assert_eq!(health.state, State::Failed);
        assert_eq!(health.failing_pods.len(), 1);
        assert_eq!((health.failing_pods[0].name.as_str(), health.failing_pods[0].uid.as_str()), ("a", "uid-a"));
        assert!(health.detail.contains("exited with 1"), "{}", health.detail);
        assert!(health.detail.contains("AccessDenied: Not authorized"), "{}", health.detail);
    }

    #[test]
    fn a_container_that_just_ended_fails_and_one_that_runs_again_gets_its_chance() {
        let ended = json!({ "containerStatuses": [{
            "ready": false, "state": { "terminated": { "exitCode": 2, "message": "panic: no region" } },
        }] });
        let health = diagnose(Some(&deployment(2, 0, 2)), &[pod("a", &ended)]);
        assert!(health.detail.contains("exited with 2: panic: no region"), "{}", health.detail);
        let again = pod("a", &crashed(&json!({ "running": {} })));
        assert_eq!(diagnose(Some(&deployment(2, 0, 2)), &[again]).state, State::Progressing);
    }

    #[test]
    fn a_pod_on_its_way_out_is_nobodys_failure() {
        let mut leaving = pod("a", &crashed(&json!({ "waiting": { "reason": "CrashLoopBackOff" } })));
        leaving["metadata"]["deletionTimestamp"] = json!("2026-11-22T09:00:00Z");
        assert_eq!(diagnose(Some(&deployment(2, 0, 2)), &[leaving]).state, State::Progressing);
    }

    #[test]
    fn an_image_that_cannot_be_had_fails() {
        let status = json!({ "containerStatuses": [{
            "ready": false, "state": { "waiting": { "reason": "ImagePullBackOff", "message": "not found" } },
        }] });
        let health = diagnose(Some(&deployment(2, 0, 2)), &[pod("a", &status)]);
        assert_eq!(
            (health.state, health.failing_pods[0].reason.as_str()),
            (State::Failed, "ImagePullBackOff: not found")
        );
    }

    #[test]
    fn a_pod_without_a_node_says_why_it_waits() {
        let status = json!({ "conditions": [
            { "type": "PodScheduled", "status": "False", "message": "0/1 nodes are available" },
        ] });
        let health = diagnose(Some(&deployment(2, 1, 2)), &[pod("a", &status)]);
        assert_eq!(health.state, State::Progressing);
        assert_eq!(health.detail, "1 of 2 replicas are ready; pod a waits for a node: 0/1 nodes are available");
    }

    #[test]
    fn no_deployment_is_a_failure_without_pods_to_heal() {
        let health = diagnose(None, &[]);
        assert_eq!((health.state, health.failing_pods.len()), (State::Failed, 0));
    }
}
