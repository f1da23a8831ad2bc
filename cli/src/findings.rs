//! What an audit found, and what a sweep would remove or left: tables for people.

use std::io::{self, Write};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;
use slipway_statemachine::Finding;

/// What the audit machine answers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// In the order in which they can be removed.
    pub findings: Vec<Finding>,
    /// How many there are; more than are listed, if there are very many.
    pub total: usize,
    /// US dollars a month, of those whose price is known.
    pub monthly_cost_usd: f64,
    /// How many have no known price.
    pub unpriced: usize,
}

/// What the sweep machine answers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sweep {
    /// Nothing was removed.
    pub dry_run: bool,
    /// What would go, in order.
    pub plan: Vec<Finding>,
    /// What was found and stays.
    pub skipped: Vec<Skipped>,
}

/// Something that was found and stays.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Skipped {
    /// Its ARN.
    pub arn: String,
    /// Why.
    pub because: String,
}

impl Audit {
    /// From a machine's output.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(output: Value) -> anyhow::Result<Self> {
        serde_json::from_value(output).context("the answer is no audit: is the deployed control plane of this release?")
    }
}

impl Sweep {
    /// From a machine's output.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(output: Value) -> anyhow::Result<Self> {
        serde_json::from_value(output).context("the answer is no sweep: is the deployed control plane of this release?")
    }
}

/// Writes an audit; `of` is whose: a cluster's name, or the account.
///
/// # Errors
/// When the writer fails.
pub fn audit(out: &mut impl Write, of: &str, audit: &Audit) -> io::Result<()> {
    if audit.total == 0 {
        return writeln!(out, "Audit of {of}: nothing is left.");
    }
    let things = if audit.total == 1 { "1 thing is".to_owned() } else { format!("{} things are", audit.total) };
    writeln!(out, "Audit of {of}: {things} left, ${:.2} a month{}.", audit.monthly_cost_usd, unknown(audit.unpriced))?;
    table(out, &audit.findings)?;
    more(out, audit.total.saturating_sub(audit.findings.len()))
}

/// Writes what a sweep would remove, or what it left.
///
/// # Errors
/// When the writer fails.
pub fn sweep(out: &mut impl Write, sweep: &Sweep) -> io::Result<()> {
    if sweep.plan.is_empty() {
        writeln!(out, "{}", if sweep.dry_run { "Nothing would be removed." } else { "Nothing is left to remove." })?;
    } else {
        let cost: f64 = sweep.plan.iter().filter_map(|finding| finding.monthly_cost_usd).sum();
        let unpriced = sweep.plan.iter().filter(|finding| finding.monthly_cost_usd.is_none()).count();
        let count = sweep.plan.len();
        writeln!(out, "A sweep would remove {count}, in this order, ${cost:.2} a month{}:", unknown(unpriced))?;
        table(out, &sweep.plan)?;
    }
    if !sweep.skipped.is_empty() {
        writeln!(out, "Stays:")?;
        for Skipped { arn, because } in &sweep.skipped {
            writeln!(out, "  {arn}: {because}")?;
        }
    }
    Ok(())
}

fn unknown(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" and {count} without a known price") }
}

fn more(out: &mut impl Write, count: usize) -> io::Result<()> {
    if count == 0 { Ok(()) } else { writeln!(out, "… and {count} more.") }
}

fn table(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    let heads = ["KIND", "NAME", "CLUSTER", "AGE", "$/MONTH", "BECAUSE", "REMOVED BY"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(heads).chain(findings.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..7).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn row(finding: &Finding) -> [String; 7] {
    [
        finding.kind.as_str().to_owned(),
        finding.name.clone(),
        finding.cluster.clone().unwrap_or_default(),
        finding.age_seconds.map(age).unwrap_or_default(),
        finding.monthly_cost_usd.map_or_else(|| "?".to_owned(), |cost| format!("{cost:.2}")),
        finding.because.clone(),
        finding.removed_by.clone(),
    ]
}

/// An age in its largest whole unit.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume() -> Value {
        json!({
            "arn": "arn:aws:ec2:eu-west-1:111122223333:volume/vol-1", "kind": "volume", "name": "vol-1",
            "ageSeconds": 7300, "cluster": "demo", "because": "its tag slipway:cluster is demo (available)",
            "monthlyCostUsd": 8.8, "removedBy": "teardown, or sweep", "tagged": true,
        })
    }

    fn written(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_empty_audit_says_so_in_one_line() {
        let empty = Audit::read(json!({"findings": [], "total": 0, "monthlyCostUsd": 0.0, "unpriced": 0})).unwrap();
        assert_eq!(written(|out| audit(out, "demo", &empty)), "Audit of demo: nothing is left.\n");
    }

    #[test]
    fn a_finding_is_a_row_with_age_cost_reason_and_remedy() {
        let found =
            Audit::read(json!({"findings": [volume()], "total": 3, "monthlyCostUsd": 8.8, "unpriced": 1})).unwrap();
        let text = written(|out| audit(out, "demo", &found));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Audit of demo: 3 things are left, $8.80 a month and 1 without a known price.");
        assert!(lines[1].starts_with("  KIND    NAME   CLUSTER  AGE  $/MONTH  BECAUSE"), "{text}");
        assert!(lines[2].starts_with("  volume  vol-1  demo     2h   8.80     its tag slipway:cluster is demo"));
        assert!(lines[2].ends_with("teardown, or sweep"));
        assert_eq!(lines[3], "… and 2 more.");
    }

    #[test]
    fn a_sweep_says_what_goes_and_what_stays() {
        let skipped = json!([{"arn": "arn:x", "because": "it does not bear the tag"}]);
        let dry = Sweep::read(json!({"dryRun": true, "plan": [volume()], "skipped": skipped})).unwrap();
        let text = written(|out| sweep(out, &dry));
        assert!(text.starts_with("A sweep would remove 1, in this order, $8.80 a month:\n"), "{text}");
        assert!(text.ends_with("Stays:\n  arn:x: it does not bear the tag\n"), "{text}");
        let done = Sweep { dry_run: false, plan: Vec::new(), skipped: Vec::new() };
        assert_eq!(written(|out| sweep(out, &done)), "Nothing is left to remove.\n");
    }

    #[test]
    fn ages_are_in_whole_units() {
        assert_eq!([90, 600, 7300, 260_000].map(age), ["90s", "10m", "2h", "3d"]);
    }
}
