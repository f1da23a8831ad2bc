//! A run that was stopped after any of its steps, whatever it left half made or half taken away, is finished by the next
//! with the same input; and what was taken away is gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{Value, json};
use slipway_local::cloud::Kubernetes;
use slipway_tests::cloud::Deployed;
use slipway_tests::{account, repository};

/// The steps after which a provision is stopped, in the machine's order. Before `open-run` is over nothing is there.
const MAKING: [&str; 16] = [
    "open-run",
    "preflight",
    "ensure-cluster-roles",
    "ensure-interruption-queue",
    "ensure-network",
    "create-cluster",
    "wait-oidc",
    "associate-access-policy",
    "ensure-addons-before",
    "bind-identity-bind",
    "ensure-node-group",
    "ensure-addons-after",
    "probe-identity",
    "install-karpenter",
    "check-karpenter",
    "apply-node-pools",
];

/// The steps after which a teardown is stopped.
const TAKING: [&str; 13] = [
    "open-teardown",
    "release-workloads",
    "drain-capacity",
    "uninstall-karpenter",
    "delete-addons",
    "delete-queue",
    "delete-node-groups",
    "terminate-instances",
    "delete-cluster",
    "delete-identity",
    "delete-remnants",
    "delete-network",
    "audit",
];

fn spec(name: &str) -> Value {
    let mut spec: Value = serde_json::from_str(include_str!("../../../examples/innovate-dev.json")).unwrap();
    spec["name"] = json!(name);
    spec
}

fn teardown(name: &str) -> Value {
    json!({ "name": name, "network": "delete" })
}

/// After the steps that leave most half done; `SLIPWAY_STOP_AFTER=<step>,<step>` names others, and the soak takes all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_is_finished_by_the_next() {
    let chosen = std::env::var("SLIPWAY_STOP_AFTER").unwrap_or_else(|_| "create-cluster,delete-node-groups".to_owned());
    let (making, taking) = chosen.split_once(',').expect("a step of each machine");
    eprintln!("stopped after {making} and {taking}: to repeat it, set SLIPWAY_STOP_AFTER={making},{taking}");
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    life(&deployed, "half-made", &[making], &[taking]).await;
    deployed.cloud.stop().await;
}

/// One cluster, whose every run is stopped one step later than the one before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about eight minutes"]
async fn soak_a_run_stopped_after_each_step_in_turn_is_finished_by_the_next() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let seconds = life(&deployed, "stopped", &MAKING, &TAKING).await;
    deployed.cloud.stop().await;
    let mut report = "| machine | stopped after | s until there |\n|---|---|---|\n".to_owned();
    for ((machine, step), seconds) in steps(&MAKING, &TAKING).zip(seconds) {
        writeln!(report, "| {machine} | {step} | {seconds:.1} |").unwrap();
    }
    report.push_str("\nEach run after the first began over what the stopped one had left; the last provision succeeded with two ready");
    report.push_str("\nreplicas of Karpenter, the last teardown with the account as before.\n");
    repository::report("stopped after each step", &report).unwrap();
}

fn steps<'a>(making: &'a [&str], taking: &'a [&str]) -> impl Iterator<Item = (&'static str, &'a str)> {
    let making = making.iter().map(|step| ("slipway-provision", *step));
    making.chain(taking.iter().map(|step| ("slipway-teardown", *step)))
}

/// A cluster from nothing to nothing, with a run stopped after each of these steps; answers how many seconds each took
/// until there, the wait for the lease of the stopped one included.
async fn life(deployed: &Deployed, name: &str, making: &[&str], taking: &[&str]) -> Vec<f64> {
    let before = account::inventory(&deployed.config).await.unwrap();
    let mut seconds = Vec::new();
    let asked = |since| (deployed.calls(since).values().sum::<usize>(), deployed.mutations(since).len());
    let nothing = deployed.last_call();
    for step in making {
        let began = Instant::now();
        deployed.stop_after("slipway-provision", &spec(name), name, step).await.unwrap();
        seconds.push(began.elapsed().as_secs_f64());
    }
    let ((calls, changes), stopped) = (asked(nothing), deployed.last_call());
    let finished = deployed.insist("slipway-provision", &spec(name)).await.unwrap();
    let (more_calls, more_changes) = asked(stopped);
    eprintln!("{calls} calls and {changes} changes until the last stop, {more_calls} and {more_changes} from there");
    assert_eq!(finished.status, "SUCCEEDED", "after {making:?}: {}: {}", finished.error, finished.cause);
    let karpenter = deployed.kubectl(name, &["get", "deployment", "karpenter", "-n", "karpenter"]).await.unwrap();
    assert_eq!(karpenter["status"]["readyReplicas"], 2, "after {making:?}");
    // Next to nothing is left to be made by then.
    if making.last() == Some(&"apply-node-pools") {
        assert!(more_changes * 5 < changes, "{changes} changes until the last stop, {more_changes} from there");
    }

    for step in taking {
        let began = Instant::now();
        deployed.stop_after("slipway-teardown", &teardown(name), name, step).await.unwrap();
        seconds.push(began.elapsed().as_secs_f64());
    }
    let finished = deployed.insist("slipway-teardown", &teardown(name)).await.unwrap();
    assert_eq!(finished.status, "SUCCEEDED", "after {taking:?}: {}: {}", finished.error, finished.cause);
    let after = account::inventory(&deployed.config).await.unwrap();
    account::same(&before, &after).unwrap_or_else(|differs| panic!("after {taking:?}: {differs}"));
    seconds
}
