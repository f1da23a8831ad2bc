//! Three clusters of similar names share an account; one of them, whose control plane is gone already, is taken away. Of
//! the others not one thing is missing afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use serde_json::json;
use slipway_karpenter::policy::interruption_rules;
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_statemachine::{ClusterKey, names};
use slipway_tests::{account, cloud::Deployed};

const TRUST: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;
const POLICY: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ec2:DescribeVpcs","Resource":"*"}]}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_is_never_touched() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let before = account::inventory(&deployed.config).await.unwrap();
    for name in ["demo-2", "demo_2"] {
        furnish(&deployed, name).await;
    }
    let neighbours = account::inventory(&deployed.config).await.unwrap();
    let kinds: BTreeSet<&str> = neighbours.difference(&before).map(|one| one.rsplit_once(' ').unwrap().0).collect();
    for kind in [
        "role",
        "policy",
        "instance profile",
        "oidc",
        "launch template",
        "security group",
        "interface",
        "volume",
        "queue",
        "rule",
    ] {
        assert!(kinds.contains(kind), "no {kind} among {kinds:?}");
    }
    furnish(&deployed, "demo").await;
    assert!(account::inventory(&deployed.config).await.unwrap().len() > neighbours.len() + 10);

    let ended = deployed.run_machine("slipway-teardown", &json!({ "name": "demo" })).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);

    let after = account::inventory(&deployed.config).await.unwrap();
    let lost: Vec<_> = neighbours.difference(&after).collect();
    let left: Vec<_> = after.difference(&neighbours).collect();
    assert!(lost.is_empty() && left.is_empty(), "a neighbour lost {lost:#?}; of demo is left {left:#?}");
    deployed.cloud.stop().await;
}

/// What a cluster leaves whose control plane somebody deleted by hand.
async fn furnish(deployed: &Deployed, name: &str) {
    let cluster = ClusterKey { account: ACCOUNT.to_owned(), region: REGION.to_owned(), name: name.to_owned() };
    identities(deployed, &cluster).await;
    interruptions(deployed, &cluster).await;
    remnants(deployed, &cluster).await;
}

async fn identities(deployed: &Deployed, cluster: &ClusterKey) {
    let iam = aws_sdk_iam::Client::new(&deployed.config);
    let tag = |key: &str| aws_sdk_iam::types::Tag::builder().key(key).value(&cluster.name).build().unwrap();
    let node = names::role(cluster, "node");
    for role in [names::role(cluster, "core"), node.clone(), names::role(cluster, "controller")] {
        let call = iam.create_role().role_name(&role).assume_role_policy_document(TRUST);
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

async fn remnants(deployed: &Deployed, cluster: &ClusterKey) {
    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let tagged = |kind: ResourceType, extra: &[(&str, &str)]| {
        let owned = (format!("kubernetes.io/cluster/{}", cluster.name), "owned".to_owned());
        let own = [owned, ("eks:eks-cluster-name".to_owned(), cluster.name.clone())];
        let extra = extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let tags = own.into_iter().chain(extra).map(|(key, value)| Tag::builder().key(key).value(value).build());
        TagSpecification::builder().resource_type(kind).set_tags(Some(tags.collect())).build()
    };
    let data = aws_sdk_ec2::types::RequestLaunchTemplateData::builder().instance_type("t4g.micro".into()).build();
    let template = ec2.create_launch_template().launch_template_name(format!("karpenter.k8s.aws/{}", cluster.name));
    let template = template.launch_template_data(data).tag_specifications(tagged(ResourceType::LaunchTemplate, &[]));
    template.send().await.unwrap();
    let node = [("karpenter.sh/nodepool", "x86")];
    let volume = ec2.create_volume().availability_zone(format!("{REGION}a")).size(1);
    volume.tag_specifications(tagged(ResourceType::Volume, &node)).send().await.unwrap();
    let subnets = ec2.describe_subnets().send().await.unwrap().subnets.unwrap();
    let (subnet, vpc) = (subnets[0].subnet_id().unwrap(), subnets[0].vpc_id().unwrap());
    let group = ec2.create_security_group().group_name(format!("k8s-elb-{}", cluster.name)).description("of a service");
    let group = group.vpc_id(vpc).tag_specifications(tagged(ResourceType::SecurityGroup, &[]));
    let group = group.send().await.unwrap().group_id.unwrap();
    let interface = ec2.create_network_interface().subnet_id(subnet).groups(group);
    interface.description(format!("Amazon EKS {}", cluster.name)).send().await.unwrap();
}
