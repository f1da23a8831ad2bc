//! A teardown is stopped while the control plane is on its way out: the queue's name is refused for a minute, the cluster's
//! until it is gone. The provision that comes next waits for both and ends with a working cluster.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};
use slipway_local::cloud::Kubernetes;
use slipway_tests::cloud::Deployed;
use slipway_tests::wait::eventually;

fn spec() -> Value {
    let mut spec: Value = serde_json::from_str(include_str!("../../../examples/innovate-dev.json")).unwrap();
    spec["name"] = json!("phoenix");
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provision_finishes_what_half_a_teardown_left() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let first = deployed.start_machine("slipway-provision", &spec()).await.unwrap();
    eventually("the cluster to be ACTIVE", async || (now(&deployed).await? == "ACTIVE").then_some(())).await;
    stop(&deployed, &first).await;

    let teardown = eventually("the lease", async || {
        let execution = deployed.start_machine("slipway-teardown", &json!({"name": "phoenix"})).await.unwrap();
        deleting_or_ended(&deployed, &execution).await.then_some(execution)
    })
    .await;
    stop(&deployed, &teardown).await;
    let created = eks(&deployed).describe_cluster().name("phoenix").send().await.unwrap().cluster.unwrap().created_at;

    let finished = deployed.insist("slipway-provision", &spec()).await.unwrap();
    assert_eq!(finished.status, "SUCCEEDED", "{}: {}", finished.error, finished.cause);
    let made = eks(&deployed).describe_cluster().name("phoenix").send().await.unwrap().cluster.unwrap();
    assert_eq!(made.status.unwrap().as_str(), "ACTIVE");
    assert!(made.created_at > created, "it is another cluster");
    let karpenter = deployed.kubectl("phoenix", &["get", "deployment", "karpenter", "-n", "karpenter"]).await.unwrap();
    assert_eq!(karpenter["status"]["readyReplicas"], 2);
    deployed.cloud.stop().await;
}

fn eks(deployed: &Deployed) -> aws_sdk_eks::Client {
    aws_sdk_eks::Client::new(&deployed.config)
}

async fn now(deployed: &Deployed) -> Option<String> {
    let found = eks(deployed).describe_cluster().name("phoenix").send().await.ok()?;
    Some(found.cluster?.status?.as_str().to_owned())
}

/// Waits until the cluster is DELETING. False: the execution ended before, because the lease was not free yet.
async fn deleting_or_ended(deployed: &Deployed, execution: &str) -> bool {
    let states = aws_sdk_sfn::Client::new(&deployed.config);
    eventually("the cluster to be DELETING", async || {
        if now(deployed).await.as_deref() == Some("DELETING") {
            return Some(true);
        }
        let found = states.describe_execution().execution_arn(execution).send().await.unwrap();
        if found.status.as_str() == "RUNNING" {
            return None;
        }
        assert_eq!(found.error.as_deref(), Some("LeaseHeld"), "{:?}", found.cause);
        Some(false)
    })
    .await
}

async fn stop(deployed: &Deployed, execution: &str) {
    let states = aws_sdk_sfn::Client::new(&deployed.config);
    states.stop_execution().execution_arn(execution).send().await.unwrap();
    assert_eq!(deployed.end(execution).await.unwrap().status, "ABORTED");
}
