//! The local cloud itself: one line starts one, it knows who calls it, and killed it leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use slipway_local::cloud::{ACCOUNT, Cloud, CloudConfig, Kubernetes, REGION};
use slipway_local::gateway::record::Entry;
use slipway_tests::wait::eventually;

#[tokio::test]
async fn a_functions_calls_are_its_own_and_all_is_recorded() {
    let cloud = Cloud::start(CloudConfig::new(Kubernetes::None).unwrap()).await.unwrap();
    cloud.deploy(&|_| {}).await.unwrap();

    let aws = cloud.gateway().client("test.amazonaws.com", ACCOUNT, REGION);
    let machine = format!("arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:slipway-provision");
    // A network that is not there: the run opens, looks around, and closes.
    let network = json!({"existing": {"vpcId": "vpc-0123456789abcdef0", "subnetIds": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]}});
    let start = json!({"stateMachineArn": machine, "input": json!({"name": "demo", "network": network}).to_string()});
    let started = aws.json("states", "AWSStepFunctions.StartExecution", &start).await.unwrap();
    let ended = eventually("the execution's end", async || {
        let about = json!({"executionArn": started["executionArn"]});
        let execution = aws.json("states", "AWSStepFunctions.DescribeExecution", &about).await.unwrap();
        (execution["status"] != "RUNNING").then_some(execution)
    })
    .await;
    assert_eq!(
        (ended["status"].as_str(), ended["error"].as_str()),
        (Some("FAILED"), Some("PreflightFailed")),
        "{ended}"
    );

    let entries = cloud.gateway().record().entries();
    let invoke = entries.iter().find(|entry| entry.action == "Invoke").unwrap();
    assert!(invoke.principal.contains(":assumed-role/slipway-ProvisionRole"), "{invoke:?}");
    let by_function: Vec<&Entry> =
        entries.iter().filter(|entry| entry.function.as_deref() == Some("slipway-open-run")).collect();
    assert!(!by_function.is_empty());
    for entry in by_function {
        assert!(entry.principal.contains(":assumed-role/slipway-OpenRunFunctionRole"), "{entry:?}");
        assert_eq!(entry.account, ACCOUNT);
    }
    let deployed = entries.iter().find(|entry| entry.action == "ExecuteChangeSet").unwrap();
    assert_eq!((deployed.principal.as_str(), deployed.mutating), ("arn:aws:iam::111122223333:user/admin", true));
    let lines = std::fs::read_to_string(cloud.dir().join("calls.jsonl")).unwrap();
    assert!(lines.lines().count() >= entries.len());
    let denied: Vec<&Entry> = entries.iter().filter(|entry| entry.denied.is_some()).collect();
    assert!(denied.is_empty(), "{denied:#?}");

    let dir = cloud.dir().to_owned();
    cloud.stop().await;
    assert!(!dir.exists());
    assert_eq!(processes_of(&dir), Vec::<u32>::new());
}

#[tokio::test]
async fn clouds_live_side_by_side() {
    let config = || CloudConfig::new(Kubernetes::None).unwrap();
    let (one, other) = tokio::try_join!(Cloud::start(config()), Cloud::start(config())).unwrap();
    assert_ne!(one.endpoint(), other.endpoint());
    let make = [("CidrBlock", "10.99.0.0/16")];
    let aws = one.gateway().client("test.amazonaws.com", ACCOUNT, REGION);
    aws.query("ec2", "CreateVpc", &make).await.unwrap();
    assert!(aws.query("ec2", "DescribeVpcs", &[]).await.unwrap().contains("10.99.0.0/16"));
    let aws = other.gateway().client("test.amazonaws.com", ACCOUNT, REGION);
    assert!(!aws.query("ec2", "DescribeVpcs", &[]).await.unwrap().contains("10.99.0.0/16"));
    one.stop().await;
    assert!(aws.query("ec2", "DescribeVpcs", &[]).await.is_ok());
    other.stop().await;
}

#[test]
fn a_killed_cloud_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cloud");
    let mut cloud = Command::new(program("slipway-local"))
        .args(["up", "--kubernetes", "none", "--dir"])
        .arg(&dir)
        .arg("--env-file")
        .arg(folder.path().join("cloud.env"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Killed in the middle: both emulators answer, the deployment is under way.
    wait_until("the emulators to answer", || {
        dir.join("run/ministack.port").exists() && dir.join("run/moto.port").exists()
    });
    assert!(processes_of(&dir).len() >= 2);
    cloud.kill().unwrap();
    cloud.wait().unwrap();
    wait_until("all of it to be gone", || processes_of(&dir).is_empty());
}

/// A program of the workspace, built beside this test.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{} is missing: `cargo build --workspace` makes it", path.display());
    path
}

/// Processes of a cloud, told by the folder in their environment: all that it starts, functions too, have it.
fn processes_of(dir: &Path) -> Vec<u32> {
    let dir = dir.to_str().unwrap();
    let of_it = |process: &u32| {
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(dir)
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(of_it).collect()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_mins(1), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
