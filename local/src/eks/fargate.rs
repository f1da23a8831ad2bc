//! Fargate profiles: who may run pods without nodes. No pod runs on one here; they are what a cluster's deletion waits for.

use std::time::Duration;

use serde_json::{Value, json};

use super::state::{Cluster, FargateProfile};
use super::{AwsError, Eks, Request, again, in_use, invalid, invalid_request, not_found, now, uuid};

/// From CREATING to ACTIVE.
const CREATION: Duration = Duration::from_mins(1);
/// From DELETING until a profile is gone.
const DELETION: Duration = Duration::from_mins(1);

impl Eks {
    pub(super) async fn create_fargate_profile(&self, request: &Request) -> Result<Value, AwsError> {
        let (id, name) = (request.cluster(), request.text("fargateProfileName").to_owned());
        let role = request.text("podExecutionRoleArn");
        let Some(role) = self.role(&id, role).await? else {
            return Err(invalid(format!("Role {role} does not exist.")));
        };
        if !role.trust.to_string().contains("eks-fargate-pods.amazonaws.com") {
            let message = "Misconfigured PodExecutionRole Trust Policy; Please add the eks-fargate-pods.amazonaws.com \
                           Service Principal";
            return Err(invalid(message));
        }
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        if let Some(first) = cluster.fargate_profiles.get(&name) {
            let taken = in_use(format!("A Fargate Profile already exists with this name in this cluster: {name}"));
            return again(&first.request, &request.input, json!({"fargateProfile": first.view}), taken);
        }
        if cluster.status() != "ACTIVE" {
            return Err(invalid_request(format!("Cluster '{}' is not in ACTIVE status", id.name)));
        }
        cluster.waits_for_another("Create", &name)?;
        let subnets =
            request.input.get("subnets").filter(|subnets| subnets.as_array().is_some_and(|all| !all.is_empty()));
        let subnets = subnets.unwrap_or(&cluster.view["resourcesVpcConfig"]["subnetIds"]);
        let arn = format!("arn:aws:eks:{}:{}:fargateprofile/{}/{name}/{}", id.region, id.account, id.name, uuid());
        let view = json!({
            "fargateProfileName": name, "fargateProfileArn": arn, "clusterName": id.name, "createdAt": now(),
            "podExecutionRoleArn": role.arn, "subnets": subnets, "selectors": request.input["selectors"],
            "status": "CREATING", "tags": request.tags(), "health": {"issues": []},
        });
        let profile = FargateProfile { view: view.clone(), request: request.input.clone() };
        cluster.fargate_profiles.insert(name.clone(), profile);
        drop(state);
        let (this, clock) = (self.this.clone(), self.config.clock);
        self.go_on(async move {
            clock.sleep(CREATION).await;
            let Some(eks) = this.upgrade() else { return };
            if let Ok(profile) = eks.state().cluster(&id).and_then(|cluster| cluster.fargate_profile(&name)) {
                profile.view["status"] = json!("ACTIVE");
            }
        });
        Ok(json!({"fargateProfile": view}))
    }

    pub(super) fn describe_fargate_profile(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let profile = state.cluster(&request.cluster())?.fargate_profile(request.text("fargateProfileName"))?;
        Ok(json!({"fargateProfile": profile.view}))
    }

    pub(super) fn list_fargate_profiles(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let names = state.cluster(&request.cluster())?.fargate_profiles.keys();
        request.page("fargateProfileNames", &names.map(|name| json!(name)).collect::<Vec<_>>())
    }

    pub(super) fn delete_fargate_profile(&self, request: &Request) -> Result<Value, AwsError> {
        let (id, name) = (request.cluster(), request.text("fargateProfileName").to_owned());
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        let profile = cluster.fargate_profile(&name)?;
        if profile.view["status"] == "DELETING" {
            return Ok(json!({"fargateProfile": profile.view}));
        }
        cluster.waits_for_another("Delete", &name)?;
        let profile = cluster.fargate_profile(&name)?;
        profile.view["status"] = json!("DELETING");
        let view = profile.view.clone();
        drop(state);
        let (this, clock) = (self.this.clone(), self.config.clock);
        self.go_on(async move {
            clock.sleep(DELETION).await;
            let Some(eks) = this.upgrade() else { return };
            if let Ok(cluster) = eks.state().cluster(&id) {
                cluster.fargate_profiles.remove(&name);
            }
        });
        Ok(json!({"fargateProfile": view}))
    }
}

impl Cluster {
    /// A Fargate profile, or EKS's error.
    fn fargate_profile(&mut self, name: &str) -> Result<&mut FargateProfile, AwsError> {
        self.fargate_profiles
            .get_mut(name)
            .ok_or_else(|| not_found(format!("No Fargate Profile found with name: {name}.")))
    }

    /// Profiles come and go one at a time, and not while the cluster is changed.
    fn waits_for_another(&self, doing: &str, name: &str) -> Result<(), AwsError> {
        let cluster = self.view["name"].as_str().unwrap_or_default();
        let refused = |what: String| {
            in_use(format!("Cannot {doing} Fargate Profile {name} because cluster {cluster} currently has {what}"))
        };
        if self.status() == "UPDATING" {
            return Err(refused("an update in progress".to_owned()));
        }
        let busy = self.fargate_profiles.iter().find(|(_, other)| other.view["status"] != "ACTIVE");
        busy.map_or(Ok(()), |(other, profile)| {
            Err(refused(format!(
                "Fargate profile {other} in status {}",
                profile.view["status"].as_str().unwrap_or_default()
            )))
        })
    }
}
