//! What a request asks a stack to be: its template, parameters and tags, checked as CloudFormation checks them before
//! it makes anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::intrinsics::text;
use super::stack::{OnFailure, Stack, Target};
use super::template::{Parameter, Template};
use super::{Parameters, validation_error};
use crate::gateway::call::{AwsError, Call};
use crate::gateway::wire;

/// The longest template that a request carries; longer ones must lie in S3.
const TEMPLATE_BYTES: usize = 51_200;

/// A member that a request must have.
pub(super) fn required<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, AwsError> {
    parameters.get(name).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| {
        let member = format!("{}{}", name[..1].to_lowercase(), &name[1..]);
        validation_error(format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
        ))
    })
}

/// Whether a flag of a request is set.
pub(super) fn flag(parameters: &Parameters, name: &str) -> bool {
    parameters.get(name).is_some_and(|value| value == "true")
}

/// Refuses a name that stacks and change sets can't have.
pub(super) fn check_name(name: &str, member: &str) -> Result<(), AwsError> {
    let letters = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '-');
    let why = match (letters, name.len()) {
        (true, ..=128) => return Ok(()),
        (true, _) => "Member must have length less than or equal to 128",
        (false, _) => "Member must satisfy regular expression pattern: [a-zA-Z][-a-zA-Z0-9]*",
    };
    Err(validation_error(format!(
        "1 validation error detected: Value '{name}' at '{member}' failed to satisfy constraint: {why}"
    )))
}

/// The template of a request, within its limit.
pub(super) fn template_body(parameters: &Parameters) -> Result<&str, AwsError> {
    if parameters.contains_key("TemplateURL") {
        return Err(validation_error("The local cloud reads no TemplateURL: give the template as TemplateBody."));
    }
    let body = required(parameters, "TemplateBody")?;
    if body.len() > TEMPLATE_BYTES {
        return Err(validation_error(format!(
            "1 validation error detected: Value at 'templateBody' failed to satisfy constraint: Member must have length \
             less than or equal to {TEMPLATE_BYTES}"
        )));
    }
    Ok(body)
}

/// What the request asks for, of a stack with an id and a name; `there` is the stack as it is, whose template, values,
/// tags and capabilities an update may keep.
pub(super) fn target(
    call: &Call,
    parameters: &Parameters,
    (id, name): (&str, &str),
    there: Option<&Stack>,
) -> Result<Arc<Target>, AwsError> {
    let (template_body, template) = match there {
        Some(there) if flag(parameters, "UsePreviousTemplate") => {
            (there.target.template_body.clone(), there.target.template.clone())
        }
        _ => {
            let body = template_body(parameters)?;
            let template = Template::parse(body)?;
            template.check()?;
            (body.to_owned(), template)
        }
    };
    let capabilities = wire::list(parameters, "Capabilities.member");
    check_capabilities(&template, &capabilities)?;
    let mut given = given_parameters(parameters);
    for key in kept_parameters(parameters) {
        let kept = there.and_then(|there| there.target.given.get(&key));
        let kept = kept.ok_or_else(|| {
            validation_error(format!(
                "Invalid input for parameter key {key}. Cannot specify usePreviousValue as true for a parameter key not \
                 in the previous template"
            ))
        })?;
        given.insert(key, kept.clone());
    }
    let values = values(call, &template, &given, id, name)?;
    let tags = match (tags(parameters), there) {
        // Without tags an update keeps those that there are.
        (tags, Some(there)) if tags.is_empty() && !parameters.contains_key("Tags") => there.target.tags.clone(),
        (tags, _) => tags,
    };
    if tags.len() > 50 {
        return Err(validation_error("Exceeded the number of tags allowed: 50"));
    }
    if let Some((key, _)) = tags.iter().find(|(key, _)| key.starts_with("aws:")) {
        return Err(validation_error(format!(
            "Tag key {key} is reserved: aws: prefixed tag key names are not allowed"
        )));
    }
    Ok(Arc::new(Target {
        given: template.parameters.keys().filter_map(|key| Some((key.clone(), text(values.get(key)?)))).collect(),
        template_body,
        template,
        values,
        tags,
        capabilities,
    }))
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

fn given_parameters(parameters: &Parameters) -> Parameters {
    (1..)
        .map_while(|n| parameters.get(&format!("Parameters.member.{n}.ParameterKey")).map(|key| (n, key)))
        .filter(|(n, _)| !flag(parameters, &format!("Parameters.member.{n}.UsePreviousValue")))
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
        .filter(|(n, _)| flag(parameters, &format!("Parameters.member.{n}.UsePreviousValue")))
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

/// What a creation that fails leaves.
pub(super) fn on_failure(parameters: &Parameters) -> OnFailure {
    let disabled = flag(parameters, "DisableRollback");
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
