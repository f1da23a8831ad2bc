//! What each machine is started with, and what each step would answer, for `examples/innovate-dev.json`: the data of
//! simulated runs and of the sample events.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use slipway_states::definition::StateMachine;
use slipway_states::simulation::{Answer, Invocation, simulate};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::repository;

/// The kebab-case name of the step that a task calls.
#[must_use]
pub fn step_of(invocation: &Invocation<'_>) -> String {
    let arn = invocation.arguments["FunctionName"].as_str().unwrap_or_default();
    let name = arn.trim_end_matches(":live").rsplit(':').next().unwrap_or_default().trim_end_matches("Function");
    kebab(name)
}

/// `OpenRun` as `open-run`.
#[must_use]
pub fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}

/// What a machine is started with.
///
/// # Errors
/// When the example cannot be read.
pub fn request(machine: &str) -> anyhow::Result<Value> {
    match machine {
        "teardown" => Ok(json!({ "name": "innovate-dev", "network": "delete", "workloads": "delete" })),
        "audit" | "sweep" => Ok(json!({ "name": "innovate-dev" })),
        _ => repository::read_json("examples/innovate-dev.json"),
    }
}

/// What a step answers when all is well.
#[must_use]
pub fn answer(step: &str, payload: &Value) -> Value {
    let role = |suffix: &str| format!("arn:aws:iam::111122223333:role/slipway-eks-innovate-dev-eu-west-1-{suffix}");
    let done = |output: Value| json!({ "done": true, "output": output });
    match step {
        "open-run" => json!({
            "run": { "id": "01KAPQ3J5Z8Q6T4W2R0N9M7K5H", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "innovate-dev" },
            "spec": completed(&payload["spec"]),
            "made": {},
        }),
        "preflight" => json!({ "zones": ["eu-west-1a", "eu-west-1b"], "findings": [] }),
        "ensure-network" => done(json!({
            "vpcId": "vpc-0a1b2c3d4e5f60718",
            "privateSubnetIds": ["subnet-0a1b2c3d4e5f60711", "subnet-0a1b2c3d4e5f60712"],
            "publicSubnetIds": ["subnet-0a1b2c3d4e5f60713", "subnet-0a1b2c3d4e5f60714"],
            "zones": ["eu-west-1a", "eu-west-1b"],
            "stackName": "slipway-network-innovate-dev",
        })),
        "ensure-cluster-roles" => json!({
            "clusterRoleArn": role("cluster"),
            "coreNodeRoleArn": role("core"),
            "karpenterNodeRoleArn": role("node"),
            "karpenterNodeRoleName": "slipway-eks-innovate-dev-eu-west-1-node",
        }),
        "ensure-interruption-queue" => json!({
            "queueName": "slipway-eks-innovate-dev",
            "queueUrl": "https://sqs.eu-west-1.amazonaws.com/111122223333/slipway-eks-innovate-dev",
            "queueArn": "arn:aws:sqs:eu-west-1:111122223333:slipway-eks-innovate-dev",
        }),
        "create-cluster" => done(json!({
            "arn": "arn:aws:eks:eu-west-1:111122223333:cluster/innovate-dev",
            "endpoint": {
                "url": "https://0123456789ABCDEF0123456789ABCDEF.gr7.eu-west-1.eks.amazonaws.com",
                "certificateAuthority": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCi0tLS0tRU5EIENFUlRJRklDQVRFLS0tLS0K",
            },
            "issuer": "https://oidc.eks.eu-west-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF",
            "securityGroupId": "sg-0a1b2c3d4e5f60718",
            "version": "1.36",
            "serviceCidr": "172.20.0.0/16",
        })),
        "wait-oidc" => done(json!({
            "providerArn": "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF",
        })),
        "associate-access-policy" => done(json!({
            "entries": ["arn:aws:eks:eu-west-1:111122223333:access-entry/innovate-dev/role/111122223333/slipway-cluster-access/1"],
        })),
        "ensure-addons" => done(json!({ "addons": [{ "name": "coredns", "version": "v1.13.1-eksbuild.1" }] })),
        "ensure-node-group" => done(json!({ "nodeGroup": "core", "amiType": "AL2023_ARM_64_STANDARD" })),
        "bind-identity" => json!({
            "controllerRoleArn": role("controller"),
            "policyArns": ["arn:aws:iam::111122223333:policy/slipway-eks-innovate-dev-eu-west-1-interruption"],
            "replaces": null,
        }),
        "probe-identity" => done(json!({ "confirmations": 3, "overSeconds": 5, "waitedSeconds": 5, "unchecked": [] })),
        "install-karpenter" => json!({
            "chartVersion": "1.14.1",
            "chartDigest": format!("sha256:{}", "0".repeat(64)),
            "applied": 18,
            "pruned": 0,
        }),
        "check-karpenter" => json!({
            "health": "Ready", "diagnosis": "Ready", "retryAfterSeconds": 0, "detail": "2 of 2 replicas are ready",
            "failingPods": [], "suspect": null, "error": "KarpenterNotReady", "cause": "Karpenter is ready.",
        }),
        "heal-karpenter" => json!({
            "recreated": ["karpenter-6c9d8f7b5-x2x4z"],
            "heals": payload["heals"].as_u64().unwrap_or_default() + 1,
            "retryAfterSeconds": 5,
        }),
        "apply-node-pools" => done(json!({
            "nodePools": [{ "name": "x86", "architecture": "amd64" }, { "name": "graviton", "architecture": "arm64" }],
        })),
        "verify-capacity" => done(json!({
            "skipped": false,
            "nodes": [{
                "name": "ip-10-20-1-10.eu-west-1.compute.internal", "architecture": "arm64",
                "instanceType": "t4g.small", "capacityType": "spot", "zone": "eu-west-1a",
            }],
        })),
        "audit" => json!({ "findings": [finding()], "total": 1, "monthlyCostUsd": 0.7, "unpriced": 0 }),
        "sweep" => done(json!({ "dryRun": true, "plan": [finding()], "skipped": [] })),
        "plan" => json!({
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "innovate-dev" }, "findings": [],
            "planned": [{
                "verb": "create", "kind": "EKS cluster", "name": "innovate-dev", "reason": "it is not there",
                "monthlyCostUsd": 73.0,
            }],
            "monthlyCostUsd": 73.0,
        }),
        "close-run" => json!({ "outcome": payload["outcome"] }),
        _ => of_teardown(step, payload),
    }
}

/// What check-karpenter answers of a Karpenter whose identity AWS does not believe yet.
#[must_use]
pub fn race(words: &str) -> Value {
    let pod = json!({
        "name": "karpenter-6c9d8f7b5-x2x4z", "uid": "5a6b7c8d-0000-4000-8000-000000000001", "reason": "exit 1",
    });
    json!({
        "health": "Healable", "diagnosis": "IdentityRace", "retryAfterSeconds": 5, "detail": words, "failingPods": [pod],
        "suspect": null, "error": "IdentityNotBelieved", "cause": words,
    })
}

/// What a step of the teardown answers when all is well.
fn of_teardown(step: &str, payload: &Value) -> Value {
    let done = |output: Value| json!({ "done": true, "output": output });
    match step {
        "open-teardown" => json!({
            "run": { "id": "01KAPQ3J5Z8Q6T4W2R0N9M7K5J", "fence": 2 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "innovate-dev" },
            "spec": completed(&json!({ "name": "innovate-dev" })),
            "options": slipway_statemachine::teardown::Teardown::parse(&payload["request"]).map(|asked| asked.options).ok(),
            "found": {
                "detail": "ACTIVE",
                "endpoint": {
                    "url": "https://0123456789ABCDEF0123456789ABCDEF.gr7.eu-west-1.eks.amazonaws.com",
                    "certificateAuthority": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCi0tLS0tRU5EIENFUlRJRklDQVRFLS0tLS0K",
                },
            },
        }),
        "release-workloads"
        | "drain-capacity"
        | "uninstall-karpenter"
        | "delete-addons"
        | "delete-node-groups"
        | "terminate-instances"
        | "delete-cluster"
        | "delete-network" => done(json!({})),
        "delete-queue" => json!({
            "queues": ["slipway-eks-innovate-dev"],
            "rules": ["slipway-eks-innovate-dev.rebalance"],
        }),
        "delete-identity" => json!({
            "instanceProfiles": [],
            "roles": ["slipway-eks-innovate-dev-eu-west-1-core"],
            "policies": ["arn:aws:iam::111122223333:policy/slipway-eks-innovate-dev-eu-west-1-interruption"],
            "providers": [],
        }),
        "delete-remnants" => done(json!({
            "loadBalancers": [], "targetGroups": [], "volumes": [], "networkInterfaces": [], "launchTemplates": [],
            "securityGroups": ["sg-0a1b2c3d4e5f60718"], "logGroups": [],
        })),
        _ => Value::Null,
    }
}

fn finding() -> Value {
    json!({
        "arn": "arn:aws:ec2:eu-west-1:111122223333:volume/vol-0a1b2c3d4e5f60718", "kind": "volume",
        "name": "vol-0a1b2c3d4e5f60718", "ageSeconds": 86400, "cluster": "innovate-dev",
        "because": "its tag slipway:cluster is innovate-dev (available)", "monthlyCostUsd": 0.7,
        "removedBy": "teardown, or sweep", "tagged": true,
    })
}

/// What the provision machine is started with for a plan.
///
/// # Errors
/// When the example cannot be read.
pub fn plan_request() -> anyhow::Result<Value> {
    let mut request = request("provision")?;
    request["mode"] = json!("plan");
    Ok(request)
}

/// As open-run completes a spec.
fn completed(raw: &Value) -> Value {
    let Ok(mut spec) = slipway_statemachine::ClusterSpec::parse(raw) else { return Value::Null };
    spec.account = Some("111122223333".to_owned());
    spec.region = Some("eu-west-1".to_owned());
    spec.version.get_or_insert_with(|| "1.36".to_owned());
    json!(spec)
}

/// One sample event a step: its payload in a run of the example in which one pod had to be healed; of a step that
/// several machines call, in the first of them.
///
/// # Errors
/// When a machine's definition or the example cannot be read, or a run does not end.
pub fn events() -> anyhow::Result<BTreeMap<String, Value>> {
    let mut events = BTreeMap::new();
    for machine in repository::machines()? {
        for (step, payload) in events_of(&machine, &request(&machine)?)? {
            events.entry(step).or_insert(payload);
        }
    }
    events.extend(events_of("provision", &plan_request()?)?);
    Ok(events)
}

fn events_of(machine: &str, request: &Value) -> anyhow::Result<BTreeMap<String, Value>> {
    let definition = repository::definition(machine)?;
    let definition = StateMachine::parse(&definition).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let recorded = Arc::clone(&seen);
    let run = simulate(&Arc::new(definition), request, 1, move |invocation| {
        let step = step_of(invocation);
        let payload = &invocation.arguments["Payload"];
        let mut events = recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let first = events.insert(step.clone(), payload.clone()).is_none();
        let answer =
            if step == "check-karpenter" && first { race("1 of 2 replicas are ready") } else { answer(&step, payload) };
        Answer { after: Duration::from_secs(1), result: Ok(json!({ "ExecutedVersion": "1", "Payload": answer })) }
    })?;
    run.result?;
    let events = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(events)
}
