//! Karpenter's pods as a diagnosis needs them: which fail, how, and with which identity.

use serde_json::Value;

use super::words::{self, Said};

/// A pod of Karpenter, and what its container wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pod {
    /// As the API server answers it.
    pub object: Value,
    /// The log of the container's latest life, its end; empty if there is none.
    pub log: String,
    /// The log of the life before.
    pub previous_log: String,
}

/// Who a pod's environment says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Injected {
    Nothing,
    /// IRSA, for this role.
    WebIdentity(String),
    /// The Pod Identity agent's address.
    Agent,
}

/// How far a pod's container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Ready, or on its way there for the first time, or on its way out.
    Fine,
    /// It runs, is not ready, and never failed.
    Starting,
    /// It failed; `retrying` while it runs again and may yet succeed.
    Failed { exit_code: i64, retrying: bool },
    /// It cannot start: the kubelet's reason and words.
    Blocked { reason: String, message: String },
    /// No node takes it: the scheduler's words.
    Unscheduled(String),
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter()
}

impl Pod {
    pub(super) fn name(&self) -> &str {
        text(&self.object, "/metadata/name")
    }

    pub(super) fn uid(&self) -> &str {
        text(&self.object, "/metadata/uid")
    }

    pub(super) fn leaving(&self) -> bool {
        self.object.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null())
    }

    fn statuses(&self) -> impl Iterator<Item = &Value> {
        ["/status/initContainerStatuses", "/status/containerStatuses"]
            .into_iter()
            .flat_map(|list| items(&self.object, list))
    }

    pub(super) fn restarts(&self) -> u64 {
        self.statuses().filter_map(|status| status["restartCount"].as_u64()).sum()
    }

    /// Whether its log may explain a failure: it did not become ready yet, or ended.
    #[must_use]
    pub fn worth_reading(&self) -> bool {
        !self.leaving() && items(&self.object, "/status/containerStatuses").any(|status| status["ready"] != true)
    }

    pub(super) fn state(&self) -> State {
        if self.leaving() {
            return State::Fine;
        }
        let unscheduled = items(&self.object, "/status/conditions")
            .find(|condition| condition["type"] == "PodScheduled" && condition["status"] == "False");
        if let Some(condition) = unscheduled {
            return State::Unscheduled(text(condition, "/message").to_owned());
        }
        let pending = self.statuses().filter(|status| status["ready"] != true);
        pending.map(container).find(|state| *state != State::Fine).unwrap_or(State::Fine)
    }

    pub(super) fn injected(&self) -> Injected {
        let mut variables = items(&self.object, "/spec/containers").flat_map(|container| items(container, "/env"));
        let found = variables.find_map(|variable| match text(variable, "/name") {
            "AWS_ROLE_ARN" => Some(Injected::WebIdentity(text(variable, "/value").to_owned())),
            "AWS_CONTAINER_CREDENTIALS_FULL_URI" => Some(Injected::Agent),
            _ => None,
        });
        found.unwrap_or(Injected::Nothing)
    }

    /// The container's last words, of which the latest with a meaning counts: the message that the kubelet kept, the
    /// log of the life that ended, the log of the one before.
    pub(super) fn said(&self) -> Option<Said> {
        self.logs().into_iter().find_map(|log| words::read(&log))
    }

    pub(super) fn last_lines(&self, count: usize) -> Vec<String> {
        let logs = self.logs();
        logs.iter().map(|log| words::last_lines(log, count)).find(|lines| !lines.is_empty()).unwrap_or_default()
    }

    fn logs(&self) -> Vec<String> {
        let messages = items(&self.object, "/status/containerStatuses").flat_map(|status| {
            ["/state/terminated/message", "/lastState/terminated/message"].map(|at| text(status, at).to_owned())
        });
        messages.chain([self.log.clone(), self.previous_log.clone()]).filter(|log| !log.trim().is_empty()).collect()
    }
}

fn container(status: &Value) -> State {
    let waiting = text(status, "/state/waiting/reason");
    let blocked = [
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    ];
    if blocked.contains(&waiting) {
        let message = text(status, "/state/waiting/message").to_owned();
        return State::Blocked { reason: waiting.to_owned(), message };
    }
    let running = status.pointer("/state/running").is_some_and(|running| !running.is_null());
    let ended = ["/state/terminated", "/lastState/terminated"]
        .into_iter()
        .filter_map(|at| status.pointer(at))
        .find_map(|ended| ended["exitCode"].as_i64().filter(|code| *code != 0));
    match ended {
        Some(exit_code) => State::Failed { exit_code, retrying: running },
        None if running => State::Starting,
        None => State::Fine,
    }
}
