//! A stack: what it is to be, its resources as they are, and its events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::change_sets::ChangeSet;
use super::intrinsics::{Made, Scope, text};
use super::kinds::Kind;
use super::template::Template;
use crate::gateway::call::AwsError;

/// What happens to what was made when a resource fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnFailure {
    DoNothing,
    Rollback,
    Delete,
}

/// What a request asks a stack to be.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) template_body: String,
    pub(super) template: Template,
    /// As given or by default, by name: what DescribeStacks answers.
    pub(super) given: BTreeMap<String, String>,
    /// Parameters and pseudo parameters, as functions see them.
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tags: Vec<(String, String)>,
    pub(super) capabilities: Vec<String>,
}

impl Target {
    /// The resources that the conditions leave; fails on a condition that has no truth.
    pub(super) fn active(&self) -> Result<BTreeSet<String>, AwsError> {
        let nothing = BTreeMap::new();
        let scope = self.scope(&nothing);
        let mut active = BTreeSet::new();
        for (name, resource) in &self.template.resources {
            if resource.condition.as_deref().map_or(Ok(true), |condition| scope.condition(condition))? {
                active.insert(name.clone());
            }
        }
        Ok(active)
    }

    fn scope<'a>(&'a self, made: &'a BTreeMap<String, Made>) -> Scope<'a> {
        Scope { template: &self.template, parameters: &self.values, made }
    }
}

/// A resource as a target asks for it, with everything in it looked up.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) properties: Map<String, Value>,
    /// Its own over the stack's, and CloudFormation's; none for a type without tags.
    pub(super) tags: Vec<(String, String)>,
    /// The resources of the stack that it needs.
    pub(super) needs: BTreeSet<String>,
    /// Kept when the template, or the stack, goes without it.
    pub(super) kept_when_deleted: bool,
    /// Kept when another takes its place.
    pub(super) kept_when_replaced: bool,
}

/// A resource of a stack, as it was made or changed last.
#[derive(Debug, Clone)]
pub(super) struct StackResource {
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) at: OffsetDateTime,
    pub(super) made: Made,
    pub(super) last: Wanted,
}

impl StackResource {
    /// One that is not begun.
    pub(super) fn new(last: Wanted) -> Self {
        Self { status: "", reason: None, at: OffsetDateTime::now_utc(), made: Made::default(), last }
    }

    /// Whether there is something to delete.
    pub(super) fn is_there(&self) -> bool {
        !self.made.physical_id.is_empty() && !matches!(self.status, "DELETE_COMPLETE" | "DELETE_SKIPPED")
    }
}

/// Everything that is known about a stack.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) account: String,
    pub(super) region: String,
    pub(super) id: String,
    pub(super) name: String,
    /// The client's token for what is being done, or was done last.
    pub(super) token: Option<String>,
    pub(super) target: Arc<Target>,
    /// What it was before an update that is not over.
    pub(super) previous: Option<Arc<Target>>,
    pub(super) role_arn: Option<String>,
    pub(super) on_failure: OnFailure,
    pub(super) termination_protection: bool,
    pub(super) created: OffsetDateTime,
    pub(super) updated: Option<OffsetDateTime>,
    pub(super) deleted: Option<OffsetDateTime>,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) resources: BTreeMap<String, StackResource>,
    /// Those in whose place an update made others, until it is known which of both stay.
    pub(super) superseded: BTreeMap<String, StackResource>,
    /// Those that nothing asks for any more.
    pub(super) leftovers: BTreeMap<String, StackResource>,
    pub(super) outputs: Vec<StackOutput>,
    /// Oldest first.
    pub(super) events: Vec<Event>,
    /// Oldest first.
    pub(super) change_sets: Vec<ChangeSet>,
    /// Set when a failure or a deletion makes further making pointless.
    pub(super) cancelled: CancellationToken,
}

#[derive(Debug, Clone)]
pub(super) struct StackOutput {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) description: Option<String>,
    pub(super) export_name: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) logical_id: String,
    pub(super) physical_id: String,
    pub(super) kind_name: &'static str,
    pub(super) at: OffsetDateTime,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) properties: Option<String>,
    pub(super) token: Option<String>,
}

const STACK: &str = "AWS::CloudFormation::Stack";

/// A resource's tags that win over the stack's, and CloudFormation's own.
fn all_tags(
    stack: &Stack,
    target: &Target,
    logical_id: &str,
    properties: &Map<String, Value>,
) -> Vec<(String, String)> {
    let own = properties.get("Tags").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let own: Vec<(String, String)> =
        own.iter().filter_map(|tag| Some((text(tag.get("Key")?), text(tag.get("Value")?)))).collect();
    let mut tags: Vec<(String, String)> =
        target.tags.iter().filter(|(key, _)| !own.iter().any(|(other, _)| other == key)).cloned().collect();
    tags.push(("aws:cloudformation:stack-name".to_owned(), stack.name.clone()));
    tags.push(("aws:cloudformation:stack-id".to_owned(), stack.id.clone()));
    tags.extend(own);
    tags.push(("aws:cloudformation:logical-id".to_owned(), logical_id.to_owned()));
    tags
}

impl Stack {
    /// What is being done, or was done last, with an event.
    pub(super) fn set_status(&mut self, status: &'static str, reason: Option<String>) {
        self.status = status;
        self.reason.clone_from(&reason);
        if status == "DELETE_COMPLETE" {
            self.deleted = Some(OffsetDateTime::now_utc());
        }
        let event = Event {
            id: ulid::Ulid::generate().to_string(),
            logical_id: self.name.clone(),
            physical_id: self.id.clone(),
            kind_name: STACK,
            at: OffsetDateTime::now_utc(),
            status,
            reason,
            properties: None,
            token: self.token.clone(),
        };
        self.events.push(event);
    }

    /// A resource's status, with an event.
    pub(super) fn set_resource(&mut self, logical_id: &str, status: &'static str, reason: Option<String>) {
        let Some(resource) = self.resources.get_mut(logical_id) else { return };
        (resource.status, resource.at) = (status, OffsetDateTime::now_utc());
        resource.reason.clone_from(&reason);
        let resource = resource.clone();
        self.tell(logical_id, &resource, status, reason);
    }

    /// An event of a resource, which may be one that the stack has no more.
    pub(super) fn tell(
        &mut self,
        logical_id: &str,
        resource: &StackResource,
        status: &'static str,
        reason: Option<String>,
    ) {
        self.events.push(Event {
            id: format!("{logical_id}-{status}-{}", ulid::Ulid::generate()),
            logical_id: logical_id.to_owned(),
            physical_id: resource.made.physical_id.clone(),
            kind_name: resource.last.kind.name(),
            at: OffsetDateTime::now_utc(),
            status,
            reason,
            properties: Some(Value::Object(resource.last.properties.clone()).to_string()),
            token: self.token.clone(),
        });
    }

    /// What `Ref` and `Fn::GetAtt` answer of the resources that are there.
    pub(super) fn made(&self) -> BTreeMap<String, Made> {
        let there = self.resources.iter().filter(|(_, resource)| resource.is_there());
        there.map(|(name, resource)| (name.clone(), resource.made.clone())).collect()
    }

    /// A resource as `target` asks for it, with the resources in `made`.
    pub(super) fn wanted(
        &self,
        target: &Target,
        name: &str,
        made: &BTreeMap<String, Made>,
    ) -> Result<Option<Wanted>, AwsError> {
        let Some(resource) = target.template.resources.get(name) else { return Ok(None) };
        let Some(kind) = Kind::of(&resource.kind) else { return Ok(None) };
        let mut properties = target.scope(made).evaluate_map(&resource.properties)?;
        let tags = if kind.taggable() { all_tags(self, target, name, &properties) } else { Vec::new() };
        if kind.taggable() {
            properties.remove("Tags");
        }
        Ok(Some(Wanted {
            kind,
            properties,
            tags,
            needs: target.template.dependencies(resource),
            kept_when_deleted: resource.deletion_policy.as_deref() == Some("Retain"),
            kept_when_replaced: resource.update_replace_policy.as_deref() == Some("Retain"),
        }))
    }

    /// Looks the outputs up.
    pub(super) fn evaluate_outputs(&mut self) -> Result<(), AwsError> {
        let made = self.made();
        let scope = self.target.scope(&made);
        let mut outputs = Vec::new();
        for (key, output) in &self.target.template.outputs {
            if !output.condition.as_deref().map_or(Ok(true), |condition| scope.condition(condition))? {
                continue;
            }
            let Some(value) = scope.evaluate(&output.value)? else { continue };
            let name = output.export.as_ref().and_then(|export| export.get("Name"));
            let name = name.map(|name| scope.evaluate(name)).transpose()?.flatten();
            outputs.push(StackOutput {
                key: key.clone(),
                value: text(&value),
                description: output.description.clone(),
                export_name: name.as_ref().map(text),
            });
        }
        self.outputs = outputs;
        Ok(())
    }
}

/// Why a resource failed, as CloudFormation's events say it: a handler's failure wraps the service's words without its
/// error code; a template's own failure stands as it is.
pub(super) fn told(kind: Kind, error: &AwsError) -> String {
    if error.code == "ValidationError" {
        return error.message.clone();
    }
    let ends = |endings: &[&str]| endings.iter().any(|ending| error.code.contains(ending));
    let handler = match error.status {
        500.. => "ServiceInternalError",
        _ if ends(&["LimitExceeded"]) => "ServiceLimitExceeded",
        _ if ends(&["AccessDenied", "Unauthorized"]) => "AccessDenied",
        _ if ends(&["NotFound", "NoSuchEntity"]) => "NotFound",
        _ if ends(&["AlreadyExists", "Duplicate"]) => "AlreadyExists",
        _ if ends(&["Throttl"]) => "Throttling",
        _ => "InvalidRequest",
    };
    format!(
        "Resource handler returned message: \"{} (Service: {}, Status Code: {}, Request ID: {})\" (RequestToken: {}, \
         HandlerErrorCode: {handler})",
        error.message,
        kind.service(),
        error.status,
        crate::gateway::wire::request_id(),
        crate::gateway::wire::request_id(),
    )
}
