//! CloudFormation for the stacks that the product makes: a template of known types becomes EC2, IAM and log calls of
//! its caller's, in the order of its dependencies, with the events, waits and rollbacks that AWS's own would show.

mod answer;
mod intrinsics;
mod resource;
mod stack;
mod template;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde_json::Value;
use slipway_states::clock::ScaledClock;
use time::OffsetDateTime;

use self::intrinsics::text;
use self::resource::Kind;
use self::stack::{OnFailure, Stack, Work};
use self::template::{Parameter, Template};
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
    stacks: Mutex<Vec<Arc<Work>>>,
}

type Parameters = BTreeMap<String, String>;

fn validation_error(message: impl Into<String>) -> AwsError {
    AwsError::new(400, "ValidationError", message)
}

impl CloudFormation {
    /// An engine whose calls go out through `gateway`, with waits shortened by `clock`.
    #[must_use]
    pub fn new(gateway: Arc<dyn Dispatch>, clock: ScaledClock) -> Arc<Self> {
        Arc::new(Self { gateway, clock, stacks: Mutex::default() })
    }

    /// Whether a call is about a stack or a template of this engine. A call that names neither (a listing of all
    /// stacks) is not.
    #[must_use]
    pub fn takes(&self, call: &Call) -> bool {
        let parameters = wire::parameters(call);
        let named = parameters.get("StackName").is_some_and(|name| self.latest(call, name).is_some());
        named || parameters.get("TemplateBody").is_some_and(|body| owns(body))
    }

    fn stacks(&self) -> MutexGuard<'_, Vec<Arc<Work>>> {
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stack of a name that is not deleted, or of an id whatever its state.
    fn latest(&self, call: &Call, name_or_id: &str) -> Option<Arc<Work>> {
        let stacks = self.stacks();
        let matches = |work: &&Arc<Work>| {
            let stack = work.stack();
            let here = stack.account == call.account && stack.region == call.region;
            here && (stack.id == name_or_id || (stack.name == name_or_id && stack.status != "DELETE_COMPLETE"))
        };
        stacks.iter().rev().find(matches).cloned()
    }

    fn named(&self, call: &Call, parameters: &Parameters) -> Result<Arc<Work>, AwsError> {
        let name = required(parameters, "StackName")?;
        self.latest(call, name).ok_or_else(|| validation_error(format!("Stack with id {name} does not exist")))
    }

    fn answer(&self, call: &Call) -> Result<String, AwsError> {
        let parameters = wire::parameters(call);
        match call.action.as_str() {
            "CreateStack" => self.create_stack(call, &parameters),
            "DescribeStacks" => self.describe_stacks(call, &parameters),
            "DescribeStackEvents" => Ok(answer::events(&self.named(call, &parameters)?.stack())),
            "DescribeStackResources" => {
                let wanted = parameters.get("LogicalResourceId");
                let work = self.named(call, &parameters)?;
                Ok(answer::resources(&work.stack(), "StackResources", wanted, "Timestamp"))
            }
            "ListStackResources" => {
                let work = self.named(call, &parameters)?;
                Ok(answer::resources(&work.stack(), "StackResourceSummaries", None, "LastUpdatedTimestamp"))
            }
            "GetTemplate" => Ok(element("TemplateBody", &self.named(call, &parameters)?.stack().template_body)),
            "ValidateTemplate" => {
                let template = Template::parse(required(&parameters, "TemplateBody")?)?;
                template.check()?;
                Ok(answer::validated(&template))
            }
            "UpdateStack" => self.update_stack(call, &parameters),
            "UpdateTerminationProtection" => {
                let work = self.named(call, &parameters)?;
                let mut stack = work.stack();
                stack.termination_protection = required(&parameters, "EnableTerminationProtection")? == "true";
                Ok(element("StackId", &stack.id))
            }
            "DeleteStack" => self.delete_stack(call, &parameters),
            other => Err(AwsError::new(
                400,
                "InvalidAction",
                format!(
                    "The local cloud's CloudFormation engine has no {other}; see docs/local-cloud.md for what it has."
                ),
            )),
        }
    }

    fn create_stack(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        let name = required(parameters, "StackName")?;
        check_name(name)?;
        let token = parameters.get("ClientRequestToken").cloned();
        if let Some(existing) = self.latest(call, name) {
            let stack = existing.stack();
            if token.is_some() && stack.token == token {
                return Ok(element("StackId", &stack.id));
            }
            return Err(AwsError::new(400, "AlreadyExistsException", format!("Stack [{name}] already exists")));
        }
        let body = required(parameters, "TemplateBody")?;
        let template = Template::parse(body)?;
        template.check()?;
        let capabilities = wire::list(parameters, "Capabilities.member");
        check_capabilities(&template, &capabilities)?;
        let given = given_parameters(parameters);
        let id = format!("arn:aws:cloudformation:{}:{}:stack/{name}/{}", call.region, call.account, wire::request_id());
        let values = values(call, &template, &given, &id, name)?;
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
            id: id.clone(),
            name: name.to_owned(),
            token,
            template_body: body.to_owned(),
            given: template.parameters.keys().filter_map(|key| Some((key.clone(), text(values.get(key)?)))).collect(),
            template: Arc::new(template),
            values,
            tags: tags(parameters),
            capabilities,
            role_arn,
            on_failure: on_failure(parameters),
            termination_protection: parameters.get("EnableTerminationProtection").is_some_and(|value| value == "true"),
            created: OffsetDateTime::now_utc(),
            deleted: None,
            status: "",
            reason: None,
            resources: BTreeMap::new(),
            outputs: Vec::new(),
            events: Vec::new(),
        };
        let work = Work::new(stack, aws, self.clock);
        work.plan()?;
        work.stack().set_status("CREATE_IN_PROGRESS", Some("User Initiated".to_owned()));
        self.stacks().push(work.clone());
        tokio::spawn(work.create());
        Ok(element("StackId", &id))
    }

    fn describe_stacks(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        let found = if parameters.contains_key("StackName") {
            vec![answer::stack(&self.named(call, parameters)?.stack())]
        } else {
            let stacks = self.stacks();
            let here = stacks.iter().map(|work| work.stack()).filter(|stack| {
                stack.account == call.account && stack.region == call.region && stack.status != "DELETE_COMPLETE"
            });
            here.map(|stack| answer::stack(&stack)).collect()
        };
        Ok(answer::stacks(found))
    }

    /// An update that changes nothing is answered as AWS answers it; one that would is beyond this engine.
    fn update_stack(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        let work = self.named(call, parameters)?;
        let stack = work.stack();
        let same_template = match parameters.get("TemplateBody") {
            Some(body) => *body == stack.template_body,
            None => parameters.get("UsePreviousTemplate").is_some_and(|value| value == "true"),
        };
        let given = given_parameters(parameters);
        let kept = kept_parameters(parameters);
        let same_parameters = stack.template.parameters.iter().all(|(key, parameter)| {
            let wanted = given.get(key).cloned().or_else(|| parameter.default.as_ref().map(text));
            kept.contains(key) || wanted.as_ref() == stack.given.get(key)
        });
        let tags = tags(parameters);
        if same_template && same_parameters && (tags.is_empty() || tags == stack.tags) {
            return Err(validation_error("No updates are to be performed."));
        }
        Err(validation_error(format!(
            "The local cloud cannot update stack {}: it only creates and deletes. Delete the stack and create it again.",
            stack.name
        )))
    }

    fn delete_stack(&self, call: &Call, parameters: &Parameters) -> Result<String, AwsError> {
        // Deleting a stack that is not there succeeds on AWS too.
        let Some(work) = self.latest(call, required(parameters, "StackName")?) else { return Ok(String::new()) };
        let (protected, status, name) = {
            let stack = work.stack();
            (stack.termination_protection, stack.status, stack.name.clone())
        };
        if protected {
            return Err(validation_error(format!(
                "Stack [{name}] cannot be deleted while TerminationProtection is enabled"
            )));
        }
        if !matches!(status, "DELETE_IN_PROGRESS" | "DELETE_COMPLETE") {
            work.start_deletion();
        }
        Ok(String::new())
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

fn required<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, AwsError> {
    parameters.get(name).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| {
        let member = format!("{}{}", name[..1].to_lowercase(), &name[1..]);
        validation_error(format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
        ))
    })
}

fn check_name(name: &str) -> Result<(), AwsError> {
    let letters = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '-');
    let why = match (letters, name.len()) {
        (true, ..=128) => return Ok(()),
        (true, _) => "Member must have length less than or equal to 128",
        (false, _) => "Member must satisfy regular expression pattern: [a-zA-Z][-a-zA-Z0-9]*",
    };
    Err(validation_error(format!(
        "1 validation error detected: Value '{name}' at 'stackName' failed to satisfy constraint: {why}"
    )))
}

fn check_capabilities(template: &Template, given: &[String]) -> Result<(), AwsError> {
    let enough = |needed: &str| {
        given.iter().any(|given| given == needed || (given == "CAPABILITY_NAMED_IAM" && needed == "CAPABILITY_IAM"))
    };
    match template.capability() {
        Some(needed) if !enough(needed) => {
            Err(AwsError::new(400, "InsufficientCapabilitiesException", format!("Requires capabilities : [{needed}]")))
        }
        _ => Ok(()),
    }
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
    }
}

fn given_parameters(parameters: &Parameters) -> Parameters {
    (1..)
        .map_while(|n| parameters.get(&format!("Parameters.member.{n}.ParameterKey")).map(|key| (n, key)))
        .map(|(n, key)| {
            let value = parameters.get(&format!("Parameters.member.{n}.ParameterValue"));
            (key.clone(), value.cloned().unwrap_or_default())
        })
        .collect()
}

/// The parameters that an update leaves as they are.
fn kept_parameters(parameters: &Parameters) -> Vec<String> {
    (1..)
        .map_while(|n| parameters.get(&format!("Parameters.member.{n}.ParameterKey")).map(|key| (n, key)))
        .filter(|(n, _)| {
            parameters.get(&format!("Parameters.member.{n}.UsePreviousValue")).is_some_and(|kept| kept == "true")
        })
        .map(|(_, key)| key.clone())
        .collect()
}

fn tags(parameters: &Parameters) -> Vec<(String, String)> {
    (1..)
        .map_while(|n| {
            let key = parameters.get(&format!("Tags.member.{n}.Key"))?;
            Some((key.clone(), parameters.get(&format!("Tags.member.{n}.Value")).cloned().unwrap_or_default()))
        })
        .collect()
}

fn on_failure(parameters: &Parameters) -> OnFailure {
    let disabled = parameters.get("DisableRollback").is_some_and(|value| value == "true");
    match parameters.get("OnFailure").map(String::as_str) {
        Some("DO_NOTHING") => OnFailure::DoNothing,
        Some("DELETE") => OnFailure::Delete,
        None if disabled => OnFailure::DoNothing,
        _ => OnFailure::Rollback,
    }
}

/// Parameters (given or default, lists split) and pseudo parameters.
fn values(
    call: &Call,
    template: &Template,
    given: &Parameters,
    id: &str,
    name: &str,
) -> Result<BTreeMap<String, Value>, AwsError> {
    let unknown: Vec<&str> =
        given.keys().filter(|key| !template.parameters.contains_key(*key)).map(String::as_str).collect();
    if !unknown.is_empty() {
        return Err(validation_error(format!("Parameters: [{}] do not exist in the template", unknown.join(", "))));
    }
    let mut values = BTreeMap::new();
    let mut missing = Vec::new();
    for (key, parameter) in &template.parameters {
        match given.get(key).cloned().or_else(|| parameter.default.as_ref().map(text)) {
            None => missing.push(key.as_str()),
            Some(value) => {
                check_value(key, parameter, &value)?;
                let is_list = parameter.kind == "CommaDelimitedList" || parameter.kind.starts_with("List<");
                let split = || value.split(',').map(str::trim).map(Value::from).collect();
                let value = if is_list { split() } else { Value::from(value.clone()) };
                values.insert(key.clone(), value);
            }
        }
    }
    if !missing.is_empty() {
        return Err(validation_error(format!("Parameters: [{}] must have values", missing.join(", "))));
    }
    let pseudo = [
        ("AWS::AccountId", call.account.as_str()),
        ("AWS::Partition", "aws"),
        ("AWS::Region", call.region.as_str()),
        ("AWS::StackId", id),
        ("AWS::StackName", name),
        ("AWS::URLSuffix", "amazonaws.com"),
    ];
    values.extend(pseudo.map(|(name, value)| (name.to_owned(), Value::from(value))));
    values.insert("AWS::NotificationARNs".to_owned(), Value::Array(Vec::new()));
    Ok(values)
}

fn check_value(key: &str, parameter: &Parameter, value: &str) -> Result<(), AwsError> {
    if parameter.kind.starts_with("AWS::SSM::") {
        return Err(validation_error(format!(
            "Parameter '{key}': type {} is not supported by the local cloud",
            parameter.kind
        )));
    }
    if !parameter.allowed_values.is_empty() && !parameter.allowed_values.iter().any(|allowed| text(allowed) == value) {
        return Err(validation_error(format!("Parameter '{key}' must be one of AllowedValues")));
    }
    if parameter.min_length.is_some_and(|least| value.len() < least) {
        return Err(validation_error(format!(
            "Parameter '{key}' must contain at least {} characters",
            parameter.min_length.unwrap_or(0)
        )));
    }
    if parameter.max_length.is_some_and(|most| value.len() > most) {
        return Err(validation_error(format!(
            "Parameter '{key}' must contain at most {} characters",
            parameter.max_length.unwrap_or(0)
        )));
    }
    if let Some(pattern) = &parameter.allowed_pattern
        && !regex::Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|pattern| pattern.is_match(value))
    {
        return Err(validation_error(format!("Parameter '{key}' must match pattern {pattern}")));
    }
    if parameter.kind == "Number" {
        let number: f64 =
            value.parse().map_err(|_| validation_error(format!("Parameter '{key}' must be a number.")))?;
        if parameter.min_value.is_some_and(|least| number < least) {
            return Err(validation_error(format!(
                "Parameter '{key}' must be a number not less than {}",
                parameter.min_value.unwrap_or(0.0)
            )));
        }
        if parameter.max_value.is_some_and(|most| number > most) {
            return Err(validation_error(format!(
                "Parameter '{key}' must be a number not greater than {}",
                parameter.max_value.unwrap_or(0.0)
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
