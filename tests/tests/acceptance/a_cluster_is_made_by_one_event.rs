//! The main job, end to end, on real parts: from StartExecution to a cluster whose Karpenter launches nodes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_cli::{cost::RunCost, history::Event, progress::Progress};
use slipway_local::cloud::Kubernetes;
use slipway_local::gateway::record::Entry;
use slipway_statemachine::prices::Prices;
use slipway_tests::cloud::{Asked, Deployed};
use slipway_tests::{account, heard::Listener, privileges, repository};

fn spec() -> Value {
    serde_json::from_str(include_str!("../../../examples/innovate-dev.json")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_made_by_one_event() {
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
    let objects = deployed.kubernetes_mutations("innovate-dev").unwrap();
    assert!(objects.len() > 20, "the record of changes in Kubernetes is not whole: {objects:#?}");
    let second = a_second_run_changes_nothing(&deployed, ended.took).await;
    each_step_run_twice_changes_nothing(&deployed, &second).await;
    a_plan_of_what_is_there_keeps_it(&deployed).await;
    a_changed_spec_converges_in_place(&deployed).await;
    what_eks_cannot_change_is_refused_before_anything_is_touched(&deployed).await;
    what_bears_no_tag_is_taken_over_only_when_asked(&deployed).await;
    nobody_was_denied_anything(&deployed);
    privileges::compare(&deployed, "provision", &[]).unwrap();

    the_cluster_is_taken_away(&deployed, &before, &listener).await;
    what_is_gone_may_be_taken_away_again(&deployed).await;
    nobody_was_denied_anything(&deployed);
    privileges::compare(&deployed, "teardown", &["provision"]).unwrap();
    deployed.cloud.stop().await;
}

/// Answers the execution.
async fn a_second_run_changes_nothing(deployed: &Deployed, first: Duration) -> String {
    let so_far = Changes::so_far(deployed);
    let execution = deployed.start_machine("slipway-provision", &spec()).await.unwrap();
    let ended = deployed.end(&execution).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert_eq!(so_far.since(deployed), Vec::<String>::new());
    assert!(ended.took < first / 2, "the first run took {first:?}, the second {:?}", ended.took);
    execution
}

/// Invokes every step of the machine twice in a row with what the machine gave it, in a run of one's own.
async fn each_step_run_twice_changes_nothing(deployed: &Deployed, execution: &str) {
    let mut asked = deployed.payloads(execution).await.unwrap();
    let by_hand = json!("arn:aws:states:eu-west-1:111122223333:execution:slipway-provision:by-hand");
    let opening = asked.iter_mut().find(|asked| asked.step == "open-run").unwrap();
    opening.payload["execution"]["arn"] = by_hand;
    let opened = deployed.invoke("open-run", &opening.payload).await.unwrap();
    // The machine asks it only for pods that fail, of which there are none.
    let mut healing = asked.iter().find(|asked| asked.step == "check-karpenter").unwrap().clone();
    let fields = json!({"pods": [], "error": "IdentityNotBelieved", "cause": "None.", "heals": 0, "maxHeals": 5});
    healing.payload.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    "heal-karpenter".clone_into(&mut healing.step);
    asked.insert(asked.len() - 1, healing);
    let steps: BTreeSet<&str> = asked.iter().map(|asked| asked.step.as_str()).collect();
    assert!(steps.len() == 18 && asked.last().unwrap().step == "close-run", "{steps:?}");

    let mut changed = Vec::new();
    for Asked { step, mut payload } in asked {
        if step != "open-run" {
            payload["run"] = opened["run"].clone();
        }
        for time in ["first", "second"] {
            let so_far = Changes::so_far(deployed);
            let answer = deployed.invoke(&step, &payload).await;
            let answer = answer.unwrap_or_else(|failure| panic!("{step}: {}: {}", failure.error, failure.cause));
            // A first asking of the probe has no confirmations yet.
            let waits = answer["done"] == false && step != "probe-identity";
            assert!(!waits, "{step} waits for something: {answer}");
            changed.extend(so_far.since(deployed).into_iter().map(|change| format!("{step}, {time} time: {change}")));
        }
    }
    assert_eq!(changed, Vec::<String>::new());
}

/// What had been changed up to a moment.
struct Changes {
    calls: u64,
    objects: usize,
}

impl Changes {
    fn so_far(deployed: &Deployed) -> Self {
        let objects = deployed.kubernetes_mutations("innovate-dev").unwrap().len();
        Self { calls: deployed.last_call(), objects }
    }

    /// What was changed since, in AWS and in Kubernetes.
    fn since(&self, deployed: &Deployed) -> Vec<String> {
        let objects = deployed.kubernetes_mutations("innovate-dev").unwrap();
        changes(deployed, self.calls).into_iter().chain(objects[self.objects..].iter().cloned()).collect()
    }
}

fn changes(deployed: &Deployed, since: u64) -> Vec<String> {
    let calls = deployed.mutations(since).into_iter();
    calls.map(|call| format!("{}:{} by {}", call.service, call.action, call.principal)).collect()
}

/// What a provision of a spec would do; nothing is done.
async fn planned(deployed: &Deployed, spec: &Value) -> Vec<Value> {
    let so_far = Changes::so_far(deployed);
    let mut asked = spec.clone();
    asked["mode"] = json!("plan");
    let ended = deployed.provision(&asked).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert_eq!(ended.output["findings"], json!([]), "every step's role may what it will ask for");
    assert_eq!(so_far.since(deployed), Vec::<String>::new());
    ended.output["planned"].as_array().unwrap().clone()
}

async fn a_plan_of_what_is_there_keeps_it(deployed: &Deployed) {
    let planned = planned(deployed, &spec()).await;
    let others: Vec<_> = planned.iter().filter(|thing| thing["verb"] != "keep").collect();
    assert!(planned.len() > 40 && others.is_empty(), "{} things, of which not kept: {others:#?}", planned.len());
}

async fn the_cluster_is_taken_away(deployed: &Deployed, before: &BTreeSet<String>, listener: &Listener) {
    let request = json!({ "name": "innovate-dev", "network": "delete", "liftDeletionProtection": true });
    let ended = deployed.run_machine("slipway-teardown", &request).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert_eq!(ended.output["notes"], json!([]), "nothing was skipped: {}", ended.output);
    account::same(before, &account::inventory(&deployed.config).await.unwrap()).unwrap();
    let deleted = listener.next("Cluster Deleted").await.unwrap();
    assert_eq!(deleted["detail"]["cluster"]["name"], "innovate-dev", "{deleted}");
}

async fn what_is_gone_may_be_taken_away_again(deployed: &Deployed) {
    let calls = deployed.last_call();
    let request = json!({ "name": "innovate-dev", "network": "delete" });
    let ended = deployed.run_machine("slipway-teardown", &request).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert_eq!(changes(deployed, calls), Vec::<String>::new());
}

/// The spec that the changed cluster has: logs, an endpoint without its private half, an admin more, other tags, another
/// way to buy, a driver with a role, another version of an add-on, another Karpenter with values.
fn changed() -> Value {
    let mut spec = spec();
    spec["logging"] = json!(["audit", "api"]);
    spec["access"]["admins"] = json!(["arn:aws:iam::111122223333:user/admin", SECOND_ADMIN]);
    spec["tags"] = json!({"team": "shop", "environment": "dev", "cost": "7"});
    spec["nodePools"][1]["capacity"] = json!(["on-demand"]);
    spec["access"]["endpoint"] = json!({"public": true, "private": false, "cidrs": ["0.0.0.0/0"]});
    spec["addons"] = json!({
        "aws-ebs-csi-driver": {"identity": {"policyArns": []}},
        "coredns": {"version": "v1.12.4-eksbuild.1"},
    });
    spec["karpenter"]["version"] = json!("1.14.0");
    spec["karpenter"]["values"] = json!({"podAnnotations": {"shop.example/owner": "platform"}});
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
    let network = cluster.resources_vpc_config.unwrap();
    assert_eq!((network.endpoint_public_access, network.endpoint_private_access), (true, false));
    let coredns = eks.describe_addon().cluster_name("innovate-dev").addon_name("coredns").send().await.unwrap();
    assert_eq!(coredns.addon.unwrap().addon_version.unwrap(), "v1.12.4-eksbuild.1");
    the_other_karpenter_is_ready(deployed).await;

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

async fn the_other_karpenter_is_ready(deployed: &Deployed) {
    let karpenter = ["get", "deployment", "karpenter", "--namespace", "karpenter"];
    let karpenter = deployed.kubectl("innovate-dev", &karpenter).await.unwrap();
    assert_eq!(karpenter["metadata"]["labels"]["app.kubernetes.io/version"], "1.14.0", "{karpenter}");
    let (pods, status) = (&karpenter["spec"]["template"], &karpenter["status"]);
    assert_eq!(pods["metadata"]["annotations"]["shop.example/owner"], "platform");
    let image = pods["spec"]["containers"][0]["image"].as_str().unwrap();
    assert!(image.contains("karpenter/controller:1.14.0"), "{image}");
    assert_eq!((&status["updatedReplicas"], &status["readyReplicas"]), (&json!(2), &json!(2)), "{status}");
}

async fn entries(deployed: &Deployed) -> BTreeSet<String> {
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    let listed = eks.list_access_entries().cluster_name("innovate-dev").send().await.unwrap();
    listed.access_entries.unwrap().into_iter().collect()
}

/// Somebody takes our tag off the cluster, its node group and an add-on: it might be anyone's now. The spec that takes
/// it over names the VPC as one that exists, and an admin and a pool less.
async fn what_bears_no_tag_is_taken_over_only_when_asked(deployed: &Deployed) {
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    let name = "innovate-dev";
    let cluster = eks.describe_cluster().name(name).send().await.unwrap().cluster.unwrap();
    let group = eks.describe_nodegroup().cluster_name(name).nodegroup_name("core").send().await.unwrap();
    let addon = eks.describe_addon().cluster_name(name).addon_name("coredns").send().await.unwrap();
    let arns = [
        cluster.arn.clone().unwrap(),
        group.nodegroup.as_ref().and_then(|group| group.nodegroup_arn.clone()).unwrap(),
        addon.addon.unwrap().addon_arn.unwrap(),
    ];
    for arn in &arns {
        eks.untag_resource().resource_arn(arn).tag_keys("slipway:cluster").send().await.unwrap();
    }

    let so_far = Changes::so_far(deployed);
    let ended = deployed.provision(&changed()).await.unwrap();
    assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", "NotOurs"), "{}", ended.cause);
    assert_eq!(so_far.since(deployed), Vec::<String>::new());

    let mut fewer = changed();
    fewer["adopt"] = json!(true);
    fewer["access"]["admins"] = json!(["arn:aws:iam::111122223333:user/admin"]);
    fewer["nodePools"] = json!([{"name": "graviton", "architecture": "arm64", "capacity": ["on-demand"]}]);
    let vpc = cluster.resources_vpc_config.and_then(|network| network.vpc_id).unwrap();
    let subnets = group.nodegroup.and_then(|group| group.subnets).unwrap();
    fewer["network"] = json!({"existing": {"vpcId": vpc, "subnetIds": subnets}});
    let planned = planned(deployed, &fewer).await;
    let told = |verb: &str, kind: &str, name: &str, reason: &str| {
        let matches = |thing: &&Value| {
            thing["verb"] == verb && thing["kind"] == kind && thing["name"].as_str().unwrap().contains(name)
        };
        let thing = planned.iter().find(matches).unwrap_or_else(|| panic!("no {verb} {kind} {name}: {planned:#?}"));
        assert!(thing["reason"].as_str().unwrap().contains(reason), "{thing}");
    };
    told("change", "EKS cluster", name, "slipway:cluster");
    told("change", "EKS node group", "core", "slipway:cluster");
    told("change", "EKS add-on", "coredns", "slipway:cluster");
    told("delete", "EKS access entry", "SecondAdmin", "");
    told("delete", "Kubernetes NodePool", "x86", "");
    told("keep", "EKS add-on", "kube-proxy", "");

    let before = entries(deployed).await;
    let ended = deployed.provision(&fewer).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    for arn in &arns {
        let tags = eks.list_tags_for_resource().resource_arn(arn).send().await.unwrap().tags.unwrap();
        assert_eq!(tags.get("slipway:cluster").map(String::as_str), Some(name), "{arn}");
    }
    what_the_spec_no_longer_names_is_gone(deployed, &before).await;
}

async fn what_the_spec_no_longer_names_is_gone(deployed: &Deployed, before: &BTreeSet<String>) {
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
    let open = rows.iter().filter(|(sk, row)| sk.contains("#STEP#") && row["status"] != "done");
    let open: Vec<_> = open.map(|(sk, row)| format!("{sk}: {}", row["status"])).collect();
    assert!(open.is_empty(), "of a run that succeeded every step is done: {open:?}");
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

/// An execution, counted.
struct Ran {
    /// By function: its calls, and those of them that change something.
    calls: BTreeMap<String, (usize, usize)>,
    objects: usize,
    transitions: usize,
    events: usize,
    took: Duration,
    /// How long preflight looked; a plan does not open a run.
    preflight: Option<Duration>,
}

impl Ran {
    async fn of(deployed: &Deployed, input: &Value) -> Self {
        let calls = deployed.last_call();
        // Before the first run there is no cluster.
        let objects = deployed.kubernetes_mutations("innovate-dev").map_or(0, |changed| changed.len());
        let execution = deployed.start_machine("slipway-provision", input).await.unwrap();
        let ended = deployed.end(&execution).await.unwrap();
        assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
        let mut counted = BTreeMap::<String, (usize, usize)>::new();
        let step = |call: &Entry| call.function.as_deref().map(|name| name.trim_start_matches("slipway-").to_owned());
        let all = deployed.cloud.gateway().record().entries();
        for step in all.iter().filter(|call| call.seq > calls).filter_map(step) {
            counted.entry(step).or_default().0 += 1;
        }
        for step in deployed.mutations(calls).iter().filter_map(step) {
            counted.entry(step).or_default().1 += 1;
        }
        let history = deployed.history(&execution).await.unwrap();
        let progress = Progress::of(&history.iter().map(Event::read).collect::<Vec<_>>());
        Self {
            calls: counted,
            objects: deployed.kubernetes_mutations("innovate-dev").unwrap().len() - objects,
            transitions: RunCost::of(&progress, &Prices::published().unwrap()).transitions,
            events: history.len(),
            took: ended.took,
            preflight: preflight(deployed, &execution).await,
        }
    }

    fn of_step(&self, step: &str) -> String {
        self.calls.get(step).map_or_else(String::new, |(all, changing)| format!("{all}, {changing}"))
    }

    fn total(&self) -> (usize, usize) {
        self.calls.values().fold((0, 0), |sum, step| (sum.0 + step.0, sum.1 + step.1))
    }
}

/// The time in preflight's own code, in an execution's run.
async fn preflight(deployed: &Deployed, execution: &str) -> Option<Duration> {
    let rows = deployed.rows("innovate-dev").await.unwrap();
    let (run, _) = rows.iter().find(|(sk, row)| sk.starts_with("RUN#") && row["execution"] == execution)?;
    let (_, step) = rows.iter().find(|(sk, _)| *sk == format!("{run}#STEP#preflight"))?;
    step["busyMillis"].as_u64().map(Duration::from_millis)
}

/// What a first run, a second and a plan ask AWS for, function by function, reported in docs/soak.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about two minutes"]
async fn soak_what_a_run_asks_for() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let first = Ran::of(&deployed, &spec()).await;
    let second = Ran::of(&deployed, &spec()).await;
    let mut asked = spec();
    asked["mode"] = json!("plan");
    let plan = Ran::of(&deployed, &asked).await;
    deployed.cloud.stop().await;

    let runs = [&first, &second, &plan];
    let steps: BTreeSet<&String> = runs.iter().flat_map(|run| run.calls.keys()).collect();
    let mut text = String::from(
        "What functions asked AWS for in a first run of examples/innovate-dev.json, in a second, and in a plan of what is \
         there:\nall calls (those of our own table and bus among them), and how many of them change something (our own \
         table, bus,\nlogs and tokens aside). Waits are 60 times shorter here than on AWS, and so is what is asked while \
         waiting.\n\n| function | first | second | plan |\n|---|---|---|---|\n",
    );
    let mut row = |name: &str, of: &dyn Fn(&Ran) -> String| {
        writeln!(text, "| {name} | {} | {} | {} |", of(&first), of(&second), of(&plan)).unwrap();
    };
    for step in steps {
        row(step, &|run| run.of_step(step));
    }
    row("**all**", &|run| format!("{}, {}", run.total().0, run.total().1));
    row("objects changed in Kubernetes", &|run| run.objects.to_string());
    row("state transitions", &|run| run.transitions.to_string());
    row("history events (of 25,000)", &|run| run.events.to_string());
    row("seconds in preflight, whose calls are side by side", &|run| {
        run.preflight.map_or_else(String::new, |took| format!("{:.1}", took.as_secs_f64()))
    });
    row("seconds", &|run| format!("{:.0}", run.took.as_secs_f64()));
    let of_first = |run: &Ran| 100 * run.total().0 / first.total().0;
    writeln!(
        text,
        "\nThe second run makes {} % of the first one's calls, the plan {} %.",
        of_first(&second),
        of_first(&plan)
    )
    .unwrap();
    assert_eq!((second.total().1, second.objects, plan.total().1, plan.objects), (0, 0, 0, 0), "{text}");
    repository::report("calls", &text).unwrap();
}
