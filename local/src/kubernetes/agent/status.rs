//! The status of a pod, from what is known of its containers.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

/// Conditions that the kubelet owns; others (a scheduler's, a taint manager's) are left as they are.
const OWN: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];

/// What becomes of the pod when its containers end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(super) fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    pub(super) fn restarts_after(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// A container's status before anything has happened.
pub(super) fn creating(name: &str, image: &str) -> ContainerStatus {
    let mut status = ContainerStatus { name: name.to_owned(), image: image.to_owned(), ..ContainerStatus::default() };
    wait(&mut status, "ContainerCreating", None);
    status
}

/// The container waits for a reason.
pub(super) fn wait(status: &mut ContainerStatus, reason: &str, message: Option<String>) {
    status.ready = false;
    status.started = Some(false);
    status.state = Some(ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    });
}

/// The container runs, from now on.
pub(super) fn run(status: &mut ContainerStatus, container_id: String, ready: bool) {
    status.ready = ready;
    status.started = Some(true);
    status.image_id = format!("slipway://{}", status.image);
    status.container_id = Some(container_id);
    status.state = Some(ContainerState {
        running: Some(ContainerStateRunning { started_at: Some(Time(Timestamp::now())) }),
        ..ContainerState::default()
    });
}

/// The container has ended, now.
pub(super) fn end(status: &mut ContainerStatus, exit_code: i32, reason: &str, message: Option<String>) {
    let running = status.state.take().and_then(|state| state.running);
    status.ready = false;
    status.started = Some(false);
    status.state = Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code,
            reason: Some(reason.to_owned()),
            message,
            container_id: status.container_id.clone(),
            started_at: running.and_then(|running| running.started_at),
            finished_at: Some(Time(Timestamp::now())),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    });
}

/// Moves an ended container on to its next life.
pub(super) fn restart(status: &mut ContainerStatus) {
    status.last_state = status.state.take();
    status.restart_count += 1;
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref().and_then(|state| state.terminated.as_ref())
}

fn never_started(status: &ContainerStatus) -> bool {
    let waiting = status.state.as_ref().is_none_or(|state| state.waiting.is_some());
    waiting && status.last_state.is_none()
}

/// Where the pod is in its life.
fn phase(containers: &[ContainerStatus], restart: RestartPolicy) -> &'static str {
    if containers.iter().any(never_started) {
        return "Pending";
    }
    let ends: Vec<i32> = containers.iter().filter_map(terminated).map(|end| end.exit_code).collect();
    if ends.len() < containers.len() || ends.iter().any(|code| restart.restarts_after(*code)) {
        "Running"
    } else if ends.iter().all(|code| *code == 0) {
        "Succeeded"
    } else {
        "Failed"
    }
}

/// The pod's whole status; conditions keep the time of their last change.
pub(super) fn pod_status(
    pod: &Pod,
    host_ip: &str,
    pod_ip: &str,
    containers: &[ContainerStatus],
    init_containers: &[ContainerStatus],
) -> PodStatus {
    let phase = phase(containers, RestartPolicy::of(pod));
    let now = || Time(Timestamp::now());
    let previous = pod.status.clone().unwrap_or_default();
    let previous_conditions = previous.conditions.unwrap_or_default();
    let unready: Vec<&str> = containers.iter().filter(|one| !one.ready).map(|one| one.name.as_str()).collect();
    let (reason, message) = match phase {
        _ if unready.is_empty() => (None, None),
        "Succeeded" => (Some("PodCompleted"), None),
        "Failed" => (Some("PodFailed"), None),
        _ => (Some("ContainersNotReady"), Some(format!("containers with unready status: [{}]", unready.join(" ")))),
    };
    let conditions = OWN.map(|kind| {
        let by_readiness = matches!(kind, "ContainersReady" | "Ready");
        let status = if by_readiness && !unready.is_empty() { "False" } else { "True" };
        let unchanged = previous_conditions.iter().find(|old| old.type_ == kind && old.status == status);
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.filter(|_| by_readiness).map(str::to_owned),
            message: message.clone().filter(|_| by_readiness),
            last_transition_time: unchanged.and_then(|old| old.last_transition_time.clone()).or_else(|| Some(now())),
            ..PodCondition::default()
        }
    });
    let others = previous_conditions.iter().filter(|old| !OWN.contains(&old.type_.as_str())).cloned();
    PodStatus {
        phase: Some(phase.to_owned()),
        host_ip: Some(host_ip.to_owned()),
        host_ips: Some(vec![HostIP { ip: host_ip.to_owned() }]),
        pod_ip: Some(pod_ip.to_owned()),
        pod_ips: Some(vec![PodIP { ip: pod_ip.to_owned() }]),
        start_time: previous.start_time.or_else(|| pod.creation_timestamp()).or_else(|| Some(now())),
        container_statuses: Some(containers.to_vec()),
        init_container_statuses: Some(init_containers.to_vec()).filter(|list| !list.is_empty()),
        conditions: Some(conditions.into_iter().chain(others).collect()),
        ..PodStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> ContainerStatus {
        let mut status = creating("c", "i");
        run(&mut status, "id".to_owned(), true);
        end(&mut status, code, "Error", None);
        status
    }

    #[test]
    fn the_phase_follows_the_containers() {
        let mut crashing = ended(1);
        restart(&mut crashing);
        wait(&mut crashing, "CrashLoopBackOff", None);
        for (container, policy, expected) in [
            (creating("c", "i"), RestartPolicy::Always, "Pending"),
            (crashing, RestartPolicy::Always, "Running"),
            (ended(1), RestartPolicy::Always, "Running"),
            (ended(1), RestartPolicy::Never, "Failed"),
            (ended(0), RestartPolicy::OnFailure, "Succeeded"),
        ] {
            assert_eq!(phase(&[container], policy), expected);
        }
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let then = Time(Timestamp::UNIX_EPOCH);
        let condition = |kind: &str, status: &str| PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            last_transition_time: Some(then.clone()),
            ..PodCondition::default()
        };
        let status = PodStatus {
            conditions: Some(vec![condition("PodScheduled", "True"), condition("Ready", "False")]),
            ..PodStatus::default()
        };
        let pod = Pod { status: Some(status), ..Pod::default() };
        let status = pod_status(&pod, "10.0.0.1", "100.64.0.1", &[creating("c", "i")], &[]);
        let conditions = status.conditions.unwrap_or_default();
        let time = |kind: &str| {
            conditions.iter().find(|one| one.type_ == kind).and_then(|one| one.last_transition_time.clone())
        };
        assert_eq!(time("Ready"), Some(then.clone()));
        assert_eq!(time("PodScheduled"), Some(then.clone()));
        assert_ne!(time("Initialized"), Some(then));
    }
}
