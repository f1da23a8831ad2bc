//! A cluster with nodes, on which Karpenter's identity is made, unmade and broken again and again, step by step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::{Value, json};
use slipway_karpenter::diagnosis::redact;
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_local::propagation::Propagation;
use slipway_states::failure::Failure;

use crate::cloud::Deployed;

/// How many times faster than the machine's clock the workbench waits. Karpenter itself takes its real time.
pub const PACE: u32 = 10;

/// The cluster's name.
pub const CLUSTER: &str = "workbench";

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

/// How waiting for something ended, and the machine's seconds that it took.
#[derive(Debug)]
pub struct Waited<T> {
    /// What came, or the error under which the machine would end.
    pub ended: Result<T, Failure>,
    /// The machine's seconds.
    pub seconds: u64,
}

/// A proof of an identity.
#[derive(Debug)]
pub struct Probed {
    /// What probe-identity answered in the end.
    pub proof: Value,
    /// How often STS refused before.
    pub refusals: u64,
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
            "name": CLUSTER,
            "region": REGION,
            "nodePools": [{ "name": "graviton", "architecture": "arm64" }],
        });
        let execution = deployed.start_machine("slipway-provision", &spec).await?;
        let ended = deployed.end(&execution).await?;
        anyhow::ensure!(ended.status == "SUCCEEDED", "{}: {}", ended.error, ended.cause);
        let mut payloads = BTreeMap::new();
        for asked in deployed.payloads(&execution).await? {
            payloads.entry(asked.step).or_insert(asked.payload);
        }
        let execution = format!("arn:aws:states:{REGION}:{ACCOUNT}:execution:slipway-provision:by-hand");
        let open = json!({ "execution": { "arn": execution, "startedAt": "2026-11-22T09:00:00Z" }, "spec": spec });
        let opened = deployed
            .invoke("open-run", &open)
            .await
            .map_err(|failure| anyhow::anyhow!("{}: {}", failure.error, failure.cause))?;
        for payload in payloads.values_mut() {
            payload["run"] = opened["run"].clone();
        }
        let admin = deployed.admin(CLUSTER).await?;
        Ok(Self { deployed, admin, payloads })
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

    /// Invokes a step as the machine does: what resolves by itself is tried again. Whatever it answers, and whatever it
    /// fails with, is searched for secrets.
    ///
    /// # Errors
    /// The step's error.
    ///
    /// # Panics
    /// For an answer or an error with a token or key in it.
    pub async fn invoke(&self, step: &str, payload: &Value) -> Result<Value, Failure> {
        let began = Instant::now();
        loop {
            match self.deployed.invoke(step, payload).await {
                Err(failure)
                    if ["PropagationPending", "Throttled", "AwsUnavailable", "ClusterUnreachable"]
                        .contains(&failure.error.as_str())
                        && began.elapsed() < Duration::from_mins(1) =>
                {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                ended => {
                    let said = match &ended {
                        Ok(answer) => answer.to_string(),
                        Err(failure) => failure.cause.clone(),
                    };
                    assert_eq!(redact(&said), said, "{step} says a secret");
                    return ended;
                }
            }
        }
    }

    /// Asks a step until it is done, carrying from one asking to the next what the machine carries.
    pub async fn until_done(&self, step: &str, payload: Value) -> Waited<Value> {
        self.asking(step, payload, |_| {}).await
    }

    async fn asking(&self, step: &str, mut payload: Value, mut look: impl FnMut(&Value)) -> Waited<Value> {
        let mut seconds = 0;
        loop {
            let mut answer = match self.invoke(step, &payload).await {
                Ok(answer) => answer,
                Err(failure) => return Waited { ended: Err(failure), seconds },
            };
            if answer["done"] == true {
                return Waited { ended: Ok(answer["output"].take()), seconds };
            }
            look(&answer);
            seconds += wait(&answer).await;
            payload["waited"] = json!(seconds);
            for carried in ["confirmed", "suspect"] {
                if let Some(value) = answer.get_mut(carried) {
                    payload[carried] = value.take();
                }
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

    /// Probes an identity.
    ///
    /// # Errors
    /// The step's error.
    pub async fn probe(&self, identity: &str) -> Result<Probed, Failure> {
        let mut refusals = 0;
        let payload = self.payload("probe-identity", json!({ "identity": identity }));
        let probed = self.asking("probe-identity", payload, |answer| {
            refusals += u64::from(answer["confirmed"]["times"] == 0);
        });
        Ok(Probed { proof: probed.await.ended?, refusals })
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
        self.watch(identity).await.ended
    }

    /// The same, with the time that it took either way.
    pub async fn watch(&self, identity: &str) -> Waited<Recovered> {
        let mut seconds = 0;
        let ended = self.check_and_heal(identity, &mut seconds).await;
        Waited { ended, seconds }
    }

    async fn check_and_heal(&self, identity: &str, waited: &mut u64) -> Result<Recovered, Failure> {
        let (mut suspect, mut heals) = (Value::Null, 0);
        let mut diagnoses = Vec::new();
        loop {
            let looked = json!({ "identity": identity, "waited": *waited, "suspect": suspect });
            let mut answer = self.invoke("check-karpenter", &self.payload("check-karpenter", looked)).await?;
            let found = answer["diagnosis"].as_str().unwrap_or_default().to_owned();
            if !diagnoses.contains(&found) {
                diagnoses.push(found);
            }
            if answer["health"] == "Ready" {
                let restarts = self.restarts().await.map_err(|error| Failure::new("Test", error.to_string()))?;
                return Ok(Recovered { diagnoses, heals, restarts });
            }
            if *waited >= 1_200 {
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
                suspect = Value::Null;
            }
            *waited += wait(&answer).await;
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
    /// What the API server or AWS refused, or pods that stay.
    pub async fn forget(&self) -> anyhow::Result<()> {
        use k8s_openapi::api::{apps::v1::Deployment, core::v1::ServiceAccount};
        let deployments: Api<Deployment> = Api::namespaced(self.admin.clone(), NAMESPACE);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), NAMESPACE);
        gone(deployments.delete("karpenter", &DeleteParams::background()).await.map(|_| ()))?;
        gone(accounts.delete("karpenter", &DeleteParams::default()).await.map(|_| ()))?;
        self.recreate_pods().await?;
        self.dissociate().await?;
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

    /// Deletes the Pod Identity association of Karpenter's service account, where there is one.
    ///
    /// # Errors
    /// What EKS refused.
    pub async fn dissociate(&self) -> anyhow::Result<()> {
        let eks = aws_sdk_eks::Client::new(&self.deployed.config);
        let listed = eks.list_pod_identity_associations().cluster_name(CLUSTER).namespace(NAMESPACE).send().await?;
        for association in listed.associations.unwrap_or_default() {
            let id = association.association_id.unwrap_or_default();
            eks.delete_pod_identity_association().cluster_name(CLUSTER).association_id(id).send().await?;
        }
        Ok(())
    }

    /// The name of the controller's role.
    #[must_use]
    pub fn role(&self) -> String {
        format!("slipway-eks-{CLUSTER}-{REGION}-controller")
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
