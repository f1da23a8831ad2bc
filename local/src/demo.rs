//! `make demo`: the local cloud, one provision from one event, the cluster as kubectl sees it, and its teardown.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// What the demo is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {
    /// How many times faster than AWS simulated waits pass.
    #[arg(long, default_value_t = 60.0)]
    pub speed: f64,
    /// The ClusterSpec to provision.
    #[arg(long, default_value = "examples/innovate-dev.json")]
    pub spec: PathBuf,
    /// Leave the cloud running until `make stop`.
    #[arg(long)]
    pub keep: bool,
}

/// How long the local cloud may take until its template is deployed.
const CLOUD_STARTS_WITHIN: Duration = Duration::from_mins(3);
/// A workload with one pod of each architecture.
const WORKLOAD: &str = include_str!("../../examples/hello.yaml");

/// Runs the demo to its end.
///
/// # Errors
/// What failed first, in words for a person. The cloud is stopped in any case, unless it is to be kept.
pub async fn run(options: &DemoOptions, home: &Path, cache: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let spec: serde_json::Value = serde_json::from_slice(
        &std::fs::read(&options.spec).with_context(|| format!("cannot read the spec {}", options.spec.display()))?,
    )
    .with_context(|| format!("{} is not JSON", options.spec.display()))?;
    let name = spec["name"].as_str().unwrap_or_default().to_owned();

    let started = Instant::now();
    let (cloud, env) = start_cloud(options, home).await?;
    let mut demo = Demo { env, home, cache, name, cloud_ready_after: started.elapsed() };
    let outcome = tokio::select! {
        outcome = demo.show(options, out) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match cloud {
        // Standard input closes with the handle, and the cloud ends with it; waiting shows that it did.
        Some(mut child) => {
            drop(child.stdin.take());
            child.wait().await?;
        }
        None if outcome.is_ok() => writeln!(
            out,
            "\nThe cloud keeps running until `make stop`. In this folder:\n\n  source {}",
            home.join("cloud.env").display()
        )?,
        None => writeln!(out, "\nThe cloud keeps running, for a look at what went wrong, until `make stop`.")?,
    }
    outcome
}

/// Starts the local cloud as a process of its own: tethered to this one, or on its own feet when kept.
async fn start_cloud(options: &DemoOptions, home: &Path) -> anyhow::Result<(Option<Child>, BTreeMap<String, String>)> {
    let env_file = home.join("cloud.env");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("up").arg("--speed").arg(options.speed.to_string());
    if options.keep {
        let status = command.arg("--detach").stdin(Stdio::null()).status().await?;
        if !status.success() {
            bail!("the local cloud did not start");
        }
        return Ok((None, read_env(&env_file)?));
    }
    match std::fs::remove_file(&env_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // Its own process group: Ctrl-C reaches the demo alone, which then ends the cloud in order.
    let mut child = command.arg("--tethered").stdin(Stdio::piped()).process_group(0).spawn()?;
    let waited = Instant::now();
    while !env_file.exists() {
        if let Some(status) = child.try_wait()? {
            bail!("the local cloud did not start ({status})");
        }
        if waited.elapsed() > CLOUD_STARTS_WITHIN {
            bail!("the local cloud did not start within {} s", CLOUD_STARTS_WITHIN.as_secs());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    }
    Ok((Some(child), read_env(&env_file)?))
}

/// Reads `export NAME='value'` lines.
fn read_env(file: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect())
}

struct Demo<'a> {
    env: BTreeMap<String, String>,
    home: &'a Path,
    cache: &'a Path,
    name: String,
    cloud_ready_after: Duration,
}

impl Demo<'_> {
    async fn show(&mut self, options: &DemoOptions, out: &mut impl Write) -> anyhow::Result<()> {
        let region = self.env.get("AWS_REGION").context("the cloud's environment names no AWS_REGION")?.clone();
        let account = self.env.get("SLIPWAY_ACCOUNT").context("the cloud's environment names no account")?.clone();
        let machine = |name: &str| format!("arn:aws:states:{region}:{account}:stateMachine:slipway-{name}");
        let provisioned = self.execute(&machine("provision"), &options.spec, options.speed).await?;

        let kubeconfig = self.home.join("kubeconfig");
        let aws = self.cache.join("tools/bin/aws");
        let login = ["eks", "update-kubeconfig", "--name", &self.name, "--kubeconfig"];
        let text = self.output(self.command(&aws).args(login).arg(&kubeconfig)).await?;
        tracing::debug!(text, "kubeconfig");
        self.env.insert("KUBECONFIG".to_owned(), kubeconfig.display().to_string());

        let workload = self.home.join("hello.yaml");
        std::fs::write(&workload, WORKLOAD)?;
        self.kubectl(&["apply", "-f", &workload.display().to_string()]).await?;
        self.kubectl(&["wait", "--for=condition=Available", "deployment", "--all", "--timeout=90s"]).await?;
        let columns =
            "kubernetes.io/arch,karpenter.sh/nodepool,karpenter.sh/capacity-type,node.kubernetes.io/instance-type";
        let nodes = self.kubectl(&["get", "nodes", "--label-columns", columns]).await?;
        let pods = self.kubectl(&["get", "pods", "--all-namespaces", "--output", "wide"]).await?;
        writeln!(out, "\n$ kubectl get nodes -L {columns}\n{nodes}\n$ kubectl get pods -A -o wide\n{pods}")?;
        writeln!(
            out,
            "Local cloud ready after {:.0} s; from the event to Ready {:.0} s.\n\nLog in yourself:\n\n  source {}\n  aws eks update-kubeconfig --name {} --kubeconfig {kc}\n  KUBECONFIG={kc} kubectl get nodes",
            self.cloud_ready_after.as_secs_f64(),
            provisioned.as_secs_f64(),
            self.home.join("cloud.env").display(),
            self.name,
            kc = kubeconfig.display(),
        )?;
        if !options.keep {
            self.take_away(&machine("teardown"), options.speed, out).await?;
        }
        Ok(())
    }

    /// Takes the cluster and its network away again. The workload is in the way of nothing: it holds nothing in AWS.
    async fn take_away(&self, machine: &str, speed: f64, out: &mut impl Write) -> anyhow::Result<()> {
        let request = self.home.join("teardown.json");
        let wanted = serde_json::json!({ "name": self.name, "network": "delete" });
        std::fs::write(&request, wanted.to_string())?;
        writeln!(out, "\nAnd away with it:\n")?;
        let took = self.execute(machine, &request, speed).await?;
        writeln!(out, "\nTaken away in {:.0} s; nothing of {} is left.", took.as_secs_f64(), self.name)?;
        Ok(())
    }

    /// Runs a machine with the input of a file, its progress before the person's eyes; answers how long it took.
    async fn execute(&self, machine: &str, input: &Path, speed: f64) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let slipway = std::env::current_exe()?.with_file_name("slipway");
        let mut command = self.command(&slipway);
        command.args(["run", machine, "--speed", &speed.to_string(), "--spec"]).arg(input);
        if !command.status().await?.success() {
            bail!("the run of {machine} failed; its cause is above");
        }
        Ok(started.elapsed())
    }

    /// A program with the cloud's environment, which ends with the demo.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.envs(&self.env).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.output(self.command(&self.cache.join("bin/kubectl")).args(arguments)).await
    }

    async fn output(&self, command: &mut Command) -> anyhow::Result<String> {
        let output = command.stderr(Stdio::piped()).stdout(Stdio::piped()).output().await?;
        if !output.status.success() {
            bail!(
                "{} failed: {}\nIs the caller among access.admins of the spec?",
                command.as_std().get_program().display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_file_is_read_as_the_shell_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cloud.env");
        std::fs::write(&file, "# a comment\nexport AWS_REGION='eu-west-1'\nexport PATH='/a b:/c'\n").unwrap();
        let env = read_env(&file).unwrap();
        assert_eq!(env["AWS_REGION"], "eu-west-1");
        assert_eq!(env["PATH"], "/a b:/c");
        assert_eq!(env.len(), 2);
    }
}
