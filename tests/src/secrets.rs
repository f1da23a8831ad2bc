//! Tokens and keys are in pods' volumes and in memory, where they belong, and nowhere else.

use anyhow::ensure;
use slipway_karpenter::diagnosis::redact;

use crate::cloud::Deployed;

/// Searches everything that outlives a call: the state table, the histories of all executions, the cloud's record and
/// logs, among them those of the functions.
///
/// # Errors
/// Where a secret is, or that there was nothing to search.
pub async fn are_nowhere(deployed: &Deployed, cluster: &str) -> anyhow::Result<()> {
    let rows = deployed.rows(cluster).await?;
    ensure!(!rows.is_empty(), "the state table has no rows");
    for (key, row) in rows {
        clean(&format!("row {key}"), &row.to_string())?;
    }
    let states = aws_sdk_sfn::Client::new(&deployed.config);
    let mut executions = 0;
    for machine in states.list_state_machines().into_paginator().items().send().collect::<Result<Vec<_>, _>>().await? {
        let listed = states.list_executions().state_machine_arn(machine.state_machine_arn).into_paginator().items();
        for execution in listed.send().collect::<Result<Vec<_>, _>>().await? {
            executions += 1;
            let events =
                states.get_execution_history().execution_arn(&execution.execution_arn).into_paginator().items();
            for event in events.send().collect::<Result<Vec<_>, _>>().await? {
                clean(&execution.execution_arn, &format!("{event:?}"))?;
            }
        }
    }
    ensure!(executions > 0, "there are no executions");
    files(deployed)
}

/// The cloud's own files; those of clusters have pods' tokens.
fn files(deployed: &Deployed) -> anyhow::Result<()> {
    let mut open = vec![deployed.cloud.dir().to_owned()];
    let mut files = 0;
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder)?.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "clusters" {
                open.push(path);
            } else if path.is_file() && ["log", "jsonl", "json"].iter().any(|kind| name.ends_with(kind)) {
                let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
                // The record has access keys, which are names; what proves anything is a token.
                ensure!(!text.contains("eyJhbGciOi"), "{} has a token", path.display());
                ensure!(!text.contains("k8s-aws-v1."), "{} has a login", path.display());
                files += 1;
            }
        }
    }
    ensure!(files > 3, "{files} files were searched");
    Ok(())
}

fn clean(place: &str, text: &str) -> anyhow::Result<()> {
    let redacted = redact(text);
    ensure!(redacted == text, "{place} has a secret: {redacted}");
    Ok(())
}
