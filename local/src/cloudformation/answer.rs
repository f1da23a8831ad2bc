//! What the engine says, in CloudFormation's XML.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::change_sets::{Action, Change, ChangeSet, Detail};
use super::intrinsics::text;
use super::stack::{Event, OnFailure, Stack, StackOutput, Target};
use super::template::Template;
use super::validation_error;
use crate::gateway::call::AwsError;
use crate::gateway::wire::element;

fn optional(name: &str, value: Option<&str>) -> String {
    value.map(|value| element(name, value)).unwrap_or_default()
}

fn wrap(name: &str, xml: &str) -> String {
    format!("<{name}>{xml}</{name}>")
}

/// A list and its members.
pub(super) fn members(list: &str, items: impl Iterator<Item = String>) -> String {
    wrap(list, &items.map(|item| wrap("member", &item)).collect::<String>())
}

/// Which part of a list is asked for.
pub(super) struct Page<'a> {
    pub(super) list: &'a str,
    pub(super) token: Option<&'a String>,
    pub(super) size: usize,
}

/// The part of a list that is asked for, with the token of the next one.
pub(super) fn page(page: &Page<'_>, items: Vec<String>) -> Result<String, AwsError> {
    let prefix = format!("{}-from-", page.list);
    let from = match page.token.filter(|token| !token.is_empty()) {
        None => 0,
        Some(token) => token
            .strip_prefix(&prefix)
            .and_then(|from| from.parse().ok())
            .filter(|from| *from <= items.len())
            .ok_or_else(|| validation_error("Invalid NextToken"))?,
    };
    let next = (items.len() > from + page.size).then(|| format!("{prefix}{}", from + page.size));
    let shown = members(page.list, items.into_iter().skip(from).take(page.size));
    Ok(shown + &optional("NextToken", next.as_deref()))
}

fn timestamp(at: OffsetDateTime) -> String {
    at.replace_millisecond(at.millisecond()).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

fn names(stack: &Stack) -> String {
    element("StackId", &stack.id) + &element("StackName", &stack.name)
}

/// One member of DescribeStacks.
pub(super) fn stack(stack: &Stack) -> String {
    [
        names(stack),
        optional("Description", stack.target.template.description.as_deref()),
        members("Parameters", parameters(&stack.target).into_iter()),
        element("CreationTime", &timestamp(stack.created)),
        stack.updated.map(|at| element("LastUpdatedTime", &timestamp(at))).unwrap_or_default(),
        stack.deleted.map(|at| element("DeletionTime", &timestamp(at))).unwrap_or_default(),
        element("StackStatus", stack.status),
        optional("StackStatusReason", stack.reason.as_deref()),
        element("DisableRollback", &(stack.on_failure == OnFailure::DoNothing).to_string()),
        members("Capabilities", stack.target.capabilities.iter().cloned()),
        members("Outputs", stack.outputs.iter().map(output)),
        optional("RoleARN", stack.role_arn.as_deref()),
        members("Tags", tags(&stack.target).into_iter()),
        element("EnableTerminationProtection", &stack.termination_protection.to_string()),
        wrap("DriftInformation", &element("StackDriftStatus", "NOT_CHECKED")),
    ]
    .concat()
}

fn parameters(target: &Target) -> Vec<String> {
    let shown = target.given.iter().map(|(key, value)| {
        let hidden = target.template.parameters.get(key).is_some_and(|parameter| parameter.no_echo);
        element("ParameterKey", key) + &element("ParameterValue", if hidden { "****" } else { value })
    });
    shown.collect()
}

fn tags(target: &Target) -> Vec<String> {
    target.tags.iter().map(|(key, value)| element("Key", key) + &element("Value", value)).collect()
}

/// One member of ListStacks.
pub(super) fn summary(stack: &Stack) -> String {
    [
        names(stack),
        optional("TemplateDescription", stack.target.template.description.as_deref()),
        element("CreationTime", &timestamp(stack.created)),
        stack.updated.map(|at| element("LastUpdatedTime", &timestamp(at))).unwrap_or_default(),
        stack.deleted.map(|at| element("DeletionTime", &timestamp(at))).unwrap_or_default(),
        element("StackStatus", stack.status),
        optional("StackStatusReason", stack.reason.as_deref()),
        wrap("DriftInformation", &element("StackDriftStatus", "NOT_CHECKED")),
    ]
    .concat()
}

/// DescribeChangeSet, but for the changes.
pub(super) fn change_set(stack: &Stack, set: &ChangeSet) -> String {
    [
        change_set_summary(stack, set),
        members("Parameters", parameters(&set.target).into_iter()),
        members("Capabilities", set.target.capabilities.iter().cloned()),
        members("Tags", tags(&set.target).into_iter()),
    ]
    .concat()
}

/// One member of ListChangeSets.
pub(super) fn change_set_summary(stack: &Stack, set: &ChangeSet) -> String {
    [
        names(stack),
        element("ChangeSetId", &set.id),
        element("ChangeSetName", &set.name),
        optional("Description", set.description.as_deref()),
        element("CreationTime", &timestamp(set.created)),
        element("Status", set.status),
        optional("StatusReason", set.reason.as_deref()),
        element("ExecutionStatus", set.execution_status),
        element("IncludeNestedStacks", "false"),
    ]
    .concat()
}

/// One change of DescribeChangeSet.
pub(super) fn change(change: &Change) -> String {
    let (action, details) = match &change.action {
        Action::Add => ("Add", &[][..]),
        Action::Remove => ("Remove", &[][..]),
        Action::Modify(details) => ("Modify", details.as_slice()),
    };
    let scope: std::collections::BTreeSet<&str> = details.iter().map(attribute).collect();
    let resource = [
        element("Action", action),
        element("LogicalResourceId", &change.logical_id),
        optional("PhysicalResourceId", change.physical_id.as_deref()),
        element("ResourceType", change.kind.name()),
        optional("Replacement", change.replacement()),
        members("Scope", scope.into_iter().map(str::to_owned)),
        members("Details", details.iter().map(detail)),
    ];
    element("Type", "Resource") + &wrap("ResourceChange", &resource.concat())
}

fn attribute(detail: &Detail) -> &'static str {
    if detail.property.is_some() { "Properties" } else { "Tags" }
}

fn detail(detail: &Detail) -> String {
    let target = [
        element("Attribute", attribute(detail)),
        optional("Name", detail.property.as_deref()),
        element("RequiresRecreation", if detail.recreates { "Always" } else { "Never" }),
    ];
    let evaluation = if detail.dynamic { "Dynamic" } else { "Static" };
    wrap("Target", &target.concat())
        + &element("Evaluation", evaluation)
        + &element("ChangeSource", "DirectModification")
}

fn output(output: &StackOutput) -> String {
    [
        element("OutputKey", &output.key),
        element("OutputValue", &output.value),
        optional("Description", output.description.as_deref()),
        optional("ExportName", output.export_name.as_deref()),
    ]
    .concat()
}

/// The members of DescribeStackEvents: newest first.
pub(super) fn events(stack: &Stack) -> Vec<String> {
    stack.events.iter().rev().map(|each| event(stack, each)).collect()
}

fn event(stack: &Stack, event: &Event) -> String {
    [
        names(stack),
        element("EventId", &event.id),
        element("LogicalResourceId", &event.logical_id),
        element("PhysicalResourceId", &event.physical_id),
        element("ResourceType", event.kind_name),
        element("Timestamp", &timestamp(event.at)),
        element("ResourceStatus", event.status),
        optional("ResourceStatusReason", event.reason.as_deref()),
        optional("ResourceProperties", event.properties.as_deref()),
        optional("ClientRequestToken", event.token.as_deref()),
    ]
    .concat()
}

/// The resources that the stack has begun to make, or the one that is wanted.
pub(super) fn resources(stack: &Stack, wanted: Option<&String>, time_name: &str) -> Vec<String> {
    let found = stack.resources.keys().filter(|name| wanted.is_none_or(|wanted| wanted == *name));
    found.filter_map(|name| resource(stack, name, time_name)).collect()
}

fn resource(stack: &Stack, name: &str, time_name: &str) -> Option<String> {
    let resource = stack.resources.get(name).filter(|resource| !resource.status.is_empty())?;
    let physical_id = Some(resource.made.physical_id.as_str()).filter(|id| !id.is_empty());
    let members = [
        names(stack),
        element("LogicalResourceId", name),
        optional("PhysicalResourceId", physical_id),
        element("ResourceType", resource.last.kind.name()),
        element(time_name, &timestamp(resource.at)),
        element("ResourceStatus", resource.status),
        optional("ResourceStatusReason", resource.reason.as_deref()),
        wrap("DriftInformation", &element("StackResourceDriftStatus", "NOT_CHECKED")),
    ];
    Some(members.concat())
}

/// The stages in which GetTemplate answers a template.
pub(super) fn stages() -> String {
    members("StagesAvailable", ["Original", "Processed"].map(str::to_owned).into_iter())
}

/// ValidateTemplate.
pub(super) fn validated(template: &Template) -> String {
    let parameters = template.parameters.iter().map(|(key, parameter)| {
        let default = parameter.default.as_ref().map(text);
        [
            element("ParameterKey", key),
            optional("DefaultValue", default.as_deref()),
            element("NoEcho", &parameter.no_echo.to_string()),
            optional("Description", parameter.description.as_deref()),
        ]
        .concat()
    });
    let capabilities = template.capability();
    let types: std::collections::BTreeSet<&str> = template
        .resources
        .values()
        .map(|resource| resource.kind.as_str())
        .filter(|kind| kind.contains("::IAM::"))
        .collect();
    let types = types.into_iter().collect::<Vec<_>>().join(", ");
    let reason = capabilities.map(|_| format!("The following resource(s) require capabilities: [{types}]"));
    [
        members("Parameters", parameters),
        optional("Description", template.description.as_deref()),
        members("Capabilities", capabilities.into_iter().map(str::to_owned)),
        optional("CapabilitiesReason", reason.as_deref()),
    ]
    .concat()
}
