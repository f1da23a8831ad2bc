//! Clusters of similar names share an account, each with everything that a cluster may leave; one of them is taken away, one
//! is swept. Of the others not one thing is missing afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use serde_json::{Value, json};
use slipway_karpenter::policy::interruption_rules;
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_local::gateway::call::Aws;
use slipway_statemachine::{ClusterKey, names};
use slipway_tests::cloud::{Deployed, Ended};
use slipway_tests::{account, privileges, wait::eventually};

const EC2_TRUST: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;
const EKS_TRUST: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"eks.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;
const POLICY: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ec2:DescribeVpcs","Resource":"*"}]}"#;
/// What a teardown, an audit or a sweep can take, as `account::inventory` calls it, and the log groups.
const KINDS: [&str; 20] = [
    "address",
    "cluster",
    "instance",
    "instance profile",
    "interface",
    "internet gateway",
    "launch template",
    "load balancer",
    "log group",
    "NAT gateway",
    "oidc",
    "policy",
    "queue",
    "role",
    "rule",
    "security group",
    "stack",
    "subnet",
    "target group",
    "volume",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_is_never_touched() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let before = inventory(&deployed).await;
    for name in ["demo-2", "demo_2"] {
        furnish(&deployed, name).await;
    }
    let neighbours = inventory(&deployed).await;
    let kinds: BTreeSet<&str> = neighbours.difference(&before).map(|one| one.rsplit_once(' ').unwrap().0).collect();
    let lacking: Vec<&str> = KINDS.into_iter().filter(|kind| !kinds.contains(kind)).collect();
    assert!(lacking.is_empty(), "no {lacking:?} among {kinds:?}");
    furnish(&deployed, "demo").await;
    assert!(inventory(&deployed).await.len() > neighbours.len() + 40);

    // The control plane is FAILED: nobody can be asked what workloads hold. Nothing is deleted until they may go.
    let asked =
        |workloads: &str| json!({"name": "demo", "network": "delete", "workloads": workloads, "logGroup": "delete"});
    let calls = deployed.last_call();
    let refused = deployed.run_machine("slipway-teardown", &asked("refuse")).await.unwrap();
    assert_eq!(refused.error, "WorkloadsHoldResources", "{}", refused.cause);
    for held in ["load-balancer ademo", "load-balancer ndemo", "volume vol-", "(of shop/data)"] {
        assert!(refused.cause.contains(held), "no {held} in {}", refused.cause);
    }
    assert!(deployed.mutations(calls).is_empty(), "{:#?}", deployed.mutations(calls));

    let ended = deployed.run_machine("slipway-teardown", &asked("delete")).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    assert!(ended.output["notes"][0].as_str().unwrap().contains("the control plane is FAILED"), "{}", ended.output);
    let after = inventory(&deployed).await;
    account::same(&neighbours, &after).unwrap();

    swept_by_a_pattern_that_fits_one(&deployed, &before, &neighbours).await;
    privileges::compare(&deployed, "leftovers", &["teardown"]).unwrap();
    deployed.cloud.stop().await;
}

/// Whatever does not bear our tag is named by its ARN, as the dry run lists it; a registry row has no cluster any more.
async fn swept_by_a_pattern_that_fits_one(
    deployed: &Deployed,
    before: &BTreeSet<String>,
    neighbours: &BTreeSet<String>,
) {
    for name in ["demo-2", "demo_2", "demo_3"] {
        deployed.register(name, "Failed").await.unwrap();
    }
    let dry = json!({"namePattern": "demo_2", "all": true});
    let dry = deployed.run_machine("slipway-sweep", &dry).await.unwrap();
    assert_eq!(dry.status, "SUCCEEDED", "{}: {}", dry.error, dry.cause);
    let skipped = dry.output["skipped"].as_array().unwrap().iter();
    let untagged: Vec<&Value> = skipped
        .filter(|one| one["because"].as_str().unwrap().contains("name its ARN"))
        .map(|one| &one["arn"])
        .collect();
    assert!(untagged.len() > 8, "{untagged:?}");
    let sweep = json!({
        "dryRun": false, "account": ACCOUNT, "namePattern": "demo_2", "all": true, "arns": untagged,
    });
    let swept = swept_once_nothing_holds_its_network(deployed, &sweep).await;
    assert_eq!(swept.status, "SUCCEEDED", "{}: {}", swept.error, swept.cause);
    let after = inventory(deployed).await;
    // A stack's name has no `_`: the swept cluster's ends in a hash.
    let called = |all: &BTreeSet<String>| {
        all.iter().filter(|one| one.contains("demo-2") && !one.contains("slipway-network-demo-2-")).count()
    };
    assert_eq!(called(&after), called(neighbours), "{after:#?}");
    let gained: Vec<_> = after.difference(neighbours).collect();
    assert!(gained.is_empty(), "{gained:#?}");
    // Ids say nothing of whose they are: half of the neighbours' things are left, to the last one.
    let (both, half) = (neighbours.difference(before).count(), after.difference(before).count());
    assert_eq!(half * 2, both, "of {both} things of two clusters {half} are left: {after:#?}");
    let gone = deployed.run_machine("slipway-audit", &json!({"name": "demo_2"})).await.unwrap();
    assert_eq!(gone.output["total"], 0, "{}", gone.output);
    assert!(deployed.rows("demo_2").await.unwrap().is_empty(), "its row is forgotten");
    for name in ["demo-2", "demo_3"] {
        assert_eq!(deployed.rows(name).await.unwrap().len(), 1, "the row of {name} stays");
    }
}

/// An interface of somebody's in the network's subnet: the sweep says so while it waits, and ends once it is gone.
async fn swept_once_nothing_holds_its_network(deployed: &Deployed, sweep: &Value) -> Ended {
    let cluster = ClusterKey { account: ACCOUNT.to_owned(), region: REGION.to_owned(), name: "demo_2".to_owned() };
    let cloudformation = aws_sdk_cloudformation::Client::new(&deployed.config);
    let stack = cloudformation.describe_stacks().stack_name(names::stack(&cluster)).send().await.unwrap();
    let outputs = stack.stacks.unwrap().remove(0).outputs.unwrap();
    let subnets = outputs.iter().find(|output| output.output_key() == Some("PrivateSubnetIds")).unwrap();
    let subnet = subnets.output_value().unwrap().split(',').next().unwrap().to_owned();
    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let held = ec2.create_network_interface().subnet_id(&subnet).send().await.unwrap().network_interface.unwrap();

    let execution = deployed.start_machine("slipway-sweep", sweep).await.unwrap();
    eventually("a sweep that says what holds the network", async || {
        let history = deployed.history(&execution).await.ok()?;
        let mut answers = history.iter().filter_map(|event| event.task_succeeded_event_details()?.output());
        answers.find(|answer| answer.contains("was DELETE_FAILED") && answer.contains(&subnet)).map(drop)
    })
    .await;
    ec2.delete_network_interface().network_interface_id(held.network_interface_id.unwrap()).send().await.unwrap();
    deployed.end(&execution).await.unwrap()
}

fn aws(deployed: &Deployed) -> Aws {
    deployed.cloud.gateway().client("eks.amazonaws.com", ACCOUNT, REGION)
}

async fn inventory(deployed: &Deployed) -> BTreeSet<String> {
    let mut found = account::inventory(&deployed.config).await.unwrap();
    let mut body = json!({ "logGroupNamePrefix": "/aws/eks/" });
    loop {
        let page = aws(deployed).json("logs", "Logs_20140328.DescribeLogGroups", &body).await.unwrap();
        let groups = page["logGroups"].as_array().cloned().unwrap_or_default();
        found.extend(groups.iter().map(|group| format!("log group {}", group["logGroupName"].as_str().unwrap())));
        match page["nextToken"].as_str() {
            Some(token) => body["nextToken"] = token.into(),
            None => return found,
        }
    }
}

/// Everything that a cluster has, and leaves whose control plane does not answer.
async fn furnish(deployed: &Deployed, name: &str) {
    let cluster = ClusterKey { account: ACCOUNT.to_owned(), region: REGION.to_owned(), name: name.to_owned() };
    let (subnets, vpc) = network(deployed, &cluster).await;
    identities(deployed, &cluster).await;
    interruptions(deployed, &cluster).await;
    control_plane(deployed, &cluster, &subnets).await;
    remnants(deployed, &cluster, &subnets[0], &vpc).await;
    of_workloads(deployed, &cluster, &subnets).await;
}

/// The stack of the network: its private subnets and its VPC.
async fn network(deployed: &Deployed, cluster: &ClusterKey) -> (Vec<String>, String) {
    let cloudformation = aws_sdk_cloudformation::Client::new(&deployed.config);
    let tag = aws_sdk_cloudformation::types::Tag::builder().key(names::CLUSTER_TAG).value(&cluster.name).build();
    let parameter = |(key, value): (&str, &str)| {
        aws_sdk_cloudformation::types::Parameter::builder().parameter_key(key).parameter_value(value).build()
    };
    let parameters = [
        ("ClusterName", cluster.name.as_str()),
        ("Cidr", "10.20.0.0/16"),
        ("PrivateHostBits", "14"),
        ("PublicHostBits", "12"),
        ("Zone1", "eu-west-1a"),
        ("Zone2", "eu-west-1b"),
        ("Zone3", ""),
        ("Nat", "single"),
        ("FlowLogs", "false"),
    ];
    let name = names::stack(cluster);
    let call =
        cloudformation.create_stack().stack_name(&name).template_body(include_str!("../../../infra/network.yaml"));
    let call = call.set_parameters(Some(parameters.map(parameter).to_vec())).tags(tag);
    call.capabilities(aws_sdk_cloudformation::types::Capability::CapabilityIam).send().await.unwrap();
    let stack = eventually(&name, async || {
        let found = cloudformation.describe_stacks().stack_name(&name).send().await.unwrap().stacks.unwrap().remove(0);
        let status = found.stack_status().unwrap().as_str();
        assert!(["CREATE_IN_PROGRESS", "CREATE_COMPLETE"].contains(&status), "{name} is {status}");
        (status == "CREATE_COMPLETE").then_some(found)
    })
    .await;
    let output = |key: &str| {
        let found = stack.outputs().iter().find(|output| output.output_key() == Some(key)).unwrap();
        found.output_value().unwrap().to_owned()
    };
    (output("PrivateSubnetIds").split(',').map(str::to_owned).collect(), output("VpcId"))
}

/// A control plane that failed, with the group that EKS made for it, and what it logged.
async fn control_plane(deployed: &Deployed, cluster: &ClusterKey, subnets: &[String]) {
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    let vpc = aws_sdk_eks::types::VpcConfigRequest::builder().set_subnet_ids(Some(subnets.to_vec())).build();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/{}", names::role(cluster, "cluster"));
    eventually("EKS to have heard of the role", async || {
        let call = eks.create_cluster().name(&cluster.name).role_arn(&role).resources_vpc_config(vpc.clone());
        call.tags(names::CLUSTER_TAG, &cluster.name).send().await.inspect_err(|error| tracing::info!("{error:?}")).ok()
    })
    .await;
    eventually("the cluster to have FAILED", async || {
        let found = eks.describe_cluster().name(&cluster.name).send().await.unwrap().cluster.unwrap();
        (found.status().unwrap().as_str() == "FAILED").then_some(())
    })
    .await;
    let log_group = json!({ "logGroupName": format!("/aws/eks/{}/cluster", cluster.name) });
    aws(deployed).json("logs", "Logs_20140328.CreateLogGroup", &log_group).await.unwrap();
}

async fn identities(deployed: &Deployed, cluster: &ClusterKey) {
    let iam = aws_sdk_iam::Client::new(&deployed.config);
    let tag = |key: &str| aws_sdk_iam::types::Tag::builder().key(key).value(&cluster.name).build().unwrap();
    let node = names::role(cluster, "node");
    let role = |suffix: &str| names::role(cluster, suffix);
    for (role, trust) in [
        (role("cluster"), EKS_TRUST),
        (role("core"), EC2_TRUST),
        (node.clone(), EC2_TRUST),
        (role("controller"), EC2_TRUST),
        (names::addon_role(cluster, "aws-ebs-csi-driver"), EC2_TRUST),
    ] {
        let call = iam.create_role().role_name(&role).assume_role_policy_document(trust);
        call.tags(tag(names::CLUSTER_TAG)).send().await.unwrap();
    }
    iam.put_role_policy().role_name(&node).policy_name("inline").policy_document(POLICY).send().await.unwrap();
    let policy = iam.create_policy().policy_name(names::policy(cluster, "interruption")).policy_document(POLICY);
    let arn = policy.tags(tag(names::CLUSTER_TAG)).send().await.unwrap().policy.unwrap().arn.unwrap();
    iam.create_policy_version().policy_arn(&arn).policy_document(POLICY).set_as_default(true).send().await.unwrap();
    let controller = names::role(cluster, "controller");
    iam.attach_role_policy().role_name(controller).policy_arn(&arn).send().await.unwrap();
    let profile = format!("{}_profile", cluster.name);
    let path = format!("/karpenter/{REGION}/{}/uid/", cluster.name);
    iam.create_instance_profile().instance_profile_name(&profile).path(path).send().await.unwrap();
    iam.add_role_to_instance_profile().instance_profile_name(&profile).role_name(&node).send().await.unwrap();
    let issuer = format!("https://oidc.eks.{REGION}.amazonaws.com/id/{}", hex(&cluster.name));
    let provider = iam.create_open_id_connect_provider().url(issuer).client_id_list("sts.amazonaws.com");
    provider.tags(tag(names::CLUSTER_TAG)).send().await.unwrap();
}

fn hex(name: &str) -> String {
    name.bytes().fold(String::new(), |hex, byte| hex + &format!("{byte:02X}"))
}

async fn interruptions(deployed: &Deployed, cluster: &ClusterKey) {
    let sqs = aws_sdk_sqs::Client::new(&deployed.config);
    let queue = names::queue(cluster);
    sqs.create_queue().queue_name(&queue).tags(names::CLUSTER_TAG, &cluster.name).send().await.unwrap();
    let events = aws_sdk_eventbridge::Client::new(&deployed.config);
    for rule in interruption_rules() {
        let name = names::rule(cluster, rule.kind);
        let tag = aws_sdk_eventbridge::types::Tag::builder().key(names::CLUSTER_TAG).value(&cluster.name).build();
        let call = events.put_rule().name(&name).event_pattern(rule.pattern.to_string()).tags(tag.unwrap());
        call.send().await.unwrap();
        let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}");
        let target = aws_sdk_eventbridge::types::Target::builder().id("queue").arn(arn).build().unwrap();
        events.put_targets().rule(&name).targets(target).send().await.unwrap();
    }
}

/// Tags as Kubernetes, EKS and Karpenter give them, and more.
fn tagged(cluster: &ClusterKey, kind: ResourceType, extra: &[(&str, &str)]) -> TagSpecification {
    let owned = (format!("kubernetes.io/cluster/{}", cluster.name), "owned".to_owned());
    let own = [owned, ("eks:eks-cluster-name".to_owned(), cluster.name.clone())];
    let extra = extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let tags = own.into_iter().chain(extra).map(|(key, value)| Tag::builder().key(key).value(value).build());
    TagSpecification::builder().resource_type(kind).set_tags(Some(tags.collect())).build()
}

async fn remnants(deployed: &Deployed, cluster: &ClusterKey, subnet: &str, vpc: &str) {
    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let data = aws_sdk_ec2::types::RequestLaunchTemplateData::builder().instance_type("t4g.micro".into()).build();
    let template = ec2.create_launch_template().launch_template_name(format!("karpenter.k8s.aws/{}", cluster.name));
    let tags = tagged(cluster, ResourceType::LaunchTemplate, &[]);
    template.launch_template_data(data).tag_specifications(tags).send().await.unwrap();
    let node = [("karpenter.sh/nodepool", "x86")];
    let image = ec2.describe_images().filters(named("architecture", "x86_64")).send().await.unwrap();
    let image = image.images()[0].image_id().unwrap().to_owned();
    let machine = ec2.run_instances().image_id(image).instance_type("t3.micro".into()).min_count(1).max_count(1);
    let machine = machine.subnet_id(subnet).tag_specifications(tagged(cluster, ResourceType::Instance, &node));
    machine.send().await.unwrap();
    let volume = ec2.create_volume().availability_zone(format!("{REGION}a")).size(1);
    volume.tag_specifications(tagged(cluster, ResourceType::Volume, &node)).send().await.unwrap();
    // Two groups whose rules name each other, and an interface in one of them.
    let mut groups = Vec::new();
    for what in ["elb", "node"] {
        let group = ec2.create_security_group().group_name(format!("k8s-{what}-{}", cluster.name));
        let group = group.description("of a service").vpc_id(vpc);
        let tags = tagged(cluster, ResourceType::SecurityGroup, &[]);
        groups.push(group.tag_specifications(tags).send().await.unwrap().group_id.unwrap());
    }
    for (group, other) in [(&groups[0], &groups[1]), (&groups[1], &groups[0])] {
        let pair = aws_sdk_ec2::types::UserIdGroupPair::builder().group_id(other).build();
        let rule = aws_sdk_ec2::types::IpPermission::builder().ip_protocol("-1").user_id_group_pairs(pair).build();
        ec2.authorize_security_group_ingress().group_id(group).ip_permissions(rule).send().await.unwrap();
    }
    for (group, description) in
        [(&groups[0], format!("Amazon EKS {}", cluster.name)), (&groups[1], "aws-K8S-i-1".into())]
    {
        let interface = ec2.create_network_interface().subnet_id(subnet).groups(group);
        interface.description(description).send().await.unwrap();
    }
}

fn named(name: &str, value: &str) -> aws_sdk_ec2::types::Filter {
    aws_sdk_ec2::types::Filter::builder().name(name).values(value).build()
}

/// Load balancers of both generations with a target group, and a volume with somebody's data.
async fn of_workloads(deployed: &Deployed, cluster: &ClusterKey, subnets: &[String]) {
    let name = cluster.name.replace('_', "x");
    let owned = format!("kubernetes.io/cluster/{}", cluster.name);
    let v2 = aws_sdk_elasticloadbalancingv2::Client::new(&deployed.config);
    let tag = aws_sdk_elasticloadbalancingv2::types::Tag::builder().key("elbv2.k8s.aws/cluster").value(&cluster.name);
    let tag = tag.build();
    let balancer = v2.create_load_balancer().name(format!("n{name}")).r#type("network".into());
    let balancer = balancer.set_subnets(Some(subnets.to_vec())).tags(tag.clone()).send().await.unwrap();
    let balancer = balancer.load_balancers()[0].load_balancer_arn().unwrap().to_owned();
    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let vpc = ec2.describe_subnets().subnet_ids(&subnets[0]).send().await.unwrap().subnets()[0].vpc_id.clone();
    let group = v2.create_target_group().name(format!("k8s-{name}")).protocol("TCP".into()).port(80).set_vpc_id(vpc);
    let group = group.tags(tag).send().await.unwrap().target_groups()[0].target_group_arn().unwrap().to_owned();
    let forward = aws_sdk_elasticloadbalancingv2::types::Action::builder().r#type("forward".into());
    let listener = v2.create_listener().load_balancer_arn(balancer).protocol("TCP".into()).port(80);
    listener.default_actions(forward.target_group_arn(group).build()).send().await.unwrap();

    let classic = aws_sdk_elasticloadbalancing::Client::new(&deployed.config);
    let tag = aws_sdk_elasticloadbalancing::types::Tag::builder().key(owned).value("owned").build().unwrap();
    let listener = aws_sdk_elasticloadbalancing::types::Listener::builder().protocol("TCP").load_balancer_port(80);
    let listener = listener.instance_port(30080).build().unwrap();
    let group = ec2.describe_security_groups().filters(named("group-name", &format!("k8s-elb-{}", cluster.name)));
    let group = group.send().await.unwrap().security_groups()[0].group_id().unwrap().to_owned();
    let balancer = classic.create_load_balancer().load_balancer_name(format!("a{name}")).listeners(listener);
    let balancer = balancer.set_subnets(Some(subnets.to_vec())).security_groups(group);
    balancer.tags(tag).send().await.unwrap();

    let claim = [("kubernetes.io/created-for/pvc/namespace", "shop"), ("kubernetes.io/created-for/pvc/name", "data")];
    let volume = ec2.create_volume().availability_zone(format!("{REGION}a")).size(1);
    volume.tag_specifications(tagged(cluster, ResourceType::Volume, &claim)).send().await.unwrap();
}
