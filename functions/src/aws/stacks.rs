//! CloudFormation stacks and their change sets, as far as the network's stack needs them.

use std::collections::BTreeMap;

use aws_sdk_cloudformation::{
    Client,
    types::{ChangeAction, ChangeSetStatus, ExecutionStatus, ResourceChange},
};
use slipway_statemachine::StepError;
use time::OffsetDateTime;

use super::error::{During as _, code, message, refused};

/// A stack as CloudFormation describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Its ARN.
    pub id: String,
    /// `CREATE_IN_PROGRESS`, …
    pub status: String,
    /// As it was made or changed with last.
    pub tags: BTreeMap<String, String>,
    /// As it was made or changed with last.
    pub parameters: BTreeMap<String, String>,
    /// As it gives.
    pub outputs: BTreeMap<String, String>,
    /// Whether its deletion is refused.
    pub protected: bool,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When its last update began; when it was made, if there was none.
    pub changed_at: OffsetDateTime,
}

/// A change set, without what it would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeSet {
    /// Within its stack.
    pub name: String,
    /// How far it is.
    pub state: State,
}

/// How far a change set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// CloudFormation still compares.
    Planning,
    /// It can be executed.
    Ready,
    /// It would change nothing.
    Empty,
    /// It was executed, or is.
    Executed,
    /// It could not be made, and why.
    Failed(String),
}

/// What a change set would do to a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// In the template.
    pub resource: String,
    /// `AWS::EC2::Subnet`
    pub kind: String,
    /// What happens to it.
    pub effect: Effect,
}

/// What happens to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It is made.
    Adds,
    /// It is changed where it stands.
    Changes,
    /// Another takes its place, or may.
    Replaces,
    /// It is deleted.
    Removes,
}

/// The stack of a name, if there is one.
///
/// # Errors
/// AWS's, classified.
pub async fn describe(cloudformation: &Client, name: &str) -> Result<Option<Stack>, StepError> {
    match cloudformation.describe_stacks().stack_name(name).send().await {
        Ok(answer) => Ok(answer.stacks().first().map(stack)),
        Err(error)
            if code(&error) == Some("ValidationError")
                && message(&error).is_some_and(|message| message.contains("does not exist")) =>
        {
            Ok(None)
        }
        Err(error) => Err(refused("cloudformation:DescribeStacks", &error)),
    }
}

fn stack(stack: &aws_sdk_cloudformation::types::Stack) -> Stack {
    let pair = |name: Option<&str>, value: Option<&str>| Some((name?.to_owned(), value.unwrap_or_default().to_owned()));
    let at = |at: Option<&aws_sdk_cloudformation::primitives::DateTime>| {
        at.and_then(|at| OffsetDateTime::from_unix_timestamp_nanos(at.as_nanos()).ok())
    };
    let created_at = at(stack.creation_time()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    Stack {
        id: stack.stack_id().unwrap_or_default().to_owned(),
        status: stack.stack_status().map(|status| status.as_str().to_owned()).unwrap_or_default(),
        tags: stack.tags().iter().filter_map(|tag| pair(tag.key(), tag.value())).collect(),
        parameters: stack.parameters().iter().filter_map(|p| pair(p.parameter_key(), p.parameter_value())).collect(),
        outputs: stack.outputs().iter().filter_map(|o| pair(o.output_key(), o.output_value())).collect(),
        protected: stack.enable_termination_protection() == Some(true),
        created_at,
        changed_at: at(stack.last_updated_time()).unwrap_or(created_at),
    }
}

/// The template that a stack was made or changed with last.
///
/// # Errors
/// AWS's, classified.
pub async fn template(cloudformation: &Client, stack: &str) -> Result<String, StepError> {
    let answer = cloudformation.get_template().stack_name(stack).send().await;
    Ok(answer.during("cloudformation:GetTemplate")?.template_body.unwrap_or_default())
}

/// The change sets of a stack.
///
/// # Errors
/// AWS's, classified.
pub async fn change_sets(cloudformation: &Client, stack: &str) -> Result<Vec<ChangeSet>, StepError> {
    let summaries = cloudformation.list_change_sets().stack_name(stack).into_paginator().items().send();
    let summaries = summaries.collect::<Result<Vec<_>, _>>().await.during("cloudformation:ListChangeSets")?;
    let sets = summaries.into_iter().map(|summary| ChangeSet {
        name: summary.change_set_name.unwrap_or_default(),
        state: state(summary.status, summary.execution_status, summary.status_reason),
    });
    Ok(sets.collect())
}

/// AWS says in words alone that a change set failed because there is nothing to change.
fn state(status: Option<ChangeSetStatus>, execution: Option<ExecutionStatus>, reason: Option<String>) -> State {
    let reason = reason.unwrap_or_default();
    match (status, execution) {
        (Some(ChangeSetStatus::Failed), _)
            if reason.contains("didn't contain changes") || reason.contains("No updates are to be performed") =>
        {
            State::Empty
        }
        (Some(ChangeSetStatus::Failed), _) => State::Failed(reason),
        (Some(ChangeSetStatus::CreateComplete), Some(ExecutionStatus::Available)) => State::Ready,
        (Some(ChangeSetStatus::CreateComplete), Some(ExecutionStatus::Unavailable)) => State::Planning,
        (Some(ChangeSetStatus::CreateComplete), _) => State::Executed,
        _ => State::Planning,
    }
}

/// What a change set would do.
///
/// # Errors
/// AWS's, classified.
pub async fn changes(cloudformation: &Client, stack: &str, change_set: &str) -> Result<Vec<Change>, StepError> {
    let described = cloudformation.describe_change_set().stack_name(stack).change_set_name(change_set);
    let mut pages = described.into_paginator().send();
    let mut changes = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.during("cloudformation:DescribeChangeSet")?;
        changes.extend(page.changes().iter().filter_map(|change| change.resource_change()).map(change));
    }
    Ok(changes)
}

fn change(change: &ResourceChange) -> Change {
    let effect = match (change.action().map(ChangeAction::as_str), change.replacement()) {
        (Some("Add"), _) => Effect::Adds,
        (Some("Remove"), _) => Effect::Removes,
        (_, Some(replacement)) if replacement.as_str() != "False" => Effect::Replaces,
        _ => Effect::Changes,
    };
    Change {
        resource: change.logical_resource_id().unwrap_or_default().to_owned(),
        kind: change.resource_type().unwrap_or_default().to_owned(),
        effect,
    }
}

/// Which resources are being worked on, for whoever watches: `: NatGateway1, NatGateway2`; nothing where none is.
///
/// # Errors
/// AWS's, classified.
pub async fn busy(cloudformation: &Client, stack: &str) -> Result<String, StepError> {
    let resources = cloudformation.list_stack_resources().stack_name(stack).into_paginator().items().send();
    let resources = resources.collect::<Result<Vec<_>, _>>().await.during("cloudformation:ListStackResources")?;
    let mut busy: Vec<&str> = resources
        .iter()
        .filter(|resource| resource.resource_status().is_some_and(|status| status.as_str().ends_with("_IN_PROGRESS")))
        .filter_map(|resource| resource.logical_resource_id())
        .collect();
    busy.sort_unstable();
    Ok(match busy.as_slice() {
        [] => String::new(),
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!(": {first}, {second}, {third} and {} more", rest.len())
        }
        few => format!(": {}", few.join(", ")),
    })
}

/// The token that came with what somebody asked of a stack last, if there was one.
///
/// # Errors
/// AWS's, classified.
pub async fn token_of_last_request(cloudformation: &Client, stack: &str) -> Result<Option<String>, StepError> {
    let mut events = cloudformation.describe_stack_events().stack_name(stack).into_paginator().items().send();
    while let Some(event) = events.next().await {
        let event = event.during("cloudformation:DescribeStackEvents")?;
        let of_stack = event.resource_type() == Some("AWS::CloudFormation::Stack");
        if of_stack && event.resource_status_reason() == Some("User Initiated") {
            return Ok(event.client_request_token);
        }
    }
    Ok(None)
}

/// Why the last thing that was done with a stack failed: the resources that did, in their own words.
///
/// # Errors
/// AWS's, classified.
pub async fn reason(cloudformation: &Client, stack: &str, status: &str) -> Result<String, StepError> {
    let mut events = cloudformation.describe_stack_events().stack_name(stack).into_paginator().items().send();
    let mut newest_first = Vec::new();
    while let Some(event) = events.next().await {
        let event = event.during("cloudformation:DescribeStackEvents")?;
        let event = Event {
            resource: event.logical_resource_id.unwrap_or_default(),
            kind: event.resource_type.unwrap_or_default(),
            status: event.resource_status.map_or_else(String::new, |status| status.as_str().to_owned()),
            reason: event.resource_status_reason.unwrap_or_default(),
        };
        let begins = event.begins(status);
        newest_first.push(event);
        if begins {
            break;
        }
    }
    Ok(culprits(&newest_first))
}

/// A stack's event, as far as it explains.
#[derive(Debug, Clone)]
struct Event {
    resource: String,
    kind: String,
    status: String,
    reason: String,
}

impl Event {
    /// Whether what ended in `stack_status` began with it: a failed way back explains itself, not the way there.
    fn begins(&self, stack_status: &str) -> bool {
        let way_back = match stack_status {
            "ROLLBACK_FAILED" => "ROLLBACK_IN_PROGRESS",
            "UPDATE_ROLLBACK_FAILED" => "UPDATE_ROLLBACK_IN_PROGRESS",
            _ => "",
        };
        let of_stack = self.kind == "AWS::CloudFormation::Stack";
        of_stack && (self.status == way_back || self.reason == "User Initiated")
    }
}

/// The resources that failed by themselves, the first one first; others were cancelled for them.
fn culprits(newest_first: &[Event]) -> String {
    let failed = |event: &&Event| {
        event.status.ends_with("_FAILED")
            && event.kind != "AWS::CloudFormation::Stack"
            && !event.reason.ends_with(" cancelled")
    };
    let said = |event: &Event| format!("{} ({}): {}", event.resource, event.kind, event.reason.trim_end_matches('.'));
    let all: Vec<String> = newest_first.iter().rev().filter(failed).map(said).collect();
    if all.is_empty() { "its events name no failed resource".to_owned() } else { all.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(resource: &str, status: &str, reason: &str) -> Event {
        let kind = if resource == "stack" { "AWS::CloudFormation::Stack" } else { "AWS::EC2::EIP" };
        Event { resource: resource.into(), kind: kind.into(), status: status.into(), reason: reason.into() }
    }

    #[test]
    fn the_first_failure_explains_a_stack() {
        let newest_first = [
            event("stack", "ROLLBACK_IN_PROGRESS", "The following resource(s) failed"),
            event("PublicSubnet1", "CREATE_FAILED", "Resource creation cancelled"),
            event("NatAddress1", "CREATE_FAILED", "The maximum number of addresses has been reached."),
            event("NatAddress1", "CREATE_IN_PROGRESS", ""),
        ];
        let told = "NatAddress1 (AWS::EC2::EIP): The maximum number of addresses has been reached";
        assert_eq!(culprits(&newest_first), told);
    }

    #[test]
    fn a_failure_is_that_of_the_last_thing_done() {
        assert!(event("stack", "UPDATE_IN_PROGRESS", "User Initiated").begins("UPDATE_ROLLBACK_COMPLETE"));
        assert!(!event("stack", "UPDATE_ROLLBACK_IN_PROGRESS", "…").begins("UPDATE_ROLLBACK_COMPLETE"));
        assert!(event("stack", "UPDATE_ROLLBACK_IN_PROGRESS", "…").begins("UPDATE_ROLLBACK_FAILED"));
        assert!(!event("NatAddress1", "CREATE_IN_PROGRESS", "User Initiated").begins("ROLLBACK_COMPLETE"));
    }

    #[test]
    fn a_change_set_without_changes_is_told_from_one_that_failed() {
        let failed = |reason: &str| state(Some(ChangeSetStatus::Failed), None, Some(reason.to_owned()));
        assert_eq!(failed("The submitted information didn't contain changes. Submit different …"), State::Empty);
        assert_eq!(failed("No updates are to be performed."), State::Empty);
        assert_eq!(failed("Circular dependency"), State::Failed("Circular dependency".to_owned()));
        let ready = state(Some(ChangeSetStatus::CreateComplete), Some(ExecutionStatus::Available), None);
        assert_eq!(ready, State::Ready);
    }
}
