//! EC2, IAM, `EventBridge` and EKS of the local cloud answer as AWS does where a step could hide behind less: deletes in
//! use, limits, tokens, filters, capacity, pages. Codes and texts are AWS's; docs/local-cloud.md names their sources.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    DefaultTargetCapacityType, DomainType, Filter, FleetLaunchTemplateConfigRequest,
    FleetLaunchTemplateOverridesRequest, FleetLaunchTemplateSpecificationRequest, FleetType, InstanceType,
    IpPermission, LaunchTemplateInstanceNetworkInterfaceSpecificationRequest, RequestLaunchTemplateData, ResourceType,
    Tag, TagSpecification, TargetCapacitySpecificationRequest, UserIdGroupPair, VpcEndpointType,
};
use aws_sdk_ec2::{Client as Ec2, operation::create_fleet::CreateFleetOutput};
use serde_json::{Value, json};
use slipway_local::cloud::{Cloud, CloudConfig, Kubernetes, REGION};
use slipway_local::services::capacity::Shortage;
use slipway_local::services::images;
use slipway_tests::wait::eventually;
use tokio::process::Command;

const ZONE: &str = "eu-west-1a";

/// A cloud with pages of two, and the admin's configuration without retries: a refusal is seen as it is first given.
async fn cloud() -> (Cloud, SdkConfig) {
    cloud_of(CloudConfig { page_size: Some(2), ..CloudConfig::new(Kubernetes::None).unwrap() }).await
}

async fn cloud_of(config: CloudConfig) -> (Cloud, SdkConfig) {
    let cloud = Cloud::start(config).await.unwrap();
    let env = cloud.env();
    let read = |name: &str| env.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let keys = Credentials::new(read("AWS_ACCESS_KEY_ID"), read("AWS_SECRET_ACCESS_KEY"), None, None, "local cloud");
    let sdk = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(cloud.endpoint())
        .credentials_provider(keys)
        .retry_config(RetryConfig::disabled())
        .load()
        .await;
    (cloud, sdk)
}

/// Code and text of a refusal.
#[track_caller]
fn refused<T, E: ProvideErrorMetadata>(result: Result<T, SdkError<E>>) -> (String, String) {
    let error = result.err().expect("AWS refuses this");
    (error.code().unwrap_or_default().to_owned(), error.message().unwrap_or_default().to_owned())
}

fn said(code: &str, text: impl Into<String>) -> (String, String) {
    (code.to_owned(), text.into())
}

fn violation(text: impl Into<String>) -> (String, String) {
    said("DependencyViolation", text)
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

struct Network {
    vpc: String,
    subnets: Vec<String>,
}

async fn network(ec2: &Ec2) -> Network {
    let vpc = ec2.create_vpc().cidr_block("10.0.0.0/16").send().await.unwrap().vpc.unwrap().vpc_id.unwrap();
    let mut subnets = Vec::new();
    for n in 0..5 {
        let call = ec2.create_subnet().vpc_id(&vpc).cidr_block(format!("10.0.{n}.0/24")).availability_zone(ZONE);
        subnets.push(call.send().await.unwrap().subnet.unwrap().subnet_id.unwrap());
    }
    Network { vpc, subnets }
}

async fn group(ec2: &Ec2, vpc: &str, name: &str) -> String {
    let call = ec2.create_security_group().vpc_id(vpc).group_name(name).description(name);
    call.send().await.unwrap().group_id.unwrap()
}

fn image(architecture: &str) -> String {
    images::all().into_iter().find(|image| image.architecture == architecture).unwrap().id
}

#[tokio::test]
async fn a_network_is_taken_apart_in_order_or_not_at_all() {
    let (cloud, sdk) = cloud().await;
    let ec2 = Ec2::new(&sdk);
    let Network { vpc, subnets } = network(&ec2).await;

    gateways_hold_addresses_and_subnets(&ec2, &vpc, &subnets[0]).await;
    groups_are_held_by_rules_and_interfaces(&ec2, &vpc, &subnets[1]).await;
    load_balancers_hold_their_groups_beyond_their_end(&sdk, &vpc, &subnets[1]).await;

    // Tables: of a subnet, and the main one.
    let filters = || filter("vpc-id", &vpc);
    let main = ec2.describe_route_tables().filters(filters()).send().await.unwrap().route_tables.unwrap();
    let main = main[0].route_table_id().unwrap();
    let own = ec2.create_route_table().vpc_id(&vpc).send().await.unwrap().route_table.unwrap().route_table_id.unwrap();
    ec2.associate_route_table().route_table_id(&own).subnet_id(&subnets[2]).send().await.unwrap();
    for table in [main, &own] {
        let text = format!("The routeTable '{table}' has dependencies and cannot be deleted.");
        assert_eq!(refused(ec2.delete_route_table().route_table_id(table).send().await), violation(text));
    }

    // The VPC last; a subnet takes its association along.
    let held = violation(format!("The vpc '{vpc}' has dependencies and cannot be deleted."));
    assert_eq!(refused(ec2.delete_vpc().vpc_id(&vpc).send().await), held);
    for subnet in &subnets {
        ec2.delete_subnet().subnet_id(subnet).send().await.unwrap();
    }
    ec2.delete_route_table().route_table_id(&own).send().await.unwrap();
    let left = group(&ec2, &vpc, "left").await;
    assert_eq!(refused(ec2.delete_vpc().vpc_id(&vpc).send().await), held, "a group of ours is left");
    ec2.delete_security_group().group_id(&left).send().await.unwrap();
    ec2.delete_vpc().vpc_id(&vpc).send().await.unwrap();
    let (code, _) = refused(ec2.delete_vpc().vpc_id(&vpc).send().await);
    assert_eq!(code, "InvalidVpcID.NotFound");
    cloud.stop().await;
}

async fn load_balancers_hold_their_groups_beyond_their_end(sdk: &SdkConfig, vpc: &str, subnet: &str) {
    let (ec2, classic) = (&Ec2::new(sdk), aws_sdk_elasticloadbalancing::Client::new(sdk));
    let (network, name) = (aws_sdk_elasticloadbalancingv2::Client::new(sdk), "web");
    let id = group(ec2, vpc, "balanced").await;
    let listener = aws_sdk_elasticloadbalancing::types::Listener::builder();
    let listener = listener.protocol("TCP").load_balancer_port(80).instance_port(30080).build().unwrap();
    let made = classic.create_load_balancer().load_balancer_name(name).subnets(subnet).security_groups(&id);
    made.listeners(listener).send().await.unwrap();
    let made = network.create_load_balancer().name(name).subnets(subnet).security_groups(&id);
    let made = made.r#type(aws_sdk_elasticloadbalancingv2::types::LoadBalancerTypeEnum::Network).send().await.unwrap();
    let arn = made.load_balancers.unwrap().remove(0).load_balancer_arn.unwrap();

    let of_group = || ec2.describe_network_interfaces().filters(filter("group-id", &id));
    let interfaces = of_group().send().await.unwrap().network_interfaces.unwrap();
    let mut described: Vec<_> = interfaces.iter().filter_map(|one| one.description()).collect();
    described.sort_unstable();
    let tail = arn.split_once(":loadbalancer/").unwrap().1;
    assert_eq!(described, [format!("ELB {tail}"), "ELB web".to_owned()]);
    assert!(interfaces.iter().all(|one| one.requester_id() == Some("amazon-elb")));

    classic.delete_load_balancer().load_balancer_name(name).send().await.unwrap();
    network.delete_load_balancer().load_balancer_arn(arn).send().await.unwrap();
    let held = violation(format!("resource {id} has a dependent object"));
    assert_eq!(refused(ec2.delete_security_group().group_id(&id).send().await), held);
    eventually("the interfaces go", async || {
        of_group().send().await.unwrap().network_interfaces().is_empty().then_some(())
    })
    .await;
    ec2.delete_security_group().group_id(&id).send().await.unwrap();
}

async fn gateways_hold_addresses_and_subnets(ec2: &Ec2, vpc: &str, subnet: &str) {
    let internet = ec2.create_internet_gateway().send().await.unwrap().internet_gateway.unwrap();
    let internet = internet.internet_gateway_id.unwrap();
    ec2.attach_internet_gateway().internet_gateway_id(&internet).vpc_id(vpc).send().await.unwrap();
    let address = ec2.allocate_address().domain(DomainType::Vpc).send().await.unwrap();
    let (address, public) = (address.allocation_id.unwrap(), address.public_ip.unwrap());
    let tags = TagSpecification::builder().resource_type(ResourceType::Natgateway);
    let tags = tags.tags(Tag::builder().key("team").value("a").build()).build();
    let nat = ec2.create_nat_gateway().subnet_id(subnet).allocation_id(&address).tag_specifications(tags);
    let nat = nat.send().await.unwrap().nat_gateway.unwrap().nat_gateway_id.unwrap();
    for (value, found) in [("a", 1), ("b", 0)] {
        let answer = ec2.describe_nat_gateways().filter(filter("tag:team", value)).send().await.unwrap();
        assert_eq!(answer.nat_gateways().len(), found, "NAT gateways by tag {value}");
    }

    let detach = || ec2.detach_internet_gateway().internet_gateway_id(&internet).vpc_id(vpc).send();
    let text = format!("The subnet '{subnet}' has dependencies and cannot be deleted.");
    assert_eq!(refused(ec2.delete_subnet().subnet_id(subnet).send().await), violation(text));
    let text = format!("Address {public} is in use.");
    let in_use = said("InvalidIPAddress.InUse", text);
    assert_eq!(refused(ec2.release_address().allocation_id(&address).send().await), in_use);
    let text = format!(
        "Network {vpc} has some mapped public address(es). Please unmap those public address(es) before detaching the gateway."
    );
    assert_eq!(refused(detach().await), violation(text));
    let text = format!("The internetGateway '{internet}' has dependencies and cannot be deleted.");
    let deletion = ec2.delete_internet_gateway().internet_gateway_id(&internet).send().await;
    assert_eq!(refused(deletion), violation(text));

    ec2.delete_nat_gateway().nat_gateway_id(&nat).send().await.unwrap();
    let state = async || {
        let answer = ec2.describe_nat_gateways().nat_gateway_ids(&nat).send().await.unwrap();
        answer.nat_gateways()[0].state().unwrap().as_str().to_owned()
    };
    assert_eq!(state().await, "deleting");
    assert_eq!(refused(ec2.release_address().allocation_id(&address).send().await), in_use, "until it is gone");
    eventually("the NAT gateway is deleted, and still described", async || (state().await == "deleted").then_some(()))
        .await;
    let text = "NAT gateway nat-0123456789abcdef0 was not found";
    let unknown = ec2.delete_nat_gateway().nat_gateway_id("nat-0123456789abcdef0").send().await;
    assert_eq!(refused(unknown), said("NatGatewayNotFound", text));
    ec2.release_address().allocation_id(&address).send().await.unwrap();
    detach().await.unwrap();
    ec2.delete_internet_gateway().internet_gateway_id(&internet).send().await.unwrap();
}

async fn groups_are_held_by_rules_and_interfaces(ec2: &Ec2, vpc: &str, subnet: &str) {
    let (group, other) = (group(ec2, vpc, "nodes").await, group(ec2, vpc, "others").await);
    let delete = || ec2.delete_security_group().group_id(&group).send();
    let pair = UserIdGroupPair::builder().group_id(&group).build();
    let rule = IpPermission::builder().ip_protocol("-1").user_id_group_pairs(pair).build();
    let held = violation(format!("resource {group} has a dependent object"));

    ec2.authorize_security_group_ingress().group_id(&other).ip_permissions(rule.clone()).send().await.unwrap();
    assert_eq!(refused(delete().await), held, "by a rule of another group");
    ec2.revoke_security_group_ingress().group_id(&other).ip_permissions(rule).send().await.unwrap();

    let endpoint = ec2.create_vpc_endpoint().vpc_id(vpc).service_name("com.amazonaws.eu-west-1.ec2");
    let endpoint = endpoint.vpc_endpoint_type(VpcEndpointType::Interface).subnet_ids(subnet).security_group_ids(&group);
    let endpoint = endpoint.send().await.unwrap().vpc_endpoint.unwrap().vpc_endpoint_id.unwrap();
    assert_eq!(refused(delete().await), held, "by the interface of an endpoint");
    let unknown = "vpce-0123456789abcdef0";
    let deleted =
        ec2.delete_vpc_endpoints().vpc_endpoint_ids(&endpoint).vpc_endpoint_ids(unknown).send().await.unwrap();
    let unsuccessful = &deleted.unsuccessful()[0];
    assert_eq!(unsuccessful.resource_id(), Some(unknown));
    assert_eq!(unsuccessful.error().unwrap().code(), Some("InvalidVpcEndpointId.NotFound"));
    let endpoints = async || ec2.describe_vpc_endpoints().filters(filter("vpc-id", vpc)).send().await.unwrap();
    let state = endpoints().await.vpc_endpoints()[0].state().unwrap().as_str().to_owned();
    assert_eq!(state.to_lowercase(), "deleting");
    eventually("the endpoint is gone", async || endpoints().await.vpc_endpoints().is_empty().then_some(())).await;

    let interface = ec2.create_network_interface().subnet_id(subnet).groups(&group).send().await.unwrap();
    let interface = interface.network_interface.unwrap().network_interface_id.unwrap();
    assert_eq!(refused(delete().await), held, "by an interface that nobody uses");
    ec2.delete_network_interface().network_interface_id(&interface).send().await.unwrap();
    delete().await.unwrap();
    ec2.delete_security_group().group_id(&other).send().await.unwrap();

    let groups = ec2.describe_security_groups().filters(filter("vpc-id", vpc)).send().await.unwrap();
    let default = groups.security_groups()[0].group_id().unwrap();
    let (code, _) = refused(ec2.delete_security_group().group_id(default).send().await);
    assert_eq!(code, "CannotDelete");
}

#[tokio::test]
async fn machines_are_launched_once_where_there_is_capacity_and_go_with_all_that_is_theirs() {
    let (cloud, sdk) = cloud().await;
    let ec2 = Ec2::new(&sdk);
    let Network { vpc, subnets } = network(&ec2).await;
    let group = group(&ec2, &vpc, "nodes").await;

    let run = |image: &str, kind: &str, token: &str, count: i32| {
        let call = ec2.run_instances().image_id(image).instance_type(InstanceType::from(kind)).client_token(token);
        call.min_count(1).max_count(count).subnet_id(&subnets[0]).security_group_ids(&group).send()
    };
    let x86 = image("x86_64");
    let first = run(&x86, "m5.large", "once", 1).await.unwrap().instances()[0].instance_id().unwrap().to_owned();
    let second = run(&x86, "m5.large", "once", 1).await.unwrap().instances()[0].instance_id().unwrap().to_owned();
    assert_eq!(first, second, "the same token launches nothing more");
    let (code, _) = refused(run(&x86, "m5.large", "once", 2).await);
    assert_eq!(code, "IdempotentParameterMismatch");
    let text = "Invalid value 'm5.huge' for InstanceType.";
    assert_eq!(refused(run(&x86, "m5.huge", "a", 1).await), said("InvalidParameterValue", text));
    let text = "The image id '[ami-0123456789abcdef0]' does not exist";
    assert_eq!(refused(run("ami-0123456789abcdef0", "m5.large", "b", 1).await), said("InvalidAMIID.NotFound", text));
    let (code, text) = refused(run(&image("arm64"), "m5.large", "c", 1).await);
    assert_eq!(code, "InvalidParameterValue");
    assert!(text.starts_with("The architecture 'x86_64' of the specified instance type does not match"), "{text}");

    cloud.lack(&[Shortage::of("m5.large", ZONE, "*")]).unwrap();
    let (code, text) = refused(run(&x86, "m5.large", "d", 1).await);
    assert_eq!(code, "InsufficientInstanceCapacity");
    assert!(text.starts_with("We currently do not have sufficient m5.large capacity"), "{text}");
    fleets_take_the_cheapest_that_can_be_had(&cloud, &ec2, &group, &subnets[1]).await;

    what_a_machine_holds_goes_with_it(&ec2, &first, &group, &subnets[0]).await;
    cloud.stop().await;
}

async fn fleets_take_the_cheapest_that_can_be_had(cloud: &Cloud, ec2: &Ec2, group: &str, subnet: &str) {
    let interface = LaunchTemplateInstanceNetworkInterfaceSpecificationRequest::builder().device_index(0);
    let interface = interface.groups(group).build();
    let data = RequestLaunchTemplateData::builder().image_id(image("x86_64")).network_interfaces(interface).build();
    ec2.create_launch_template().launch_template_name("nodes").launch_template_data(data).send().await.unwrap();
    let fleet = |kinds: &[&str], paid: DefaultTargetCapacityType| {
        let overrides = kinds.iter().map(|kind| {
            let offer = FleetLaunchTemplateOverridesRequest::builder().instance_type(InstanceType::from(*kind));
            offer.subnet_id(subnet).build()
        });
        let template = FleetLaunchTemplateSpecificationRequest::builder().launch_template_name("nodes");
        let config = FleetLaunchTemplateConfigRequest::builder()
            .launch_template_specification(template.version("$Latest").build())
            .set_overrides(Some(overrides.collect()))
            .build();
        let capacity = TargetCapacitySpecificationRequest::builder().total_target_capacity(1);
        let capacity = capacity.default_target_capacity_type(paid).build();
        ec2.create_fleet()
            .r#type(FleetType::Instant)
            .target_capacity_specification(capacity)
            .launch_template_configs(config)
            .send()
    };
    let launched = |fleet: &CreateFleetOutput| -> Vec<String> {
        fleet.instances().iter().map(|instances| instances.instance_type().unwrap().as_str().to_owned()).collect()
    };
    let errors = |fleet: &CreateFleetOutput| -> Vec<String> {
        fleet.errors().iter().map(|error| error.error_code().unwrap().to_owned()).collect()
    };
    let (spot, on_demand) = (DefaultTargetCapacityType::Spot, DefaultTargetCapacityType::OnDemand);

    let dearer = fleet(&["m5.2xlarge", "m5.large", "m5.xlarge"], spot.clone()).await.unwrap();
    assert_eq!(launched(&dearer), ["m5.xlarge"], "the cheapest that there is capacity for");
    assert_eq!(errors(&dearer), ["InsufficientInstanceCapacity"]);
    let instance = dearer.instances()[0].instance_ids()[0].clone();
    let described = ec2.describe_instances().instance_ids(&instance).send().await.unwrap();
    let groups = described.reservations()[0].instances()[0].security_groups();
    assert_eq!(groups.iter().map(|group| group.group_id().unwrap()).collect::<Vec<_>>(), [group]);

    let none = fleet(&["m5.large"], on_demand.clone()).await.unwrap();
    assert_eq!((launched(&none), errors(&none)), (vec![], vec!["InsufficientInstanceCapacity".to_owned()]));
    let other = fleet(&["m6g.large"], spot.clone()).await.unwrap();
    assert_eq!((launched(&other), errors(&other)), (vec![], vec!["InvalidParameterValue".to_owned()]));
    cloud.lack(&[Shortage::of("*", "*", "spot")]).unwrap();
    assert_eq!(errors(&fleet(&["m5.large"], spot).await.unwrap()), ["InsufficientInstanceCapacity"]);
    assert_eq!(launched(&fleet(&["m5.large"], on_demand).await.unwrap()), ["m5.large"]);
}

async fn what_a_machine_holds_goes_with_it(ec2: &Ec2, instance: &str, group: &str, subnet: &str) {
    let attached = filter("attachment.instance-id", instance);
    let interfaces = ec2.describe_network_interfaces().filters(attached).send().await.unwrap();
    let interface = interfaces.network_interfaces()[0].network_interface_id().unwrap();
    let text = format!("Network interface '{interface}' is currently in use.");
    let deletion = ec2.delete_network_interface().network_interface_id(interface).send().await;
    assert_eq!(refused(deletion), said("InvalidParameterValue", text));
    let held = violation(format!("resource {group} has a dependent object"));
    assert_eq!(refused(ec2.delete_security_group().group_id(group).send().await), held);
    let text = format!("The subnet '{subnet}' has dependencies and cannot be deleted.");
    assert_eq!(refused(ec2.delete_subnet().subnet_id(subnet).send().await), violation(text));

    let mut reservations = ec2.describe_instances().into_paginator().items().send();
    let mut all = Vec::new();
    while let Some(reservation) = reservations.next().await {
        all.extend(reservation.unwrap().instances.unwrap().into_iter().filter_map(|instance| instance.instance_id));
    }
    assert_eq!(all.len(), 3);
    let ending = ec2.terminate_instances().set_instance_ids(Some(all)).send().await.unwrap();
    let states = ending.terminating_instances().iter().map(|one| one.current_state().unwrap().name().unwrap().as_str());
    assert!(states.into_iter().all(|state| state == "shutting-down"));
    let volume = ec2.create_volume().availability_zone(ZONE).size(1).send().await.unwrap().volume_id.unwrap();
    let attaching = ec2.attach_volume().volume_id(&volume).instance_id(instance).device("/dev/sdf").send().await;
    assert_eq!(refused(attaching), said("IncorrectState", format!("Instance '{instance}' is not 'running'.")));
    ec2.delete_volume().volume_id(volume).send().await.unwrap();
    let state = async || {
        let described = ec2.describe_instances().instance_ids(instance).send().await.unwrap();
        described.reservations()[0].instances()[0].state().unwrap().name().unwrap().as_str().to_owned()
    };
    eventually("the machine is terminated, and still described", async || {
        (state().await == "terminated").then_some(())
    })
    .await;
    let left = ec2.describe_network_interfaces().filters(filter("subnet-id", subnet)).send().await.unwrap();
    assert_eq!(left.network_interfaces().len(), 0);
    ec2.delete_subnet().subnet_id(subnet).send().await.unwrap();
    eventually("nobody holds the group", async || ec2.delete_security_group().group_id(group).send().await.ok()).await;
}

/// A trust policy that is `extra` characters longer than it need be.
fn trust(extra: usize) -> String {
    let service = "ec2.amazonaws.com";
    let statement = json!({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole",
                           "Sid": "x".repeat(extra)});
    json!({"Version": "2012-10-17", "Statement": [statement]}).to_string()
}

fn policy(extra: usize) -> String {
    let bucket = format!("arn:aws:s3:::{}", "x".repeat(extra));
    let statement = json!({"Effect": "Allow", "Action": "s3:GetObject", "Resource": bucket});
    json!({"Version": "2012-10-17", "Statement": [statement]}).to_string()
}

#[tokio::test]
async fn roles_and_policies_have_sizes_names_and_an_order_of_leaving() {
    let (cloud, sdk) = cloud().await;
    let iam = aws_sdk_iam::Client::new(&sdk);
    let conflict = |text: &str| said("DeleteConflict", text);
    let exceeded = |text: &str| said("LimitExceeded", text);

    let create = |name: &str, extra| iam.create_role().role_name(name).assume_role_policy_document(trust(extra)).send();
    let long = "r".repeat(65);
    let text = format!(
        "1 validation error detected: Value '{long}' at 'roleName' failed to satisfy constraint: Member must have length \
         less than or equal to 64"
    );
    assert_eq!(refused(create(&long, 0).await), said("ValidationError", text));
    let (code, text) = refused(create("a role", 0).await);
    assert_eq!(code, "ValidationError");
    assert!(text.starts_with("The specified value for roleName is invalid."), "{text}");
    assert_eq!(refused(create("role", 2048).await), exceeded("Cannot exceed quota for ACLSizePerRole: 2048"));
    create("role", 0).await.unwrap();

    let make = |name: &str, document: String| iam.create_policy().policy_name(name).policy_document(document).send();
    let exceeding = exceeded("Cannot exceed quota for PolicySize: 6144");
    assert_eq!(refused(make("big", policy(6144)).await), exceeding);
    let spaced = policy(1).replace(',', &format!(",{}", " ".repeat(4000)));
    make("spaced", spaced).await.expect("white space does not count");
    let inline = |name: &str, extra| {
        iam.put_role_policy().role_name("role").policy_name(name).policy_document(policy(extra)).send()
    };
    inline("first", 6000).await.unwrap();
    let exceeding = exceeded("Maximum policy size of 10240 bytes exceeded for role role");
    assert_eq!(refused(inline("second", 6000).await), exceeding, "all inline policies together");
    inline("first", 6001).await.expect("what is replaced does not count");

    let mut arns = Vec::new();
    for n in 0..11 {
        arns.push(make(&format!("policy-{n}"), policy(n)).await.unwrap().policy.unwrap().arn.unwrap());
    }
    let attach = |arn: &str| iam.attach_role_policy().role_name("role").policy_arn(arn).send();
    for arn in &arns[..10] {
        attach(arn).await.unwrap();
    }
    attach(&arns[0]).await.expect("attaching again changes nothing");
    assert_eq!(refused(attach(&arns[10]).await), exceeded("Cannot exceed quota for PoliciesPerRole: 10"));
    policies_leave_before_roles(&iam, &arns).await;

    let delete = || iam.delete_role().role_name("role").send();
    assert_eq!(refused(delete().await), conflict("Cannot delete entity, must delete policies first."));
    iam.delete_role_policy().role_name("role").policy_name("first").send().await.unwrap();
    let profile = "profile";
    iam.create_instance_profile().instance_profile_name(profile).send().await.unwrap();
    let remove = || iam.remove_role_from_instance_profile().instance_profile_name(profile).role_name("role").send();
    assert_eq!(refused(remove().await).0, "NoSuchEntity");
    iam.add_role_to_instance_profile().instance_profile_name(profile).role_name("role").send().await.unwrap();
    let held = conflict("Cannot delete entity, must remove roles from instance profile first.");
    assert_eq!(refused(delete().await), held);
    assert_eq!(refused(iam.delete_instance_profile().instance_profile_name(profile).send().await), held);
    remove().await.unwrap();
    delete().await.unwrap();

    let provider = || iam.create_open_id_connect_provider().url("https://oidc.example/id/1").send();
    provider().await.unwrap();
    let text = "Provider with url https://oidc.example/id/1 already exists.";
    assert_eq!(refused(provider().await), said("EntityAlreadyExists", text));
    iam.create_service_linked_role().aws_service_name("spot.amazonaws.com").send().await.unwrap();
    let (code, _) = refused(iam.delete_role().role_name("AWSServiceRoleForEC2Spot").send().await);
    assert_eq!(code, "UnmodifiableEntity");
    cloud.stop().await;
}

async fn policies_leave_before_roles(iam: &aws_sdk_iam::Client, arns: &[String]) {
    let conflict = |text: &str| said("DeleteConflict", text);
    let delete = || iam.delete_policy().policy_arn(&arns[0]).send();
    assert_eq!(refused(delete().await), conflict("Cannot delete a policy attached to entities."));
    let text = "Cannot delete entity, must detach all policies first.";
    assert_eq!(refused(iam.delete_role().role_name("role").send().await), conflict(text));
    for arn in &arns[..10] {
        iam.detach_role_policy().role_name("role").policy_arn(arn).send().await.unwrap();
    }
    let version = |n| iam.create_policy_version().policy_arn(&arns[0]).policy_document(policy(n)).send();
    for n in 20..24 {
        version(n).await.unwrap();
    }
    let text = "A managed policy can have up to 5 versions. Before you create a new version, you must delete an existing \
                version.";
    assert_eq!(refused(version(24).await), said("LimitExceeded", text));
    let (code, text) = refused(delete().await);
    assert_eq!(code, "DeleteConflict");
    assert!(text.starts_with("This policy has more than one version."), "{text}");
    let mut versions = iam.list_policy_versions().policy_arn(&arns[0]).into_paginator().items().send();
    while let Some(version) = versions.next().await {
        let version = version.unwrap();
        if !version.is_default_version() {
            let call = iam.delete_policy_version().policy_arn(&arns[0]).set_version_id(version.version_id);
            call.send().await.unwrap();
        }
    }
    delete().await.unwrap();
}

#[tokio::test]
async fn lists_come_in_pages_and_bad_questions_are_refused() {
    let (cloud, sdk) = cloud().await;
    let ec2 = Ec2::new(&sdk);
    let Network { vpc, subnets } = network(&ec2).await;

    let page = ec2.describe_subnets().filters(filter("vpc-id", &vpc)).send().await.unwrap();
    assert_eq!((page.subnets().len(), page.next_token().is_some()), (2, true));
    // What is deleted between two pages moves nothing out of sight.
    ec2.delete_subnet().subnet_id(page.subnets()[0].subnet_id().unwrap()).send().await.unwrap();
    let next = ec2.describe_subnets().filters(filter("vpc-id", &vpc)).set_next_token(page.next_token);
    assert_eq!(next.send().await.unwrap().subnets()[0].subnet_id(), Some(subnets[2].as_str()));
    let pages = ec2.describe_subnets().filters(filter("vpc-id", &vpc)).into_paginator().items().send();
    assert_eq!(pages.collect::<Result<Vec<_>, _>>().await.unwrap().len(), 4);
    let by_id = ec2.describe_subnets().set_subnet_ids(Some(subnets[1..].to_vec())).send().await.unwrap();
    assert_eq!(by_id.subnets().len(), 4, "what is asked for by id comes in one page");
    for n in 0..20 {
        let data = RequestLaunchTemplateData::builder().image_id(image("arm64")).build();
        let call = ec2.create_launch_template().launch_template_name(format!("t-{n}")).launch_template_data(data);
        call.send().await.unwrap();
    }
    let templates = ec2.describe_launch_templates().into_paginator().items().send();
    assert_eq!(templates.collect::<Result<Vec<_>, _>>().await.unwrap().len(), 20);

    let text = "The token 'bogus' is invalid.";
    let answer = ec2.describe_security_groups().next_token("bogus").send().await;
    assert_eq!(refused(answer), said("InvalidNextToken", text));
    let text = "Value ( 2 ) for parameter maxResults is invalid. Expecting a value greater than 5.";
    assert_eq!(refused(ec2.describe_vpcs().max_results(2).send().await), said("InvalidParameterValue", text));
    let text = "The parameter instanceIds cannot be used with the parameter maxResults";
    let answer = ec2.describe_instances().instance_ids("i-0123456789abcdef0").max_results(5).send().await;
    assert_eq!(refused(answer), said("InvalidParameterCombination", text));
    let invalid = said("InvalidParameterValue", "The filter 'vpcid' is invalid");
    assert_eq!(refused(ec2.describe_vpcs().filters(filter("vpcid", &vpc)).send().await), invalid);
    assert_eq!(refused(ec2.describe_nat_gateways().filter(filter("vpcid", &vpc)).send().await), invalid);

    let dry = said("DryRunOperation", "Request would have succeeded, but DryRun flag is set.");
    assert_eq!(refused(ec2.create_vpc().cidr_block("10.1.0.0/16").dry_run(true).send().await), dry);
    assert_eq!(refused(ec2.delete_subnet().subnet_id(&subnets[1]).dry_run(true).send().await), dry);
    let vpcs = ec2.describe_vpcs().filters(filter("cidr", "10.1.0.0/16")).send().await.unwrap();
    assert_eq!(vpcs.vpcs().len(), 0, "a dry run makes nothing");
    assert_eq!(ec2.describe_placement_groups().send().await.unwrap().placement_groups().len(), 0);

    other_services_page_too(&sdk).await;
    cloud.stop().await;
}

async fn other_services_page_too(sdk: &SdkConfig) {
    let iam = aws_sdk_iam::Client::new(sdk);
    for n in 0..3 {
        let name = format!("role-{n}");
        iam.create_role().role_name(name).assume_role_policy_document(trust(0)).send().await.unwrap();
    }
    let page = iam.list_roles().send().await.unwrap();
    assert_eq!((page.roles().len(), page.is_truncated()), (2, true));
    let roles = iam.list_roles().into_paginator().items().send().collect::<Result<Vec<_>, _>>().await.unwrap();
    assert_eq!(roles.iter().filter(|role| role.role_name().starts_with("role-")).count(), 3);
    let (code, _) = refused(iam.list_roles().marker("bogus").send().await);
    assert_eq!(code, "ValidationError");

    let events = aws_sdk_eventbridge::Client::new(sdk);
    for n in 0..3 {
        let pattern = json!({"source": ["aws.ec2"]}).to_string();
        events.put_rule().name(format!("rule-{n}")).event_pattern(pattern).send().await.unwrap();
    }
    let target = aws_sdk_eventbridge::types::Target::builder().id("queue");
    let target = target.arn(format!("arn:aws:sqs:{REGION}:111122223333:queue")).build().unwrap();
    events.put_targets().rule("rule-0").targets(target).send().await.unwrap();
    let text = "Rule can't be deleted since it has targets.";
    assert_eq!(refused(events.delete_rule().name("rule-0").send().await), said("ValidationException", text));
    events.remove_targets().rule("rule-0").ids("queue").send().await.unwrap();
    events.delete_rule().name("rule-0").send().await.unwrap();
    let gone = refused(events.remove_targets().rule("rule-0").ids("queue").send().await);
    assert_eq!(gone.0, "ResourceNotFoundException");
    events.put_rule().name("rule-0").schedule_expression("rate(1 day)").send().await.unwrap();
    let page = events.list_rules().name_prefix("rule-").send().await.unwrap();
    assert_eq!((page.rules().len(), page.next_token().is_some()), (2, true));

    let sqs = aws_sdk_sqs::Client::new(sdk);
    for n in 0..3 {
        sqs.create_queue().queue_name(format!("queue-{n}")).send().await.unwrap();
    }
    let queues = sqs.list_queues().max_results(1000).queue_name_prefix("queue-").into_paginator().send();
    let pages: Vec<_> = queues.collect::<Result<Vec<_>, _>>().await.unwrap();
    assert_eq!(pages.iter().map(|page| page.queue_urls().len()).collect::<Vec<_>>(), [2, 1]);

    let eks = aws_sdk_eks::Client::new(sdk);
    let page = eks.describe_cluster_versions().send().await.unwrap();
    assert_eq!((page.cluster_versions().len(), page.next_token().is_some()), (2, true));
}

/// The ordinary AWS CLI's answer, or its complaint.
async fn cli(cloud: &Cloud, words: &str) -> Result<Value, String> {
    let program = cloud.tools().iter().map(|tools| tools.join("aws")).find(|aws| aws.exists()).expect("make setup");
    let home = cloud.dir().join("home");
    let output = Command::new(program)
        .args(words.split(' '))
        .env_clear()
        .envs(cloud.env())
        .envs([("PATH", PathBuf::from("/usr/bin")), ("HOME", home), ("AWS_MAX_ATTEMPTS", PathBuf::from("1"))])
        .output()
        .await
        .unwrap();
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap_or_default());
    }
    Err(String::from_utf8(output.stderr).unwrap().trim().to_owned())
}

#[tokio::test]
async fn the_aws_cli_reads_refusals_and_pages() {
    let (cloud, sdk) = cloud().await;
    let ec2 = Ec2::new(&sdk);
    let Network { vpc, subnets } = network(&ec2).await;
    let interface = ec2.create_network_interface().subnet_id(&subnets[0]).send().await.unwrap();
    assert!(interface.network_interface.is_some());

    let asked = [
        format!("ec2 describe-subnets --filters Name=vpc-id,Values={vpc}"),
        "iam list-policies --scope AWS --max-items 5".to_owned(),
        format!("ec2 delete-subnet --subnet-id {}", subnets[0]),
        "ec2 create-vpc --cidr-block 10.2.0.0/16 --dry-run".to_owned(),
        "ec2 describe-vpcs --filters Name=bogus,Values=x".to_owned(),
        "iam delete-role --role-name nobody".to_owned(),
        "ec2 describe-reserved-instances-listings".to_owned(),
    ];
    let answers = futures::future::join_all(asked.iter().map(|words| cli(&cloud, words))).await;
    let [subnets_found, policies, held, dry, filters, nobody, missing] = answers.try_into().unwrap();
    assert_eq!(subnets_found.unwrap()["Subnets"].as_array().unwrap().len(), 5);
    assert_eq!(policies.unwrap()["Policies"].as_array().unwrap().len(), 5);
    let complaint = |code: &str, action: &str, text: &str| {
        format!("An error occurred ({code}) when calling the {action} operation: {text}")
    };
    let text = format!("The subnet '{}' has dependencies and cannot be deleted.", subnets[0]);
    assert!(held.unwrap_err().ends_with(&complaint("DependencyViolation", "DeleteSubnet", &text)));
    let text = "Request would have succeeded, but DryRun flag is set.";
    assert!(dry.unwrap_err().ends_with(&complaint("DryRunOperation", "CreateVpc", text)));
    let text = "The filter 'bogus' is invalid";
    assert!(filters.unwrap_err().ends_with(&complaint("InvalidParameterValue", "DescribeVpcs", text)));
    assert!(nobody.unwrap_err().contains("(NoSuchEntity)"));
    let missing = missing.unwrap_err();
    assert!(missing.contains("(NotImplemented)") && missing.contains("docs/local-cloud.md"), "{missing}");
    cloud.stop().await;
}

/// What lists show is a while behind: a step that believes them meets what is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_is_listed_for_a_while_yet() {
    let config = CloudConfig { speed: 1.0, page_size: Some(2), ..CloudConfig::new(Kubernetes::None).unwrap() };
    let (cloud, sdk) = cloud_of(config).await;
    let iam = aws_sdk_iam::Client::new(&sdk);
    let trust = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"Service": "ec2.amazonaws.com"}}]});
    for name in ["fleeting", "lasting"] {
        iam.create_role().role_name(name).assume_role_policy_document(trust.to_string()).send().await.unwrap();
    }
    let listed = async || {
        let roles = iam.list_roles().into_paginator().items().send().collect::<Result<Vec<_>, _>>().await.unwrap();
        roles.into_iter().map(|role| role.role_name).collect::<Vec<_>>()
    };
    assert!(listed().await.contains(&"fleeting".to_owned()));
    iam.delete_role().role_name("fleeting").send().await.unwrap();
    let (code, _) = refused(iam.get_role().role_name("fleeting").send().await);
    assert_eq!(code, "NoSuchEntity");
    assert!(listed().await.contains(&"fleeting".to_owned()), "the list has not heard of it yet");
    let heard = eventually("the list to hear of it", async || {
        Some(listed().await).filter(|roles| !roles.contains(&"fleeting".to_owned()))
    })
    .await;
    assert!(heard.contains(&"lasting".to_owned()));
    cloud.stop().await;
}
