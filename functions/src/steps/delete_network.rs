//! delete-network: the stack of a cluster's VPC, and what others put into that VPC so that it could not go.

use aws_sdk_ec2::types::{SecurityGroup, VpcEndpoint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterKey, ErrorName, Kind, Progress, Run, Step, StepError,
    names::{CLUSTER_TAG, stack as stack_name},
};

use crate::{
    Context,
    aws::{
        ec2::filter,
        error::{Deleted as _, During as _},
        interfaces,
        removal::remove,
        stacks::{self, Stack},
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
/// So many seconds the interfaces of load balancers that are gone may take to go; after that CloudFormation says why not.
const PATIENCE: u32 = 600;

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

/// What failed to go before this run is tried again; what fails in this one, whose token was with the last request, is
/// explained.
pub(crate) fn decide(
    cluster: &ClusterKey,
    stack: Option<&Stack>,
    of_this_run: bool,
    lift: bool,
) -> Result<Action, StepError> {
    let Some(stack) = stack else { return Ok(Action::Done) };
    if stack.tags.get(CLUSTER_TAG) != Some(&cluster.name) {
        let name = stack_name(cluster);
        let cause = format!("The stack {name} exists without the tag {CLUSTER_TAG}={}.", cluster.name);
        return Err(StepError::new(ErrorName::NotOurs, cause)
            .remedy("Start the teardown with \"network\": \"keep\", or tag the stack."));
    }
    Ok(match stack.status.as_str() {
        "DELETE_COMPLETE" => Action::Done,
        "DELETE_FAILED" if of_this_run => Action::Explain,
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
    let stack = stacks::describe(cx.aws.cloudformation(), &name).await?;
    let vpc = stack.as_ref().and_then(|stack| stack.outputs.get("VpcId").cloned());
    let ours = format!("teardown-{}-", input.run.id);
    let of_this_run = match &stack {
        Some(stack) if stack.status == "DELETE_FAILED" => {
            let token = stacks::token_of_last_request(cx.aws.cloudformation(), &stack.id).await?;
            token.is_some_and(|token| token.starts_with(&ours))
        }
        _ => false,
    };
    match decide(&input.cluster, stack.as_ref(), of_this_run, input.lift_deletion_protection)? {
        Action::Done => Ok(Progress::done(Output {})),
        Action::Wait(detail) => Ok(Progress::wait(ASK_AGAIN, detail)),
        Action::Explain => Err(explain(cx, &name, vpc.as_deref()).await?),
        Action::Delete(protected) => {
            if let Some(vpc) = &vpc
                && let Some(detail) = remove_guards(cx, &input, vpc).await?
            {
                return Ok(Progress::wait(ASK_AGAIN, detail));
            }
            if let Some(vpc) = &vpc
                && input.waited < PATIENCE
                && let Some(detail) = lingering(cx, vpc).await?
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
            let token = format!("{ours}{}", input.waited);
            let call = cx.aws.cloudformation().delete_stack().stack_name(&name).client_request_token(token);
            call.send().await.during("cloudformation:DeleteStack")?;
            Ok(Progress::wait(ASK_AGAIN, "the network's stack is DELETE_IN_PROGRESS"))
        }
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
        match remove(cx, Kind::SecurityGroup, "", &id).await {
            Err(error) if error.name == ErrorName::DeletionBlocked => {
                return Ok(Some(format!("GuardDuty's security group {id} is still in use")));
            }
            other => other?,
        };
    }
    Ok(None)
}

/// Interfaces of load balancers stay in their subnets for minutes after them, and a stack whose subnets can't go is
/// DELETE_FAILED. Answers what has to be waited for.
async fn lingering(cx: &Context, vpc: &str) -> Result<Option<String>, StepError> {
    let there = interfaces::described(cx, filter("vpc-id", [vpc])).await?;
    let lingering: Vec<String> = there.into_iter().filter(|interface| interface.contains("(\"ELB ")).collect();
    Ok((!lingering.is_empty()).then(|| format!("interfaces of load balancers are going: {}", lingering.join(", "))))
}

/// Why the stack could not go: the resources that failed, the first one first, in CloudFormation's words, and what others
/// have in the VPC.
async fn explain(cx: &Context, stack: &str, vpc: Option<&str>) -> Result<StepError, StepError> {
    let reason = stacks::reason(cx.aws.cloudformation(), stack, "DELETE_FAILED").await?;
    let left = match vpc {
        Some(vpc) => left_in(cx, vpc).await?,
        None => Vec::new(),
    };
    let left = if left.is_empty() { String::new() } else { format!(" Left in the VPC: {}.", left.join(", ")) };
    Ok(StepError::new(ErrorName::DeletionBlocked, format!("The stack {stack} is DELETE_FAILED: {reason}.{left}")))
}

/// What keeps a VPC from going, for a person: interfaces with whose they are, endpoints, security groups.
async fn left_in(cx: &Context, vpc: &str) -> Result<Vec<String>, StepError> {
    let (ec2, here) = (cx.aws.ec2(), || filter("vpc-id", [vpc]));
    let mut left = interfaces::described(cx, here()).await?;
    let endpoints = ec2.describe_vpc_endpoints().filters(here()).into_paginator().items().send();
    let endpoints: Result<Vec<VpcEndpoint>, _> = endpoints.collect().await;
    left.extend(endpoints.during("ec2:DescribeVpcEndpoints")?.iter().map(|endpoint| {
        let (id, service) = (endpoint.vpc_endpoint_id().unwrap_or_default(), endpoint.service_name());
        format!("{id} (an endpoint of {})", service.unwrap_or("no service"))
    }));
    let groups = ec2.describe_security_groups().filters(here()).into_paginator().items().send();
    let groups: Result<Vec<SecurityGroup>, _> = groups.collect().await;
    // The default one goes with its VPC.
    let groups =
        groups.during("ec2:DescribeSecurityGroups")?.into_iter().filter(|one| one.group_name() != Some("default"));
    left.extend(groups.map(|group| {
        format!("{} (\"{}\")", group.group_id().unwrap_or_default(), group.group_name().unwrap_or_default())
    }));
    Ok(left)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use time::OffsetDateTime;

    use super::*;

    fn demo() -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() }
    }

    fn stack(status: &str, owner: &str) -> Stack {
        Stack {
            id: "arn:stack".into(),
            status: status.into(),
            tags: BTreeMap::from([(CLUSTER_TAG.to_owned(), owner.to_owned())]),
            parameters: BTreeMap::new(),
            outputs: BTreeMap::new(),
            protected: false,
            created_at: OffsetDateTime::UNIX_EPOCH,
            changed_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn decided(status: &str, of_this_run: bool) -> Action {
        decide(&demo(), Some(&stack(status, "demo")), of_this_run, false).unwrap()
    }

    #[test]
    fn a_protected_stack_goes_only_when_its_protection_may_be_lifted() {
        let protected = Stack { protected: true, ..stack("CREATE_COMPLETE", "demo") };
        let decided = |lift| decide(&demo(), Some(&protected), false, lift);
        assert_eq!(decided(false).unwrap_err().name, ErrorName::DeletionProtected);
        assert_eq!(decided(true).unwrap(), Action::Delete(true));
    }

    #[test]
    fn a_stack_is_deleted_waited_for_and_gone() {
        assert_eq!(decide(&demo(), None, false, false).unwrap(), Action::Done);
        for whole in ["CREATE_COMPLETE", "ROLLBACK_COMPLETE", "UPDATE_ROLLBACK_FAILED"] {
            assert_eq!(decided(whole, false), Action::Delete(false), "{whole}");
        }
        for busy in ["DELETE_IN_PROGRESS", "CREATE_IN_PROGRESS", "ROLLBACK_IN_PROGRESS"] {
            assert!(matches!(decided(busy, true), Action::Wait(_)), "{busy}");
        }
    }

    #[test]
    fn a_failure_of_before_is_tried_again_and_one_of_now_explained() {
        assert_eq!(decided("DELETE_FAILED", false), Action::Delete(false));
        assert_eq!(decided("DELETE_FAILED", true), Action::Explain);
    }

    #[test]
    fn a_strangers_stack_stays() {
        let error = decide(&demo(), Some(&stack("CREATE_COMPLETE", "demo-2")), false, true).unwrap_err();
        assert_eq!(error.name, ErrorName::NotOurs);
    }

    #[test]
    fn guard_duty_is_known_by_its_service() {
        let endpoint = |service: &str| VpcEndpoint::builder().service_name(service).build();
        assert!(is_guard(&endpoint("com.amazonaws.eu-west-1.guardduty-data")));
        assert!(!is_guard(&endpoint("com.amazonaws.eu-west-1.s3")));
    }
}
