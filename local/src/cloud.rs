//! One local cloud: its folder, its processes, its gateway. Several live side by side, each with its own ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use slipway_states::api::{StepFunctions, StepFunctionsConfig};
use slipway_states::clock::ScaledClock;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::cloudformation::CloudFormation;
use crate::eks::auth::EksAuth;
use crate::eks::{Eks, EksConfig};
use crate::gateway::Gateway;
use crate::gateway::authorize::Authorizer;
use crate::gateway::call::{Dispatch, Service};
use crate::gateway::identify::{ADMIN_ACCESS_KEY, ADMIN_SECRET_KEY, Identities};
use crate::gateway::record::Record;
use crate::kubernetes::{
    ControlPlane, ControlPlanes, NewControlPlane, NodeAuthority, RealControlPlanes, RealControlPlanesConfig,
};
use crate::paths::Paths;
use crate::processes::{self, Child};
use crate::propagation::{Changes, Propagation};
use crate::services::backend::{MiniStack, Moto};
use crate::services::capacity::{self, Shortage};
use crate::services::deploy;
use crate::services::ec2::Ec2;
use crate::services::iam::Iam;
use crate::services::images;
use crate::services::pricing::Pricing;
use crate::services::proxy::{Proxy, ProxyConfig};
use crate::services::quotas::Quotas;
use crate::services::registry::Registry;
use crate::services::sqs::Sqs;
use crate::services::ssm::Ssm;
use crate::services::stacks::Stacks;
use crate::services::stepfunctions::{self, States, Tasks};
use crate::services::sts::{IssuerKeys, Sts};

/// The local cloud's account.
pub const ACCOUNT: &str = "111122223333";
/// The local cloud's region.
pub const REGION: &str = "eu-west-1";

/// Whether clusters get a real control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kubernetes {
    /// etcd, API server, controller-manager and scheduler for each cluster, and nodes for its instances.
    Real,
    /// None: creating a cluster fails. For tests of what comes before Kubernetes.
    None,
}

/// What a cloud is made of.
#[derive(Debug, Clone)]
pub struct CloudConfig {
    /// Where it keeps everything; `None` for a folder of its own below the system's temporary one.
    pub dir: Option<PathBuf>,
    /// How many times faster than AWS its waits pass; positive.
    pub speed: f64,
    /// Whether clusters are real.
    pub kubernetes: Kubernetes,
    /// The folder that set-up filled.
    pub cache: PathBuf,
    /// How long services take to hear of changes in IAM.
    pub propagation: Propagation,
    /// How many items a page of a list has at most, whoever asks, so that a test sees whether lists are read to their
    /// end; `None` for AWS's own sizes.
    pub page_size: Option<u32>,
}

impl CloudConfig {
    /// A cloud in a folder of its own, 60 times as fast as AWS, from the default cache.
    ///
    /// # Errors
    /// Where there is no place for a cache.
    pub fn new(kubernetes: Kubernetes) -> anyhow::Result<Self> {
        Ok(Self {
            dir: None,
            speed: 60.0,
            kubernetes,
            cache: Paths::default_cache()?,
            propagation: Propagation::default(),
            page_size: None,
        })
    }
}

/// A running cloud. Dropped, or with the process that holds it gone however it went, it leaves no process behind.
pub struct Cloud {
    dir: PathBuf,
    paths: Paths,
    speed: f64,
    address: SocketAddr,
    gateway: Arc<Gateway>,
    children: Vec<Child>,
    tasks: Vec<JoinHandle<()>>,
    /// Held for as long as it shall serve.
    proxy: Proxy,
    eks: Option<Arc<Eks>>,
    control_planes: Option<Arc<RealControlPlanes>>,
    changes: Arc<Changes>,
    /// Something failed whose traces are in the folder's logs: it stays until the next cloud sweeps it.
    telling: AtomicBool,
}

impl Cloud {
    /// Starts a cloud and waits until it answers.
    ///
    /// # Errors
    /// Where set-up is missing something (the text says how to get it), the folder belongs to a cloud that runs, or
    /// an emulator does not start (the text has its last lines).
    pub async fn start(config: CloudConfig) -> anyhow::Result<Self> {
        let paths = Paths::new(config.cache.clone());
        let python = paths.cloud_python()?;
        let dir = folder::claim(config.dir.as_deref())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen on loopback")?;
        let address = listener.local_addr().context("ask for the gateway's port")?;
        let secret = ulid::Ulid::generate().to_string();

        let identities = Identities::new(ACCOUNT, REGION, &secret);
        let gateway = Gateway::new(Arc::clone(&identities), Record::create(&dir.join("calls.jsonl"))?);
        // EKS needs the emulators, they the proxy, and the proxy EKS: it asks once EKS is there.
        let issuers: Arc<OnceLock<Weak<Eks>>> = Arc::default();
        let asked = Arc::clone(&issuers);
        let proxy = Proxy::start(ProxyConfig {
            dir: dir.clone(),
            issuers: Arc::new(move |path| asked.get()?.upgrade()?.issuer_document(path)),
            registry: Registry::open(&Paths::source().join("charts"), &config.cache.join("crds"))?.router(),
        })
        .await?;
        let changes = Arc::new(Changes::new(config.propagation, ScaledClock::new(config.speed)));
        let mut cloud = Self {
            dir,
            paths,
            speed: config.speed,
            proxy,
            eks: None,
            control_planes: None,
            changes,
            address,
            gateway,
            children: Vec::new(),
            tasks: Vec::new(),
            telling: AtomicBool::new(true),
        };
        let serving = Arc::clone(&cloud.gateway).serve(listener);
        cloud.tasks.push(tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the gateway stopped serving");
            }
        }));

        let mut moto = cloud.emulator(&python, "moto");
        let images = cloud.dir.join("images.json");
        images::write(&images).context("write the machine images")?;
        moto.env("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
            .env("MOTO_AMIS_PATH", &images)
            .env("SLIPWAY_SPEED", config.speed.to_string())
            .env("SLIPWAY_CAPACITY", cloud.dir.join(capacity::FILE));
        let mut ministack = cloud.emulator(&python, "ministack");
        let endpoint = cloud.endpoint();
        ministack
            .env("AUTH", "true")
            .env("BIND_HOST", "127.0.0.1")
            .env("MINISTACK_ACCOUNT_ID", ACCOUNT)
            .env("MINISTACK_REGION", REGION)
            .env("SFTP_ENABLED", "0")
            .env("IOT_MTLS_ENABLED", "0")
            .env("SLIPWAY_DOOR_SECRET", &secret)
            // From here on, what functions inherit.
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env("AWS_ENDPOINT_URL_STS", &endpoint)
            .env("HTTPS_PROXY", cloud.proxy.url())
            .env("NO_PROXY", "127.0.0.1,localhost")
            .env("SSL_CERT_FILE", cloud.proxy.certificates());
        let (moto_port, ministack_port) = (cloud.launch("moto", moto)?, cloud.launch("ministack", ministack)?);
        let moto = Moto::new(cloud.answering("moto", &moto_port).await?, config.page_size);
        let ministack = cloud.answering("ministack", &ministack_port).await?;
        let ministack = MiniStack::new(ministack, &secret, config.page_size);
        cloud.connect(&config, &moto, &ministack, &issuers)?;
        cloud.make_administrator().await?;
        cloud.telling.store(false, Ordering::Relaxed);
        Ok(cloud)
    }

    /// Puts the services behind the gateway.
    fn connect(
        &mut self,
        config: &CloudConfig,
        moto: &Moto,
        ministack: &MiniStack,
        issuers: &OnceLock<Weak<Eks>>,
    ) -> anyhow::Result<()> {
        let clock = ScaledClock::new(config.speed);
        let identities = self.gateway.identities();
        identities.ask(Arc::new(ministack.clone()));
        let changes = Arc::clone(&self.changes);
        let iam = Iam::new(moto.clone(), ministack.clone(), Arc::clone(&changes));
        let sts = Sts::new(Arc::clone(identities), Arc::new(iam.clone()), Arc::clone(&changes));
        self.gateway.authorize_by(Authorizer::new(Arc::new(iam.clone())));

        let tasks = Tasks::new(self.gateway.client("states.amazonaws.com", ACCOUNT, REGION));
        let engine = StepFunctions::new(StepFunctionsConfig {
            clock,
            tasks: Arc::new(tasks),
            account: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
        });
        let telling = stepfunctions::announce(engine.clone(), ministack.clone(), ACCOUNT.to_owned(), REGION.to_owned());
        self.tasks.push(tokio::spawn(telling));

        let eks = self.start_eks(config, &changes)?;
        let _ = issuers.set(Arc::downgrade(&eks));
        sts.trust_issuers(Arc::clone(&eks) as Arc<dyn IssuerKeys>);

        let routes = self.gateway.routes();
        let emulated: Arc<dyn Service> = Arc::new(moto.clone());
        routes.add("ec2", Ec2::new(Arc::clone(&emulated), Arc::new(iam.clone()), Arc::clone(&changes)));
        for service in ["tagging", "autoscaling", "elasticloadbalancing"] {
            routes.add(service, Arc::clone(&emulated));
        }
        let emulated: Arc<dyn Service> = Arc::new(ministack.clone());
        routes.add("sqs", Sqs::new(Arc::clone(&emulated), clock));
        for service in ["lambda", "dynamodb", "s3", "sns", "events", "scheduler", "logs", "monitoring", "kms"] {
            routes.add(service, Arc::clone(&emulated));
        }
        let engine_of_stacks = CloudFormation::new(Arc::clone(&self.gateway) as Arc<dyn Dispatch>, clock, None);
        routes.add("cloudformation", Arc::new(Stacks::new(engine_of_stacks, ministack.clone())));
        routes.add("ssm", Ssm::new(Arc::new(moto.clone())));
        routes.add("pricing", Arc::new(Pricing));
        routes.add("servicequotas", Arc::new(Quotas));
        routes.add("eks", Arc::clone(&eks) as Arc<dyn Service>);
        routes.add("eks-auth", EksAuth::new(eks));
        routes.add("iam", Arc::new(iam));
        routes.add("sts", sts);
        routes.add("states", Arc::new(States::new(engine)));
        Ok(())
    }

    fn start_eks(&mut self, config: &CloudConfig, changes: &Arc<Changes>) -> anyhow::Result<Arc<Eks>> {
        let clock = ScaledClock::new(config.speed);
        let control_planes: Arc<dyn ControlPlanes> = match config.kubernetes {
            Kubernetes::None => Arc::new(NoControlPlanes),
            Kubernetes::Real => {
                let real = RealControlPlanes::new(RealControlPlanesConfig {
                    cache: config.cache.clone(),
                    dir: self.dir.join("clusters"),
                    clock,
                    gateway: Arc::clone(&self.gateway) as Arc<dyn Dispatch>,
                    aws_endpoint: self.endpoint(),
                });
                self.control_planes = Some(Arc::clone(&real));
                real
            }
        };
        let aws = self.gateway.client("eks.amazonaws.com", ACCOUNT, REGION);
        let eks = Eks::new(EksConfig {
            aws,
            clock,
            cache: config.cache.clone(),
            control_planes,
            changes: Arc::clone(changes),
            page_size: config.page_size,
        })?;
        if let Some(real) = &self.control_planes {
            let authority: Arc<dyn NodeAuthority> = Arc::clone(&eks) as Arc<dyn NodeAuthority>;
            real.set_authority(Arc::downgrade(&authority));
        }
        self.eks = Some(Arc::clone(&eks));
        Ok(eks)
    }

    /// The administrator as an IAM user, so that others (access entries, trust policies) can name it.
    async fn make_administrator(&self) -> anyhow::Result<()> {
        let aws = self.gateway.client("iam.amazonaws.com", ACCOUNT, REGION);
        let user = ("UserName", "admin");
        aws.query("iam", "CreateUser", &[user]).await.context("make the administrator")?;
        let policy = ("PolicyArn", "arn:aws:iam::aws:policy/AdministratorAccess");
        aws.query("iam", "AttachUserPolicy", &[user, policy]).await.context("let the administrator do everything")?;
        Ok(())
    }

    /// A command that runs an emulator's wrapper, with the environment that both need.
    fn emulator(&self, python: &Path, name: &str) -> Command {
        let mut command = Command::new(python);
        command
            .arg(Paths::source().join(name).join("server.py"))
            .current_dir(&self.dir)
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.dir.join("home"))
            .env("TMPDIR", self.dir.join("tmp"))
            .env("LC_ALL", "C.UTF-8")
            .env("PYTHONUNBUFFERED", "1")
            .env("AWS_DEFAULT_REGION", REGION)
            .env("SLIPWAY_ANNOUNCE", self.dir.join(format!("run/{name}.port")));
        command
    }

    /// Starts an emulator; answers the file in which it will say its port.
    fn launch(&mut self, name: &str, command: Command) -> anyhow::Result<PathBuf> {
        let child = processes::spawn(name, command, &self.log(name))?;
        self.children.push(child);
        Ok(self.dir.join(format!("run/{name}.port")))
    }

    /// Waits for an emulator's port.
    async fn answering(&mut self, name: &str, announced: &Path) -> anyhow::Result<u16> {
        let patience = Duration::from_mins(1);
        let began = std::time::Instant::now();
        loop {
            if let Ok(port) = std::fs::read_to_string(announced) {
                return port.trim().parse().with_context(|| format!("read the port of {name}"));
            }
            let child = self.children.iter_mut().find(|child| child.name() == name);
            if let Some(child) = child
                && let Some(status) = child.ended()?
            {
                bail!("{name} ended with {status} before it answered:\n{}", child.last_words());
            }
            if began.elapsed() > patience {
                bail!("{name} did not answer within {patience:?}: see {}", self.log(name).display());
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Deploys the control plane's template, telling what it does line by line.
    ///
    /// # Errors
    /// Where the functions' binary or sam is missing, or the deployment fails.
    pub async fn deploy(&self, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
        let began = std::time::Instant::now();
        tell("deploying infra/template.yaml with sam");
        let bootstrap = Paths::bootstrap()?;
        let bucket = format!("slipway-deploy-{ACCOUNT}");
        self.make_bucket(&bucket).await?;
        let template = deploy::lay_out(&self.dir.join("build"), &bootstrap)?;
        let sam = self.paths.tool("sam")?;
        let home = self.dir.join("home");
        let parameters = deploy::parameters(self.speed);
        let deployed =
            deploy::deploy(&sam, &template, &parameters, &bucket, &self.env(), &home, &self.log("sam")).await;
        if let Err(error) = deployed {
            self.telling.store(true, Ordering::Relaxed);
            let aws = self.gateway.client("cloudformation.amazonaws.com", ACCOUNT, REGION);
            let reasons = deploy::reasons(&aws).await;
            let error = if reasons.is_empty() { error } else { anyhow::anyhow!("the stack failed:\n{reasons}") };
            return Err(error.context(format!("deploy; {} has more", self.log("sam").display())));
        }
        tell(&format!("deployed in {:.1} s", began.elapsed().as_secs_f64()));
        Ok(())
    }

    async fn make_bucket(&self, name: &str) -> anyhow::Result<()> {
        let aws = self.gateway.client("cloudformation.amazonaws.com", ACCOUNT, REGION);
        let mut call =
            crate::gateway::wire::outgoing(&aws, "s3", "CreateBucket", http::Method::PUT, &format!("/{name}"))
                .context("name the bucket")?;
        let place = format!(
            "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
        );
        call.body = bytes::Bytes::from(place);
        let answer = self.gateway.dispatch(call).await;
        match crate::gateway::wire::error_of(&answer) {
            Some(refusal) if refusal.code != "BucketAlreadyOwnedByYou" => {
                Err(refusal).with_context(|| format!("make the bucket {name}"))
            }
            _ => Ok(()),
        }
    }

    /// The environment by which AWS clients reach this cloud as its administrator.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let endpoint = self.endpoint();
        [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ENDPOINT_URL_STS", &endpoint),
            ("AWS_ACCESS_KEY_ID", ADMIN_ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", ADMIN_SECRET_KEY),
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("NO_PROXY", "127.0.0.1,localhost"),
            ("SLIPWAY_ACCOUNT", ACCOUNT),
            ("SLIPWAY_SPEED", &self.speed.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// The gateway's URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The gateway: its record, what was used of which role, its faults.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// From now on, EC2 is out of these, and of nothing else.
    ///
    /// # Errors
    /// Where the cloud's folder cannot be written.
    pub fn lack(&self, shortages: &[Shortage]) -> anyhow::Result<()> {
        capacity::write(&self.dir, shortages).context("say what EC2 is out of")
    }

    /// From now on, the account is in an organization with these service control policies beside `FullAWSAccess`; of
    /// none, it is in no organization.
    pub fn organize(&self, policies: Vec<serde_json::Value>) {
        self.gateway.organize(policies);
    }

    /// The cloud's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The ids of the processes that the cloud started itself.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }

    /// From now on services hear of changes in IAM with these delays, also of those made before.
    pub fn propagate(&self, propagation: Propagation) {
        self.changes.delay_by(propagation);
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("log/{name}.log"))
    }

    /// Where the tools that speak to this cloud are: sam, aws, kubectl.
    #[must_use]
    pub fn tools(&self) -> [PathBuf; 2] {
        ["tools/bin", "bin"].map(|below| self.paths.cache().join(below))
    }

    /// Ends the cloud: its processes, its ports, its folder.
    pub async fn stop(mut self) {
        if let Some(eks) = self.eks.take() {
            eks.stop().await;
        }
        if let Some(control_planes) = self.control_planes.take() {
            control_planes.stop_all().await;
        }
        for child in &mut self.children {
            if let Err(error) = child.kill().await {
                tracing::warn!(%error, "a process of the cloud may have stayed");
            }
        }
    }
}

/// How long children are waited for when nothing can be awaited.
const PATIENCE: Duration = Duration::from_secs(2);

impl Drop for Cloud {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.gateway.routes().clear();
        // Letting go of the children's tethers ends them, and theirs; what they still write would keep the folder.
        for child in &mut self.children {
            child.let_go();
        }
        let began = std::time::Instant::now();
        while self.children.iter_mut().any(|child| matches!(child.ended(), Ok(None))) && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        if !self.telling.load(Ordering::Relaxed) {
            folder::release(&self.dir);
        }
    }
}

/// For [`Kubernetes::None`]: no cluster becomes active.
struct NoControlPlanes;

#[async_trait]
impl ControlPlanes for NoControlPlanes {
    async fn start(&self, _cluster: NewControlPlane) -> anyhow::Result<ControlPlane> {
        bail!("this cloud was started without Kubernetes: `--kubernetes real` starts control planes")
    }

    async fn stop(&self, _account: &str, _region: &str, _name: &str) {}
}

/// The folders of clouds, and whether the cloud of a folder still lives.
pub mod folder {
    use std::path::{Path, PathBuf};

    use anyhow::{Context, bail};

    /// Who a folder belongs to: `<process id> <start time of the process>`, so that a reused id is told apart.
    const OWNER: &str = "owner";

    /// Makes a cloud's folder, empty but for the folders below it, after sweeping what dead clouds left.
    ///
    /// # Errors
    /// Where the folder belongs to a cloud that runs, or cannot be made.
    pub(super) fn claim(wanted: Option<&Path>) -> anyhow::Result<PathBuf> {
        let dir = if let Some(dir) = wanted {
            dir.to_owned()
        } else {
            let root = std::env::temp_dir().join("slipway-clouds");
            sweep(&root);
            root.join(ulid::Ulid::generate().to_string().to_lowercase())
        };
        if let Some(owner) = owner(&dir) {
            let process = owner.process;
            bail!("{} is the folder of a cloud that runs (process {process}): `make stop` ends it", dir.display());
        }
        // What is left here is a dead cloud's.
        release(&dir);
        for below in ["log", "run", "tmp", "home"] {
            let below = dir.join(below);
            std::fs::create_dir_all(&below)
                .with_context(|| format!("make {}: is there space, and may we write?", below.display()))?;
        }
        let process = std::process::id();
        let owner = format!("{process} {}", started(process).unwrap_or_default());
        std::fs::write(dir.join(OWNER), owner).context("claim the cloud's folder")?;
        dir.canonicalize().with_context(|| format!("find {}", dir.display()))
    }

    /// The process whose cloud lives in a folder.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Owner {
        /// Its id.
        pub process: u32,
        started: u64,
    }

    impl Owner {
        /// Whether it still runs.
        #[must_use]
        pub fn lives(&self) -> bool {
            started(self.process) == Some(self.started)
        }
    }

    /// Whose a folder is; `None` if that process is gone, or the folder is no cloud's.
    #[must_use]
    pub fn owner(dir: &Path) -> Option<Owner> {
        let text = std::fs::read_to_string(dir.join(OWNER)).ok()?;
        let (process, started) = text.split_once(' ')?;
        let owner = Owner { process: process.parse().ok()?, started: started.parse().ok()? };
        owner.lives().then_some(owner)
    }

    /// Removes a folder that is a cloud's.
    pub(super) fn release(dir: &Path) {
        if dir.join(OWNER).exists()
            && let Err(error) = std::fs::remove_dir_all(dir)
        {
            tracing::warn!(%error, dir = %dir.display(), "a cloud's folder may have stayed");
        }
    }

    fn sweep(root: &Path) {
        for dir in std::fs::read_dir(root).into_iter().flatten().flatten() {
            if owner(&dir.path()).is_none() {
                release(&dir.path());
            }
        }
    }

    /// When a process started, in the kernel's ticks since boot; `None` if there is no such process.
    fn started(process: u32) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name in brackets may contain anything; of what follows, the start is the twentieth field.
        stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::unwrap_used)]

        use super::*;

        #[test]
        fn a_folder_belongs_to_its_cloud_while_that_lives() {
            let root = tempfile::tempdir().unwrap();
            let dir = claim(Some(&root.path().join("cloud"))).unwrap();
            assert_eq!(owner(&dir).map(|owner| owner.process), Some(std::process::id()));
            assert!(claim(Some(&dir)).is_err());
            std::fs::write(dir.join(OWNER), format!("{} 1", std::process::id())).unwrap();
            assert_eq!(owner(&dir), None);
            assert!(claim(Some(&dir)).is_ok());
            release(&dir);
            assert!(!dir.exists());
        }

        #[test]
        fn what_is_no_clouds_folder_is_left_alone() {
            let root = tempfile::tempdir().unwrap();
            std::fs::write(root.path().join("thesis.txt"), "x").unwrap();
            release(root.path());
            assert!(root.path().join("thesis.txt").exists());
        }
    }
}
