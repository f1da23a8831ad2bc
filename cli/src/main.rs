//! `slipway`: start a run, watch it, see where its time went and what it cost.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use slipway_cli::aws::Clients;
use slipway_cli::findings::{self, Audit, Sweep};
use slipway_cli::live::{Lines, Show, Table};
use slipway_cli::progress::Progress;
use slipway_cli::report;
use slipway_statemachine::prices::Prices;

/// How often the history is asked for.
const EVERY: Duration = Duration::from_millis(500);

/// Runs of Slipway's state machines, as a person sees them. Credentials, region and endpoint come from the environment.
#[derive(Parser)]
#[command(name = "slipway", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a machine with a spec, watches it, and reports; exit code 0 if it succeeds, 1 if it fails
    Run {
        /// The state machine's ARN
        machine_arn: String,
        /// The machine's input, JSON or YAML
        #[arg(long)]
        spec: PathBuf,
        /// How many times faster than on AWS waits pass there (the local cloud's --speed)
        #[arg(long)]
        speed: Option<f64>,
    },
    /// Shows an execution's progress until it ends; exit code 0 if it succeeds, 1 if it fails
    Watch {
        /// The execution's ARN
        execution_arn: String,
    },
    /// Shows where an execution's time went, its critical path and its cost
    Timeline {
        /// The execution's ARN
        execution_arn: String,
        /// How many times faster than on AWS waits passed there (the local cloud's --speed)
        #[arg(long)]
        speed: Option<f64>,
    },
    /// Lists what still exists for a cluster, or in the account for clusters that nobody looks after; exit code 0 if
    /// that is nothing, 1 if it is something
    Audit {
        /// The cluster's name; the whole account and region without one
        name: Option<String>,
        /// Also the clusters that are looked after
        #[arg(long)]
        all: bool,
        /// A network that was kept is nothing to report
        #[arg(long)]
        keep_network: bool,
    },
    /// Lists what a sweep would remove; removes it if everything is said that the deployment asks for
    Sweep {
        /// Only this cluster's
        name: Option<String>,
        /// Also the clusters that are looked after
        #[arg(long)]
        all: bool,
        /// Networks stay
        #[arg(long)]
        keep_network: bool,
        /// Removes; needs --account and --name-pattern, and an account that the deployment allows
        #[arg(long, requires_all = ["account", "name_pattern"])]
        remove: bool,
        /// The account's number, as a confirmation
        #[arg(long)]
        account: Option<String>,
        /// Clusters whose names fit it: * is any characters, ? one
        #[arg(long)]
        name_pattern: Option<String>,
        /// The ARN of something that may go although it bears no tag of Slipway's; may be said several times
        #[arg(long = "arn")]
        arns: Vec<String>,
    },
    /// Takes a cluster away and audits what is left; exit code 0 if that is nothing, 1 otherwise
    Down {
        /// The cluster's name
        name: Option<String>,
        /// The spec that it was made with, instead of its name
        #[arg(long, conflicts_with = "name", required_unless_present = "name")]
        spec: Option<PathBuf>,
        /// The network goes, too
        #[arg(long)]
        network: bool,
        /// Load balancers and volumes that workloads hold go, too; without it they end the teardown
        #[arg(long)]
        workloads: bool,
        /// The control plane's log group goes, too
        #[arg(long)]
        log_group: bool,
        /// How many times faster than on AWS waits pass there (the local cloud's --speed)
        #[arg(long)]
        speed: Option<f64>,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut out = io::stdout();
    match run(Arguments::parse().command, &mut out).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nothing is left to tell it to if stderr is closed too.
            let _ = writeln!(io::stderr(), "slipway: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the execution went well, or is still on its way.
async fn run(command: Command, out: &mut impl Write) -> anyhow::Result<bool> {
    let clients = Clients::from_environment().await;
    match command {
        Command::Run { machine_arn, spec, speed } => {
            let input = read_spec(&spec)?;
            let execution_arn = clients.start(&machine_arn, &input).await?;
            writeln!(out, "started {execution_arn}")?;
            let progress = watch(&clients, &execution_arn).await?;
            writeln!(out)?;
            timeline(&clients, &progress, speed, out).await?;
            writeln!(out)?;
            report::ending(out, &progress)?;
            Ok(progress.succeeded())
        }
        Command::Watch { execution_arn } => {
            let progress = watch(&clients, &execution_arn).await?;
            report::ending(out, &progress)?;
            Ok(progress.succeeded())
        }
        Command::Timeline { execution_arn, speed } => {
            let progress = Progress::of(&clients.history(&execution_arn).await?);
            timeline(&clients, &progress, speed, out).await?;
            Ok(progress.end.is_none() || progress.succeeded())
        }
        Command::Audit { name, all, keep_network } => {
            let wishes = json!({ "all": all, "network": fate(!keep_network) });
            audit(&clients, name.as_deref(), wishes, out).await
        }
        Command::Sweep { name, all, keep_network, remove, account, name_pattern, arns } => {
            let input = json!({
                "dryRun": !remove, "account": account, "namePattern": name_pattern, "arns": arns, "name": name,
                "all": all, "network": fate(!keep_network),
            });
            findings::sweep(out, &Sweep::read(clients.ask("slipway-sweep", &input).await?)?)?;
            Ok(true)
        }
        Command::Down { name, spec, network, workloads, log_group, speed } => {
            let name = match (name, spec) {
                (Some(name), _) => name,
                (None, spec) => {
                    let spec = read_spec(&spec.unwrap_or_default())?;
                    spec["name"].as_str().context("the spec has no name")?.to_owned()
                }
            };
            let workloads = if workloads { "delete" } else { "refuse" };
            let input = json!({
                "name": name, "network": fate(network), "workloads": workloads, "logGroup": fate(log_group),
            });
            let execution_arn = clients.start(&clients.machine("slipway-teardown").await?, &input).await?;
            writeln!(out, "started {execution_arn}")?;
            let progress = watch(&clients, &execution_arn).await?;
            timeline(&clients, &progress, speed, out).await?;
            report::ending(out, &progress)?;
            // What was to stay is no finding.
            let wishes = json!({ "network": fate(network), "logGroup": fate(log_group) });
            Ok(audit(&clients, Some(&name), wishes, out).await? && progress.succeeded())
        }
    }
}

/// Prints an audit; whether nothing is left.
async fn audit(clients: &Clients, name: Option<&str>, wishes: Value, out: &mut impl Write) -> anyhow::Result<bool> {
    let mut input = wishes;
    input["name"] = json!(name);
    let found = Audit::read(clients.ask("slipway-audit", &input).await?)?;
    findings::audit(out, name.unwrap_or("the account"), &found)?;
    Ok(found.total == 0)
}

const fn fate(goes: bool) -> &'static str {
    if goes { "delete" } else { "keep" }
}

fn read_spec(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the spec {}", path.display()))?;
    let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    let parsed = if yaml {
        serde_saphyr::from_str(&text).map_err(anyhow::Error::from)
    } else {
        serde_json::from_str(&text).map_err(anyhow::Error::from)
    };
    parsed.with_context(|| format!("the spec {} cannot be read; correct it", path.display()))
}

async fn watch(clients: &Clients, execution_arn: &str) -> anyhow::Result<Progress> {
    let stdout = io::stdout();
    let mut show: Box<dyn Show> = if stdout.is_terminal() {
        Box::new(Table::new(stdout, std::env::var_os("NO_COLOR").is_none()))
    } else {
        Box::new(Lines::new(stdout))
    };
    loop {
        let progress = Progress::of(&clients.history(execution_arn).await?);
        show.show(&progress, now())?;
        if progress.end.is_some() {
            return Ok(progress);
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn timeline(
    clients: &Clients,
    progress: &Progress,
    speed: Option<f64>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let prices = Prices::published().map_err(anyhow::Error::msg)?;
    let rows = match clients.step_rows(progress).await {
        Ok(rows) => rows,
        Err(error) => {
            writeln!(out, "(without the state table: {error:#})")?;
            BTreeMap::new()
        }
    };
    report::write(out, progress, &rows, &prices, speed)?;
    Ok(())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
