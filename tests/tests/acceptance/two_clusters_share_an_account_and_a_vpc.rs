//! Two clusters whose names nearly collide are made at the same time in one VPC that belongs to neither. Each has nodes
//! of its own alone, and when one is taken away, nothing of the other changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use aws_sdk_cloudformation::types::{Capability, Parameter, StackStatus};
use serde_json::{Value, json};
use slipway_local::cloud::Kubernetes;
use slipway_tests::{account, cloud::Deployed, repository, wait::eventually};

/// The network of a team that has nothing to do with Slipway.
struct Shared {
    vpc: String,
    subnets: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about four minutes"]
async fn soak_two_clusters_share_an_account_and_a_vpc() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let shared = shared_network(&deployed).await;
    let before = account::inventory(&deployed.config).await.unwrap();
    // One finds the subnets by their tags, the other is told them.
    let spec = |name: &str, subnets: &[String]| {
        let existing = json!({"vpcId": shared.vpc, "subnetIds": subnets});
        let pool = json!({"name": "graviton", "architecture": "arm64", "capacity": ["spot", "on-demand"]});
        json!({"name": name, "network": {"existing": existing}, "nodePools": [pool],
            "access": {"admins": ["arn:aws:iam::111122223333:user/admin"]}})
    };
    let (one, other) = (spec("demo", &[]), spec("demo-2", &shared.subnets));
    let (first, second) = tokio::join!(deployed.provision(&one), deployed.provision(&other));
    let (first, second) = (first.unwrap(), second.unwrap());
    for ended in [&first, &second] {
        assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    }

    let (own, others) = (instances(&deployed, "demo").await, instances(&deployed, "demo-2").await);
    assert!(own.is_disjoint(&others), "a node joined both clusters: {own:?}, {others:?}");
    let (own, others) = (settled(&deployed, "demo").await, settled(&deployed, "demo-2").await);
    assert!(own.is_disjoint(&others), "a node joined both clusters: {own:?}, {others:?}");

    let both = account::inventory(&deployed.config).await.unwrap();
    let torn = deployed.run_machine("slipway-teardown", &json!({"name": "demo"})).await.unwrap();
    assert_eq!(torn.status, "SUCCEEDED", "{}: {}", torn.error, torn.cause);
    let left = account::inventory(&deployed.config).await.unwrap();
    let lost: Vec<_> = both.difference(&left).collect();
    let neighbours = |line: &&&String| line.contains("demo-2") || others.iter().any(|id| line.contains(id.as_str()));
    assert_eq!(lost.iter().filter(neighbours).count(), 0, "demo-2 lost something: {lost:#?}");
    assert!(before.is_subset(&left), "the shared network lost something: {:#?}", before.difference(&left));

    // Nothing that a run looks at has changed, and Karpenter works.
    let (calls, objects) = (deployed.last_call(), deployed.kubernetes_mutations("demo-2").unwrap().len());
    let again = deployed.provision(&other).await.unwrap();
    assert_eq!(again.status, "SUCCEEDED", "{}: {}", again.error, again.cause);
    let changed = deployed.mutations(calls).into_iter().map(|call| format!("{}:{}", call.service, call.action));
    assert_eq!(changed.collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(deployed.kubernetes_mutations("demo-2").unwrap()[objects..], Vec::<String>::new());
    assert_eq!(settled(&deployed, "demo-2").await, others);

    let rest = deployed.run_machine("slipway-teardown", &json!({"name": "demo-2"})).await.unwrap();
    assert_eq!(rest.status, "SUCCEEDED", "{}: {}", rest.error, rest.cause);
    assert_eq!(account::inventory(&deployed.config).await.unwrap(), before);
    deployed.cloud.stop().await;
    let mut report = "| demo and demo-2 in one VPC that is neither's | |\n|---|---|\n".to_owned();
    for (what, figure) in [
        ("made at the same time, s", format!("{}, {}", first.took.as_secs(), second.took.as_secs())),
        ("nodes and instances in common", "none".to_owned()),
        ("demo taken away, s", torn.took.as_secs().to_string()),
        ("what demo-2 and the network lost by it", "nothing".to_owned()),
        ("what a run of demo-2 changed after that", "nothing".to_owned()),
        ("demo-2 taken away, s; account as before", rest.took.as_secs().to_string()),
    ] {
        writeln!(report, "| {what} | {figure} |").unwrap();
    }
    repository::report("two clusters", &report).unwrap();
}

/// A VPC with two private subnets, made by hand from the template that is there for it.
async fn shared_network(deployed: &Deployed) -> Shared {
    let stacks = aws_sdk_cloudformation::Client::new(&deployed.config);
    let parameter = |key: &str, value: &str| Parameter::builder().parameter_key(key).parameter_value(value).build();
    let parameters = [("ClusterName", "shared"), ("Zone1", "eu-west-1a"), ("Zone2", "eu-west-1b")];
    let template = repository::read("infra/network.yaml").unwrap();
    let made = stacks.create_stack().stack_name("shared-network").template_body(template);
    let made = made.set_parameters(Some(parameters.map(|(key, value)| parameter(key, value)).into()));
    made.capabilities(Capability::CapabilityIam).send().await.unwrap();
    let stack = eventually("the shared network", async || {
        let found = stacks.describe_stacks().stack_name("shared-network").send().await.unwrap();
        found.stacks.unwrap().into_iter().find(|stack| stack.stack_status == Some(StackStatus::CreateComplete))
    })
    .await;
    let output = |key: &str| {
        let outputs = stack.outputs().iter().find(|output| output.output_key() == Some(key));
        outputs.and_then(|output| output.output_value()).unwrap().to_owned()
    };
    let subnets = output("PrivateSubnetIds").split(',').map(str::to_owned).collect();
    Shared { vpc: output("VpcId"), subnets }
}

/// The instances of a cluster's nodes, once they are those that run and bear its tag, none but the core group's: Karpenter
/// takes back the node that verified its capacity.
async fn settled(deployed: &Deployed, cluster: &str) -> BTreeSet<String> {
    let began = Instant::now();
    loop {
        let (nodes, launched) = (instances(deployed, cluster).await, launched_for(deployed, cluster).await);
        if nodes == launched && nodes.len() == 2 {
            return nodes;
        }
        assert!(began.elapsed() < Duration::from_mins(3), "nodes of {cluster}: {nodes:?}, its instances: {launched:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The EC2 instances of a cluster's nodes.
async fn instances(deployed: &Deployed, cluster: &str) -> BTreeSet<String> {
    let nodes = deployed.kubectl(cluster, &["get", "nodes"]).await.unwrap();
    let id = |node: &Value| node["spec"]["providerID"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    nodes["items"].as_array().unwrap().iter().map(id).collect()
}

/// The instances that run and bear a cluster's tag.
async fn launched_for(deployed: &Deployed, cluster: &str) -> BTreeSet<String> {
    use aws_sdk_ec2::types::Filter;
    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let owned = Filter::builder().name(format!("tag:kubernetes.io/cluster/{cluster}")).values("owned").build();
    let running = Filter::builder().name("instance-state-name").values("running").build();
    let mut pages = ec2.describe_instances().filters(owned).filters(running).into_paginator().items().send();
    let mut found = BTreeSet::new();
    while let Some(reservation) = pages.next().await {
        found.extend(reservation.unwrap().instances().iter().filter_map(|one| one.instance_id()).map(str::to_owned));
    }
    found
}
