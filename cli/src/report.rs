//! The report of a run as text: a bar for each step, the critical path, transitions, Lambda time, cost.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::Value;
use slipway_statemachine::ErrorName;
use slipway_statemachine::plan::{Planned, Verb, monthly_cost_usd};
use slipway_statemachine::prices::Prices;

use crate::cost::{ClusterCost, RunCost};
use crate::live::duration;
use crate::progress::{Progress, Status};
use crate::timeline::{self, CriticalPath, Reason, Stretch};

/// Columns of a bar.
const WIDTH: usize = 48;

/// What the state table knows of a step beyond the history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepRow {
    /// Milliseconds inside the function's own code, all attempts.
    pub busy_millis: i64,
}

/// Writes the whole report.
///
/// `rows` are the run's STEP rows by step, empty where they cannot be read. `speed` says how many times faster than on
/// AWS waits passed, where they did.
///
/// # Errors
/// When the writer fails.
pub fn write(
    out: &mut impl Write,
    progress: &Progress,
    rows: &BTreeMap<String, StepRow>,
    prices: &Prices,
    speed: Option<f64>,
) -> io::Result<()> {
    let path = timeline::critical_path(progress);
    bars(out, progress, &path)?;
    writeln!(out)?;
    summary(out, progress, rows, &path, speed)?;
    costs(out, progress, prices)
}

fn bars(out: &mut impl Write, progress: &Progress, path: &CriticalPath) -> io::Result<()> {
    let total = progress.duration_millis();
    let end = duration(total);
    let left = format!("{:<28}0 s", "");
    writeln!(out, "{left}{end:>width$}", width = WIDTH.saturating_sub(3))?;
    for (index, step) in progress.steps.iter().enumerate() {
        let mark = if path.steps.contains(&index) { '*' } else { ' ' };
        let (from, to) = progress.span(step);
        let bar = bar(&timeline::stretches(progress, step), progress.started, total);
        let mut notes = Vec::new();
        if step.answers > step.retries + 1 {
            notes.push(format!("asked {} times", step.answers - step.retries));
        }
        if step.retries > 0 {
            notes.push(format!("tried again {} times", step.retries).replace(" 1 times", " once"));
        }
        match &step.status {
            Status::Failed { error, .. } => notes.push(format!("failed: {error}")),
            Status::Aborted => notes.push("stopped".to_owned()),
            _ => notes.extend(progress.note(step)),
        }
        let notes = notes.join(", ");
        let line = format!("{mark} {:<25} {bar} {:>10}  {notes}", step.name, duration(to - from));
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out, "{:<28}█ function  ░ waiting for AWS  ▒ before trying again  * critical path", "")
}

/// A bar over the whole run; what is shorter than a column still shows.
fn bar(stretches: &[Stretch], start: i64, total: i64) -> String {
    let width = i64::try_from(WIDTH).unwrap_or(i64::MAX);
    let column = |at: i64| usize::try_from((at - start).max(0) * width / total.max(1)).unwrap_or(0).min(WIDTH - 1);
    let mut cells: Vec<Option<Reason>> = vec![None; WIDTH];
    for stretch in stretches {
        let (from, to) = (column(stretch.from), column(stretch.to.max(stretch.from + 1) - 1));
        for cell in &mut cells[from..=to.max(from)] {
            // Where several share a column the rarest shows: functions before retries before waits.
            *cell = (*cell).max(Some(stretch.reason));
        }
    }
    let sign = |cell: &Option<Reason>| match cell {
        Some(Reason::Function) => '█',
        Some(Reason::Retry) => '▒',
        Some(Reason::Wait) => '░',
        None => ' ',
    };
    cells.iter().map(sign).collect()
}

fn summary(
    out: &mut impl Write,
    progress: &Progress,
    rows: &BTreeMap<String, StepRow>,
    path: &CriticalPath,
    speed: Option<f64>,
) -> io::Result<()> {
    let names: Vec<&str> =
        path.steps.iter().filter_map(|index| progress.steps.get(*index)).map(|step| step.name.as_str()).collect();
    let total = progress.duration_millis();
    let times = path.times;
    let rest = total - times.functions - times.waits - times.retries;
    writeln!(out, "critical path  {}", names.join(" > "))?;
    writeln!(
        out,
        "its time       {} = waits {} + functions {} + pauses before trying again {} + Step Functions {}",
        duration(total),
        duration(times.waits),
        duration(times.functions),
        duration(times.retries),
        duration(rest),
    )?;
    if let Some(speed) = speed {
        let millis = timeline::unscaled_millis(progress, speed);
        writeln!(out, "on AWS         about {}: here its waits passed {speed} times faster", duration(millis))?;
    }
    if !rows.is_empty() {
        let busy: i64 = rows.values().map(|row| row.busy_millis).sum();
        let around = timeline::total(progress).functions - busy;
        writeln!(
            out,
            "functions      {} in the steps' own code, {} around it (starts, Invoke, transport)",
            duration(busy),
            duration(around),
        )?;
    }
    Ok(())
}

fn costs(out: &mut impl Write, progress: &Progress, prices: &Prices) -> io::Result<()> {
    let run = RunCost::of(progress, prices);
    writeln!(out, "transitions    {} = ${:.4}", run.transitions, run.transitions_dollars)?;
    writeln!(
        out,
        "Lambda         {} calls, {:.1} s at {} MB on arm64 = ${:.4}",
        run.invocations, run.lambda_seconds, prices.lambda_megabytes, run.lambda_dollars
    )?;
    let spec = progress.opened.as_ref().and_then(|opened| opened.get("spec")).unwrap_or(&progress.input);
    let cluster = ClusterCost::of(spec, prices);
    let lines: Vec<String> = cluster
        .lines
        .iter()
        .map(|(what, dollars)| match dollars {
            Some(dollars) => format!("{what} ${dollars:.3}"),
            None => format!("{what} (no published price known here)"),
        })
        .collect();
    writeln!(out, "cost           ${:.4} for the run; the cluster ${:.3} an hour", run.dollars(), cluster.dollars())?;
    writeln!(out, "               {}; nodes that Karpenter adds come on top", lines.join(" + "))?;
    writeln!(out, "               prices of {} without free tiers", prices.date)
}

/// Writes what a provision would do: what speaks against it, then the changes, then what is kept, as a number.
fn plan(out: &mut impl Write, output: &Value) -> io::Result<()> {
    let text = |thing: &Value, name: &str| thing[name].as_str().unwrap_or_default().to_owned();
    for finding in output["findings"].as_array().into_iter().flatten() {
        let [severity, field, evidence, remedy] =
            ["severity", "field", "evidence", "remedy"].map(|name| text(finding, name));
        writeln!(out, "{severity}: {field}: {evidence} {remedy}")?;
    }
    let planned: Vec<Planned> = serde_json::from_value(output["planned"].clone()).unwrap_or_default();
    for thing in &planned {
        let sign = match thing.verb {
            Verb::Create => "+",
            Verb::Change => "~",
            Verb::Delete => "-",
            Verb::Keep => continue,
        };
        let cost = thing.monthly_cost_usd.map(|cost| format!("  ${cost:.2} a month")).unwrap_or_default();
        writeln!(out, "{sign} {} {}: {}{cost}", thing.kind, thing.name, thing.reason)?;
    }
    let count = |verb| planned.iter().filter(|thing| thing.verb == verb).count();
    let [create, change, delete, keep] = [Verb::Create, Verb::Change, Verb::Delete, Verb::Keep].map(count);
    writeln!(out, "{create} to create, {change} to change, {delete} to delete, {keep} to keep; nothing was changed")?;
    writeln!(out, "${:.2} a month, without what Karpenter adds", monthly_cost_usd(&planned))
}

/// Writes how a run ended: the error, its cause and where to read on, or what was made and how one logs in.
///
/// # Errors
/// When the writer fails.
pub fn ending(out: &mut impl Write, progress: &Progress) -> io::Result<()> {
    let Some(end) = &progress.end else { return writeln!(out, "the run goes on") };
    if end.status != "SUCCEEDED" {
        let error = end.error.as_deref().unwrap_or("no error name");
        writeln!(out, "{} with {error}", end.status)?;
        if let Some(cause) = &end.cause {
            writeln!(out, "{cause}")?;
        }
        // Steps name their page themselves; the machine's own errors do not.
        let page = format!("docs/runbook.md#{}", error.to_lowercase());
        let named = end.cause.as_ref().is_some_and(|cause| cause.contains(&page));
        if !named && ErrorName::ALL.iter().any(|name| name.as_str() == error) {
            writeln!(out, "Runbook: {page}")?;
        }
        return Ok(());
    }
    writeln!(out, "SUCCEEDED after {}", duration(progress.duration_millis()))?;
    if let Some(output) = end.output.as_ref().filter(|output| output.get("planned").is_some()) {
        return plan(out, output);
    }
    // After a teardown there is nothing to log in to.
    if end.output.as_ref().and_then(|output| output.pointer("/cluster/endpoint")).is_none() {
        return Ok(());
    }
    let cluster = progress.opened.as_ref().and_then(|opened| opened.get("cluster"));
    let text = |name: &str| cluster.and_then(|cluster| cluster.get(name)).and_then(|value| value.as_str());
    if let (Some(name), Some(region)) = (text("name"), text("region")) {
        writeln!(out, "Log in: aws eks update-kubeconfig --name {name} --region {region}")?;
    }
    Ok(())
}
