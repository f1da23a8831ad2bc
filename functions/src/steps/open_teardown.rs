//! open-teardown: finds out what there is of a cluster, takes its lease, opens a run; or says why it must stay.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ClusterSpec, ErrorName, Run, Step, StepError,
    names::CLUSTER_TAG,
    teardown::{Options, Teardown},
};

use super::open_run::{self, ExecutionRef, Wanted};
use crate::{
    Context,
    aws::error::{During as _, code, refused},
    runtime,
    state::runs::Purpose,
};

/// Opens the run of a teardown.
#[derive(Debug)]
pub struct OpenTeardown;

/// What the machine was started with, and as what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The execution that asks.
    pub execution: ExecutionRef,
    /// Which cluster, and what goes with it, as a person wrote it.
    pub request: Value,
}

/// The run, what it is for, and what there is.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The run; later steps hold its number against the lease.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The spec that the cluster was registered with; else what the request says.
    pub spec: ClusterSpec,
    /// What goes with it.
    pub options: Options,
    /// What EKS has.
    pub found: Found,
}

/// A control plane, as far as its end is concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// How one logs in; none of a cluster that has no API server, or none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<ClusterEndpoint>,
    /// For whoever watches: `ACTIVE`, `absent`, …
    pub detail: String,
}

impl Step for OpenTeardown {
    const NAME: &'static str = "open-teardown";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::NotYetSupported, ErrorName::LeaseHeld, ErrorName::DeletionProtected, ErrorName::NotOurs];
    type Input = Input;
    type Output = Output;
}

/// A control plane as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    status: String,
    endpoint: Option<ClusterEndpoint>,
    protected: bool,
    tags: BTreeMap<String, String>,
}

/// What is there of it; or why it must stay.
pub(crate) fn decide(
    cluster: &ClusterKey,
    options: &Options,
    registered: Option<&ClusterSpec>,
    observed: Option<&Observed>,
) -> Result<Found, StepError> {
    let protected = |by: &str| {
        Err(StepError::new(ErrorName::DeletionProtected, format!("{by} protects {} from deletion.", cluster.name)))
    };
    if !options.lift_deletion_protection {
        // A spec outlives its cluster in the registry, and then protects nothing.
        if observed.is_some() && registered.is_some_and(|spec| spec.deletion_protection) {
            return protected("`deletionProtection` of the registered spec");
        }
        if observed.is_some_and(|observed| observed.protected) {
            return protected("EKS");
        }
    }
    let Some(observed) = observed else { return Ok(Found { endpoint: None, detail: "absent".to_owned() }) };
    let ours = observed.tags.get(CLUSTER_TAG).is_some_and(|name| *name == cluster.name);
    let anothers = observed.tags.contains_key(CLUSTER_TAG);
    if !ours && (anothers || !options.adopt) {
        let cause = format!(
            "The cluster {} exists without the tag {CLUSTER_TAG}={}, so Slipway did not make it.",
            cluster.name, cluster.name
        );
        return Err(StepError::new(ErrorName::NotOurs, cause)
            .remedy("To take away a cluster that Slipway did not make, start the teardown with \"adopt\": true."));
    }
    let reachable = !matches!(observed.status.as_str(), "CREATING" | "DELETING" | "FAILED");
    let endpoint = observed.endpoint.clone().filter(|_| reachable);
    Ok(Found { endpoint, detail: observed.status.clone() })
}

/// Opens the run, or answers the one that this execution has opened already.
///
/// # Errors
/// `DeletionProtected` and `NotOurs` say how to take it away all the same; `LeaseHeld` names the execution that has it.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Teardown { mut spec, options } = Teardown::parse(&input.request).map_err(StepError::from)?;
    let caller = cx.aws.sts().get_caller_identity().send().await.during("sts:GetCallerIdentity")?;
    let cluster = open_run::place(&mut spec, caller.account().unwrap_or_default(), cx.aws.region())?;
    let registered: Option<ClusterSpec> =
        cx.state.registered(&cluster).await?.and_then(|last| serde_json::from_value(last.spec).ok());
    let found = decide(&cluster, &options, registered.as_ref(), observe(cx, &cluster.name).await?.as_ref())?;
    let spec = registered.unwrap_or(spec);
    let wanted = runtime::answer(&spec)?;
    let (execution, purpose) = (&input.execution.arn, Purpose::Teardown);
    let opened = open_run::open(cx, &cluster, Wanted { execution, purpose, spec: &wanted, resumes: None }).await?;
    Ok(Output { run: opened.run, cluster, spec, options, found })
}

/// The control plane of a name, if there is one.
pub(crate) async fn observe(cx: &Context, name: &str) -> Result<Option<Observed>, StepError> {
    let cluster = match cx.aws.eks().describe_cluster().name(name).send().await {
        Ok(answer) => answer.cluster,
        Err(error) if code(&error) == Some("ResourceNotFoundException") => None,
        Err(error) => return Err(refused("eks:DescribeCluster", &error)),
    };
    Ok(cluster.map(|cluster| Observed {
        status: cluster.status().map_or_else(String::new, |status| status.as_str().to_owned()),
        endpoint: cluster
            .endpoint()
            .zip(cluster.certificate_authority().and_then(|ca| ca.data()))
            .map(|(url, ca)| ClusterEndpoint { url: url.to_owned(), certificate_authority: ca.to_owned() }),
        protected: cluster.deletion_protection().unwrap_or_default(),
        tags: cluster.tags.unwrap_or_default().into_iter().collect(),
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn demo() -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() }
    }

    fn observed(status: &str, tag: Option<&str>) -> Observed {
        Observed {
            status: status.into(),
            endpoint: Some(ClusterEndpoint { url: "https://x".into(), certificate_authority: "QQ==".into() }),
            protected: false,
            tags: tag.into_iter().map(|name| (CLUSTER_TAG.to_owned(), name.to_owned())).collect(),
        }
    }

    fn decided(options: &Options, observed: Option<&Observed>) -> Result<Found, StepError> {
        decide(&demo(), options, None, observed)
    }

    #[test]
    fn a_cluster_is_entered_only_where_it_has_an_api_server() {
        let found = decided(&Options::default(), Some(&observed("ACTIVE", Some("demo")))).unwrap();
        assert!(found.endpoint.is_some());
        for status in ["CREATING", "FAILED", "DELETING"] {
            assert_eq!(decided(&Options::default(), Some(&observed(status, Some("demo")))).unwrap().endpoint, None);
        }
        assert_eq!(decided(&Options::default(), None).unwrap().detail, "absent");
    }

    #[test]
    fn a_protected_cluster_stays_unless_the_protection_is_lifted() {
        let spec = ClusterSpec::parse(&json!({"name": "demo", "deletionProtection": true})).unwrap();
        let lift = Options { lift_deletion_protection: true, ..Options::default() };
        let plain = observed("ACTIVE", Some("demo"));
        let error = decide(&demo(), &Options::default(), Some(&spec), Some(&plain)).unwrap_err();
        assert_eq!(error.name, ErrorName::DeletionProtected);
        assert!(error.remedy.contains("liftDeletionProtection"), "{}", error.remedy);
        let in_eks = Observed { protected: true, ..plain.clone() };
        assert_eq!(decided(&Options::default(), Some(&in_eks)).unwrap_err().name, ErrorName::DeletionProtected);
        assert!(decide(&demo(), &lift, Some(&spec), Some(&in_eks)).is_ok());
        assert!(decide(&demo(), &Options::default(), Some(&spec), None).is_ok(), "what is gone needs no protection");
    }

    #[test]
    fn a_strangers_cluster_is_taken_only_when_the_request_says_so() {
        let adopt = Options { adopt: true, ..Options::default() };
        let untagged = observed("ACTIVE", None);
        assert_eq!(decided(&Options::default(), Some(&untagged)).unwrap_err().name, ErrorName::NotOurs);
        assert!(decided(&adopt, Some(&untagged)).is_ok());
        let anothers = observed("ACTIVE", Some("demo-2"));
        assert_eq!(decided(&adopt, Some(&anothers)).unwrap_err().name, ErrorName::NotOurs);
    }
}
