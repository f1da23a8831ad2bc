//! EC2 has no machine for the core group: the run ends under that name with EKS's and EC2's words, and goes on once the
//! remedy was followed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use serde_json::json;
use slipway_local::cloud::{Kubernetes, REGION};
use slipway_local::services::capacity::Shortage;
use slipway_tests::cloud::Deployed;

const NAME: &str = "stuck";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about a minute"]
async fn soak_of_a_node_group_without_capacity() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let spec = json!({
        "name": NAME, "region": REGION, "nodePools": [{ "name": "graviton", "architecture": "arm64" }],
    });
    deployed.cloud.lack(&[Shortage::of("*", "*", "on-demand")]).unwrap();
    let ended = deployed.provision(&spec).await.unwrap();
    assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", "CapacityUnavailable"), "{}", ended.cause);
    for part in [
        "The node group core is CREATE_FAILED",
        "InsufficientInstanceCapacity",
        "Its instances in EC2: none.",
        "Default routes: subnet-",
        " to nat-",
        "core.instanceTypes",
        "delete the node group and start again",
    ] {
        assert!(ended.cause.contains(part), "{part} in {}", ended.cause);
    }
    let denied: Vec<_> =
        deployed.cloud.gateway().record().entries().into_iter().filter(|call| call.denied.is_some()).collect();
    assert!(denied.is_empty(), "{denied:#?}");

    deployed.cloud.lack(&[]).unwrap();
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    eks.delete_nodegroup().cluster_name(NAME).nodegroup_name("core").send().await.unwrap();
    let began = Instant::now();
    while eks.describe_nodegroup().cluster_name(NAME).nodegroup_name("core").send().await.is_ok() {
        assert!(began.elapsed() < Duration::from_mins(1), "the failed group stays");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let ended = deployed.provision(&spec).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    deployed.cloud.stop().await;
}
