//! delete-network: the stack of a cluster's VPC, and what others put into that VPC so that it could not go.

use aws_sdk_cloudformation::types::Stack;
use aws_sdk_ec2::types::{SecurityGroup, VpcEndpoint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterKey, ErrorName, Progress, Run, Step, StepError,
    names::{CLUSTER_TAG, stack as stack_name},
};

use crate::{
    Context,
    aws::{
        ec2::filter,
        error::{Deleted as _, During as _, message, refused},
        interfaces,
    },
};

/// Deletes the network.
#[derive(Debug)]
pub struct DeleteNetwork;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Seconds that this run has waited for it: 0 the first time.
    #[serde(default)]
    pub waited: u32,
    /// Delete the stack although it is protected from deletion.
    #[serde(default)]
    pub lift_deletion_protection: bool,
}

/// It is gone.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {}

impl Step for DeleteNetwork {
    const NAME: &'static str = "delete-network";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::DeletionBlocked, ErrorName::DeletionProtected, ErrorName::NotOurs];
    type Input = Input;
    type Output = Progress<Output>;
}

/// A NAT gateway takes about a minute, and the rest of the stack waits for it.
const ASK_AGAIN: u32 = 20;

/// A stack as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    status: String,
    /// The value of our tag.
    owner: Option<String>,
    vpc: Option<String>,
    /// CloudFormation refuses its deletion.
    protected: bool,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is gone.
    Done,
    /// CloudFormation works on it.
    Wait(String),
    /// Delete it; whether its protection has to be lifted first.
    Delete(bool),
    /// Say why it could not go.
    Explain,
}

/// What failed to go before this run is tried again; what fails in this one is explained.
pub(crate) fn decide(
    cluster: &ClusterKey,
    observed: Option<&Observed>,
    waited: u32,
    lift: bool,
) -> Result<Action, StepError> {
    let Some(stack) = observed else { return Ok(Action::Done) };
    if stack.owner.as_deref() != Some(&cluster.name) {
        let name = stack_name(cluster);
        let cause = format!("The stack {name} exists without the tag {CLUSTER_TAG}={}.", cluster.name);
        return Err(StepError::new(ErrorName::NotOurs, cause)
            .remedy("Start the teardown with \"network\": \"keep\", or tag the stack."));
    }
    Ok(match stack.status.as_str() {
        "DELETE_COMPLETE" => Action::Done,
        "DELETE_FAILED" if waited > 0 => Action::Explain,
        status if status.ends_with("_IN_PROGRESS") => Action::Wait(format!("the network's stack is {status}")),
        _ if stack.protected && !lift => {
            let cause = format!("The stack {} is protected from deletion.", stack_name(cluster));
            return Err(StepError::new(ErrorName::DeletionProtected, cause));
        }
        _ => Action::Delete(stack.protected),
    })
}

/// Deletes the stack and waits for its end; what GuardDuty put into the VPC goes first.
///
/// # Errors
/// `DeletionBlocked` with CloudFormation's reason and the interfaces that are left in the VPC.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let name = stack_name(&input.cluster);
    let observed = observe(cx, &name).await?;
    let vpc = observed.as_ref().and_then(|stack| stack.vpc.clone());
    match decide(&input.cluster, observed.as_ref(), input.waited, input.lift_deletion_protection)? {
        Action::Done => Ok(Progress::done(Output {})),
        Action::Wait(detail) => Ok(Progress::wait(ASK_AGAIN, detail)),
        Action::Explain => Err(explain(cx, &name, vpc.as_deref()).await?),
        Action::Delete(protected) => {
            if let Some(vpc) = &vpc
                && let Some(detail) = remove_guards(cx, &input, vpc).await?
            {
                return Ok(Progress::wait(ASK_AGAIN, detail));
            }
            cx.state.hold(&input.run, &input.cluster).await?;
            if protected {
                let call = cx.aws.cloudformation().update_termination_protection().stack_name(&name);
                let call = call.enable_termination_protection(false).send().await;
                call.during("cloudformation:UpdateTerminationProtection")?;
            }
            // A token for the run: a call that is sent twice deletes once.
            let token = format!("teardown-{}-{}", input.run.id, input.waited);
            let call = cx.aws.cloudformation().delete_stack().stack_name(&name).client_request_token(token);
            call.send().await.during("cloudformation:DeleteStack")?;
            Ok(Progress::wait(ASK_AGAIN, "the network's stack is DELETE_IN_PROGRESS"))
        }
    }
}

/// The stack of a name, if there is one.
pub(crate) async fn observe(cx: &Context, name: &str) -> Result<Option<Observed>, StepError> {
    match cx.aws.cloudformation().describe_stacks().stack_name(name).send().await {
        Ok(answer) => Ok(answer.stacks().first().map(observed)),
        Err(error) if message(&error).is_some_and(|words| words.contains("does not exist")) => Ok(None),
        Err(error) => Err(refused("cloudformation:DescribeStacks", &error)),
    }
}

fn observed(stack: &Stack) -> Observed {
    let owner = stack.tags().iter().find(|tag| tag.key() == Some(CLUSTER_TAG));
    let vpc = stack.outputs().iter().find(|output| output.output_key() == Some("VpcId"));
    Observed {
        status: stack.stack_status().map_or_else(String::new, |status| status.as_str().to_owned()),
        owner: owner.and_then(|tag| tag.value.clone()),
        vpc: vpc.and_then(|output| output.output_value.clone()),
        protected: stack.enable_termination_protection() == Some(true),
    }
}

/// Whether GuardDuty made an endpoint: it serves GuardDuty's agents, and nobody asked for it.
fn is_guard(endpoint: &VpcEndpoint) -> bool {
    endpoint.service_name().is_some_and(|service| service.ends_with(".guardduty-data"))
}

/// Removes GuardDuty's endpoint and security group, which it puts into every VPC with a node and never takes away
/// again. Answers what has to be waited for.
async fn remove_guards(cx: &Context, input: &Input, vpc: &str) -> Result<Option<String>, StepError> {
    let ec2 = cx.aws.ec2();
    let endpoints = ec2.describe_vpc_endpoints().filters(filter("vpc-id", [vpc])).into_paginator().items().send();
    let endpoints: Result<Vec<VpcEndpoint>, _> = endpoints.collect().await;
    let mut guards = endpoints.during("ec2:DescribeVpcEndpoints")?;
    guards.retain(is_guard);
    if !guards.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
        let ids: Vec<String> = guards.into_iter().filter_map(|guard| guard.vpc_endpoint_id).collect();
        let detail = format!("GuardDuty's endpoint is going: {}", ids.join(", "));
        ec2.delete_vpc_endpoints().set_vpc_endpoint_ids(Some(ids)).send().await.deleted("ec2:DeleteVpcEndpoints")?;
        return Ok(Some(detail));
    }
    let managed = filter("tag-key", ["GuardDutyManaged"]);
    let groups = ec2.describe_security_groups().filters(filter("vpc-id", [vpc])).filters(managed);
    let groups: Result<Vec<SecurityGroup>, _> = groups.into_paginator().items().send().collect().await;
    for id in groups.during("ec2:DescribeSecurityGroups")?.into_iter().filter_map(|group| group.group_id) {
        cx.state.hold(&input.run, &input.cluster).await?;
        let deleted = ec2.delete_security_group().group_id(&id).send().await.deleted("ec2:DeleteSecurityGroup");
        match deleted {
            Err(error) if error.name == ErrorName::DeletionBlocked => {
                return Ok(Some(format!("GuardDuty's security group {id} is still in use")));
            }
            other => other?,
        };
    }
    Ok(None)
}

/// Why the stack could not go: the first resource that failed, in CloudFormation's words, and what is left in the VPC.
async fn explain(cx: &Context, stack: &str, vpc: Option<&str>) -> Result<StepError, StepError> {
    let events = cx.aws.cloudformation().describe_stack_events().stack_name(stack).send().await;
    let events = events.during("cloudformation:DescribeStackEvents")?.stack_events.unwrap_or_default();
    let failed = events.iter().find(|event| {
        event.resource_status().is_some_and(|status| status.as_str() == "DELETE_FAILED")
            && event.resource_type() != Some("AWS::CloudFormation::Stack")
    });
    let reason = failed.map_or_else(
        || "CloudFormation gives no reason".to_owned(),
        |event| {
            let id = event.physical_resource_id().unwrap_or_default();
            let said = event.resource_status_reason().unwrap_or("no reason").trim_end_matches('.');
            format!("{} {id}: {said}", event.resource_type().unwrap_or_default())
        },
    );
    let left = match vpc {
        Some(vpc) => interfaces::described(cx, filter("vpc-id", [vpc])).await?,
        None => Vec::new(),
    };
    let left = if left.is_empty() { String::new() } else { format!(" Left in the VPC: {}.", left.join(", ")) };
    Ok(StepError::new(ErrorName::DeletionBlocked, format!("The stack {stack} is DELETE_FAILED: {reason}.{left}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn demo() -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() }
    }

    fn stack(status: &str, owner: &str) -> Observed {
        Observed { status: status.into(), owner: Some(owner.into()), vpc: None, protected: false }
    }

    fn decided(status: &str, waited: u32) -> Action {
        decide(&demo(), Some(&stack(status, "demo")), waited, false).unwrap()
    }

    #[test]
    fn a_protected_stack_goes_only_when_its_protection_may_be_lifted() {
        let protected = Observed { protected: true, ..stack("CREATE_COMPLETE", "demo") };
        let decided = |lift| decide(&demo(), Some(&protected), 0, lift);
        assert_eq!(decided(false).unwrap_err().name, ErrorName::DeletionProtected);
        assert_eq!(decided(true).unwrap(), Action::Delete(true));
    }

    #[test]
    fn a_stack_is_deleted_waited_for_and_gone() {
        assert_eq!(decide(&demo(), None, 0, false).unwrap(), Action::Done);
        for whole in ["CREATE_COMPLETE", "ROLLBACK_COMPLETE", "UPDATE_ROLLBACK_FAILED"] {
            assert_eq!(decided(whole, 0), Action::Delete(false), "{whole}");
        }
        for busy in ["DELETE_IN_PROGRESS", "CREATE_IN_PROGRESS", "ROLLBACK_IN_PROGRESS"] {
            assert!(matches!(decided(busy, 20), Action::Wait(_)), "{busy}");
        }
    }

    #[test]
    fn a_failure_of_before_is_tried_again_and_one_of_now_explained() {
        assert_eq!(decided("DELETE_FAILED", 0), Action::Delete(false));
        assert_eq!(decided("DELETE_FAILED", 20), Action::Explain);
    }

    #[test]
    fn a_strangers_stack_stays() {
        let error = decide(&demo(), Some(&stack("CREATE_COMPLETE", "demo-2")), 0, true).unwrap_err();
        assert_eq!(error.name, ErrorName::NotOurs);
    }

    #[test]
    fn guard_duty_is_known_by_its_service() {
        let endpoint = |service: &str| VpcEndpoint::builder().service_name(service).build();
        assert!(is_guard(&endpoint("com.amazonaws.eu-west-1.guardduty-data")));
        assert!(!is_guard(&endpoint("com.amazonaws.eu-west-1.s3")));
    }
}
