//! One bound pod, from its first sight to its deletion.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Event, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::machines::Machine;
use super::containers::Process;
use super::environment::Place;
use super::images::{Image, malformed};
use super::volumes::Volumes;
use super::{Cluster, is_status, status};

/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Takes one pod through its life on one machine.
pub(super) struct Worker {
    cluster: Arc<Cluster>,
    machine: Arc<Machine>,
    observed: watch::Receiver<Arc<Pod>>,
    network: watch::Receiver<bool>,
    gone: CancellationToken,
    ip: String,
    dir: PathBuf,
    containers: Vec<ContainerStatus>,
    init_containers: Vec<ContainerStatus>,
}

/// Why a worker stops to look after its pod.
enum End {
    /// Somebody deleted the pod: say goodbye properly.
    Deleted,
    /// The machine, the pod's object or the whole cluster is gone.
    Gone,
}

impl Worker {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        machine: Arc<Machine>,
        observed: watch::Receiver<Arc<Pod>>,
        network: watch::Receiver<bool>,
        gone: CancellationToken,
    ) -> Self {
        let pod = observed.borrow().clone();
        let spec = pod.spec.clone().unwrap_or_default();
        let ip = match spec.host_network {
            Some(true) => machine.private_ip.clone(),
            _ => cluster.next_address(),
        };
        let creating =
            |container: &Container| status::creating(&container.name, container.image.as_deref().unwrap_or_default());
        Self {
            dir: cluster.pod_dir(&pod.uid().unwrap_or_default()),
            containers: spec.containers.iter().map(creating).collect(),
            init_containers: spec.init_containers.iter().flatten().map(|one| initialised(one, creating(one))).collect(),
            cluster,
            machine,
            observed,
            network,
            gone,
            ip,
        }
    }

    /// Runs until the pod is gone.
    pub(super) async fn run(mut self) {
        let stop = CancellationToken::new();
        let mut processes = JoinSet::new();
        let end = self.live(&stop, &mut processes).await;
        stop.cancel();
        while processes.join_next().await.is_some() {}
        if matches!(end, End::Deleted) {
            self.finish().await;
        }
        match tokio::fs::remove_dir_all(&self.dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(dir = %self.dir.display(), %error, "a pod's folder stays");
            }
            _ => {}
        }
    }

    async fn live(&mut self, stop: &CancellationToken, processes: &mut JoinSet<()>) -> End {
        let pod = self.pod();
        if pod.metadata.deletion_timestamp.is_some() {
            return End::Deleted;
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return self.ends().await;
        }
        let spec = pod.spec.clone().unwrap_or_default();
        if spec.host_network != Some(true)
            && let Err(end) = self.wait_for_network().await
        {
            return end;
        }
        let images: Vec<Image> =
            spec.containers.iter().map(|one| Image::of(one.image.as_deref().unwrap_or_default())).collect();

        let mut volumes = None;
        if images.iter().any(|image| matches!(image, Image::Program(_))) {
            self.publish().await;
            match self.prepare_volumes().await {
                Ok(prepared) => volumes = Some(prepared),
                Err(end) => return end,
            }
        }
        let (updates, mut changes) = mpsc::channel(16);
        let mut pull_again = None;
        for (index, (container, image)) in spec.containers.into_iter().zip(images).enumerate() {
            let name = container.image.clone().unwrap_or_default();
            match (image, &volumes) {
                (Image::Program(program), Some(volumes)) => {
                    let process = Process {
                        cluster: self.cluster.clone(),
                        machine: self.machine.clone(),
                        pod: pod.clone(),
                        ip: self.ip.clone(),
                        mounts: volumes.mounts(&container),
                        dir: self.dir.clone(),
                        container,
                        program,
                        stop: stop.clone(),
                        index,
                        updates: updates.clone(),
                    };
                    processes.spawn(process.run());
                }
                (Image::Absent(absence), _) => {
                    let message = absence.message(&name);
                    self.event("Warning", "Failed", &format!("Failed to pull image \"{name}\": {message}")).await;
                    status::wait(&mut self.containers[index], "ErrImagePull", Some(message));
                    pull_again = Some(Instant::now() + RETRY);
                }
                (Image::Malformed, _) => {
                    let message = malformed(&name);
                    self.event("Warning", "InspectFailed", &message).await;
                    status::wait(&mut self.containers[index], "InvalidImageName", Some(message));
                }
                (Image::Simulated | Image::Program(_), _) => {
                    let id = container_id(&pod, &container.name, 0);
                    status::run(&mut self.containers[index], id, true);
                }
            }
        }
        let mut published = self.publish().await && self.announce_network().await;
        loop {
            let refresh = volumes.as_ref().and_then(Volumes::next_refresh);
            tokio::select! {
                Some((index, status)) = changes.recv() => {
                    self.containers[index] = status;
                    published = self.publish().await;
                }
                end = self.ends() => return end,
                () = at(refresh) => {
                    if let Some(volumes) = &mut volumes {
                        let pod = self.pod();
                        volumes.refresh(&self.cluster.config.client, &self.place(&pod)).await;
                    }
                }
                () = at(pull_again) => {
                    pull_again = None;
                    self.back_off_pulling();
                    published = self.publish().await;
                }
                () = tokio::time::sleep(RETRY), if !published => {
                    published = self.publish().await && self.announce_network().await;
                }
            }
        }
    }

    fn pod(&self) -> Arc<Pod> {
        self.observed.borrow().clone()
    }

    fn place<'a>(&'a self, pod: &'a Pod) -> Place<'a> {
        Place { pod, ip: &self.ip, machine: &self.machine }
    }

    /// Waits for the pod's deletion or for what it lives on to go. Dropping the future loses nothing.
    async fn ends(&mut self) -> End {
        loop {
            if self.pod().metadata.deletion_timestamp.is_some() {
                return End::Deleted;
            }
            tokio::select! {
                () = self.gone.cancelled() => return End::Gone,
                changed = self.observed.changed() => if changed.is_err() { return End::Gone },
            }
        }
    }

    async fn wait_for_network(&mut self) -> Result<(), End> {
        if *self.network.borrow() {
            return Ok(());
        }
        self.publish().await;
        let mut network = self.network.clone();
        tokio::select! {
            end = self.ends() => Err(end),
            up = network.wait_for(|up| *up) => up.map(|_| ()).map_err(|_| End::Gone),
        }
    }

    /// A running `aws-node`, the DaemonSet of the VPC's network plugin, is what makes a node ready.
    async fn announce_network(&self) -> bool {
        let pod = self.pod();
        let plugin = pod.labels().get("k8s-app").is_some_and(|app| app == "aws-node");
        let running = self.containers.iter().all(|one| one.ready);
        !(plugin && running) || self.cluster.network_is_up(&self.machine).await
    }

    /// Prepares the volumes, however long that takes: the kubelet waits for them, too.
    async fn prepare_volumes(&mut self) -> Result<Volumes, End> {
        let dir = self.dir.join("volumes");
        let mut told = false;
        loop {
            let pod = self.pod();
            match Volumes::prepare(&self.cluster.config.client, &self.place(&pod), &dir).await {
                Ok(volumes) => return Ok(volumes),
                Err(error) if !told => {
                    told = true;
                    self.event("Warning", "FailedMount", &format!("MountVolume.SetUp failed: {error:#}")).await;
                }
                Err(_) => {}
            }
            tokio::select! {
                end = self.ends() => return Err(end),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// What follows a failed pull: the kubelet waits and tries again, here with the same outcome for ever.
    fn back_off_pulling(&mut self) {
        for container in &mut self.containers {
            let waiting = container.state.as_ref().and_then(|state| state.waiting.clone());
            if let Some(waiting) = waiting.filter(|waiting| waiting.reason.as_deref() == Some("ErrImagePull")) {
                let cause = waiting.message.unwrap_or_default();
                let message = format!("Back-off pulling image \"{}\": ErrImagePull: {cause}", container.image);
                status::wait(container, "ImagePullBackOff", Some(message));
            }
        }
    }

    /// Tells the API server; false if it has to be told again.
    async fn publish(&self) -> bool {
        let pod = self.pod();
        let status =
            status::pod_status(&pod, &self.machine.private_ip, &self.ip, &self.containers, &self.init_containers);
        // With the UID, so that a pod of the same name that came later isn't meant.
        let patch = Patch::Merge(json!({ "metadata": { "uid": pod.uid() }, "status": status }));
        match self.pods(&pod).patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
            Err(error) if !is_status(&error, 404) && !is_status(&error, 409) => {
                tracing::warn!(pod = pod.name_any(), %error, "a pod's status could not be reported");
                false
            }
            _ => true,
        }
    }

    /// Reports the ends and removes the object, which only the kubelet may do before its grace is over.
    async fn finish(&mut self) {
        for container in &mut self.containers {
            if container.state.as_ref().is_some_and(|state| state.running.is_some()) {
                status::end(container, 0, "Completed", None);
            }
        }
        let pod = self.pod();
        let immediately = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        loop {
            self.publish().await;
            match self.pods(&pod).delete(&pod.name_any(), &immediately).await {
                Err(error) if !is_status(&error, 404) && !is_status(&error, 409) => {
                    tracing::warn!(pod = pod.name_any(), %error, "a pod could not be removed");
                }
                _ => return,
            }
            tokio::select! {
                () = self.gone.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    fn pods(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.cluster.config.client.clone(), &pod.namespace().unwrap_or_default())
    }

    /// Records an event as the kubelet would; events are best effort.
    async fn event(&self, kind: &str, reason: &str, message: &str) {
        record(&self.cluster, &self.machine, &self.pod(), kind, reason, message).await;
    }
}

/// Records an event about a pod as the kubelet would; events are best effort.
pub(super) async fn record(cluster: &Cluster, machine: &Machine, pod: &Pod, kind: &str, reason: &str, message: &str) {
    let now = Time(Timestamp::now());
    let namespace = pod.namespace().unwrap_or_default();
    let event = Event {
        metadata: ObjectMeta { generate_name: Some(format!("{}.", pod.name_any())), ..ObjectMeta::default() },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name_any()),
            namespace: Some(namespace.clone()),
            uid: pod.uid(),
            ..ObjectReference::default()
        },
        type_: Some(kind.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        source: Some(k8s_openapi::api::core::v1::EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(machine.node.clone()),
        }),
        ..Event::default()
    };
    let events: Api<Event> = Api::namespaced(cluster.config.client.clone(), &namespace);
    if let Err(error) = events.create(&PostParams::default(), &event).await {
        tracing::debug!(%error, reason, "an event was lost");
    }
}

/// The id of one life of a container.
pub(super) fn container_id(pod: &Pod, container: &str, life: i32) -> String {
    format!("slipway://{}-{container}-{life}", pod.uid().unwrap_or_default())
}

/// Init containers are not run: they are over at once, or run on where they are side-cars.
fn initialised(container: &Container, mut status: ContainerStatus) -> ContainerStatus {
    let sidecar = container.restart_policy.as_deref() == Some("Always");
    status::run(&mut status, format!("slipway://init-{}", container.name), true);
    if !sidecar {
        status::end(&mut status, 0, "Completed", None);
        status.ready = true;
    }
    status
}

/// The moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
