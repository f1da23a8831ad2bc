//! A run that failed of something that no run makes is gone on with where it failed, in less than a fifth of the calls
//! that it took from nothing. One that went on and fails again is followed by one that looks at everything.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_tests::cloud::{Deployed, Ended};
use slipway_tests::wait::eventually;

const NAME: &str = "gone-on-with";
/// Whether Karpenter works is asked in every run.
const RESUMED: [&str; 5] = ["open-run", "check-karpenter", "apply-node-pools", "verify-capacity", "close-run"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_run_is_gone_on_with_where_it_failed() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let mut spec: Value = serde_json::from_str(include_str!("../../../examples/innovate-dev.json")).unwrap();
    spec["name"] = json!(NAME);

    // Somebody's policy lets nobody make pods where the run verifies capacity.
    let nothing = deployed.last_call();
    let execution = deployed.start_machine("slipway-provision", &spec).await.unwrap();
    let admin = eventually("the API server", async || {
        let admin = deployed.admin(NAME).await.ok()?;
        forbid_test_pods(&admin).await.ok()?;
        Some(admin)
    })
    .await;
    let failed = deployed.end(&execution).await.unwrap();
    refused_pods(&failed);
    let calls = |since| deployed.calls(since).values().sum::<usize>();
    let (from_nothing, changes) = (calls(nothing), deployed.mutations(nothing).len());

    opened_twice_it_goes_on_alike(&deployed, &spec).await;

    // It may have failed of what it did not look at.
    let (thorough, steps) = provision(&deployed, &spec).await;
    refused_pods(&thorough);
    assert!(steps.iter().any(|step| step == "preflight") && steps.len() > 15, "{steps:?}");

    allow_test_pods(admin).await;
    let failed = deployed.last_call();
    let (ended, steps) = provision(&deployed, &spec).await;
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert_eq!(steps, RESUMED);
    let resumed = calls(failed);
    eprintln!("{from_nothing} calls and {changes} changes until it failed, {resumed} calls from there");
    assert!(resumed * 5 < from_nothing, "{from_nothing} calls until it failed, {resumed} from there");
    assert_eq!(deployed.mutations(failed).len(), 0);
    // What the steps before it made is told as if they had run.
    for (part, fact) in [("cluster", "endpoint"), ("network", "vpcId"), ("core", "amiType"), ("karpenter", "queueName")]
    {
        assert!(ended.output[part][fact].is_string(), "{part}: {}", ended.output);
    }
    assert_eq!(ended.output["capacity"]["nodes"].as_array().unwrap().len(), 2, "{}", ended.output);
    deployed.cloud.stop().await;
}

/// A run that goes on, whose first step was answered twice, as happens when Lambda loses an answer; and it fails again.
async fn opened_twice_it_goes_on_alike(deployed: &Deployed, spec: &Value) {
    let arn = format!("arn:aws:states:{REGION}:{ACCOUNT}:execution:slipway-provision:twice");
    let opening = json!({ "execution": { "arn": arn, "startedAt": "2026-11-30T09:00:00Z" }, "spec": spec });
    let first = deployed.invoke("open-run", &opening).await.unwrap();
    assert_eq!(first["made"]["next"], "CheckKarpenter", "{first}");
    assert!(first["resumes"].is_string(), "{first}");
    assert_eq!(deployed.invoke("open-run", &opening).await.unwrap(), first);
    let closing = json!({
        "run": first["run"], "cluster": first["cluster"], "spec": first["spec"], "outcome": "Failed", "made": first["made"],
        "failure": { "error": "KubernetesRefused", "cause": "no test pods" },
    });
    deployed.invoke("close-run", &closing).await.unwrap();
}

/// A run, and the steps that it had.
async fn provision(deployed: &Deployed, spec: &Value) -> (Ended, Vec<String>) {
    let execution = deployed.start_machine("slipway-provision", spec).await.unwrap();
    let ended = deployed.end(&execution).await.unwrap();
    let steps = deployed.payloads(&execution).await.unwrap().into_iter().map(|asked| asked.step).collect();
    (ended, steps)
}

fn refused_pods(ended: &Ended) {
    assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", "KubernetesRefused"), "{}", ended.cause);
    assert!(ended.cause.contains("no test pods"), "{}", ended.cause);
}

async fn forbid_test_pods(admin: &kube::Client) -> anyhow::Result<()> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(admin.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(admin.clone());
    let policy = json!({
        "metadata": { "name": "no-test-pods" },
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": { "resourceRules": [
                { "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] },
            ] },
            "validations": [{ "expression": "request.namespace != 'slipway-verify'", "message": "no test pods" }],
        },
    });
    let binding = json!({
        "metadata": { "name": "no-test-pods" },
        "spec": { "policyName": "no-test-pods", "validationActions": ["Deny"] },
    });
    if policies.get_opt("no-test-pods").await?.is_none() {
        policies.create(&PostParams::default(), &serde_json::from_value(policy)?).await?;
    }
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    Ok(())
}

async fn allow_test_pods(admin: kube::Client) {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(admin.clone());
    bindings.delete("no-test-pods", &DeleteParams::default()).await.unwrap();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "tried" }, "spec": { "containers": [{ "name": "x", "image": "x" }] },
    }))
    .unwrap();
    let pods: Api<Pod> = Api::namespaced(admin, "slipway-verify");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    // The namespace may refuse it for reasons of its own.
    eventually("admission to hear of it", async || {
        let refused = pods.create(&dry, &pod).await.is_err_and(|error| error.to_string().contains("no test pods"));
        (!refused).then_some(())
    })
    .await;
}
