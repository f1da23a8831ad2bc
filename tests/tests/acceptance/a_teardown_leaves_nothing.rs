//! Clusters whose workloads hold load balancers and volumes are taken away, in whatever state their nodes, Karpenter and
//! API server are: afterwards the account holds what it held before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::Filter;
use aws_sdk_eks::types::FargateProfileSelector;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::core::NamespaceResourceScope;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_statemachine::{ClusterKey, names};
use slipway_tests::{account, cloud::Deployed, privileges, repository, wait::eventually};

/// What a teardown may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Spot and on-demand nodes of both architectures run pods.
    SpotAndOnDemand,
    /// Karpenter has launched a machine that never becomes a node.
    PendingNodeClaim,
    /// The node group is being made.
    NodeGroupInCreation,
    /// The controller crashes at each start.
    KarpenterCrashed,
    /// Nobody answers at the cluster's endpoint.
    ApiServerUnreachable,
    /// Karpenter's namespace was deleted and does not go.
    NamespaceStuck,
}

const STATES: [State; 6] = [
    State::SpotAndOnDemand,
    State::PendingNodeClaim,
    State::NodeGroupInCreation,
    State::KarpenterCrashed,
    State::ApiServerUnreachable,
    State::NamespaceStuck,
];

/// Where the workloads are.
const SHOP: &str = "shop";

fn spec(name: &str) -> Value {
    json!({
        "name": name,
        "region": REGION,
        "nodePools": [
            { "name": "x86", "architecture": "amd64", "capacity": ["spot", "on-demand"] },
            { "name": "graviton", "architecture": "arm64", "capacity": ["spot", "on-demand"] },
        ],
        "addons": { "aws-ebs-csi-driver": { "identity": { "policyArns": [] } } },
    })
}

/// A state by chance; `SLIPWAY_STATE=<number>` names it, and the soak takes all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teardown_leaves_nothing() {
    let chosen = std::env::var("SLIPWAY_STATE").ok().and_then(|number| number.parse().ok());
    let chance = usize::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()).unwrap();
    let state = STATES[chosen.unwrap_or(chance % STATES.len())];
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    taken_away(&deployed, "shop", state).await;
    deployed.cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about fifteen minutes"]
async fn soak_a_teardown_leaves_nothing_in_any_state() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let mut report = "| state | network | account as before | teardown, s |\n|---|---|---|---|\n".to_owned();
    for (number, state) in STATES.into_iter().enumerate() {
        let took = taken_away(&deployed, &format!("shop-{number}"), state).await;
        let network = if keeps_network(state) { "kept" } else { "deleted" };
        writeln!(report, "| {state:?} | {network} | yes | {} |", took.as_secs()).unwrap();
    }
    deployed.cloud.stop().await;
    repository::report("teardown of any state", &report).unwrap();
}

/// One state keeps its network, and its account is as before but for that.
fn keeps_network(state: State) -> bool {
    state == State::PendingNodeClaim
}

/// Makes a cluster with workloads, brings it into a state, takes it away and compares; answers how long that took.
async fn taken_away(deployed: &Deployed, name: &str, state: State) -> Duration {
    let number = STATES.iter().position(|one| *one == state).unwrap();
    eprintln!("{state:?}: to repeat it, set SLIPWAY_STATE={number}");
    let fargate = role_of_fargate(deployed).await;
    let before = account::inventory(&deployed.config).await.unwrap();
    if state == State::NodeGroupInCreation {
        stop_while_nodes_are_made(deployed, name).await;
    } else {
        let ended = deployed.provision(&spec(name)).await.unwrap();
        assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
        let admin = deployed.admin(name).await.unwrap();
        open_a_shop(&admin).await;
        run_pods_without_nodes(deployed, name, &fargate).await;
        bring_into(deployed, name, &admin, state).await;
    }

    let kept = keeps_network(state);
    let request = json!({
        "name": name, "workloads": "delete", "drainSeconds": 60, "network": if kept { "keep" } else { "delete" },
    });
    let ended = deployed.insist("slipway-teardown", &request).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{state:?}: {}: {}", ended.error, ended.cause);
    let skipped = !ended.output["notes"].as_array().unwrap().is_empty();
    let unreachable = state == State::ApiServerUnreachable;
    assert_eq!(skipped, unreachable, "{state:?}: {}", ended.output["notes"]);
    if kept {
        let kept = account::inventory(&deployed.config).await.unwrap();
        assert!(kept.iter().any(|one| one == &format!("stack slipway-network-{name}")), "{kept:#?}");
        let rest =
            deployed.run_machine("slipway-teardown", &json!({ "name": name, "network": "delete" })).await.unwrap();
        assert_eq!(rest.status, "SUCCEEDED", "{state:?}: {}: {}", rest.error, rest.cause);
    }
    if state == State::SpotAndOnDemand {
        privileges::compare(deployed, "workloads", &["provision", "teardown", "leftovers"]).unwrap();
    }
    let retained = take_retained(deployed, name).await;
    let knew = !unreachable && state != State::NodeGroupInCreation;
    assert_eq!(retained, usize::from(knew), "{state:?}: volumes whose class says that they stay");
    let after = account::inventory(&deployed.config).await.unwrap();
    account::same(&before, &after).unwrap_or_else(|differs| panic!("{state:?}: {differs}"));
    ended.took
}

/// Stops a provision while EKS makes the node group.
async fn stop_while_nodes_are_made(deployed: &Deployed, name: &str) {
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    let execution = deployed.start_machine("slipway-provision", &spec(name)).await.unwrap();
    eventually("a node group in creation", async || {
        let group = eks.describe_nodegroup().cluster_name(name).nodegroup_name("core").send().await.ok()?.nodegroup?;
        (group.status?.as_str() == "CREATING").then_some(())
    })
    .await;
    let states = aws_sdk_sfn::Client::new(&deployed.config);
    states.stop_execution().execution_arn(execution).send().await.unwrap();
}

/// Deletes the volumes that a teardown left because their class says so; answers how many there were.
async fn take_retained(deployed: &Deployed, name: &str) -> usize {
    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let marked = Filter::builder().name("tag:slipway:retained").values(name).build();
    let mut pages = ec2.describe_volumes().filters(marked).into_paginator().items().send();
    let mut taken = 0;
    while let Some(volume) = pages.next().await {
        ec2.delete_volume().volume_id(volume.unwrap().volume_id.unwrap()).send().await.unwrap();
        taken += 1;
    }
    taken
}

/// The account's own: it outlives clusters.
async fn role_of_fargate(deployed: &Deployed) -> String {
    let iam = aws_sdk_iam::Client::new(&deployed.config);
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "Service": "eks-fargate-pods.amazonaws.com" }, "Action": "sts:AssumeRole",
    }] });
    // It may be there from the state before.
    let _ = iam.create_role().role_name("FargatePods").assume_role_policy_document(trust.to_string()).send().await;
    iam.get_role().role_name("FargatePods").send().await.unwrap().role.unwrap().arn
}

/// Two Fargate profiles that somebody added, of which EKS deletes one at a time.
async fn run_pods_without_nodes(deployed: &Deployed, name: &str, role: &str) {
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    for profile in ["nightly", "weekly"] {
        let selector = FargateProfileSelector::builder().namespace(profile).build();
        eventually("a Fargate profile", async || {
            let call = eks.create_fargate_profile().cluster_name(name).fargate_profile_name(profile);
            call.pod_execution_role_arn(role).selectors(selector.clone()).send().await.ok()
        })
        .await;
    }
}

/// Pods on nodes of both architectures and both ways to pay, a volume, load balancers of both generations.
async fn open_a_shop(admin: &kube::Client) {
    let namespace: Namespace = object(json!({ "metadata": { "name": SHOP } }));
    Api::<Namespace>::all(admin.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    let archive: StorageClass = object(json!({
        "metadata": { "name": "archive" }, "provisioner": "ebs.csi.aws.com", "reclaimPolicy": "Retain",
        "volumeBindingMode": "WaitForFirstConsumer",
    }));
    Api::<StorageClass>::all(admin.clone()).create(&PostParams::default(), &archive).await.unwrap();
    for (name, class) in [("data", "gp3"), ("ledger", "archive")] {
        create::<PersistentVolumeClaim>(
            admin,
            json!({
                "metadata": { "name": name },
                "spec": {
                    "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                    "resources": { "requests": { "storage": "4Gi" } },
                },
            }),
        )
        .await;
    }
    create::<Deployment>(admin, deployment("stock", "amd64", "spot", 1, Some("data"))).await;
    create::<Deployment>(admin, deployment("till", "arm64", "on-demand", 1, Some("ledger"))).await;
    let ports = json!([{ "port": 80, "targetPort": 8080 }]);
    create::<Service>(
        admin,
        json!({
            "metadata": { "name": "web" },
            "spec": { "type": "LoadBalancer", "selector": { "app": "till" }, "ports": ports },
        }),
    )
    .await;
    create::<Service>(
        admin,
        json!({
            "metadata": {
                "name": "edge", "annotations": { "service.beta.kubernetes.io/aws-load-balancer-type": "nlb" },
            },
            "spec": { "type": "LoadBalancer", "selector": { "app": "till" }, "ports": ports },
        }),
    )
    .await;

    let (pods, services) =
        (Api::<Pod>::namespaced(admin.clone(), SHOP), Api::<Service>::namespaced(admin.clone(), SHOP));
    eventually("two pods that run", async || {
        let listed = pods.list(&ListParams::default()).await.ok()?.items;
        let running = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
        (listed.len() == 2 && listed.iter().all(running)).then_some(())
    })
    .await;
    eventually("two load balancers", async || {
        let listed = services.list(&ListParams::default()).await.ok()?.items;
        let balanced = |service: &&Service| {
            let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            status.is_some_and(|status| status.ingress.is_some())
        };
        (listed.iter().filter(balanced).count() == 2).then_some(())
    })
    .await;
}

fn deployment(name: &str, architecture: &str, capacity: &str, replicas: u32, claim: Option<&str>) -> Value {
    let volumes: Vec<Value> =
        claim.iter().map(|claim| json!({ "name": "data", "persistentVolumeClaim": { "claimName": claim } })).collect();
    let labels = json!({ "app": name });
    json!({
        "metadata": { "name": name },
        "spec": { "replicas": replicas, "selector": { "matchLabels": labels }, "template": {
            "metadata": { "labels": labels },
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "nodeSelector": { "kubernetes.io/arch": architecture, "karpenter.sh/capacity-type": capacity },
                // A node each.
                "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
                    { "labelSelector": { "matchLabels": labels }, "topologyKey": "kubernetes.io/hostname" },
                ] } },
                "containers": [{ "name": name, "image": "public.ecr.aws/docker/library/busybox:stable" }],
                "volumes": volumes,
            },
        } },
    })
}

async fn bring_into(deployed: &Deployed, name: &str, admin: &kube::Client, state: State) {
    let cluster = ClusterKey { account: ACCOUNT.to_owned(), region: REGION.to_owned(), name: name.to_owned() };
    match state {
        State::SpotAndOnDemand | State::NodeGroupInCreation => {}
        State::PendingNodeClaim => {
            let eks = aws_sdk_eks::Client::new(&deployed.config);
            let role = format!("arn:aws:iam::{ACCOUNT}:role/{}", names::role(&cluster, "node"));
            eks.delete_access_entry().cluster_name(name).principal_arn(role).send().await.unwrap();
            // More than may find a place on nodes that are there, such as the one that was made to verify capacity.
            create::<Deployment>(admin, deployment("waiting", "arm64", "spot", 3, None)).await;
            let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
            let nodes: Api<Node> = Api::all(admin.clone());
            eventually("a machine that is no node", async || {
                let mut pages = ec2.describe_instances().into_paginator().items().send();
                let mut machines = 0;
                while let Some(reservation) = pages.next().await {
                    let instances = reservation.ok()?.instances.unwrap_or_default();
                    let runs = |one: &&aws_sdk_ec2::types::Instance| {
                        one.state().and_then(|state| state.name()).is_some_and(|name| name.as_str() == "running")
                    };
                    machines += instances.iter().filter(runs).count();
                }
                (machines > nodes.list(&ListParams::default()).await.ok()?.items.len()).then_some(())
            })
            .await;
        }
        State::KarpenterCrashed => {
            let iam = aws_sdk_iam::Client::new(&deployed.config);
            let trust = json!({ "Version": "2012-10-17", "Statement": [{
                "Effect": "Allow", "Principal": { "Service": "ec2.amazonaws.com" }, "Action": "sts:AssumeRole",
            }] });
            let controller = names::role(&cluster, "controller");
            let call = iam.update_assume_role_policy().role_name(controller).policy_document(trust.to_string());
            call.send().await.unwrap();
            let pods: Api<Pod> = Api::namespaced(admin.clone(), "karpenter");
            let now = DeleteParams::default().grace_period(0);
            pods.delete_collection(&now, &ListParams::default()).await.unwrap();
            eventually("a controller that crashed", async || {
                let listed = pods.list(&ListParams::default()).await.ok()?.items;
                let restarts = |pod: &Pod| {
                    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
                    statuses.unwrap_or_default().iter().any(|status| status.restart_count > 0)
                };
                (!listed.is_empty() && listed.iter().all(restarts)).then_some(())
            })
            .await;
        }
        State::ApiServerUnreachable => deployed.kill_api_server(name).await.unwrap(),
        State::NamespaceStuck => {
            let maps: Api<ConfigMap> = Api::namespaced(admin.clone(), "karpenter");
            let held = json!({ "metadata": { "name": "held", "finalizers": ["example.com/nobody"] } });
            maps.create(&PostParams::default(), &object(held)).await.unwrap();
            let namespaces: Api<Namespace> = Api::all(admin.clone());
            namespaces.delete("karpenter", &DeleteParams::default()).await.unwrap();
            let pods: Api<Pod> = Api::namespaced(admin.clone(), "karpenter");
            eventually("a namespace with nothing but what holds it", async || {
                pods.list(&ListParams::default()).await.ok()?.items.is_empty().then_some(())
            })
            .await;
        }
    }
}

/// As many nodes as pods: what grows with the nodes may grow as they do, and no faster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about five minutes"]
async fn soak_twenty_nodes_cost_no_more_calls_than_ten_times_two() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let (few, many) = (thrown_away(&deployed, "few", 1).await, thrown_away(&deployed, "many", 10).await);
    deployed.cloud.stop().await;
    let mut report = "| function | calls with 2 nodes | with 20 |\n|---|---|---|\n".to_owned();
    let mut steep = Vec::new();
    for (function, calls) in &many {
        let before = few.get(function).copied().unwrap_or_default();
        writeln!(report, "| {function} | {before} | {calls} |").unwrap();
        if *calls > 10 * before.max(1) {
            steep.push(format!("{function}: {before} calls for 2 nodes, {calls} for 20"));
        }
    }
    assert!(steep.is_empty(), "{steep:#?}");
    repository::report("calls of a teardown", &report).unwrap();
}

/// The calls by function of taking away a cluster with so many nodes in each of two pools.
async fn thrown_away(deployed: &Deployed, name: &str, each: u32) -> BTreeMap<String, usize> {
    let ended = deployed.provision(&spec(name)).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    let admin = deployed.admin(name).await.unwrap();
    let namespace: Namespace = object(json!({ "metadata": { "name": SHOP } }));
    Api::<Namespace>::all(admin.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    for (name, architecture) in [("x86", "amd64"), ("graviton", "arm64")] {
        create::<Deployment>(&admin, deployment(name, architecture, "spot", each, None)).await;
    }
    let nodes: Api<Node> = Api::all(admin.clone());
    let launched = ListParams::default().labels("karpenter.sh/initialized=true");
    eventually("all nodes", async || {
        let listed = nodes.list(&launched).await.ok()?.items;
        (listed.len() >= usize::try_from(each).ok()? * 2).then_some(())
    })
    .await;
    let since = deployed.last_call();
    let request = json!({ "name": name, "network": "delete" });
    let ended = deployed.run_machine("slipway-teardown", &request).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    deployed.calls(since)
}

fn object<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

async fn create<T>(admin: &kube::Client, json: Value)
where
    T: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    Api::<T>::namespaced(admin.clone(), SHOP).create(&PostParams::default(), &object(json)).await.unwrap();
}
