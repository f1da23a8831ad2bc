//! Clusters: made, described, changed, deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::state::{Cluster, ClusterId};
use super::updates::Subject;
use super::{AwsError, Eks, Request, again, amazon, in_use, invalid, invalid_request, now, uuid, versions};
use super::{access, addons, endpoint, objects};
use crate::kubernetes::{ControlPlane, NewControlPlane};

/// From CREATING to ACTIVE (facts: 8.5 to 10 minutes).
const CREATION: Duration = Duration::from_mins(9);
/// From ACTIVE until the endpoint answers and the issuer's documents are served.
const SILENCE: Duration = Duration::from_secs(30);
/// From DELETING until the cluster is gone.
const DELETION: Duration = Duration::from_mins(3);
/// Clusters in an account and region.
const LIMIT: usize = 100;
/// Zones without control planes, by id: <https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html>.
const REFUSED_ZONES: &[&str] = &["use1-az3", "usw1-az2", "cac1-az3"];
const LOG_TYPES: &[&str] = &["api", "audit", "authenticator", "controllerManager", "scheduler"];

impl Eks {
    pub(super) async fn create_cluster(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        if let Some(answer) = self.made_before(&id, request) {
            return answer;
        }
        let input = &request.input;
        let version = input["version"].as_str().unwrap_or(versions::DEFAULT_VERSION);
        if versions::kubernetes(version).is_none() {
            return Err(invalid(format!("unsupported Kubernetes version {version}")));
        }
        let role_arn = request.text("roleArn");
        let aws = self.aws(&id.account, &id.region);
        let role = self.role(&id, role_arn).await?;
        if !role.is_some_and(|role| role.trusts("eks.amazonaws.com")) {
            return Err(invalid(format!(
                "Role with arn: {role_arn}, could not be assumed because it does not exist or the trusted entity is \
                 not correct"
            )));
        }
        let subnets = amazon::subnets(&aws, &texts(&input["resourcesVpcConfig"]["subnetIds"])).await?;
        let vpc = check_subnets(&id.name, &subnets)?;
        let service_cidr = match input["kubernetesNetworkConfig"]["serviceIpv4Cidr"].as_str() {
            Some(cidr) => checked_service_cidr(cidr)?,
            // EKS takes the one that does not overlap with the VPC's own block.
            None if amazon::vpc_cidr(&aws, &vpc).await?.starts_with("10.") => "172.20.0.0/16".to_owned(),
            None => "10.100.0.0/16".to_owned(),
        };
        let cluster_id = uuid().replace('-', "").to_uppercase();
        let creator = self.creator_entry(&id, request, input).await?;
        let group = amazon::create_security_group(&aws, &id.name, &vpc, &cluster_id).await?;

        let issuer = format!("https://oidc.eks.{}.amazonaws.com/id/{cluster_id}", id.region);
        let view = view(&id, input, version, &vpc, &group, &service_cidr);
        {
            let mut state = self.state();
            if let Some(first) = state.clusters.get(&id) {
                return again(&first.request, input, json!({"cluster": first.view}), taken(&id));
            }
            let cluster = Cluster {
                view: view.clone(),
                request: input.clone(),
                issuer: issuer.clone(),
                plane: None,
                usable_from: None,
                nodegroups: BTreeMap::new(),
                fargate_profiles: BTreeMap::new(),
                addons: BTreeMap::new(),
                entries: creator.into_iter().collect(),
                associations: BTreeMap::new(),
                updates: Vec::new(),
            };
            state.clusters.insert(id.clone(), cluster);
        }
        let own_addons = input["bootstrapSelfManagedAddons"].as_bool().unwrap_or(true);
        let new = NewControlPlane {
            account: id.account.clone(),
            region: id.region.clone(),
            name: id.name.clone(),
            id: cluster_id,
            version: version.to_owned(),
            service_cidr,
            issuer,
            token_webhook_url: self.webhooks.token_url(&id),
        };
        self.launch(id, new, own_addons);
        Ok(json!({"cluster": view}))
    }

    /// The answer for a name that is taken, whatever is wrong with the rest of the request.
    fn made_before(&self, id: &ClusterId, request: &Request) -> Option<Result<Value, AwsError>> {
        let state = self.state();
        if let Some(first) = state.clusters.get(id) {
            return Some(again(&first.request, &request.input, json!({"cluster": first.view}), taken(id)));
        }
        let near = state.clusters.keys().filter(|other| other.account == id.account && other.region == id.region);
        (near.count() >= LIMIT).then(|| {
            let message = format!("You have reached the limit of {LIMIT} clusters in this region.");
            Err(AwsError::new(400, "ResourceLimitExceededException", message))
        })
    }

    /// Starts the control plane while the simulated time of creation passes.
    fn launch(&self, id: ClusterId, new: NewControlPlane, own_addons: bool) {
        let (this, clock, planes) = (self.this.clone(), self.config.clock, self.config.control_planes.clone());
        let prepared = self.injection_configuration(&id);
        self.go_on(async move {
            let version = new.version.clone();
            let region = new.region.clone();
            let started = async {
                let plane = planes.start(new).await?;
                objects::apply(&plane.admin, &[prepared]).await?;
                objects::apply(&plane.admin, &access::policy_objects()).await?;
                objects::apply(&plane.admin, &[gp2()]).await?;
                if own_addons {
                    objects::apply(&plane.admin, &addons::self_managed(&version, &region)).await?;
                }
                anyhow::Ok(plane)
            };
            let (started, ()) = tokio::join!(started, clock.sleep(CREATION));
            let Some(eks) = this.upgrade() else { return };
            match started {
                Ok(plane) => eks.activate(&id, plane).await,
                Err(error) => eks.fail(&id, &error),
            }
        });
    }

    async fn activate(&self, id: &ClusterId, plane: ControlPlane) {
        let usable_from = Instant::now() + self.config.clock.real(SILENCE);
        let url = match endpoint::open(&plane.url, usable_from, self.ending.child_token()).await {
            Ok(url) => url,
            Err(error) => return self.fail(id, &error),
        };
        {
            let mut state = self.state();
            let Ok(cluster) = state.cluster(id) else { return };
            cluster.view["endpoint"] = json!(url);
            cluster.view["certificateAuthority"] = json!({"data": STANDARD.encode(&plane.certificate_authority_pem)});
            cluster.view["identity"] = json!({"oidc": {"issuer": cluster.issuer}});
            cluster.plane = Some(plane);
            cluster.usable_from = Some(usable_from);
            if cluster.status() == "CREATING" {
                cluster.view["status"] = json!("ACTIVE");
            }
        }
        tracing::info!(cluster = id.name, endpoint = url, "cluster is ACTIVE");
        self.open_log_group(id).await;
    }

    /// Makes the log group of a cluster that logs anything. It outlives the cluster, as EKS's does.
    pub(super) async fn open_log_group(&self, id: &ClusterId) {
        let logs = self.state().cluster(id).is_ok_and(|cluster| {
            cluster.view["logging"]["clusterLogging"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|setup| setup["enabled"] == true)
        });
        if logs {
            let group = json!({"logGroupName": format!("/aws/eks/{}/cluster", id.name)});
            let made = self.aws(&id.account, &id.region).json("logs", "Logs_20140328.CreateLogGroup", &group).await;
            if let Err(refusal) = made
                && !refusal.code.contains("AlreadyExists")
            {
                tracing::warn!(cluster = id.name, "no log group: {refusal}");
            }
        }
    }

    fn fail(&self, id: &ClusterId, error: &anyhow::Error) {
        tracing::error!(cluster = id.name, "the control plane does not start: {error:#}");
        if let Ok(cluster) = self.state().cluster(id) {
            cluster.view["status"] = json!("FAILED");
            cluster.view["health"] = json!({"issues": [
                {"code": "InternalFailure", "message": format!("{error:#}"), "resourceIds": [id.name]}
            ]});
        }
    }

    pub(super) fn describe_cluster(&self, request: &Request) -> Result<Value, AwsError> {
        Ok(json!({"cluster": self.state().cluster(&request.cluster())?.view}))
    }

    pub(super) fn list_clusters(&self, request: &Request) -> Result<Value, AwsError> {
        let state = self.state();
        let here = state.clusters.keys().filter(|id| id.account == request.account && id.region == request.region);
        let mut names: Vec<String> = here.map(|id| id.name.clone()).collect();
        names.sort();
        request.page("clusters", &names.into_iter().map(Value::from).collect::<Vec<_>>())
    }

    pub(super) fn update_cluster_config(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        if let Some(update) = cluster.update_of(&request.input) {
            return Ok(json!({"update": update}));
        }
        if cluster.status() != "ACTIVE" {
            return Err(in_use(format!("Cannot update cluster {} while it is {}", id.name, cluster.status())));
        }
        let change = Change::of(&cluster.view, &request.input)?;
        for (member, value) in &change.members {
            cluster.view[*member] = value.clone();
        }
        cluster.view["status"] = json!("UPDATING");
        let update = cluster.begin_update(Subject::Cluster, change.kind, &change.params, &request.input);
        drop(state);
        self.finish_cluster_update(&id);
        Ok(json!({"update": update}))
    }

    /// Gives a cluster without one its key for secrets. Nothing takes it away again.
    pub(super) fn associate_encryption_config(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        if let Some(update) = cluster.update_of(&request.input) {
            return Ok(json!({"update": update}));
        }
        if cluster.view["encryptionConfig"].is_array() {
            return Err(invalid("Encryption is already enabled on cluster"));
        }
        if cluster.status() != "ACTIVE" {
            return Err(in_use(format!("Cannot update cluster {} while it is {}", id.name, cluster.status())));
        }
        cluster.view["encryptionConfig"] = request.input["encryptionConfig"].clone();
        cluster.view["status"] = json!("UPDATING");
        let params = [("EncryptionConfig", request.input["encryptionConfig"].to_string())];
        let update = cluster.begin_update(Subject::Cluster, "AssociateEncryptionConfig", &params, &request.input);
        drop(state);
        self.finish_cluster_update(&id);
        Ok(json!({"update": update}))
    }

    pub(super) fn delete_cluster(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.cluster();
        let mut state = self.state();
        let cluster = state.cluster(&id)?;
        if cluster.view["deletionProtection"] == true {
            let message = format!("Cluster {} has deletion protection enabled: disable it first.", id.name);
            return Err(invalid_request(message));
        }
        if !cluster.nodegroups.is_empty() {
            return Err(in_use("Cluster has nodegroups attached"));
        }
        if !cluster.fargate_profiles.is_empty() {
            return Err(in_use("Cluster has Fargate Profiles in ACTIVE/CREATING state"));
        }
        if matches!(cluster.status(), "CREATING" | "UPDATING") {
            return Err(in_use(format!("Cannot delete cluster {} while it is {}", id.name, cluster.status())));
        }
        if cluster.status() == "DELETING" {
            return Ok(json!({"cluster": cluster.view}));
        }
        cluster.view["status"] = json!("DELETING");
        let view = cluster.view.clone();
        drop(state);
        let group = view["resourcesVpcConfig"]["clusterSecurityGroupId"].as_str().unwrap_or_default().to_owned();
        let (this, clock, planes) = (self.this.clone(), self.config.clock, self.config.control_planes.clone());
        let aws = self.aws(&id.account, &id.region);
        self.go_on(async move {
            tokio::join!(planes.stop(&id.account, &id.region, &id.name), clock.sleep(DELETION));
            if let Err(refusal) = amazon::delete_security_group(&aws, &group).await {
                // EKS leaves a group that is in use behind, as on AWS.
                tracing::warn!(cluster = id.name, group, "cluster security group stays: {refusal}");
            }
            if let Some(eks) = this.upgrade() {
                eks.state().clusters.remove(&id);
            }
        });
        Ok(json!({"cluster": view}))
    }
}

/// The StorageClass that EKS puts into every cluster; since Kubernetes 1.30 it is nobody's default.
fn gp2() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "gp2"},
        "provisioner": "kubernetes.io/aws-ebs", "parameters": {"type": "gp2", "fsType": "ext4"},
        "volumeBindingMode": "WaitForFirstConsumer",
    })
}

fn taken(id: &ClusterId) -> AwsError {
    in_use(format!("Cluster already exists with name: {}", id.name))
}

/// A list of strings.
pub(super) fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The VPC of subnets that a control plane may have.
fn check_subnets(cluster: &str, subnets: &[amazon::Subnet]) -> Result<String, AwsError> {
    let Some(first) = subnets.first() else {
        return Err(invalid("subnetIds must not be empty"));
    };
    if let Some(other) = subnets.iter().find(|subnet| subnet.vpc != first.vpc) {
        return Err(invalid(format!("Subnets specified must be in the same VPC: {} is in {}", other.id, other.vpc)));
    }
    if let Some(refused) = subnets.iter().find(|subnet| REFUSED_ZONES.contains(&subnet.zone_id.as_str())) {
        return Err(AwsError::new(
            400,
            "UnsupportedAvailabilityZoneException",
            format!(
                "Cannot create cluster '{cluster}' because {}, the targeted availability zone, does not currently \
                 have sufficient capacity to support the cluster. Retry and choose from other availability zones",
                refused.zone
            ),
        ));
    }
    if subnets.iter().map(|subnet| &subnet.zone).collect::<BTreeSet<_>>().len() < 2 {
        return Err(invalid("Subnets specified must be in at least two different AZs"));
    }
    Ok(first.vpc.clone())
}

fn checked_service_cidr(cidr: &str) -> Result<String, AwsError> {
    let fits = cidr.parse::<ipnet::Ipv4Net>().is_ok_and(|net| {
        (12..=24).contains(&net.prefix_len()) && net.addr().is_private() && net.addr() == net.network()
    });
    if fits {
        Ok(cidr.to_owned())
    } else {
        Err(invalid(format!("serviceIpv4Cidr {cidr} must be a private block between /24 and /12")))
    }
}

/// The `cluster` shape of a cluster that was just asked for.
fn view(id: &ClusterId, input: &Value, version: &str, vpc: &str, group: &str, service_cidr: &str) -> Value {
    let network = &input["resourcesVpcConfig"];
    let access = &input["accessConfig"];
    let mut view = json!({
        "name": id.name,
        "arn": format!("arn:aws:eks:{}:{}:cluster/{}", id.region, id.account, id.name),
        "createdAt": now(),
        "version": version,
        "roleArn": input["roleArn"],
        "resourcesVpcConfig": {
            "subnetIds": network["subnetIds"],
            "securityGroupIds": network.get("securityGroupIds").cloned().unwrap_or_else(|| json!([])),
            "clusterSecurityGroupId": group,
            "vpcId": vpc,
            "endpointPublicAccess": network["endpointPublicAccess"].as_bool().unwrap_or(true),
            "endpointPrivateAccess": network["endpointPrivateAccess"].as_bool().unwrap_or(false),
            "publicAccessCidrs": network.get("publicAccessCidrs").cloned().unwrap_or_else(|| json!(["0.0.0.0/0"])),
        },
        "kubernetesNetworkConfig": {
            "serviceIpv4Cidr": service_cidr, "ipFamily": "ipv4", "elasticLoadBalancing": {"enabled": false},
        },
        "logging": {"clusterLogging": log_setups(&enabled_logs(&input["logging"]))},
        "status": "CREATING",
        "certificateAuthority": {},
        "platformVersion": "eks.1",
        "tags": input.get("tags").cloned().unwrap_or_else(|| json!({})),
        "health": {"issues": []},
        "accessConfig": {
            "bootstrapClusterCreatorAdminPermissions":
                access["bootstrapClusterCreatorAdminPermissions"].as_bool().unwrap_or(true),
            "authenticationMode": access["authenticationMode"].as_str().unwrap_or("CONFIG_MAP"),
        },
        "upgradePolicy": {"supportType": input["upgradePolicy"]["supportType"].as_str().unwrap_or("EXTENDED")},
        "zonalShiftConfig": {"enabled": input["zonalShiftConfig"]["enabled"].as_bool().unwrap_or(false)},
        "deletionProtection": input["deletionProtection"].as_bool().unwrap_or(false),
        "controlPlaneScalingConfig": {
            "tier": input["controlPlaneScalingConfig"]["tier"].as_str().unwrap_or("standard")
        },
    });
    for member in ["clientRequestToken", "encryptionConfig"] {
        if let Some(value) = input.get(member) {
            view[member] = value.clone();
        }
    }
    view
}

/// The log types that a `logging` member switches on.
fn enabled_logs(logging: &Value) -> BTreeSet<String> {
    logging["clusterLogging"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|setup| setup["enabled"] == true)
        .flat_map(|setup| texts(&setup["types"]))
        .collect()
}

/// Which are on and which are off: EKS always says both.
fn log_setups(enabled: &BTreeSet<String>) -> Value {
    let (on, off): (Vec<&str>, Vec<&str>) = LOG_TYPES.iter().partition(|kind| enabled.contains(**kind));
    let setups = [(on, true), (off, false)].into_iter().filter(|(types, _)| !types.is_empty());
    setups.map(|(types, enabled)| json!({"types": types, "enabled": enabled})).collect()
}

/// What an UpdateClusterConfig changes: one kind at a time.
#[derive(Debug)]
struct Change {
    kind: &'static str,
    params: Vec<(&'static str, String)>,
    members: Vec<(&'static str, Value)>,
}

/// Reads a change out of the cluster and the request.
type Reader = fn(&Value, &Value) -> Result<Change, AwsError>;

impl Change {
    /// The change that a request asks for, or EKS's refusal: nothing to change, or more than one kind.
    fn of(view: &Value, input: &Value) -> Result<Self, AwsError> {
        let kinds: [(&str, Reader); 7] = [
            ("resourcesVpcConfig", Self::network),
            ("logging", Self::logging),
            ("accessConfig", Self::access),
            ("upgradePolicy", |view, input| Self::plain(view, input, "upgradePolicy", "UpgradePolicy")),
            ("zonalShiftConfig", |view, input| Self::plain(view, input, "zonalShiftConfig", "ZonalShiftConfig")),
            ("deletionProtection", |view, input| Self::plain(view, input, "deletionProtection", "DeletionProtection")),
            ("controlPlaneScalingConfig", |view, input| {
                Self::plain(view, input, "controlPlaneScalingConfig", "ControlPlaneScalingConfig")
            }),
        ];
        let mut asked = kinds.iter().filter(|(member, _)| input.get(*member).is_some());
        match (asked.next(), asked.next()) {
            (Some((_, change)), None) => change(view, input),
            (None, _) => Err(invalid("No changes needed: the request names nothing to update")),
            (Some(_), Some(_)) => Err(invalid("Only one type of update can be allowed.")),
        }
    }

    fn plain(view: &Value, input: &Value, member: &'static str, param: &'static str) -> Result<Self, AwsError> {
        let value = &input[member];
        if view[member] == *value {
            return Err(invalid(format!("No changes needed for {member}: the cluster has {value}")));
        }
        let kind = match member {
            "upgradePolicy" => "UpgradePolicyUpdate",
            "zonalShiftConfig" => "ZonalShiftConfigUpdate",
            "deletionProtection" => "DeletionProtectionUpdate",
            _ => "ControlPlaneScalingConfigUpdate",
        };
        let param = if param == "ControlPlaneScalingConfig" { "UpdatedTier" } else { param };
        Ok(Self { kind, params: vec![(param, value.to_string())], members: vec![(member, value.clone())] })
    }

    fn network(view: &Value, input: &Value) -> Result<Self, AwsError> {
        const PARAMS: [(&str, &str); 5] = [
            ("endpointPublicAccess", "EndpointPublicAccess"),
            ("endpointPrivateAccess", "EndpointPrivateAccess"),
            ("publicAccessCidrs", "PublicAccessCidrs"),
            ("subnetIds", "Subnets"),
            ("securityGroupIds", "SecurityGroups"),
        ];
        let mut network = view["resourcesVpcConfig"].clone();
        let asked = &input["resourcesVpcConfig"];
        let mut params = Vec::new();
        for (member, param) in PARAMS {
            if let Some(value) = asked.get(member) {
                params.push((param, value.to_string()));
                network[member] = value.clone();
            }
        }
        if network["endpointPublicAccess"] == false && network["endpointPrivateAccess"] == false {
            return Err(invalid("Private and public endpoint access cannot be false"));
        }
        if network == view["resourcesVpcConfig"] {
            return Err(invalid(format!(
                "Cluster is already at the desired configuration with endpointPrivateAccess: {} , \
                 endpointPublicAccess: {}, and Public Endpoint Restrictions: {}",
                network["endpointPrivateAccess"], network["endpointPublicAccess"], network["publicAccessCidrs"]
            )));
        }
        let kind = if asked.get("subnetIds").is_some() || asked.get("securityGroupIds").is_some() {
            "VpcConfigUpdate"
        } else {
            "EndpointAccessUpdate"
        };
        Ok(Self { kind, params, members: vec![("resourcesVpcConfig", network)] })
    }

    fn logging(view: &Value, input: &Value) -> Result<Self, AwsError> {
        let before = enabled_logs(&view["logging"]);
        let mut after = before.clone();
        for setup in input["logging"]["clusterLogging"].as_array().into_iter().flatten() {
            for kind in texts(&setup["types"]) {
                if setup["enabled"] == true {
                    after.insert(kind);
                } else {
                    after.remove(&kind);
                }
            }
        }
        if before == after {
            return Err(invalid("No changes needed for the logging config provided"));
        }
        let params = vec![("ClusterLogging", input["logging"].to_string())];
        let logging = json!({"clusterLogging": log_setups(&after)});
        Ok(Self { kind: "LoggingUpdate", params, members: vec![("logging", logging)] })
    }

    fn access(view: &Value, input: &Value) -> Result<Self, AwsError> {
        // Only ever forward.
        const ORDER: [&str; 3] = ["CONFIG_MAP", "API_AND_CONFIG_MAP", "API"];
        let rank = |mode: &str| ORDER.iter().position(|known| *known == mode);
        let from = view["accessConfig"]["authenticationMode"].as_str().unwrap_or_default();
        let to = input["accessConfig"]["authenticationMode"].as_str().unwrap_or(from);
        if rank(to) != rank(from).map(|rank| rank + 1) {
            return Err(invalid(format!("Unsupported authentication mode update from {from} to {to}")));
        }
        let mut access = view["accessConfig"].clone();
        access["authenticationMode"] = json!(to);
        let params = vec![("AuthenticationMode", to.to_owned())];
        Ok(Self { kind: "AccessConfigUpdate", params, members: vec![("accessConfig", access)] })
    }
}
