//! The real Karpenter as a container: refused by AWS it ends, leaves its words, and is started again with back-off.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use axum::Router;
use axum::http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, LogParams, PostParams};
use serde_json::json;

use crate::common::{Cluster, eventually, processes_of};

const REFUSAL: &str = "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>You are not authorized.\
    </Message></Error></Errors><RequestID>r</RequestID></Response>";

/// An AWS that refuses everything.
async fn refusing_aws() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(|| async { (StatusCode::FORBIDDEN, REFUSAL) });
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn controller() -> Pod {
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
    serde_json::from_value(json!({
        "metadata": { "name": "karpenter" },
        "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": "controller",
                "image": "public.ecr.aws/karpenter/controller:1.14.1",
                "env": [
                    variable("CLUSTER_NAME", "demo"),
                    variable("CLUSTER_ENDPOINT", "https://127.0.0.1:9"),
                    variable("AWS_REGION", "eu-west-1"),
                    variable("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
                    variable("AWS_SECRET_ACCESS_KEY", "secret"),
                    { "name": "MEMORY_LIMIT", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory" } } },
                    { "name": "SYSTEM_NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
                ],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "readinessProbe": { "httpGet": { "path": "/readyz", "port": "http" } },
                "ports": [{ "name": "http", "containerPort": 8081 }],
            }],
        },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_karpenter_is_restarted_and_heard() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &refusing_aws().await).await;
    cluster.install_network_plugin().await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.plane.admin.clone());
    pods.create(&PostParams::default(), &controller()).await.unwrap();

    let container = eventually("a container that crashed twice", || async {
        let status = pods.get("karpenter").await.unwrap().status?.container_statuses?.into_iter().next()?;
        let waiting = status.state.as_ref()?.waiting.as_ref()?.reason.as_deref() == Some("CrashLoopBackOff");
        (waiting && status.restart_count == 2).then_some(status)
    })
    .await;
    assert!(!container.ready);
    let end = container.last_state.unwrap().terminated.unwrap();
    assert_eq!((end.exit_code, end.reason.as_deref()), (1, Some("Error")));
    assert!(end.message.unwrap().contains("ec2 api connectivity check failed"));

    for previous in [false, true] {
        let log = pods.logs("karpenter", &LogParams { previous, ..LogParams::default() }).await.unwrap();
        assert!(log.contains("UnauthorizedOperation"), "{log}");
    }
    let last = pods.logs("karpenter", &LogParams { tail_lines: Some(1), ..LogParams::default() }).await.unwrap();
    assert_eq!(last.lines().count(), 1);

    pods.delete("karpenter", &DeleteParams::default()).await.unwrap();
    eventually("the end of the deleted pod", || async {
        pods.get_opt("karpenter").await.unwrap().is_none().then_some(())
    })
    .await;
    cluster.stop().await;
    assert_eq!(processes_of(dir.path()), Vec::<String>::new());
}
