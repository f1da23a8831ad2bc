//! open-run: validates and completes the spec, takes the cluster's lease, opens a run.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{
    ClusterKey, ClusterSpec, ErrorName, Made, Run, Step, StepError,
    immutable::{self, There},
    names::{CLUSTER_TAG, CORE_NODE_GROUP},
    spec::Mode,
};
use time::OffsetDateTime;
use ulid::Ulid;

use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        tags::takes,
    },
    resume::{self, Resumption},
    runtime,
    state::{
        Registration,
        lease::{self, Decision, Execution},
        runs::{Opening, Purpose},
    },
};

/// Opens a run.
#[derive(Debug)]
pub struct OpenRun;

/// What the machine was started with, and as what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The execution that asks.
    pub execution: ExecutionRef,
    /// The ClusterSpec as a person wrote it.
    pub spec: Value,
}

/// An execution, as the machine knows itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionRef {
    /// Its ARN.
    pub arn: String,
    /// RFC 3339.
    pub started_at: String,
}

/// The run, and what it is for.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The run; later steps hold its number against the lease.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The spec with account, region and version set.
    pub spec: ClusterSpec,
    /// What need not be looked at again; where it names a stage, the run begins there.
    pub made: Made,
    /// ULID of the failed run that this one goes on with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumes: Option<String>,
}

impl Step for OpenRun {
    const NAME: &'static str = "open-run";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::NotYetSupported, ErrorName::ImmutableChange, ErrorName::NotOurs, ErrorName::LeaseHeld];
    type Input = Input;
    type Output = Output;
}

/// Sets account and region, which are the control plane's own.
pub(crate) fn place(spec: &mut ClusterSpec, account: &str, region: &str) -> Result<ClusterKey, StepError> {
    let elsewhere = |field: &str, asked: &str, own: &str| {
        let cause = format!("`{field}` is {asked:?}, but this control plane makes clusters in {own} only.");
        Err(StepError::new(ErrorName::NotYetSupported, cause)
            .remedy(format!("Remove `{field}`, or start the run in a control plane that is deployed there.")))
    };
    match (spec.account.as_deref(), spec.region.as_deref()) {
        (Some(asked), _) if asked != account => elsewhere("account", asked, account),
        (_, Some(asked)) if asked != region => elsewhere("region", asked, region),
        _ => {
            spec.account = Some(account.to_owned());
            spec.region = Some(region.to_owned());
            Ok(ClusterKey { account: account.to_owned(), region: region.to_owned(), name: spec.name.clone() })
        }
    }
}

/// A cluster of the name that is there: what binds the spec, and its tags.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    there: There,
    tags: BTreeMap<String, String>,
    endpoint: Option<String>,
}

/// Whether a run with this spec may be opened over what is there. It is asked before anything is written: a spec that
/// is refused must not become the registered one.
pub(crate) fn decide(cluster: &ClusterKey, spec: &ClusterSpec, found: Option<&Found>) -> Result<(), StepError> {
    let Some(found) = found else { return Ok(()) };
    takes(cluster, spec.adopt, &found.tags, &format!("The EKS cluster {}", cluster.name))?;
    let refused = immutable::violations(spec, &found.there);
    if refused.is_empty() { Ok(()) } else { Err(refused.into()) }
}

/// Opens a run, or answers the run that this execution has opened already.
///
/// # Errors
/// `InvalidInput` and `NotYetSupported` name the field, `ImmutableChange` what the cluster that is there cannot become;
/// `NotOurs` a cluster of the name that is not ours; `LeaseHeld` the execution that has the cluster.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Completed { cluster, spec, registered, found } = complete(cx, &input.spec).await?;
    if spec.mode == Some(Mode::Plan) {
        return Err(StepError::new(ErrorName::InvalidInput, "`mode` is \"plan\", and a plan opens no run.")
            .remedy("Start the machine with it, which asks the step plan."));
    }
    let wanted = runtime::answer(&spec)?;
    let endpoint = found.as_ref().and_then(|found| found.endpoint.as_deref());
    let resumes = resumable(cx, &cluster, &spec, registered.as_ref(), endpoint).await?;
    let (execution, purpose) = (&input.execution.arn, Purpose::Provision);
    let opened = open(cx, &cluster, Wanted { execution, purpose, spec: &wanted, resumes }).await?;
    let (resumes, made) = opened.resumes.map(|before| (before.run, before.made)).unzip();
    if let (Some(run), Some(next)) = (&resumes, made.as_ref().and_then(|made| made.next)) {
        tracing::info!(resumes = run, at = next.as_str(), "goes on where the run before failed");
    }
    Ok(Output { run: opened.run, cluster, spec, made: made.unwrap_or_default(), resumes })
}

/// The run before, if this one may go on where it failed.
async fn resumable(
    cx: &Context,
    cluster: &ClusterKey,
    spec: &ClusterSpec,
    registered: Option<&Registration>,
    endpoint: Option<&str>,
) -> Result<Option<Resumption>, StepError> {
    let Some((registered, failed)) = registered.and_then(|last| Some((&last.spec, last.failed.as_ref()?))) else {
        return Ok(None);
    };
    let before = cx.state.run(cluster, failed).await?;
    let asked = resume::Asked { release: &cx.settings.release, spec, endpoint, at: OffsetDateTime::now_utc() };
    Ok(before.and_then(|before| resume::decide(&before, registered, asked)))
}

/// A checked spec, and what it was checked against.
#[derive(Debug)]
pub(crate) struct Completed {
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The spec with account, region and version set.
    pub spec: ClusterSpec,
    registered: Option<Registration>,
    found: Option<Found>,
}

/// Checks a spec as a person wrote it, and sets what it leaves out.
///
/// # Errors
/// As [`run`], but for the lease.
pub(crate) async fn complete(cx: &Context, spec: &Value) -> Result<Completed, StepError> {
    let mut spec = parse(spec)?;
    let caller = cx.aws.sts().get_caller_identity().send().await.during("sts:GetCallerIdentity")?;
    let cluster = place(&mut spec, caller.account().unwrap_or_default(), cx.aws.region())?;
    // Again, now that it is known where it is: some rules are about partition and region.
    parse(&runtime::answer(&spec)?)?;
    let registered = cx.state.registered(&cluster).await?;
    let last = registered.as_ref().map(|registered| &registered.spec);
    let found = observe(cx, &cluster, last).await?;
    if spec.version.is_none() {
        spec.version = Some(version(cx, last, found.as_ref()).await?);
    }
    decide(&cluster, &spec, found.as_ref())?;
    Ok(Completed { cluster, spec, registered, found })
}

/// What a run is to be opened for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// ARN of the execution that asks.
    pub execution: &'a str,
    /// What for.
    pub purpose: Purpose,
    /// The completed spec.
    pub spec: &'a Value,
    /// The failed run to go on with.
    pub resumes: Option<Resumption>,
}

/// A run that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The run.
    pub run: Run,
    /// The failed run that it goes on with.
    pub resumes: Option<Resumption>,
}

/// Takes the cluster's lease for an execution and opens its run, or answers the run that it has opened already.
///
/// # Errors
/// `LeaseHeld` names the execution that has the cluster.
pub(crate) async fn open(cx: &Context, cluster: &ClusterKey, wanted: Wanted<'_>) -> Result<Opened, StepError> {
    let Wanted { execution, purpose, spec, resumes } = wanted;
    // Once more when another execution was faster in between: then there is a holder to name.
    for _ in 0..2 {
        match lease_for(cx, cluster, execution).await? {
            Decision::Keep(run) => {
                let resumes = cx.state.run(cluster, &run.id).await?.and_then(|row| row.resumes);
                return Ok(Opened { run, resumes });
            }
            Decision::Take { fence } => {
                let run = Run { id: Ulid::generate().to_string(), fence };
                let resumes = resumes.clone().and_then(|failed| failed.before(fence));
                let (release, at) = (cx.settings.release.as_str(), OffsetDateTime::now_utc());
                let opening = Opening { run: &run, execution, release, purpose, spec, resumes: resumes.as_ref(), at };
                if cx.state.open(cluster, opening).await? {
                    return Ok(Opened { run, resumes });
                }
            }
            Decision::Ask { execution } => return Err(held(cluster, &format!("{execution} holds it."))),
            Decision::Leave { because } => return Err(held(cluster, &because)),
            Decision::TooEarly { because, seconds } => {
                return Err(held(cluster, &because).remedy(format!("Start again in {seconds} s.")));
            }
        }
    }
    Err(held(cluster, "Several executions were started for it at once, and another one has it."))
}

/// The cluster of that name and its core node group. One that is on its way out binds nobody.
async fn observe(cx: &Context, cluster: &ClusterKey, registered: Option<&Value>) -> Result<Option<Found>, StepError> {
    let (eks, name) = (cx.aws.eks(), &cluster.name);
    let there = match eks.describe_cluster().name(name).send().await {
        Ok(answer) => answer.cluster,
        Err(error) if code(&error) == Some("ResourceNotFoundException") => None,
        Err(error) => return Err(refused("eks:DescribeCluster", &error)),
    };
    let Some(there) = there.filter(|there| there.status().is_none_or(|status| status.as_str() != "DELETING")) else {
        return Ok(None);
    };
    let group = match eks.describe_nodegroup().cluster_name(name).nodegroup_name(CORE_NODE_GROUP).send().await {
        Ok(answer) => answer.nodegroup,
        Err(error) if code(&error) == Some("ResourceNotFoundException") => None,
        Err(error) => return Err(refused("eks:DescribeNodegroup", &error)),
    };
    let tags: BTreeMap<_, _> = there.tags.clone().unwrap_or_default().into_iter().collect();
    let network = there.resources_vpc_config.as_ref();
    Ok(Some(Found {
        there: There {
            // One that an older release wrote and this one cannot read binds nobody.
            registered: registered.and_then(|spec| serde_json::from_value(spec.clone()).ok()),
            ours: tags.get(CLUSTER_TAG) == Some(name),
            version: there.version.clone().unwrap_or_default(),
            vpc_id: network.and_then(|network| network.vpc_id.clone()).unwrap_or_default(),
            encryption_key_arn: encryption_key(&there),
            core_instance_types: group.and_then(|group| group.instance_types),
        },
        tags,
        endpoint: there.endpoint,
    }))
}

/// The KMS key that a cluster's secrets are encrypted with, if it was given one.
pub(crate) fn encryption_key(cluster: &aws_sdk_eks::types::Cluster) -> Option<String> {
    let configured = cluster.encryption_config().first()?;
    configured.provider()?.key_arn().map(str::to_owned)
}

fn held(cluster: &ClusterKey, because: &str) -> StepError {
    StepError::new(ErrorName::LeaseHeld, format!("The cluster {} is taken: {because}", cluster.name))
}

/// The spec as a person wrote it.
fn parse(json: &Value) -> Result<ClusterSpec, StepError> {
    ClusterSpec::parse(json).map_err(StepError::from)
}

/// The version that the cluster has or was registered with, so that a new default does not upgrade it in passing; for
/// a new cluster what EKS calls default.
async fn version(cx: &Context, registered: Option<&Value>, found: Option<&Found>) -> Result<String, StepError> {
    if let Some(found) = found {
        return Ok(found.there.version.clone());
    }
    if let Some(version) = registered.and_then(|spec| spec.get("version")).and_then(Value::as_str) {
        return Ok(version.to_owned());
    }
    let versions = cx
        .aws
        .eks()
        .describe_cluster_versions()
        .default_only(true)
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>()
        .await
        .during("eks:DescribeClusterVersions")?;
    let offered = versions.iter().find(|version| version.default_version());
    offered.and_then(|version| version.cluster_version()).map(str::to_owned).ok_or_else(|| {
        StepError::new(ErrorName::AwsRefused, "EKS names no default version.").remedy("Set `version` in the spec.")
    })
}

/// What to do about the lease, its holder asked.
async fn lease_for(cx: &Context, cluster: &ClusterKey, execution: &str) -> Result<Decision, StepError> {
    let lease = cx.state.lease(cluster).await?;
    let now = OffsetDateTime::now_utc();
    let decide = |holder| lease::decide(lease.as_ref(), execution, holder, now, cx.settings.lease_grace);
    match decide(None) {
        Decision::Ask { execution: holder } => Ok(decide(Some(became(cx, &holder).await?))),
        decision => Ok(decision),
    }
}

/// What became of an execution.
async fn became(cx: &Context, execution: &str) -> Result<Execution, StepError> {
    match cx.aws.states().describe_execution().execution_arn(execution).send().await {
        // No stop date: it runs, or waits to be redriven.
        Ok(answer) => Ok(answer.stop_date().map_or(Execution::Running, |at| {
            Execution::Ended(OffsetDateTime::from_unix_timestamp(at.secs()).unwrap_or(OffsetDateTime::UNIX_EPOCH))
        })),
        Err(error) if matches!(code(&error), Some("ExecutionDoesNotExist" | "InvalidArn")) => Ok(Execution::Unknown),
        Err(error) => Err(refused("states:DescribeExecution", &error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(json: &Value) -> ClusterSpec {
        parse(json).unwrap()
    }

    #[test]
    fn account_and_region_are_our_own() {
        let mut bare = spec(&json!({"name": "demo"}));
        let cluster = place(&mut bare, "111122223333", "eu-west-1").unwrap();
        assert_eq!((bare.account.as_deref(), bare.region.as_deref()), (Some("111122223333"), Some("eu-west-1")));
        assert_eq!(crate::state::partition(&cluster), "CLUSTER#111122223333#eu-west-1#demo");
    }

    fn found(tags: &[(&str, &str)]) -> Found {
        let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let there = There { ours: true, version: "1.36".into(), ..There::default() };
        Found { there, tags, endpoint: None }
    }

    #[test]
    fn a_strangers_cluster_is_left_alone_unless_it_is_to_be_adopted() {
        let demo = place(&mut spec(&json!({"name": "demo"})), "111122223333", "eu-west-1").unwrap();
        let (plain, adopt) = (spec(&json!({"name": "demo"})), spec(&json!({"name": "demo", "adopt": true})));
        assert!(decide(&demo, &plain, None).is_ok());
        assert!(decide(&demo, &plain, Some(&found(&[(CLUSTER_TAG, "demo")]))).is_ok());
        assert_eq!(decide(&demo, &plain, Some(&found(&[]))).unwrap_err().name, ErrorName::NotOurs);
        assert!(decide(&demo, &adopt, Some(&found(&[]))).is_ok());
        let anothers = found(&[(CLUSTER_TAG, "demo-2")]);
        assert_eq!(decide(&demo, &adopt, Some(&anothers)).unwrap_err().name, ErrorName::NotOurs);
    }

    #[test]
    fn what_cannot_be_changed_is_refused_by_name() {
        let demo = place(&mut spec(&json!({"name": "demo"})), "111122223333", "eu-west-1").unwrap();
        let older = spec(&json!({"name": "demo", "version": "1.35"}));
        let error = decide(&demo, &older, Some(&found(&[(CLUSTER_TAG, "demo")]))).unwrap_err();
        assert_eq!(error.name, ErrorName::ImmutableChange);
        assert!(error.cause.contains("$.version must stay 1.36"), "{}", error.cause);
    }

    #[test]
    fn elsewhere_is_refused_by_name() {
        let refused = |json: Value| place(&mut spec(&json), "111122223333", "eu-west-1").unwrap_err();
        let region = refused(json!({"name": "demo", "region": "us-east-1"}));
        assert_eq!(region.name, ErrorName::NotYetSupported);
        assert!(region.cause.starts_with("`region` is \"us-east-1\""), "{}", region.cause);
        assert!(refused(json!({"name": "demo", "account": "999999999999"})).cause.starts_with("`account`"));
    }
}
