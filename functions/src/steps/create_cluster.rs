//! create-cluster: makes the control plane or adopts the one that is there, and reports it ACTIVE.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use aws_sdk_eks::types::{
    AuthenticationMode, Cluster, ClusterStatus, CreateAccessConfigRequest, EncryptionConfig, LogSetup, LogType,
    Logging, Provider, SupportType, UpdateAccessConfigRequest, UpgradePolicyRequest, VpcConfigRequest,
    ZonalShiftConfigRequest,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ClusterSpec, ErrorName, Progress, Run, Step, StepError, names,
    plan::Planned,
    spec::{EndpointSpec, UpgradePolicy},
};

use super::open_run::encryption_key;
use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        health,
        tags::{self, missing, takes},
    },
};

/// A control plane takes nine minutes.
const CREATING_SECONDS: u32 = 30;
/// A change of configuration takes one or two.
const UPDATING_SECONDS: u32 = 15;
/// A cluster of the same name that is on its way out takes a few minutes.
const DELETING_SECONDS: u32 = 30;

/// Makes the control plane.
#[derive(Debug)]
pub struct CreateCluster;

/// The control plane as the spec asks for it, in the spec's own types.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The completed spec.
    pub spec: ClusterSpec,
    /// Private and public, in at least two zones.
    pub subnet_ids: Vec<String>,
    /// What the control plane runs as.
    pub cluster_role_arn: String,
}

/// What everybody else needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The cluster's ARN.
    pub arn: String,
    /// Where its API server is, and whom to trust there.
    pub endpoint: ClusterEndpoint,
    /// The issuer of its service account tokens, `https://…`.
    pub issuer: String,
    /// The security group that EKS made, which nodes use too.
    pub security_group_id: String,
    /// Kubernetes minor.
    pub version: String,
    /// IPv4 block of services.
    pub service_cidr: String,
}

impl Step for CreateCluster {
    const NAME: &'static str = "create-cluster";
    const ERRORS: &'static [ErrorName] = &[ErrorName::ClusterFailed, ErrorName::NotOurs, ErrorName::NotYetSupported];
    type Input = Input;
    type Output = Progress<Output>;
}

/// A control plane as it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    status: ClusterStatus,
    output: Output,
    endpoint_access: EndpointSpec,
    logging: BTreeSet<String>,
    encryption_key_arn: Option<String>,
    upgrade_policy: UpgradePolicy,
    zonal_shift: bool,
    deletion_protection: bool,
    /// Access entries count: the mode is `API` or `API_AND_CONFIG_MAP`.
    access_entries: bool,
    tags: BTreeMap<String, String>,
    issues: Vec<String>,
}

/// One change of configuration; EKS takes one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Of an adopted cluster; entries and its aws-auth map count side by side from then on.
    AccessEntries,
    Endpoint,
    Logging,
    Encryption,
    UpgradePolicy,
    ZonalShift,
    DeletionProtection,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AccessEntries => "access entries",
            Self::Endpoint => "endpoint access",
            Self::Logging => "logging",
            Self::Encryption => "encryption of secrets",
            Self::UpgradePolicy => "upgrade policy",
            Self::ZonalShift => "zonal shift",
            Self::DeletionProtection => "deletion protection",
        })
    }
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Create,
    /// Take it over, with these tags; the changes come after.
    Adopt(BTreeMap<String, String>, Vec<Change>),
    Tag(BTreeMap<String, String>),
    Update(Change),
    Wait(u32, String),
    Done(Output),
}

pub(crate) fn decide(input: &Input, found: Option<&Observed>) -> Result<Action, StepError> {
    let Some(found) = found else { return Ok(Action::Create) };
    let (name, spec) = (&input.cluster.name, &input.spec);
    if found.status == ClusterStatus::Deleting {
        return Ok(Action::Wait(DELETING_SECONDS, format!("the former cluster {name} is being deleted")));
    }
    takes(&input.cluster, spec.adopt, &found.tags, &format!("The EKS cluster {name}"))?;
    match &found.status {
        ClusterStatus::Active => {}
        ClusterStatus::Failed => {
            let what = format!("The EKS cluster {name} is FAILED");
            let again = "then delete the failed cluster and start again";
            return Err(health::failure(ErrorName::ClusterFailed, &what, &found.issues, again));
        }
        ClusterStatus::Updating => {
            return Ok(Action::Wait(UPDATING_SECONDS, "EKS changes the control plane".to_owned()));
        }
        _ if found.issues.is_empty() => {
            return Ok(Action::Wait(CREATING_SECONDS, "EKS starts the control plane".to_owned()));
        }
        _ => {
            let issues = health::said(&found.issues);
            return Ok(Action::Wait(CREATING_SECONDS, format!("EKS starts the control plane, and says: {issues}")));
        }
    }
    // open-run refuses what cannot be changed before anything is touched; this is for who got in between.
    if spec.version.as_ref().is_some_and(|version| *version != found.output.version) {
        return Err(StepError::new(
            ErrorName::NotYetSupported,
            format!("The cluster runs Kubernetes {} and another version is asked for.", found.output.version),
        )
        .remedy(format!("Set version to {}; this release does not upgrade clusters.", found.output.version)));
    }
    let lacking = missing(&names::tags(&input.cluster, &spec.tags), &found.tags);
    let changes = changes(spec, found);
    if !found.tags.contains_key(names::CLUSTER_TAG) {
        return Ok(Action::Adopt(lacking, changes));
    }
    if !lacking.is_empty() {
        return Ok(Action::Tag(lacking));
    }
    Ok(changes.first().map_or_else(|| Action::Done(found.output.clone()), |change| Action::Update(*change)))
}

/// Everything that differs from the spec, in the order in which it is changed.
fn changes(spec: &ClusterSpec, found: &Observed) -> Vec<Change> {
    let (wanted, there) = (&spec.access.endpoint, &found.endpoint_access);
    let cidrs = |endpoint: &EndpointSpec| endpoint.cidrs.iter().cloned().collect::<BTreeSet<_>>();
    // CIDRs are about the public endpoint alone.
    let endpoint = (wanted.public, wanted.private) != (there.public, there.private)
        || (wanted.public && cidrs(wanted) != cidrs(there));
    let encryption = spec.encryption_key_arn.is_some() && spec.encryption_key_arn != found.encryption_key_arn;
    let differences = [
        (!found.access_entries, Change::AccessEntries),
        (endpoint, Change::Endpoint),
        (spec.logging.iter().cloned().collect::<BTreeSet<_>>() != found.logging, Change::Logging),
        (encryption, Change::Encryption),
        (spec.upgrade_policy != found.upgrade_policy, Change::UpgradePolicy),
        (spec.zonal_shift != found.zonal_shift, Change::ZonalShift),
        (spec.deletion_protection != found.deletion_protection, Change::DeletionProtection),
    ];
    differences.into_iter().filter_map(|(differs, change)| differs.then_some(change)).collect()
}

/// What a person reads before a cluster is taken over.
fn takeover(name: &str, tags: &BTreeMap<String, String>, changes: &[Change]) -> String {
    let tags: Vec<String> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    let changes = if changes.is_empty() { "nothing else changes".to_owned() } else { changes.join(", ") };
    format!("takes over the cluster {name}: tags {}; then changes: {changes}", tags.join(", "))
}

/// Which log types are switched on, and for a cluster that is there, which are switched off.
fn logging(wanted: &[String], switched_on: &BTreeSet<String>) -> Logging {
    let setup = |types: Vec<LogType>, enabled| LogSetup::builder().set_types(Some(types)).enabled(enabled).build();
    let on: Vec<LogType> = wanted.iter().map(|kind| kind.as_str().into()).collect();
    let off: Vec<LogType> =
        switched_on.iter().filter(|kind| !wanted.contains(kind)).map(|kind| kind.as_str().into()).collect();
    let setups = [(on, true), (off, false)].into_iter().filter(|(types, _)| !types.is_empty());
    Logging::builder().set_cluster_logging(Some(setups.map(|(types, enabled)| setup(types, enabled)).collect())).build()
}

/// Makes the control plane, or reports how far it is.
///
/// # Errors
/// `ClusterFailed` with EKS's health issues; `NotOurs` for a cluster of that name without our tag; `NotYetSupported`
/// where the spec asks a running cluster for another version; `QuotaExceeded`.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let found = observe(cx, &input).await?;
    match decide(&input, found.as_ref())? {
        Action::Done(output) => Ok(Progress::done(output)),
        Action::Wait(seconds, detail) => Ok(Progress::wait(seconds, detail)),
        Action::Create => {
            cx.state.hold(&input.run, &input.cluster).await?;
            create(cx, &input).await
        }
        Action::Adopt(tags, changes) => {
            let detail = takeover(&input.cluster.name, &tags, &changes);
            tag(cx, &input, found, tags).await?;
            Ok(Progress::wait(1, detail))
        }
        Action::Tag(tags) => {
            tag(cx, &input, found, tags).await?;
            Ok(Progress::wait(1, "the cluster has new tags"))
        }
        Action::Update(change) => {
            cx.state.hold(&input.run, &input.cluster).await?;
            let on = found.map(|found| found.logging).unwrap_or_default();
            update(cx, &input, change, &on).await?;
            Ok(Progress::wait(UPDATING_SECONDS, format!("EKS changes the control plane: {change}")))
        }
    }
}

/// What would become of the control plane; with it what later steps know of one that is there.
///
/// # Errors
/// As [`run`].
pub(crate) async fn plan(cx: &Context, input: &Input) -> Result<(Planned, Option<Output>), StepError> {
    let found = observe(cx, input).await?;
    let told = match (decide(input, found.as_ref())?, &found) {
        (Action::Wait(_, detail), _) => vec![detail],
        (_, None) => Vec::new(),
        (_, Some(found)) => {
            let lacking = missing(&names::tags(&input.cluster, &input.spec.tags), &found.tags);
            let lacking = (!lacking.is_empty()).then(|| tags::told(&lacking));
            lacking.into_iter().chain(changes(&input.spec, found).iter().map(ToString::to_string)).collect()
        }
    };
    let planned = Planned::of("EKS cluster", &input.cluster.name, found.as_ref().map(|_| told.as_slice()));
    Ok((planned, found.map(|found| found.output).filter(|output| !output.endpoint.url.is_empty())))
}

async fn tag(
    cx: &Context,
    input: &Input,
    found: Option<Observed>,
    tags: BTreeMap<String, String>,
) -> Result<(), StepError> {
    let arn = found.map(|found| found.output.arn).unwrap_or_default();
    cx.state.hold(&input.run, &input.cluster).await?;
    let call = cx.aws.eks().tag_resource().resource_arn(arn).set_tags(Some(tags.into_iter().collect()));
    call.send().await.map(|_| ()).during("eks:TagResource")
}

async fn create(cx: &Context, input: &Input) -> Result<Progress<Output>, StepError> {
    let access = CreateAccessConfigRequest::builder()
        .authentication_mode(AuthenticationMode::Api)
        // Nobody gets in by having been the one who called; access entries say who does.
        .bootstrap_cluster_creator_admin_permissions(false)
        .build();
    let spec = &input.spec;
    // Said only when wanted: not every region has it.
    let zonal_shift = spec.zonal_shift.then(|| ZonalShiftConfigRequest::builder().enabled(true).build());
    let created = cx
        .aws
        .eks()
        .create_cluster()
        .name(&input.cluster.name)
        .set_version(spec.version.clone())
        .role_arn(&input.cluster_role_arn)
        .resources_vpc_config(network(input).set_subnet_ids(Some(input.subnet_ids.clone())).build())
        .access_config(access)
        .bootstrap_self_managed_addons(false)
        .logging(logging(&spec.logging, &BTreeSet::new()))
        .set_encryption_config(encryption(spec))
        .upgrade_policy(upgrade_policy(spec))
        .set_zonal_shift_config(zonal_shift)
        .deletion_protection(spec.deletion_protection)
        .set_tags(Some(names::tags(&input.cluster, &spec.tags).into_iter().collect()))
        .client_request_token(format!("{}-cluster", input.run.id))
        .send()
        .await;
    match created {
        Ok(_) => Ok(Progress::wait(CREATING_SECONDS, "EKS starts the control plane")),
        // Made since we looked, by whomever: the next look tells whether it is ours.
        Err(error) if code(&error) == Some("ResourceInUseException") => {
            Ok(Progress::wait(UPDATING_SECONDS, "a cluster of that name has just been made"))
        }
        Err(error) => Err(refused("eks:CreateCluster", &error)),
    }
}

async fn update(cx: &Context, input: &Input, change: Change, switched_on: &BTreeSet<String>) -> Result<(), StepError> {
    let spec = &input.spec;
    let call = cx.aws.eks().update_cluster_config().name(&input.cluster.name);
    let call = match change {
        Change::AccessEntries => {
            let mode = AuthenticationMode::ApiAndConfigMap;
            call.access_config(UpdateAccessConfigRequest::builder().authentication_mode(mode).build())
        }
        Change::Endpoint => call.resources_vpc_config(network(input).build()),
        Change::Logging => call.logging(logging(&spec.logging, switched_on)),
        Change::Encryption => return encrypt(cx, input).await,
        Change::UpgradePolicy => call.upgrade_policy(upgrade_policy(spec)),
        Change::ZonalShift => {
            call.zonal_shift_config(ZonalShiftConfigRequest::builder().enabled(spec.zonal_shift).build())
        }
        Change::DeletionProtection => call.deletion_protection(spec.deletion_protection),
    };
    match call.send().await {
        Err(error) if code(&error) == Some("ResourceInUseException") => Ok(()),
        answer => answer.map(|_| ()).during("eks:UpdateClusterConfig"),
    }
}

/// Gives a cluster that has none its key, for good.
async fn encrypt(cx: &Context, input: &Input) -> Result<(), StepError> {
    let call = cx.aws.eks().associate_encryption_config().cluster_name(&input.cluster.name);
    match call.set_encryption_config(encryption(&input.spec)).send().await {
        Err(error) if code(&error) == Some("ResourceInUseException") => Ok(()),
        answer => answer.map(|_| ()).during("eks:AssociateEncryptionConfig"),
    }
}

fn encryption(spec: &ClusterSpec) -> Option<Vec<EncryptionConfig>> {
    let provider = Provider::builder().key_arn(spec.encryption_key_arn.as_ref()?).build();
    Some(vec![EncryptionConfig::builder().provider(provider).build()])
}

fn network(input: &Input) -> aws_sdk_eks::types::builders::VpcConfigRequestBuilder {
    let endpoint = &input.spec.access.endpoint;
    VpcConfigRequest::builder()
        .endpoint_public_access(endpoint.public)
        .endpoint_private_access(endpoint.private)
        .set_public_access_cidrs(endpoint.public.then(|| endpoint.cidrs.clone()))
}

fn upgrade_policy(spec: &ClusterSpec) -> UpgradePolicyRequest {
    let support = match spec.upgrade_policy {
        UpgradePolicy::Standard => SupportType::Standard,
        UpgradePolicy::Extended => SupportType::Extended,
    };
    UpgradePolicyRequest::builder().support_type(support).build()
}

pub(crate) async fn observe(cx: &Context, input: &Input) -> Result<Option<Observed>, StepError> {
    match cx.aws.eks().describe_cluster().name(&input.cluster.name).send().await {
        Ok(answer) => Ok(answer.cluster.map(found)),
        Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(None),
        Err(error) => Err(refused("eks:DescribeCluster", &error)),
    }
}

fn found(cluster: Cluster) -> Observed {
    let encryption_key_arn = encryption_key(&cluster);
    let mode = cluster.access_config.and_then(|access| access.authentication_mode);
    let network = cluster.resources_vpc_config;
    let setups = cluster.logging.and_then(|logging| logging.cluster_logging).unwrap_or_default();
    let enabled = setups.into_iter().filter(|setup| setup.enabled == Some(true));
    let issues = cluster.health.and_then(|health| health.issues).unwrap_or_default();
    let services = cluster.kubernetes_network_config.and_then(|config| config.service_ipv4_cidr);
    let support = cluster.upgrade_policy.and_then(|policy| policy.support_type);
    Observed {
        status: cluster.status.unwrap_or(ClusterStatus::Creating),
        output: Output {
            arn: cluster.arn.unwrap_or_default(),
            endpoint: ClusterEndpoint {
                url: cluster.endpoint.unwrap_or_default(),
                certificate_authority: cluster.certificate_authority.and_then(|ca| ca.data).unwrap_or_default(),
            },
            issuer: cluster
                .identity
                .and_then(|identity| identity.oidc)
                .and_then(|oidc| oidc.issuer)
                .unwrap_or_default(),
            security_group_id: network
                .as_ref()
                .and_then(|network| network.cluster_security_group_id.clone())
                .unwrap_or_default(),
            version: cluster.version.unwrap_or_default(),
            service_cidr: services.unwrap_or_default(),
        },
        endpoint_access: EndpointSpec {
            public: network.as_ref().is_some_and(|network| network.endpoint_public_access),
            private: network.as_ref().is_some_and(|network| network.endpoint_private_access),
            cidrs: network.and_then(|network| network.public_access_cidrs).unwrap_or_default(),
        },
        logging: enabled
            .flat_map(|setup| setup.types.unwrap_or_default())
            .map(|kind| kind.as_str().to_owned())
            .collect(),
        encryption_key_arn,
        access_entries: mode != Some(AuthenticationMode::ConfigMap),
        upgrade_policy: match support {
            Some(SupportType::Standard) => UpgradePolicy::Standard,
            _ => UpgradePolicy::Extended,
        },
        zonal_shift: cluster.zonal_shift_config.and_then(|config| config.enabled).unwrap_or_default(),
        deletion_protection: cluster.deletion_protection.unwrap_or_default(),
        tags: cluster.tags.unwrap_or_default().into_iter().collect(),
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
        serde_json::from_value(serde_json::json!({
            "run": {"id": "01", "fence": 1},
            "cluster": {"account": "111122223333", "region": "eu-west-1", "name": "demo"},
            "spec": {"name": "demo", "version": "1.36", "logging": ["api", "audit"]},
            "subnetIds": ["subnet-a", "subnet-b"],
            "clusterRoleArn": "arn:aws:iam::111122223333:role/slipway-eks-demo-eu-west-1-cluster",
        }))
        .unwrap()
    }

    fn cluster(status: ClusterStatus) -> Observed {
        Observed {
            status,
            output: Output {
                arn: "arn:c".into(),
                endpoint: ClusterEndpoint { url: "https://c".into(), certificate_authority: "PEM".into() },
                issuer: "https://oidc".into(),
                security_group_id: "sg-1".into(),
                version: "1.36".into(),
                service_cidr: "172.20.0.0/16".into(),
            },
            endpoint_access: EndpointSpec::default(),
            logging: BTreeSet::from(["audit".into(), "api".into()]),
            encryption_key_arn: None,
            access_entries: true,
            upgrade_policy: UpgradePolicy::Standard,
            zonal_shift: false,
            deletion_protection: false,
            tags: names::tags(&input().cluster, &BTreeMap::new()),
            issues: vec![],
        }
    }

    #[test]
    fn a_cluster_is_made_waited_for_and_then_left_alone() {
        assert_eq!(decide(&input(), None).unwrap(), Action::Create);
        for (status, seconds) in [
            (ClusterStatus::Creating, CREATING_SECONDS),
            (ClusterStatus::Updating, UPDATING_SECONDS),
            (ClusterStatus::Deleting, DELETING_SECONDS),
        ] {
            let action = decide(&input(), Some(&cluster(status))).unwrap();
            assert!(matches!(action, Action::Wait(wait, _) if wait == seconds), "{action:?}");
        }
        let active = cluster(ClusterStatus::Active);
        assert_eq!(decide(&input(), Some(&active)).unwrap(), Action::Done(active.output));
    }

    #[test]
    fn a_strangers_cluster_is_refused() {
        let mut strange = cluster(ClusterStatus::Active);
        strange.tags.clear();
        assert_eq!(decide(&input(), Some(&strange)).unwrap_err().name, ErrorName::NotOurs);
    }

    #[test]
    fn a_cluster_is_taken_over_with_a_word_about_what_will_change() {
        let mut strange = cluster(ClusterStatus::Active);
        strange.tags.clear();
        strange.access_entries = false;
        strange.logging.clear();
        let mut wish = input();
        wish.spec.adopt = true;
        let changes = vec![Change::AccessEntries, Change::Logging];
        let tags = names::tags(&wish.cluster, &BTreeMap::new());
        assert_eq!(decide(&wish, Some(&strange)).unwrap(), Action::Adopt(tags.clone(), changes.clone()));
        assert_eq!(
            takeover("demo", &tags, &changes),
            "takes over the cluster demo: tags slipway:cluster=demo; then changes: access entries, logging"
        );
        strange.tags.insert(names::CLUSTER_TAG.into(), "demo-2".into());
        assert_eq!(decide(&wish, Some(&strange)).unwrap_err().name, ErrorName::NotOurs);
    }

    #[test]
    fn a_key_is_added_to_a_cluster_without_one() {
        let mut wish = input();
        wish.spec.encryption_key_arn = Some("arn:k".into());
        let mut there = cluster(ClusterStatus::Active);
        assert_eq!(decide(&wish, Some(&there)).unwrap(), Action::Update(Change::Encryption));
        there.encryption_key_arn = Some("arn:k".into());
        assert!(matches!(decide(&wish, Some(&there)).unwrap(), Action::Done(_)));
    }

    #[test]
    fn a_failed_cluster_says_what_eks_says() {
        let mut failed = cluster(ClusterStatus::Failed);
        failed.issues = vec!["InsufficientFreeAddresses: subnet-a is full.".into()];
        let error = decide(&input(), Some(&failed)).unwrap_err();
        assert_eq!(error.name, ErrorName::ClusterFailed);
        assert!(error.cause.contains("subnet-a is full"), "{}", error.cause);
        assert!(error.remedy.contains("larger subnets") && error.remedy.contains("delete"), "{}", error.remedy);
        failed.status = ClusterStatus::Creating;
        let waiting = decide(&input(), Some(&failed)).unwrap();
        assert!(matches!(&waiting, Action::Wait(_, detail) if detail.contains("subnet-a is full")), "{waiting:?}");
    }

    #[test]
    fn what_differs_is_changed_one_thing_at_a_time() {
        let active = cluster(ClusterStatus::Active);
        let mut wish = input();
        wish.spec.access.endpoint.cidrs = vec!["192.0.2.0/24".into()];
        wish.spec.logging.push("scheduler".into());
        assert_eq!(decide(&wish, Some(&active)).unwrap(), Action::Update(Change::Endpoint));
        wish.spec.access.endpoint = EndpointSpec::default();
        assert_eq!(decide(&wish, Some(&active)).unwrap(), Action::Update(Change::Logging));
        wish.spec.logging = input().spec.logging;
        wish.spec.deletion_protection = true;
        assert_eq!(decide(&wish, Some(&active)).unwrap(), Action::Update(Change::DeletionProtection));
        wish.spec.tags.insert("team".into(), "shop".into());
        let tags = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        assert_eq!(decide(&wish, Some(&active)).unwrap(), Action::Tag(tags));
    }

    #[test]
    fn cidrs_of_a_private_endpoint_are_nobodys_business() {
        let mut private = cluster(ClusterStatus::Active);
        private.endpoint_access.public = false;
        let mut wish = input();
        wish.spec.access.endpoint = EndpointSpec { public: false, private: true, cidrs: vec!["192.0.2.0/24".into()] };
        assert!(matches!(decide(&wish, Some(&private)).unwrap(), Action::Done(_)));
    }

    #[test]
    fn another_version_is_no_small_change() {
        let mut wish = input();
        wish.spec.version = Some("1.35".into());
        let error = decide(&wish, Some(&cluster(ClusterStatus::Active))).unwrap_err();
        assert_eq!(error.name, ErrorName::NotYetSupported);
        assert!(error.remedy.contains("1.36"), "{}", error.remedy);
    }

    #[test]
    fn log_types_that_are_no_longer_wanted_are_switched_off() {
        let made = logging(&["api".to_owned()], &BTreeSet::from(["api".to_owned(), "audit".to_owned()]));
        let setups = made.cluster_logging.unwrap();
        let off = setups.iter().find(|setup| setup.enabled == Some(false)).unwrap();
        assert_eq!(off.types(), [LogType::Audit]);
        assert_eq!(logging(&[], &BTreeSet::new()).cluster_logging.unwrap(), []);
    }
}
