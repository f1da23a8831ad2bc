//! Who may do what in a cluster: access entries and the policies associated with them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::state::{AccessEntry, ClusterId};
use super::{AwsError, Eks, Request, again, amazon, in_use, invalid, invalid_request, not_found, now, uuid};
use crate::kubernetes::NodeAuthority;

/// Types of access entries that log in with IAM as people and programs do, or as nodes do.
const TYPES: &[&str] =
    &["STANDARD", "EC2_LINUX", "EC2_WINDOWS", "FARGATE_LINUX", "EC2", "HYBRID_LINUX", "HYPERPOD_LINUX"];

/// The access policies that the local cloud has, and the cluster roles that stand for them. Cluster roles `admin`,
/// `edit` and `view` aggregate; the ones named here are what they aggregate.
const POLICIES: &[(&str, &[&str])] = &[
    ("AmazonEKSClusterAdminPolicy", &["cluster-admin"]),
    ("AmazonEKSAdminPolicy", &["system:aggregate-to-admin", "system:aggregate-to-edit", "system:aggregate-to-view"]),
    ("AmazonEKSEditPolicy", &["system:aggregate-to-edit", "system:aggregate-to-view"]),
    ("AmazonEKSViewPolicy", &["system:aggregate-to-view"]),
    ("AmazonEKSAdminViewPolicy", &["eks:admin-view"]),
];

const POLICY_PREFIX: &str = "arn:aws:eks::aws:cluster-access-policy/";

/// The policy of a cluster's creator, where it is asked to get one.
const CLUSTER_ADMIN: &str = "AmazonEKSClusterAdminPolicy";

impl Eks {
    pub(super) async fn create_access_entry(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        self.check_entries_apply(&id)?;
        let principal = request.text("principalArn");
        let kind = request.input["type"].as_str().unwrap_or("STANDARD");
        check_entry(principal, kind, &request.input)?;
        let principal_id = self.principal_id(&id, principal).await?;
        let entry = new_entry(&id, principal, kind, principal_id, &request.input);
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        if let Some(first) = cluster.entries.get(principal) {
            let taken = in_use("The specified access entry resource is already in use on this cluster.");
            return again(&first.request, &request.input, json!({"accessEntry": first.view}), taken);
        }
        let view = entry.view.clone();
        cluster.entries.insert(principal.to_owned(), entry);
        Ok(json!({"accessEntry": view}))
    }

    pub(super) fn describe_access_entry(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let entry = state.cluster(&request.cluster())?.entry(request.text("principalArn"))?;
        Ok(json!({"accessEntry": entry.view}))
    }

    pub(super) fn list_access_entries(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let policy = request.input["associatedPolicyArn"].as_str();
        let arns: Vec<Value> = state
            .cluster(&request.cluster())?
            .entries
            .iter()
            .filter(|(_, entry)| policy.is_none_or(|policy| entry.policies.contains_key(policy)))
            .map(|(arn, _)| json!(arn))
            .collect();
        request.page("accessEntries", &arns)
    }

    pub(super) fn update_access_entry(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let principal = request.text("principalArn");
        let entry = state.cluster(&request.cluster())?.entry(principal)?;
        check_entry(principal, entry.view["type"].as_str().unwrap_or_default(), &request.input)?;
        for member in ["username", "kubernetesGroups"] {
            if let Some(value) = request.input.get(member) {
                entry.view[member] = value.clone();
            }
        }
        entry.view["modifiedAt"] = now();
        Ok(json!({"accessEntry": entry.view}))
    }

    pub(super) fn delete_access_entry(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let cluster = state.cluster(&request.cluster())?;
        cluster.entry(request.text("principalArn"))?;
        cluster.entries.remove(request.text("principalArn"));
        Ok(json!({}))
    }

    pub(super) fn associate_access_policy(&self, request: &Request) -> Result<Value, AwsError> {
        let (principal, policy) = (request.text("principalArn"), request.text("policyArn"));
        let known = policy.strip_prefix(POLICY_PREFIX).is_some_and(|name| POLICIES.iter().any(|(p, _)| *p == name));
        if !known {
            return Err(invalid("The policyArn parameter format is not valid"));
        }
        let scope = &request.input["accessScope"];
        let namespaces = scope["namespaces"].as_array().is_some_and(|namespaces| !namespaces.is_empty());
        if (scope["type"] == "namespace") != namespaces {
            return Err(invalid("The accessScope of type namespace, and only that, must name namespaces"));
        }
        let mut state = self.state();
        let entry = state.cluster(&request.cluster())?.entry(principal)?;
        if entry.view["type"] != "STANDARD" {
            let message =
                format!("Access policies cannot be associated with access entries of type {}", entry.view["type"]);
            return Err(invalid_request(message));
        }
        let associated = entry.policies.get(policy).map_or_else(now, |before| before["associatedAt"].clone());
        let association =
            json!({"policyArn": policy, "accessScope": scope, "associatedAt": associated, "modifiedAt": now()});
        entry.policies.insert(policy.to_owned(), association.clone());
        Ok(json!({"clusterName": request.text("clusterName"), "principalArn": principal,
            "associatedAccessPolicy": association}))
    }

    pub(super) fn list_associated_access_policies(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let entry = state.cluster(&request.cluster())?.entry(request.text("principalArn"))?;
        let policies: Vec<Value> = entry.policies.values().cloned().collect();
        let mut page = request.page("associatedAccessPolicies", &policies)?;
        page["clusterName"] = request.input["clusterName"].clone();
        page["principalArn"] = request.input["principalArn"].clone();
        Ok(page)
    }

    pub(super) fn disassociate_access_policy(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let entry = state.cluster(&request.cluster())?.entry(request.text("principalArn"))?;
        entry
            .policies
            .remove(request.text("policyArn"))
            .ok_or_else(|| not_found("The specified policyArn could not be found on the access entry."))?;
        Ok(json!({}))
    }

    /// The entry of a cluster's creator, where CreateCluster asks for one.
    pub(super) async fn creator_entry(
        &self,
        id: &ClusterId,
        request: &Request,
        input: &Value,
    ) -> Result<Option<(String, AccessEntry)>, AwsError> {
        if input["accessConfig"]["bootstrapClusterCreatorAdminPermissions"] == false {
            return Ok(None);
        }
        let principal = request.principal.role_arn.clone().unwrap_or_else(|| request.principal.arn.clone());
        let Ok(principal_id) = self.principal_id(id, &principal).await else { return Ok(None) };
        let mut entry = new_entry(id, &principal, "STANDARD", principal_id, &json!({}));
        let policy = format!("{POLICY_PREFIX}{CLUSTER_ADMIN}");
        let association = json!({"policyArn": policy, "accessScope": {"type": "cluster"}, "associatedAt": now(), "modifiedAt": now()});
        entry.policies.insert(policy, association);
        Ok(Some((principal, entry)))
    }

    /// The entry that EKS makes for a node group's role; one that is there stays.
    pub(super) async fn node_entry(&self, id: &ClusterId, role_arn: &str) -> Result<(), AwsError> {
        let principal_id = self.principal_id(id, role_arn).await?;
        let entry = new_entry(id, role_arn, "EC2_LINUX", principal_id, &json!({}));
        let mut state = self.state();
        state.cluster(id)?.entries.entry(role_arn.to_owned()).or_insert(entry);
        Ok(())
    }

    fn check_entries_apply(&self, id: &ClusterId) -> Result<(), AwsError> {
        let mut state = self.state();
        let cluster = state.cluster(id)?;
        if cluster.view["accessConfig"]["authenticationMode"] == "CONFIG_MAP" {
            return Err(invalid_request(
                "The cluster's authentication mode must be set to one of [API, API_AND_CONFIG_MAP] to perform this \
                 operation.",
            ));
        }
        if matches!(cluster.status(), "DELETING" | "FAILED") {
            return Err(invalid_request(format!("Cluster {} is {}.", id.name, cluster.status())));
        }
        Ok(())
    }

    /// IAM's id of a role or user; refused where there is none.
    pub(super) async fn principal_id(&self, id: &ClusterId, principal: &str) -> Result<String, AwsError> {
        let found = if principal.contains(":user/") {
            amazon::user_id(&self.aws(&id.account, &id.region), principal).await?
        } else if principal.contains(":role/") {
            self.role(id, principal).await?.map(|role| role.id)
        } else {
            None
        };
        found.ok_or_else(|| invalid("The specified principalArn is invalid: invalid principal."))
    }
}

#[async_trait::async_trait]
impl NodeAuthority for Eks {
    async fn may_join(&self, account: &str, region: &str, cluster: &str, role_arn: &str) -> bool {
        let id = ClusterId { account: account.to_owned(), region: region.to_owned(), name: cluster.to_owned() };
        let principal_id = match self.state().cluster(&id).and_then(|cluster| cluster.entry(role_arn)) {
            Ok(entry) if entry.view["type"] == "EC2_LINUX" => entry.principal_id.clone(),
            _ => return false,
        };
        self.principal_id(&id, role_arn).await.is_ok_and(|current| current == principal_id)
    }
}

/// What is wrong with an entry by itself.
fn check_entry(principal: &str, kind: &str, input: &Value) -> Result<(), AwsError> {
    if !principal.starts_with("arn:aws:iam::") {
        return Err(invalid("The principalArn parameter format is not valid"));
    }
    if !TYPES.contains(&kind) {
        return Err(invalid(format!("The type parameter must be one of {}", TYPES.join(", "))));
    }
    let groups = super::clusters::texts(&input["kubernetesGroups"]);
    let username = input["username"].as_str();
    if kind != "STANDARD" && (!groups.is_empty() || username.is_some()) {
        return Err(invalid(format!("Access entries of type {kind} take neither username nor kubernetesGroups")));
    }
    if let Some(group) = groups.iter().find(|group| group.starts_with("system:")) {
        return Err(invalid(format!("The kubernetes group name {group} is invalid, it cannot start with system:")));
    }
    let reserved = ["system:", "eks:", "aws:", "amazon:", "iam:"];
    if username.is_some_and(|name| reserved.iter().any(|prefix| name.starts_with(prefix))) {
        return Err(invalid(format!("The username cannot start with one of {}", reserved.join(", "))));
    }
    Ok(())
}

fn new_entry(id: &ClusterId, principal: &str, kind: &str, principal_id: String, input: &Value) -> AccessEntry {
    let (_, path) = principal.rsplit_once(':').unwrap_or(("", principal));
    let sort = path.split('/').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let session = format!("arn:aws:sts::{}:assumed-role/{name}/{{{{SessionName}}}}", id.account);
    let (username, groups) = match kind {
        "STANDARD" if sort == "user" => (principal.to_owned(), json!([])),
        "STANDARD" => (session, json!([])),
        _ => ("system:node:{{EC2PrivateDNSName}}".to_owned(), json!(["system:nodes"])),
    };
    let view = json!({
        "clusterName": id.name, "principalArn": principal, "type": kind, "tags": input.get("tags").cloned().unwrap_or_else(|| json!({})),
        "username": input["username"].as_str().unwrap_or(&username),
        "kubernetesGroups": input.get("kubernetesGroups").cloned().unwrap_or(groups),
        "accessEntryArn": format!(
            "arn:aws:eks:{}:{}:access-entry/{}/{sort}/{}/{name}/{}", id.region, id.account, id.name, id.account, uuid()
        ),
        "createdAt": now(), "modifiedAt": now(),
    });
    AccessEntry { view, request: input.clone(), principal_id, policies: BTreeMap::new() }
}

pub(super) fn list_access_policies(request: &Request) -> Result<Value, AwsError> {
    let policies: Vec<Value> =
        POLICIES.iter().map(|(name, _)| json!({"name": name, "arn": format!("{POLICY_PREFIX}{name}")})).collect();
    request.page("accessPolicies", &policies)
}

/// The group by which a login carries a policy for the whole cluster.
fn policy_group(policy: &str) -> String {
    format!("eks:access-policy:{policy}")
}

/// The cluster roles and bindings that give the groups of access policies their rights.
pub(super) fn policy_objects() -> Vec<Value> {
    let view = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "eks:admin-view"},
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]}],
    });
    let bindings = POLICIES.iter().filter(|(policy, _)| *policy != CLUSTER_ADMIN).flat_map(|(policy, roles)| {
        roles.iter().map(move |role| binding("ClusterRoleBinding", None, policy, role, &policy_group(policy)))
    });
    std::iter::once(view).chain(bindings).collect()
}

fn binding(kind: &str, namespace: Option<&str>, policy: &str, role: &str, group: &str) -> Value {
    let mut binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": {"name": format!("eks:access-policy:{policy}:{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
    });
    if let Some(namespace) = namespace {
        binding["metadata"]["namespace"] = json!(namespace);
    }
    binding
}

/// What an entry's policies make of a login: its groups, and the role bindings that must be there for policies that
/// reach only some namespaces.
pub(super) fn rights(policies: &BTreeMap<String, Value>) -> (Vec<String>, Vec<Value>) {
    let (mut groups, mut bindings) = (Vec::new(), Vec::new());
    for (arn, association) in policies {
        let policy = arn.trim_start_matches(POLICY_PREFIX);
        let scope = &association["accessScope"];
        if scope["type"] == "cluster" {
            let all = policy == CLUSTER_ADMIN;
            groups.push(if all { "system:masters".to_owned() } else { policy_group(policy) });
            continue;
        }
        let roles = POLICIES.iter().find(|(name, _)| *name == policy).map_or(&[][..], |(_, roles)| roles);
        for namespace in super::clusters::texts(&scope["namespaces"]) {
            let group = format!("{}:{namespace}", policy_group(policy));
            bindings.extend(roles.iter().map(|role| binding("RoleBinding", Some(&namespace), policy, role, &group)));
            groups.push(group);
        }
    }
    (groups, bindings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn associated(policy: &str, scope: &Value) -> (String, Value) {
        (format!("{POLICY_PREFIX}{policy}"), json!({"accessScope": scope}))
    }

    #[test]
    fn policies_become_groups_and_bindings() {
        let policies = BTreeMap::from([
            associated("AmazonEKSClusterAdminPolicy", &json!({"type": "cluster"})),
            associated("AmazonEKSViewPolicy", &json!({"type": "namespace", "namespaces": ["shop"]})),
        ]);
        let (groups, bindings) = rights(&policies);
        assert_eq!(groups, ["system:masters", "eks:access-policy:AmazonEKSViewPolicy:shop"]);
        assert_eq!(bindings.len(), 1);
        assert_eq!(bindings[0]["metadata"]["namespace"], "shop");
        assert_eq!(bindings[0]["roleRef"]["name"], "system:aggregate-to-view");
    }

    #[test]
    fn entries_that_eks_refuses() {
        let role = "arn:aws:iam::111122223333:role/x";
        let refused = |kind: &str, input: Value| check_entry(role, kind, &input).is_err();
        assert!(refused("STANDARD", json!({"kubernetesGroups": ["system:masters"]})));
        assert!(refused("STANDARD", json!({"username": "system:me"})));
        assert!(refused("EC2_LINUX", json!({"username": "me"})));
        assert!(refused("SOMETHING", json!({})));
        assert!(!refused("STANDARD", json!({"kubernetesGroups": ["viewers"]})));
        assert!(check_entry("role/x", "STANDARD", &json!({})).is_err());
    }
}
