//! The node agent: the kubelets of all machines of one cluster.
//!
//! It keeps nodes and their leases, takes bound pods to Running or to the failure that their image asks for, runs
//! known images as processes, serves logs on the kubelet's port, and is the Pod Identity agent where that runs.
//!
//! What it does not do, on purpose: pull images, run a container's own command (see [`images`]), init containers
//! (reported as completed), mount anything for containers that aren't run.

mod containers;
mod environment;
mod images;
mod kubelet;
mod nodes;
mod pod_identity;
mod pods;
mod status;
mod volumes;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::certificates::Certificates;
use super::control_plane::Programs;
use super::machines::Machine;
use crate::gateway::call::Aws;

/// What an agent works with.
pub(crate) struct AgentConfig {
    pub(crate) client: kube::Client,
    pub(crate) certificates: Certificates,
    /// Where the cluster's API server listens.
    pub(crate) api_url: String,
    /// The Kubernetes version that kubelets report, as `v1.36.3`.
    pub(crate) version: String,
    /// What processes get as `AWS_ENDPOINT_URL`.
    pub(crate) aws_endpoint: String,
    /// The cluster's name.
    pub(crate) cluster: String,
    /// The gateway, in the cluster's account and region; who calls is set anew for each call.
    pub(crate) aws: Aws,
    pub(crate) programs: Programs,
    /// Where pods have their files and logs; made when needed.
    pub(crate) dir: PathBuf,
    /// Ends the agent and what it runs.
    pub(crate) stopping: CancellationToken,
}

/// The node agent of one cluster.
#[derive(Clone)]
pub(crate) struct Agent {
    cluster: Arc<Cluster>,
}

/// What all parts of the agent share.
pub(in crate::kubernetes) struct Cluster {
    config: AgentConfig,
    kubelet_port: u16,
    pod_identity_port: u16,
    /// For probes; never through a proxy.
    http: reqwest::Client,
    addresses: AtomicU32,
    state: Mutex<State>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, NodeEntry>,
    /// By UID: every pod that is bound to a node, whether or not the node is there.
    pods: HashMap<String, PodEntry>,
}

struct NodeEntry {
    machine: Arc<Machine>,
    renewed: Instant,
    /// Whether the VPC's network plugin runs there: before, a node is not ready and only pods in the host's network
    /// start.
    network: watch::Sender<bool>,
}

struct PodEntry {
    pod: watch::Sender<Arc<Pod>>,
    /// Ends the worker without a word to the API server, as a machine that is gone.
    worker: Option<CancellationToken>,
}

impl Agent {
    /// Starts the agent, without nodes.
    ///
    /// # Errors
    /// No port for the kubelets.
    pub(crate) async fn start(config: AgentConfig) -> anyhow::Result<Self> {
        let server = kubelet::Server::bind(&config.certificates).await?;
        let identities = pod_identity::Server::bind().await?;
        let cluster = Arc::new(Cluster {
            kubelet_port: server.port(),
            pod_identity_port: identities.port(),
            http: reqwest::Client::builder().no_proxy().build()?,
            addresses: AtomicU32::new(1),
            state: Mutex::default(),
            tasks: TaskTracker::new(),
            config,
        });
        cluster.spawn(server.run(cluster.clone()));
        cluster.spawn(identities.run(cluster.clone()));
        cluster.spawn(watch_pods(cluster.clone()));
        cluster.spawn(keep_leases(cluster.clone()));
        Ok(Self { cluster })
    }

    /// Makes a node of a machine, and starts what is bound to it.
    ///
    /// # Errors
    /// The API server's refusals.
    pub(crate) async fn join(&self, machine: Machine) -> anyhow::Result<()> {
        let config = &self.cluster.config;
        nodes::register(&config.client, &machine, self.cluster.kubelet_port, &config.version).await?;
        let name = machine.node.clone();
        let node =
            NodeEntry { machine: Arc::new(machine), renewed: Instant::now(), network: watch::Sender::new(false) };
        let mut state = self.cluster.state();
        for entry in state.pods.values_mut().filter(|entry| entry.worker.is_none()) {
            if entry.node() == name {
                entry.start(&self.cluster, &node);
            }
        }
        state.nodes.insert(name, node);
        Ok(())
    }

    /// Ends a machine at once: its lease is no longer renewed and what ran on it is killed.
    pub(crate) fn leave(&self, node: &str) {
        let mut state = self.cluster.state();
        state.nodes.remove(node);
        for entry in state.pods.values_mut().filter(|entry| entry.node() == node) {
            entry.stop();
        }
    }

    /// Removes nodes whose machine is gone, once they are no longer ready; forgets those that are removed.
    ///
    /// # Errors
    /// The API server's refusals.
    pub(crate) async fn remove_nodes_without_machine(&self, silent: &mut HashSet<String>) -> anyhow::Result<()> {
        nodes::remove_silent(&self.cluster.config.client, silent).await
    }

    /// Kills everything that runs and waits until it is gone.
    pub(crate) async fn stop(&self) {
        self.cluster.config.stopping.cancel();
        self.cluster.tasks.close();
        self.cluster.tasks.wait().await;
    }
}

impl Cluster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task until the agent stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.config.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    /// An address for a pod. Not on loopback, which EndpointSlices refuse; from the range for carriers' own use,
    /// which custom networking on EKS takes, too.
    fn next_address(&self) -> String {
        let number = self.addresses.fetch_add(1, Ordering::Relaxed) % (1 << 22);
        Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() | number).to_string()
    }

    fn observe(self: &Arc<Self>, pod: Pod) {
        let Some(uid) = pod.uid() else { return };
        let mut state = self.state();
        if let Some(entry) = state.pods.get(&uid) {
            entry.pod.send_replace(Arc::new(pod));
            return;
        }
        let mut entry = PodEntry { pod: watch::Sender::new(Arc::new(pod)), worker: None };
        if let Some(node) = state.nodes.get(&entry.node()) {
            entry.start(self, node);
        }
        state.pods.insert(uid, entry);
    }

    fn forget(&self, uid: &str) {
        if let Some(mut entry) = self.state().pods.remove(uid) {
            entry.stop();
        }
    }

    /// Says that the network plugin of a node runs. False if the API server could not be told.
    async fn network_is_up(&self, machine: &Machine) -> bool {
        let network = self.state().nodes.get(&machine.node).map(|node| node.network.clone());
        let Some(network) = network.filter(|network| !*network.borrow()) else { return true };
        let outcome = nodes::report(&self.config.client, machine, true, self.kubelet_port, &self.config.version).await;
        match outcome {
            Ok(()) => {
                network.send_replace(true);
                true
            }
            Err(error) => {
                tracing::warn!(node = machine.node, error = format!("{error:#}"), "a node could not become ready");
                false
            }
        }
    }

    /// A node's machine, while a pod of an app (its label `k8s-app`) runs there.
    fn machine_running(&self, node: &str, app: &str) -> Option<Arc<Machine>> {
        let state = self.state();
        let machine = state.nodes.get(node)?.machine.clone();
        let runs = |entry: &PodEntry| {
            let pod = entry.pod.borrow();
            let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let mut ready = containers.map(|one| one.ready).peekable();
            pod.labels().get("k8s-app").is_some_and(|label| label == app)
                && ready.peek().is_some()
                && ready.all(|one| one)
        };
        state.pods.values().any(|entry| entry.node() == node && runs(entry)).then_some(machine)
    }

    /// A pod by its name, as it was last seen.
    fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let state = self.state();
        let pods = state.pods.values().map(|entry| entry.pod.borrow().clone());
        pods.into_iter().find(|pod| pod.namespace().as_deref() == Some(namespace) && pod.name_any() == name)
    }

    /// Where a pod has its files.
    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.dir.join(uid)
    }
}

impl PodEntry {
    fn node(&self) -> String {
        self.pod.borrow().spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
    }

    fn start(&mut self, cluster: &Arc<Cluster>, node: &NodeEntry) {
        let gone = cluster.config.stopping.child_token();
        let network = node.network.subscribe();
        let worker =
            pods::Worker::new(cluster.clone(), node.machine.clone(), self.pod.subscribe(), network, gone.clone());
        cluster.tasks.spawn(worker.run());
        self.worker = Some(gone);
    }

    fn stop(&mut self) {
        if let Some(gone) = self.worker.take() {
            gone.cancel();
        }
    }
}

/// Follows all bound pods: a list, then a watch, and again whenever the watch breaks.
async fn watch_pods(cluster: Arc<Cluster>) {
    let pods: Api<Pod> = Api::all(cluster.config.client.clone());
    loop {
        if let Err(error) = follow(&cluster, &pods).await {
            tracing::debug!(%error, "the watch on pods broke");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn follow(cluster: &Arc<Cluster>, pods: &Api<Pod>) -> anyhow::Result<()> {
    const BOUND: &str = "spec.nodeName!=";
    let list = pods.list(&ListParams::default().fields(BOUND)).await?;
    let present: HashSet<String> = list.items.iter().filter_map(kube::ResourceExt::uid).collect();
    let vanished: Vec<String> = cluster.state().pods.keys().filter(|uid| !present.contains(*uid)).cloned().collect();
    for uid in vanished {
        cluster.forget(&uid);
    }
    let mut version = list.metadata.resource_version.unwrap_or_default();
    for pod in list.items {
        cluster.observe(pod);
    }
    loop {
        let mut events = pods.watch(&WatchParams::default().fields(BOUND), &version).await?.boxed();
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    version = pod.resource_version().unwrap_or(version);
                    cluster.observe(pod);
                }
                WatchEvent::Deleted(pod) => {
                    version = pod.resource_version().unwrap_or(version);
                    cluster.forget(&pod.uid().unwrap_or_default());
                }
                WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            }
        }
    }
}

/// Renews all leases every quarter of their life.
async fn keep_leases(cluster: Arc<Cluster>) {
    let lease = Duration::from_secs(nodes::LEASE_SECONDS.unsigned_abs().into());
    let mut ticks = tokio::time::interval(lease / 4);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let config = &cluster.config;
    loop {
        ticks.tick().await;
        let entry = |node: &NodeEntry| (node.machine.clone(), node.renewed, *node.network.borrow());
        let nodes: Vec<(Arc<Machine>, Instant, bool)> = cluster.state().nodes.values().map(entry).collect();
        for (machine, renewed, network) in nodes {
            // After a pause (a sleeping laptop) the node was declared unknown; only its kubelet can say otherwise.
            let late = renewed.elapsed() > lease * 3 / 4;
            let outcome = async {
                if late {
                    nodes::report(&config.client, &machine, network, cluster.kubelet_port, &config.version).await?;
                }
                nodes::renew(&config.client, &machine.node).await
            };
            match outcome.await {
                Ok(()) => {
                    if let Some(node) = cluster.state().nodes.get_mut(&machine.node) {
                        node.renewed = Instant::now();
                    }
                }
                Err(error) => tracing::debug!(node = machine.node, error = format!("{error:#}"), "no sign of life"),
            }
        }
    }
}

/// Whether the API server answered with this HTTP status.
fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
