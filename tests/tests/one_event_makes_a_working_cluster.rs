//! The main job, end to end, on real parts: from StartExecution to a cluster whose Karpenter launches nodes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_local::cloud::Kubernetes;
use slipway_local::gateway::record::Entry;
use slipway_tests::{account, cloud::Deployed, heard::Listener, privileges};

fn spec() -> Value {
    serde_json::from_str(include_str!("../../examples/innovate-dev.json")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_makes_a_working_cluster() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let listener = Listener::start(&deployed.config).await.unwrap();

    let before = account::inventory(&deployed.config).await.unwrap();
    let ended = deployed.provision(&spec()).await.unwrap();
    nobody_was_denied_anything(&deployed);
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);

    the_admin_sees_core_nodes_and_what_karpenter_launched(&deployed).await;
    aws_has_what_the_spec_asks_for(&deployed).await;
    the_table_remembers_the_run(&deployed).await;
    let ready = listener.next("Cluster Ready").await.unwrap();
    assert_eq!(ready["detail"]["cluster"]["name"], "innovate-dev", "{ready}");
    a_second_run_changes_nothing(&deployed, ended.took).await;
    a_plan_of_what_is_there_keeps_it(&deployed).await;
    a_changed_spec_converges_in_place(&deployed).await;
    what_the_spec_no_longer_names_goes(&deployed).await;
    what_eks_cannot_change_is_refused_before_anything_is_touched(&deployed).await;
    nobody_was_denied_anything(&deployed);
    privileges::compare(&deployed, "provision").unwrap();

    the_cluster_is_taken_away(&deployed, &before).await;
    nobody_was_denied_anything(&deployed);
    deployed.cloud.stop().await;
}

async fn a_second_run_changes_nothing(deployed: &Deployed, first: Duration) {
    let calls = deployed.last_call();
    let objects = deployed.kubernetes_mutations("innovate-dev").unwrap().len();
    let ended = deployed.provision(&spec()).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert_eq!(changes(deployed, calls), Vec::<String>::new());
    assert_eq!(deployed.kubernetes_mutations("innovate-dev").unwrap()[objects..], Vec::<String>::new());
    assert!(ended.took < first / 2, "the first run took {first:?}, the second {:?}", ended.took);
}

fn changes(deployed: &Deployed, since: u64) -> Vec<String> {
    let calls = deployed.mutations(since).into_iter();
    calls.map(|call| format!("{}:{} by {}", call.service, call.action, call.principal)).collect()
}

async fn a_plan_of_what_is_there_keeps_it(deployed: &Deployed) {
    let calls = deployed.last_call();
    let objects = deployed.kubernetes_mutations("innovate-dev").unwrap().len();
    let mut asked = spec();
    asked["mode"] = json!("plan");
    let ended = deployed.provision(&asked).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    let planned = ended.output["planned"].as_array().unwrap();
    let others: Vec<_> = planned.iter().filter(|thing| thing["verb"] != "keep").collect();
    assert!(planned.len() > 40 && others.is_empty(), "{} things, of which not kept: {others:#?}", planned.len());
    assert_eq!(changes(deployed, calls), Vec::<String>::new());
    assert_eq!(deployed.kubernetes_mutations("innovate-dev").unwrap()[objects..], Vec::<String>::new());
}

async fn the_cluster_is_taken_away(deployed: &Deployed, before: &BTreeSet<String>) {
    let request = json!({ "name": "innovate-dev", "network": "delete", "liftDeletionProtection": true });
    let ended = deployed.run_machine("slipway-teardown", &request).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert_eq!(ended.output["notes"], json!([]), "nothing was skipped: {}", ended.output);
    let after = account::inventory(&deployed.config).await.unwrap();
    let left: Vec<_> = after.difference(before).collect();
    let lost: Vec<_> = before.difference(&after).collect();
    assert!(left.is_empty() && lost.is_empty(), "left: {left:#?}, lost: {lost:#?}");
}

/// The spec that the changed cluster has: logs, an admin more, other tags, another way to buy, a driver with a role.
fn changed() -> Value {
    let mut spec = spec();
    spec["logging"] = json!(["audit", "api"]);
    spec["access"]["admins"] = json!(["arn:aws:iam::111122223333:user/admin", SECOND_ADMIN]);
    spec["tags"] = json!({"team": "shop", "environment": "dev", "cost": "7"});
    spec["nodePools"][1]["capacity"] = json!(["on-demand"]);
    spec["addons"] = json!({"aws-ebs-csi-driver": {"identity": {"policyArns": []}}});
    spec["deletionProtection"] = json!(true);
    spec
}

const SECOND_ADMIN: &str = "arn:aws:iam::111122223333:role/SecondAdmin";

async fn a_changed_spec_converges_in_place(deployed: &Deployed) {
    let iam = aws_sdk_iam::Client::new(&deployed.config);
    let trust = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "sts:AssumeRole"}
    ]});
    let role = iam.create_role().role_name("SecondAdmin").assume_role_policy_document(trust.to_string());
    role.send().await.unwrap();

    let ended = deployed.provision(&changed()).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);

    let eks = aws_sdk_eks::Client::new(&deployed.config);
    let cluster = eks.describe_cluster().name("innovate-dev").send().await.unwrap().cluster.unwrap();
    let setups = cluster.logging.unwrap().cluster_logging.unwrap();
    let on: BTreeSet<_> =
        setups.iter().filter(|s| s.enabled == Some(true)).flat_map(aws_sdk_eks::types::LogSetup::types).collect();
    assert_eq!(on.iter().map(|kind| kind.as_str()).collect::<Vec<_>>(), ["api", "audit"]);
    let tags = cluster.tags.unwrap();
    assert_eq!((tags["team"].as_str(), tags["cost"].as_str()), ("shop", "7"));
    assert_eq!(cluster.deletion_protection, Some(true));
    assert!(entries(deployed).await.contains(SECOND_ADMIN));

    let addon = eks.describe_addon().cluster_name("innovate-dev").addon_name("aws-ebs-csi-driver").send().await;
    let association = addon.unwrap().addon.unwrap().pod_identity_associations.unwrap().remove(0);
    let id = association.rsplit('/').next().unwrap().to_owned();
    let bound = eks.describe_pod_identity_association().cluster_name("innovate-dev").association_id(id).send().await;
    let role = bound.unwrap().association.unwrap().role_arn.unwrap();
    assert!(role.ends_with("role/slipway-eks-innovate-dev-eu-west-1-addon-aws-ebs-csi-driver"), "{role}");
    let class = deployed.kubectl("innovate-dev", &["get", "storageclass", "gp3"]).await.unwrap();
    assert_eq!(class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"], "true", "{class}");

    let pool = deployed.kubectl("innovate-dev", &["get", "nodepool", "graviton"]).await.unwrap();
    let requirements = pool["spec"]["template"]["spec"]["requirements"].as_array().unwrap();
    let capacity = requirements.iter().find(|one| one["key"] == "karpenter.sh/capacity-type").unwrap();
    assert_eq!(capacity["values"], json!(["on-demand"]));
}

async fn entries(deployed: &Deployed) -> BTreeSet<String> {
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    let listed = eks.list_access_entries().cluster_name("innovate-dev").send().await.unwrap();
    listed.access_entries.unwrap().into_iter().collect()
}

async fn what_the_spec_no_longer_names_goes(deployed: &Deployed) {
    let before = entries(deployed).await;
    let mut fewer = changed();
    fewer["access"]["admins"] = json!(["arn:aws:iam::111122223333:user/admin"]);
    fewer["nodePools"] = json!([{"name": "graviton", "architecture": "arm64", "capacity": ["on-demand"]}]);
    let ended = deployed.provision(&fewer).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    let gone: Vec<_> = before.difference(&entries(deployed).await).cloned().collect();
    assert_eq!(gone, [SECOND_ADMIN], "the nodes' and our own entries stay");
    aws_sdk_iam::Client::new(&deployed.config).delete_role().role_name("SecondAdmin").send().await.unwrap();
    let pools = deployed.kubectl("innovate-dev", &["get", "nodepools.karpenter.sh"]).await.unwrap();
    let staying = pools["items"].as_array().unwrap().iter();
    let staying: Vec<_> = staying.filter(|pool| pool["metadata"]["deletionTimestamp"].is_null()).collect();
    assert_eq!(staying.len(), 1, "{pools}");
}

async fn what_eks_cannot_change_is_refused_before_anything_is_touched(deployed: &Deployed) {
    let calls = deployed.last_call();
    let mut elsewhere = changed();
    elsewhere["network"]["create"]["cidr"] = json!("10.30.0.0/16");
    elsewhere["core"]["instanceTypes"] = json!(["m7g.large"]);
    let ended = deployed.provision(&elsewhere).await.unwrap();
    assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", "ImmutableChange"), "{}", ended.cause);
    for part in ["$.network.create.cidr must stay 10.20.0.0/16", "$.core.instanceTypes must stay t4g.medium"] {
        assert!(ended.cause.contains(part), "{}", ended.cause);
    }
    assert_eq!(changes(deployed, calls), Vec::<String>::new());
    let rows = deployed.rows("innovate-dev").await.unwrap();
    let (_, registered) = rows.iter().find(|(sk, _)| sk == "SPEC").unwrap();
    assert_eq!(registered["spec"]["network"]["create"]["cidr"], "10.20.0.0/16", "the refused spec is not registered");
}

async fn the_admin_sees_core_nodes_and_what_karpenter_launched(deployed: &Deployed) {
    let nodes = deployed.kubectl("innovate-dev", &["get", "nodes"]).await.unwrap();
    let nodes = nodes["items"].as_array().unwrap();
    let label = |node: &Value, name: &str| node["metadata"]["labels"][name].as_str().unwrap_or_default().to_owned();
    let core: Vec<_> = nodes.iter().filter(|node| label(node, "eks.amazonaws.com/nodegroup") == "core").collect();
    assert_eq!(core.len(), 2);
    let zones: BTreeSet<_> = core.iter().map(|node| label(node, "topology.kubernetes.io/zone")).collect();
    assert_eq!(zones.len(), 2, "the core nodes are in two zones");

    let launched: BTreeSet<_> = nodes
        .iter()
        .filter(|node| !label(node, "karpenter.sh/nodepool").is_empty())
        .map(|node| (label(node, "kubernetes.io/arch"), label(node, "karpenter.sh/capacity-type")))
        .collect();
    let spot = |architecture: &str| (architecture.to_owned(), "spot".to_owned());
    assert_eq!(launched, BTreeSet::from([spot("amd64"), spot("arm64")]));

    let karpenter = ["get", "deployment", "karpenter", "--namespace", "karpenter"];
    let karpenter = deployed.kubectl("innovate-dev", &karpenter).await.unwrap();
    assert_eq!(karpenter["status"]["readyReplicas"], 2);
    let pools = deployed.kubectl("innovate-dev", &["get", "nodepools.karpenter.sh"]).await.unwrap();
    let pools: BTreeSet<_> =
        pools["items"].as_array().unwrap().iter().map(|p| p["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(pools, BTreeSet::from(["graviton", "x86"]));
}

async fn aws_has_what_the_spec_asks_for(deployed: &Deployed) {
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    let cluster = eks.describe_cluster().name("innovate-dev").send().await.unwrap().cluster.unwrap();
    assert_eq!(cluster.status.unwrap().as_str(), "ACTIVE");
    assert_eq!(cluster.version.unwrap(), "1.36");
    let access = cluster.access_config.unwrap();
    assert_eq!(access.authentication_mode.unwrap().as_str(), "API");
    assert_eq!(cluster.tags.unwrap()["slipway:cluster"], "innovate-dev");

    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let gateways = ec2.describe_nat_gateways().send().await.unwrap().nat_gateways.unwrap();
    assert_eq!(gateways.len(), 1, "a single NAT gateway");
    let mine = aws_sdk_ec2::types::Filter::builder().name("tag:karpenter.sh/discovery").values("innovate-dev").build();
    let subnets = ec2.describe_subnets().filters(mine).send().await.unwrap().subnets.unwrap();
    assert_eq!(subnets.len(), 2, "Karpenter finds the private subnets, no others");
    assert!(subnets.iter().all(|subnet| subnet.map_public_ip_on_launch != Some(true)));

    let queue = aws_sdk_sqs::Client::new(&deployed.config);
    queue.get_queue_url().queue_name("slipway-eks-innovate-dev").send().await.unwrap();
}

async fn the_table_remembers_the_run(deployed: &Deployed) {
    let rows = deployed.rows("innovate-dev").await.unwrap();
    let row = |sk: &str| rows.iter().find(|(key, _)| key == sk).map(|(_, row)| row.clone());
    let spec = row("SPEC").unwrap();
    assert_eq!(spec["spec"]["name"], "innovate-dev", "{spec}");
    let runs: Vec<_> = rows.iter().filter(|(sk, _)| sk.starts_with("RUN#") && !sk.contains("#STEP#")).collect();
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].1["outcome"], "Succeeded", "{}", runs[0].1);
    let steps: BTreeSet<_> = rows.iter().filter_map(|(sk, _)| sk.split_once("#STEP#")).map(|(_, step)| step).collect();
    for step in ["preflight", "ensure-network", "create-cluster", "install-karpenter", "verify-capacity"] {
        assert!(steps.contains(step), "{step} left no row: {steps:?}");
    }
    let lease = row("LEASE").unwrap();
    assert!(lease.get("execution").is_none_or(Value::is_null), "the lease is released: {lease}");
}

fn nobody_was_denied_anything(deployed: &Deployed) {
    let calls = deployed.cloud.gateway().record().entries();
    let denied: Vec<&Entry> = calls.iter().filter(|call| call.denied.is_some()).collect();
    assert!(denied.is_empty(), "{denied:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chart_that_does_not_exist_fails_by_name_and_frees_the_cluster() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let listener = Listener::start(&deployed.config).await.unwrap();
    let mut spec = spec();
    spec["name"] = json!("no-chart");
    spec["karpenter"]["version"] = json!("1.14.99");

    let ended = deployed.provision(&spec).await.unwrap();
    assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", "PreflightFailed"), "{}", ended.cause);
    assert!(ended.cause.contains("1.14.99") && ended.cause.contains("karpenter.version"), "{}", ended.cause);
    assert!(ended.cause.contains("start the machine again"), "{}", ended.cause);
    let failed = listener.next("Cluster Failed").await.unwrap();
    assert_eq!(failed["detail"]["error"], "PreflightFailed", "{failed}");

    let rows = deployed.rows("no-chart").await.unwrap();
    let (_, lease) = rows.iter().find(|(sk, _)| sk == "LEASE").unwrap();
    assert!(lease.get("execution").is_none_or(Value::is_null), "the lease is released: {lease}");
    let (_, run) = rows.iter().find(|(sk, _)| sk.starts_with("RUN#") && !sk.contains("#STEP#")).unwrap();
    assert_eq!((&run["outcome"], &run["error"]), (&json!("Failed"), &json!("PreflightFailed")), "{run}");
    deployed.cloud.stop().await;
}
