//! CloudFormation for the stacks that the product makes: a template of known types becomes EC2, IAM and log calls of
//! its caller's, in the order of its dependencies, with the events, change sets, waits and ways back of AWS's own.

mod answer;
mod change_sets;
mod intrinsics;
mod kinds;
mod request;
mod resource;
mod stack;
mod template;
mod update;
mod work;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use slipway_states::clock::ScaledClock;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use self::answer::Page;
use self::change_sets::ChangeSet;
use self::kinds::Kind;
use self::request::{check_name, flag, required, target};
use self::stack::Stack;
use self::template::Template;
use self::work::Work;
use crate::gateway::call::{Answer, Aws, AwsError, Call, Dispatch, Principal, Service};
use crate::gateway::wire::{self, element};

/// Whether every resource of a template (YAML or JSON) is of a type that this engine makes. Others, and templates
/// with transforms, belong to the emulator behind it.
#[must_use]
pub fn owns(template: &str) -> bool {
    let types = template::resource_types(template);
    !types.is_empty() && types.iter().all(|kind| Kind::of(kind).is_some())
}

/// The service.
pub struct CloudFormation {
    gateway: Arc<dyn Dispatch>,
    clock: ScaledClock,
    page_size: usize,
    stacks: Mutex<Vec<Arc<Work>>>,
}

type Parameters = BTreeMap<String, String>;

/// What AWS answers at once of events, resources, stacks and change sets.
const PAGE_SIZE: usize = 100;

fn validation_error(message: impl Into<String>) -> AwsError {
    AwsError::new(400, "ValidationError", message)
}

impl CloudFormation {
    /// An engine whose calls go out through `gateway`, with waits shortened by `clock`, and lists cut into pages of
    /// `page_size` (AWS's 100 by default).
    #[must_use]
    pub fn new(gateway: Arc<dyn Dispatch>, clock: ScaledClock, page_size: Option<usize>) -> Arc<Self> {
        let page_size = page_size.unwrap_or(PAGE_SIZE).max(1);
        Arc::new(Self { gateway, clock, page_size, stacks: Mutex::default() })
    }

    /// Whether a call is about a stack, a change set or a template of this engine. A call that names none of them (a
    /// listing of all stacks) is not.
    #[must_use]
    pub fn takes(&self, call: &Call) -> bool {
        let parameters = wire::parameters(call);
        let named = parameters.get("StackName").is_some_and(|name| self.latest(call, name).is_some());
        let set = parameters.get("ChangeSetName").is_some_and(|id| self.of_change_set(call, id).is_some());
        named || set || parameters.get("TemplateBody").is_some_and(|body| owns(body))
    }

    /// This engine's members of a listing of all stacks: of DescribeStacks, without the deleted ones, or of ListStacks,
    /// with the statuses that are asked for.
    #[must_use]
    pub fn listed(&self, call: &Call) -> Vec<String> {
        let parameters = wire::parameters(call);
        let statuses = wire::list(&parameters, "StackStatusFilter.member");
        let works = self.stacks();
        let here = works.iter().map(|work| work.stack());
        let here = here.filter(|stack| stack.account == call.account && stack.region == call.region);
        if call.action == "ListStacks" {
            let wanted =
                here.filter(|stack| statuses.is_empty() || statuses.iter().any(|status| status == stack.status));
            return wanted.map(|stack| answer::summary(&stack)).collect();
        }
        here.filter(|stack| stack.status != "DELETE_COMPLETE").map(|stack| answer::stack(&stack)).collect()
    }

    /// A page of a listing of all stacks.
    ///
    /// # Errors
    /// `ValidationError` for a token that no page gave.
    pub fn page(&self, call: &Call, list: &str, members: Vec<String>) -> Result<String, AwsError> {
        self.paged(&wire::parameters(call), list, members)
    }

    fn paged(&self, parameters: &Parameters, list: &str, members: Vec<String>) -> Result<String, AwsError> {
        answer::page(&Page { list, token: parameters.get("NextToken"), size: self.page_size }, members)
    }

    fn stacks(&self) -> MutexGuard<'_, Vec<Arc<Work>>> {
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, call: &Call, matches: impl Fn(&Stack) -> bool) -> Option<Arc<Work>> {
        let stacks = self.stacks();
        let here = |work: &&Arc<Work>| {
            let stack = work.stack();
            stack.account == call.account && stack.region == call.region && matches(&stack)
        };
        stacks.iter().rev().find(here).cloned()
    }

    /// The stack of a name that is not deleted, or of an id whatever its state.
    fn latest(&self, call: &Call, name_or_id: &str) -> Option<Arc<Work>> {
        self.find(call, |stack| {
            stack.id == name_or_id || (stack.name == name_or_id && stack.status != "DELETE_COMPLETE")
        })
    }

    fn of_change_set(&self, call: &Call, id: &str) -> Option<Arc<Work>> {
        self.find(call, |stack| stack.change_sets.iter().any(|set| set.id == id))
    }

    fn named(&self, call: &Call, parameters: &Parameters) -> Result<Arc<Work>, AwsError> {
        let name = required(parameters, "StackName")?;
        self.latest(call, name).ok_or_else(|| validation_error(format!("Stack with id {name} does not exist")))
    }

    /// The stack and the change set that a request names.
    fn change_set(&self, call: &Call, parameters: &Parameters) -> Result<(Arc<Work>, ChangeSet), AwsError> {
        let name = required(parameters, "ChangeSetName")?;
        let work = match self.of_change_set(call, name) {
            Some(work) => work,
            None => self.named(call, parameters)?,
        };
        let found = work.stack().change_sets.iter().rev().find(|set| set.id == name || set.name == name).cloned();
        let missing = || AwsError::new(404, "ChangeSetNotFound", format!("ChangeSet [{name}] does not exist"));
        found.map(|set| (work, set)).ok_or_else(missing)
    }

    fn answer(&self, call: &Call) -> Result<String, AwsError> {
        let parameters = wire::parameters(call);
        match call.action.as_str() {
            "CreateStack" => self.create_stack(call, &parameters),
            "UpdateStack" => self.update_stack(call, &parameters),
            "DeleteStack" => self.delete_stack(call, &parameters),
            "ContinueUpdateRollback" => self.continue_rollback(call, &parameters),
            "CreateChangeSet" => self.create_change_set(call, &parameters),
            "ExecuteChangeSet" => self.execute_change_set(call, &parameters),
            "DeleteChangeSet" => self.delete_change_set(call, &parameters),
            "DescribeChangeSet" => {
                let (work, set) = self.change_set(call, &parameters)?;
                let head = answer::change_set(&work.stack(), &set);
                let changes = set.changes.iter().map(answer::change).collect();
                Ok(head + &self.paged(&parameters, "Changes", changes)?)
            }
            "ListChangeSets" => {
                let work = self.named(call, &parameters)?;
                let sets = {
                    let stack = work.stack();
                    stack.change_sets.iter().map(|set| answer::change_set_summary(&stack, set)).collect()
                };
                self.paged(&parameters, "Summaries", sets)
            }
            "DescribeStacks" => {
                let work = self.named(call, &parameters)?;
                let described = answer::stack(&work.stack());
                self.paged(&parameters, "Stacks", vec![described])
            }
            "DescribeStackEvents" => {
                let work = self.named(call, &parameters)?;
                let events = answer::events(&work.stack());
                self.paged(&parameters, "StackEvents", events)
            }
            "DescribeStackResources" => {
                let wanted = parameters.get("LogicalResourceId");
                let work = self.named(call, &parameters)?;
                let found = answer::resources(&work.stack(), wanted, "Timestamp");
                Ok(answer::members("StackResources", found.into_iter()))
            }
            "DescribeStackResource" => {
                let name = required(&parameters, "LogicalResourceId")?;
                let work = self.named(call, &parameters)?;
                let found = answer::resources(&work.stack(), Some(&name.to_owned()), "LastUpdatedTimestamp");
                let missing =
                    || validation_error(format!("Resource {name} does not exist for stack {}", work.stack().name));
                Ok(format!("<StackResourceDetail>{}</StackResourceDetail>", found.first().ok_or_else(missing)?))
            }
            "ListStackResources" => {
                let work = self.named(call, &parameters)?;
                let found = answer::resources(&work.stack(), None, "LastUpdatedTimestamp");
                self.paged(&parameters, "StackResourceSummaries", found)
            }
            "GetTemplate" => {
                let body = if parameters.contains_key("ChangeSetName") {
                    self.change_set(call, &parameters)?.1.target.template_body.clone()
                } else {
                    self.named(call, &parameters)?.stack().target.template_body.clone()
                };
                Ok(element("TemplateBody", &body) + &answer::stages())
            }
            "ValidateTemplate" => {
                let template = Template::parse(request::template_body(&parameters)?)?;
                template.check()?;
                Ok(answer::validated(&template))
            }
            "UpdateTerminationProtection" => {
                let work = self.named(call, &parameters)?;
                required(&parameters, "EnableTerminationProtection")?;
                let mut stack = work.stack();
                stack.termination_protection = flag(&parameters, "EnableTerminationProtection");
                Ok(element("StackId", &stack.id))
            }
            other => Err(AwsError::new(
                400,
                "InvalidAction",
                format!(
                    "The local cloud's CloudFormation engine has no {other}; see docs/local-cloud.md for what it has."
                ),
            )),
        }
    }

    /// A stack that is only a name, an id and what it is to be.
    fn begin(&self, call: &Call, parameters: &Parameters) -> Result<Arc<Work>, AwsError> {
        let name = required(parameters, "StackName")?;
        check_name(name, "stackName")?;
        let id = format!("arn:aws:cloudformation:{}:{}:stack/{name}/{}", call.region, call.account, wire::request_id());
        let target = target(call, parameters, (&id, name), None)?;
        target.active()?;
        let role_arn = parameters.get("RoleARN").cloned();
        let aws = Aws {
            gateway: self.gateway.clone(),
            account: call.account.clone(),
            region: call.region.clone(),
            principal: acting(call, role_arn.as_deref()),
        };
        let stack = Stack {
            account: call.account.clone(),
            region: call.region.clone(),
            id,
            name: name.to_owned(),
            token: parameters.get("ClientRequestToken").cloned(),
            target,
            previous: None,
            role_arn,
            on_failure: request::on_failure(parameters),
            termination_protection: flag(parameters, "EnableTerminationProtection"),
            created: OffsetDateTime::now_utc(),
            updated: None,
            deleted: None,
            status: "",
            reason: None,
            resources: BTreeMap::new(),
            superseded: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            outputs: Vec::new(),
            events: Vec::new(),
            change_sets: Vec::new(),
            cancelled: CancellationToken::new(),
        };
        let work = Work::new(stack, aws, self.clock);
        self.stacks().push(work.clone());
        Ok(work)
    }

    fn create_stack(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        let name = required(parameters, "StackName")?;
        if let Some(existing) = self.latest(call, name) {
            let stack = existing.stack();
            if repeated(&stack, parameters) {
                return Ok(element("StackId", &stack.id));
            }
            return Err(AwsError::new(400, "AlreadyExistsException", format!("Stack [{name}] already exists")));
        }
        let work = self.begin(call, parameters)?;
        work.start_creation();
        Ok(element("StackId", &work.stack().id))
    }

    fn update_stack(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        let work = self.named(call, parameters)?;
        let target = {
            let stack = work.stack();
            if repeated(&stack, parameters) {
                return Ok(element("StackId", &stack.id));
            }
            updatable(&stack, parameters)?;
            let target = target(call, parameters, (&stack.id, &stack.name), Some(&stack))?;
            let changes = change_sets::changes(&stack, &target)?;
            if change_sets::changes_nothing(&stack, &target, &changes) {
                return Err(validation_error("No updates are to be performed."));
            }
            target
        };
        work.act_as(acting(call, rights(&work, parameters).as_deref()));
        work.start_update(target, parameters.get("ClientRequestToken").cloned(), None);
        Ok(element("StackId", &work.stack().id))
    }

    fn delete_stack(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        // Deleting a stack that is not there succeeds on AWS too.
        let Some(work) = self.latest(call, required(parameters, "StackName")?) else { return Ok(String::new()) };
        let retained = wire::list(parameters, "RetainResources.member");
        {
            let stack = work.stack();
            if stack.termination_protection {
                return Err(validation_error(format!(
                    "Stack [{}] cannot be deleted while TerminationProtection is enabled",
                    stack.name
                )));
            }
            let status = stack.status;
            if matches!(status, "DELETE_IN_PROGRESS" | "DELETE_COMPLETE") {
                return Ok(String::new());
            }
            if status.ends_with("_IN_PROGRESS") && !matches!(status, "CREATE_IN_PROGRESS" | "REVIEW_IN_PROGRESS") {
                return Err(validation_error(format!(
                    "Stack [{}] cannot be deleted while in status {status}",
                    stack.name
                )));
            }
            if !retained.is_empty() && status != "DELETE_FAILED" {
                return Err(validation_error(format!(
                    "Invalid operation on stack [{}]: RetainResources is for stacks in the DELETE_FAILED state",
                    stack.id
                )));
            }
            let failed =
                |name: &&String| stack.resources.get(*name).is_none_or(|there| there.status != "DELETE_FAILED");
            if let Some(other) = retained.iter().find(failed) {
                return Err(validation_error(format!(
                    "The specified resources to retain must be in a valid state. Do not specify unknown resources or                      those already deleted: [{other}]"
                )));
            }
        }
        work.act_as(acting(call, rights(&work, parameters).as_deref()));
        work.start_deletion(parameters.get("ClientRequestToken").cloned(), retained);
        Ok(String::new())
    }

    fn continue_rollback(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        let work = self.named(call, parameters)?;
        {
            let stack = work.stack();
            if repeated(&stack, parameters) {
                return Ok(String::new());
            }
            if stack.status != "UPDATE_ROLLBACK_FAILED" {
                return Err(validation_error(format!(
                    "Stack:{} is in {} state and can not continue rolling back.",
                    stack.id, stack.status
                )));
            }
        }
        let skipped = wire::list(parameters, "ResourcesToSkip.member");
        work.act_as(acting(call, rights(&work, parameters).as_deref()));
        work.start_rollback(parameters.get("ClientRequestToken").cloned(), skipped);
        Ok(String::new())
    }

    fn create_change_set(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        let name = required(parameters, "ChangeSetName")?;
        check_name(name, "changeSetName")?;
        let stack_name = required(parameters, "StackName")?;
        let creating = parameters.get("ChangeSetType").is_some_and(|kind| kind == "CREATE");
        let work = match self.latest(call, stack_name) {
            Some(work) if creating && work.stack().status != "REVIEW_IN_PROGRESS" => {
                let id = work.stack().id.clone();
                return Err(validation_error(format!("Stack [{id}] already exists and cannot be created again")));
            }
            Some(work) => work,
            None if creating => {
                let work = self.begin(call, parameters)?;
                work.stack().set_status("REVIEW_IN_PROGRESS", Some("User Initiated".to_owned()));
                work
            }
            None => return Err(validation_error(format!("Stack [{stack_name}] does not exist"))),
        };
        let (stack_id, id) = {
            let mut stack = work.stack();
            if stack.status != "REVIEW_IN_PROGRESS" {
                updatable(&stack, parameters)?;
            }
            let token = parameters.get("ClientToken").cloned();
            if let Some(there) = stack.change_sets.iter().find(|set| set.name == name) {
                if token.is_some() && there.token == token {
                    return Ok(element("Id", &there.id) + &element("StackId", &stack.id));
                }
                let message =
                    format!("ChangeSet {name} cannot be created due to a mismatch with existing attribute Template");
                return Err(AwsError::new(400, "AlreadyExistsException", message));
            }
            let target = target(call, parameters, (&stack.id, &stack.name), Some(&stack))?;
            let id = format!(
                "arn:aws:cloudformation:{}:{}:changeSet/{name}/{}",
                call.region,
                call.account,
                wire::request_id()
            );
            let set = ChangeSet {
                id: id.clone(),
                name: name.to_owned(),
                description: parameters.get("Description").cloned(),
                token,
                status: "CREATE_IN_PROGRESS",
                reason: None,
                execution_status: "UNAVAILABLE",
                created: OffsetDateTime::now_utc(),
                target,
                changes: Vec::new(),
            };
            stack.change_sets.push(set);
            (stack.id.clone(), id)
        };
        work.start_planning(id.clone());
        Ok(element("Id", &id) + &element("StackId", &stack_id))
    }

    /// Executes a change set; the others of its stack go, since they were made for what the stack no longer is.
    fn execute_change_set(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        let (work, set) = self.change_set(call, parameters)?;
        let token = parameters.get("ClientRequestToken").cloned();
        let creating = {
            let mut stack = work.stack();
            if repeated(&stack, parameters) {
                return Ok(String::new());
            }
            let refuse = |message: String| AwsError::new(400, "InvalidChangeSetStatus", message);
            if set.status != "CREATE_COMPLETE" {
                return Err(refuse(format!(
                    "ChangeSet [{}] cannot be executed in its current status of [{}]",
                    set.id, set.status
                )));
            }
            if set.execution_status != "AVAILABLE" {
                return Err(refuse(format!(
                    "ChangeSet [{}] cannot be executed in its current execution status of [{}]",
                    set.id, set.execution_status
                )));
            }
            let creating = stack.status == "REVIEW_IN_PROGRESS";
            if !creating {
                updatable(&stack, parameters)?;
            }
            stack.change_sets.retain(|other| other.id == set.id);
            stack.change_sets.iter_mut().for_each(|set| set.execution_status = "EXECUTE_IN_PROGRESS");
            if creating {
                stack.token.clone_from(&token);
                stack.target = set.target.clone();
            }
            creating
        };
        work.act_as(acting(call, rights(&work, parameters).as_deref()));
        if creating {
            work.stack().change_sets.iter_mut().for_each(|set| set.execution_status = "EXECUTE_COMPLETE");
            work.start_creation();
        } else {
            work.start_update(set.target, token, Some(set.id));
        }
        Ok(String::new())
    }

    fn delete_change_set(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        match self.change_set(call, parameters) {
            Ok((work, set)) => {
                work.stack().change_sets.retain(|other| other.id != set.id);
                Ok(String::new())
            }
            // As on AWS: what is gone is deleted.
            Err(error) if error.code == "ChangeSetNotFound" => Ok(String::new()),
            Err(error) => Err(error),
        }
    }
}

/// Whether a request was made before: its token is that of what is being done, or was done last.
fn repeated(stack: &Stack, parameters: &Parameters) -> bool {
    parameters.get("ClientRequestToken").is_some_and(|token| stack.token.as_ref() == Some(token))
}

/// Refuses to update a stack whose state has no way there.
fn updatable(stack: &Stack, parameters: &Parameters) -> Result<(), AwsError> {
    if flag(parameters, "DisableRollback") {
        return Err(validation_error("The local cloud rolls failed updates back always: leave DisableRollback out."));
    }
    match stack.status {
        "CREATE_COMPLETE" | "UPDATE_COMPLETE" | "UPDATE_ROLLBACK_COMPLETE" => Ok(()),
        status => Err(validation_error(format!("Stack:{} is in {status} state and can not be updated.", stack.id))),
    }
}

/// The role that the request or the stack was given.
fn rights(work: &Work, parameters: &Parameters) -> Option<String> {
    let mut stack = work.stack();
    if let Some(given) = parameters.get("RoleARN") {
        stack.role_arn = Some(given.clone());
    }
    stack.role_arn.clone()
}

/// CloudFormation calls with its caller's rights, or with those of the role that it was given.
fn acting(call: &Call, role_arn: Option<&str>) -> Principal {
    let Some(role) = role_arn else { return call.principal.clone() };
    let name = role.rsplit('/').next().unwrap_or(role);
    Principal {
        arn: format!("arn:aws:sts::{}:assumed-role/{name}/AWSCloudFormation", call.account),
        account: call.account.clone(),
        role_arn: Some(role.to_owned()),
        function: None,
        session_policies: None,
    }
}

#[async_trait]
impl Service for CloudFormation {
    async fn handle(&self, call: Call) -> Answer {
        match self.answer(&call) {
            Ok(result) => wire::query_answer(&call, &result),
            Err(refusal) => wire::refuse(&call, &refusal),
        }
    }
}

#[cfg(test)]
mod tests;
