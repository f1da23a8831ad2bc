//! The real provision machine on virtual time, with closures for its functions: a thousand runs in seconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use slipway_states::definition::StateMachine;
use slipway_states::failure::Failure;
use slipway_states::random::Random;
use slipway_states::simulation::{Answer, Invocation, Simulated, simulate};

const DEFINITION: &str = include_str!("../../../../statemachine/provision.asl.json");

fn provision() -> Arc<StateMachine> {
    match StateMachine::parse(DEFINITION) {
        Ok(machine) => Arc::new(machine),
        Err(problems) => panic!("{problems:#?}"),
    }
}

fn input() -> Value {
    json!({ "name": "demo" })
}

/// The spec as open-run completes it.
fn spec() -> Value {
    json!({
        "name": "demo", "account": "111122223333", "region": "eu-west-1", "version": "1.36",
        "network": { "create": { "cidr": "10.20.0.0/16", "zones": 2, "nat": "single", "flowLogs": false } },
        "access": { "admins": [], "endpoint": { "public": true, "private": true, "cidrs": ["0.0.0.0/0"] } },
        "core": { "instanceTypes": ["t4g.medium"], "size": 2 },
        "karpenter": {
            "version": "1.14.1", "chart": "oci://public.ecr.aws/karpenter/karpenter", "namespace": "karpenter",
            "identity": "irsa", "maxHeals": 5, "values": {},
        },
        "nodePools": [{ "name": "x86", "architecture": "amd64" }, { "name": "graviton", "architecture": "arm64" }],
        "addons": {}, "logging": [], "upgradePolicy": "STANDARD", "zonalShift": false, "deletionProtection": false,
        "verify": { "image": "busybox", "when": "changed" }, "adopt": false, "tags": {},
    })
}

/// What a step puts out when all is well.
fn output(step: &str) -> Value {
    match step {
        "OpenRun" => json!({
            "run": { "id": "01J00000000000000000000000", "fence": 1 }, "spec": spec(),
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" }, "made": {},
        }),
        "Preflight" => json!({ "zones": ["eu-west-1a", "eu-west-1b"], "findings": [] }),
        "EnsureNetwork" => json!({
            "vpcId": "vpc-1", "privateSubnetIds": ["subnet-1", "subnet-2"], "publicSubnetIds": ["subnet-3", "subnet-4"],
            "zones": ["eu-west-1a", "eu-west-1b"],
        }),
        "EnsureClusterRoles" => json!({
            "clusterRoleArn": "c", "coreNodeRoleArn": "n", "karpenterNodeRoleArn": "k", "karpenterNodeRoleName": "k",
        }),
        "EnsureInterruptionQueue" => json!({ "queueName": "q", "queueUrl": "u", "queueArn": "a" }),
        "CreateCluster" => json!({
            "arn": "arn", "endpoint": { "url": "https://…", "certificateAuthority": "…" }, "issuer": "https://…",
            "securityGroupId": "sg-1", "version": "1.36", "serviceCidr": "172.20.0.0/16",
        }),
        "WaitOidc" => json!({ "providerArn": "p" }),
        "AssociateAccessPolicy" => json!({ "entries": [] }),
        "EnsureAddons" => json!({ "addons": [] }),
        "EnsureNodeGroup" => json!({ "nodeGroup": "core", "amiType": "AL2023_ARM_64_STANDARD" }),
        "BindIdentity" => json!({ "controllerRoleArn": "r", "policyArns": [], "replaces": null }),
        "ProbeIdentity" => json!({ "confirmations": 3, "overSeconds": 5, "waitedSeconds": 5, "unchecked": [] }),
        "InstallKarpenter" => {
            json!({ "chartVersion": "1.14.1", "chartDigest": "sha256:…", "applied": 20, "pruned": 0 })
        }
        "ApplyNodePools" => json!({ "nodePools": [] }),
        "VerifyCapacity" => json!({ "skipped": false, "nodes": [] }),
        "CloseRun" => json!({ "outcome": "Succeeded" }),
        _ => json!({}),
    }
}

/// A function as it behaves on a middling day: mostly quick, sometimes throttled, seldom hung, long work in progress.
fn function(call: &Invocation<'_>, refuses: Option<&str>) -> Answer {
    let random = call.random;
    let step = call.arguments["FunctionName"].as_str().unwrap().trim_start_matches("${").trim_end_matches("Function}");
    let payload = &call.arguments["Payload"];
    let after = Duration::from_millis(200 + random.bits() % 3_000);
    let fails = |error: &str| Err(Failure::from_function_error(&json!({ "errorType": error, "errorMessage": "so" })));
    if refuses == Some(step) {
        return Answer { after, result: fails("AccessDenied") };
    }
    let result = match random.bits() % 40 {
        0 => fails("Throttled"),
        1 => fails("Lambda.TooManyRequestsException"),
        2 => fails("PropagationPending"),
        3 if random.bits().is_multiple_of(4) => {
            return Answer { after: Duration::from_mins(15), result: Ok(Value::Null) };
        }
        _ => Ok(answer(step, payload, random)),
    };
    Answer {
        after,
        result: result.map(|payload| json!({ "ExecutedVersion": "1", "Payload": payload, "StatusCode": 200 })),
    }
}

fn answer(step: &str, payload: &Value, random: &Random) -> Value {
    let confirmed = json!({ "times": 0, "overSeconds": 0 });
    let waits = json!({ "done": false, "retryAfterSeconds": 45, "detail": "still at it", "confirmed": confirmed, "suspect": null });
    match step {
        "CheckKarpenter" => {
            let health = ["Ready", "Progressing", "Healable"][usize::try_from(random.bits() % 3).unwrap()];
            json!({
                "health": health, "retryAfterSeconds": 10, "detail": "pods", "suspect": null,
                "error": "KarpenterNotReady", "cause": "so",
                "failingPods": if health == "Healable" { json!([{ "name": "karpenter-1", "uid": "1" }]) } else { json!([]) },
            })
        }
        "HealKarpenter" => {
            json!({ "recreated": ["karpenter-1"], "heals": payload["heals"].as_u64().unwrap() + 1, "retryAfterSeconds": 5 })
        }
        "EnsureNetwork"
        | "WaitOidc"
        | "AssociateAccessPolicy"
        | "EnsureAddons"
        | "EnsureNodeGroup"
        | "ProbeIdentity"
        | "ApplyNodePools"
        | "VerifyCapacity"
        | "CreateCluster" => {
            let chance = if step == "CreateCluster" { 12 } else { 3 };
            if random.bits().is_multiple_of(chance) { json!({ "done": true, "output": output(step) }) } else { waits }
        }
        _ => output(step),
    }
}

fn simulated(machine: &Arc<StateMachine>, seed: u64) -> Simulated {
    simulate(machine, &input(), seed, |call| function(call, None)).unwrap()
}

#[test]
fn a_thousand_runs_end_well_or_closed() {
    let machine = provision();
    let begun = Instant::now();
    let mut succeeded = 0;
    for seed in 0..1_000 {
        let run = simulated(&machine, seed);
        let closes = run.events.iter().filter(|event| {
            event.kind == "TaskSucceeded"
                && event.details.as_ref().is_some_and(|(_, d)| d["output"].as_str().unwrap().contains("outcome"))
        });
        match &run.result {
            Ok(output) => {
                succeeded += 1;
                assert_eq!(output["outcome"], "Succeeded");
                assert_eq!(output["cluster"]["arn"], "arn");
            }
            // Unlucky dice: too many hangs, or a health that never becomes Ready.
            Err(failure) => assert!(!failure.error.starts_with("States.Query"), "seed {seed}: {failure}"),
        }
        let opened = run.events.iter().filter(|event| event.kind == "TaskStateExited").count() > 1;
        assert!(!opened || closes.count() == 1, "seed {seed}: an opened run is closed exactly once");
    }
    assert!(succeeded > 900, "{succeeded} of 1,000");
    // A few seconds on an idle core; the bound only guards against a change of order.
    assert!(begun.elapsed() < Duration::from_mins(5), "{:?}", begun.elapsed());
}

#[test]
fn a_seed_repeats_its_run() {
    let machine = provision();
    assert_eq!(simulated(&machine, 42), simulated(&machine, 42));
}

#[test]
fn a_refused_step_ends_in_a_failure_that_says_what_to_do() {
    let machine = provision();
    for step in ["Preflight", "EnsureNetwork", "CreateCluster", "BindIdentity", "ApplyNodePools"] {
        let run = simulate(&machine, &input(), 3, move |call| function(call, Some(step))).unwrap();
        let failure = run.result.unwrap_err();
        assert_eq!(failure.error, "AccessDenied", "{step}");
        assert!(
            failure.cause.starts_with("so ") && failure.cause.contains("start the machine again"),
            "{step}: {failure}"
        );
    }
}
