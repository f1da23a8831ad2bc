//! terminate-instances: what a cluster's nodes leave in EC2 when Kubernetes could not drain them, until no instance runs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Progress, Run, Step, StepError};

use crate::{
    Context,
    aws::{
        ec2::{cluster_filter, tags_of},
        error::{Deleted as _, During as _},
    },
    ownership::owned,
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

/// An instance that is not terminated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Instance {
    /// `i-…`
    pub(crate) id: String,
    /// `running`, `shutting-down`, …
    pub(crate) state: String,
    /// Its tags.
    pub(crate) tags: BTreeMap<String, String>,
}

/// Which of them to terminate now: what its tags call a node of the cluster.
pub(crate) fn decide<'a>(cluster: &ClusterKey, instances: &'a [Instance]) -> Vec<&'a Instance> {
    instances.iter().filter(|one| owned(cluster, &one.tags) && one.state != "shutting-down").collect()
}

/// Terminates what runs and waits for its end.
///
/// # Errors
/// What EC2 refuses, such as an instance with termination protection.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let instances = observe(cx, &input.cluster).await?;
    let ids: Vec<String> = decide(&input.cluster, &instances).into_iter().map(|one| one.id.clone()).collect();
    if !ids.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
        let call = cx.aws.ec2().terminate_instances().set_instance_ids(Some(ids));
        call.send().await.deleted("ec2:TerminateInstances")?;
    }
    if instances.is_empty() {
        return Ok(Progress::done(Output {}));
    }
    let ids: Vec<&str> = instances.iter().map(|one| one.id.as_str()).collect();
    Ok(Progress::wait(ASK_AGAIN, format!("instances are shutting down: {}", ids.join(", "))))
}

/// The cluster's instances that are not terminated.
pub(crate) async fn observe(cx: &Context, cluster: &ClusterKey) -> Result<Vec<Instance>, StepError> {
    let mut pages = cx.aws.ec2().describe_instances().filters(cluster_filter(cluster)).into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(reservation) = pages.next().await {
        for instance in reservation.during("ec2:DescribeInstances")?.instances.unwrap_or_default() {
            let state = instance.state().and_then(|state| state.name()).map_or("", |name| name.as_str()).to_owned();
            let tags = tags_of(instance.tags());
            if state != "terminated" && owned(cluster, &tags) {
                found.push(Instance { id: instance.instance_id.unwrap_or_default(), state, tags });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, state: &str, tag: (&str, &str)) -> Instance {
        let tags = BTreeMap::from([(tag.0.to_owned(), tag.1.to_owned())]);
        Instance { id: id.into(), state: state.into(), tags }
    }

    #[test]
    fn each_node_of_the_cluster_is_terminated_once_and_no_other() {
        let cluster = ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() };
        let instances = [
            instance("i-core", "running", ("eks:cluster-name", "demo")),
            instance("i-karpenter", "pending", ("kubernetes.io/cluster/demo", "owned")),
            instance("i-going", "shutting-down", ("kubernetes.io/cluster/demo", "owned")),
            instance("i-neighbour", "running", ("kubernetes.io/cluster/demo-2", "owned")),
            instance("i-shared", "running", ("kubernetes.io/cluster/demo", "shared")),
        ];
        let ids: Vec<&str> = decide(&cluster, &instances).into_iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["i-core", "i-karpenter"]);
    }
}
