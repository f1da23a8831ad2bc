//! `slipway`: start a run, watch it, see where its time went and what it cost.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde_json::Value;
use slipway_cli::aws::Clients;
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
    }
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
