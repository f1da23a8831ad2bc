//! open-run: validates and completes the spec, takes the cluster's lease, opens a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{ClusterKey, ClusterSpec, ErrorName, Run, Step, StepError};
use time::OffsetDateTime;
use ulid::Ulid;

use crate::{
    Context,
    aws::error::{During as _, code},
    runtime,
    state::{
        lease::{Decision, Execution, decide},
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
}

impl Step for OpenRun {
    const NAME: &'static str = "open-run";
    const ERRORS: &'static [ErrorName] = &[ErrorName::NotYetSupported, ErrorName::LeaseHeld];
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

/// Opens a run, or answers the run that this execution has opened already.
///
/// # Errors
/// `InvalidInput` and `NotYetSupported` name the field; `LeaseHeld` the execution that has the cluster.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let mut spec = parse(&input.spec)?;
    let caller = cx.aws.sts().get_caller_identity().send().await.during("sts:GetCallerIdentity")?;
    let cluster = place(&mut spec, caller.account().unwrap_or_default(), cx.aws.region())?;
    if spec.version.is_none() {
        spec.version = Some(version(cx, &cluster).await?);
    }

    let run = open(cx, &cluster, &input.execution.arn, Purpose::Provision, &runtime::answer(&spec)?).await?;
    Ok(Output { run, cluster, spec })
}

/// Takes the cluster's lease for an execution and opens its run, or answers the run that it has opened already.
///
/// # Errors
/// `LeaseHeld` names the execution that has the cluster.
pub(crate) async fn open(
    cx: &Context,
    cluster: &ClusterKey,
    execution: &str,
    purpose: Purpose,
    spec: &Value,
) -> Result<Run, StepError> {
    // Once more when another execution was faster in between: then there is a holder to name.
    for _ in 0..2 {
        match lease_for(cx, cluster, execution).await? {
            Decision::Keep(run) => return Ok(run),
            Decision::Take { fence } => {
                let run = Run { id: Ulid::generate().to_string(), fence };
                let opening = Opening { run: &run, execution, purpose, spec, at: OffsetDateTime::now_utc() };
                if cx.state.open(cluster, opening).await? {
                    return Ok(run);
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

fn held(cluster: &ClusterKey, because: &str) -> StepError {
    StepError::new(ErrorName::LeaseHeld, format!("The cluster {} is taken: {because}", cluster.name))
}

/// The spec as a person wrote it.
fn parse(json: &Value) -> Result<ClusterSpec, StepError> {
    ClusterSpec::parse(json).map_err(StepError::from)
}

/// The version that the cluster was registered with, so that a new default does not upgrade it in passing; for a new
/// cluster what EKS calls default.
async fn version(cx: &Context, cluster: &ClusterKey) -> Result<String, StepError> {
    let registered = cx.state.registered(cluster).await?;
    if let Some(version) = registered.as_ref().and_then(|spec| spec.get("version")).and_then(Value::as_str) {
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
    match decide(lease.as_ref(), execution, None, now) {
        Decision::Ask { execution: holder } => {
            Ok(decide(lease.as_ref(), execution, Some(became(cx, &holder).await?), now))
        }
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
        Err(error) => Err(crate::aws::error::refused("states:DescribeExecution", &error)),
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

    #[test]
    fn elsewhere_is_refused_by_name() {
        let refused = |json: Value| place(&mut spec(&json), "111122223333", "eu-west-1").unwrap_err();
        let region = refused(json!({"name": "demo", "region": "us-east-1"}));
        assert_eq!(region.name, ErrorName::NotYetSupported);
        assert!(region.cause.starts_with("`region` is \"us-east-1\""), "{}", region.cause);
        assert!(refused(json!({"name": "demo", "account": "999999999999"})).cause.starts_with("`account`"));
    }
}
