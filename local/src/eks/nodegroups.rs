//! Managed node groups: EC2 instances that join the cluster, as many as are asked for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::clusters::texts;
use super::state::{ClusterId, Nodegroup};
use super::updates::{CONFIGURATION_UPDATE, Subject};
use super::{AwsError, Eks, Request, again, amazon, in_use, invalid, invalid_request, now, objects, uuid, versions};
use crate::gateway::call::Aws;

/// From CREATING to ACTIVE, if the nodes are Ready by then.
const CREATION: Duration = Duration::from_mins(3);
/// From DELETING until the group is gone.
const DELETION: Duration = Duration::from_mins(2);
/// How long nodes may take to become Ready.
const PATIENCE: Duration = Duration::from_mins(20);
/// Machines boot and join in real time, however fast the simulated passes.
const LEAST_PATIENCE: Duration = Duration::from_mins(1);
/// How often nodes are looked at while they are waited for.
const LOOK: Duration = Duration::from_millis(250);

/// The AMI types that the local cloud has images for, with the architecture by EC2's name and by the image's.
const AMI_TYPES: [(&str, &str); 2] = [("AL2023_ARM_64_STANDARD", "arm64"), ("AL2023_x86_64_STANDARD", "x86_64")];

/// Something that a node group's health tells.
struct Issue {
    code: &'static str,
    message: String,
    resources: Vec<String>,
}

/// Managed node groups in a cluster (EKS service quotas).
const LIMIT: usize = 30;

impl Eks {
    pub(super) async fn create_nodegroup(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        let name = request.text("nodegroupName");
        let cluster_view = {
            let mut state = self.state();
            let cluster = state.cluster(&id)?;
            if let Some(first) = cluster.nodegroups.get(name) {
                let taken = in_use(format!("NodeGroup already exists with name {name} and cluster name {}", id.name));
                return again(&first.request, &request.input, json!({"nodegroup": first.view}), taken);
            }
            if cluster.nodegroups.len() >= LIMIT {
                let message = format!("You have reached the limit of {LIMIT} node groups in cluster {}.", id.name);
                return Err(AwsError::new(400, "ResourceLimitExceededException", message));
            }
            if !matches!(cluster.status(), "ACTIVE" | "UPDATING") {
                return Err(invalid_request(format!("Cluster '{}' is not in ACTIVE status", id.name)));
            }
            cluster.view.clone()
        };
        let aws = self.aws(&id.account, &id.region);
        let view = self.new_group(&aws, &id, request, &cluster_view).await?;
        if cluster_view["accessConfig"]["authenticationMode"] != "CONFIG_MAP" {
            self.node_entry(&id, request.text("nodeRole")).await?;
        }
        let instance_profile = format!("eks-{}", uuid());
        {
            let mut state = self.state();
            let cluster = state.cluster(&id)?;
            let group = Nodegroup { view: view.clone(), request: request.input.clone(), instance_profile };
            cluster.nodegroups.insert(name.to_owned(), group);
        }
        let (this, clock, name) = (self.this.clone(), self.config.clock, name.to_owned());
        self.go_on(async move {
            let Some(eks) = this.upgrade() else { return };
            let (made, ()) = tokio::join!(eks.bring_up(&aws, &id, &name, true), clock.sleep(CREATION));
            eks.conclude(&id, &name, made, "CREATE_FAILED");
        });
        Ok(json!({"nodegroup": view}))
    }

    /// The `nodegroup` shape of what a request asks for, checked.
    async fn new_group(
        &self,
        aws: &Aws,
        id: &ClusterId,
        request: &Request,
        cluster: &Value,
    ) -> Result<Value, AwsError> {
        let input = &request.input;
        if input.get("launchTemplate").is_some() || input.get("remoteAccess").is_some() {
            return Err(invalid_request("The local cloud's node groups take neither launchTemplate nor remoteAccess."));
        }
        let types = Some(texts(&input["instanceTypes"])).filter(|types| !types.is_empty());
        let types = types.unwrap_or_else(|| vec!["t3.medium".to_owned()]);
        let architectures = amazon::architectures(aws, &types).await?;
        let supports = |wanted: &str, kind: &String| {
            architectures.get(kind).is_some_and(|all| all.iter().any(|architecture| architecture == wanted))
        };
        if let Some(unknown) = types.iter().find(|kind| !architectures.contains_key(*kind)) {
            return Err(invalid(format!("The following supplied instance types do not exist: [{unknown}]")));
        }
        let ami = match input["amiType"].as_str() {
            Some(asked) => AMI_TYPES
                .into_iter()
                .find(|(ami, _)| *ami == asked)
                .ok_or_else(|| invalid_request(format!("The local cloud has no images for the AMI type {asked}.")))?,
            None => AMI_TYPES[usize::from(!supports("arm64", &types[0]))],
        };
        if let Some(other) = types.iter().find(|kind| !supports(ami.1, kind)) {
            return Err(invalid(format!("[{other}] is not a valid instance type for requested amiType {}", ami.0)));
        }
        let role_arn = request.text("nodeRole");
        let role = self.role(id, role_arn).await?.ok_or_else(|| {
            let name = role_arn.rsplit('/').next().unwrap_or(role_arn);
            invalid(format!(
                "The role with name {name} cannot be found. (Service: AmazonIdentityManagement; Status Code: 404; \
                 Error Code: NoSuchEntity; Request ID: {}; Proxy: null)",
                uuid()
            ))
        })?;
        if !role.trusts("ec2.amazonaws.com") {
            return Err(invalid(format!(
                "Following required service principals [ec2.amazonaws.com] were not found in the trust relationships \
                 of nodeRole {role_arn}"
            )));
        }
        let subnets = amazon::subnets(aws, &texts(&input["subnets"])).await?;
        let vpc = &cluster["resourcesVpcConfig"]["vpcId"];
        if let Some(foreign) = subnets.iter().find(|subnet| *vpc != subnet.vpc.as_str()) {
            return Err(invalid(format!("Subnet {} is not in the cluster's VPC {vpc}", foreign.id)));
        }
        if subnets.is_empty() {
            return Err(invalid("subnets must not be empty"));
        }
        let version = input["version"].as_str().or(cluster["version"].as_str()).unwrap_or(versions::DEFAULT_VERSION);
        let kubernetes = versions::kubernetes(version)
            .ok_or_else(|| invalid(format!("unsupported Kubernetes version {version}")))?;
        let name = request.text("nodegroupName");
        let group_id = uuid();
        let mut view = json!({
            "nodegroupName": name,
            "nodegroupArn":
                format!("arn:aws:eks:{}:{}:nodegroup/{}/{name}/{group_id}", id.region, id.account, id.name),
            "clusterName": id.name,
            "version": version,
            "releaseVersion": format!("{}-20261115", kubernetes.patch),
            "createdAt": now(),
            "modifiedAt": now(),
            "status": "CREATING",
            "capacityType": input["capacityType"].as_str().unwrap_or("ON_DEMAND"),
            "scalingConfig": scaling(&json!({"minSize": 1, "maxSize": 2, "desiredSize": 2}), &input["scalingConfig"])?,
            "instanceTypes": types,
            "subnets": input["subnets"],
            "amiType": ami.0,
            "nodeRole": role_arn,
            "labels": input.get("labels").cloned().unwrap_or_else(|| json!({})),
            "resources": {"autoScalingGroups": [{"name": format!("eks-{name}-{group_id}")}]},
            "diskSize": input["diskSize"].as_u64().unwrap_or(20),
            "health": {"issues": []},
            "updateConfig": input.get("updateConfig").cloned().unwrap_or_else(|| json!({"maxUnavailable": 1})),
            "tags": request.tags(),
        });
        for member in ["taints", "nodeRepairConfig"] {
            if let Some(value) = input.get(member) {
                view[member] = value.clone();
            }
        }
        Ok(view)
    }

    /// Makes as many instances run as the group wants and waits until their nodes are Ready.
    async fn bring_up(&self, aws: &Aws, id: &ClusterId, name: &str, new: bool) -> Result<(), Issue> {
        let (view, profile, security_group, admin) = {
            let mut state = self.state();
            let cluster = state.cluster(id).map_err(internal)?;
            let security_group = cluster.view["resourcesVpcConfig"]["clusterSecurityGroupId"].clone();
            let admin = cluster.plane.as_ref().map(|plane| plane.admin.clone());
            let group = cluster.nodegroup(name).map_err(internal)?;
            (group.view.clone(), group.instance_profile.clone(), security_group, admin)
        };
        if new {
            let role = view["nodeRole"].as_str().unwrap_or_default();
            amazon::create_instance_profile(aws, &profile, role).await.map_err(|refusal| Issue {
                code: "IamInstanceProfileNotFound",
                message: refusal.to_string(),
                resources: vec![profile.clone()],
            })?;
        }
        let wanted = desired(&view);
        let deadline = Instant::now() + self.config.clock.real(PATIENCE).max(LEAST_PATIENCE);
        let security_group = security_group.as_str().unwrap_or_default();
        while let Err(refusal) = self.scale(aws, id, &view, &profile, security_group).await {
            // EC2 hears of a new profile later than EKS, which made it.
            let unheard_of = refusal.message.contains("Invalid IAM Instance Profile name");
            if !unheard_of || Instant::now() > deadline {
                let group = view["resources"]["autoScalingGroups"][0]["name"].as_str().unwrap_or_default();
                return Err(Issue {
                    code: "AsgInstanceLaunchFailures",
                    message: format!("Could not launch On-Demand Instances. {} - {}", refusal.code, refusal.message),
                    resources: vec![group.to_owned()],
                });
            }
            tokio::time::sleep(LOOK).await;
        }
        let Some(admin) = admin else { return Ok(()) };
        loop {
            let nodes = objects::group_nodes(&admin, name).await.unwrap_or_default();
            if nodes.iter().filter(|node| objects::is_ready(node)).count() >= wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                let instances = amazon::group_instances(aws, &id.name, name).await.unwrap_or_default();
                return Err(Issue {
                    code: "NodeCreationFailure",
                    message: "Instances failed to join the kubernetes cluster".to_owned(),
                    resources: instances.into_iter().map(|instance| instance.id).collect(),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Runs or terminates instances until there are as many as wanted, evenly over the subnets.
    async fn scale(
        &self,
        aws: &Aws,
        id: &ClusterId,
        view: &Value,
        profile: &str,
        security_group: &str,
    ) -> Result<(), AwsError> {
        let name = view["nodegroupName"].as_str().unwrap_or_default();
        let alive = amazon::group_instances(aws, &id.name, name).await?;
        let wanted = desired(view);
        if alive.len() > wanted {
            let spare: Vec<String> = alive.into_iter().skip(wanted).map(|instance| instance.id).collect();
            return amazon::terminate(aws, &spare).await;
        }
        let subnets = texts(&view["subnets"]);
        let places = spread(&subnets, &alive, wanted - alive.len());
        if places.is_empty() {
            return Ok(());
        }
        let architecture = if view["amiType"] == AMI_TYPES[0].0 { "arm64" } else { "x86_64" };
        let version = view["version"].as_str().unwrap_or_default();
        let image = amazon::recommended_image(aws, version, architecture).await?;
        let mut tags = BTreeMap::from([
            ("eks:cluster-name".to_owned(), id.name.clone()),
            ("eks:nodegroup-name".to_owned(), name.to_owned()),
            (format!("kubernetes.io/cluster/{}", id.name), "owned".to_owned()),
        ]);
        // Of all tags of a node group, only these reach its instances, through the group's Auto Scaling group.
        let group = view["resources"]["autoScalingGroups"][0]["name"].as_str().unwrap_or_default();
        tags.insert("aws:autoscaling:groupName".to_owned(), group.to_owned());
        let user_data = STANDARD.encode(user_data(&id.name, view, &image));
        for (subnet, count) in places {
            let new = amazon::NewInstances {
                image: &image,
                instance_type: view["instanceTypes"][0].as_str().unwrap_or_default(),
                count,
                subnet: &subnet,
                security_group,
                instance_profile: profile,
                spot: view["capacityType"] == "SPOT",
                user_data: &user_data,
                tags: &tags,
            };
            amazon::run_instances(aws, &new).await?;
        }
        Ok(())
    }

    /// Writes down how bringing a group up ended.
    fn conclude(&self, id: &ClusterId, name: &str, made: Result<(), Issue>, failed: &str) {
        let mut state = self.state();
        let Ok(cluster) = state.cluster(id) else { return };
        let subject = Subject::Nodegroup(name);
        cluster.end_updates(subject, if made.is_ok() { "Successful" } else { "Failed" });
        let Ok(group) = cluster.nodegroup(name) else { return };
        if group.view["status"] == "DELETING" {
            return;
        }
        group.view["modifiedAt"] = now();
        let (status, issues) = match made {
            Ok(()) => ("ACTIVE", json!([])),
            Err(issue) => {
                tracing::warn!(cluster = id.name, group = name, "{}: {}", issue.code, issue.message);
                (failed, json!([{"code": issue.code, "message": issue.message, "resourceIds": issue.resources}]))
            }
        };
        group.view["status"] = json!(status);
        group.view["health"] = json!({"issues": issues});
    }

    pub(super) fn describe_nodegroup(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let group = state.cluster(&request.cluster())?.nodegroup(request.text("nodegroupName"))?;
        Ok(json!({"nodegroup": group.view}))
    }

    pub(super) fn list_nodegroups(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let names: Vec<Value> = state.cluster(&request.cluster())?.nodegroups.keys().map(|name| json!(name)).collect();
        request.page("nodegroups", &names)
    }

    pub(super) fn update_nodegroup_config(&self, request: &Request) -> Result<Value, AwsError> {
        let (id, name) = (request.cluster(), request.text("nodegroupName").to_owned());
        let input = &request.input;
        if input.get("taints").is_some() {
            return Err(invalid_request("The local cloud does not change the taints of a node group."));
        }
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        if let Some(update) = cluster.update_of(input) {
            return Ok(json!({"update": update}));
        }
        let group = cluster.nodegroup(&name)?;
        let status = group.view["status"].as_str().unwrap_or_default();
        if !matches!(status, "ACTIVE" | "DEGRADED") {
            return Err(in_use(format!("Nodegroup {name} cannot be updated as it is currently {status}")));
        }
        let mut params = Vec::new();
        if let Some(asked) = input.get("scalingConfig") {
            group.view["scalingConfig"] = scaling(&group.view["scalingConfig"], asked)?;
            let sizes = [("MinSize", "minSize"), ("MaxSize", "maxSize"), ("DesiredSize", "desiredSize")];
            params.extend(sizes.map(|(param, member)| (param, group.view["scalingConfig"][member].to_string())));
        }
        if let Some(labels) = input.get("labels") {
            relabel(&mut group.view["labels"], labels);
            params.push(("LabelsToAdd", labels["addOrUpdateLabels"].to_string()));
        }
        for member in ["updateConfig", "nodeRepairConfig"] {
            if let Some(value) = input.get(member) {
                group.view[member] = value.clone();
            }
        }
        group.view["status"] = json!("UPDATING");
        let update = cluster.begin_update(Subject::Nodegroup(&name), "ConfigUpdate", &params, input);
        drop(state);
        let (this, clock, aws) = (self.this.clone(), self.config.clock, self.aws(&id.account, &id.region));
        self.go_on(async move {
            let Some(eks) = this.upgrade() else { return };
            let work = async {
                eks.bring_up(&aws, &id, &name, false).await?;
                eks.label_nodes(&id, &name).await
            };
            let (made, ()) = tokio::join!(work, clock.sleep(CONFIGURATION_UPDATE));
            eks.conclude(&id, &name, made, "DEGRADED");
        });
        Ok(json!({"update": update}))
    }

    /// Puts a group's labels on the nodes that it has.
    async fn label_nodes(&self, id: &ClusterId, name: &str) -> Result<(), Issue> {
        let (labels, admin) = {
            let mut state = self.state();
            let cluster = state.cluster(id).map_err(internal)?;
            let Some(admin) = cluster.plane.as_ref().map(|plane| plane.admin.clone()) else { return Ok(()) };
            (cluster.nodegroup(name).map_err(internal)?.view["labels"].clone(), admin)
        };
        let unreachable = |error: anyhow::Error| Issue {
            code: "ClusterUnreachable",
            message: format!("{error:#}"),
            resources: vec![id.name.clone()],
        };
        let nodes = objects::group_nodes(&admin, name).await.map_err(unreachable)?;
        let labelled: Vec<Value> = nodes
            .iter()
            .map(|node| {
                json!({"apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": node["metadata"]["name"], "labels": labels}})
            })
            .collect();
        objects::apply(&admin, &labelled).await.map_err(unreachable)
    }

    pub(super) fn delete_nodegroup(&self, request: &Request) -> Result<Value, AwsError> {
        let (id, name) = (request.cluster(), request.text("nodegroupName").to_owned());
        let mut state = self.state();
        let group = state.cluster(&id)?.nodegroup(&name)?;
        if group.view["status"] == "DELETING" {
            return Ok(json!({"nodegroup": group.view}));
        }
        group.view["status"] = json!("DELETING");
        let (view, profile) = (group.view.clone(), group.instance_profile.clone());
        drop(state);
        let (this, clock, aws) = (self.this.clone(), self.config.clock, self.aws(&id.account, &id.region));
        let role = view["nodeRole"].as_str().unwrap_or_default().to_owned();
        self.go_on(async move {
            let work = async {
                let alive = amazon::group_instances(&aws, &id.name, &name).await?;
                let ids: Vec<String> = alive.into_iter().map(|instance| instance.id).collect();
                amazon::terminate(&aws, &ids).await?;
                amazon::delete_instance_profile(&aws, &profile, &role).await
            };
            let (ended, ()) = tokio::join!(work, clock.sleep(DELETION));
            let Some(eks) = this.upgrade() else { return };
            let mut state = eks.state();
            let Ok(cluster) = state.cluster(&id) else { return };
            match ended {
                Ok(()) => {
                    cluster.nodegroups.remove(&name);
                }
                Err(refusal) => {
                    if let Ok(group) = cluster.nodegroup(&name) {
                        group.view["status"] = json!("DELETE_FAILED");
                        group.view["health"] = json!({"issues": [
                            {"code": "NodeTerminationFailure", "message": refusal.to_string(), "resourceIds": []}
                        ]});
                    }
                }
            }
        });
        Ok(json!({"nodegroup": view}))
    }
}

fn internal(refusal: AwsError) -> Issue {
    Issue { code: "InternalFailure", message: refusal.message, resources: Vec::new() }
}

fn desired(view: &Value) -> usize {
    view["scalingConfig"]["desiredSize"].as_u64().and_then(|size| usize::try_from(size).ok()).unwrap_or(0)
}

/// A scaling configuration with what is asked laid over what is there.
fn scaling(before: &Value, asked: &Value) -> Result<Value, AwsError> {
    let size = |member: &str| asked[member].as_u64().or_else(|| before[member].as_u64()).unwrap_or(0);
    let (min, max, desired) = (size("minSize"), size("maxSize"), size("desiredSize"));
    if min > max {
        return Err(invalid(format!("Minimum capacity {min} can't be greater than maximum size {max}")));
    }
    if desired < min {
        return Err(invalid(format!("Minimum capacity {min} can't be greater than desired size {desired}")));
    }
    if desired > max {
        return Err(invalid(format!("Desired capacity {desired} can't be greater than max size {max}")));
    }
    Ok(json!({"minSize": min, "maxSize": max, "desiredSize": desired}))
}

/// How many of `more` instances go to which subnet, so that all subnets have about as many.
fn spread(subnets: &[String], alive: &[amazon::Instance], more: usize) -> BTreeMap<String, usize> {
    let count = |subnet: &String| alive.iter().filter(|instance| instance.subnet == *subnet).count();
    let mut there: Vec<(usize, &String)> = subnets.iter().map(|subnet| (count(subnet), subnet)).collect();
    let mut places = BTreeMap::new();
    for _ in 0..more {
        if let Some(emptiest) = there.iter_mut().min_by_key(|(count, _)| *count) {
            emptiest.0 += 1;
            *places.entry(emptiest.1.clone()).or_default() += 1;
        }
    }
    places
}

fn relabel(labels: &mut Value, change: &Value) {
    let Some(labels) = labels.as_object_mut() else { return };
    for (key, value) in change["addOrUpdateLabels"].as_object().into_iter().flatten() {
        labels.insert(key.clone(), value.clone());
    }
    for key in texts(&change["removeLabels"]) {
        labels.remove(&key);
    }
}

/// What a node of the group is told at boot, in nodeadm's form: labels and taints of the kubelet.
fn user_data(cluster: &str, view: &Value, image: &str) -> String {
    let name = view["nodegroupName"].as_str().unwrap_or_default();
    let capacity = view["capacityType"].as_str().unwrap_or_default();
    let own = [
        format!("eks.amazonaws.com/nodegroup-image={image}"),
        format!("eks.amazonaws.com/capacityType={capacity}"),
        format!("eks.amazonaws.com/nodegroup={name}"),
    ];
    let asked = view["labels"].as_object().into_iter().flatten();
    let asked = asked.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let labels: Vec<String> = own.into_iter().chain(asked).collect();
    let taints: Vec<Value> = view["taints"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|taint| {
            let effect = match taint["effect"].as_str() {
                Some("NO_EXECUTE") => "NoExecute",
                Some("PREFER_NO_SCHEDULE") => "PreferNoSchedule",
                _ => "NoSchedule",
            };
            json!({"key": taint["key"], "value": taint["value"].as_str().unwrap_or_default(), "effect": effect})
        })
        .collect();
    // JSON is YAML.
    let taints = Value::Array(taints);
    format!(
        "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"//\"\n\n--//\n\
         Content-Type: application/node.eks.aws\n\n\
         apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  cluster:\n    name: {cluster}\n  kubelet:\n    \
         config:\n      registerWithTaints: {taints}\n    flags:\n    - --node-labels={}\n--//--\n",
        labels.join(",")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn instances_are_spread_over_the_subnets() {
        let subnets = ["a".to_owned(), "b".to_owned()];
        let at = |subnet: &str| amazon::Instance {
            id: "i-1".to_owned(),
            subnet: subnet.to_owned(),
            private_dns_name: String::new(),
        };
        assert_eq!(spread(&subnets, &[], 2), BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]));
        assert_eq!(spread(&subnets, &[at("a")], 1), BTreeMap::from([("b".to_owned(), 1)]));
        assert_eq!(spread(&subnets, &[], 0), BTreeMap::new());
    }

    #[test]
    fn sizes_must_fit_each_other() {
        let before = json!({"minSize": 1, "maxSize": 3, "desiredSize": 2});
        assert_eq!(scaling(&before, &json!({"desiredSize": 3})).unwrap()["desiredSize"], 3);
        assert!(scaling(&before, &json!({"minSize": 3})).unwrap_err().message.contains("desired size 2"));
        assert!(scaling(&before, &json!({"maxSize": 1})).is_err());
    }

    #[test]
    fn nodes_are_told_their_labels_and_taints() {
        let view = json!({"nodegroupName": "core", "capacityType": "ON_DEMAND", "labels": {"team": "shop"},
            "taints": [{"key": "k", "value": "v", "effect": "NO_SCHEDULE"}]});
        let text = user_data("demo", &view, "ami-1");
        let yaml = &text[text.find("apiVersion").unwrap()..text.rfind("--//--").unwrap()];
        let config: Value = serde_saphyr::from_str(yaml).unwrap();
        let kubelet = &config["spec"]["kubelet"];
        assert_eq!(
            kubelet["config"]["registerWithTaints"][0],
            json!({"key": "k", "value": "v", "effect": "NoSchedule"})
        );
        assert_eq!(
            kubelet["flags"][0],
            "--node-labels=eks.amazonaws.com/nodegroup-image=ami-1,eks.amazonaws.com/capacityType=ON_DEMAND,\
             eks.amazonaws.com/nodegroup=core,team=shop"
        );
    }
}
