//! create-cluster: makes the control plane or adopts the one that is there, and reports it ACTIVE.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_eks::types::{
    AuthenticationMode, Cluster, ClusterStatus, CreateAccessConfigRequest, EncryptionConfig, LogSetup, LogType,
    Logging, Provider, SupportType, UpgradePolicyRequest, VpcConfigRequest, ZonalShiftConfigRequest,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError, names,
    spec::{EndpointSpec, UpgradePolicy},
};

use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        tags::{missing, ours},
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

/// The control plane as it shall be.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Kubernetes minor.
    pub version: String,
    /// Private and public, in at least two zones.
    pub subnet_ids: Vec<String>,
    /// What the control plane runs as.
    pub cluster_role_arn: String,
    /// From where the API server is reached.
    pub endpoint_access: EndpointSpec,
    /// Log types.
    #[serde(default)]
    pub logging: Vec<String>,
    /// KMS key for secrets.
    #[serde(default)]
    pub encryption_key_arn: Option<String>,
    /// STANDARD or EXTENDED.
    #[serde(default)]
    pub upgrade_policy: UpgradePolicy,
    /// Registered for ARC zonal shift.
    #[serde(default)]
    pub zonal_shift: bool,
    /// Deletion is refused.
    #[serde(default)]
    pub deletion_protection: bool,
    /// The spec's tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
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
struct Found {
    status: ClusterStatus,
    output: Output,
    endpoint_access: EndpointSpec,
    logging: BTreeSet<String>,
    upgrade_policy: UpgradePolicy,
    zonal_shift: bool,
    deletion_protection: bool,
    tags: BTreeMap<String, String>,
    /// `code: message` of each health issue.
    issues: Vec<String>,
}

/// One change of configuration; EKS takes one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Endpoint,
    Logging,
    UpgradePolicy,
    ZonalShift,
    DeletionProtection,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
enum Action {
    Create,
    Tag(BTreeMap<String, String>),
    Update(Change),
    Wait(u32, String),
    Done(Output),
}

fn decide(input: &Input, found: Option<&Found>) -> Result<Action, StepError> {
    let Some(found) = found else { return Ok(Action::Create) };
    let name = &input.cluster.name;
    if found.status == ClusterStatus::Deleting {
        return Ok(Action::Wait(DELETING_SECONDS, format!("the former cluster {name} is being deleted")));
    }
    ours(&input.cluster, &found.tags, &format!("The EKS cluster {name}"))?;
    match &found.status {
        ClusterStatus::Active => {}
        ClusterStatus::Failed => {
            let issues =
                if found.issues.is_empty() { "EKS names no health issue.".to_owned() } else { found.issues.join(" ") };
            return Err(StepError::new(
                ErrorName::ClusterFailed,
                format!("The EKS cluster {name} is FAILED: {issues}"),
            ));
        }
        ClusterStatus::Updating => {
            return Ok(Action::Wait(UPDATING_SECONDS, "EKS changes the control plane".to_owned()));
        }
        _ => return Ok(Action::Wait(CREATING_SECONDS, "EKS starts the control plane".to_owned())),
    }
    if found.output.version != input.version {
        return Err(StepError::new(
            ErrorName::NotYetSupported,
            format!("The cluster runs Kubernetes {} and the spec says {}.", found.output.version, input.version),
        )
        .remedy(format!("Set version to {}; this release does not upgrade clusters.", found.output.version)));
    }
    let lacking = missing(&names::tags(&input.cluster, &input.tags), &found.tags);
    if !lacking.is_empty() {
        return Ok(Action::Tag(lacking));
    }
    Ok(change(input, found).map_or_else(|| Action::Done(found.output.clone()), Action::Update))
}

/// The first thing that differs from the spec.
fn change(input: &Input, found: &Found) -> Option<Change> {
    let (wanted, there) = (&input.endpoint_access, &found.endpoint_access);
    let cidrs = |endpoint: &EndpointSpec| endpoint.cidrs.iter().cloned().collect::<BTreeSet<_>>();
    // CIDRs are about the public endpoint alone.
    let endpoint = (wanted.public, wanted.private) != (there.public, there.private)
        || (wanted.public && cidrs(wanted) != cidrs(there));
    let differences = [
        (endpoint, Change::Endpoint),
        (input.logging.iter().cloned().collect::<BTreeSet<_>>() != found.logging, Change::Logging),
        (input.upgrade_policy != found.upgrade_policy, Change::UpgradePolicy),
        (input.zonal_shift != found.zonal_shift, Change::ZonalShift),
        (input.deletion_protection != found.deletion_protection, Change::DeletionProtection),
    ];
    differences.into_iter().find_map(|(differs, change)| differs.then_some(change))
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
    let found = observe(cx, &input.cluster.name).await?;
    match decide(&input, found.as_ref())? {
        Action::Done(output) => Ok(Progress::done(output)),
        Action::Wait(seconds, detail) => Ok(Progress::wait(seconds, detail)),
        Action::Create => {
            cx.state.hold(&input.run, &input.cluster).await?;
            create(cx, &input).await
        }
        Action::Tag(tags) => {
            let arn = found.map(|found| found.output.arn).unwrap_or_default();
            cx.state.hold(&input.run, &input.cluster).await?;
            let call = cx.aws.eks().tag_resource().resource_arn(arn).set_tags(Some(tags.into_iter().collect()));
            call.send().await.during("eks:TagResource")?;
            Ok(Progress::wait(1, "the cluster has new tags"))
        }
        Action::Update(change) => {
            cx.state.hold(&input.run, &input.cluster).await?;
            let on = found.map(|found| found.logging).unwrap_or_default();
            update(cx, &input, &change, &on).await?;
            Ok(Progress::wait(UPDATING_SECONDS, format!("EKS changes the control plane: {change:?}")))
        }
    }
}

async fn create(cx: &Context, input: &Input) -> Result<Progress<Output>, StepError> {
    let access = CreateAccessConfigRequest::builder()
        .authentication_mode(AuthenticationMode::Api)
        // Nobody gets in by having been the one who called; access entries say who does.
        .bootstrap_cluster_creator_admin_permissions(false)
        .build();
    let encryption = input.encryption_key_arn.as_ref().map(|key| {
        let provider = Provider::builder().key_arn(key).build();
        vec![EncryptionConfig::builder().provider(provider).build()]
    });
    // Said only when wanted: not every region has it.
    let zonal_shift = input.zonal_shift.then(|| ZonalShiftConfigRequest::builder().enabled(true).build());
    let created = cx
        .aws
        .eks()
        .create_cluster()
        .name(&input.cluster.name)
        .version(&input.version)
        .role_arn(&input.cluster_role_arn)
        .resources_vpc_config(network(input).set_subnet_ids(Some(input.subnet_ids.clone())).build())
        .access_config(access)
        .bootstrap_self_managed_addons(false)
        .logging(logging(&input.logging, &BTreeSet::new()))
        .set_encryption_config(encryption)
        .upgrade_policy(upgrade_policy(input))
        .set_zonal_shift_config(zonal_shift)
        .deletion_protection(input.deletion_protection)
        .set_tags(Some(names::tags(&input.cluster, &input.tags).into_iter().collect()))
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

async fn update(cx: &Context, input: &Input, change: &Change, switched_on: &BTreeSet<String>) -> Result<(), StepError> {
    let call = cx.aws.eks().update_cluster_config().name(&input.cluster.name);
    let call = match change {
        Change::Endpoint => call.resources_vpc_config(network(input).build()),
        Change::Logging => call.logging(logging(&input.logging, switched_on)),
        Change::UpgradePolicy => call.upgrade_policy(upgrade_policy(input)),
        Change::ZonalShift => {
            call.zonal_shift_config(ZonalShiftConfigRequest::builder().enabled(input.zonal_shift).build())
        }
        Change::DeletionProtection => call.deletion_protection(input.deletion_protection),
    };
    match call.send().await {
        Err(error) if code(&error) == Some("ResourceInUseException") => Ok(()),
        answer => answer.map(|_| ()).during("eks:UpdateClusterConfig"),
    }
}

fn network(input: &Input) -> aws_sdk_eks::types::builders::VpcConfigRequestBuilder {
    let endpoint = &input.endpoint_access;
    VpcConfigRequest::builder()
        .endpoint_public_access(endpoint.public)
        .endpoint_private_access(endpoint.private)
        .set_public_access_cidrs(endpoint.public.then(|| endpoint.cidrs.clone()))
}

fn upgrade_policy(input: &Input) -> UpgradePolicyRequest {
    let support = match input.upgrade_policy {
        UpgradePolicy::Standard => SupportType::Standard,
        UpgradePolicy::Extended => SupportType::Extended,
    };
    UpgradePolicyRequest::builder().support_type(support).build()
}

async fn observe(cx: &Context, name: &str) -> Result<Option<Found>, StepError> {
    match cx.aws.eks().describe_cluster().name(name).send().await {
        Ok(answer) => Ok(answer.cluster.map(found)),
        Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(None),
        Err(error) => Err(refused("eks:DescribeCluster", &error)),
    }
}

fn found(cluster: Cluster) -> Found {
    let network = cluster.resources_vpc_config;
    let setups = cluster.logging.and_then(|logging| logging.cluster_logging).unwrap_or_default();
    let enabled = setups.into_iter().filter(|setup| setup.enabled == Some(true));
    let issues = cluster.health.and_then(|health| health.issues).unwrap_or_default();
    let services = cluster.kubernetes_network_config.and_then(|config| config.service_ipv4_cidr);
    let support = cluster.upgrade_policy.and_then(|policy| policy.support_type);
    Found {
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
                let code = issue.code.as_ref().map_or("no code", |code| code.as_str()).to_owned();
                format!("{code}: {}.", issue.message.unwrap_or_default().trim_end_matches('.'))
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
            "version": "1.36",
            "subnetIds": ["subnet-a", "subnet-b"],
            "clusterRoleArn": "arn:aws:iam::111122223333:role/slipway-eks-demo-eu-west-1-cluster",
            "endpointAccess": {"public": true, "private": true, "cidrs": ["0.0.0.0/0"]},
            "logging": ["api", "audit"],
            "encryptionKeyArn": null,
        }))
        .unwrap()
    }

    fn cluster(status: ClusterStatus) -> Found {
        Found {
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
    fn a_failed_cluster_says_what_eks_says() {
        let mut failed = cluster(ClusterStatus::Failed);
        failed.issues = vec!["InsufficientFreeAddresses: subnet-a is full.".into()];
        let error = decide(&input(), Some(&failed)).unwrap_err();
        assert_eq!(error.name, ErrorName::ClusterFailed);
        assert!(error.cause.contains("subnet-a is full"), "{}", error.cause);
    }

    #[test]
    fn what_differs_is_changed_one_thing_at_a_time() {
        let active = cluster(ClusterStatus::Active);
        let mut wish = input();
        wish.endpoint_access.cidrs = vec!["192.0.2.0/24".into()];
        wish.logging.push("scheduler".into());
        assert_eq!(decide(&wish, Some(&active)).unwrap(), Action::Update(Change::Endpoint));
        wish.endpoint_access = EndpointSpec::default();
        assert_eq!(decide(&wish, Some(&active)).unwrap(), Action::Update(Change::Logging));
        wish.logging = input().logging;
        wish.deletion_protection = true;
        assert_eq!(decide(&wish, Some(&active)).unwrap(), Action::Update(Change::DeletionProtection));
        wish.tags.insert("team".into(), "shop".into());
        let tags = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        assert_eq!(decide(&wish, Some(&active)).unwrap(), Action::Tag(tags));
    }

    #[test]
    fn cidrs_of_a_private_endpoint_are_nobodys_business() {
        let mut private = cluster(ClusterStatus::Active);
        private.endpoint_access.public = false;
        let mut wish = input();
        wish.endpoint_access = EndpointSpec { public: false, private: true, cidrs: vec!["192.0.2.0/24".into()] };
        assert!(matches!(decide(&wish, Some(&private)).unwrap(), Action::Done(_)));
    }

    #[test]
    fn another_version_is_no_small_change() {
        let mut wish = input();
        wish.version = "1.35".into();
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
