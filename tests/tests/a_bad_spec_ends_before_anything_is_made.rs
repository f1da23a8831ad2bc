//! Bad input ends in seconds, names the field, and nothing has been made.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::json;
use slipway_local::cloud::Kubernetes;
use slipway_tests::cloud::Deployed;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_spec_ends_before_anything_is_made() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let before = deployed.cloud.gateway().record().entries().len();
    let cases = [
        (json!({"name": "demo", "flavour": "large"}), "InvalidInput", "flavour"),
        (json!({"name": "demo", "core": {"size": "two"}}), "InvalidInput", "core.size"),
        (json!({"name": "no spaces, please"}), "InvalidInput", "name"),
        (json!({"version": "1.36"}), "InvalidInput", "name"),
        (json!({"name": "demo", "network": {"create": {"cidr": "10.0.0.0/28"}}}), "InvalidInput", "cidr"),
        (json!({"name": "demo", "ttl": "8h"}), "NotYetSupported", "ttl"),
    ];
    for (spec, error, field) in cases {
        let ended = deployed.provision(&spec).await.unwrap();
        assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", error), "{spec}: {}", ended.cause);
        assert!(ended.cause.contains(field), "{spec}: {}", ended.cause);
        assert!(ended.took.as_secs() < 10, "{spec} took {:?}", ended.took);
    }
    let made: Vec<_> = deployed.cloud.gateway().record().entries()[before..]
        .iter()
        .filter(|call| call.mutating && !["states", "lambda", "logs"].contains(&call.service.as_str()))
        .map(|call| format!("{}:{} by {}", call.service, call.action, call.principal))
        .collect();
    assert_eq!(made, Vec::<String>::new());
    deployed.cloud.stop().await;
}
