//! `"mode": "plan"`: everything that a provision would make is told, with its price, and nothing has been made.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};
use slipway_local::cloud::Kubernetes;
use slipway_tests::cloud::Deployed;

fn spec() -> Value {
    let mut spec: Value = serde_json::from_str(include_str!("../../../examples/innovate-dev.json")).unwrap();
    spec["mode"] = json!("plan");
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_what_would_be_done_and_changes_nothing() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let before = deployed.last_call();
    let ended = deployed.provision(&spec()).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);

    let planned = ended.output["planned"].as_array().unwrap();
    assert!(planned.iter().all(|thing| thing["verb"] == "create"), "{planned:#?}");
    let of = |kind: &str| planned.iter().filter(|thing| thing["kind"] == kind).count();
    assert_eq!((of("EKS cluster"), of("CloudFormation stack"), of("EKS node group")), (1, 1, 1));
    assert_eq!((of("SQS queue"), of("EventBridge rule"), of("IAM OIDC provider")), (1, 5, 1));
    // Control plane, core nodes, Karpenter's nodes, Karpenter.
    assert_eq!((of("IAM role"), of("IAM policy")), (4, 6));
    assert_eq!((of("Kubernetes NodePool"), of("Kubernetes EC2NodeClass")), (2, 1));
    // A control plane, one NAT gateway with its address, two t4g.medium.
    assert_eq!(ended.output["monthlyCostUsd"], json!(73.0 + 38.69 + 53.73), "{}", ended.output["monthlyCostUsd"]);
    assert_eq!(ended.output["findings"], json!([]));

    let changed: Vec<_> = deployed.mutations(before).iter().map(|call| call.action.clone()).collect();
    assert_eq!(changed, Vec::<String>::new());
    assert_eq!(deployed.rows("innovate-dev").await.unwrap(), []);

    let mut bad = spec();
    bad["version"] = json!("1.20");
    bad["karpenter"]["version"] = json!("1.14.99");
    let ended = deployed.provision(&bad).await.unwrap();
    assert_eq!((ended.status.as_str(), &ended.output["planned"]), ("SUCCEEDED", &json!([])), "{}", ended.cause);
    let findings = ended.output["findings"].as_array().unwrap();
    let fields: Vec<_> = findings.iter().map(|finding| finding["field"].as_str().unwrap()).collect();
    assert!(fields.contains(&"version") && fields.contains(&"karpenter.version"), "{findings:#?}");
    deployed.cloud.stop().await;
}
