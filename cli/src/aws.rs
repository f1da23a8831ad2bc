//! The two doors: Step Functions, and the run's rows in the state table.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::Value;

use crate::history::Event;
use crate::progress::Progress;
use crate::report::StepRow;

/// How often a running execution is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// Clients with the credentials, region and endpoint of the environment.
pub struct Clients {
    states: aws_sdk_sfn::Client,
    dynamodb: aws_sdk_dynamodb::Client,
    table: String,
}

impl Clients {
    /// Reads the environment as every AWS tool does, and `SLIPWAY_TABLE` (default `slipway`).
    pub async fn from_environment() -> Self {
        Self::new(&aws_config::load_from_env().await, std::env::var("SLIPWAY_TABLE").ok())
    }

    /// Clients of a configuration; `table` is the state table's name, `slipway` if there is none.
    #[must_use]
    pub fn new(config: &SdkConfig, table: Option<String>) -> Self {
        Self {
            states: aws_sdk_sfn::Client::new(config),
            dynamodb: aws_sdk_dynamodb::Client::new(config),
            table: table.unwrap_or_else(|| "slipway".to_owned()),
        }
    }

    /// Starts an execution and answers its ARN.
    ///
    /// # Errors
    /// AWS's refusal.
    pub async fn start(&self, machine_arn: &str, input: &Value) -> anyhow::Result<String> {
        let started = self
            .states
            .start_execution()
            .state_machine_arn(machine_arn)
            .input(input.to_string())
            .send()
            .await
            .map_err(|error| refused(&error))
            .with_context(|| format!("start {machine_arn}"))?;
        Ok(started.execution_arn)
    }

    /// The ARN of a machine of the template, by its name.
    ///
    /// # Errors
    /// AWS's refusal, or that there is none.
    pub async fn machine(&self, name: &str) -> anyhow::Result<String> {
        let mut pages = self.states.list_state_machines().into_paginator().items().send();
        while let Some(machine) = pages.next().await {
            let machine = machine.map_err(|error| refused(&error)).context("list the state machines")?;
            if machine.name == name {
                return Ok(machine.state_machine_arn);
            }
        }
        anyhow::bail!("there is no state machine {name} in this account and region: deploy infra/template.yaml")
    }

    /// Starts a machine of the template and waits for what it answers.
    ///
    /// # Errors
    /// AWS's refusal, or the execution's own failure.
    pub async fn ask(&self, machine: &str, input: &Value) -> anyhow::Result<Value> {
        let execution = self.start(&self.machine(machine).await?, input).await?;
        loop {
            let now = self
                .states
                .describe_execution()
                .execution_arn(&execution)
                .send()
                .await
                .map_err(|error| refused(&error))
                .with_context(|| format!("look at {execution}"))?;
            match now.status {
                ExecutionStatus::Running => tokio::time::sleep(EVERY).await,
                ExecutionStatus::Succeeded => {
                    let output = now.output.unwrap_or_default();
                    return serde_json::from_str(&output).with_context(|| format!("read the output of {execution}"));
                }
                ended => {
                    let (error, cause) = (now.error.unwrap_or_default(), now.cause.unwrap_or_default());
                    anyhow::bail!("{execution} ended {}: {error}: {cause}", ended.as_str())
                }
            }
        }
    }

    /// The whole history so far.
    ///
    /// # Errors
    /// AWS's refusal.
    pub async fn history(&self, execution_arn: &str) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut token = None;
        loop {
            let page = self
                .states
                .get_execution_history()
                .execution_arn(execution_arn)
                .max_results(1000)
                .set_next_token(token)
                .send()
                .await
                .map_err(|error| refused(&error))
                .with_context(|| format!("read the history of {execution_arn}"))?;
            events.extend(page.events().iter().map(Event::read));
            token = page.next_token;
            if token.is_none() {
                return Ok(events);
            }
        }
    }

    /// The run's STEP rows by step; none where the run has not been opened.
    ///
    /// # Errors
    /// AWS's refusal, for example where the reader may not read the table.
    pub async fn step_rows(&self, progress: &Progress) -> anyhow::Result<BTreeMap<String, StepRow>> {
        let Some((cluster, run)) = keys(progress) else { return Ok(BTreeMap::new()) };
        let mut rows = BTreeMap::new();
        let mut from = None;
        loop {
            let page = self
                .dynamodb
                .query()
                .table_name(&self.table)
                .key_condition_expression("pk = :pk AND begins_with(sk, :sk)")
                .expression_attribute_values(":pk", AttributeValue::S(cluster.clone()))
                .expression_attribute_values(":sk", AttributeValue::S(format!("RUN#{run}#STEP#")))
                .set_exclusive_start_key(from)
                .send()
                .await
                .map_err(|error| refused(&error))
                .with_context(|| format!("read the steps' rows of table {}", self.table))?;
            for item in page.items() {
                let step = item.get("step").and_then(|value| value.as_s().ok());
                let busy = item.get("busyMillis").and_then(|value| value.as_n().ok()).and_then(|n| n.parse().ok());
                if let (Some(step), Some(busy_millis)) = (step, busy) {
                    rows.insert(step.clone(), StepRow { busy_millis });
                }
            }
            from = page.last_evaluated_key;
            if from.is_none() {
                return Ok(rows);
            }
        }
    }
}

/// The cluster's partition key and the run's id, from what open-run answered.
fn keys(progress: &Progress) -> Option<(String, String)> {
    let opened = progress.opened.as_ref()?;
    let run = opened.pointer("/run/id")?.as_str()?;
    let of = |name: &str| opened.get("cluster")?.get(name)?.as_str();
    Some((format!("CLUSTER#{}#{}#{}", of("account")?, of("region")?, of("name")?), run.to_owned()))
}

/// An SDK error in AWS's own words instead of "service error".
fn refused<E>(error: &E) -> anyhow::Error
where
    E: std::error::Error + aws_sdk_sfn::error::ProvideErrorMetadata,
{
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => anyhow::anyhow!("{code}: {message}"),
        (Some(code), None) => anyhow::anyhow!("{code}"),
        _ => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            anyhow::anyhow!(text)
        }
    }
}
