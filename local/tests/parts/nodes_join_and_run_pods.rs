//! A real control plane, machines from EC2's answers, and pods on them: joining, running, failing, logs, leaving.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, PostParams};
use serde_json::json;

use crate::common::{Cluster, eventually, processes_of};

fn deployment(name: &str, image: &str) -> Deployment {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": image }] },
            },
        },
    }))
    .unwrap()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_join_and_their_pods_run() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), "http://127.0.0.1:9").await;
    let plane = &cluster.plane;
    assert_eq!(plane.jwks["keys"][0]["alg"], "RS256");

    let client = plane.admin.clone();
    let nodes: Api<Node> = Api::all(client.clone());
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let post = PostParams::default();
    deployments.create(&post, &deployment("good", "public.ecr.aws/docker/library/busybox:stable")).await.unwrap();
    deployments.create(&post, &deployment("bad", "public.ecr.aws/docker/library/busybox:missing")).await.unwrap();

    let joined = eventually("two machines without a network", || async {
        let nodes = nodes.list(&ListParams::default()).await.unwrap().items;
        (nodes.len() == 2).then_some(nodes)
    })
    .await;
    assert!(joined.iter().all(|node| !is_ready(node)), "without the network plugin a node is not ready");
    cluster.install_network_plugin().await;

    eventually("a rolled out deployment", || async {
        let status = deployments.get("good").await.unwrap().status?;
        (status.available_replicas == Some(2)).then_some(())
    })
    .await;
    let names: Vec<String> = nodes
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .filter_map(|node| node.metadata.name)
        .collect();
    assert_eq!(names.len(), 2, "the machine of a role without an access entry stays out: {names:?}");

    eventually("a pod whose image can't be pulled", || async {
        let bad = pods.list(&ListParams::default().labels("app=bad")).await.unwrap().items.into_iter().next()?;
        let status = bad.status?.container_statuses?.into_iter().next()?;
        (status.state?.waiting?.reason? == "ImagePullBackOff").then_some(())
    })
    .await;

    let good = pods.list(&ListParams::default().labels("app=good")).await.unwrap().items.remove(0);
    let name = good.metadata.name.unwrap();
    let log = pods.logs(&name, &LogParams::default()).await.unwrap();
    assert!(log.contains("is not run"), "{log}");
    pods.delete(&name, &DeleteParams::default()).await.unwrap();
    eventually("the deleted pod's end", || async {
        let pod = pods.get_opt(&name).await.unwrap();
        pod.is_none().then_some(())
    })
    .await;

    cluster.stop().await;
    assert_eq!(processes_of(dir.path()), Vec::<String>::new());
    assert!(!plane.dir.exists());
}
