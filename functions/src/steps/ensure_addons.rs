//! ensure-addons: EKS's own add-ons, those that nodes need before they come, and the rest after, with the IAM roles of
//! their pods and the StorageClass that goes with the EBS driver.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_eks::types::{
    Addon, AddonPodIdentityAssociations, AddonPodIdentityConfiguration, AddonStatus, ResolveConflicts,
};
use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError, names,
    plan::Planned,
    spec::{AddonIdentity, AddonSpec},
};

use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        health,
        iam::{Role, ensure_role, plan_role, role_arn},
        partition,
        tags::{self, missing, ours, takes},
    },
    cluster,
};

/// An add-on takes half a minute to a minute.
const POLL_SECONDS: u32 = 15;
/// How long, in seconds, pods of an add-on may be too few: what nodes have only just come for takes a minute or two.
const DEGRADED: u32 = 300;
/// Pod networking, service networking, and the agent of Pod Identity: a node without them stays not ready.
const BEFORE_NODES: [&str; 3] = ["vpc-cni", "kube-proxy", "eks-pod-identity-agent"];
/// Needs a node to run on.
const AFTER_NODES: [&str; 1] = ["coredns"];
/// The add-on that brings a StorageClass.
const EBS_DRIVER: &str = "aws-ebs-csi-driver";
/// By which a StorageClass says that it is the default.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The StorageClass's name.
const GP3: &str = "gp3";
/// The label by which our StorageClass is known from another of its name.
const CLASS_LABEL: &str = "slipway/storage-class";

/// Makes the add-ons of one phase.
#[derive(Debug)]
pub struct EnsureAddons;

/// Which add-ons.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Before the nodes, or after.
    pub phase: Phase,
    /// The spec's own, by name.
    pub addons: BTreeMap<String, AddonSpec>,
    /// Kubernetes minor.
    pub version: String,
    /// The spec's tags.
    pub tags: BTreeMap<String, String>,
    /// Add-ons that bear nobody's tag are taken over.
    #[serde(default)]
    pub adopt: bool,
    /// How one logs in, which the StorageClass of the EBS driver needs.
    #[serde(default)]
    pub endpoint: Option<ClusterEndpoint>,
    /// Seconds that the machine has waited for them so far.
    #[serde(default)]
    pub waited: u32,
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// What nodes need to become ready.
    Before,
    /// What needs a node.
    After,
}

/// The add-ons of the phase.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    /// All of them, ACTIVE.
    pub addons: Vec<AddonOutput>,
}

/// An add-on as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AddonOutput {
    /// EKS's name.
    pub name: String,
    /// EKS's version of it.
    pub version: String,
}

impl Step for EnsureAddons {
    const NAME: &'static str = "ensure-addons";
    const ERRORS: &'static [ErrorName] = &[ErrorName::AddonFailed, ErrorName::NotOurs, ErrorName::KubernetesRefused];
    type Input = Input;
    type Output = Progress<Output>;
}

/// An add-on as it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    arn: String,
    status: AddonStatus,
    version: String,
    configuration: Option<Value>,
    /// Role by service account: its Pod Identity associations.
    roles: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    issues: Vec<String>,
}

/// An add-on as it shall be.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wanted {
    addon: AddonSpec,
    /// Role by service account; none where the spec says nothing of it.
    roles: Option<BTreeMap<String, String>>,
}

/// What to do about one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Create,
    Update,
    Tag(BTreeMap<String, String>),
    Wait(String),
    Done(AddonOutput),
}

/// The add-ons of a phase: ours, with what the spec says of them, and the spec's own.
fn wanted(phase: Phase, spec: &BTreeMap<String, AddonSpec>) -> BTreeMap<String, AddonSpec> {
    let with_spec = |name: &str| (name.to_owned(), spec.get(name).cloned().unwrap_or_default());
    match phase {
        Phase::Before => BEFORE_NODES.into_iter().map(with_spec).collect(),
        Phase::After => {
            let own = spec.iter().filter(|(name, _)| !BEFORE_NODES.contains(&name.as_str()));
            let own = own.map(|(name, addon)| (name.clone(), addon.clone()));
            AFTER_NODES.into_iter().map(with_spec).chain(own).collect()
        }
    }
}

pub(crate) fn decide(
    input: &Input,
    name: &str,
    wanted: &Wanted,
    found: Option<&Observed>,
) -> Result<Action, StepError> {
    let Some(found) = found else { return Ok(Action::Create) };
    takes(&input.cluster, input.adopt, &found.tags, &format!("The add-on {name}"))?;
    let addon = &wanted.addon;
    let differs = addon.version.as_ref().is_some_and(|version| *version != found.version)
        || (addon.configuration.is_some() && addon.configuration != found.configuration)
        || wanted.roles.as_ref().is_some_and(|roles| *roles != found.roles);
    match &found.status {
        // A new version or configuration may be just what a degraded one needs.
        AddonStatus::Active | AddonStatus::Degraded | AddonStatus::UpdateFailed if differs => Ok(Action::Update),
        AddonStatus::Active => {
            let lacking = missing(&names::tags(&input.cluster, &input.tags), &found.tags);
            if lacking.is_empty() {
                Ok(Action::Done(AddonOutput { name: name.to_owned(), version: found.version.clone() }))
            } else {
                Ok(Action::Tag(lacking))
            }
        }
        AddonStatus::Creating | AddonStatus::Updating => Ok(Action::Wait(format!("{name} is being rolled out"))),
        AddonStatus::Deleting => Ok(Action::Wait(format!("the former {name} is being deleted"))),
        // Of nodes that have only just come, or come again, pods are on their way.
        AddonStatus::Degraded if starting(&found.issues) && input.waited < DEGRADED => {
            Ok(Action::Wait(format!("{name} is degraded: {}", health::said(&found.issues))))
        }
        status => {
            let what = format!("The add-on {name} is {}", status.as_str());
            Err(health::failure(ErrorName::AddonFailed, &what, &found.issues, "then start again"))
        }
    }
}

/// Whether nothing is wrong but that pods do not run yet.
fn starting(issues: &[String]) -> bool {
    !issues.is_empty() && issues.iter().all(|issue| issue.starts_with("InsufficientNumberOfReplicas"))
}

/// The role of an add-on's pods with these policies, which only pods of this cluster may have.
fn role(input: &Input, name: &str, policies: Vec<String>) -> Role {
    let ClusterKey { account, region, name: cluster } = &input.cluster;
    let arn = format!("arn:{}:eks:{region}:{account}:cluster/{cluster}", partition(region));
    Role {
        name: names::addon_role(&input.cluster, name),
        description: "The pods of an add-on in an EKS cluster",
        trust: json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Principal": { "Service": "pods.eks.amazonaws.com" },
                "Action": ["sts:AssumeRole", "sts:TagSession"],
                "Condition": {
                    "StringEquals": { "aws:SourceAccount": account },
                    "ArnEquals": { "aws:SourceArn": arn },
                },
            }],
        }),
        policies,
        tags: names::tags(&input.cluster, &input.tags),
    }
}

/// The policies of an add-on's own role: the spec's, or where it lists none, those that EKS recommends.
fn policies(asked: &[String], recommended: &[AddonPodIdentityConfiguration]) -> Vec<String> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    let all = recommended.iter().flat_map(|one| one.recommended_managed_policies().iter().cloned());
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The default StorageClass: gp3 is cheaper than gp2 at every size, and volumes follow their pods' zone.
fn storage_class(input: &Input) -> Value {
    let tags = names::tags(&input.cluster, &input.tags);
    let mut parameters = json!({ "type": "gp3", "encrypted": "true", "csi.storage.k8s.io/fstype": "ext4" });
    for (number, (key, value)) in tags.iter().enumerate() {
        parameters[format!("tagSpecification_{}", number + 1)] = json!(format!("{key}={value}"));
    }
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": GP3, "labels": { CLASS_LABEL: "spec" }, "annotations": { DEFAULT_CLASS: "true" } },
        "provisioner": "ebs.csi.aws.com",
        "parameters": parameters,
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

/// Makes the phase's add-ons side by side, takes away those of ours that the spec no longer names, or reports what is
/// waited for.
///
/// # Errors
/// `AddonFailed` with EKS's health issues; `NotOurs` for one without our tag; `InvalidInput` for the identity of one
/// that EKS gives none.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let addons = wanted(input.phase, &input.addons);
    let answers = try_join_all(addons.iter().map(|(name, addon)| ensure(cx, &input, name, addon))).await?;
    let (mut done, mut waits) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(addon) => done.push(addon),
            Err(detail) => waits.push(detail),
        }
    }
    if input.phase == Phase::After {
        waits.extend(remove_others(cx, &input).await?);
        if waits.is_empty() && addons.contains_key(EBS_DRIVER) {
            waits.extend(ensure_storage_class(cx, &input).await?);
        }
    }
    if waits.is_empty() {
        Ok(Progress::done(Output { addons: done }))
    } else {
        Ok(Progress::wait(POLL_SECONDS, waits.join(", ")))
    }
}

/// One add-on: there, or what is waited for.
async fn ensure(
    cx: &Context,
    input: &Input,
    name: &str,
    addon: &AddonSpec,
) -> Result<Result<AddonOutput, String>, StepError> {
    let eks = cx.aws.eks();
    let cluster = &input.cluster.name;
    let found = observe(cx, input, name).await?;
    // Refused before a role is made for it.
    if let Some(found) = &found {
        takes(&input.cluster, input.adopt, &found.tags, &format!("The add-on {name}"))?;
    }
    let version = version(cx, input, name, addon, found.as_ref()).await?;
    let roles = match &addon.identity {
        Some(asked) => {
            let pods = identity(cx, input, name, &version, asked).await?;
            if let Some(role) = &pods.role {
                ensure_role(cx, &input.run, &input.cluster, role).await?;
            }
            Some(pods.roles)
        }
        None => None,
    };
    let wanted = Wanted { addon: addon.clone(), roles };
    let configuration = addon.configuration.as_ref().map(ToString::to_string);
    match decide(input, name, &wanted, found.as_ref())? {
        Action::Done(output) => Ok(Ok(output)),
        Action::Wait(detail) => Ok(Err(detail)),
        Action::Create => {
            cx.state.hold(&input.run, &input.cluster).await?;
            eks.create_addon()
                .cluster_name(cluster)
                .addon_name(name)
                .addon_version(version)
                .set_configuration_values(configuration)
                .set_pod_identity_associations(associations(wanted.roles.as_ref())?)
                // A cluster made by hand may have the same objects unmanaged; the add-on takes them over.
                .resolve_conflicts(ResolveConflicts::Overwrite)
                .set_tags(Some(names::tags(&input.cluster, &input.tags).into_iter().collect()))
                .client_request_token(format!("{}-{name}", input.run.id))
                .send()
                .await
                .during("eks:CreateAddon")?;
            Ok(Err(format!("{name} is being rolled out")))
        }
        Action::Update => {
            cx.state.hold(&input.run, &input.cluster).await?;
            eks.update_addon()
                .cluster_name(cluster)
                .addon_name(name)
                .set_addon_version(addon.version.clone())
                .set_configuration_values(configuration)
                .set_pod_identity_associations(associations(wanted.roles.as_ref())?)
                .resolve_conflicts(ResolveConflicts::Preserve)
                .send()
                .await
                .during("eks:UpdateAddon")?;
            Ok(Err(format!("{name} is being updated")))
        }
        Action::Tag(tags) => {
            cx.state.hold(&input.run, &input.cluster).await?;
            let (arn, version) = found.map(|addon| (addon.arn, addon.version)).unwrap_or_default();
            let call = eks.tag_resource().resource_arn(arn).set_tags(Some(tags.into_iter().collect()));
            call.send().await.during("eks:TagResource")?;
            Ok(Ok(AddonOutput { name: name.to_owned(), version }))
        }
    }
}

/// The spec's version; else the one that is there, else EKS's default.
async fn version(
    cx: &Context,
    input: &Input,
    name: &str,
    addon: &AddonSpec,
    found: Option<&Observed>,
) -> Result<String, StepError> {
    match (&addon.version, found) {
        (Some(version), _) => Ok(version.clone()),
        (None, Some(found)) => Ok(found.version.clone()),
        (None, None) => default_version(cx, name, &input.version).await,
    }
}

/// An add-on with the roles of its service accounts.
pub(crate) async fn observe(cx: &Context, input: &Input, name: &str) -> Result<Option<Observed>, StepError> {
    let (eks, cluster) = (cx.aws.eks(), &input.cluster.name);
    let addon = match eks.describe_addon().cluster_name(cluster).addon_name(name).send().await {
        Ok(answer) => answer.addon,
        Err(error) if code(&error) == Some("ResourceNotFoundException") => None,
        Err(error) => return Err(refused("eks:DescribeAddon", &error)),
    };
    let Some(addon) = addon else { return Ok(None) };
    let mut roles = BTreeMap::new();
    for arn in addon.pod_identity_associations() {
        let id = arn.rsplit('/').next().unwrap_or_default();
        let answer = eks.describe_pod_identity_association().cluster_name(cluster).association_id(id).send().await;
        let association = match answer {
            Ok(answer) => answer.association,
            Err(error) if matches!(code(&error), Some("ResourceNotFoundException" | "NotFoundException")) => None,
            Err(error) => return Err(refused("eks:DescribePodIdentityAssociation", &error)),
        };
        roles.extend(association.and_then(|one| one.service_account.zip(one.role_arn)));
    }
    Ok(Some(found(addon, roles)))
}

/// Role by service account of an add-on, the role made where it is its own.
async fn identity(
    cx: &Context,
    input: &Input,
    name: &str,
    version: &str,
    identity: &AddonIdentity,
) -> Result<Pods, StepError> {
    let call = cx.aws.eks().describe_addon_configuration().addon_name(name).addon_version(version);
    let answer = call.send().await.during("eks:DescribeAddonConfiguration")?;
    let accounts = answer.pod_identity_configuration();
    if accounts.is_empty() {
        let cause = format!("`addons.{name}.identity` is set, and EKS knows no service account of {name} {version}.");
        return Err(StepError::new(ErrorName::InvalidInput, cause)
            .remedy("Remove the identity, or give it by the add-on's own configuration."));
    }
    let (role, arn) = match identity {
        AddonIdentity::RoleArn(arn) => (None, arn.clone()),
        AddonIdentity::PolicyArns(asked) => {
            let role = role(input, name, policies(asked, accounts));
            let arn = role_arn(&input.cluster, &role.name);
            (Some(role), arn)
        }
    };
    let accounts = accounts.iter().filter_map(|one| Some((one.service_account()?.to_owned(), arn.clone())));
    Ok(Pods { role, roles: accounts.collect() })
}

/// What an add-on's pods run as.
struct Pods {
    /// The role that we make for them; none where the spec names one.
    role: Option<Role>,
    /// Role by service account.
    roles: BTreeMap<String, String>,
}

/// What would become of the add-ons of both phases.
///
/// # Errors
/// As [`run`].
pub(crate) async fn plan(
    cx: &Context,
    input: impl Fn(Phase) -> Input,
    cluster_is_there: bool,
) -> Result<Vec<Planned>, StepError> {
    let mut planned = Vec::new();
    for phase in [Phase::Before, Phase::After] {
        let input = input(phase);
        let addons = wanted(phase, &input.addons);
        let told = try_join_all(addons.iter().map(|(name, addon)| plan_one(cx, &input, name, addon))).await?;
        planned.extend(told.into_iter().flatten());
        if phase == Phase::After && cluster_is_there {
            let leaving = others(cx, &input).await?;
            let reason = "the spec no longer names it";
            planned.extend(leaving.iter().map(|(name, _)| Planned::delete(KIND, name, reason)));
        }
    }
    Ok(planned)
}

/// As EKS's console calls them.
const KIND: &str = "EKS add-on";

/// An add-on, after the role of its pods.
async fn plan_one(cx: &Context, input: &Input, name: &str, addon: &AddonSpec) -> Result<Vec<Planned>, StepError> {
    let found = observe(cx, input, name).await?;
    let version = version(cx, input, name, addon, found.as_ref()).await?;
    let (mut planned, mut roles) = (Vec::new(), None);
    if let Some(asked) = &addon.identity {
        let pods = identity(cx, input, name, &version, asked).await?;
        if let Some(role) = &pods.role {
            planned.push(plan_role(cx, &input.cluster, role).await?);
        }
        roles = Some(pods.roles);
    }
    let wanted = Wanted { addon: addon.clone(), roles };
    let told = match decide(input, name, &wanted, found.as_ref())? {
        Action::Create | Action::Done(_) => Vec::new(),
        Action::Update => vec![format!("its version, configuration or roles differ from {version}")],
        Action::Tag(lacking) => vec![tags::told(&lacking)],
        Action::Wait(detail) => vec![detail],
    };
    planned.push(Planned::of(KIND, name, found.map(|_| told.as_slice())));
    Ok(planned)
}

fn associations(
    roles: Option<&BTreeMap<String, String>>,
) -> Result<Option<Vec<AddonPodIdentityAssociations>>, StepError> {
    let association = |(account, role): (&String, &String)| {
        AddonPodIdentityAssociations::builder().service_account(account).role_arn(role).build()
    };
    roles
        .map(|roles| roles.iter().map(association).collect::<Result<_, _>>())
        .transpose()
        .map_err(|error| StepError::new(ErrorName::Internal, format!("An association could not be written: {error}.")))
}

/// Add-ons that bear our tag and that the spec no longer names.
async fn others(cx: &Context, input: &Input) -> Result<Vec<(String, Observed)>, StepError> {
    let listed = cx.aws.eks().list_addons().cluster_name(&input.cluster.name).into_paginator().items().send();
    let listed = listed.collect::<Result<Vec<_>, _>>().await.during("eks:ListAddons")?;
    let own = |name: &String| BEFORE_NODES.contains(&name.as_str()) || AFTER_NODES.contains(&name.as_str());
    let mut others = Vec::new();
    for name in listed.into_iter().filter(|name| !own(name) && !input.addons.contains_key(name)) {
        if let Some(found) = observe(cx, input, &name).await?
            && ours(&input.cluster, &found.tags, &name).is_ok()
        {
            others.push((name, found));
        }
    }
    Ok(others)
}

/// Deletes add-ons that bear our tag and that the spec no longer names; says which are on their way out.
async fn remove_others(cx: &Context, input: &Input) -> Result<Vec<String>, StepError> {
    let (eks, cluster) = (cx.aws.eks(), &input.cluster.name);
    let mut leaving = Vec::new();
    for (name, found) in others(cx, input).await? {
        if found.status != AddonStatus::Deleting {
            cx.state.hold(&input.run, &input.cluster).await?;
            match eks.delete_addon().cluster_name(cluster).addon_name(&name).send().await {
                Err(error) if code(&error) == Some("ResourceNotFoundException") => continue,
                answer => drop(answer.during("eks:DeleteAddon")?),
            }
        }
        leaving.push(format!("{name}, which the spec no longer names, is being deleted"));
    }
    Ok(leaving)
}

/// Makes gp3 the default StorageClass in EKS's gp2's stead; says what is waited for, since this step runs beside the
/// one that lets us in.
async fn ensure_storage_class(cx: &Context, input: &Input) -> Result<Option<String>, StepError> {
    let Some(endpoint) = &input.endpoint else { return Ok(None) };
    match apply_storage_class(cx, input, endpoint).await {
        Err(error) if error.name == ErrorName::ClusterUnreachable => Ok(Some(error.cause)),
        answer => answer.map(|()| None),
    }
}

async fn apply_storage_class(cx: &Context, input: &Input, endpoint: &ClusterEndpoint) -> Result<(), StepError> {
    const KIND: cluster::Kind<'_> = ("storage.k8s.io/v1", "StorageClass");
    let cluster = cluster::connect(cx, &input.cluster, endpoint).await?;
    let wanted = storage_class(input);
    let found = cluster.get(KIND, "", GP3).await?;
    let gp2 = cluster.get(KIND, "", "gp2").await?;
    cx.state.hold(&input.run, &input.cluster).await?;
    match found.map(|found| class_action(&wanted, &found)) {
        // Somebody's own gp3, and what is default beside it, is theirs to say.
        Some(ClassAction::Leave) => return Ok(()),
        Some(ClassAction::Replace) => drop(cluster.delete(KIND, "", GP3, None).await?),
        Some(ClassAction::Apply) | None => {}
    }
    if gp2.is_some_and(|gp2| gp2["metadata"]["annotations"][DEFAULT_CLASS] == "true") {
        cluster.remove_annotation(KIND, "gp2", DEFAULT_CLASS).await?;
    }
    cluster.apply(&wanted).await.map(drop)
}

/// What to do about a class of our class's name.
#[derive(Debug, PartialEq, Eq)]
enum ClassAction {
    Apply,
    /// A class's parameters cannot be changed; its volumes don't mind it going.
    Replace,
    Leave,
}

fn class_action(wanted: &Value, found: &Value) -> ClassAction {
    let same = |field: &str| wanted[field] == found[field];
    if found["metadata"]["labels"][CLASS_LABEL].is_null() {
        ClassAction::Leave
    } else if ["provisioner", "parameters", "volumeBindingMode"].into_iter().all(same) {
        ClassAction::Apply
    } else {
        ClassAction::Replace
    }
}

/// What EKS itself would install on this Kubernetes version.
async fn default_version(cx: &Context, name: &str, kubernetes: &str) -> Result<String, StepError> {
    let call = cx.aws.eks().describe_addon_versions().addon_name(name).kubernetes_version(kubernetes);
    let answer = call.send().await.during("eks:DescribeAddonVersions")?;
    let versions = answer.addons().iter().flat_map(aws_sdk_eks::types::AddonInfo::addon_versions);
    versions
        .filter(|version| version.compatibilities().iter().any(aws_sdk_eks::types::Compatibility::default_version))
        .find_map(|version| version.addon_version.clone())
        .ok_or_else(|| {
            let cause = format!("EKS offers no default version of the add-on {name} for Kubernetes {kubernetes}.");
            StepError::new(ErrorName::AddonFailed, cause).remedy(format!("Set `addons.{name}.version` in the spec."))
        })
}

fn found(addon: Addon, roles: BTreeMap<String, String>) -> Observed {
    let issues = addon.health.and_then(|health| health.issues).unwrap_or_default();
    Observed {
        arn: addon.addon_arn.unwrap_or_default(),
        status: addon.status.unwrap_or(AddonStatus::Creating),
        version: addon.addon_version.unwrap_or_default(),
        configuration: addon.configuration_values.and_then(|text| serde_json::from_str(&text).ok()),
        roles,
        tags: addon.tags.unwrap_or_default().into_iter().collect(),
        issues: issues
            .into_iter()
            .map(|issue| {
                let resources = issue.resource_ids.unwrap_or_default();
                health::issue(issue.code.as_ref().map(AsRef::as_ref), issue.message.as_deref(), &resources)
            })
            .collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn input() -> Input {
        serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "phase": "after", "addons": {}, "version": "1.36", "tags": { "team": "shop" },
        }))
        .unwrap()
    }

    fn coredns(status: AddonStatus) -> Observed {
        Observed {
            arn: "arn:a".into(),
            status,
            version: "v1".into(),
            configuration: Some(json!({"replicaCount": 2})),
            roles: BTreeMap::new(),
            tags: names::tags(&input().cluster, &input().tags),
            issues: vec![],
        }
    }

    fn decided(addon: &Value, found: &Observed) -> Result<Action, StepError> {
        let wanted = Wanted { addon: serde_json::from_value(addon.clone()).unwrap(), roles: None };
        decide(&input(), "coredns", &wanted, Some(found))
    }

    #[test]
    fn a_spec_may_speak_of_ours_and_bring_its_own() {
        let versioned = AddonSpec { version: Some("v9".into()), ..AddonSpec::default() };
        let spec =
            BTreeMap::from([("vpc-cni".to_owned(), versioned.clone()), (EBS_DRIVER.to_owned(), AddonSpec::default())]);
        let before = wanted(Phase::Before, &spec);
        assert_eq!((before.len(), &before["vpc-cni"]), (3, &versioned));
        let after: Vec<_> = wanted(Phase::After, &spec).into_keys().collect();
        assert_eq!(after, [EBS_DRIVER, "coredns"]);
    }

    #[test]
    fn only_what_the_spec_names_is_changed() {
        let active = coredns(AddonStatus::Active);
        assert!(matches!(decided(&json!({}), &active).unwrap(), Action::Done(_)));
        assert_eq!(decided(&json!({"version": "v2"}), &active).unwrap(), Action::Update);
        let same = json!({"configuration": {"replicaCount": 2}});
        assert!(matches!(decided(&same, &active).unwrap(), Action::Done(_)));
        assert_eq!(decided(&json!({"configuration": {"replicaCount": 3}}), &active).unwrap(), Action::Update);
        let mut bare = active;
        bare.tags.remove("team");
        let team = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        assert_eq!(decided(&json!({}), &bare).unwrap(), Action::Tag(team));
    }

    #[test]
    fn a_role_that_differs_is_bound_anew() {
        let roles = |role: &str| BTreeMap::from([("sa".to_owned(), role.to_owned())]);
        let found = Observed { roles: roles("arn:one"), ..coredns(AddonStatus::Active) };
        let wanted = |role: &str| Wanted { roles: Some(roles(role)), ..Wanted::default() };
        let decided = |role: &str| decide(&input(), "coredns", &wanted(role), Some(&found)).unwrap();
        assert!(matches!(decided("arn:one"), Action::Done(_)));
        assert_eq!(decided("arn:two"), Action::Update);
    }

    #[test]
    fn a_degraded_addon_says_what_eks_says_unless_the_spec_changes_it() {
        let mut degraded = coredns(AddonStatus::Degraded);
        degraded.issues = vec!["InsufficientNumberOfReplicas: no nodes.".into()];
        let waiting = decided(&json!({}), &degraded).unwrap();
        assert!(matches!(&waiting, Action::Wait(detail) if detail.contains("no nodes")), "{waiting:?}");
        let late = Input { waited: DEGRADED, ..input() };
        let error = decide(&late, "coredns", &Wanted::default(), Some(&degraded)).unwrap_err();
        assert_eq!(error.name, ErrorName::AddonFailed);
        assert!(error.cause.contains("DEGRADED") && error.cause.contains("no nodes"));
        assert!(error.remedy.contains("pods in kube-system"), "{}", error.remedy);
        assert_eq!(decided(&json!({"version": "v2"}), &degraded).unwrap(), Action::Update);
        degraded.issues.push("ConfigurationConflict: Conflicts found.".into());
        assert_eq!(decided(&json!({}), &degraded).unwrap_err().name, ErrorName::AddonFailed, "waiting mends none");
    }

    #[test]
    fn a_strangers_addon_is_taken_over_only_when_asked() {
        let mut strange = coredns(AddonStatus::Active);
        strange.tags.clear();
        assert_eq!(decided(&json!({}), &strange).unwrap_err().name, ErrorName::NotOurs);
        let adopting = Input { adopt: true, ..input() };
        let action = decide(&adopting, "coredns", &Wanted::default(), Some(&strange)).unwrap();
        assert_eq!(action, Action::Tag(names::tags(&input().cluster, &input().tags)));
    }

    #[test]
    fn an_own_role_has_the_recommended_policies_unless_others_are_listed() {
        let recommended = [AddonPodIdentityConfiguration::builder()
            .service_account("ebs-csi-controller-sa")
            .recommended_managed_policies("arn:aws:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy")
            .build()];
        assert_eq!(policies(&[], &recommended), ["arn:aws:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"]);
        assert_eq!(policies(&["arn:mine".to_owned()], &recommended), ["arn:mine"]);
        let role = role(&input(), EBS_DRIVER, vec![]);
        assert_eq!(role.name, "slipway-eks-demo-eu-west-1-addon-aws-ebs-csi-driver");
        let condition = &role.trust["Statement"][0]["Condition"];
        assert_eq!(condition["ArnEquals"]["aws:SourceArn"], "arn:aws:eks:eu-west-1:111122223333:cluster/demo");
    }

    #[test]
    fn volumes_carry_the_clusters_tags() {
        let class = storage_class(&input());
        assert_eq!(class["parameters"]["tagSpecification_1"], "slipway:cluster=demo");
        assert_eq!(class["parameters"]["tagSpecification_2"], "team=shop");
        let mut found = class.clone();
        assert_eq!(class_action(&class, &found), ClassAction::Apply);
        found["parameters"]["tagSpecification_2"] = json!("team=other");
        assert_eq!(class_action(&class, &found), ClassAction::Replace);
        found["metadata"]["labels"] = json!({});
        assert_eq!(class_action(&class, &found), ClassAction::Leave);
    }
}
