//! ensure-addons: EKS's own add-ons, those that nodes need before they come, and the rest after.

use std::collections::BTreeMap;

use aws_sdk_eks::types::{Addon, AddonStatus, ResolveConflicts};
use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{ClusterKey, ErrorName, Progress, Run, Step, StepError, names, spec::AddonSpec};

use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        tags::{missing, ours},
    },
};

/// An add-on takes half a minute to a minute.
const POLL_SECONDS: u32 = 15;
/// Pod networking, service networking, and the agent of Pod Identity: a node without them stays not ready.
const BEFORE_NODES: [&str; 3] = ["vpc-cni", "kube-proxy", "eks-pod-identity-agent"];
/// Needs a node to run on.
const AFTER_NODES: [&str; 1] = ["coredns"];

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
    const ERRORS: &'static [ErrorName] = &[ErrorName::AddonFailed, ErrorName::NotOurs];
    type Input = Input;
    type Output = Progress<Output>;
}

/// An add-on as it is.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    arn: String,
    status: AddonStatus,
    version: String,
    configuration: Option<Value>,
    tags: BTreeMap<String, String>,
    issues: Vec<String>,
}

/// What to do about one.
#[derive(Debug, Clone, PartialEq)]
enum Action {
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

fn decide(
    cluster: &ClusterKey,
    tags: &BTreeMap<String, String>,
    name: &str,
    addon: &AddonSpec,
    found: Option<&Found>,
) -> Result<Action, StepError> {
    let Some(found) = found else { return Ok(Action::Create) };
    ours(cluster, &found.tags, &format!("The add-on {name}"))?;
    match &found.status {
        AddonStatus::Active => {
            let differs = addon.version.as_ref().is_some_and(|version| *version != found.version)
                || (addon.configuration.is_some() && addon.configuration != found.configuration);
            let lacking = missing(tags, &found.tags);
            if differs {
                Ok(Action::Update)
            } else if lacking.is_empty() {
                Ok(Action::Done(AddonOutput { name: name.to_owned(), version: found.version.clone() }))
            } else {
                Ok(Action::Tag(lacking))
            }
        }
        AddonStatus::Creating | AddonStatus::Updating => Ok(Action::Wait(format!("{name} is being rolled out"))),
        AddonStatus::Deleting => Ok(Action::Wait(format!("the former {name} is being deleted"))),
        status => {
            let issues = if found.issues.is_empty() { "EKS names no issue.".into() } else { found.issues.join(" ") };
            Err(StepError::new(ErrorName::AddonFailed, format!("The add-on {name} is {}: {issues}", status.as_str())))
        }
    }
}

/// Makes the phase's add-ons side by side, or reports what is waited for.
///
/// # Errors
/// `AddonFailed` with EKS's health issues; `NotOurs` for one without our tag.
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
    let tags = names::tags(&input.cluster, &input.tags);
    let found = match eks.describe_addon().cluster_name(cluster).addon_name(name).send().await {
        Ok(answer) => answer.addon.map(found),
        Err(error) if code(&error) == Some("ResourceNotFoundException") => None,
        Err(error) => return Err(refused("eks:DescribeAddon", &error)),
    };
    let configuration = addon.configuration.as_ref().map(ToString::to_string);
    match decide(&input.cluster, &tags, name, addon, found.as_ref())? {
        Action::Done(output) => Ok(Ok(output)),
        Action::Wait(detail) => Ok(Err(detail)),
        Action::Create => {
            let version = match &addon.version {
                Some(version) => version.clone(),
                None => default_version(cx, name, &input.version).await?,
            };
            cx.state.hold(&input.run, &input.cluster).await?;
            eks.create_addon()
                .cluster_name(cluster)
                .addon_name(name)
                .addon_version(version)
                .set_configuration_values(configuration)
                // A cluster made by hand may have the same objects unmanaged; the add-on takes them over.
                .resolve_conflicts(ResolveConflicts::Overwrite)
                .set_tags(Some(tags.into_iter().collect()))
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

fn found(addon: Addon) -> Found {
    let issues = addon.health.and_then(|health| health.issues).unwrap_or_default();
    Found {
        arn: addon.addon_arn.unwrap_or_default(),
        status: addon.status.unwrap_or(AddonStatus::Creating),
        version: addon.addon_version.unwrap_or_default(),
        configuration: addon.configuration_values.and_then(|text| serde_json::from_str(&text).ok()),
        tags: addon.tags.unwrap_or_default().into_iter().collect(),
        issues: issues
            .into_iter()
            .map(|issue| {
                let code = issue.code.as_ref().map_or("no code", |code| code.as_str()).to_owned();
                format!("{code}: {}.", issue.message.as_deref().unwrap_or("no message").trim_end_matches('.'))
            })
            .collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn demo() -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() }
    }

    fn tags() -> BTreeMap<String, String> {
        names::tags(&demo(), &BTreeMap::new())
    }

    fn coredns(status: AddonStatus) -> Found {
        Found {
            arn: "arn:a".into(),
            status,
            version: "v1".into(),
            configuration: Some(json!({"replicaCount": 2})),
            tags: tags(),
            issues: vec![],
        }
    }

    fn decided(addon: &AddonSpec, found: &Found) -> Result<Action, StepError> {
        decide(&demo(), &tags(), "coredns", addon, Some(found))
    }

    #[test]
    fn a_spec_may_speak_of_ours_and_bring_its_own() {
        let versioned = AddonSpec { version: Some("v9".into()), configuration: None };
        let spec = BTreeMap::from([
            ("vpc-cni".to_owned(), versioned.clone()),
            ("aws-ebs-csi-driver".to_owned(), AddonSpec::default()),
        ]);
        let before = wanted(Phase::Before, &spec);
        assert_eq!((before.len(), &before["vpc-cni"]), (3, &versioned));
        let after: Vec<_> = wanted(Phase::After, &spec).into_keys().collect();
        assert_eq!(after, ["aws-ebs-csi-driver", "coredns"]);
    }

    #[test]
    fn only_what_the_spec_names_is_changed() {
        let active = coredns(AddonStatus::Active);
        assert!(matches!(decided(&AddonSpec::default(), &active).unwrap(), Action::Done(_)));
        let newer = AddonSpec { version: Some("v2".into()), configuration: None };
        assert_eq!(decided(&newer, &active).unwrap(), Action::Update);
        let same = AddonSpec { version: None, configuration: Some(json!({"replicaCount": 2})) };
        assert!(matches!(decided(&same, &active).unwrap(), Action::Done(_)));
        let more = AddonSpec { version: None, configuration: Some(json!({"replicaCount": 3})) };
        assert_eq!(decided(&more, &active).unwrap(), Action::Update);
    }

    #[test]
    fn a_degraded_addon_says_what_eks_says() {
        let mut degraded = coredns(AddonStatus::Degraded);
        degraded.issues = vec!["InsufficientNumberOfReplicas: no nodes.".into()];
        let error = decided(&AddonSpec::default(), &degraded).unwrap_err();
        assert_eq!(error.name, ErrorName::AddonFailed);
        assert!(error.cause.contains("DEGRADED") && error.cause.contains("no nodes"));
    }
}
