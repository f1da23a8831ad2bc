//! A stack: its resources in the order of their dependencies, its events, and its way back when one of them fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::{Map, Value};
use slipway_states::clock::ScaledClock;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::intrinsics::{Made, Scope, text};
use super::resource::{self, Kind, Order};
use super::template::Template;
use crate::gateway::call::{Aws, AwsError};

/// What happens to what was made when a resource fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnFailure {
    DoNothing,
    Rollback,
    Delete,
}

/// Everything that is known about a stack.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) account: String,
    pub(super) region: String,
    pub(super) id: String,
    pub(super) name: String,
    pub(super) token: Option<String>,
    pub(super) template_body: String,
    pub(super) template: Arc<Template>,
    /// As given, by name: what DescribeStacks answers.
    pub(super) given: BTreeMap<String, String>,
    /// Parameters and pseudo parameters, as functions see them.
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tags: Vec<(String, String)>,
    pub(super) capabilities: Vec<String>,
    pub(super) role_arn: Option<String>,
    pub(super) on_failure: OnFailure,
    pub(super) termination_protection: bool,
    pub(super) created: OffsetDateTime,
    pub(super) deleted: Option<OffsetDateTime>,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) resources: BTreeMap<String, StackResource>,
    pub(super) outputs: Vec<StackOutput>,
    /// Oldest first.
    pub(super) events: Vec<Event>,
}

/// A resource of a stack.
#[derive(Debug, Clone)]
pub(super) struct StackResource {
    pub(super) kind_name: String,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) at: OffsetDateTime,
    pub(super) made: Made,
    /// Evaluated, for its deletion.
    properties: Map<String, Value>,
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
    pub(super) kind_name: String,
    pub(super) at: OffsetDateTime,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) properties: Option<String>,
}

const STACK: &str = "AWS::CloudFormation::Stack";

impl Stack {
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
            kind_name: STACK.to_owned(),
            at: OffsetDateTime::now_utc(),
            status,
            reason,
            properties: None,
        };
        self.events.push(event);
    }

    fn set_resource(&mut self, logical_id: &str, status: &'static str, reason: Option<String>) {
        let at = OffsetDateTime::now_utc();
        let Some(resource) = self.resources.get_mut(logical_id) else { return };
        (resource.status, resource.at) = (status, at);
        resource.reason.clone_from(&reason);
        self.events.push(Event {
            id: format!("{logical_id}-{status}-{}", ulid::Ulid::generate()),
            logical_id: logical_id.to_owned(),
            physical_id: resource.made.physical_id.clone(),
            kind_name: resource.kind_name.clone(),
            at,
            status,
            reason,
            properties: Some(Value::Object(resource.properties.clone()).to_string()),
        });
    }

    fn made(&self) -> BTreeMap<String, Made> {
        let made = |(name, resource): (&String, &StackResource)| {
            (resource.status == "CREATE_COMPLETE").then(|| (name.clone(), resource.made.clone()))
        };
        self.resources.iter().filter_map(made).collect()
    }

    /// Where functions look values up that need no resource: conditions.
    fn active(&self) -> Result<BTreeSet<String>, AwsError> {
        let nothing = BTreeMap::new();
        let scope = Scope { template: &self.template, parameters: &self.values, made: &nothing };
        let mut active = BTreeSet::new();
        for (name, resource) in &self.template.resources {
            if resource.condition.as_deref().map_or(Ok(true), |condition| scope.condition(condition))? {
                active.insert(name.clone());
            }
        }
        Ok(active)
    }

    fn evaluate_outputs(&mut self) -> Result<(), AwsError> {
        let made = self.made();
        let scope = Scope { template: &self.template, parameters: &self.values, made: &made };
        let mut outputs = Vec::new();
        for (key, output) in &self.template.outputs {
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

/// The work on one stack: one piece at a time, each as a task of its own.
pub(super) struct Work {
    pub(super) stack: Mutex<Stack>,
    pub(super) aws: Aws,
    pub(super) clock: ScaledClock,
    /// Set when a failure or a deletion makes further making pointless.
    cancelled: CancellationToken,
    turn: tokio::sync::Mutex<()>,
}

/// A resource's failure: its own error, or the stack's loss of interest.
enum Failure {
    Own(AwsError),
    Cancelled,
}

impl Work {
    pub(super) fn new(stack: Stack, aws: Aws, clock: ScaledClock) -> Arc<Self> {
        Arc::new(Self {
            stack: Mutex::new(stack),
            aws,
            clock,
            cancelled: CancellationToken::new(),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    pub(super) fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The resources that the conditions leave; fails on a condition that has no truth.
    pub(super) fn plan(&self) -> Result<(), AwsError> {
        let mut stack = self.stack();
        let active = stack.active()?;
        let template = stack.template.clone();
        stack.resources = template
            .resources
            .iter()
            .filter(|(name, _)| active.contains(*name))
            .map(|(name, resource)| {
                let planned = StackResource {
                    kind_name: resource.kind.clone(),
                    status: "",
                    reason: None,
                    at: OffsetDateTime::now_utc(),
                    made: Made::default(),
                    properties: Map::new(),
                };
                (name.clone(), planned)
            })
            .collect();
        Ok(())
    }

    /// Makes every resource, each as soon as what it needs is there; on failure goes back.
    pub(super) async fn create(self: Arc<Self>) {
        let _turn = self.turn.lock().await;
        let failed = self.create_resources().await;
        let on_failure = self.stack().on_failure;
        if self.stack().status == "DELETE_IN_PROGRESS" {
            return;
        }
        let reason = match failed {
            None => match self.stack().evaluate_outputs() {
                Ok(()) => None,
                Err(error) => Some(error.message),
            },
            Some(failed) => Some(format!("The following resource(s) failed to create: [{}].", failed.join(", "))),
        };
        match (reason, on_failure) {
            (None, _) => self.stack().set_status("CREATE_COMPLETE", None),
            (Some(reason), OnFailure::DoNothing) => self.stack().set_status("CREATE_FAILED", Some(reason)),
            (Some(reason), OnFailure::Rollback) => {
                let reason = format!("{reason} Rollback requested by user.");
                self.stack().set_status("ROLLBACK_IN_PROGRESS", Some(reason));
                self.delete_resources("ROLLBACK_COMPLETE", "ROLLBACK_FAILED").await;
            }
            (Some(reason), OnFailure::Delete) => {
                let reason = format!("{reason} Delete requested by user.");
                self.stack().set_status("DELETE_IN_PROGRESS", Some(reason));
                self.delete_resources("DELETE_COMPLETE", "DELETE_FAILED").await;
            }
        }
    }

    /// Starts a deletion; whoever describes the stack sees it at once.
    pub(super) fn start_deletion(self: &Arc<Self>) {
        self.cancelled.cancel();
        self.stack().set_status("DELETE_IN_PROGRESS", Some("User Initiated".to_owned()));
        let work = self.clone();
        tokio::spawn(async move {
            let _turn = work.turn.lock().await;
            work.delete_resources("DELETE_COMPLETE", "DELETE_FAILED").await;
        });
    }

    /// The logical ids of what failed by itself.
    async fn create_resources(&self) -> Option<Vec<String>> {
        let template = self.stack().template.clone();
        let mut open: BTreeMap<String, BTreeSet<String>> = {
            let stack = self.stack();
            let needs = |name: &String| {
                let resource = template.resources.get(name)?;
                let needs = template.dependencies(resource).into_iter();
                Some((name.clone(), needs.filter(|need| stack.resources.contains_key(need)).collect()))
            };
            stack.resources.keys().filter_map(needs).collect()
        };
        let mut running = FuturesUnordered::new();
        let mut failed = Vec::new();
        loop {
            if !self.cancelled.is_cancelled() {
                let ready: Vec<String> =
                    open.iter().filter(|(_, needs)| needs.is_empty()).map(|(name, _)| name.clone()).collect();
                for name in ready {
                    open.remove(&name);
                    running.push(self.create_resource(&template, name));
                }
            }
            let Some((name, result)) = running.next().await else { break };
            match result {
                Ok(()) => {
                    self.stack().set_resource(&name, "CREATE_COMPLETE", None);
                    for needs in open.values_mut() {
                        needs.remove(&name);
                    }
                }
                Err(Failure::Cancelled) => {
                    let reason = Some("Resource creation cancelled".to_owned());
                    self.stack().set_resource(&name, "CREATE_FAILED", reason);
                }
                Err(Failure::Own(error)) => {
                    let reason = format!(
                        "Resource handler returned message: \"{} (Status Code: {}, Error Code: {})\"",
                        error.message, error.status, error.code
                    );
                    self.stack().set_resource(&name, "CREATE_FAILED", Some(reason));
                    failed.push(name);
                    self.cancelled.cancel();
                }
            }
        }
        (!failed.is_empty()).then_some(failed)
    }

    async fn create_resource(&self, template: &Template, name: String) -> (String, Result<(), Failure>) {
        let result = self.try_create(template, &name).await;
        (name, result)
    }

    async fn try_create(&self, template: &Template, name: &str) -> Result<(), Failure> {
        let Some(resource) = template.resources.get(name) else { return Ok(()) };
        let Some(kind) = Kind::of(&resource.kind) else { return Ok(()) };
        let (properties, tags, stack_name) = {
            let mut stack = self.stack();
            let made = stack.made();
            let scope = Scope { template, parameters: &stack.values, made: &made };
            let properties = scope.evaluate_map(&resource.properties);
            if let (Ok(properties), Some(planned)) = (&properties, stack.resources.get_mut(name)) {
                planned.properties.clone_from(properties);
            }
            stack.set_resource(name, "CREATE_IN_PROGRESS", None);
            let mut tags = stack.tags.clone();
            tags.push(("aws:cloudformation:stack-name".to_owned(), stack.name.clone()));
            tags.push(("aws:cloudformation:stack-id".to_owned(), stack.id.clone()));
            (properties.map_err(Failure::Own)?, tags, stack.name.clone())
        };
        let attributes_read = template.attributes_read(name);
        let order = Order {
            aws: &self.aws,
            kind,
            stack_name: &stack_name,
            logical_id: name,
            properties: &properties,
            tags: &tags,
            attributes_read: &attributes_read,
        };
        let mut made = Made::default();
        let result = order.create(&mut made).await;
        {
            let mut stack = self.stack();
            if let Some(planned) = stack.resources.get_mut(name) {
                planned.made = made;
            }
            if result.is_ok() {
                stack.set_resource(name, "CREATE_IN_PROGRESS", Some("Resource creation Initiated".to_owned()));
            }
        }
        result.map_err(Failure::Own)?;
        tokio::select! {
            () = self.clock.sleep(kind.takes()) => Ok(()),
            () = self.cancelled.cancelled() => Err(Failure::Cancelled),
        }
    }

    /// Unmakes every resource that has an id, each as soon as nothing needs it any more.
    async fn delete_resources(&self, complete: &'static str, incomplete: &'static str) {
        let template = self.stack().template.clone();
        let mut open: BTreeSet<String> = {
            let stack = self.stack();
            let there = stack.resources.iter().filter(|(_, resource)| {
                !resource.made.physical_id.is_empty()
                    && !matches!(resource.status, "DELETE_COMPLETE" | "DELETE_SKIPPED")
            });
            there.map(|(name, _)| name.clone()).collect()
        };
        let mut running = FuturesUnordered::new();
        let mut in_work: BTreeSet<String> = BTreeSet::new();
        let mut failed = Vec::new();
        loop {
            let needed: BTreeSet<String> = open
                .iter()
                .chain(&in_work)
                .chain(&failed)
                .filter_map(|name| template.resources.get(name))
                .flat_map(|resource| template.dependencies(resource))
                .collect();
            let ready: Vec<String> = open.iter().filter(|name| !needed.contains(*name)).cloned().collect();
            for name in ready {
                open.remove(&name);
                in_work.insert(name.clone());
                running.push(self.delete_resource(&template, name));
            }
            let Some((name, result)) = running.next().await else { break };
            in_work.remove(&name);
            match result {
                Ok(status) => self.stack().set_resource(&name, status, None),
                Err(error) => {
                    let reason = format!(
                        "Resource handler returned message: \"{} (Status Code: {}, Error Code: {})\"",
                        error.message, error.status, error.code
                    );
                    self.stack().set_resource(&name, "DELETE_FAILED", Some(reason));
                    failed.push(name);
                }
            }
        }
        let mut stack = self.stack();
        if failed.is_empty() {
            stack.outputs.clear();
            stack.set_status(complete, None);
        } else {
            let reason = format!("The following resource(s) failed to delete: [{}].", failed.join(", "));
            stack.set_status(incomplete, Some(reason));
        }
    }

    async fn delete_resource(&self, template: &Template, name: String) -> (String, Result<&'static str, AwsError>) {
        let result = self.try_delete(template, &name).await;
        (name, result)
    }

    async fn try_delete(&self, template: &Template, name: &str) -> Result<&'static str, AwsError> {
        let Some(resource) = template.resources.get(name) else { return Ok("DELETE_COMPLETE") };
        let Some(kind) = Kind::of(&resource.kind) else { return Ok("DELETE_COMPLETE") };
        if resource.deletion_policy.as_deref() == Some("Retain") && self.stack().status == "DELETE_IN_PROGRESS" {
            return Ok("DELETE_SKIPPED");
        }
        let (made, properties) = {
            let mut stack = self.stack();
            stack.set_resource(name, "DELETE_IN_PROGRESS", None);
            stack.resources.get(name).map(|there| (there.made.clone(), there.properties.clone())).unwrap_or_default()
        };
        resource::delete(&self.aws, kind, &made, &properties).await?;
        let takes = if kind == Kind::NatGateway { Duration::from_mins(1) } else { kind.takes() };
        self.clock.sleep(takes).await;
        Ok("DELETE_COMPLETE")
    }
}
