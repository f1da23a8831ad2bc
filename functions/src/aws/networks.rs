//! VPCs, subnets and their ways out, as EC2 describes them.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::{
    Client,
    types::{AttributeBooleanValue, Filter, RouteState, RouteTable, VpcAttributeName},
};
use slipway_statemachine::StepError;

use super::error::{During as _, code, refused};

/// What is seen of a VPC and of subnets in or around it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// None, where there is no such VPC.
    pub vpc: Option<Vpc>,
    /// Those that were asked for and exist.
    pub subnets: Vec<Subnet>,
    /// NAT gateways of the VPC that carry traffic, or will.
    pub nat_gateways: BTreeSet<String>,
}

/// A VPC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vpc {
    /// Whether it resolves names.
    pub dns_support: bool,
    /// Whether its instances have names; a private endpoint of EKS needs both.
    pub dns_hostnames: bool,
    /// Services with an endpoint in it, without their prefix: `s3`, `ecr.api`.
    pub endpoints: BTreeSet<String>,
}

/// A subnet, as far as a cluster's nodes care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// `subnet-…`
    pub id: String,
    /// `vpc-…`
    pub vpc_id: String,
    /// By name.
    pub zone: String,
    /// By id, `euw1-az1`: names are each account's own.
    pub zone_id: String,
    /// IPv4 addresses that nobody has.
    pub free_addresses: i32,
    /// The table that its routes are in, its own or the VPC's main one.
    pub route_table: String,
    /// Where 0.0.0.0/0 goes; none without such a route.
    pub way_out: Option<WayOut>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayOut {
    /// `igw-…`, `nat-…`, `tgw-…`, …
    pub target: String,
    /// Whether the target is gone.
    pub blackhole: bool,
}

/// Which subnets to look at.
#[derive(Debug, Clone, Copy)]
pub enum Subnets<'a> {
    /// These, wherever they are.
    Ids(&'a [String]),
    /// All of the VPC.
    OfVpc,
}

/// Looks at a VPC and at subnets.
///
/// # Errors
/// AWS's, classified.
pub async fn survey(ec2: &Client, vpc_id: &str, subnets: Subnets<'_>) -> Result<Network, StepError> {
    let of_vpc = || filter("vpc-id", &[vpc_id.to_owned()]);
    // By filter, which leaves out what does not exist, where ids would fail for the first.
    let wanted = match subnets {
        Subnets::Ids(ids) => filter("subnet-id", ids),
        Subnets::OfVpc => of_vpc(),
    };
    let subnets = async {
        let found = ec2.describe_subnets().filters(wanted).into_paginator().items().send();
        found.collect::<Result<Vec<_>, _>>().await.during("ec2:DescribeSubnets")
    };
    let tables = async {
        let found = ec2.describe_route_tables().filters(of_vpc()).into_paginator().items().send();
        found.collect::<Result<Vec<_>, _>>().await.during("ec2:DescribeRouteTables")
    };
    let gateways = async {
        let found = ec2.describe_nat_gateways().filter(of_vpc()).into_paginator().items().send();
        found.collect::<Result<Vec<_>, _>>().await.during("ec2:DescribeNatGateways")
    };
    let (vpc, subnets, tables, gateways) = tokio::try_join!(vpc(ec2, vpc_id), subnets, tables, gateways)?;
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let carries = |state: &str| matches!(state, "available" | "pending");
    Ok(Network {
        vpc,
        subnets: subnets
            .iter()
            .map(|subnet| {
                let id = subnet.subnet_id().unwrap_or_default();
                let table = table_of(&tables, id);
                Subnet {
                    id: id.to_owned(),
                    vpc_id: text(subnet.vpc_id()),
                    zone: text(subnet.availability_zone()),
                    zone_id: text(subnet.availability_zone_id()),
                    free_addresses: subnet.available_ip_address_count().unwrap_or_default(),
                    route_table: text(table.and_then(RouteTable::route_table_id)),
                    way_out: table.and_then(way_out),
                    tags: subnet.tags().iter().map(|tag| (text(tag.key()), text(tag.value()))).collect(),
                }
            })
            .collect(),
        nat_gateways: gateways
            .iter()
            .filter(|gateway| gateway.state().is_some_and(|state| carries(state.as_str())))
            .map(|gateway| text(gateway.nat_gateway_id()))
            .collect(),
    })
}

/// Where the default routes of subnets go, by subnet, as their own route tables say; none without such a route.
///
/// # Errors
/// AWS's, classified.
pub async fn ways_out(ec2: &Client, subnets: &[String]) -> Result<BTreeMap<String, Option<WayOut>>, StepError> {
    let found = ec2.describe_route_tables().filters(filter("association.subnet-id", subnets));
    let tables = found.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
    let tables = tables.during("ec2:DescribeRouteTables")?;
    Ok(subnets.iter().map(|id| (id.clone(), table_of(&tables, id).and_then(way_out))).collect())
}

async fn vpc(ec2: &Client, id: &str) -> Result<Option<Vpc>, StepError> {
    let attribute =
        async |name: VpcAttributeName| match ec2.describe_vpc_attribute().vpc_id(id).attribute(name).send().await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if code(&error).is_some_and(|code| code.starts_with("InvalidVpc")) => Ok(None),
            Err(error) => Err(refused("ec2:DescribeVpcAttribute", &error)),
        };
    let endpoints = async {
        let of_vpc = filter("vpc-id", &[id.to_owned()]);
        let found = ec2.describe_vpc_endpoints().filters(of_vpc).into_paginator().items().send();
        found.collect::<Result<Vec<_>, _>>().await.during("ec2:DescribeVpcEndpoints")
    };
    let (support, hostnames, endpoints) = tokio::try_join!(
        attribute(VpcAttributeName::EnableDnsSupport),
        attribute(VpcAttributeName::EnableDnsHostnames),
        endpoints
    )?;
    let (Some(support), Some(hostnames)) = (support, hostnames) else { return Ok(None) };
    let usable = endpoints
        .iter()
        .filter(|endpoint| endpoint.state().is_none_or(|state| state.as_str().eq_ignore_ascii_case("available")));
    Ok(Some(Vpc {
        dns_support: support.enable_dns_support().and_then(AttributeBooleanValue::value) == Some(true),
        dns_hostnames: hostnames.enable_dns_hostnames().and_then(AttributeBooleanValue::value) == Some(true),
        // com.amazonaws.<region>.<service>
        endpoints: usable
            .filter_map(|endpoint| endpoint.service_name()?.splitn(4, '.').nth(3).map(str::to_owned))
            .collect(),
    }))
}

fn filter(name: &str, values: &[String]) -> Filter {
    Filter::builder().name(name).set_values(Some(values.to_vec())).build()
}

/// A subnet's own table, or the VPC's main one.
fn table_of<'a>(tables: &'a [RouteTable], subnet: &str) -> Option<&'a RouteTable> {
    let own = tables.iter().find(|table| table.associations().iter().any(|a| a.subnet_id() == Some(subnet)));
    own.or_else(|| tables.iter().find(|table| table.associations().iter().any(|a| a.main() == Some(true))))
}

fn way_out(table: &RouteTable) -> Option<WayOut> {
    let route = table.routes().iter().find(|route| route.destination_cidr_block() == Some("0.0.0.0/0"))?;
    let target = route
        .nat_gateway_id()
        .or(route.transit_gateway_id())
        .or(route.network_interface_id())
        .or(route.instance_id())
        .or(route.core_network_arn())
        .or(route.vpc_peering_connection_id())
        .or(route.gateway_id())?;
    Some(WayOut { target: target.to_owned(), blackhole: route.state() == Some(&RouteState::Blackhole) })
}
