//! The network stack, fleets and EC2's long lists on a running cloud: what the product and Karpenter rely on, asked
//! of the real emulators with their corrections.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use slipway_local::cloud::{ACCOUNT, Cloud, CloudConfig, Kubernetes, REGION};
use slipway_local::gateway::call::Aws;
use slipway_local::services::images;

/// The texts of every element of a name.
fn all(xml: &str, name: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(xml).unwrap();
    let named = document.descendants().filter(|node| node.tag_name().name() == name);
    named.filter_map(|node| node.text().map(str::to_owned)).collect()
}

fn first(xml: &str, name: &str) -> String {
    all(xml, name).into_iter().next().unwrap_or_else(|| panic!("no {name} in {xml}"))
}

async fn ec2(aws: &Aws, action: &str, params: &[(&str, &str)]) -> String {
    aws.query("ec2", action, params).await.unwrap()
}

#[tokio::test]
async fn a_network_is_made_and_a_fleet_launched_into_it() {
    let cloud = Cloud::start(CloudConfig::new(Kubernetes::None).unwrap()).await.unwrap();
    let aws = cloud.gateway().client("slipway", ACCOUNT, REGION);

    let private = make_network(&aws).await;
    launch_a_fleet(&aws, &private).await;
    list_at_length(&aws).await;

    cloud.stop().await;
}

/// Makes the product's own network stack and answers its private subnets.
async fn make_network(aws: &Aws) -> Vec<String> {
    let template = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/network.yaml")).unwrap();
    let mut creation = vec![("StackName", "network"), ("TemplateBody", template.as_str())];
    let parameters = [("ClusterName", "demo"), ("Zone1", "eu-west-1a"), ("Zone2", "eu-west-1b"), ("FlowLogs", "true")];
    let names: Vec<[String; 2]> = (1..=parameters.len())
        .map(|n| ["Key", "Value"].map(|part| format!("Parameters.member.{n}.Parameter{part}")))
        .collect();
    for ([key, value], parameter) in names.iter().zip(&parameters) {
        creation.extend([(key.as_str(), parameter.0), (value.as_str(), parameter.1)]);
    }
    creation.push(("Capabilities.member.1", "CAPABILITY_NAMED_IAM"));
    aws.query("cloudformation", "CreateStack", &creation).await.unwrap();
    for _ in 0..300 {
        let described = aws.query("cloudformation", "DescribeStacks", &[("StackName", "network")]).await.unwrap();
        match first(&described, "StackStatus").as_str() {
            "CREATE_IN_PROGRESS" => tokio::time::sleep(Duration::from_millis(200)).await,
            "CREATE_COMPLETE" => {
                let filter = [("Filter.1.Name", "tag:karpenter.sh/discovery"), ("Filter.1.Value.1", "demo")];
                let subnets = all(&ec2(aws, "DescribeSubnets", &filter).await, "subnetId");
                assert_eq!(subnets.len(), 2, "the private subnets, and they alone, carry the discovery tag");
                return subnets;
            }
            _ => {
                let events = aws.query("cloudformation", "DescribeStackEvents", &[("StackName", "network")]).await;
                panic!("{}", events.unwrap());
            }
        }
    }
    panic!("the stack does not settle");
}

/// As Karpenter does: an instant fleet of a launch template with a group and a profile, and offers to choose from.
async fn launch_a_fleet(aws: &Aws, subnets: &[String]) {
    let subnet = ec2(aws, "DescribeSubnets", &[("SubnetId.1", &subnets[0])]).await;
    let (vpc, zone) = (first(&subnet, "vpcId"), first(&subnet, "availabilityZone"));
    let group = [("GroupName", "nodes"), ("GroupDescription", "nodes"), ("VpcId", &vpc)];
    let group = first(&ec2(aws, "CreateSecurityGroup", &group).await, "groupId");
    aws.query("iam", "CreateInstanceProfile", &[("InstanceProfileName", "nodes")]).await.unwrap();
    let image = images::all().into_iter().find(|image| image.architecture == "arm64").unwrap().id;
    let template = [
        ("LaunchTemplateName", "nodes"),
        ("LaunchTemplateData.ImageId", image.as_str()),
        ("LaunchTemplateData.IamInstanceProfile.Name", "nodes"),
        ("LaunchTemplateData.NetworkInterface.1.DeviceIndex", "0"),
        ("LaunchTemplateData.NetworkInterface.1.SecurityGroupId.1", &group),
    ];
    ec2(aws, "CreateLaunchTemplate", &template).await;
    let fleet = [
        ("Type", "instant"),
        ("TargetCapacitySpecification.TotalTargetCapacity", "1"),
        ("TargetCapacitySpecification.DefaultTargetCapacityType", "spot"),
        ("SpotOptions.AllocationStrategy", "price-capacity-optimized"),
        ("LaunchTemplateConfigs.1.LaunchTemplateSpecification.LaunchTemplateName", "nodes"),
        ("LaunchTemplateConfigs.1.LaunchTemplateSpecification.Version", "$Latest"),
        ("LaunchTemplateConfigs.1.Overrides.1.InstanceType", "m6g.4xlarge"),
        ("LaunchTemplateConfigs.1.Overrides.1.SubnetId", &subnets[0]),
        ("LaunchTemplateConfigs.1.Overrides.2.InstanceType", "m6g.large"),
        ("LaunchTemplateConfigs.1.Overrides.2.SubnetId", &subnets[0]),
    ];
    let fleet = ec2(aws, "CreateFleet", &fleet).await;
    assert_eq!(first(&fleet, "instanceType"), "m6g.large", "the cheaper offer");
    let instance = all(&fleet, "item").into_iter().find(|text| text.starts_with("i-")).unwrap();
    let described = ec2(aws, "DescribeInstances", &[("InstanceId.1", &instance)]).await;
    let mut groups = all(&described, "groupId");
    groups.dedup();
    assert_eq!(groups, [group]);
    assert!(all(&described, "arn").iter().any(|arn| arn.ends_with("instance-profile/nodes")), "{described}");
    assert_eq!(first(&described, "availabilityZone"), zone);
    assert!(all(&described, "key").contains(&"aws:ec2launchtemplate:id".to_owned()));
}

async fn list_at_length(aws: &Aws) {
    let refused = aws.query("ec2", "DescribeInstanceTypes", &[("DryRun", "true")]).await.unwrap_err();
    assert_eq!(refused.code, "DryRunOperation");
    let began = std::time::Instant::now();
    let page = ec2(aws, "DescribeInstanceTypes", &[]).await;
    assert_eq!(all(&page, "instanceType").len(), 100);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let token = first(&page, "nextToken");
    let next = ec2(aws, "DescribeInstanceTypes", &[("NextToken", &token)]).await;
    assert_ne!(first(&page, "instanceType"), first(&next, "instanceType"));

    for n in 0..20 {
        let name = format!("template-{n}");
        let template = [("LaunchTemplateName", name.as_str()), ("LaunchTemplateData.InstanceType", "m6g.large")];
        ec2(aws, "CreateLaunchTemplate", &template).await;
    }
    let templates = ec2(aws, "DescribeLaunchTemplates", &[]).await;
    assert_eq!(all(&templates, "launchTemplateId").len(), 21);
}
