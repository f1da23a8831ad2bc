//! EKS Pod Identity: which service account gets which role.

use serde_json::{Value, json};

use super::state::{Association, Cluster, ClusterId};
use super::{AwsError, Eks, Request, again, in_use, invalid, invalid_request, not_found, now, uuid};

impl Eks {
    pub(super) async fn create_pod_identity_association(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        self.state().cluster(&id)?;
        if request.input.get("targetRoleArn").is_some() {
            return Err(invalid_request("The local cloud's associations do not go on to another role."));
        }
        self.lets_pods_in(&id, request.text("roleArn")).await?;
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        let input = &request.input;
        let same = |association: &&Association| {
            association.view["namespace"] == input["namespace"]
                && association.view["serviceAccount"] == input["serviceAccount"]
        };
        if let Some(first) = cluster.associations.values().find(same) {
            let taken =
                in_use(format!("Association already exists: {}", first.view["associationId"].as_str().unwrap_or("")));
            let view = json!({"association": first.view});
            return again(&first.request, input, view, taken);
        }
        let view = cluster.associate(&id, input, None);
        self.config.changes.record(view["associationArn"].as_str().unwrap_or_default(), None);
        Ok(json!({"association": view}))
    }

    /// Leads an association to another role. Running pods keep the credentials that they have.
    pub(super) async fn update_pod_identity_association(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        let role_arn = request.input.get("roleArn").and_then(Value::as_str);
        if let Some(role_arn) = role_arn {
            self.lets_pods_in(&id, role_arn).await?;
        }
        let mut state = self.state();
        let associations = &mut state.cluster(&id)?.associations;
        let association = associations.get_mut(request.text("associationId")).ok_or_else(|| absent(request))?;
        let arn = association.view["associationArn"].as_str().unwrap_or_default();
        self.config.changes.record(arn, Some(association.view.clone()));
        if let Some(role_arn) = role_arn {
            association.view["roleArn"] = json!(role_arn);
        }
        association.view["modifiedAt"] = json!(now());
        Ok(json!({"association": association.view}))
    }

    /// EKS looks at the role before it takes an association.
    pub(super) async fn lets_pods_in(&self, id: &ClusterId, role_arn: &str) -> Result<(), AwsError> {
        let role = self.role(id, role_arn).await?;
        let role = role.ok_or_else(|| invalid("Role provided in the request does not exist."))?;
        if role.trusts("pods.eks.amazonaws.com") {
            return Ok(());
        }
        let message =
            "Trust policy of the role provided is invalid. Follow the official documentation to resolve the issue.";
        Err(invalid(message))
    }

    pub(super) fn describe_pod_identity_association(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let associations = &state.cluster(&request.cluster())?.associations;
        associations
            .get(request.text("associationId"))
            .map(|association| json!({"association": association.view}))
            .ok_or_else(|| absent(request))
    }

    pub(super) fn list_pod_identity_associations(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let wanted = |member: &str, view: &Value| request.input.get(member).is_none_or(|value| view[member] == *value);
        let summaries: Vec<Value> = state
            .cluster(&request.cluster())?
            .associations
            .values()
            .filter(|a| wanted("namespace", &a.view) && wanted("serviceAccount", &a.view))
            .map(|association| {
                let members = ["clusterName", "namespace", "serviceAccount", "associationArn", "associationId"];
                members.into_iter().map(|name| (name.to_owned(), association.view[name].clone())).collect()
            })
            .collect();
        request.page("associations", &summaries)
    }

    pub(super) fn delete_pod_identity_association(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let associations = &mut state.cluster(&request.cluster())?.associations;
        let removed = associations.remove(request.text("associationId")).ok_or_else(|| absent(request))?;
        Ok(json!({"association": removed.view}))
    }

    /// The association of a service account, as far as `by` (the webhook, EKS Auth) has heard of it.
    pub(super) fn association(
        &self,
        by: &str,
        id: &ClusterId,
        namespace: &str,
        account: &str,
    ) -> Result<Option<Value>, AwsError> {
        let mut state = self.state();
        let views = state.cluster(id)?.associations.values().map(|association| &association.view);
        let mut of_account = views.filter(|view| view["namespace"] == namespace && view["serviceAccount"] == account);
        let changes = &self.config.changes;
        Ok(of_account.find_map(|view| changes.seen(view["associationArn"].as_str()?, by, view.clone())))
    }
}

impl Cluster {
    /// Makes an association of a service account with a role, of an add-on's where it has an owner; answers its shape.
    fn associate(&mut self, id: &ClusterId, input: &Value, owner: Option<&str>) -> Value {
        let association_id = format!("a-{}", &uuid().replace('-', "")[..17]);
        let mut view = json!({
            "clusterName": id.name, "namespace": input["namespace"], "serviceAccount": input["serviceAccount"],
            "roleArn": input["roleArn"], "associationId": association_id,
            "tags": input.get("tags").cloned().unwrap_or_else(|| json!({})), "createdAt": now(), "modifiedAt": now(),
            "associationArn": format!(
                "arn:aws:eks:{}:{}:podidentityassociation/{}/{association_id}", id.region, id.account, id.name
            ),
            "disableSessionTags": input["disableSessionTags"].as_bool().unwrap_or(false),
        });
        if let Some(owner) = owner {
            view["ownerArn"] = json!(owner);
        }
        let association = Association { view: view.clone(), request: input.clone() };
        self.associations.insert(association_id, association);
        view
    }

    /// Makes an add-on's associations those of a request; answers their ARNs. None in the request changes nothing.
    pub(super) fn own(&mut self, id: &ClusterId, owner: &str, asked: &Value) -> Option<Vec<Value>> {
        let asked = asked.as_array()?;
        self.associations.retain(|_, association| association.view["ownerArn"] != owner);
        let arns = asked.iter().map(|one| {
            let input = json!({"namespace": "kube-system", "serviceAccount": one["serviceAccount"],
                "roleArn": one["roleArn"]});
            self.associate(id, &input, Some(owner))["associationArn"].clone()
        });
        Some(arns.collect())
    }
}

fn absent(request: &Request) -> AwsError {
    not_found(format!("Association not found: {}", request.text("associationId")))
}
