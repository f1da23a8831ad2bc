//! One local cloud: its folder, its processes, its gateway. Several live side by side, each with its own ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use slipway_states::api::{StepFunctions, StepFunctionsConfig};
use slipway_states::clock::ScaledClock;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::cloudformation::CloudFormation;
use crate::gateway::Gateway;
use crate::gateway::authorize::Authorizer;
use crate::gateway::call::{Dispatch, Service};
use crate::gateway::identify::{ADMIN_ACCESS_KEY, ADMIN_SECRET_KEY, Identities};
use crate::gateway::record::Record;
use crate::paths::Paths;
use crate::processes::{self, Child};
use crate::services::backend::{MiniStack, Moto};
use crate::services::deploy;
use crate::services::iam::Iam;
use crate::services::stacks::Stacks;
use crate::services::stepfunctions::{self, States, Tasks};
use crate::services::sts::Sts;

/// The local cloud's account.
pub const ACCOUNT: &str = "111122223333";
/// The local cloud's region.
pub const REGION: &str = "eu-west-1";

/// Whether clusters get a real control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kubernetes {
    /// etcd, API server, controller-manager and scheduler for each cluster, and nodes for its instances.
    Real,
    /// None: EKS answers, but no endpoint does. For tests of what comes before Kubernetes.
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
}

impl CloudConfig {
    /// A cloud in a folder of its own, 60 times as fast as AWS, from the default cache.
    ///
    /// # Errors
    /// Where there is no place for a cache.
    pub fn new(kubernetes: Kubernetes) -> anyhow::Result<Self> {
        Ok(Self { dir: None, speed: 60.0, kubernetes, cache: Paths::default_cache()? })
    }
}

/// A running cloud. Dropped, or with the process that holds it gone however it went, it leaves no process behind.
pub struct Cloud {
    dir: PathBuf,
    paths: Paths,
    address: SocketAddr,
    gateway: Arc<Gateway>,
    children: Vec<Child>,
    tasks: Vec<JoinHandle<()>>,
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
        let mut cloud = Self {
            dir,
            paths,
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
        moto.env("MOTO_IAM_LOAD_MANAGED_POLICIES", "true");
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
            .env("NO_PROXY", "127.0.0.1,localhost");
        let (moto_port, ministack_port) = (cloud.launch("moto", moto)?, cloud.launch("ministack", ministack)?);
        let moto = Moto::new(cloud.answering("moto", &moto_port).await?);
        let ministack = MiniStack::new(cloud.answering("ministack", &ministack_port).await?, &secret);
        cloud.connect(&config, &moto, &ministack)?;
        cloud.telling.store(false, Ordering::Relaxed);
        Ok(cloud)
    }

    /// Puts the services behind the gateway.
    fn connect(&mut self, config: &CloudConfig, moto: &Moto, ministack: &MiniStack) -> anyhow::Result<()> {
        let clock = ScaledClock::new(config.speed);
        let identities = self.gateway.identities();
        identities.ask(Arc::new(ministack.clone()));
        let iam = Iam::new(moto.clone(), ministack.clone());
        let sts = Sts::new(Arc::clone(identities), iam.clone());
        self.gateway.authorize_by(Authorizer::create(Arc::new(iam.clone()), &self.dir.join("warnings.jsonl"))?);

        let tasks = Tasks::new(self.gateway.client("states.amazonaws.com", ACCOUNT, REGION));
        let engine = StepFunctions::new(StepFunctionsConfig {
            clock,
            tasks: Arc::new(tasks),
            account: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
        });
        let telling = stepfunctions::announce(engine.clone(), ministack.clone(), ACCOUNT.to_owned(), REGION.to_owned());
        self.tasks.push(tokio::spawn(telling));

        let routes = self.gateway.routes();
        for service in ["ec2", "ssm", "tagging", "autoscaling", "elasticloadbalancing"] {
            routes.add(service, Arc::new(moto.clone()));
        }
        let emulated: Arc<dyn Service> = Arc::new(ministack.clone());
        for service in ["lambda", "dynamodb", "s3", "sqs", "sns", "events", "scheduler", "logs", "monitoring", "kms"] {
            routes.add(service, Arc::clone(&emulated));
        }
        let engine_of_stacks = CloudFormation::new(Arc::clone(&self.gateway) as Arc<dyn Dispatch>, clock);
        routes.add("cloudformation", Arc::new(Stacks::new(engine_of_stacks, ministack.clone())));
        routes.add("iam", Arc::new(iam));
        routes.add("sts", sts);
        routes.add("states", Arc::new(States::new(engine)));
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
        let deployed = deploy::deploy(&sam, &template, &bucket, &self.env(), &home, &self.log("sam")).await;
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
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// The gateway's URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The gateway: its record, its warnings, its faults.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
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

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("log/{name}.log"))
    }

    /// Ends the cloud: its processes, its ports, its folder.
    pub async fn stop(mut self) {
        for child in &mut self.children {
            if let Err(error) = child.kill().await {
                tracing::warn!(%error, "a process of the cloud may have stayed");
            }
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.gateway.routes().clear();
        // Letting go of the children's tethers ends them, and theirs.
        self.children.clear();
        if !self.telling.load(Ordering::Relaxed) {
            folder::release(&self.dir);
        }
    }
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
            bail!("{} is the folder of a cloud that runs (process {owner}): `make stop` ends it", dir.display());
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

    /// The process whose cloud lives in a folder; `None` if it is dead or there is none.
    #[must_use]
    pub fn owner(dir: &Path) -> Option<u32> {
        let text = std::fs::read_to_string(dir.join(OWNER)).ok()?;
        let (process, start) = text.split_once(' ')?;
        let process: u32 = process.parse().ok()?;
        (started(process)?.to_string() == start).then_some(process)
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
            assert_eq!(owner(&dir), Some(std::process::id()));
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
