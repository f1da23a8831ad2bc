//! delete-node-groups: managed node groups and Fargate profiles of a cluster, until none is left.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Kind, Progress, Run, Step, StepError};

use crate::{
    Context,
    aws::{health, inventory, removal::remove},
    ownership::Resource,
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

/// Which of them to delete now. EKS deletes one Fargate profile at a time. What failed to go in an earlier run is asked
/// once more; what fails in this one is the run's failure.
pub(crate) fn decide(all: &[Resource], waited: u32) -> Result<Vec<&Resource>, StepError> {
    if let Some(failed) = all.iter().find(|one| one.state == "DELETE_FAILED" && waited > 0) {
        let (what, issues) = (called(failed.kind), health::said(&failed.issues));
        let cause = format!("EKS could not delete the {what} {}. {issues}", failed.name);
        return Err(StepError::new(ErrorName::NodeGroupFailed, cause)
            .remedy("Follow the health issue in the cause, then start the teardown again."));
    }
    let mut profiles = all.iter().filter(|one| one.kind == Kind::FargateProfile).peekable();
    let busy = profiles.clone().any(|profile| profile.state == "DELETING");
    let profile = profiles.next().filter(|_| !busy);
    let groups = all.iter().filter(|one| one.kind == Kind::NodeGroup && one.state != "DELETING");
    Ok(groups.chain(profile).collect())
}

const fn called(kind: Kind) -> &'static str {
    match kind {
        Kind::FargateProfile => "Fargate profile",
        _ => "node group",
    }
}

/// Deletes what is there and waits for its end. A cluster that is gone has none.
///
/// # Errors
/// `NodeGroupFailed` with EKS's health issues.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let Some(all) = inventory::node_groups(cx, &input.cluster.name).await? else {
        return Ok(Progress::done(Output {}));
    };
    let going = decide(&all, input.waited)?;
    if !going.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    for one in going {
        delete(cx, one).await?;
    }
    if all.is_empty() {
        return Ok(Progress::done(Output {}));
    }
    let left: Vec<String> = all
        .iter()
        .map(|one| {
            let issues = if one.issues.is_empty() { String::new() } else { format!(": {}", one.issues.join(" ")) };
            format!("{} {} ({}{issues})", called(one.kind), one.name, one.state)
        })
        .collect();
    Ok(Progress::wait(ASK_AGAIN, format!("still there: {}", left.join(", "))))
}

async fn delete(cx: &Context, one: &Resource) -> Result<(), StepError> {
    match remove(cx, one.kind, &one.arn, &one.name).await {
        // EKS is still busy with an update or the creation of it; the next look asks again.
        Err(error) if error.name == ErrorName::DeletionBlocked => {
            tracing::info!(name = one.name, "it can't go yet: {}", error.cause);
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn one(kind: Kind, name: &str, state: &str) -> Resource {
        let mut one = Resource::new(kind, format!("arn:aws:eks:eu-west-1:1:x/demo/{name}/1"), name).in_state(state);
        one.issues = vec!["Ec2SecurityGroupDeletionFailure: in use (sg-1).".to_owned()];
        one
    }

    fn names(going: &[&Resource]) -> Vec<String> {
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
        let told = "the node group core. Ec2SecurityGroupDeletionFailure: in use (sg-1)";
        assert!(error.cause.contains(told), "{}", error.cause);
        let profile = [one(Kind::FargateProfile, "web", "DELETE_FAILED")];
        assert!(decide(&profile, 20).unwrap_err().cause.contains("the Fargate profile web"));
    }
}
