//! A local cloud with the control plane deployed, and the clients that a test looks with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_sfn::types::HistoryEvent;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use slipway_local::cloud::{ACCOUNT, Cloud, CloudConfig, Kubernetes, REGION};
use slipway_local::gateway::record::Entry;
use slipway_local::services::stepfunctions::invoke;
use slipway_states::failure::Failure;
use tokio::process::Command;

/// A cloud of this test's own.
pub struct Deployed {
    /// The cloud.
    pub cloud: Cloud,
    /// The admin's configuration.
    pub config: SdkConfig,
    home: tempfile::TempDir,
}

/// How an execution ended.
#[derive(Debug)]
pub struct Ended {
    /// `SUCCEEDED`, `FAILED`, …
    pub status: String,
    /// The error's name, `""` without one.
    pub error: String,
    /// Its cause, `""` without one.
    pub cause: String,
    /// What the machine answered.
    pub output: Value,
    /// From start to end.
    pub took: Duration,
}

/// What the machine gave a step.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `ensure-addons`
    pub step: String,
    /// Its input.
    pub payload: Value,
}

impl Deployed {
    /// Starts a cloud and deploys `infra/template.yaml` to it.
    ///
    /// # Errors
    /// What did not start; `make setup` is named where the cache is empty.
    pub async fn start(kubernetes: Kubernetes) -> anyhow::Result<Self> {
        // Each list of more than two things spans pages here, so whoever reads only the first is found out.
        let config = CloudConfig { page_size: Some(2), ..CloudConfig::new(kubernetes)? };
        let cloud = Cloud::start(config).await?;
        cloud.deploy(&|line| tracing::info!(line)).await?;
        let env = cloud.env();
        let read = |name: &str| {
            let found = env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            found.with_context(|| format!("the cloud's environment has no {name}"))
        };
        let credentials =
            Credentials::new(read("AWS_ACCESS_KEY_ID")?, read("AWS_SECRET_ACCESS_KEY")?, None, None, "local cloud");
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(read("AWS_ENDPOINT_URL")?)
            .credentials_provider(credentials)
            .load()
            .await;
        Ok(Self { cloud, config, home: tempfile::tempdir()? })
    }

    /// Starts the provision machine and waits for its end, at most five minutes.
    ///
    /// # Errors
    /// What Step Functions refused, or that there was no end.
    pub async fn provision(&self, spec: &Value) -> anyhow::Result<Ended> {
        self.run_machine("slipway-provision", spec).await
    }

    /// Starts a machine of the template and waits for its end, at most five minutes.
    ///
    /// # Errors
    /// What Step Functions refused, or that there was no end.
    pub async fn run_machine(&self, machine: &str, input: &Value) -> anyhow::Result<Ended> {
        let execution = self.start_machine(machine, input).await?;
        self.end(&execution).await
    }

    /// Starts a machine of the template and answers the execution's ARN.
    ///
    /// # Errors
    /// What Step Functions refused.
    pub async fn start_machine(&self, machine: &str, input: &Value) -> anyhow::Result<String> {
        let states = aws_sdk_sfn::Client::new(&self.config);
        let machine = format!("arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{machine}");
        Ok(states.start_execution().state_machine_arn(machine).input(input.to_string()).send().await?.execution_arn)
    }

    /// Runs a machine as somebody does who comes after a stopped run: again, for as long as that one's lease is held.
    ///
    /// # Errors
    /// What Step Functions refused, or a lease that stays held for a minute.
    pub async fn insist(&self, machine: &str, input: &Value) -> anyhow::Result<Ended> {
        let began = Instant::now();
        loop {
            let ended = self.run_machine(machine, input).await?;
            if ended.error != "LeaseHeld" {
                return Ok(ended);
            }
            anyhow::ensure!(began.elapsed() < Duration::from_mins(1), "the lease stays held: {}", ended.cause);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Starts a machine for a cluster, and stops the execution once it is through with a step. Like [`Self::insist`],
    /// it waits for the lease of a run that was stopped before.
    ///
    /// # Errors
    /// An execution that ended before it got there, or did not get there within three minutes.
    pub async fn stop_after(&self, machine: &str, input: &Value, cluster: &str, step: &str) -> anyhow::Result<()> {
        let states = aws_sdk_sfn::Client::new(&self.config);
        let began = Instant::now();
        let mut execution = self.start_machine(machine, input).await?;
        while !self.is_through(&execution, cluster, step).await? {
            let now = states.describe_execution().execution_arn(&execution).send().await?;
            match (now.status.as_str(), now.error.as_deref()) {
                ("RUNNING", _) => {}
                (_, Some("LeaseHeld")) => execution = self.start_machine(machine, input).await?,
                (ended, error) => {
                    let cause = now.cause.unwrap_or_default();
                    bail!("{machine} {ended} before {step} was over: {}: {cause}", error.unwrap_or_default());
                }
            }
            anyhow::ensure!(began.elapsed() < Duration::from_mins(3), "{machine} never comes to {step}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        states.stop_execution().execution_arn(&execution).send().await?;
        let stopped = self.end(&execution).await?;
        // The step may have been the last one.
        anyhow::ensure!(["ABORTED", "SUCCEEDED"].contains(&stopped.status.as_str()), "after {step}: {stopped:?}");
        Ok(())
    }

    /// Whether an execution has opened its run and is through with a step of it.
    async fn is_through(&self, execution: &str, cluster: &str, step: &str) -> anyhow::Result<bool> {
        let rows = self.rows(cluster).await?;
        let mut runs = rows.iter().filter(|(sk, row)| !sk.contains("#STEP#") && row["execution"] == execution);
        let Some((run, _)) = runs.find(|(sk, _)| sk.starts_with("RUN#")) else { return Ok(false) };
        let opens = step.starts_with("open-");
        Ok(opens || rows.iter().any(|(sk, row)| *sk == format!("{run}#STEP#{step}") && row["status"] == "done"))
    }

    /// Waits for an execution's end, at most five minutes.
    ///
    /// # Errors
    /// That there was none.
    pub async fn end(&self, execution: &str) -> anyhow::Result<Ended> {
        let states = aws_sdk_sfn::Client::new(&self.config);
        let began = Instant::now();
        while began.elapsed() < Duration::from_mins(5) {
            let now = states.describe_execution().execution_arn(execution).send().await?;
            if now.status.as_str() != "RUNNING" {
                return Ok(Ended {
                    status: now.status.as_str().to_owned(),
                    error: now.error.unwrap_or_default(),
                    cause: now.cause.unwrap_or_default(),
                    output: now.output.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
                    took: began.elapsed(),
                });
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        bail!("the execution did not end within five minutes")
    }

    /// What the machine gave each step in an execution, in order; more than once where a step has several phases.
    ///
    /// # Errors
    /// What Step Functions refused.
    pub async fn payloads(&self, execution: &str) -> anyhow::Result<Vec<Asked>> {
        let mut payloads: Vec<Asked> = Vec::new();
        for event in self.history(execution).await? {
            let Some(scheduled) = event.task_scheduled_event_details else { continue };
            let parameters: Value = serde_json::from_str(&scheduled.parameters)?;
            let function = parameters["FunctionName"].as_str().context("a task has a function")?;
            let name = function.trim_end_matches(":live").rsplit(':').next().unwrap_or_default();
            let step = name.trim_start_matches("slipway-").to_owned();
            let payload = parameters["Payload"].clone();
            // Of a step that is asked again, the first asking: later ones carry what was found.
            if payloads.iter().all(|asked| asked.step != step || asked.payload["phase"] != payload["phase"]) {
                payloads.push(Asked { step, payload });
            }
        }
        Ok(payloads)
    }

    /// The events of an execution, from its start.
    ///
    /// # Errors
    /// What Step Functions refused.
    pub async fn history(&self, execution: &str) -> anyhow::Result<Vec<HistoryEvent>> {
        let states = aws_sdk_sfn::Client::new(&self.config);
        let events = states.get_execution_history().execution_arn(execution).into_paginator().items().send();
        Ok(events.collect::<Result<Vec<_>, _>>().await?)
    }

    /// Invokes a step's deployed function once, as the machine does: its answer, or its error's name and cause.
    ///
    /// # Errors
    /// The name that the machine would match, and the cause.
    pub async fn invoke(&self, step: &str, input: &Value) -> Result<Value, Failure> {
        let aws = self.cloud.gateway().client("states.amazonaws.com", ACCOUNT, REGION);
        invoke(&aws, &format!("slipway-{step}:live"), input).await
    }

    /// How often each function called AWS since call number `since`; its own table, logs and invocations apart.
    #[must_use]
    pub fn calls(&self, since: u64) -> BTreeMap<String, usize> {
        let mut calls = BTreeMap::new();
        let entries = self.cloud.gateway().record().entries().into_iter().filter(|call| call.seq > since);
        for call in entries.filter(|call| !["dynamodb", "logs", "lambda"].contains(&call.service.as_str())) {
            if let Some(function) = call.function {
                *calls.entry(function).or_default() += 1;
            }
        }
        calls
    }

    /// The calls by which functions changed AWS since call number `since`: not our own table, bus and logs, and not
    /// the tokens that a function asks for.
    #[must_use]
    pub fn mutations(&self, since: u64) -> Vec<Entry> {
        let own = ["dynamodb", "events:PutEvents", "logs", "sts", "lambda:Invoke"];
        let calls = self.cloud.gateway().record().entries().into_iter();
        calls
            .filter(|call| call.seq > since && call.mutating && call.function.is_some())
            .filter(|call| {
                let action = format!("{}:{}", call.service, call.action);
                !own.iter().any(|own| call.service == *own || action == *own)
            })
            .collect()
    }

    /// What functions changed in a cluster since it is there, in order: `patch deployments karpenter/karpenter`. What
    /// an API server was only asked to try is left out.
    ///
    /// # Errors
    /// That the cluster has no audit log.
    pub fn kubernetes_mutations(&self, cluster: &str) -> anyhow::Result<Vec<String>> {
        let log = self.folder(cluster).join("logs/audit.jsonl");
        let lines = std::fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let entries = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let text = |entry: &Value, pointer: &str| {
            entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Ok(entries
            .filter(|entry| text(entry, "/user/username").contains("slipway-cluster-access"))
            .filter(|entry| entry["stage"] == "ResponseComplete" && !text(entry, "/requestURI").contains("dryRun="))
            .map(|entry| {
                let [verb, resource, namespace, name] =
                    ["/verb", "/objectRef/resource", "/objectRef/namespace", "/objectRef/name"]
                        .map(|pointer| text(&entry, pointer));
                format!("{verb} {resource} {namespace}/{name}")
            })
            .collect())
    }

    /// The number of the latest call.
    #[must_use]
    pub fn last_call(&self) -> u64 {
        self.cloud.gateway().record().entries().iter().map(|call| call.seq).max().unwrap_or_default()
    }

    /// A client of a cluster's API server as its own admin, for looking.
    ///
    /// # Errors
    /// That there is no such cluster.
    pub async fn admin(&self, cluster: &str) -> anyhow::Result<kube::Client> {
        let kubeconfig = Kubeconfig::read_from(self.folder(cluster).join("admin.kubeconfig"))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// What `kubectl … -o json` answers to the admin, who logs in as the ordinary tools do.
    ///
    /// # Errors
    /// What the tools say.
    pub async fn kubectl(&self, cluster: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let kubeconfig = self.home.path().join(cluster).display().to_string();
        if !std::path::Path::new(&kubeconfig).exists() {
            self.run("aws", &["eks", "update-kubeconfig", "--name", cluster, "--kubeconfig", &kubeconfig]).await?;
        }
        let arguments = [&["--kubeconfig", kubeconfig.as_str(), "-o", "json"], arguments].concat();
        Ok(serde_json::from_str(&self.run("kubectl", &arguments).await?)?)
    }

    /// Kills a cluster's API server for good.
    ///
    /// # Errors
    /// That none runs.
    pub async fn kill_api_server(&self, cluster: &str) -> anyhow::Result<()> {
        let folder = format!("{}/", self.folder(cluster).display());
        for process in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            let arguments: Vec<&str> = line.split('\0').collect();
            if arguments[0].ends_with("kube-apiserver") && arguments.iter().any(|one| one.contains(&folder)) {
                let killed = Command::new("kill").arg("-KILL").arg(process.file_name()).status().await?;
                anyhow::ensure!(killed.success(), "the API server of {cluster} does not end");
                return Ok(());
            }
        }
        bail!("{cluster} has no API server that runs")
    }

    fn folder(&self, cluster: &str) -> PathBuf {
        self.cloud.dir().join("clusters").join(ACCOUNT).join(REGION).join(cluster)
    }

    /// Runs one of the set-up's tools in the cloud's environment.
    async fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let tools = self.cloud.tools();
        let path =
            std::env::join_paths(tools.iter().cloned().chain([PathBuf::from("/usr/bin"), PathBuf::from("/bin")]))?;
        let found = tools.iter().map(|folder| folder.join(program)).find(|place| place.exists());
        let output = Command::new(found.with_context(|| format!("{program} is not set up: run `make setup`"))?)
            .args(arguments)
            .env_clear()
            .envs(self.cloud.env())
            .env("PATH", path)
            .env("HOME", self.home.path())
            .kill_on_drop(true)
            .output()
            .await?;
        anyhow::ensure!(
            output.status.success(),
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Writes a cluster's row of the registry, as a run leaves it that failed, or is at work: its `status`.
    ///
    /// # Errors
    /// What DynamoDB refused.
    pub async fn register(&self, cluster: &str, status: &str) -> anyhow::Result<()> {
        use aws_sdk_dynamodb::types::AttributeValue::S;
        let table = aws_sdk_dynamodb::Client::new(&self.config);
        let mut row = table.put_item().table_name("slipway");
        for (name, value) in [
            ("pk", format!("CLUSTER#{ACCOUNT}#{REGION}#{cluster}").as_str()),
            ("sk", "SPEC"),
            ("status", status),
            ("changedAt", "2026-11-22T09:00:00.000Z"),
            ("run", "01KAPQ3J5Z8Q6T4W2R0N9M7K5H"),
        ] {
            row = row.item(name, S(value.to_owned()));
        }
        row.send().await?;
        Ok(())
    }

    /// The items of a partition of the state table, as DynamoDB JSON's plain values by sort key.
    ///
    /// # Errors
    /// What DynamoDB refused.
    pub async fn rows(&self, cluster: &str) -> anyhow::Result<Vec<(String, Value)>> {
        use aws_sdk_dynamodb::types::AttributeValue;
        let table = aws_sdk_dynamodb::Client::new(&self.config);
        let key = AttributeValue::S(format!("CLUSTER#{ACCOUNT}#{REGION}#{cluster}"));
        let mut pages = table
            .query()
            .table_name("slipway")
            .key_condition_expression("pk = :pk")
            .expression_attribute_values(":pk", key)
            .into_paginator()
            .items()
            .send();
        let mut rows = Vec::new();
        while let Some(row) = pages.next().await {
            let plain: serde_json::Map<String, Value> = row?.iter().map(|(k, v)| (k.clone(), plain(v))).collect();
            rows.push((plain["sk"].as_str().unwrap_or_default().to_owned(), Value::Object(plain)));
        }
        Ok(rows)
    }
}

fn plain(attribute: &aws_sdk_dynamodb::types::AttributeValue) -> Value {
    use aws_sdk_dynamodb::types::AttributeValue::{Bool, L, M, N, S};
    match attribute {
        S(text) => Value::String(text.clone()),
        N(number) => serde_json::from_str(number).unwrap_or_default(),
        Bool(truth) => Value::Bool(*truth),
        L(items) => items.iter().map(plain).collect(),
        M(members) => members.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
        _ => Value::Null,
    }
}
