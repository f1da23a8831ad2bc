//! One cluster's etcd, API server, controller manager and scheduler, from nothing to ready.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::paths::Paths;
use crate::processes::{Child, spawn};

use super::NewControlPlane;
use super::certificates::{CertificateFiles, Certificates, Identity};

/// Ready takes 3 to 6 s on an idle machine with two cores (measured); this is for one that builds something beside.
const READY_WITHIN: Duration = Duration::from_mins(2);

/// How many lines of a component's log an error shows.
const LOG_LINES: usize = 15;

/// The controllers that a cluster needs whose nodes are not real and whose volumes nothing is written to.
const CONTROLLERS: [&str; 19] = [
    "clusterrole-aggregation-controller",
    "cronjob-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
    "taint-eviction-controller",
];

/// What has a Go program collect its garbage a quarter as often: they start up by making much of it, and memory is less
/// scarce here than time.
pub(crate) const FEWER_COLLECTIONS: (&str, &str) = ("GOGC", "400");

/// Where the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    paths: Paths,
    /// `KUBEBUILDER_ASSETS`: somebody's own etcd and kube-apiserver.
    assets: Option<PathBuf>,
}

impl Programs {
    /// Programs in the `bin` folder of the cache, or in `KUBEBUILDER_ASSETS` where that has them.
    pub(crate) fn new(cache: &Path) -> Self {
        Self { paths: Paths::new(cache.to_owned()), assets: std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) }
    }

    /// A command that ends when its standard input does.
    pub(crate) fn command(&self, name: &str) -> anyhow::Result<Command> {
        if let Some(foreign) = self.assets.as_ref().map(|assets| assets.join(name)).filter(|path| path.exists()) {
            return self.tethered(&foreign);
        }
        let mut command = Command::new(self.find(name)?);
        command.env("SLIPWAY_TETHER", "1").env(FEWER_COLLECTIONS.0, FEWER_COLLECTIONS.1);
        Ok(command)
    }

    /// A command for a program that knows nothing of tethers.
    pub(crate) fn tethered(&self, program: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(self.find("tether")?);
        command.arg(program);
        Ok(command)
    }

    /// A program of the cache.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.paths.program(name)
    }
}

/// A running control plane. Dropping it stops it.
pub(crate) struct Components {
    pub(crate) url: String,
    pub(crate) admin: kube::Client,
    pub(crate) certificates: Certificates,
    pub(crate) jwks: Value,
    pub(crate) server_version: String,
    supervisor: Supervisor,
}

impl Components {
    /// Starts all components in `dir`, which is made, and waits until they are ready.
    pub(crate) async fn start(programs: &Programs, cluster: &NewControlPlane, dir: &Path) -> anyhow::Result<Self> {
        let range: ipnet::Ipv4Net = cluster.service_cidr.parse().with_context(|| {
            format!("the service range {} is not an IPv4 network like 172.20.0.0/16", cluster.service_cidr)
        })?;
        let service_address = range.hosts().next().unwrap_or(Ipv4Addr::LOCALHOST);
        let certificates = tokio::task::spawn_blocking(move || Certificates::generate(service_address)).await??;
        let mut attempt = 1;
        loop {
            match Self::attempt(programs, cluster, dir, certificates.clone()).await {
                // A port is only known to be free until somebody else takes it.
                Err(error) if attempt < 3 && format!("{error:#}").contains("address already in use") => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn attempt(
        programs: &Programs,
        cluster: &NewControlPlane,
        dir: &Path,
        certificates: Certificates,
    ) -> anyhow::Result<Self> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot empty {}", dir.display()));
            }
            _ => {}
        }
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let files = certificates.write(&dir.join("pki"))?;
        let (etcd_port, port) = (free_port()?, free_port()?);
        let url = format!("https://127.0.0.1:{port}");
        let kubeconfig = |file: &str, identity: &Identity| -> anyhow::Result<(Value, PathBuf)> {
            let value = kubeconfig(&url, &certificates.authority, identity);
            let path = dir.join(file);
            std::fs::write(&path, value.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
            Ok((value, path))
        };
        let (admin, _) = kubeconfig("admin.kubeconfig", &certificates.admin)?;
        let (_, manager) = kubeconfig("controller-manager.kubeconfig", &certificates.controller_manager)?;
        let (_, scheduler) = kubeconfig("scheduler.kubeconfig", &certificates.scheduler)?;
        let webhook = dir.join("token-webhook.kubeconfig");
        std::fs::write(&webhook, token_webhook(&cluster.token_webhook_url).to_string())?;
        let audit = Audit { policy: dir.join("audit-policy.json"), log: logs.join(AUDIT_LOG) };
        std::fs::write(&audit.policy, audit_policy().to_string())?;

        let (mut supervisor, mut ended) = Supervisor::new(format!("{}/{}", cluster.region, cluster.name), logs);
        supervisor.start("etcd", programs, etcd_flags(dir, etcd_port))?;
        supervisor.start(
            "kube-apiserver",
            programs,
            api_server_flags(cluster, &files, &webhook, &audit, etcd_port, port),
        )?;
        let admin = client(admin).await?;
        // Without the admin's client, which would log each refusal as an error.
        let authority = reqwest::Certificate::from_pem(certificates.authority.as_bytes())?;
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([authority]).build()?;
        let ready = async {
            until(|| answers(&http, &url, "/livez")).await;
            // Not before: the controller manager gives the API server ten seconds and ends.
            supervisor.start("kube-controller-manager", programs, controller_manager_flags(&files, &manager))?;
            supervisor.start("kube-scheduler", programs, scheduler_flags(&scheduler))?;
            until(|| answers(&http, &url, "/readyz")).await;
            let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "default");
            until(|| async { accounts.get("default").await.is_ok() }).await;
            anyhow::Ok(())
        };
        let outcome = tokio::select! {
            outcome = ready => outcome,
            name = ended.recv() => Err(anyhow!("{} ended before the cluster was ready", name.unwrap_or("a component"))),
            () = tokio::time::sleep(READY_WITHIN) => Err(anyhow!("not ready within {} s", READY_WITHIN.as_secs())),
        };
        if let Err(error) = outcome {
            bail!("cannot start the control plane of {}: {error:#}\n{}", cluster.name, supervisor.last_words());
        }
        let jwks = admin.request_text(http::Request::get("/openid/v1/jwks").body(Vec::new())?).await?;
        let server_version = admin.apiserver_version().await?.git_version;
        Ok(Self { url, admin, certificates, jwks: serde_json::from_str(&jwks)?, server_version, supervisor })
    }

    /// Kills everything and waits until it is gone.
    pub(crate) async fn stop(self) {
        self.supervisor.stop().await;
    }
}

/// Keeps the components' processes, each in a task that notices its end.
struct Supervisor {
    cluster: String,
    logs: PathBuf,
    names: Vec<&'static str>,
    tasks: tokio::task::JoinSet<()>,
    stopping: CancellationToken,
    _guard: DropGuard,
    ended: mpsc::Sender<&'static str>,
}

impl Supervisor {
    /// A supervisor, and where it says which component ended by itself.
    fn new(cluster: String, logs: PathBuf) -> (Self, mpsc::Receiver<&'static str>) {
        let stopping = CancellationToken::new();
        let (ended, ends) = mpsc::channel(4);
        let supervisor = Self {
            cluster,
            logs,
            names: Vec::new(),
            tasks: tokio::task::JoinSet::new(),
            _guard: stopping.clone().drop_guard(),
            stopping,
            ended,
        };
        (supervisor, ends)
    }

    fn start(&mut self, name: &'static str, programs: &Programs, flags: Vec<OsString>) -> anyhow::Result<()> {
        let mut command = programs.command(name)?;
        command.args(flags);
        let mut child: Child = spawn(name, command, &self.log(name))?;
        let (cluster, stopping, ended) = (self.cluster.clone(), self.stopping.clone(), self.ended.clone());
        self.names.push(name);
        self.tasks.spawn(async move {
            tokio::select! {
                status = child.wait() => {
                    tracing::error!(cluster, component = name, ?status, "a component of a control plane ended by itself");
                    let _ = ended.send(name).await;
                }
                // SIGTERM would take up to 15 s (measured), and nothing here is worth saving.
                () = stopping.cancelled() => {
                    if let Err(error) = child.kill().await {
                        tracing::warn!(cluster, component = name, %error, "a component may have stayed");
                    }
                }
            }
        });
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn last_words(&self) -> String {
        let mut words = String::new();
        for name in &self.names {
            let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            let _ = writeln!(words, "--- {name}, last lines of {}\n{last}", self.log(name).display());
        }
        words
    }

    async fn stop(mut self) {
        self.stopping.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The API server's record of who changed what, a JSON line each, among the cluster's logs.
const AUDIT_LOG: &str = "audit.jsonl";

/// Where the API server is told what to record, and where it does.
struct Audit {
    policy: PathBuf,
    log: PathBuf,
}

/// What those change who log in with IAM: functions and people. Controllers, nodes and pods would fill a disk, and
/// questions and tokens change nothing. The cloud's own users are left out by name: whoever is cluster admin by an access
/// policy is in their group, `system:masters`.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "None", "verbs": ["get", "list", "watch"] },
            { "level": "None", "userGroups": ["system:nodes", "system:serviceaccounts"] },
            { "level": "None", "users": [
                "kubernetes-admin", "kube-apiserver-kubelet-client", "system:kube-controller-manager",
                "system:kube-scheduler", "system:apiserver",
            ] },
            { "level": "None", "resources": [
                { "group": "authentication.k8s.io" },
                { "group": "authorization.k8s.io" },
                { "group": "", "resources": ["serviceaccounts/token"] },
            ] },
            { "level": "Metadata" },
        ],
    })
}

fn etcd_flags(dir: &Path, port: u16) -> Vec<OsString> {
    let client = format!("http://127.0.0.1:{port}");
    vec![
        flag("data-dir", dir.join("etcd")),
        flag("listen-client-urls", &client),
        flag("advertise-client-urls", &client),
        // The only member has no peers; any port will do.
        flag("listen-peer-urls", "http://127.0.0.1:0"),
        flag("log-level", "warn"),
        // Its data don't outlive the process.
        flag("unsafe-no-fsync", "true"),
    ]
}

fn api_server_flags(
    cluster: &NewControlPlane,
    files: &CertificateFiles,
    webhook: &Path,
    audit: &Audit,
    etcd_port: u16,
    port: u16,
) -> Vec<OsString> {
    vec![
        flag("etcd-servers", format!("http://127.0.0.1:{etcd_port}")),
        flag("bind-address", "127.0.0.1"),
        flag("secure-port", port.to_string()),
        flag("advertise-address", "127.0.0.1"),
        // EndpointSlices refuse loopback addresses, so the service `kubernetes` has no endpoints.
        flag("endpoint-reconciler-type", "none"),
        flag("service-cluster-ip-range", &cluster.service_cidr),
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("allow-privileged", "true"),
        flag("profiling", "false"),
        flag("tls-cert-file", files.path("server.crt")),
        flag("tls-private-key-file", files.path("server.key")),
        flag("client-ca-file", files.path("ca.crt")),
        flag("service-account-issuer", &cluster.issuer),
        flag("service-account-jwks-uri", format!("{}/keys", cluster.issuer)),
        flag("service-account-signing-key-file", files.path("service-account.key")),
        flag("service-account-key-file", files.path("service-account.pub")),
        // The identity webhook asks for a day; a pod that lives longer gets a new one.
        flag("service-account-max-token-expiration", "48h"),
        flag("kubelet-certificate-authority", files.path("ca.crt")),
        flag("kubelet-client-certificate", files.path("kubelet-client.crt")),
        flag("kubelet-client-key", files.path("kubelet-client.key")),
        // Nodes show the private address that EC2 gave them; where their kubelet really listens is `localhost`.
        flag("kubelet-preferred-address-types", "ExternalDNS"),
        flag("audit-policy-file", &audit.policy),
        flag("audit-log-path", &audit.log),
        flag("authentication-token-webhook-config-file", webhook),
        flag("authentication-token-webhook-version", "v1"),
        flag("authentication-token-webhook-cache-ttl", "5s"),
    ]
}

fn controller_manager_flags(files: &CertificateFiles, kubeconfig: &Path) -> Vec<OsString> {
    vec![
        flag("kubeconfig", kubeconfig),
        flag("controllers", CONTROLLERS.join(",")),
        flag("leader-elect", "false"),
        flag("use-service-account-credentials", "false"),
        flag("service-account-private-key-file", files.path("service-account.key")),
        flag("root-ca-file", files.path("ca.crt")),
        flag("node-monitor-period", "1s"),
        flag("secure-port", "0"),
        flag("kube-api-qps", "200"),
        flag("kube-api-burst", "400"),
        flag("profiling", "false"),
    ]
}

fn scheduler_flags(kubeconfig: &Path) -> Vec<OsString> {
    vec![
        flag("kubeconfig", kubeconfig),
        flag("leader-elect", "false"),
        flag("secure-port", "0"),
        flag("kube-api-qps", "200"),
        flag("kube-api-burst", "400"),
        flag("profiling", "false"),
    ]
}

fn flag(name: &str, value: impl AsRef<std::ffi::OsStr>) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value);
    flag
}

fn kubeconfig(url: &str, authority: &str, identity: &Identity) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "cluster", "cluster": {
            "server": url,
            "certificate-authority-data": BASE64_STANDARD.encode(authority),
        } }],
        "users": [{ "name": "user", "user": {
            "client-certificate-data": BASE64_STANDARD.encode(&identity.certificate),
            "client-key-data": BASE64_STANDARD.encode(&identity.key),
        } }],
        "contexts": [{ "name": "context", "context": { "cluster": "cluster", "user": "user" } }],
        "current-context": "context",
    })
}

fn token_webhook(url: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "webhook", "cluster": { "server": url } }],
        "users": [{ "name": "api-server", "user": {} }],
        "contexts": [{ "name": "context", "context": { "cluster": "webhook", "user": "api-server" } }],
        "current-context": "context",
    })
}

async fn client(kubeconfig: Value) -> anyhow::Result<kube::Client> {
    let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // Whatever the caller's environment says: the cluster is on loopback.
    config.proxy_url = None;
    Ok(kube::Client::try_from(config)?)
}

/// Whether a health endpoint says yes; anybody may ask.
async fn answers(http: &reqwest::Client, url: &str, path: &str) -> bool {
    http.get(format!("{url}{path}")).send().await.is_ok_and(|answer| answer.status().is_success())
}

/// Asks until the answer is yes; the caller bounds the time.
async fn until<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    while !condition().await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}
