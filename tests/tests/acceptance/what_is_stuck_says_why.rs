//! What AWS does not get to work ends a run under a name of its own, with the words of whoever failed, and the run goes on
//! once the remedy was followed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use slipway_local::cloud::{Kubernetes, REGION};
use slipway_local::services::capacity::Shortage;
use slipway_tests::{cloud::Deployed, wait::eventually};

fn spec(name: &str) -> Value {
    json!({
        "name": name, "region": REGION, "nodePools": [{ "name": "graviton", "architecture": "arm64" }],
    })
}

/// Provisions, and asks for an end under this name whose cause has these words.
async fn fails(deployed: &Deployed, name: &str, error: &str, words: &[&str]) {
    let ended = deployed.provision(&spec(name)).await.unwrap();
    assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", error), "{}", ended.cause);
    for part in words {
        assert!(ended.cause.contains(part), "{part} in {}", ended.cause);
    }
    let calls = deployed.cloud.gateway().record().entries();
    let denied: Vec<_> = calls.into_iter().filter(|call| call.denied.is_some()).collect();
    assert!(denied.is_empty(), "{denied:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about two minutes"]
async fn soak_of_nodes_and_addons_that_do_not_come() {
    const NAME: &str = "stuck";
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    deployed.cloud.lack(&[Shortage::of("*", "*", "on-demand")]).unwrap();
    let no_machines = [
        "The node group core is CREATE_FAILED",
        "InsufficientInstanceCapacity",
        "Its instances in EC2: none.",
        "Default routes: subnet-",
        " to nat-",
        "core.instanceTypes",
        "delete the node group and start again",
    ];
    fails(&deployed, NAME, "CapacityUnavailable", &no_machines).await;

    deployed.cloud.lack(&[]).unwrap();
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    eks.delete_nodegroup().cluster_name(NAME).nodegroup_name("core").send().await.unwrap();
    eventually("the failed group's end", async || {
        eks.describe_nodegroup().cluster_name(NAME).nodegroup_name("core").send().await.err()
    })
    .await;
    let ended = deployed.provision(&spec(NAME)).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);

    let deployments: Api<Deployment> = Api::namespaced(deployed.admin(NAME).await.unwrap(), "kube-system");
    let image = async |image: &str| {
        let containers = json!([{ "name": "coredns", "image": image }]);
        // All at once: old pods that stay until new ones are ready would hide it.
        let strategy = json!({ "type": "Recreate", "$retainKeys": ["type"] });
        let patch = json!({ "spec": { "strategy": strategy, "template": { "spec": { "containers": containers } } } });
        deployments.patch("coredns", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
    };
    let good = deployments.get("coredns").await.unwrap().spec.unwrap().template.spec.unwrap().containers[0].clone();
    image("registry.invalid/coredns:1").await;
    eventually("an add-on that EKS calls degraded", async || {
        let asked = eks.describe_addon().cluster_name(NAME).addon_name("coredns").send().await.ok()?;
        (asked.addon?.status?.as_str() == "DEGRADED").then_some(())
    })
    .await;
    let too_few =
        ["The add-on coredns is DEGRADED", "InsufficientNumberOfReplicas", "pods in kube-system", "start again"];
    fails(&deployed, NAME, "AddonFailed", &too_few).await;
    image(&good.image.unwrap()).await;
    let ended = deployed.provision(&spec(NAME)).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    deployed.cloud.stop().await;
}

/// A cloud without Kubernetes has no control plane to give.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: half a minute"]
async fn soak_of_a_control_plane_that_fails() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let failed = ["The EKS cluster headless is FAILED", "started without Kubernetes", "delete the failed cluster"];
    fails(&deployed, "headless", "ClusterFailed", &failed).await;
    deployed.cloud.stop().await;
}
