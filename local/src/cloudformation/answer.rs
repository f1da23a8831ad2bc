//! What the engine says, in CloudFormation's XML.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::intrinsics::text;
use super::stack::{Event, OnFailure, Stack, StackOutput};
use super::template::Template;
use crate::gateway::wire::element;

fn optional(name: &str, value: Option<&str>) -> String {
    value.map(|value| element(name, value)).unwrap_or_default()
}

fn wrap(name: &str, xml: &str) -> String {
    format!("<{name}>{xml}</{name}>")
}

fn members(list: &str, items: impl Iterator<Item = String>) -> String {
    wrap(list, &items.map(|item| wrap("member", &item)).collect::<String>())
}

fn timestamp(at: OffsetDateTime) -> String {
    at.replace_millisecond(at.millisecond()).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

fn names(stack: &Stack) -> String {
    element("StackId", &stack.id) + &element("StackName", &stack.name)
}

/// DescribeStacks.
pub(super) fn stacks(described: Vec<String>) -> String {
    members("Stacks", described.into_iter())
}

/// One member of DescribeStacks.
pub(super) fn stack(stack: &Stack) -> String {
    let parameters = stack.given.iter().map(|(key, value)| {
        let hidden = stack.template.parameters.get(key).is_some_and(|parameter| parameter.no_echo);
        element("ParameterKey", key) + &element("ParameterValue", if hidden { "****" } else { value })
    });
    let tags = stack.tags.iter().map(|(key, value)| element("Key", key) + &element("Value", value));
    [
        names(stack),
        optional("Description", stack.template.description.as_deref()),
        members("Parameters", parameters),
        element("CreationTime", &timestamp(stack.created)),
        stack.deleted.map(|at| element("DeletionTime", &timestamp(at))).unwrap_or_default(),
        element("StackStatus", stack.status),
        optional("StackStatusReason", stack.reason.as_deref()),
        element("DisableRollback", &(stack.on_failure == OnFailure::DoNothing).to_string()),
        members("Capabilities", stack.capabilities.iter().cloned()),
        members("Outputs", stack.outputs.iter().map(output)),
        optional("RoleARN", stack.role_arn.as_deref()),
        members("Tags", tags),
        element("EnableTerminationProtection", &stack.termination_protection.to_string()),
        wrap("DriftInformation", &element("StackDriftStatus", "NOT_CHECKED")),
    ]
    .concat()
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

/// DescribeStackEvents: newest first.
pub(super) fn events(stack: &Stack) -> String {
    members("StackEvents", stack.events.iter().rev().map(|each| event(stack, each)))
}

fn event(stack: &Stack, event: &Event) -> String {
    [
        names(stack),
        element("EventId", &event.id),
        element("LogicalResourceId", &event.logical_id),
        element("PhysicalResourceId", &event.physical_id),
        element("ResourceType", &event.kind_name),
        element("Timestamp", &timestamp(event.at)),
        element("ResourceStatus", event.status),
        optional("ResourceStatusReason", event.reason.as_deref()),
        optional("ResourceProperties", event.properties.as_deref()),
        optional("ClientRequestToken", stack.token.as_deref()),
    ]
    .concat()
}

/// A list of the resources that the stack has begun to make, or of the one that is wanted.
pub(super) fn resources(stack: &Stack, list: &str, wanted: Option<&String>, time_name: &str) -> String {
    let found = stack.resources.keys().filter(|name| wanted.is_none_or(|wanted| wanted == *name));
    members(list, found.filter_map(|name| resource(stack, name, time_name)))
}

/// One resource, if the stack has begun to make it.
pub(super) fn resource(stack: &Stack, name: &str, time_name: &str) -> Option<String> {
    let resource = stack.resources.get(name).filter(|resource| !resource.status.is_empty())?;
    let physical_id = Some(resource.made.physical_id.as_str()).filter(|id| !id.is_empty());
    let members = [
        names(stack),
        element("LogicalResourceId", name),
        optional("PhysicalResourceId", physical_id),
        element("ResourceType", &resource.kind_name),
        element(time_name, &timestamp(resource.at)),
        element("ResourceStatus", resource.status),
        optional("ResourceStatusReason", resource.reason.as_deref()),
        wrap("DriftInformation", &element("StackResourceDriftStatus", "NOT_CHECKED")),
    ];
    Some(members.concat())
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
    let reason = capabilities.map(|_| "The template has IAM resources.");
    [
        members("Parameters", parameters),
        optional("Description", template.description.as_deref()),
        members("Capabilities", capabilities.into_iter().map(str::to_owned)),
        optional("CapabilitiesReason", reason),
    ]
    .concat()
}
