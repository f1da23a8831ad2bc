//! A cluster with nodes, on which Karpenter's identity is made, unmade and broken again and again, step by step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kube::api::{Api, DeleteParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Map, Value, json};
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_local::propagation::Propagation;
use slipway_states::failure::Failure;

use crate::cloud::Deployed;

/// How many times faster than the machine's clock the workbench waits. Karpenter itself takes its real time.
pub const PACE: u32 = 10;

/// Karpenter's namespace.
pub const NAMESPACE: &str = "karpenter";

/// A cluster that the machine made, and the steps with the very payloads that the machine gave them.
pub struct Workbench {
    /// The cloud.
    pub deployed: Deployed,
    /// The cluster's admin.
    pub admin: kube::Client,
    /// By step.
    payloads: BTreeMap<String, Value>,
}

/// How Karpenter became ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// What was diagnosed on the way, each once.
    pub diagnoses: Vec<String>,
    /// How often pods were made anew.
    pub heals: u64,
    /// Restarts of the containers that are there at the end.
    pub restarts: u64,
}

impl Workbench {
    /// Has the machine make a cluster, and opens a run of its own on it.
    ///
    /// # Errors
    /// What did not start or did not succeed.
    pub async fn start() -> anyhow::Result<Self> {
        let deployed = Deployed::start(Kubernetes::Real).await?;
        let spec = json!({
            "name": "workbench",
            "region": REGION,
            "nodePools": [{ "name": "graviton", "architecture": "arm64" }],
        });
        let execution = deployed.start_machine("slipway-provision", &spec).await?;
        let ended = deployed.end(&execution).await?;
        anyhow::ensure!(ended.status == "SUCCEEDED", "{}: {}", ended.error, ended.cause);
        let mut payloads = payloads(&deployed, &execution).await?;
        let execution = format!("arn:aws:states:{REGION}:{ACCOUNT}:execution:slipway-provision:by-hand");
        let open = json!({ "execution": { "arn": execution, "startedAt": "2026-11-22T09:00:00Z" }, "spec": spec });
        let opened = deployed
            .invoke("open-run", &open)
            .await
            .map_err(|failure| anyhow::anyhow!("{}: {}", failure.error, failure.cause))?;
        for payload in payloads.values_mut() {
            payload["run"] = opened["run"].clone();
        }
        let kubeconfig = deployed.cloud.dir().join(format!("clusters/{ACCOUNT}/{REGION}/workbench/admin.kubeconfig"));
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self { deployed, admin: kube::Client::try_from(config)?, payloads })
    }

    /// What the machine would pass to a step, with `changes` over it.
    ///
    /// # Panics
    /// For a step that the machine did not call.
    #[must_use]
    pub fn payload(&self, step: &str, changes: Value) -> Value {
        let mut payload = self.payloads[step].clone();
        if let (Some(fields), Value::Object(changes)) = (payload.as_object_mut(), changes) {
            fields.extend(changes);
        }
        payload
    }

    /// Lets services hear of IAM's changes after a time between these, in seconds of the machine's clock.
    pub fn propagate(&self, seed: u64, shortest: u32, longest: u32) {
        // The cloud counts in its own seconds, of which 60 pass in one.
        let scaled = |seconds: u32| Duration::from_secs((seconds * 60 / PACE).into());
        self.deployed.cloud.propagate(Propagation { seed, shortest: scaled(shortest), longest: scaled(longest) });
    }

    /// Invokes a step as the machine does: what resolves by itself is tried again.
    ///
    /// # Errors
    /// The step's error.
    pub async fn invoke(&self, step: &str, payload: &Value) -> Result<Value, Failure> {
        let began = Instant::now();
        loop {
            match self.deployed.invoke(step, payload).await {
                Err(failure)
                    if ["PropagationPending", "Throttled", "AwsUnavailable"].contains(&failure.error.as_str())
                        && began.elapsed() < Duration::from_mins(1) =>
                {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                ended => return ended,
            }
        }
    }

    /// Asks a step until it is done; answers its output and the machine's seconds that it took.
    ///
    /// # Errors
    /// The step's error.
    pub async fn until_done(&self, step: &str, mut payload: Value) -> Result<(Value, u64), Failure> {
        let mut waited = 0;
        loop {
            let answer = self.invoke(step, &payload).await?;
            if answer["done"] == true {
                return Ok((answer["output"].clone(), waited));
            }
            waited += wait(&answer).await;
            payload["waited"] = json!(waited);
            if !answer["confirmed"].is_null() {
                payload["confirmed"] = answer["confirmed"].clone();
            }
        }
    }

    /// Binds an identity.
    ///
    /// # Errors
    /// The step's error.
    pub async fn bind(&self, identity: &str, phase: &str) -> Result<Value, Failure> {
        self.invoke("bind-identity", &self.payload("bind-identity", json!({ "identity": identity, "phase": phase })))
            .await
    }

    /// Probes an identity: the proof, and the machine's seconds that it took.
    ///
    /// # Errors
    /// The step's error.
    pub async fn probe(&self, identity: &str) -> Result<(Value, u64), Failure> {
        self.until_done("probe-identity", self.payload("probe-identity", json!({ "identity": identity }))).await
    }

    /// Installs Karpenter with values laid over ours.
    ///
    /// # Errors
    /// The step's error.
    pub async fn install(&self, identity: &str, values: &Value) -> Result<Value, Failure> {
        let mut payload = self.payload("install-karpenter", Value::Null);
        payload["karpenter"]["identity"] = json!(identity);
        payload["karpenter"]["values"] = values.clone();
        self.invoke("install-karpenter", &payload).await
    }

    /// Checks and heals as the machine does, until Karpenter is ready.
    ///
    /// # Errors
    /// The error under which the machine would end.
    pub async fn recover(&self, identity: &str) -> Result<Recovered, Failure> {
        let (mut waited, mut suspect, mut heals) = (0, Value::Null, 0);
        let mut diagnoses = Vec::new();
        loop {
            let looked = json!({ "identity": identity, "waited": waited, "suspect": suspect });
            let mut answer = self.invoke("check-karpenter", &self.payload("check-karpenter", looked)).await?;
            let found = answer["diagnosis"].as_str().unwrap_or_default().to_owned();
            if !diagnoses.contains(&found) {
                diagnoses.push(found);
            }
            if answer["health"] == "Ready" {
                let restarts = self.restarts().await.map_err(|error| Failure::new("Test", error.to_string()))?;
                return Ok(Recovered { diagnoses, heals, restarts });
            }
            if waited >= 1_200 {
                return Err(Failure::new(answer["error"].as_str().unwrap_or_default(), answer["cause"].to_string()));
            }
            suspect = answer["suspect"].take();
            if answer["health"] == "Healable" {
                let healing = json!({
                    "run": self.payloads["check-karpenter"]["run"], "cluster": self.payloads["check-karpenter"]["cluster"],
                    "endpoint": self.payloads["check-karpenter"]["endpoint"], "namespace": NAMESPACE,
                    "pods": answer["failingPods"], "error": answer["error"], "cause": answer["cause"], "heals": heals,
                    "maxHeals": 5,
                });
                let healed = self.invoke("heal-karpenter", &healing).await?;
                heals = healed["heals"].as_u64().unwrap_or_default();
                answer["retryAfterSeconds"] = healed["retryAfterSeconds"].clone();
            }
            waited += wait(&answer).await;
        }
    }

    /// The restarts of Karpenter's containers.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn restarts(&self) -> anyhow::Result<u64> {
        let pods = self.pods().list(&ListParams::default()).await?;
        let statuses = pods.items.iter().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref()).flatten();
        Ok(statuses.map(|status| u64::try_from(status.restart_count).unwrap_or_default()).sum())
    }

    fn pods(&self) -> Api<k8s_openapi::api::core::v1::Pod> {
        Api::namespaced(self.admin.clone(), NAMESPACE)
    }

    /// Deletes Karpenter's pods; its deployment makes others.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn recreate_pods(&self) -> anyhow::Result<()> {
        let now = DeleteParams::default().grace_period(0);
        self.pods().delete_collection(&now, &ListParams::default()).await?;
        Ok(())
    }

    /// Takes Karpenter, its service account and its role away, as if there had never been any.
    ///
    /// # Errors
    /// What the API server or IAM refused, or pods that stay.
    pub async fn forget(&self) -> anyhow::Result<()> {
        use k8s_openapi::api::{apps::v1::Deployment, core::v1::ServiceAccount};
        let deployments: Api<Deployment> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), NAMESPACE);
        gone(deployments.delete("karpenter", &DeleteParams::background()).await.map(|_| ()))?;
        gone(accounts.delete("karpenter", &DeleteParams::default()).await.map(|_| ()))?;
        self.recreate_pods().await?;
        let iam = aws_sdk_iam::Client::new(&self.deployed.config);
        let role = self.role();
        let attached = iam.list_attached_role_policies().role_name(&role).into_paginator().items().send();
        if let Ok(attached) = attached.collect::<Result<Vec<_>, _>>().await {
            for policy in attached {
                iam.detach_role_policy().role_name(&role).set_policy_arn(policy.policy_arn).send().await?;
            }
            iam.delete_role().role_name(&role).send().await?;
        }
        let began = Instant::now();
        while !self.pods().list(&ListParams::default()).await?.items.is_empty() {
            if began.elapsed() > Duration::from_mins(1) {
                bail!("Karpenter's pods stay");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The name of the controller's role.
    #[must_use]
    pub fn role(&self) -> String {
        format!("slipway-eks-workbench-{REGION}-controller")
    }

    /// The ARN of the cluster's IAM OIDC provider.
    #[must_use]
    pub fn provider(&self) -> String {
        self.payloads["bind-identity"]["providerArn"].as_str().unwrap_or_default().to_owned()
    }
}

/// Waits as long as an answer asks for, at this pace; answers the machine's seconds.
async fn wait(answer: &Value) -> u64 {
    let seconds = answer["retryAfterSeconds"].as_u64().unwrap_or(1);
    tokio::time::sleep(Duration::from_secs(seconds) / PACE).await;
    seconds
}

fn gone(deleted: kube::Result<()>) -> anyhow::Result<()> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other?),
    }
}

/// What each step was given by the machine, from the execution's history.
async fn payloads(deployed: &Deployed, execution: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    let states = aws_sdk_sfn::Client::new(&deployed.config);
    let mut events = states.get_execution_history().execution_arn(execution).into_paginator().items().send();
    let mut payloads = BTreeMap::new();
    while let Some(event) = events.next().await {
        let Some(scheduled) = event?.task_scheduled_event_details else { continue };
        let parameters: Map<String, Value> = serde_json::from_str(&scheduled.parameters)?;
        let function = parameters.get("FunctionName").and_then(Value::as_str).context("a task has a function")?;
        let name = function.trim_end_matches(":live").rsplit(':').next().unwrap_or_default();
        let step = name.trim_start_matches("slipway-").to_owned();
        payloads.insert(step, parameters.get("Payload").cloned().unwrap_or_default());
    }
    Ok(payloads)
}
