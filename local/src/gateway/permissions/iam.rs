//! IAM: the thing that is named, by its whole ARN; what is passed, attached and tagged beside it.

use super::{Permission, tags_at};
use crate::gateway::lookup::Lookup;
use crate::gateway::wire;

/// Members that name what an operation is about, first of all what is most its own, and the kinds they name.
const NAMED: &[(&str, &str)] = &[
    // An instance profile's role is beside it, and passed rather than acted on.
    ("InstanceProfileName", "instance-profile"),
    ("RoleName", "role"),
    ("UserName", "user"),
    ("GroupName", "group"),
    ("PolicyName", "policy"),
    ("PolicyArn", ""),
    ("PolicySourceArn", ""),
    ("OpenIDConnectProviderArn", ""),
];

/// Operations that make something, and the one by which it is tagged.
const MADE: &[(&str, &str)] = &[
    ("CreateInstanceProfile", "iam:TagInstanceProfile"),
    ("CreateOpenIDConnectProvider", "iam:TagOpenIDConnectProvider"),
    ("CreatePolicy", "iam:TagPolicy"),
    ("CreateRole", "iam:TagRole"),
    ("CreateUser", "iam:TagUser"),
];

/// Service-linked roles and their names.
const SERVICE_LINKED: &[(&str, &str)] = &[
    ("autoscaling.amazonaws.com", "AWSServiceRoleForAutoScaling"),
    ("eks-nodegroup.amazonaws.com", "AWSServiceRoleForAmazonEKSNodegroup"),
    ("eks.amazonaws.com", "AWSServiceRoleForAmazonEKS"),
    ("spot.amazonaws.com", "AWSServiceRoleForEC2Spot"),
];

pub(super) async fn of(lookup: &Lookup<'_>) -> Vec<Permission> {
    let call = lookup.call;
    let parameters = wire::parameters(call);
    let action = format!("iam:{}", call.action);
    let account = &call.account;
    if call.action == "CreateServiceLinkedRole" {
        let service = parameters.get("AWSServiceName").map_or("", String::as_str);
        let role = SERVICE_LINKED.iter().find(|(linked, _)| *linked == service).map_or("*", |(_, role)| role);
        let arn = format!("arn:aws:iam::{account}:role/aws-service-role/{service}/{role}");
        return vec![Permission::on(action, arn).with("iam:AWSServiceName", service)];
    }
    let made = MADE.iter().find(|(made_by, _)| *made_by == call.action);
    let named = NAMED.iter().find_map(|(member, kind)| Some((*kind, parameters.get(*member)?)));
    let arn = match (named, parameters.get("Url")) {
        (None, Some(url)) => format!("arn:aws:iam::{account}:oidc-provider/{}", url.trim_start_matches("https://")),
        (None, None) => return vec![Permission::alone(action)],
        (Some(("", arn)), _) => arn.clone(),
        (Some((kind, name)), _) => {
            let path = parameters.get("Path").map_or("/", String::as_str);
            let named = format!("arn:aws:iam::{account}:{kind}{path}{name}");
            // A name does not tell the path; of what is not there, the name alone is judged.
            if made.is_some() { named } else { lookup.iam_arn(kind, name).await.unwrap_or(named) }
        }
    };
    let tags = tags_at(&parameters, "Tags.member");
    let keys = tags_at(&parameters, "TagKeys.member");
    let mut permission = match made {
        Some(_) => Permission::making(action, &arn, &tags),
        None => Permission::on(action, &arn).requesting(&tags),
    };
    if !keys.is_empty() {
        permission.context.insert("aws:TagKeys".to_owned(), keys.into_keys().collect());
    }
    for (member, key) in [("PolicyArn", "iam:PolicyARN"), ("PermissionsBoundary", "iam:PermissionsBoundary")] {
        if let Some(value) = parameters.get(member) {
            permission = permission.with(key, value);
        }
    }
    let mut needed = vec![permission];
    if let Some((_, tag)) = made.filter(|_| !tags.is_empty()) {
        needed.push(Permission::making(*tag, &arn, &tags));
    }
    if call.action == "AddRoleToInstanceProfile"
        && let Some(role) = parameters.get("RoleName")
    {
        let named = format!("arn:aws:iam::{account}:role/{role}");
        let role = lookup.iam_arn("role", role).await.unwrap_or(named);
        needed.push(Permission::pass_role(role, "ec2.amazonaws.com"));
    }
    needed
}
