//! Leftovers of each kind, beside those of a neighbour of nearly the same name: an audit lists exactly the cluster's, and
//! a sweep removes them and nothing else, if everything is said.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use serde_json::{Value, json};
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_statemachine::{ClusterKey, names};
use slipway_tests::{cloud::Deployed, privileges};

/// What a cluster leaves that nobody took away: the ARNs of what bears our tag, and of what only others' tags, paths and
/// names tell.
struct Left {
    ours: BTreeSet<String>,
    others: BTreeSet<String>,
    /// The load balancer's interface, which goes with it and cannot go alone.
    follows: String,
}

impl Left {
    fn all(&self) -> BTreeSet<String> {
        self.goes().into_iter().chain([self.follows.clone()]).collect()
    }

    /// What a sweep removes itself.
    fn goes(&self) -> BTreeSet<String> {
        self.ours.union(&self.others).cloned().collect()
    }
}

fn tagged(kind: ResourceType, key: &str, value: &str) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).tags(Tag::builder().key(key).value(value).build()).build()
}

fn ec2_arn(what: &str, id: &str) -> String {
    format!("arn:aws:ec2:{REGION}:{ACCOUNT}:{what}/{id}")
}

async fn leave(cloud: &Deployed, name: &str) -> Left {
    let (mut ours, mut others) = (BTreeSet::new(), BTreeSet::new());
    let key = ClusterKey { account: ACCOUNT.into(), region: REGION.into(), name: name.into() };
    let owned = format!("kubernetes.io/cluster/{name}");

    let ec2 = aws_sdk_ec2::Client::new(&cloud.config);
    let volume = ec2.create_volume().availability_zone(format!("{REGION}a")).size(10);
    let volume = volume.tag_specifications(tagged(ResourceType::Volume, &owned, "owned")).send().await.unwrap();
    others.insert(ec2_arn("volume", volume.volume_id().unwrap()));
    let subnet = ec2.describe_subnets().send().await.unwrap().subnets()[0].clone();
    let group = ec2.create_security_group().group_name(format!("left-{name}")).description("left");
    let group = group.set_vpc_id(subnet.vpc_id.clone());
    let group = group.tag_specifications(tagged(ResourceType::SecurityGroup, names::CLUSTER_TAG, name));
    let group = group.send().await.unwrap().group_id.unwrap();
    ours.insert(ec2_arn("security-group", &group));
    // A leaked interface of the VPC CNI says nothing itself: it is in the cluster's group.
    let interface = ec2.create_network_interface().set_subnet_id(subnet.subnet_id.clone()).groups(&group);
    let interface = interface.description("aws-K8S-i-0a1b2c3d4e5f60718").send().await.unwrap();
    others.insert(ec2_arn("network-interface", interface.network_interface().unwrap().network_interface_id().unwrap()));
    let template = ec2.create_launch_template().launch_template_name(format!("karpenter.k8s.aws/{name}"));
    let data = aws_sdk_ec2::types::RequestLaunchTemplateData::builder().ebs_optimized(true).build();
    let template = template.launch_template_data(data);
    let template = template.tag_specifications(tagged(ResourceType::LaunchTemplate, "eks:eks-cluster-name", name));
    let template = template.send().await.unwrap().launch_template.unwrap();
    others.insert(ec2_arn("launch-template", template.launch_template_id().unwrap()));

    let iam = aws_sdk_iam::Client::new(&cloud.config);
    let tag = aws_sdk_iam::types::Tag::builder().key(names::CLUSTER_TAG).value(name).build().unwrap();
    let trust = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"Service": "ec2.amazonaws.com"}}]});
    let role_name = names::role(&key, "node");
    let node_role = iam.create_role().role_name(&role_name).assume_role_policy_document(trust.to_string());
    ours.insert(node_role.tags(tag.clone()).send().await.unwrap().role.unwrap().arn);
    let allow =
        json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sqs:*", "Resource": "*"}]});
    let policy =
        iam.create_policy().policy_name(names::policy(&key, "interruption")).policy_document(allow.to_string());
    let policy = policy.tags(tag.clone()).send().await.unwrap().policy.unwrap().arn.unwrap();
    iam.attach_role_policy().role_name(&role_name).policy_arn(&policy).send().await.unwrap();
    ours.insert(policy);
    let profile_name = format!("{name}_123");
    let profile = iam.create_instance_profile().instance_profile_name(&profile_name);
    let profile = profile.path(format!("/karpenter/{REGION}/{name}/0f1e/")).send().await.unwrap();
    others.insert(profile.instance_profile.unwrap().arn);
    iam.add_role_to_instance_profile().instance_profile_name(&profile_name).role_name(&role_name).send().await.unwrap();
    let issuer = format!("https://oidc.eks.{REGION}.amazonaws.com/id/0F{}", name.len());
    let provider = iam.create_open_id_connect_provider().url(issuer).client_id_list("sts.amazonaws.com");
    let provider = provider.thumbprint_list("0".repeat(40)).tags(tag).send().await.unwrap();
    ours.insert(provider.open_id_connect_provider_arn.unwrap());

    let sqs = aws_sdk_sqs::Client::new(&cloud.config);
    let queue = names::queue(&key);
    sqs.create_queue().queue_name(&queue).tags(names::CLUSTER_TAG, name).send().await.unwrap();
    ours.insert(format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}"));
    let events = aws_sdk_eventbridge::Client::new(&cloud.config);
    let rule = events.put_rule().name(names::rule(&key, "rebalance")).event_pattern(r#"{"source":["aws.ec2"]}"#);
    let tag = aws_sdk_eventbridge::types::Tag::builder().key(names::CLUSTER_TAG).value(name).build().unwrap();
    ours.insert(rule.tags(tag).send().await.unwrap().rule_arn.unwrap());

    let aws = cloud.cloud.gateway().client("eks.amazonaws.com", ACCOUNT, REGION);
    let log_group = json!({ "logGroupName": format!("/aws/eks/{name}/cluster") });
    aws.json("logs", "Logs_20140328.CreateLogGroup", &log_group).await.unwrap();
    others.insert(format!("arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/eks/{name}/cluster"));
    let balancer = [
        ("Name", format!("a{name}").replace('_', "x")),
        ("Type", "network".to_owned()),
        ("Subnets.member.1", subnet.subnet_id.unwrap()),
        ("Tags.member.1.Key", owned),
        ("Tags.member.1.Value", "owned".to_owned()),
    ];
    let balancer: Vec<(&str, &str)> = balancer.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = aws.query("elasticloadbalancing", "CreateLoadBalancer", &balancer).await.unwrap();
    let arn = answer.split("<LoadBalancerArn>").nth(1).unwrap().split('<').next().unwrap();
    others.insert(arn.to_owned());
    let described = format!("ELB {}", arn.split_once(":loadbalancer/").unwrap().1);
    let its = aws_sdk_ec2::types::Filter::builder().name("description").values(described).build();
    let interfaces = ec2.describe_network_interfaces().filters(its).send().await.unwrap();
    let follows = ec2_arn("network-interface", interfaces.network_interfaces()[0].network_interface_id().unwrap());
    Left { ours, others, follows }
}

fn arns(findings: &Value) -> BTreeSet<String> {
    let arn = |finding: &Value| finding["arn"].as_str().unwrap().to_owned();
    findings.as_array().unwrap().iter().map(arn).collect()
}

async fn audit(cloud: &Deployed, name: &str) -> BTreeSet<String> {
    let ended = cloud.run_machine("slipway-audit", &json!({ "name": name })).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    arns(&ended.output["findings"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_lists_what_a_cluster_left_and_a_sweep_removes_it() {
    let cloud = Deployed::start(Kubernetes::None).await.unwrap();
    let empty = cloud.run_machine("slipway-audit", &json!({})).await.unwrap();
    assert_eq!(empty.output["total"], 0, "{:?} {} {}", empty.output, empty.error, empty.cause);

    let demo = leave(&cloud, "demo").await;
    let neighbour = leave(&cloud, "demo-2").await;
    assert_eq!(audit(&cloud, "demo").await, demo.all());
    assert_eq!(audit(&cloud, "demo-2").await, neighbour.all());
    assert_eq!(audit(&cloud, "dem").await, BTreeSet::new());

    let expected = cloud.run_machine("slipway-audit", &json!({"name": "demo", "expectEmpty": true})).await.unwrap();
    assert_eq!((expected.status.as_str(), expected.error.as_str()), ("FAILED", "OrphansFound"));
    for told in demo.all() {
        assert!(expected.cause.contains(&told), "{told} is not in: {}", expected.cause);
    }
    let account = cloud.run_machine("slipway-audit", &json!({})).await.unwrap().output;
    assert_eq!(arns(&account["findings"]), demo.all().union(&neighbour.all()).cloned().collect());
    for finding in account["findings"].as_array().unwrap() {
        let because = finding["because"].as_str().unwrap();
        assert!(because.contains("no registry row knows it"), "{because}");
        assert!(!finding["removedBy"].as_str().unwrap().is_empty());
    }
    let balancers = account["findings"].as_array().unwrap().iter().find(|f| f["kind"] == "load-balancer").unwrap();
    assert_eq!((&balancers["monthlyCostUsd"], &balancers["cluster"]), (&json!(18.4), &json!("demo")));

    // Refusals, each under its own name, and a dry run: nothing is changed by any.
    let before = cloud.last_call();
    for (field, value, error) in [
        ("account", Value::Null, "SweepUnconfirmed"),
        ("account", json!("444455556666"), "SweepUnconfirmed"),
        ("namePattern", Value::Null, "InvalidInput"),
        ("dryrun", json!(true), "InvalidInput"),
    ] {
        let mut asked = json!({"dryRun": false, "account": ACCOUNT, "namePattern": "demo"});
        asked[field] = value;
        let ended = cloud.run_machine("slipway-sweep", &asked).await.unwrap();
        assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", error), "{asked}: {}", ended.cause);
    }
    let named: Vec<String> = demo.others.iter().cloned().collect();
    let dry = json!({"namePattern": "demo", "arns": named});
    let ended = cloud.run_machine("slipway-sweep", &dry).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}", ended.cause);
    assert_eq!(ended.output["dryRun"], true);
    assert_eq!(arns(&ended.output["plan"]), demo.goes());
    let kinds: Vec<&str> =
        ended.output["plan"].as_array().unwrap().iter().map(|finding| finding["kind"].as_str().unwrap()).collect();
    let order = [
        "load-balancer",
        "volume",
        "network-interface",
        "launch-template",
        "security-group",
        "rule",
        "queue",
        "instance-profile",
        "role",
        "policy",
        "oidc-provider",
        "log-group",
    ];
    assert_eq!(kinds, order);
    assert_eq!(cloud.mutations(before).len(), 0, "a dry run changes nothing");

    for name in ["demo", "demo-2"] {
        cloud.register(name, "Failed").await.unwrap();
    }
    let sweep = json!({"name": "demo", "dryRun": false, "account": ACCOUNT, "namePattern": "demo", "arns": named});
    let ended = cloud.run_machine("slipway-sweep", &sweep).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert_eq!(ended.output["plan"], json!([]));
    assert_eq!(audit(&cloud, "demo").await, BTreeSet::new());
    assert_eq!(audit(&cloud, "demo-2").await, neighbour.all());
    for (name, trusted) in [("demo", false), ("demo-2", true)] {
        let row = cloud.rows(name).await.unwrap().remove(0).1;
        assert_eq!(row.get("run").is_some(), trusted, "no run goes on over what a sweep took away: {row}");
    }

    // A run that has just begun must still be able to close.
    cloud.register("demo-2", "Provisioning").await.unwrap();
    let named: Vec<String> = neighbour.others.iter().cloned().collect();
    let sweep = json!({"name": "demo-2", "dryRun": false, "account": ACCOUNT, "namePattern": "demo-2", "arns": named});
    let ended = cloud.run_machine("slipway-sweep", &sweep).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    let row = cloud.rows("demo-2").await.unwrap().remove(0).1;
    assert!(row.get("run").is_some(), "{row}");

    privileges::compare(&cloud, "sweep", &["teardown", "leftovers"]).unwrap();
    cloud.cloud.stop().await;
}
