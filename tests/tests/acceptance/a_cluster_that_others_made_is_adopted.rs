//! A cluster as a Terraform layout makes it, beside one of nearly the same name: refused without a word of ours, and taken
//! away with all that is its own once a person adopts it. The VPC stays, and so does the neighbour.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aws_config::SdkConfig;
use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use serde_json::json;
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_tests::{account, cloud::Deployed, privileges};

const TRUST: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":["ec2.amazonaws.com","eks.amazonaws.com"]},"Action":"sts:AssumeRole"}]}"#;
const POLICY: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ec2:DescribeVpcs","Resource":"*"}]}"#;
const DISCOVERY: &str = "karpenter.sh/discovery";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_others_made_is_adopted() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let config = &deployed.config;
    let subnets = network(config).await;
    made_by_terraform(config, "shop-2", &subnets).await;
    everybodys(config).await;
    let others = account::inventory(config).await.unwrap();
    made_by_terraform(config, "shop", &subnets).await;
    let whole = account::inventory(config).await.unwrap();
    assert!(whole.len() > others.len() + 15);

    let calls = deployed.last_call();
    let refused = deployed.run_machine("slipway-teardown", &json!({"name": "shop"})).await.unwrap();
    assert_eq!(refused.error, "NotOurs", "{}", refused.cause);
    assert!(refused.cause.contains("\"adopt\": true"), "{}", refused.cause);
    assert!(deployed.mutations(calls).is_empty(), "{:#?}", deployed.mutations(calls));

    let asked = json!({"name": "shop", "adopt": true, "network": "delete"});
    let ended = deployed.run_machine("slipway-teardown", &asked).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    let after = account::inventory(config).await.unwrap();
    account::same(&others, &after).unwrap();
    privileges::compare(&deployed, "adopted", &["teardown"]).unwrap();
    deployed.cloud.stop().await;
}

/// The VPC module's: it is for all clusters, and only tells them that they may use it.
async fn network(config: &SdkConfig) -> Vec<String> {
    let ec2 = aws_sdk_ec2::Client::new(config);
    let vpc = ec2.create_vpc().cidr_block("10.50.0.0/16").send().await.unwrap().vpc.unwrap().vpc_id.unwrap();
    let mut subnets = Vec::new();
    for (zone, block) in [("a", "10.50.0.0/24"), ("b", "10.50.1.0/24")] {
        let tags = tags(ResourceType::Subnet, &[(DISCOVERY, "shop"), ("kubernetes.io/cluster/shop", "shared")]);
        let call = ec2.create_subnet().vpc_id(&vpc).cidr_block(block).availability_zone(format!("{REGION}{zone}"));
        subnets.push(call.tag_specifications(tags).send().await.unwrap().subnet.unwrap().subnet_id.unwrap());
    }
    subnets
}

fn tags(kind: ResourceType, tags: &[(&str, &str)]) -> TagSpecification {
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(*key).value(*value).build());
    TagSpecification::builder().resource_type(kind).set_tags(Some(tags.collect())).build()
}

async fn made_by_terraform(config: &SdkConfig, name: &str, subnets: &[String]) {
    identities(config, name).await;
    interruptions(config, name).await;
    let ec2 = aws_sdk_ec2::Client::new(config);
    let vpc = ec2.describe_subnets().subnet_ids(&subnets[0]).send().await.unwrap().subnets()[0].vpc_id.clone();
    let owned = format!("kubernetes.io/cluster/{name}");
    for (group, own) in [("cluster", vec![(owned.as_str(), "owned")]), ("node", vec![(DISCOVERY, name)])] {
        let call = ec2.create_security_group().group_name(format!("{name}-{group}")).description("of a module");
        let call = call.set_vpc_id(vpc.clone()).tag_specifications(tags(ResourceType::SecurityGroup, &own));
        call.send().await.unwrap();
    }
    let data = aws_sdk_ec2::types::RequestLaunchTemplateData::builder().instance_type("t4g.micro".into()).build();
    let template = ec2.create_launch_template().launch_template_name(format!("core-{name}")).launch_template_data(data);
    template.tag_specifications(tags(ResourceType::LaunchTemplate, &[(DISCOVERY, name)])).send().await.unwrap();
    control_plane(config, name, subnets).await;
}

async fn identities(config: &SdkConfig, name: &str) {
    let iam = aws_sdk_iam::Client::new(config);
    let tag = aws_sdk_iam::types::Tag::builder().key(DISCOVERY).value(name).build().unwrap();
    let [controller, node] = ["KarpenterController", "KarpenterNodeRole"].map(|what| format!("{what}-{name}"));
    for role in [&controller, &node] {
        iam.create_role().role_name(role).assume_role_policy_document(TRUST).send().await.unwrap();
    }
    // The cluster's own bears the tag instead of a name that anybody knows.
    let call = iam.create_role().role_name(format!("{name}-cluster-20260101")).assume_role_policy_document(TRUST);
    call.tags(tag.clone()).send().await.unwrap();
    let policy = iam.create_policy().policy_name(&controller).policy_document(POLICY).send().await.unwrap();
    let arn = policy.policy.unwrap().arn.unwrap();
    iam.attach_role_policy().role_name(&controller).policy_arn(&arn).send().await.unwrap();
    let call = iam.create_policy().policy_name(format!("{name}-encryption-20260101")).policy_document(POLICY);
    call.tags(tag.clone()).send().await.unwrap();
    let profile = format!("profile-of-{name}");
    iam.create_instance_profile().instance_profile_name(&profile).send().await.unwrap();
    iam.add_role_to_instance_profile().instance_profile_name(&profile).role_name(&node).send().await.unwrap();
    let issuer = format!("https://oidc.eks.{REGION}.amazonaws.com/id/0F1E{}", name.len());
    let provider = iam.create_open_id_connect_provider().url(issuer).client_id_list("sts.amazonaws.com").tags(tag);
    provider.send().await.unwrap();
}

/// Rules whose names end as Terraform made them up; they fill the cluster's queue and nothing else.
async fn interruptions(config: &SdkConfig, name: &str) {
    let (sqs, events) = (aws_sdk_sqs::Client::new(config), aws_sdk_eventbridge::Client::new(config));
    let queue = format!("Karpenter-{name}");
    sqs.create_queue().queue_name(&queue).send().await.unwrap();
    let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}");
    for what in ["HealthEvent", "InstanceRebalance", "SpotInterrupt"] {
        let rule = format!("Karpenter{what}-20260101{:04}", name.len());
        events.put_rule().name(&rule).event_pattern(r#"{"source":["aws.ec2"]}"#).send().await.unwrap();
        let target = aws_sdk_eventbridge::types::Target::builder().id("queue").arn(&arn).build().unwrap();
        events.put_targets().rule(&rule).targets(target).send().await.unwrap();
    }
}

/// What looks as if it were the cluster's and is not: a queue that is called after it, a rule that fills more than its queue.
async fn everybodys(config: &SdkConfig) {
    let (sqs, events) = (aws_sdk_sqs::Client::new(config), aws_sdk_eventbridge::Client::new(config));
    sqs.create_queue().queue_name("shop").send().await.unwrap();
    events.put_rule().name("karpenter-watch").event_pattern(r#"{"source":["aws.ec2"]}"#).send().await.unwrap();
    for queue in ["shop", "Karpenter-shop"] {
        let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}");
        let target = aws_sdk_eventbridge::types::Target::builder().id(queue).arn(arn).build().unwrap();
        events.put_targets().rule("karpenter-watch").targets(target).send().await.unwrap();
    }
    let iam = aws_sdk_iam::Client::new(config);
    for role in ["shop", "Karpenter-shop-api", "KarpenterController"] {
        iam.create_role().role_name(role).assume_role_policy_document(TRUST).send().await.unwrap();
    }
}

async fn control_plane(config: &SdkConfig, name: &str, subnets: &[String]) {
    let eks = aws_sdk_eks::Client::new(config);
    let vpc = aws_sdk_eks::types::VpcConfigRequest::builder().set_subnet_ids(Some(subnets.to_vec())).build();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/{name}-cluster-20260101");
    let began = Instant::now();
    // EKS hears of a new role later.
    while let Err(error) =
        eks.create_cluster().name(name).role_arn(&role).resources_vpc_config(vpc.clone()).send().await
    {
        assert!(began.elapsed() < Duration::from_secs(30), "{error:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let names: BTreeSet<String> = eks.list_clusters().send().await.unwrap().clusters.unwrap().into_iter().collect();
    assert!(names.contains(name), "{names:?}");
}
