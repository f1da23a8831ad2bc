//! EKS: what its paths name, the roles that its requests pass on, and what it looks up with its caller's rights.

use serde_json::Value;

use super::{Permission, Tags, arn};
use crate::gateway::call::Call;
use crate::gateway::lookup::Lookup;
use crate::gateway::wire;

/// Parts of a cluster: the segment in the path, the kind in an ARN, and the member of a description that has the ARN.
const PARTS: &[(&str, &str, &str)] = &[
    ("access-entries", "access-entry", "/accessEntry/accessEntryArn"),
    ("addons", "addon", "/addon/addonArn"),
    ("fargate-profiles", "fargateprofile", "/fargateProfile/fargateProfileArn"),
    ("node-groups", "nodegroup", "/nodegroup/nodegroupArn"),
    ("pod-identity-associations", "podidentityassociation", "/association/associationArn"),
];

pub(super) async fn of(lookup: &Lookup<'_>) -> Vec<Permission> {
    let call = lookup.call;
    let action = format!("eks:{}", call.action);
    let path = wire::path_segments(&call.uri);
    let body = serde_json::from_slice::<Value>(&call.body).unwrap_or_default();
    let tags = tags(&body["tags"]);
    let cluster = |name: &str| arn(call, "eks", &format!("cluster/{name}"));
    let segments: Vec<&str> = path.iter().map(String::as_str).collect();
    let mut needed = match segments[..] {
        // Of a cluster that is not there yet the reference knows no resource.
        ["clusters"] if call.action == "CreateCluster" => {
            let made = cluster(body["name"].as_str().unwrap_or_default());
            vec![Permission { resource: None, ..Permission::making(action, made, &tags) }]
        }
        ["tags", ref of @ ..] => {
            let keys: Tags = url::form_urlencoded::parse(call.uri.query().unwrap_or("").as_bytes())
                .filter(|(name, _)| name == "tagKeys")
                .map(|(_, key)| (key.into_owned(), String::new()))
                .collect();
            let mut permission = Permission::on(action, of.join("/")).requesting(&tags);
            if !keys.is_empty() {
                permission.context.insert("aws:TagKeys".to_owned(), keys.into_keys().collect());
            }
            vec![permission]
        }
        ["clusters", name, part, id, ..] if PARTS.iter().any(|(segment, ..)| *segment == part) => {
            let permission = Permission::on(action, part_arn(lookup, name, part, id).await);
            vec![asking_for_a_policy(permission, &body)]
        }
        ["clusters", name, ..] => {
            let permission = Permission::on(action, cluster(name)).requesting(&tags);
            vec![asking_for_an_entry(permission, &body)]
        }
        _ => vec![Permission::alone(action)],
    };
    if !tags.is_empty() && call.action.starts_with("Create") {
        needed.push(Permission::making("eks:TagResource", made_arn(call, &segments, &body), &tags));
    }
    needed.extend(beside(call, &segments, &body));
    needed
}

fn tags(value: &Value) -> Tags {
    let members = value.as_object().into_iter().flatten();
    members.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// The ARN of a part of a cluster. It ends in an id that only EKS knows; of what is not there, in any.
async fn part_arn(lookup: &Lookup<'_>, cluster: &str, part: &str, id: &str) -> String {
    let Some((_, kind, member)) = PARTS.iter().find(|(segment, ..)| *segment == part) else {
        return arn(lookup.call, "eks", "*");
    };
    let path = format!("/clusters/{cluster}/{part}/{}", id.replace(':', "%3A").replace('/', "%2F"));
    let description = lookup.eks(&path).await.unwrap_or_default();
    match description.pointer(member).and_then(Value::as_str) {
        Some(arn) => arn.to_owned(),
        None => unnumbered(lookup.call, kind, cluster, id),
    }
}

/// `nodegroup/demo/core/*`, `access-entry/demo/role/111122223333/admin/*`
fn unnumbered(call: &Call, kind: &str, cluster: &str, id: &str) -> String {
    let named = match kind {
        "access-entry" => {
            let account = id.split(':').nth(4).unwrap_or_default();
            let (kind, name) = id.splitn(6, ':').nth(5).and_then(|rest| rest.split_once('/')).unwrap_or(("role", "*"));
            format!("{kind}/{account}/{}", name.rsplit('/').next().unwrap_or(name))
        }
        _ => id.to_owned(),
    };
    match kind {
        "podidentityassociation" => arn(call, "eks", &format!("{kind}/{cluster}/{named}")),
        _ => arn(call, "eks", &format!("{kind}/{cluster}/{named}/*")),
    }
}

/// The ARN of what a request makes.
fn made_arn(call: &Call, segments: &[&str], body: &Value) -> String {
    let text = |member: &str| body[member].as_str().unwrap_or_default();
    match segments {
        ["clusters", cluster, "fargate-profiles"] => {
            unnumbered(call, "fargateprofile", cluster, text("fargateProfileName"))
        }
        ["clusters", cluster, "node-groups"] => unnumbered(call, "nodegroup", cluster, text("nodegroupName")),
        ["clusters", cluster, "addons"] => unnumbered(call, "addon", cluster, text("addonName")),
        ["clusters", cluster, "access-entries"] => unnumbered(call, "access-entry", cluster, text("principalArn")),
        ["clusters", cluster, "pod-identity-associations"] => unnumbered(call, "podidentityassociation", cluster, "*"),
        _ => arn(call, "eks", &format!("cluster/{}", text("name"))),
    }
}

/// The condition keys of AssociateAccessPolicy.
fn asking_for_a_policy(permission: Permission, body: &Value) -> Permission {
    match body["policyArn"].as_str() {
        Some(policy) => {
            let scope = body["accessScope"]["type"].as_str().unwrap_or_default();
            permission.with("eks:policyArn", policy).with("eks:accessScope", scope)
        }
        None => permission,
    }
}

/// The condition keys of CreateAccessEntry.
fn asking_for_an_entry(permission: Permission, body: &Value) -> Permission {
    match body["principalArn"].as_str() {
        Some(principal) => {
            let kind = body["type"].as_str().unwrap_or("STANDARD");
            permission.with("eks:principalArn", principal).with("eks:accessEntryType", kind)
        }
        None => permission,
    }
}

/// What EKS does or has done in its caller's name: roles that are passed, keys that are granted.
fn beside(call: &Call, segments: &[&str], body: &Value) -> Vec<Permission> {
    let role = |member: &str| body[member].as_str();
    let mut needed = Vec::new();
    match call.action.as_str() {
        "CreateCluster" => {
            needed.extend(role("roleArn").map(|role| Permission::pass_role(role, "eks.amazonaws.com")));
            for config in body["encryptionConfig"].as_array().into_iter().flatten() {
                if let Some(key) = config["provider"]["keyArn"].as_str() {
                    needed.push(Permission::on("kms:DescribeKey", key));
                    needed.push(Permission::on("kms:CreateGrant", key).with("kms:GrantIsForAWSResource", "true"));
                }
            }
        }
        "CreateNodegroup" => {
            if let Some(role) = role("nodeRole") {
                // Documentation and examples name one or the other: whoever may pass it to both is safe.
                needed.push(Permission::pass_role(role, "eks.amazonaws.com"));
                needed.push(Permission::pass_role(role, "ec2.amazonaws.com"));
                needed.push(Permission::on("iam:GetRole", role));
                needed.push(Permission::on("iam:ListAttachedRolePolicies", role));
            }
        }
        "CreateAddon" | "UpdateAddon" => {
            needed.extend(role("serviceAccountRoleArn").map(|role| Permission::pass_role(role, "eks.amazonaws.com")));
            for association in body["podIdentityAssociations"].as_array().into_iter().flatten() {
                let cluster = segments.get(1).copied().unwrap_or_default();
                let arn = arn(call, "eks", &format!("cluster/{cluster}"));
                needed.push(Permission::on("eks:CreatePodIdentityAssociation", arn));
                needed.extend(association["roleArn"].as_str().into_iter().flat_map(to_pods));
            }
        }
        "CreatePodIdentityAssociation" | "UpdatePodIdentityAssociation" => {
            needed.extend(role("roleArn").into_iter().flat_map(to_pods));
        }
        _ => {}
    }
    needed
}

/// EKS looks at a role before it lets pods have it, and asks whether its caller may hand it on.
fn to_pods(role: &str) -> [Permission; 2] {
    [Permission::pass_role(role, "pods.eks.amazonaws.com"), Permission::on("iam:GetRole", role)]
}
