//! A run that was stopped after any of its steps, whatever it left half made, is finished by the next with the same spec.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use slipway_local::cloud::Kubernetes;
use slipway_tests::cloud::Deployed;

/// The steps after which a run is stopped, in the machine's order. Before `open-run` is over nothing is there.
const STEPS: [&str; 15] = [
    "open-run",
    "preflight",
    "ensure-cluster-roles",
    "ensure-interruption-queue",
    "ensure-network",
    "create-cluster",
    "wait-oidc",
    "associate-access-policy",
    "ensure-node-group",
    "ensure-addons",
    "bind-identity",
    "probe-identity",
    "install-karpenter",
    "check-karpenter",
    "apply-node-pools",
];

fn spec() -> Value {
    let mut spec: Value = serde_json::from_str(include_str!("../../examples/innovate-dev.json")).unwrap();
    spec["name"] = json!("half-made");
    spec
}

/// After the step that leaves most half made; `SLIPWAY_STOP_AFTER` names another, and the soak takes them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_stopped_after_a_step_is_finished_by_the_next() {
    let chosen = std::env::var("SLIPWAY_STOP_AFTER").unwrap_or_else(|_| "create-cluster".to_owned());
    stopped_and_finished(&chosen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a quarter of an hour: part of `make soak`"]
async fn soak_a_run_stopped_after_each_step_is_finished_by_the_next() {
    for step in STEPS {
        stopped_and_finished(step).await;
    }
}

async fn stopped_and_finished(step: &str) {
    eprintln!("stopped after {step}: to repeat this one, set SLIPWAY_STOP_AFTER={step}");
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let execution = deployed.start_machine("slipway-provision", &spec()).await.unwrap();
    reached(&deployed, step).await;
    let states = aws_sdk_sfn::Client::new(&deployed.config);
    states.stop_execution().execution_arn(&execution).send().await.unwrap();
    let stopped = deployed.end(&execution).await.unwrap();
    assert_eq!(stopped.status, "ABORTED", "after {step}");

    // What a person is told who is too early: when to start again.
    let began = Instant::now();
    let finished = loop {
        let next = deployed.provision(&spec()).await.unwrap();
        if next.error != "LeaseHeld" {
            break next;
        }
        assert!(began.elapsed() < Duration::from_mins(1), "after {step} the lease stays taken: {}", next.cause);
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert_eq!(finished.status, "SUCCEEDED", "after {step}: {}: {}", finished.error, finished.cause);
    let nodes = deployed.kubectl("half-made", &["get", "deployment", "karpenter", "-n", "karpenter"]).await.unwrap();
    assert_eq!(nodes["status"]["readyReplicas"], 2, "after {step}");
    deployed.cloud.stop().await;
}

/// Waits until a step of the cluster's run is over.
async fn reached(deployed: &Deployed, step: &str) {
    let began = Instant::now();
    loop {
        let rows = deployed.rows("half-made").await.unwrap();
        let done = |(sk, row): &(String, Value)| {
            let opened = step == "open-run" && sk == "LEASE";
            opened || (sk.ends_with(&format!("#STEP#{step}")) && row["status"] == "done")
        };
        if rows.iter().any(done) {
            return;
        }
        assert!(began.elapsed() < Duration::from_mins(3), "{step} is never over");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
