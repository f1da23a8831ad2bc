//! EC2: resources are told by the ids in a request, what is made by the operation, and tags by their specification.

use std::collections::{BTreeMap, BTreeSet};

use super::{Permission, Tags, arn, tags_at};
use crate::gateway::call::Call;
use crate::gateway::lookup::Lookup;
use crate::gateway::wire;

type Parameters = BTreeMap<String, String>;

/// Beginnings of ids, and what policies call the things.
const KINDS: &[(&str, &str)] = &[
    ("acl", "network-acl"),
    ("ami", "image"),
    ("eigw", "egress-only-internet-gateway"),
    ("eipalloc", "elastic-ip"),
    ("eni", "network-interface"),
    ("fl", "vpc-flow-log"),
    ("fleet", "fleet"),
    ("i", "instance"),
    ("igw", "internet-gateway"),
    ("lt", "launch-template"),
    ("nat", "natgateway"),
    ("rtb", "route-table"),
    ("sg", "security-group"),
    ("sgr", "security-group-rule"),
    ("sir", "spot-instances-request"),
    ("snap", "snapshot"),
    ("subnet", "subnet"),
    ("vol", "volume"),
    ("vpc", "vpc"),
    ("vpce", "vpc-endpoint"),
];

/// What operations make.
const MADE: &[(&str, &str)] = &[
    ("AllocateAddress", "elastic-ip"),
    ("CreateFlowLogs", "vpc-flow-log"),
    ("CreateInternetGateway", "internet-gateway"),
    ("CreateLaunchTemplate", "launch-template"),
    ("CreateNatGateway", "natgateway"),
    ("CreateNetworkAcl", "network-acl"),
    ("CreateNetworkInterface", "network-interface"),
    ("CreateRouteTable", "route-table"),
    ("CreateSecurityGroup", "security-group"),
    ("CreateSnapshot", "snapshot"),
    ("CreateSubnet", "subnet"),
    ("CreateVolume", "volume"),
    ("CreateVpc", "vpc"),
    ("CreateVpcEndpoint", "vpc-endpoint"),
];

/// Operations that name more than they are judged by, and the parameters that count.
const JUDGED_BY: &[(&str, &[&str])] = &[
    ("AuthorizeSecurityGroupEgress", &["GroupId"]),
    ("AuthorizeSecurityGroupIngress", &["GroupId"]),
    ("CreateLaunchTemplate", &[]),
    ("CreateLaunchTemplateVersion", &["LaunchTemplateId"]),
    ("CreateRoute", &["RouteTableId"]),
    ("ModifyInstanceAttribute", &["InstanceId"]),
    ("ModifyNetworkInterfaceAttribute", &["NetworkInterfaceId"]),
    ("ReplaceRoute", &["RouteTableId"]),
    ("RevokeSecurityGroupEgress", &["GroupId"]),
    ("RevokeSecurityGroupIngress", &["GroupId"]),
];

/// Operations that look at one thing and know it as a resource; all others that describe know none.
const DESCRIBED_ALONE: &[&str] = &[
    "DescribeFleetHistory",
    "DescribeFleetInstances",
    "DescribeImageAttribute",
    "DescribeInstanceAttribute",
    "DescribeSecurityGroupReferences",
    "DescribeSnapshotAttribute",
    "DescribeVolumeAttribute",
    "DescribeVpcAttribute",
];

/// Associations stand for the thing that they belong to: the beginning of their id, the operation and filter that find
/// it, the element beside it that names it.
const ASSOCIATIONS: &[(&str, &str, &str, &str)] = &[
    ("aclassoc", "DescribeNetworkAcls", "association.association-id", "subnetId"),
    ("eipassoc", "DescribeAddresses", "association-id", "allocationId"),
    ("rtbassoc", "DescribeRouteTables", "association.route-table-association-id", "routeTableId"),
];

/// The kind of thing that an id names.
pub(in crate::gateway) fn kind_of(id: &str) -> Option<&'static str> {
    let (beginning, rest) = id.rsplit_once('-')?;
    let is_id = !rest.is_empty() && rest.chars().all(|character| character.is_ascii_hexdigit());
    KINDS.iter().find(|(known, _)| is_id && *known == beginning).map(|(_, kind)| *kind)
}

pub(super) async fn of(lookup: &Lookup<'_>) -> Vec<Permission> {
    let call = lookup.call;
    let action = format!("ec2:{}", call.action);
    let looks = ["Describe", "Get", "List", "Search"].iter().any(|beginning| call.action.starts_with(beginning));
    if looks && !DESCRIBED_ALONE.contains(&call.action.as_str()) {
        return vec![Permission::alone(action)];
    }
    let parameters = wire::parameters(call);
    if matches!(call.action.as_str(), "RunInstances" | "CreateFleet") {
        return launch(lookup, &parameters).await;
    }
    let mut needed = Vec::new();
    let specified = specified_tags(&parameters);
    if let Some((_, kind)) = MADE.iter().find(|(made_by, _)| *made_by == call.action) {
        let tags = specified.get(*kind).cloned().unwrap_or_default();
        needed.push(Permission::making(&action, resource(call, kind, "*"), &tags));
    }
    let direct = if matches!(call.action.as_str(), "CreateTags" | "DeleteTags") {
        tags_at(&parameters, "Tag")
    } else {
        Tags::new()
    };
    for arn in existing(lookup, &parameters).await {
        needed.push(Permission::on(&action, arn).requesting(&direct));
    }
    if let Some(name) = parameters.get("LaunchTemplateName").filter(|_| call.action.starts_with("DeleteLaunch")) {
        let id = lookup.launch_template_id(name).await;
        needed.push(Permission::on(&action, resource(call, "launch-template", id.as_deref().unwrap_or("*"))));
    }
    if needed.is_empty() {
        needed.push(Permission::on(&action, resource(call, "*", "*")));
    }
    needed.extend(tagging(call, &specified));
    if let Some(role) = parameters.get("DeliverLogsPermissionArn") {
        needed.push(Permission::pass_role(role, "vpc-flow-logs.amazonaws.com"));
    }
    needed
}

/// The ARN of a thing of EC2's. Images and snapshots may be anybody's: their ARNs have no account.
fn resource(call: &Call, kind: &str, id: &str) -> String {
    match kind {
        "image" | "snapshot" => format!("arn:aws:ec2:{}::{kind}/{id}", call.region),
        _ => arn(call, "ec2", &format!("{kind}/{id}")),
    }
}

/// The ARNs of what a request names.
async fn existing(lookup: &Lookup<'_>, parameters: &Parameters) -> BTreeSet<String> {
    let call = lookup.call;
    let judged_by = JUDGED_BY.iter().find(|(action, _)| *action == call.action).map(|(_, heads)| *heads);
    let mut found = BTreeSet::new();
    for (name, value) in parameters {
        let head = name.split('.').next().unwrap_or(name);
        let counts =
            judged_by.map_or(!matches!(head, "Filter" | "Tag" | "TagSpecification"), |heads| heads.contains(&head));
        if !counts {
            continue;
        }
        if let Some(kind) = kind_of(value) {
            found.insert(resource(call, kind, value));
            continue;
        }
        let beginning = value.rsplit_once('-').map_or("", |(beginning, _)| beginning);
        if let Some((_, describe, filter, element)) = ASSOCIATIONS.iter().find(|(known, ..)| *known == beginning) {
            let of = lookup.associated(describe, filter, value, element).await;
            if let Some((kind, id)) = of.as_deref().and_then(|id| Some((kind_of(id)?, id))) {
                found.insert(resource(call, kind, id));
            }
        }
    }
    found
}

/// What is tagged as it is made, by kind.
fn specified_tags(parameters: &Parameters) -> BTreeMap<String, Tags> {
    (1..)
        .map_while(|n| {
            let kind = parameters.get(&format!("TagSpecification.{n}.ResourceType"))?;
            Some((kind.clone(), tags_at(parameters, &format!("TagSpecification.{n}.Tag"))))
        })
        .collect()
}

/// Who makes something with tags needs to be allowed to tag it.
fn tagging(call: &Call, specified: &BTreeMap<String, Tags>) -> Vec<Permission> {
    let tagged = specified.iter().filter(|(_, tags)| !tags.is_empty());
    tagged
        .map(|(kind, tags)| {
            Permission::making("ec2:CreateTags", resource(call, kind, "*"), tags).with("ec2:CreateAction", &call.action)
        })
        .collect()
}

/// RunInstances and CreateFleet: judged by each of the things that they use and make, those of the launch template
/// too. An instant fleet runs its instances with its caller's rights, so it needs both.
async fn launch(lookup: &Lookup<'_>, parameters: &Parameters) -> Vec<Permission> {
    let call = lookup.call;
    let named = |ending: &str| -> BTreeSet<String> {
        parameters.iter().filter(|(name, _)| name.ends_with(ending)).map(|(_, value)| value.clone()).collect()
    };
    let mut templates = named(".LaunchTemplateId");
    for name in named(".LaunchTemplateName") {
        templates.insert(lookup.launch_template_id(&name).await.unwrap_or_else(|| "*".to_owned()));
    }
    let mut used: BTreeSet<String> = parameters
        .iter()
        .filter(|(name, _)| !name.starts_with("TagSpecification"))
        .filter_map(|(_, value)| Some((kind_of(value)?, value)))
        .filter(|(kind, _)| *kind != "launch-template")
        .map(|(kind, id)| resource(call, kind, id))
        .collect();
    let mut tags = specified_tags(parameters);
    let mut profiles = named("IamInstanceProfile.Name");
    profiles.extend(named("IamInstanceProfile.Arn").iter().filter_map(|arn| Some(arn.rsplit('/').next()?.to_owned())));
    for id in &templates {
        used.insert(resource(call, "launch-template", id));
        let template = lookup.launch_template(id).await;
        used.extend(template.ids.iter().filter_map(|id| Some(resource(call, kind_of(id)?, id))));
        profiles.extend(template.profile);
        for (kind, specified) in template.tags {
            tags.entry(kind).or_default().extend(specified);
        }
    }
    // The template's own tags are no tags of what is launched.
    tags.remove("launch-template");

    let none = Tags::new();
    let makes = |action: &str, kind: &str| {
        Permission::making(action, resource(call, kind, "*"), tags.get(kind).unwrap_or(&none))
    };
    let mut needed = Vec::new();
    if call.action == "CreateFleet" {
        let of_fleets = ["image", "launch-template", "subnet"].map(|kind| format!(":{kind}/"));
        needed.extend(["fleet", "instance", "volume"].map(|kind| makes("ec2:CreateFleet", kind)));
        let shared = used.iter().filter(|arn| of_fleets.iter().any(|kind| arn.contains(kind)));
        needed.extend(shared.map(|arn| Permission::on("ec2:CreateFleet", arn)));
    }
    if call.action == "RunInstances" || parameters.get("Type").is_some_and(|kind| kind == "instant") {
        needed.extend(["instance", "network-interface", "volume"].map(|kind| makes("ec2:RunInstances", kind)));
        needed.extend(
            tags.contains_key("spot-instances-request").then(|| makes("ec2:RunInstances", "spot-instances-request")),
        );
        needed.extend(used.iter().map(|arn| Permission::on("ec2:RunInstances", arn)));
    }
    needed.extend(tagging(call, &tags));
    for profile in profiles {
        if let Some(role) = lookup.role_of_profile(&profile).await {
            needed.push(Permission::pass_role(role, "ec2.amazonaws.com"));
        }
    }
    needed
}
