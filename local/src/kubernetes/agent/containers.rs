//! A container that is a process: started, probed, ended, restarted with the kubelet's back-off.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::processes::{Child, spawn};

use super::super::POD_IDENTITY_AGENT;
use super::super::control_plane::FEWER_COLLECTIONS;
use super::super::machines::Machine;
use super::Cluster;
use super::environment::{Place, variables};
use super::images::Program;
use super::pod_identity;
use super::pods::{container_id, record};
use super::status::{self, RestartPolicy};
use super::volumes::{SERVICE_ACCOUNT_MOUNT, outside};

/// How often a process that isn't ready yet is asked. The kubelet would wait the probe's period; asking a process
/// on the same machine costs nothing and saves seconds.
const READINESS: Duration = Duration::from_millis(500);

/// How soon a container that could not be created is tried again.
const CREATE_AGAIN: Duration = Duration::from_secs(5);

/// What the kubelet takes from a log as a termination message.
const MESSAGE_BYTES: usize = 2048;

/// A container that runs as a process of this machine.
pub(super) struct Process {
    pub(super) cluster: Arc<Cluster>,
    pub(super) machine: Arc<Machine>,
    pub(super) pod: Arc<Pod>,
    pub(super) ip: String,
    /// Mount paths and where they are on this machine.
    pub(super) mounts: Vec<(String, PathBuf)>,
    /// The pod's folder.
    pub(super) dir: PathBuf,
    pub(super) container: Container,
    pub(super) program: &'static Program,
    pub(super) stop: CancellationToken,
    /// Which container of the pod it is.
    pub(super) index: usize,
    pub(super) updates: mpsc::Sender<(usize, ContainerStatus)>,
}

/// How one life of a container went.
enum Life {
    /// It ended by itself (or by its liveness probe) with this exit code.
    Ended { exit_code: i32, lasted: Duration },
    /// It could not even start.
    NotCreated,
    /// The pod's end ended it.
    Stopped,
}

/// A port as the container's specification names it, and as the process has it.
struct Port {
    inside: u16,
    outside: u16,
}

/// What the probes found.
enum Verdict {
    Ready(bool),
    Dead(String),
}

impl Process {
    /// Runs the container until the pod ends or its restart policy says that it is over.
    pub(super) async fn run(self) {
        let image = self.container.image.clone().unwrap_or_default();
        let mut status = status::creating(&self.container.name, &image);
        let mut back_off = BackOff::default();
        loop {
            match self.live(&mut status).await {
                Life::Stopped => return,
                Life::Ended { exit_code, .. } if !RestartPolicy::of(&self.pod).restarts_after(exit_code) => return,
                Life::Ended { lasted, .. } => {
                    status::restart(&mut status);
                    let delay = back_off.next(lasted);
                    if !delay.is_zero() {
                        self.announce_back_off(&mut status, delay).await;
                    }
                    if self.stopped_within(delay).await {
                        return;
                    }
                }
                Life::NotCreated => {
                    if self.stopped_within(CREATE_AGAIN).await {
                        return;
                    }
                }
            }
        }
    }

    async fn announce_back_off(&self, status: &mut ContainerStatus, delay: Duration) {
        let message = format!(
            "back-off {}s restarting failed container={} pod={}_{}({})",
            delay.as_secs(),
            self.container.name,
            self.pod.name_any(),
            self.pod.namespace().unwrap_or_default(),
            self.pod.uid().unwrap_or_default(),
        );
        record(&self.cluster, &self.machine, &self.pod, "Warning", "BackOff", &message).await;
        status::wait(status, "CrashLoopBackOff", Some(message));
        self.publish(status).await;
    }

    async fn stopped_within(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => true,
            () = tokio::time::sleep(time) => false,
        }
    }

    async fn publish(&self, status: &ContainerStatus) {
        let _ = self.updates.send((self.index, status.clone())).await;
    }

    /// One life: from start to exit.
    async fn live(&self, status: &mut ContainerStatus) -> Life {
        let life = status.restart_count;
        let log = log_file(&self.dir, &self.container.name, life);
        let (mut child, ports) = match self.start(&log).await {
            Ok(started) => started,
            Err(error) => {
                let message = format!("{error:#}");
                record(&self.cluster, &self.machine, &self.pod, "Warning", "Failed", &message).await;
                status::wait(status, "CreateContainerError", Some(message));
                self.publish(status).await;
                return Life::NotCreated;
            }
        };
        let started = tokio::time::Instant::now();
        let id = container_id(&self.pod, &self.container.name, life);
        status::run(status, id, self.container.readiness_probe.is_none());
        self.publish(status).await;
        let (verdicts, mut findings) = mpsc::channel(4);
        // Aborted when this life is over.
        let mut probes = JoinSet::new();
        self.probe(&ports, verdicts, &mut probes);
        let exit = loop {
            tokio::select! {
                exit = child.wait() => break exit,
                () = self.stop.cancelled() => {
                    self.kill(&mut child).await;
                    return Life::Stopped;
                }
                Some(verdict) = findings.recv() => match verdict {
                    Verdict::Ready(ready) => {
                        status.ready = ready;
                        self.publish(status).await;
                    }
                    Verdict::Dead(message) => {
                        record(&self.cluster, &self.machine, &self.pod, "Warning", "Unhealthy", &message).await;
                        self.kill(&mut child).await;
                    }
                },
            }
        };
        let exit_code = exit.map_or(255, exit_code);
        let reason = if exit_code == 0 { "Completed" } else { "Error" };
        status::end(status, exit_code, reason, self.termination_message(exit_code, &log));
        self.publish(status).await;
        Life::Ended { exit_code, lasted: started.elapsed() }
    }

    async fn kill(&self, child: &mut Child) {
        if let Err(error) = child.kill().await {
            tracing::warn!(pod = self.pod.name_any(), %error, "a container's process may have stayed");
        }
    }

    /// The log's end, where the container asks for it to be its message.
    fn termination_message(&self, exit_code: i32, log: &Path) -> Option<String> {
        let policy = self.container.termination_message_policy.as_deref();
        if exit_code == 0 || policy != Some("FallbackToLogsOnError") {
            return None;
        }
        let text = std::fs::read(log).ok()?;
        let tail = &text[text.len().saturating_sub(MESSAGE_BYTES)..];
        Some(String::from_utf8_lossy(tail).into_owned())
    }

    /// Starts the process with the container's environment, its paths moved to where the files are on this machine.
    async fn start(&self, log: &Path) -> anyhow::Result<(Child, Vec<Port>)> {
        let config = &self.cluster.config;
        let place = Place { pod: &self.pod, ip: &self.ip, machine: &self.machine };
        let mut environment = variables(&config.client, &place, &self.container).await?;
        for value in environment.values_mut() {
            *value = outside(&self.mounts, value);
            if value == POD_IDENTITY_AGENT {
                *value = pod_identity::address(self.cluster.pod_identity_port, &self.machine.node);
            }
        }
        let mut ports = Vec::new();
        for (variable, default) in self.program.ports {
            let inside = environment.get(*variable).and_then(|value| value.parse().ok()).unwrap_or(*default);
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
            let port = Port { inside, outside: listener.local_addr()?.port() };
            environment.insert((*variable).to_owned(), port.outside.to_string());
            ports.push(port);
        }
        let namespace = self.pod.namespace().unwrap_or_default();
        if let Some((_, account)) = self.mounts.iter().find(|(mount, _)| mount == SERVICE_ACCOUNT_MOUNT) {
            let path = self.dir.join("kubeconfig");
            let kubeconfig = in_cluster_kubeconfig(&config.api_url, account, &namespace);
            tokio::fs::write(&path, kubeconfig.to_string()).await?;
            environment.insert("KUBECONFIG".to_owned(), path.display().to_string());
        }
        // Web identity does not look at the general one. Who names another STS gets it, whether it is there or not.
        environment.entry("AWS_ENDPOINT_URL_STS".to_owned()).or_insert_with(|| config.aws_endpoint.clone());
        // A process outside of the cluster has no file to read its namespace from.
        environment.entry("LEADER_ELECTION_NAMESPACE".to_owned()).or_insert(namespace);
        for (name, value) in [
            FEWER_COLLECTIONS,
            ("AWS_ENDPOINT_URL", config.aws_endpoint.as_str()),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("HOSTNAME", &self.pod.name_any()),
            ("HOME", &self.dir.display().to_string()),
            ("PATH", "/usr/bin:/bin"),
        ] {
            environment.insert(name.to_owned(), value.to_owned());
        }
        if let Some(parent) = log.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let mut command = config.programs.tethered(&config.programs.find(self.program.file)?)?;
        command.envs(environment).args(self.container.args.iter().flatten()).current_dir(&self.dir);
        Ok((spawn(self.program.file, command, log)?, ports))
    }

    fn probe(&self, ports: &[Port], verdicts: mpsc::Sender<Verdict>, probes: &mut JoinSet<()>) {
        let readiness = self.container.readiness_probe.as_ref();
        if let Some(check) = readiness.and_then(|probe| Check::new(&self.cluster, &self.container, probe, ports)) {
            probes.spawn(check.readiness(verdicts.clone()));
        }
        let liveness = self.container.liveness_probe.as_ref();
        if let Some(check) = liveness.and_then(|probe| Check::new(&self.cluster, &self.container, probe, ports)) {
            probes.spawn(check.liveness(verdicts));
        }
    }
}

/// Where the log of one life of a container is.
pub(super) fn log_file(pod_dir: &Path, container: &str, life: i32) -> PathBuf {
    pod_dir.join("logs").join(container).join(format!("{life}.log"))
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn in_cluster_kubeconfig(url: &str, account: &Path, namespace: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "cluster", "cluster": { "server": url, "certificate-authority": account.join("ca.crt") } }],
        "users": [{ "name": "user", "user": { "tokenFile": account.join("token") } }],
        "contexts": [{ "name": "context", "context": { "cluster": "cluster", "user": "user", "namespace": namespace } }],
        "current-context": "context",
    })
}

/// An http probe of a process.
struct Check {
    http: reqwest::Client,
    url: String,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    failures: i32,
}

impl Check {
    /// The probe as the process has its ports. Only http probes are known; without one a process counts as healthy.
    fn new(cluster: &Cluster, container: &Container, probe: &Probe, ports: &[Port]) -> Option<Self> {
        let get = probe.http_get.as_ref()?;
        let named = |name: &str| {
            let mut declared = container.ports.iter().flatten();
            declared.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
        };
        let inside = match &get.port {
            IntOrString::Int(port) => *port,
            IntOrString::String(name) => named(name)?,
        };
        let port = ports.iter().find(|port| i32::from(port.inside) == inside)?;
        let seconds =
            |value: Option<i32>, default: u32| Duration::from_secs(value.map_or(default, i32::unsigned_abs).into());
        Some(Self {
            http: cluster.http.clone(),
            url: format!("http://127.0.0.1:{}{}", port.outside, get.path.as_deref().unwrap_or("/")),
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            failures: probe.failure_threshold.unwrap_or(3),
        })
    }

    async fn passes(&self) -> bool {
        let answer = self.http.get(&self.url).timeout(self.timeout).send().await;
        answer.is_ok_and(|answer| answer.status().is_success() || answer.status().is_redirection())
    }

    async fn readiness(self, verdicts: mpsc::Sender<Verdict>) {
        let (mut ready, mut failures) = (false, 0);
        loop {
            tokio::time::sleep(if ready { self.period } else { READINESS }).await;
            let passes = self.passes().await;
            failures = if passes { 0 } else { failures + 1 };
            let now = passes || (ready && failures < self.failures);
            if now != ready {
                ready = now;
                let _ = verdicts.send(Verdict::Ready(ready)).await;
            }
        }
    }

    async fn liveness(self, verdicts: mpsc::Sender<Verdict>) {
        tokio::time::sleep(self.initial_delay).await;
        let mut failures = 0;
        while failures < self.failures {
            tokio::time::sleep(self.period).await;
            failures = if self.passes().await { 0 } else { failures + 1 };
        }
        let _ = verdicts.send(Verdict::Dead(format!("Liveness probe failed: {}", self.url))).await;
    }
}

/// The kubelet's delays between the lives of a container: at once, then 10 s and double each time up to 5 min;
/// forgotten after a life of 10 min.
#[derive(Debug, Default)]
struct BackOff {
    next: Duration,
}

impl BackOff {
    fn next(&mut self, lasted: Duration) -> Duration {
        const FIRST: Duration = Duration::from_secs(10);
        const LONGEST: Duration = Duration::from_mins(5);
        if lasted > LONGEST * 2 {
            self.next = Duration::ZERO;
        }
        let delay = self.next;
        self.next = (delay * 2).clamp(FIRST, LONGEST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_between_restarts_double_up_to_five_minutes() {
        let mut back_off = BackOff::default();
        let short = Duration::from_secs(1);
        let delays: Vec<u64> = (0..8).map(|_| back_off.next(short).as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(back_off.next(Duration::from_secs(601)).as_secs(), 0);
    }
}
