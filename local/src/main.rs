//! `slipway-local`: the local cloud from the command line.
#![allow(clippy::print_stdout, clippy::print_stderr)] // This is where the local cloud speaks to a person.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use slipway_local::cloud::{Cloud, CloudConfig, Kubernetes, folder};
use slipway_local::demo::{self, DemoOptions};
use slipway_local::paths::Paths;
use slipway_local::propagation::Propagation;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

/// The local cloud: AWS and EKS on one machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Starts a cloud with the control plane deployed and stays until it is interrupted.
    Up(Up),
    /// A cluster with a working Karpenter, from one event, and what kubectl sees of it.
    Demo(DemoOptions),
    /// Ends the cloud of a folder.
    Stop {
        /// The cloud's folder.
        #[arg(long, default_value = ".slipway/cloud")]
        dir: PathBuf,
    },
}

#[derive(clap::Args)]
struct Up {
    /// How many times faster than AWS its waits pass.
    #[arg(long, default_value_t = 60.0)]
    speed: f64,
    /// Whether clusters get a real control plane.
    #[arg(long, value_enum, default_value_t = Clusters::Real)]
    kubernetes: Clusters,
    /// Draws the delays (2 to 15 s, simulated) after which services believe a change in IAM.
    #[arg(long, default_value_t = Propagation::default().seed)]
    propagation_seed: u64,
    /// The cloud's folder.
    #[arg(long, default_value = ".slipway/cloud")]
    dir: PathBuf,
    /// Where the environment is written, as lines to `source`.
    #[arg(long, default_value = ".slipway/cloud.env")]
    env_file: PathBuf,
    /// Comes back as soon as the cloud is up; `slipway-local stop` ends it.
    #[arg(long)]
    detach: bool,
    /// Ends the cloud when standard input ends, so that it cannot outlive whoever started it.
    #[arg(long, conflicts_with = "detach")]
    tethered: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Clusters {
    Real,
    None,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match Arguments::parse().command {
        Task::Up(up) if up.detach => detached(&up).await,
        Task::Up(up) => foreground(&up).await,
        Task::Demo(options) => demonstrate(&options).await,
        Task::Stop { dir } => stop(&dir).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slipway-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a cloud until SIGINT or SIGTERM, or the end of the tether, also while it is still starting.
async fn foreground(up: &Up) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let tethered = up.tethered;
    let mut ended = pin!(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = end_of_input(), if tethered => {}
        }
    });
    let cloud = tokio::select! {
        cloud = start(up) => cloud?,
        () = &mut ended => return Ok(()),
    };
    ended.await;
    let _ = std::fs::remove_file(&up.env_file);
    cloud.stop().await;
    Ok(())
}

/// Waits until whoever started us lets go of our standard input.
async fn end_of_input() {
    let mut input = tokio::io::stdin();
    let mut said = [0; 1024];
    while matches!(input.read(&mut said).await, Ok(1..)) {}
}

async fn demonstrate(options: &DemoOptions) -> anyhow::Result<()> {
    let cache = Paths::default_cache()?;
    demo::run(options, Path::new(".slipway"), &cache, &mut std::io::stdout()).await
}

async fn start(up: &Up) -> anyhow::Result<Cloud> {
    let kubernetes = match up.kubernetes {
        Clusters::Real => Kubernetes::Real,
        Clusters::None => Kubernetes::None,
    };
    println!("starting the local cloud in {}", up.dir.display());
    let config = CloudConfig {
        dir: Some(up.dir.clone()),
        speed: up.speed,
        propagation: Propagation::seeded(up.propagation_seed),
        ..CloudConfig::new(kubernetes)?
    };
    let cloud = Cloud::start(config).await?;
    cloud.deploy(&|line| println!("{line}")).await?;
    let lines = exports(&cloud);
    print!("{lines}");
    // Written last, and at once: whoever sees the file may use the cloud.
    let unready = up.env_file.with_extension("unready");
    std::fs::write(&unready, lines).with_context(|| format!("write {}", unready.display()))?;
    std::fs::rename(&unready, &up.env_file).with_context(|| format!("write {}", up.env_file.display()))?;
    println!("the local cloud is up: `source {}` to use it", up.env_file.display());
    Ok(cloud)
}

/// The cloud's environment as lines for a shell, with the tools first in its path.
fn exports(cloud: &Cloud) -> String {
    let mut lines = String::new();
    for (name, value) in cloud.env() {
        let _ = writeln!(lines, "export {name}='{value}'");
    }
    let [tools, programs] = cloud.tools();
    let _ = writeln!(lines, "export PATH='{}:{}':\"$PATH\"", tools.display(), programs.display());
    lines
}

/// Starts a cloud in a process of its own and waits until it is up.
async fn detached(up: &Up) -> anyhow::Result<()> {
    if let Some(folder) = up.env_file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let _ = std::fs::remove_file(&up.env_file);
    let log = up.env_file.with_extension("log");
    let output = std::fs::File::create(&log).with_context(|| format!("write {}", log.display()))?;
    let program = std::env::current_exe().context("find the running program")?;
    let kubernetes = up.kubernetes.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut child = tokio::process::Command::new(program)
        .args(["up", "--speed", &up.speed.to_string(), "--kubernetes", &kubernetes])
        .args(["--propagation-seed", &up.propagation_seed.to_string(), "--dir"])
        .arg(&up.dir)
        .arg("--env-file")
        .arg(&up.env_file)
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone().context("share the log")?)
        .stderr(output)
        // Ctrl-C at this terminal is for us, not for it.
        .process_group(0)
        .spawn()
        .context("start the cloud")?;
    loop {
        if up.env_file.exists() {
            print!("{}", std::fs::read_to_string(&log).unwrap_or_default());
            return Ok(());
        }
        if let Some(status) = child.try_wait().context("look after the cloud")? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            anyhow::bail!("the cloud ended with {status}:\n{said}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn stop(dir: &Path) -> anyhow::Result<()> {
    let Some(owner) = folder::owner(dir) else {
        println!("nothing is running in {}", dir.display());
        return Ok(());
    };
    let process = owner.process;
    // The shell's own kill: there may be no program of that name.
    let told = std::process::Command::new("/bin/sh")
        .args(["-c", "kill \"$0\"", &process.to_string()])
        .status()
        .context("run kill")?;
    anyhow::ensure!(told.success(), "process {process} could not be told to end");
    let patience = std::time::Duration::from_secs(30);
    let began = std::time::Instant::now();
    while owner.lives() {
        anyhow::ensure!(began.elapsed() < patience, "process {process} did not end: `kill -9 {process}` ends it");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    println!("the local cloud is gone");
    Ok(())
}
