//! Add-ons: objects that EKS keeps in a cluster's kube-system, and how they fare.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::state::{Addon, ClusterId};
use super::updates::Subject;
use super::versions::{AddonKind, Workload};
use super::{AwsError, Eks, Request, again, in_use, invalid, invalid_request, not_found, now, objects, uuid, versions};

/// How long EKS says CREATING or UPDATING at least.
const CREATION: Duration = Duration::from_secs(45);
/// How long a roll-out may take before the add-on is called DEGRADED.
const PATIENCE: Duration = Duration::from_mins(3);
/// How long an add-on that is rolled out may lack replicas before it is called DEGRADED. AWS does not say; nodes come and
/// go here at Kubernetes' own pace, and one that does is no illness.
const LACKING: Duration = Duration::from_mins(15);
/// From DELETING until the add-on is gone.
const DELETION: Duration = Duration::from_secs(30);
/// Add-ons that EKS installs, unmanaged, into a cluster that does not ask otherwise.
const SELF_MANAGED: &[&str] = &["vpc-cni", "kube-proxy", "coredns"];
/// The account of EKS's images in most regions.
const REGISTRY: &str = "602401143452.dkr.ecr";

impl Eks {
    pub(super) async fn create_addon(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        self.check_account_role(&id, request).await?;
        let name = request.text("addonName");
        let kind = versions::addon(name)
            .ok_or_else(|| invalid(format!("Addon {name} specified is not supported for the cluster's version")))?;
        self.check_identities(&id, request).await?;
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        if let Some(first) = cluster.addons.get(name) {
            return again(
                &first.request,
                &request.input,
                json!({"addon": first.view}),
                in_use("Addon already exists."),
            );
        }
        if !matches!(cluster.status(), "ACTIVE" | "UPDATING") {
            let message = format!("Addon {name} cannot be created: cluster {} is {}", id.name, cluster.status());
            return Err(invalid_request(message));
        }
        let version = fitting_version(kind, request, &cluster.view["version"])?;
        let mut view = json!({
            "addonName": name,
            "clusterName": id.name,
            "status": "CREATING",
            "addonVersion": version,
            "health": {"issues": []},
            "addonArn": format!("arn:aws:eks:{}:{}:addon/{}/{name}/{}", id.region, id.account, id.name, uuid()),
            "createdAt": now(),
            "modifiedAt": now(),
            "tags": request.tags(),
            "namespaceConfig": {"namespace": "kube-system"},
        });
        for member in ["serviceAccountRoleArn", "configurationValues"] {
            if let Some(value) = request.input.get(member) {
                view[member] = value.clone();
            }
        }
        let owner = view["addonArn"].as_str().unwrap_or_default().to_owned();
        if let Some(arns) = cluster.own(&id, &owner, &request.input["podIdentityAssociations"]) {
            view["podIdentityAssociations"] = json!(arns);
        }
        let addon = Addon {
            view: view.clone(),
            request: request.input.clone(),
            since: Instant::now(),
            short: None,
            refusal: None,
        };
        cluster.addons.insert(name.to_owned(), addon);
        drop(state);
        self.roll_out(id, kind);
        Ok(json!({"addon": view}))
    }

    /// A role that an add-on's service account is to get has to be there.
    async fn check_account_role(&self, id: &ClusterId, request: &Request) -> Result<(), AwsError> {
        let Some(role) = request.input["serviceAccountRoleArn"].as_str() else { return Ok(()) };
        match self.role(id, role).await? {
            Some(_) => Ok(()),
            None => Err(invalid("Role provided in the request does not exist.")),
        }
    }

    pub(super) async fn describe_addon(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        let name = request.text("addonName");
        let (rolling, admin) = {
            let mut state = self.state();
            let cluster = state.cluster(&id)?;
            let admin = cluster.plane.as_ref().map(|plane| plane.admin.clone());
            let addon = cluster.addon(name)?;
            (addon.view["status"] != "DELETING" && addon.since.elapsed() >= self.config.clock.real(CREATION), admin)
        };
        if let (true, Some(admin), Some(kind)) = (rolling, admin, versions::addon(name)) {
            let shortage = shortage(&admin, kind).await;
            self.judge(&id, name, shortage)?;
        }
        let mut state = self.state();
        Ok(json!({"addon": state.cluster(&id)?.addon(name)?.view}))
    }

    /// An add-on is what its roll-out is: ACTIVE with enough replicas, DEGRADED without for too long.
    fn judge(&self, id: &ClusterId, name: &str, shortage: Option<String>) -> Result<(), AwsError> {
        let patience = self.config.clock.real(PATIENCE);
        let mut state = self.state();
        let cluster = state.cluster(id)?;
        let addon = cluster.addon(name)?;
        let refused = addon.refusal.clone().map(|reason| ("ConfigurationConflict", reason));
        let trouble = refused.or_else(|| shortage.map(|shortage| ("InsufficientNumberOfReplicas", shortage)));
        let settled = matches!(addon.view["status"].as_str(), Some("ACTIVE" | "DEGRADED"));
        let lacking = self.config.clock.real(LACKING);
        match trouble {
            None => {
                addon.short = None;
                addon.view["status"] = json!("ACTIVE");
                addon.view["health"] = json!({"issues": []});
                cluster.end_updates(Subject::Addon(name), "Successful");
            }
            Some(_) if settled && addon.short.get_or_insert_with(Instant::now).elapsed() < lacking => {}
            Some((code, message)) if settled || addon.since.elapsed() >= patience => {
                addon.view["status"] = json!("DEGRADED");
                addon.view["health"] = json!({"issues": [{"code": code, "message": message, "resourceIds": []}]});
                cluster.end_updates(Subject::Addon(name), "Failed");
            }
            Some(_) => {}
        }
        Ok(())
    }

    pub(super) fn list_addons(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let names: Vec<Value> = state.cluster(&request.cluster())?.addons.keys().map(|name| json!(name)).collect();
        request.page("addons", &names)
    }

    pub(super) async fn update_addon(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        self.check_account_role(&id, request).await?;
        let name = request.text("addonName");
        self.check_identities(&id, request).await?;
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        if let Some(update) = cluster.update_of(&request.input) {
            return Ok(json!({"update": update}));
        }
        let minor = cluster.view["version"].clone();
        let addon = cluster.addon(name)?;
        let kind = versions::addon(name).ok_or_else(|| not_found(format!("Addon {name} is not supported")))?;
        let status = addon.view["status"].as_str().unwrap_or_default();
        if !matches!(status, "ACTIVE" | "DEGRADED") {
            return Err(in_use(format!("Addon {name} cannot be updated as it is currently in {status} state")));
        }
        let mut params = Vec::new();
        if request.input.get("addonVersion").is_some() {
            let version = fitting_version(kind, request, &minor)?;
            params.push(("AddonVersion", version.clone()));
            addon.view["addonVersion"] = json!(version);
        }
        for (member, param) in
            [("serviceAccountRoleArn", "ServiceAccountRoleArn"), ("configurationValues", "ConfigurationValues")]
        {
            if let Some(value) = request.input.get(member) {
                params.push((param, value.as_str().unwrap_or_default().to_owned()));
                addon.view[member] = value.clone();
            }
        }
        let owner = addon.view["addonArn"].as_str().unwrap_or_default().to_owned();
        let bound = cluster.own(&id, &owner, &request.input["podIdentityAssociations"]);
        let addon = cluster.addon(name)?;
        if let Some(arns) = bound {
            addon.view["podIdentityAssociations"] = json!(arns);
        }
        addon.view["status"] = json!("UPDATING");
        addon.view["modifiedAt"] = now();
        addon.since = Instant::now();
        addon.short = None;
        addon.refusal = None;
        let update = cluster.begin_update(Subject::Addon(name), "AddonUpdate", &params, &request.input);
        drop(state);
        self.roll_out(id, kind);
        Ok(json!({"update": update}))
    }

    pub(super) fn delete_addon(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        let name = request.text("addonName").to_owned();
        let preserve = request.input["preserve"] == true;
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        let admin = cluster.plane.as_ref().map(|plane| plane.admin.clone());
        let region = id.region.clone();
        let addon = cluster.addon(&name)?;
        addon.view["status"] = json!("DELETING");
        let view = addon.view.clone();
        drop(state);
        let (this, clock) = (self.this.clone(), self.config.clock);
        let version = view["addonVersion"].as_str().unwrap_or_default().to_owned();
        self.go_on(async move {
            if let (false, Some(admin), Some(kind)) = (preserve, admin, versions::addon(&name))
                && let Err(error) = objects::delete(&admin, &manifests(kind, &version, &region)).await
            {
                tracing::warn!(addon = name, "{error:#}");
            }
            clock.sleep(DELETION).await;
            let Some(eks) = this.upgrade() else { return };
            if let Ok(cluster) = eks.state().cluster(&id)
                && let Some(removed) = cluster.addons.remove(&name)
            {
                cluster.own(&id, removed.view["addonArn"].as_str().unwrap_or_default(), &json!([]));
            }
        });
        Ok(json!({"addon": view}))
    }

    /// Refuses roles that an add-on's pods could not have.
    async fn check_identities(&self, id: &ClusterId, request: &Request) -> Result<(), AwsError> {
        for association in request.input["podIdentityAssociations"].as_array().into_iter().flatten() {
            self.lets_pods_in(id, association["roleArn"].as_str().unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// Applies an add-on's objects to its cluster.
    fn roll_out(&self, id: ClusterId, kind: &'static AddonKind) {
        let this = self.this.clone();
        self.go_on(async move {
            let Some(eks) = this.upgrade() else { return };
            let found = eks.state().cluster(&id).ok().and_then(|cluster| {
                let version = cluster.addons.get(kind.name)?.view["addonVersion"].as_str()?.to_owned();
                Some((cluster.plane.as_ref()?.admin.clone(), version))
            });
            let Some((admin, version)) = found else { return };
            let applied = objects::apply(&admin, &manifests(kind, &version, &id.region)).await;
            if let (Err(error), Ok(cluster)) = (applied, eks.state().cluster(&id))
                && let Ok(addon) = cluster.addon(kind.name)
            {
                addon.refusal = Some(format!("{error:#}"));
            }
        });
    }
}

/// The version asked for, or the default; refused where it does not fit the cluster's.
fn fitting_version(kind: &AddonKind, request: &Request, minor: &Value) -> Result<String, AwsError> {
    let fitting = kind.versions_for(minor.as_str().unwrap_or_default());
    match request.input["addonVersion"].as_str() {
        None => fitting.into_iter().next().ok_or_else(|| invalid("Addon has no version for this cluster")),
        Some(asked) if fitting.iter().any(|version| version == asked) => Ok(asked.to_owned()),
        Some(asked) => Err(invalid(format!("Addon version specified is not supported: {} {asked}", kind.name))),
    }
}

/// What an add-on's workload lacks; nothing where it runs as it should.
async fn shortage(admin: &kube::Client, kind: &AddonKind) -> Option<String> {
    let (sort, name, wanted, ready) = match kind.workload {
        Workload::DaemonSet(name) => ("DaemonSet", name, "desiredNumberScheduled", "numberReady"),
        Workload::Deployment(name) => ("Deployment", name, "replicas", "readyReplicas"),
    };
    let object = match objects::get(admin, sort, "kube-system", name).await {
        Ok(Some(object)) => object,
        Ok(None) => return Some(format!("{sort} {name} is not there")),
        Err(error) => return Some(format!("{error:#}")),
    };
    let status = &object["status"];
    if status["observedGeneration"].as_i64() < object["metadata"]["generation"].as_i64() {
        return Some(format!("{sort} {name} was not looked at yet"));
    }
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let wanted = match kind.workload {
        Workload::DaemonSet(_) => number(&status[wanted]),
        Workload::Deployment(_) => number(&object["spec"]["replicas"]),
    };
    let ready = number(&status[ready]);
    (ready < wanted).then(|| {
        format!("The add-on is unhealthy because it doesn't have the desired number of replicas: {ready} of {wanted} are ready")
    })
}

/// The objects of the add-ons that EKS installs by itself.
pub(super) fn self_managed(minor: &str, region: &str) -> Vec<Value> {
    let kinds = SELF_MANAGED.iter().filter_map(|name| versions::addon(name));
    kinds
        .flat_map(|kind| {
            let version = kind.versions_for(minor).into_iter().next().unwrap_or_default();
            manifests(kind, &version, region)
        })
        .collect()
}

/// The objects of one add-on.
fn manifests(kind: &AddonKind, version: &str, region: &str) -> Vec<Value> {
    let (name, daemon) = match kind.workload {
        Workload::DaemonSet(name) => (name, true),
        Workload::Deployment(name) => (name, false),
    };
    let labels = json!({"app.kubernetes.io/name": kind.name, "app.kubernetes.io/managed-by": "EKS", "k8s-app": name});
    let mut pod = json!({
        "serviceAccountName": kind.service_account,
        "priorityClassName": if daemon { "system-node-critical" } else { "system-cluster-critical" },
        "containers": [{
            "name": name,
            "image": format!("{REGISTRY}.{region}.amazonaws.com/{}:{version}", kind.image),
            "resources": {"requests": {"cpu": if daemon { "25m" } else { "100m" }, "memory": "64Mi"}},
        }],
        "tolerations": if daemon {
            json!([{"operator": "Exists"}])
        } else {
            json!([{"key": "CriticalAddonsOnly", "operator": "Exists"}])
        },
    });
    if daemon {
        pod["hostNetwork"] = json!(true);
    }
    let mut spec = json!({
        "selector": {"matchLabels": {"k8s-app": name}},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    });
    if !daemon {
        spec["replicas"] = json!(2);
    }
    let metadata = |name: &str| json!({"name": name, "namespace": "kube-system", "labels": labels});
    let mut objects = Vec::new();
    if kind.service_account != "default" {
        objects.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(kind.service_account)}));
    }
    let workload = if daemon { "DaemonSet" } else { "Deployment" };
    objects.push(json!({"apiVersion": "apps/v1", "kind": workload, "metadata": metadata(name), "spec": spec}));
    objects
}
