//! Real Kubernetes control planes, one per cluster, and the machines that join them.

mod agent;
mod certificates;
mod control_plane;
mod controllers;
mod machines;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Context as _;
use async_trait::async_trait;
use slipway_states::clock::ScaledClock;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::gateway::call::{Aws, Dispatch, Principal};

use self::agent::{Agent, AgentConfig};
use self::control_plane::{Components, Programs};
use self::controllers::Controllers;
use self::machines::{InstanceTypes, Machines};

/// What a control plane is made for.
#[derive(Debug, Clone)]
pub struct NewControlPlane {
    /// The account that the cluster belongs to.
    pub account: String,
    /// Its region.
    pub region: String,
    /// The cluster's name: unique in account and region.
    pub name: String,
    /// The id in the cluster's endpoint and issuer, for example `0F1E2D3C4B5A69788796A5B4C3D2E1F0`.
    pub id: String,
    /// The Kubernetes version asked for, `1.36`. The component binaries have one version; this one is only reported.
    pub version: String,
    /// Where services get their addresses from, for example `172.20.0.0/16`.
    pub service_cidr: String,
    /// The issuer of service account tokens: `https://oidc.eks.<region>.amazonaws.com/id/<id>`.
    pub issuer: String,
    /// A plain http address on loopback that answers `TokenReview`s (v1): how IAM tokens log in.
    pub token_webhook_url: String,
}

/// A control plane that answers.
#[derive(Clone)]
pub struct ControlPlane {
    /// `https://127.0.0.1:<port>`.
    pub url: String,
    /// The authority that signed the server's certificate, PEM.
    pub certificate_authority_pem: String,
    /// The public keys of the service account token issuer, a JSON Web Key Set.
    pub jwks: serde_json::Value,
    /// A client that may do everything.
    pub admin: kube::Client,
    /// The cluster's folder: logs, certificates, `admin.kubeconfig`. Gone after [`ControlPlanes::stop`].
    pub dir: PathBuf,
}

/// Where pods find the Pod Identity agent of their node on AWS. A process of a pod gets another address for it, because
/// this one cannot be had on loopback.
pub const POD_IDENTITY_AGENT: &str = "http://169.254.170.23/v1/credentials";

/// Who makes control planes.
#[async_trait]
pub trait ControlPlanes: Send + Sync {
    /// Starts a control plane and returns when it is ready for use: it answers, and namespaces have their
    /// default service account.
    ///
    /// # Errors
    /// A component that is missing, ends or doesn't become ready in time, with its last log lines.
    async fn start(&self, cluster: NewControlPlane) -> anyhow::Result<ControlPlane>;

    /// Stops a control plane with everything that runs in its cluster, and removes its folder. Stopping what
    /// doesn't run is no error.
    async fn stop(&self, account: &str, region: &str, name: &str);
}

/// Who decides which machines may join a cluster: EKS, by the access entries of type `EC2_LINUX`.
#[async_trait]
pub trait NodeAuthority: Send + Sync {
    /// Whether instances of this role may join.
    async fn may_join(&self, account: &str, region: &str, cluster: &str, role_arn: &str) -> bool;
}

/// What the control planes of a cloud work with.
pub struct RealControlPlanesConfig {
    /// The cache folder with the programs (`bin`).
    pub cache: PathBuf,
    /// Where clusters have their folders: `<dir>/<account>/<region>/<name>`.
    pub dir: PathBuf,
    /// Scales the time that machines take to boot.
    pub clock: ScaledClock,
    /// Where machines are looked for.
    pub gateway: Arc<dyn Dispatch>,
    /// The gateway's address, as processes in a cluster get it: `http://127.0.0.1:<port>`.
    pub aws_endpoint: String,
}

/// Control planes of real components, with a node agent and machines each.
pub struct RealControlPlanes {
    config: RealControlPlanesConfig,
    types: Arc<InstanceTypes>,
    authority: Mutex<Weak<dyn NodeAuthority>>,
    clusters: tokio::sync::Mutex<HashMap<Key, Cluster>>,
}

/// Account, region and name.
type Key = (String, String, String);

/// What runs for one cluster.
struct Cluster {
    components: Components,
    agent: Agent,
    /// Its machines and its controllers.
    tasks: TaskTracker,
    stopping: CancellationToken,
    dir: PathBuf,
    _guard: DropGuard,
}

/// Before EKS is there, nobody joins.
struct Nobody;

#[async_trait]
impl NodeAuthority for Nobody {
    async fn may_join(&self, _account: &str, _region: &str, _cluster: &str, _role_arn: &str) -> bool {
        false
    }
}

impl RealControlPlanes {
    /// Control planes, none of them started. Machines join once [`Self::set_authority`] was told who decides.
    #[must_use]
    pub fn new(config: RealControlPlanesConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            types: Arc::default(),
            authority: Mutex::new(Weak::<Nobody>::new()),
            clusters: tokio::sync::Mutex::default(),
        })
    }

    /// Says who decides which machines may join. EKS itself needs the control planes, hence the second step and the
    /// weak reference.
    pub fn set_authority(&self, authority: Weak<dyn NodeAuthority>) {
        *self.authority.lock().unwrap_or_else(PoisonError::into_inner) = authority;
    }

    /// Stops all control planes.
    pub async fn stop_all(&self) {
        let clusters: Vec<Cluster> = self.clusters.lock().await.drain().map(|(_, cluster)| cluster).collect();
        futures::future::join_all(clusters.into_iter().map(Cluster::stop)).await;
    }

    async fn bring_up(&self, cluster: &NewControlPlane) -> anyhow::Result<(Cluster, ControlPlane)> {
        let config = &self.config;
        let dir = config.dir.join(&cluster.account).join(&cluster.region).join(&cluster.name);
        let programs = Programs::new(&config.cache);
        let stopping = CancellationToken::new();
        // From here on, whatever is dropped half way ends what it has started.
        let guard = stopping.clone().drop_guard();
        let components = Components::start(&programs, cluster, &dir).await?;
        let agent = Agent::start(AgentConfig {
            client: components.admin.clone(),
            certificates: components.certificates.clone(),
            api_url: components.url.clone(),
            version: components.server_version.clone(),
            aws_endpoint: config.aws_endpoint.clone(),
            cluster: cluster.name.clone(),
            aws: Aws {
                gateway: config.gateway.clone(),
                account: cluster.account.clone(),
                region: cluster.region.clone(),
                principal: Principal::service("ec2.amazonaws.com", &cluster.account),
            },
            programs,
            dir: dir.join("pods"),
            stopping: stopping.child_token(),
        })
        .await
        .context("cannot start the node agent")?;
        let machines = Machines {
            aws: Aws {
                gateway: config.gateway.clone(),
                account: cluster.account.clone(),
                region: cluster.region.clone(),
                principal: Principal::service("ec2.amazonaws.com", &cluster.account),
            },
            cluster: cluster.name.clone(),
            clock: config.clock,
            types: self.types.clone(),
            authority: self.authority.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            agent: agent.clone(),
        };
        let controllers = Controllers {
            client: components.admin.clone(),
            aws: Aws { principal: Principal::service("eks.amazonaws.com", &cluster.account), ..machines.aws.clone() },
            cluster: cluster.name.clone(),
        };
        let tasks = TaskTracker::new();
        tasks.spawn(stopping.clone().run_until_cancelled_owned(machines.run()));
        tasks.spawn(stopping.clone().run_until_cancelled_owned(controllers.run()));
        let control_plane = ControlPlane {
            url: components.url.clone(),
            certificate_authority_pem: components.certificates.authority.clone(),
            jwks: components.jwks.clone(),
            admin: components.admin.clone(),
            dir: dir.clone(),
        };
        Ok((Cluster { components, agent, tasks, stopping, dir, _guard: guard }, control_plane))
    }
}

#[async_trait]
impl ControlPlanes for RealControlPlanes {
    async fn start(&self, cluster: NewControlPlane) -> anyhow::Result<ControlPlane> {
        self.stop(&cluster.account, &cluster.region, &cluster.name).await;
        let (running, control_plane) = self.bring_up(&cluster).await?;
        self.clusters.lock().await.insert((cluster.account, cluster.region, cluster.name), running);
        Ok(control_plane)
    }

    async fn stop(&self, account: &str, region: &str, name: &str) {
        let key = (account.to_owned(), region.to_owned(), name.to_owned());
        let cluster = self.clusters.lock().await.remove(&key);
        if let Some(cluster) = cluster {
            cluster.stop().await;
        }
    }
}

impl Cluster {
    async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.agent.stop().await;
        self.components.stop().await;
        if let Err(error) = tokio::fs::remove_dir_all(&self.dir).await {
            tracing::debug!(dir = %self.dir.display(), %error, "a cluster's folder stays");
        }
    }
}
