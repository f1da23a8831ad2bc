//! What there is in an account and region that may be a cluster's: each kind from the service that has it, the rest from
//! the Resource Groups Tagging API. Looks only, and decides nothing: see [`crate::ownership`].
//!
//! EC2, load balancers, EKS and OIDC providers are listed whole. Of roles, policies, queues, rules and stacks, whose
//! lists show no tags, those are looked at whose name may be a cluster's. The tagging API adds what bears a tag and has
//! none of these types. The teardown's steps take from here the lists of what they delete.

use std::collections::BTreeMap;

use aws_sdk_ec2::{
    primitives::DateTime,
    types::{Filter, Reservation},
};
use aws_sdk_eks::types::{FargateProfileHealth, FargateProfileIssueCode, NodegroupHealth, NodegroupIssueCode};
use aws_sdk_resourcegroupstagging::types::TagFilter;
use futures::future::{try_join_all, try_join3};
use slipway_karpenter::policy::interruption_rules;
use slipway_statemachine::{ClusterKey, Kind, StepError, names};

use super::{
    ec2::{filter, tags_of},
    error::{During as _, code, is_gone, refused},
    health::issue,
    logs, partition,
};
use crate::{
    Context,
    ownership::{self, Resource, may_belong, of_cluster},
};

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Twelve digits.
    pub account: &'a str,
    /// For example `eu-west-1`.
    pub region: &'a str,
    /// Only what may be this cluster's; of every cluster's if none is given.
    pub cluster: Option<&'a ClusterKey>,
    /// That cluster may have been made by somebody else, who calls things otherwise.
    pub adopt: bool,
}

impl<'a> Place<'a> {
    /// Where a cluster is.
    #[must_use]
    pub fn of(cluster: &'a ClusterKey, adopt: bool) -> Self {
        Self { account: &cluster.account, region: &cluster.region, cluster: Some(cluster), adopt }
    }

    /// For lists of EC2's: what has any tag by which something may be the cluster's; everything if none is given.
    fn tag_filter(&self) -> Option<Vec<Filter>> {
        Some(vec![filter("tag-key", ownership::keys(self.cluster?))])
    }

    fn may_have(&self, resource: &Resource) -> bool {
        may_belong(self.cluster, self.adopt, resource)
    }

    fn ec2(&self, kind: Kind, what: &str, id: Option<&str>) -> Resource {
        let id = id.unwrap_or_default();
        Resource::new(kind, self.arn("ec2", &format!("{what}/{id}")), id)
    }

    fn arn(&self, service: &str, rest: &str) -> String {
        format!("arn:{}:{service}:{}:{}:{rest}", partition(self.region), self.region, self.account)
    }
}

/// Everything there is that may be a cluster's, in no order.
///
/// # Errors
/// What AWS refused.
pub async fn resources(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let machines = try_join3(instances(cx, place), volumes(cx, place), launch_templates(cx, place));
    let network = try_join3(interfaces(cx, place), security_groups(cx, place), vpcs(cx, place));
    let others = try_join3(log_groups(cx, place), stacks(cx, place), tagged(cx, place));
    let (machines, network, balancers, clusters, identities, interruptions, others) = futures::try_join!(
        machines,
        network,
        load_balancers(cx, place),
        clusters(cx, place),
        identities(cx, place),
        queues_and_rules(cx, place),
        others,
    )?;
    let of_ec2 = [machines.0, machines.1, machines.2, network.0, network.1, network.2];
    let rest = [balancers, clusters, identities, interruptions, others.0, others.1, others.2];
    Ok(of_ec2.into_iter().chain(rest).flatten().collect())
}

/// Instances that are not terminated.
///
/// # Errors
/// What EC2 refused.
pub async fn instances(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let there = filter("instance-state-name", ["pending", "running", "shutting-down", "stopping", "stopped"]);
    let call = cx.aws.ec2().describe_instances().set_filters(place.tag_filter()).filters(there);
    let mut pages = call.into_paginator().send();
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        for instance in page.during("ec2:DescribeInstances")?.reservations().iter().flat_map(Reservation::instances) {
            let state = instance.state().and_then(|state| state.name()).map_or("", |name| name.as_str());
            let mut resource = place
                .ec2(Kind::Instance, "instance", instance.instance_id())
                .tagged(tags_of(instance.tags()))
                .in_state(state)
                .made_at(instance.launch_time().map(DateTime::secs));
            resource.instance_type = instance.instance_type().map(|kind| kind.as_str().to_owned());
            found.push(resource);
        }
    }
    Ok(found)
}

/// Volumes, each with the instance that has it.
///
/// # Errors
/// What EC2 refused.
pub async fn volumes(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let mut pages = cx.aws.ec2().describe_volumes().into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(volume) = pages.next().await {
        let volume = volume.during("ec2:DescribeVolumes")?;
        let mut resource = place
            .ec2(Kind::Volume, "volume", volume.volume_id())
            .tagged(tags_of(volume.tags()))
            .in_state(volume.state().map_or("", |state| state.as_str()))
            .made_at(volume.create_time().map(DateTime::secs))
            .part_of(volume.attachments().iter().filter_map(|attached| attached.instance_id()));
        resource.gib = volume.size();
        found.push(resource);
    }
    Ok(found)
}

/// Launch templates.
///
/// # Errors
/// What EC2 refused.
pub async fn launch_templates(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let call = cx.aws.ec2().describe_launch_templates().set_filters(place.tag_filter());
    let mut pages = call.into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(template) = pages.next().await {
        let template = template.during("ec2:DescribeLaunchTemplates")?;
        found.push(
            place
                .ec2(Kind::LaunchTemplate, "launch-template", template.launch_template_id())
                .tagged(tags_of(template.tags()))
                .made_at(template.create_time().map(DateTime::secs)),
        );
    }
    Ok(found)
}

/// Network interfaces, each with its instance, groups and load balancer.
///
/// # Errors
/// What EC2 refused.
pub async fn interfaces(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let mut pages = cx.aws.ec2().describe_network_interfaces().into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(interface) = pages.next().await {
        let interface = interface.during("ec2:DescribeNetworkInterfaces")?;
        let instance = interface.attachment().and_then(|attachment| attachment.instance_id());
        let groups = interface.groups().iter().filter_map(|group| group.group_id());
        let balancer = balancer_of(interface.description().unwrap_or_default());
        found.push(
            place
                .ec2(Kind::NetworkInterface, "network-interface", interface.network_interface_id())
                .tagged(tags_of(interface.tag_set()))
                .described(interface.description().unwrap_or_default())
                .in_state(interface.status().map_or("", |status| status.as_str()))
                .part_of(instance.into_iter().chain(groups).chain(balancer)),
        );
    }
    Ok(found)
}

/// Security groups.
///
/// # Errors
/// What EC2 refused.
pub async fn security_groups(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let call = cx.aws.ec2().describe_security_groups().set_filters(place.tag_filter());
    let mut pages = call.into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(group) = pages.next().await {
        let group = group.during("ec2:DescribeSecurityGroups")?;
        found.push(
            place
                .ec2(Kind::SecurityGroup, "security-group", group.group_id())
                .tagged(tags_of(group.tags()))
                .described(group.description().unwrap_or_default()),
        );
    }
    Ok(found)
}

/// The parts of a VPC that cost money or block its deletion.
async fn vpcs(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let ec2 = cx.aws.ec2();
    let mut found = Vec::new();
    let mut pages = ec2.describe_nat_gateways().into_paginator().items().send();
    while let Some(gateway) = pages.next().await {
        let gateway = gateway.during("ec2:DescribeNatGateways")?;
        let state = gateway.state().map_or("", |state| state.as_str());
        if state == "deleted" {
            continue;
        }
        found.push(
            place
                .ec2(Kind::NatGateway, "natgateway", gateway.nat_gateway_id())
                .tagged(tags_of(gateway.tags()))
                .in_state(state)
                .made_at(gateway.create_time().map(DateTime::secs)),
        );
    }
    // Addresses come in one piece.
    for address in ec2.describe_addresses().send().await.during("ec2:DescribeAddresses")?.addresses() {
        let id = address.allocation_id();
        found.push(place.ec2(Kind::Address, "elastic-ip", id).tagged(tags_of(address.tags())));
    }
    let mut pages = ec2.describe_vpcs().into_paginator().items().send();
    while let Some(vpc) = pages.next().await {
        let vpc = vpc.during("ec2:DescribeVpcs")?;
        found.push(place.ec2(Kind::Vpc, "vpc", vpc.vpc_id()).tagged(tags_of(vpc.tags())));
    }
    let mut pages = ec2.describe_vpc_endpoints().into_paginator().items().send();
    while let Some(endpoint) = pages.next().await {
        let endpoint = endpoint.during("ec2:DescribeVpcEndpoints")?;
        let state = endpoint.state().map_or("", |state| state.as_str()).to_lowercase();
        if state == "deleted" {
            continue;
        }
        found.push(
            place
                .ec2(Kind::VpcEndpoint, "vpc-endpoint", endpoint.vpc_endpoint_id())
                .tagged(tags_of(endpoint.tags()))
                .in_state(state)
                .made_at(endpoint.creation_timestamp().map(DateTime::secs))
                .part_of(endpoint.vpc_id()),
        );
    }
    Ok(found)
}

/// The load balancer whose interface is described so: `ELB net/<name>/<id>`, `ELB app/<name>/<id>`, `ELB <name>`.
fn balancer_of(description: &str) -> Option<&str> {
    let rest = description.strip_prefix("ELB ")?;
    rest.split('/').nth(1).or(Some(rest))
}

/// Load balancers of both generations, and target groups.
///
/// # Errors
/// What Elastic Load Balancing refused.
pub async fn load_balancers(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let (elb, elbv2) = (cx.aws.elb(), cx.aws.elbv2());
    let mut found = Vec::new();
    let mut pages = elbv2.describe_load_balancers().into_paginator().items().send();
    while let Some(balancer) = pages.next().await {
        let balancer = balancer.during("elasticloadbalancing:DescribeLoadBalancers")?;
        let state = balancer.state().and_then(|state| state.code()).map_or("", |code| code.as_str());
        let (arn, name) = (balancer.load_balancer_arn(), balancer.load_balancer_name());
        found.push(
            Resource::new(Kind::LoadBalancer, arn.unwrap_or_default(), name.unwrap_or_default())
                .in_state(state)
                .made_at(balancer.created_time().map(DateTime::secs)),
        );
    }
    let mut pages = elbv2.describe_target_groups().into_paginator().items().send();
    while let Some(group) = pages.next().await {
        let group = group.during("elasticloadbalancing:DescribeTargetGroups")?;
        let (arn, name) = (group.target_group_arn(), group.target_group_name());
        found.push(
            Resource::new(Kind::TargetGroup, arn.unwrap_or_default(), name.unwrap_or_default())
                .part_of(group.load_balancer_arns()),
        );
    }
    // Twenty at a time is what DescribeTags takes.
    for twenty in found.chunks_mut(20) {
        let arns = twenty.iter().map(|resource| resource.arn.clone()).collect();
        let answer = elbv2.describe_tags().set_resource_arns(Some(arns)).send().await;
        for described in answer.during("elasticloadbalancing:DescribeTags")?.tag_descriptions() {
            let tags = described.tags().iter();
            let tags = tags.map(|tag| (text(tag.key()), text(tag.value()))).collect();
            if let Some(resource) =
                twenty.iter_mut().find(|resource| Some(resource.arn.as_str()) == described.resource_arn())
            {
                resource.tags = tags;
            }
        }
    }

    let mut classic = Vec::new();
    let mut pages = elb.describe_load_balancers().into_paginator().items().send();
    while let Some(balancer) = pages.next().await {
        let balancer = balancer.during("elasticloadbalancing:DescribeLoadBalancers")?;
        let name = balancer.load_balancer_name().unwrap_or_default();
        let arn = place.arn("elasticloadbalancing", &format!("loadbalancer/{name}"));
        classic.push(Resource::new(Kind::LoadBalancer, arn, name).made_at(balancer.created_time().map(DateTime::secs)));
    }
    for twenty in classic.chunks_mut(20) {
        let names = twenty.iter().map(|resource| resource.name.clone()).collect();
        let answer = elb.describe_tags().set_load_balancer_names(Some(names)).send().await;
        for described in answer.during("elasticloadbalancing:DescribeTags")?.tag_descriptions() {
            let tags = described.tags().iter();
            let tags = tags.map(|tag| (tag.key().to_owned(), text(tag.value()))).collect();
            if let Some(resource) =
                twenty.iter_mut().find(|resource| Some(resource.name.as_str()) == described.load_balancer_name())
            {
                resource.tags = tags;
            }
        }
    }
    found.extend(classic);
    Ok(found)
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

/// Clusters with their node groups and Fargate profiles.
async fn clusters(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let eks = cx.aws.eks();
    let mut names = Vec::new();
    if let Some(cluster) = place.cluster {
        names.push(cluster.name.clone());
    } else {
        let mut pages = eks.list_clusters().into_paginator().items().send();
        while let Some(name) = pages.next().await {
            names.push(name.during("eks:ListClusters")?);
        }
    }
    let mut found = Vec::new();
    for name in names {
        let cluster = match eks.describe_cluster().name(&name).send().await {
            Ok(answer) => answer.cluster,
            Err(error) if code(&error) == Some("ResourceNotFoundException") => None,
            Err(error) => return Err(refused("eks:DescribeCluster", &error)),
        };
        let Some(cluster) = cluster else { continue };
        let tags: BTreeMap<String, String> = cluster.tags.clone().unwrap_or_default().into_iter().collect();
        found.push(
            Resource::new(Kind::Cluster, cluster.arn().unwrap_or_default(), &name)
                .tagged(tags)
                .in_state(cluster.status().map_or("", |status| status.as_str()))
                .made_at(cluster.created_at().map(DateTime::secs)),
        );
        found.extend(node_groups(cx, &name).await?.into_iter().flatten());
    }
    Ok(found)
}

/// The node groups and Fargate profiles of a cluster, with EKS's health issues; none where there is no cluster.
///
/// # Errors
/// What EKS refused.
pub async fn node_groups(cx: &Context, cluster: &str) -> Result<Option<Vec<Resource>>, StepError> {
    let eks = cx.aws.eks();
    let groups = eks.list_nodegroups().cluster_name(cluster).into_paginator().items().send().collect().await;
    let groups: Vec<String> = match groups {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(None),
        groups => groups.during("eks:ListNodegroups")?,
    };
    let profiles = eks.list_fargate_profiles().cluster_name(cluster).into_paginator().items().send().collect().await;
    let profiles: Vec<String> = match profiles {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(None),
        profiles => profiles.during("eks:ListFargateProfiles")?,
    };
    let groups = try_join_all(groups.iter().map(|name| node_group(cx, cluster, name)));
    let profiles = try_join_all(profiles.iter().map(|name| fargate_profile(cx, cluster, name)));
    let (groups, profiles) = futures::try_join!(groups, profiles)?;
    Ok(Some(groups.into_iter().chain(profiles).flatten().collect()))
}

async fn node_group(cx: &Context, cluster: &str, name: &str) -> Result<Option<Resource>, StepError> {
    let group = match cx.aws.eks().describe_nodegroup().cluster_name(cluster).nodegroup_name(name).send().await {
        Ok(answer) => answer.nodegroup,
        Err(error) if code(&error).is_some_and(is_gone) => None,
        Err(error) => return Err(refused("eks:DescribeNodegroup", &error)),
    };
    Ok(group.map(|group| {
        let issues = group.health().map(NodegroupHealth::issues).unwrap_or_default().iter();
        let issues =
            issues.map(|one| issue(one.code().map(NodegroupIssueCode::as_str), one.message(), one.resource_ids()));
        let mut resource = Resource::new(Kind::NodeGroup, text(group.nodegroup_arn()), name)
            .in_state(group.status().map_or("", |status| status.as_str()))
            .made_at(group.created_at().map(DateTime::secs));
        resource.issues = issues.collect();
        resource.tagged(group.tags.unwrap_or_default().into_iter().collect())
    }))
}

async fn fargate_profile(cx: &Context, cluster: &str, name: &str) -> Result<Option<Resource>, StepError> {
    let call = cx.aws.eks().describe_fargate_profile().cluster_name(cluster).fargate_profile_name(name);
    let profile = match call.send().await {
        Ok(answer) => answer.fargate_profile,
        Err(error) if code(&error).is_some_and(is_gone) => None,
        Err(error) => return Err(refused("eks:DescribeFargateProfile", &error)),
    };
    Ok(profile.map(|profile| {
        let issues = profile.health().map(FargateProfileHealth::issues).unwrap_or_default().iter();
        let issues =
            issues.map(|one| issue(one.code().map(FargateProfileIssueCode::as_str), one.message(), one.resource_ids()));
        let mut resource = Resource::new(Kind::FargateProfile, text(profile.fargate_profile_arn()), name)
            .in_state(profile.status().map_or("", |status| status.as_str()))
            .made_at(profile.created_at().map(DateTime::secs));
        resource.issues = issues.collect();
        resource.tagged(profile.tags.unwrap_or_default().into_iter().collect())
    }))
}

fn iam_tags(tags: Vec<aws_sdk_iam::types::Tag>) -> BTreeMap<String, String> {
    tags.into_iter().map(|tag| (tag.key, tag.value)).collect()
}

/// Roles, policies, instance profiles and OIDC providers, with their tags.
///
/// # Errors
/// What IAM refused.
pub async fn identities(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let roles_and_profiles = async {
        let roles = roles(cx, place).await?;
        let profiles = instance_profiles(cx, place, &roles).await?;
        Ok([roles, profiles].concat())
    };
    let (found, policies, providers) =
        futures::try_join!(roles_and_profiles, policies(cx, place), identity_providers(cx, place))?;
    Ok([found, policies, providers].concat())
}

async fn roles(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let iam = cx.aws.iam();
    let mut found = Vec::new();
    let mut pages = iam.list_roles().into_paginator().items().send();
    while let Some(role) = pages.next().await {
        let role = role.during("iam:ListRoles")?;
        let service_linked = role.path.starts_with("/aws-service-role/");
        let resource = Resource::new(Kind::Role, role.arn, role.role_name).made_at(Some(role.create_date.secs()));
        if !service_linked && place.may_have(&resource) {
            let call = iam.list_role_tags().role_name(&resource.name).into_paginator().items().send();
            match call.collect::<Result<Vec<_>, _>>().await {
                // It went between the list and this question.
                Err(error) if code(&error).is_some_and(is_gone) => {}
                tags => found.push(resource.tagged(iam_tags(tags.during("iam:ListRoleTags")?))),
            }
        }
    }
    Ok(found)
}

async fn policies(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let iam = cx.aws.iam();
    let mut found = Vec::new();
    let local = aws_sdk_iam::types::PolicyScopeType::Local;
    let mut pages = iam.list_policies().scope(local).into_paginator().items().send();
    while let Some(policy) = pages.next().await {
        let policy = policy.during("iam:ListPolicies")?;
        let resource = Resource::new(Kind::Policy, text(policy.arn()), text(policy.policy_name()))
            .made_at(policy.create_date().map(DateTime::secs));
        if place.may_have(&resource) {
            let call = iam.list_policy_tags().policy_arn(&resource.arn).into_paginator().items().send();
            match call.collect::<Result<Vec<_>, _>>().await {
                Err(error) if code(&error).is_some_and(is_gone) => {}
                tags => found.push(resource.tagged(iam_tags(tags.during("iam:ListPolicyTags")?))),
            }
        }
    }
    Ok(found)
}

/// Those under Karpenter's path, and of one cluster those that have a role of it, wherever they are.
async fn instance_profiles(cx: &Context, place: Place<'_>, roles: &[Resource]) -> Result<Vec<Resource>, StepError> {
    let iam = cx.aws.iam();
    let path = match place.cluster {
        Some(cluster) => format!("/karpenter/{}/{}/", cluster.region, cluster.name),
        None => format!("/karpenter/{}/", place.region),
    };
    let mut profiles = BTreeMap::new();
    let mut pages = iam.list_instance_profiles().path_prefix(path).into_paginator().items().send();
    while let Some(profile) = pages.next().await {
        let profile = profile.during("iam:ListInstanceProfiles")?;
        profiles.insert(profile.arn.clone(), profile);
    }
    let own = place.cluster.map(|cluster| of_cluster(cluster, place.adopt, roles)).unwrap_or_default();
    for (role, _) in own {
        let mut pages = iam.list_instance_profiles_for_role().role_name(&role.name).into_paginator().items().send();
        while let Some(profile) = pages.next().await {
            match profile {
                Err(error) if code(&error).is_some_and(is_gone) => break,
                profile => {
                    let profile = profile.during("iam:ListInstanceProfilesForRole")?;
                    profiles.insert(profile.arn.clone(), profile);
                }
            }
        }
    }
    let mut found = Vec::new();
    for (arn, profile) in profiles {
        let name = profile.instance_profile_name;
        let tags = match iam.get_instance_profile().instance_profile_name(&name).send().await {
            Ok(answer) => answer.instance_profile.and_then(|profile| profile.tags).unwrap_or_default(),
            Err(error) if code(&error).is_some_and(is_gone) => continue,
            Err(error) => return Err(refused("iam:GetInstanceProfile", &error)),
        };
        found.push(
            Resource::new(Kind::InstanceProfile, arn, name)
                .tagged(iam_tags(tags))
                .made_at(Some(profile.create_date.secs()))
                .part_of(profile.roles.into_iter().map(|role| role.role_name)),
        );
    }
    Ok(found)
}

async fn identity_providers(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let iam = cx.aws.iam();
    let mut found = Vec::new();
    let providers = iam.list_open_id_connect_providers().send().await.during("iam:ListOpenIDConnectProviders")?;
    let here = format!("/oidc.eks.{}.", place.region);
    for arn in providers.open_id_connect_provider_list().iter().filter_map(|provider| provider.arn()) {
        if !arn.contains(&here) {
            continue;
        }
        let provider = match iam.get_open_id_connect_provider().open_id_connect_provider_arn(arn).send().await {
            Ok(provider) => provider,
            Err(error) if code(&error).is_some_and(is_gone) => continue,
            Err(error) => return Err(refused("iam:GetOpenIDConnectProvider", &error)),
        };
        found.push(
            Resource::new(Kind::OidcProvider, arn, arn.rsplit('/').next().unwrap_or_default())
                .made_at(provider.create_date().map(DateTime::secs))
                .tagged(iam_tags(provider.tags.unwrap_or_default())),
        );
    }
    Ok(found)
}

/// Interruption queues and the rules that fill them, with their tags.
///
/// # Errors
/// What SQS or EventBridge refused.
pub async fn queues_and_rules(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let queues = queues(cx, place).await?;
    let rules = rules(cx, place, &queues).await?;
    Ok([queues, rules].concat())
}

/// What the queues that may be meant begin with. Karpenter's guide calls its queue after the cluster alone.
fn queue_beginnings(place: Place<'_>) -> Vec<String> {
    let Some(cluster) = place.cluster else { return vec!["slipway-eks-".to_owned()] };
    let others = [format!("Karpenter-{}", cluster.name), cluster.name.clone()];
    [names::queue(cluster)].into_iter().chain(others.into_iter().filter(|_| place.adopt)).collect()
}

async fn queues(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let sqs = cx.aws.sqs();
    let mut found = Vec::new();
    for beginning in queue_beginnings(place) {
        let call = sqs.list_queues().queue_name_prefix(&beginning).max_results(1000);
        let mut pages = call.into_paginator().items().send();
        while let Some(url) = pages.next().await {
            let url = url.during("sqs:ListQueues")?;
            let name = url.rsplit('/').next().unwrap_or_default();
            let resource = Resource::new(Kind::Queue, place.arn("sqs", name), name);
            if !place.may_have(&resource) {
                continue;
            }
            match sqs.list_queue_tags().queue_url(&url).send().await {
                Ok(answer) => found.push(resource.tagged(answer.tags.unwrap_or_default().into_iter().collect())),
                // A queue's name is listed for a while after its deletion.
                Err(error) if code(&error).is_some_and(is_gone) => {}
                Err(error) => return Err(refused("sqs:ListQueueTags", &error)),
            }
        }
    }
    Ok(found)
}

/// Rules by name, and of an adopted cluster those that fill its queue and nothing else, whatever they are called.
async fn rules(cx: &Context, place: Place<'_>, queues: &[Resource]) -> Result<Vec<Resource>, StepError> {
    let events = cx.aws.events();
    let beginning = place.cluster.map_or_else(|| "slipway-eks-".to_owned(), rule_beginning);
    let mut rules = BTreeMap::new();
    let mut token = None;
    loop {
        let call = events.list_rules().name_prefix(&beginning).set_next_token(token);
        let page = call.send().await.during("events:ListRules")?;
        for rule in page.rules() {
            let resource = Resource::new(Kind::Rule, text(rule.arn()), text(rule.name()));
            if place.may_have(&resource) {
                rules.insert(resource.name.clone(), resource);
            }
        }
        token = page.next_token;
        if token.is_none() {
            break;
        }
    }
    let adopted = place.cluster.filter(|_| place.adopt).map(|cluster| of_cluster(cluster, true, queues));
    for (queue, _) in adopted.into_iter().flatten() {
        for name in rules_filling(cx, &queue.arn).await? {
            if !rules.contains_key(&name) && fills_nothing_else(cx, &name, &queue.arn).await? {
                let arn = place.arn("events", &format!("rule/{name}"));
                let rule = Resource::new(Kind::Rule, arn, &name).part_of([queue.arn.as_str()]);
                rules.insert(name, rule);
            }
        }
    }
    let mut found = Vec::new();
    for rule in rules.into_values() {
        match events.list_tags_for_resource().resource_arn(&rule.arn).send().await {
            Ok(answer) => {
                let tags = answer.tags.unwrap_or_default().into_iter();
                found.push(rule.tagged(tags.map(|tag| (tag.key, tag.value)).collect()));
            }
            Err(error) if code(&error).is_some_and(is_gone) => {}
            Err(error) => return Err(refused("events:ListTagsForResource", &error)),
        }
    }
    Ok(found)
}

/// The names of the rules that have a queue among their targets.
async fn rules_filling(cx: &Context, queue: &str) -> Result<Vec<String>, StepError> {
    let (mut found, mut next) = (Vec::new(), None);
    loop {
        let call = cx.aws.events().list_rule_names_by_target().target_arn(queue).set_next_token(next.take());
        let page = call.send().await.during("events:ListRuleNamesByTarget")?;
        found.extend(page.rule_names.unwrap_or_default());
        next = page.next_token;
        if next.is_none() {
            return Ok(found);
        }
    }
}

/// Whether a queue is all that a rule fills.
async fn fills_nothing_else(cx: &Context, rule: &str, queue: &str) -> Result<bool, StepError> {
    let (mut next, mut only) = (None, true);
    loop {
        let page = match cx.aws.events().list_targets_by_rule().rule(rule).set_next_token(next.take()).send().await {
            Err(error) if code(&error).is_some_and(is_gone) => return Ok(false),
            page => page.during("events:ListTargetsByRule")?,
        };
        only &= page.targets().iter().all(|target| target.arn() == queue);
        next = page.next_token;
        if next.is_none() {
            return Ok(only);
        }
    }
}

/// What all rules of a cluster begin with; a long name is cut, and then only the part that is common is left.
fn rule_beginning(cluster: &ClusterKey) -> String {
    let rules: Vec<String> = interruption_rules().iter().map(|rule| names::rule(cluster, rule.kind)).collect();
    let common = |(at, _): &(usize, char)| rules.iter().all(|rule| rule.get(..=*at) == rules[0].get(..=*at));
    rules[0].char_indices().take_while(common).map(|(_, letter)| letter).collect()
}

/// The log groups of control planes.
///
/// # Errors
/// What CloudWatch Logs refused.
pub async fn log_groups(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let beginning = place.cluster.map_or_else(|| "/aws/eks/".to_owned(), |c| format!("/aws/eks/{}/cluster", c.name));
    let groups = logs::log_groups(cx, &beginning).await?.into_iter().map(|group| {
        let made_at = group.creation_time.map(|millis| millis / 1000);
        Resource::new(Kind::LogGroup, group.arn.trim_end_matches(":*"), group.log_group_name).made_at(made_at)
    });
    Ok(groups.collect())
}

async fn stacks(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let call = cx.aws.cloudformation().describe_stacks().set_stack_name(place.cluster.map(names::stack));
    let mut pages = call.into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(stack) = pages.next().await {
        let stack = match stack {
            Ok(stack) => stack,
            // ValidationError, "Stack with id … does not exist": that is how CloudFormation says it.
            Err(error) if super::error::message(&error).is_some_and(|words| words.contains("does not exist")) => break,
            Err(error) => return Err(refused("cloudformation:DescribeStacks", &error)),
        };
        let state = stack.stack_status().map_or("", |status| status.as_str());
        if state == "DELETE_COMPLETE" {
            continue;
        }
        let tags = stack.tags().iter().map(|tag| (text(tag.key()), text(tag.value()))).collect();
        found.push(
            Resource::new(Kind::Stack, text(stack.stack_id()), text(stack.stack_name()))
                .tagged(tags)
                .in_state(state)
                .made_at(stack.creation_time().map(DateTime::secs)),
        );
    }
    Ok(found)
}

/// What the Resource Groups Tagging API knows and nobody above lists. It also remembers what is gone, so it is not asked
/// about types that are listed from their service.
async fn tagged(cx: &Context, place: Place<'_>) -> Result<Vec<Resource>, StepError> {
    let filters: Vec<TagFilter> = match place.cluster {
        Some(cluster) => ownership::keys(cluster)
            .into_iter()
            .map(|key| {
                let value = if key == ownership::kubernetes_tag(cluster) { "owned" } else { cluster.name.as_str() };
                TagFilter::builder().key(key).values(value).build()
            })
            .collect(),
        None => ownership::NAME_TAGS.iter().map(|key| TagFilter::builder().key(*key).build()).collect(),
    };
    let mut found: BTreeMap<String, Resource> = BTreeMap::new();
    for filter in filters {
        let mut pages = cx.aws.tagging().get_resources().tag_filters(filter).into_paginator().items().send();
        while let Some(mapping) = pages.next().await {
            let mapping = mapping.during("tag:GetResources")?;
            let arn = mapping.resource_arn().unwrap_or_default();
            let tags = mapping.tags().iter().map(|tag| (tag.key().to_owned(), tag.value().to_owned())).collect();
            if let Some((kind, name)) = kind_of(arn) {
                found.insert(arn.to_owned(), Resource::new(kind, arn, name).tagged(tags));
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Kind and name of what only the tagging API tells; none for types that are listed from their service, and for EC2's
/// requests, which cost nothing and end with their instances.
fn kind_of(arn: &str) -> Option<(Kind, &str)> {
    let mut parts = arn.splitn(6, ':').skip(2);
    let (service, rest) = (parts.next()?, parts.nth(2)?);
    let (what, name) = rest.split_once(['/', ':']).unwrap_or(("", rest));
    match (service, what) {
        ("ec2", "subnet" | "route-table" | "internet-gateway" | "network-acl" | "vpc-flow-log") => {
            Some((Kind::Vpc, name))
        }
        (
            "ec2",
            "instance"
            | "volume"
            | "launch-template"
            | "network-interface"
            | "security-group"
            | "natgateway"
            | "elastic-ip"
            | "vpc"
            | "vpc-endpoint"
            | "security-group-rule"
            | "fleet"
            | "spot-instances-request"
            // As the tagging API of some emulators calls it.
            | "spot-instance-request",
        )
        | ("elasticloadbalancing" | "eks" | "iam" | "logs" | "cloudformation", _) => None,
        ("sqs", _) => Some((Kind::Queue, name)),
        ("events", "rule") => Some((Kind::Rule, name)),
        _ => Some((Kind::Other, rest)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_tagging_api_adds_only_what_no_service_lists() {
        assert_eq!(kind_of("arn:aws:ec2:eu-west-1:1:instance/i-1"), None);
        assert_eq!(kind_of("arn:aws:eks:eu-west-1:1:cluster/demo"), None);
        assert_eq!(kind_of("arn:aws:ec2:eu-west-1:1:fleet/fleet-1"), None);
        assert_eq!(kind_of("arn:aws:ec2:eu-west-1:1:subnet/subnet-1"), Some((Kind::Vpc, "subnet-1")));
        assert_eq!(kind_of("arn:aws:ec2:eu-west-1:1:snapshot/snap-1"), Some((Kind::Other, "snapshot/snap-1")));
        assert_eq!(kind_of("arn:aws:sqs:eu-west-1:1:Karpenter-demo"), Some((Kind::Queue, "Karpenter-demo")));
        assert_eq!(kind_of("arn:aws:s3:::bucket"), Some((Kind::Other, "bucket")));
    }

    #[test]
    fn an_interface_says_which_load_balancer_it_is_of() {
        assert_eq!(balancer_of("ELB net/a0f1e/5dbd4f44c6b9b69d"), Some("a0f1e"));
        assert_eq!(balancer_of("ELB a0f1e"), Some("a0f1e"));
        assert_eq!(balancer_of("Amazon EKS demo"), None);
    }

    #[test]
    fn a_clusters_rules_are_listed_by_what_they_have_in_common() {
        let key = |name: &str| ClusterKey { account: "1".into(), region: "eu-west-1".into(), name: name.into() };
        assert_eq!(rule_beginning(&key("demo")), "slipway-eks-demo.");
        let long = key(&"x".repeat(90));
        assert!(names::rule(&long, "health").starts_with(&rule_beginning(&long)));
    }
}
