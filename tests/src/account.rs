//! Everything that an account holds in a region, one line a thing, so that before and after can be compared.

use std::collections::BTreeSet;

use anyhow::Context as _;
use aws_config::SdkConfig;
use aws_sdk_iam::types::PolicyScopeType;

/// What there is, each as `kind id`. Left out is what every account has, and what AWS keeps for its services.
///
/// # Errors
/// What AWS refused.
pub async fn inventory(config: &SdkConfig) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    identities(config, &mut found).await.context("listing IAM")?;
    machines(config, &mut found).await.context("listing EC2's machines")?;
    networks(config, &mut found).await.context("listing EC2's networks")?;
    others(config, &mut found).await?;
    Ok(found)
}

/// That two inventories are the same.
///
/// # Errors
/// What is left that was not there before, and what is lost.
pub fn same(before: &BTreeSet<String>, after: &BTreeSet<String>) -> anyhow::Result<()> {
    let left: Vec<_> = after.difference(before).collect();
    let lost: Vec<_> = before.difference(after).collect();
    anyhow::ensure!(left.is_empty() && lost.is_empty(), "left {left:#?}, lost {lost:#?}");
    Ok(())
}

/// Lists by a paginator: `each!(found, "kind", call, |item| id)`.
macro_rules! each {
    ($found:ident, $kind:literal, $call:expr, $id:expr) => {
        let mut pages = $call.into_paginator().items().send();
        while let Some(item) = pages.next().await {
            $found.extend($id(item?).map(|id| format!("{} {id}", $kind)));
        }
    };
}

async fn identities(config: &SdkConfig, found: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let iam = aws_sdk_iam::Client::new(config);
    each!(found, "role", iam.list_roles(), |role: aws_sdk_iam::types::Role| {
        (!role.path.starts_with("/aws-service-role/")).then_some(role.role_name)
    });
    each!(found, "policy", iam.list_policies().scope(PolicyScopeType::Local), |policy: aws_sdk_iam::types::Policy| {
        policy.arn
    });
    each!(found, "instance profile", iam.list_instance_profiles(), |profile: aws_sdk_iam::types::InstanceProfile| {
        Some(profile.instance_profile_name)
    });
    let providers = iam.list_open_id_connect_providers().send().await?.open_id_connect_provider_list;
    found.extend(providers.unwrap_or_default().into_iter().filter_map(|one| one.arn).map(|arn| format!("oidc {arn}")));
    Ok(())
}

async fn machines(config: &SdkConfig, found: &mut BTreeSet<String>) -> anyhow::Result<()> {
    use aws_sdk_ec2::types::{InstanceStateName, LaunchTemplate, Volume};
    let ec2 = aws_sdk_ec2::Client::new(config);
    let mut pages = ec2.describe_instances().into_paginator().items().send();
    while let Some(reservation) = pages.next().await {
        let alive =
            reservation?.instances.unwrap_or_default().into_iter().filter(|instance| {
                instance.state().and_then(|state| state.name()) != Some(&InstanceStateName::Terminated)
            });
        found.extend(alive.filter_map(|instance| instance.instance_id).map(|id| format!("instance {id}")));
    }
    each!(found, "volume", ec2.describe_volumes(), |volume: Volume| volume.volume_id);
    each!(found, "launch template", ec2.describe_launch_templates(), |one: LaunchTemplate| one.launch_template_id);
    Ok(())
}

async fn networks(config: &SdkConfig, found: &mut BTreeSet<String>) -> anyhow::Result<()> {
    use aws_sdk_ec2::types::{
        InternetGateway, NatGateway, NatGatewayState, NetworkInterface, RouteTable, SecurityGroup,
    };
    use aws_sdk_ec2::types::{State, Subnet, Vpc, VpcEndpoint};
    let ec2 = aws_sdk_ec2::Client::new(config);
    each!(found, "vpc", ec2.describe_vpcs(), |vpc: Vpc| vpc.vpc_id);
    each!(found, "subnet", ec2.describe_subnets(), |subnet: Subnet| subnet.subnet_id);
    each!(found, "security group", ec2.describe_security_groups(), |group: SecurityGroup| group.group_id);
    each!(found, "interface", ec2.describe_network_interfaces(), |one: NetworkInterface| one.network_interface_id);
    each!(found, "route table", ec2.describe_route_tables(), |table: RouteTable| table.route_table_id);
    each!(found, "internet gateway", ec2.describe_internet_gateways(), |one: InternetGateway| one.internet_gateway_id);
    each!(found, "endpoint", ec2.describe_vpc_endpoints(), |one: VpcEndpoint| {
        (one.state != Some(State::Deleted)).then_some(one.vpc_endpoint_id).flatten()
    });
    each!(found, "NAT gateway", ec2.describe_nat_gateways(), |gateway: NatGateway| {
        (gateway.state != Some(NatGatewayState::Deleted)).then_some(gateway.nat_gateway_id).flatten()
    });
    let addresses = ec2.describe_addresses().send().await?.addresses.unwrap_or_default();
    found.extend(addresses.into_iter().filter_map(|one| one.allocation_id).map(|id| format!("address {id}")));
    Ok(())
}

async fn others(config: &SdkConfig, found: &mut BTreeSet<String>) -> anyhow::Result<()> {
    use aws_sdk_elasticloadbalancing::types::LoadBalancerDescription;
    use aws_sdk_elasticloadbalancingv2::types::{LoadBalancer, TargetGroup};
    let classic = aws_sdk_elasticloadbalancing::Client::new(config);
    each!(found, "load balancer", classic.describe_load_balancers(), |one: LoadBalancerDescription| {
        one.load_balancer_name
    });
    let balancers = aws_sdk_elasticloadbalancingv2::Client::new(config);
    each!(found, "load balancer", balancers.describe_load_balancers(), |one: LoadBalancer| one.load_balancer_arn);
    each!(found, "target group", balancers.describe_target_groups(), |group: TargetGroup| group.target_group_arn);
    let eks = aws_sdk_eks::Client::new(config);
    each!(found, "cluster", eks.list_clusters(), |name: String| Some(name));
    let sqs = aws_sdk_sqs::Client::new(config);
    each!(found, "queue", sqs.list_queues(), |url: String| Some(url));
    let (events, mut next) = (aws_sdk_eventbridge::Client::new(config), None);
    loop {
        let page = events.list_rules().set_next_token(next.take()).send().await.context("listing rules")?;
        found.extend(page.rules().iter().filter_map(|rule| rule.name()).map(|name| format!("rule {name}")));
        next = page.next_token;
        if next.is_none() {
            break;
        }
    }
    let stacks = aws_sdk_cloudformation::Client::new(config);
    each!(found, "stack", stacks.describe_stacks(), |stack: aws_sdk_cloudformation::types::Stack| {
        let gone = stack.stack_status().is_some_and(|status| status.as_str() == "DELETE_COMPLETE");
        stack.stack_name.filter(|_| !gone)
    });
    Ok(())
}
