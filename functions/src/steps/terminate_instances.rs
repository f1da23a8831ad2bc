//! terminate-instances: what a cluster's nodes leave in EC2 when Kubernetes could not drain them, until no instance runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Progress, Run, Step, StepError};

use crate::{
    Context,
    aws::{
        error::Deleted as _,
        inventory::{self, Place},
    },
    ownership::{Resource, belongs},
};

/// Terminates a cluster's instances.
#[derive(Debug)]
pub struct TerminateInstances;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
}

/// None runs.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {}

impl Step for TerminateInstances {
    const NAME: &'static str = "terminate-instances";
    const ERRORS: &'static [ErrorName] = &[ErrorName::DeletionBlocked];
    type Input = Input;
    type Output = Progress<Output>;
}

/// An instance shuts down within a minute.
const ASK_AGAIN: u32 = 10;

/// Which of them to terminate now.
pub(crate) fn decide(instances: &[Resource]) -> Vec<&Resource> {
    instances.iter().filter(|one| one.state != "shutting-down").collect()
}

/// Terminates what runs and waits for its end.
///
/// # Errors
/// What EC2 refuses, such as an instance with termination protection.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let instances = observe(cx, &input.cluster).await?;
    let ids: Vec<String> = decide(&instances).into_iter().map(|one| one.name.clone()).collect();
    if !ids.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
        let call = cx.aws.ec2().terminate_instances().set_instance_ids(Some(ids));
        call.send().await.deleted("ec2:TerminateInstances")?;
    }
    if instances.is_empty() {
        return Ok(Progress::done(Output {}));
    }
    let ids: Vec<&str> = instances.iter().map(|one| one.name.as_str()).collect();
    Ok(Progress::wait(ASK_AGAIN, format!("instances are shutting down: {}", ids.join(", "))))
}

/// The cluster's instances that are not terminated: what its tags call a node of it.
pub(crate) async fn observe(cx: &Context, cluster: &ClusterKey) -> Result<Vec<Resource>, StepError> {
    let mut found = inventory::instances(cx, Place::of(cluster, false)).await?;
    found.retain(|one| belongs(cluster, false, one).is_some());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use slipway_statemachine::Kind;

    use super::*;

    #[test]
    fn each_instance_is_terminated_once() {
        let instance = |id: &str, state: &str| Resource::new(Kind::Instance, id, id).in_state(state);
        let instances =
            [instance("i-core", "running"), instance("i-karpenter", "pending"), instance("i-going", "shutting-down")];
        let ids: Vec<&str> = decide(&instances).into_iter().map(|one| one.name.as_str()).collect();
        assert_eq!(ids, ["i-core", "i-karpenter"]);
    }
}
