//! delete-node-groups: managed node groups and Fargate profiles of a cluster, until none is left.

use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Progress, Run, Step, StepError};

use crate::{
    Context,
    aws::error::{Deleted as _, During as _, code, refused},
};

/// Deletes node groups and Fargate profiles.
#[derive(Debug)]
pub struct DeleteNodeGroups;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Seconds that this run has waited for them: 0 the first time.
    #[serde(default)]
    pub waited: u32,
}

/// None is left.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {}

impl Step for DeleteNodeGroups {
    const NAME: &'static str = "delete-node-groups";
    const ERRORS: &'static [ErrorName] = &[ErrorName::NodeGroupFailed, ErrorName::DeletionBlocked];
    type Input = Input;
    type Output = Progress<Output>;
}

/// A group takes two to five minutes, a Fargate profile about one.
const ASK_AGAIN: u32 = 20;

/// A node group or Fargate profile as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    kind: Kind,
    name: String,
    status: String,
    /// `code: message (resources)` of each health issue.
    issues: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NodeGroup,
    FargateProfile,
}

/// Which of them to delete now. EKS deletes one Fargate profile at a time. What failed to go in an earlier run is asked
/// once more; what fails in this one is the run's failure.
pub(crate) fn decide(all: &[Observed], waited: u32) -> Result<Vec<&Observed>, StepError> {
    if let Some(failed) = all.iter().find(|one| one.status == "DELETE_FAILED" && waited > 0) {
        let issues = if failed.issues.is_empty() { "it gives no reason".to_owned() } else { failed.issues.join("; ") };
        let cause = format!("EKS could not delete the node group {}: {issues}.", failed.name);
        return Err(StepError::new(ErrorName::NodeGroupFailed, cause)
            .remedy("Follow the health issue in the cause, then start the teardown again."));
    }
    let mut profiles = all.iter().filter(|one| one.kind == Kind::FargateProfile).peekable();
    let busy = profiles.clone().any(|profile| profile.status == "DELETING");
    let profile = profiles.next().filter(|_| !busy);
    let groups = all.iter().filter(|one| one.kind == Kind::NodeGroup && one.status != "DELETING");
    Ok(groups.chain(profile).collect())
}

/// Deletes what is there and waits for its end. A cluster that is gone has none.
///
/// # Errors
/// `NodeGroupFailed` with EKS's health issues.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let Some(all) = observe(cx, &input).await? else { return Ok(Progress::done(Output {})) };
    let going = decide(&all, input.waited)?;
    if !going.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    for one in going {
        delete(cx, &input, one).await?;
    }
    if all.is_empty() {
        return Ok(Progress::done(Output {}));
    }
    let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
    Ok(Progress::wait(ASK_AGAIN, format!("node groups are going: {}", names.join(", "))))
}

async fn delete(cx: &Context, input: &Input, one: &Observed) -> Result<(), StepError> {
    let (eks, cluster) = (cx.aws.eks(), &input.cluster.name);
    let deleted = match one.kind {
        Kind::NodeGroup => {
            let call = eks.delete_nodegroup().cluster_name(cluster).nodegroup_name(&one.name);
            call.send().await.deleted("eks:DeleteNodegroup")
        }
        Kind::FargateProfile => {
            let call = eks.delete_fargate_profile().cluster_name(cluster).fargate_profile_name(&one.name);
            call.send().await.deleted("eks:DeleteFargateProfile")
        }
    };
    match deleted {
        // EKS is still busy with an update or the creation of it; the next look asks again.
        Err(error) if error.name == ErrorName::DeletionBlocked => {
            tracing::info!(name = one.name, "it can't go yet: {}", error.cause);
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

/// What there is; none where there is no cluster.
async fn observe(cx: &Context, input: &Input) -> Result<Option<Vec<Observed>>, StepError> {
    let (eks, cluster) = (cx.aws.eks(), input.cluster.name.as_str());
    let groups: Result<Vec<String>, _> =
        eks.list_nodegroups().cluster_name(cluster).into_paginator().items().send().collect().await;
    let groups = match groups {
        Err(error) if code(&error) == Some("ResourceNotFoundException") => return Ok(None),
        groups => groups.during("eks:ListNodegroups")?,
    };
    let profiles: Result<Vec<String>, _> =
        eks.list_fargate_profiles().cluster_name(cluster).into_paginator().items().send().collect().await;
    let profiles = profiles.during("eks:ListFargateProfiles")?;
    let groups = try_join_all(groups.into_iter().map(|name| node_group(cx, cluster, name)));
    let profiles = try_join_all(profiles.into_iter().map(|name| fargate_profile(cx, cluster, name)));
    let (groups, profiles) = futures::try_join!(groups, profiles)?;
    Ok(Some(groups.into_iter().chain(profiles).flatten().collect()))
}

async fn node_group(cx: &Context, cluster: &str, name: String) -> Result<Option<Observed>, StepError> {
    match cx.aws.eks().describe_nodegroup().cluster_name(cluster).nodegroup_name(&name).send().await {
        Ok(answer) => Ok(answer.nodegroup.map(|group| Observed {
            kind: Kind::NodeGroup,
            status: group.status().map_or_else(String::new, |status| status.as_str().to_owned()),
            issues: group
                .health()
                .map(aws_sdk_eks::types::NodegroupHealth::issues)
                .unwrap_or_default()
                .iter()
                .map(issue)
                .collect(),
            name,
        })),
        Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(None),
        Err(error) => Err(refused("eks:DescribeNodegroup", &error)),
    }
}

async fn fargate_profile(cx: &Context, cluster: &str, name: String) -> Result<Option<Observed>, StepError> {
    match cx.aws.eks().describe_fargate_profile().cluster_name(cluster).fargate_profile_name(&name).send().await {
        Ok(answer) => Ok(answer.fargate_profile.map(|profile| Observed {
            kind: Kind::FargateProfile,
            status: profile.status().map_or_else(String::new, |status| status.as_str().to_owned()),
            issues: Vec::new(),
            name,
        })),
        Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(None),
        Err(error) => Err(refused("eks:DescribeFargateProfile", &error)),
    }
}

fn issue(issue: &aws_sdk_eks::types::Issue) -> String {
    let code = issue.code().map_or("no code", |code| code.as_str());
    format!("{code}: {} ({})", issue.message().unwrap_or("no message"), issue.resource_ids().join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn one(kind: Kind, name: &str, status: &str) -> Observed {
        let issues = vec!["Ec2SecurityGroupDeletionFailure: in use (sg-1)".to_owned()];
        Observed { kind, name: name.into(), status: status.into(), issues }
    }

    fn names(going: &[&Observed]) -> Vec<String> {
        going.iter().map(|one| one.name.clone()).collect()
    }

    #[test]
    fn groups_go_side_by_side_and_fargate_profiles_one_by_one() {
        let all = [
            one(Kind::NodeGroup, "core", "ACTIVE"),
            one(Kind::NodeGroup, "half-made", "CREATING"),
            one(Kind::NodeGroup, "going", "DELETING"),
            one(Kind::FargateProfile, "a", "ACTIVE"),
            one(Kind::FargateProfile, "b", "ACTIVE"),
        ];
        assert_eq!(names(&decide(&all, 0).unwrap()), ["core", "half-made", "a"]);
        let busy = [one(Kind::FargateProfile, "a", "DELETING"), one(Kind::FargateProfile, "b", "ACTIVE")];
        assert!(decide(&busy, 0).unwrap().is_empty());
    }

    #[test]
    fn an_earlier_failure_is_tried_again_and_a_new_one_says_what_eks_says() {
        let failed = [one(Kind::NodeGroup, "core", "DELETE_FAILED")];
        assert_eq!(names(&decide(&failed, 0).unwrap()), ["core"]);
        let error = decide(&failed, 20).unwrap_err();
        assert_eq!(error.name, ErrorName::NodeGroupFailed);
        assert!(error.cause.contains("core: Ec2SecurityGroupDeletionFailure: in use (sg-1)"), "{}", error.cause);
    }
}
