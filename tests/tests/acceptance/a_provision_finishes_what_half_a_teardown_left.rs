//! A teardown is stopped while the control plane is on its way out: the queue's name is refused for a minute, the cluster's
//! until it is gone. The provision that comes next waits for both and ends with a working cluster.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use slipway_local::cloud::Kubernetes;
use slipway_tests::cloud::{Deployed, Ended};

fn spec() -> Value {
    let mut spec: Value = serde_json::from_str(include_str!("../../../examples/innovate-dev.json")).unwrap();
    spec["name"] = json!("phoenix");
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provision_finishes_what_half_a_teardown_left() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let first = deployed.start_machine("slipway-provision", &spec()).await.unwrap();
    status(&deployed, Some("ACTIVE")).await;
    stop(&deployed, &first).await;

    let teardown = loop {
        let execution = deployed.start_machine("slipway-teardown", &json!({"name": "phoenix"})).await.unwrap();
        if status_or_end(&deployed, &execution).await {
            break execution;
        }
    };
    stop(&deployed, &teardown).await;
    let created = eks(&deployed).describe_cluster().name("phoenix").send().await.unwrap().cluster.unwrap().created_at;

    let finished = once_the_lease_is_free(&deployed).await;
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

async fn status(deployed: &Deployed, wanted: Option<&str>) {
    let began = Instant::now();
    while now(deployed).await.as_deref() != wanted {
        assert!(began.elapsed() < Duration::from_mins(2), "the cluster is never {wanted:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until the cluster is DELETING. False: the execution ended before, because the lease was not free yet.
async fn status_or_end(deployed: &Deployed, execution: &str) -> bool {
    let states = aws_sdk_sfn::Client::new(&deployed.config);
    let began = Instant::now();
    loop {
        if now(deployed).await.as_deref() == Some("DELETING") {
            return true;
        }
        let found = states.describe_execution().execution_arn(execution).send().await.unwrap();
        if found.status.as_str() != "RUNNING" {
            assert_eq!(found.error.as_deref(), Some("LeaseHeld"), "{:?}", found.cause);
            tokio::time::sleep(Duration::from_millis(500)).await;
            return false;
        }
        assert!(began.elapsed() < Duration::from_mins(3), "the cluster is never DELETING");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn stop(deployed: &Deployed, execution: &str) {
    let states = aws_sdk_sfn::Client::new(&deployed.config);
    states.stop_execution().execution_arn(execution).send().await.unwrap();
    assert_eq!(deployed.end(execution).await.unwrap().status, "ABORTED");
}

async fn once_the_lease_is_free(deployed: &Deployed) -> Ended {
    let began = Instant::now();
    loop {
        let next = deployed.provision(&spec()).await.unwrap();
        if next.error != "LeaseHeld" {
            return next;
        }
        assert!(began.elapsed() < Duration::from_mins(1), "the lease stays taken: {}", next.cause);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
