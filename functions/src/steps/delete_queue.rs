//! delete-queue: the interruption queue and the rules that fill it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Kind, Run, Step, StepError};

use crate::{
    Context,
    aws::{
        inventory::{self, Place},
        removal::remove,
    },
    ownership::of_cluster,
};

/// Deletes the interruption queue and its rules.
#[derive(Debug)]
pub struct DeleteQueue;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The cluster may have been made by somebody else, who calls a queue and its rules otherwise.
    #[serde(default)]
    pub adopt: bool,
}

/// What was deleted by this call.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {
    /// Names of queues.
    pub queues: Vec<String>,
    /// Names of rules.
    pub rules: Vec<String>,
}

impl Step for DeleteQueue {
    const NAME: &'static str = "delete-queue";
    const ERRORS: &'static [ErrorName] = &[];
    type Input = Input;
    type Output = Output;
}

/// Deletes the rules that are there, their targets first, then the queue, by which an adopted cluster's rules are found.
///
/// # Errors
/// What SQS or EventBridge refuse.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Input { run, cluster, adopt } = &input;
    let found = inventory::queues_and_rules(cx, Place::of(cluster, *adopt)).await?;
    let mut going = of_cluster(cluster, *adopt, &found);
    going.sort_by_key(|(one, _)| one.kind);
    let mut deleted = Output::default();
    for (one, _) in going {
        cx.state.hold(run, cluster).await?;
        remove(cx, one.kind, &one.arn, &one.name).await?;
        let list = if one.kind == Kind::Queue { &mut deleted.queues } else { &mut deleted.rules };
        list.push(one.name.clone());
    }
    Ok(deleted)
}
