//! What a call has to be allowed to do: actions on resources, with the condition keys that its request tells, as the
//! Service Authorization Reference has them. Services that need more than a line each have a file of their own.

mod ec2;
mod eks;
mod iam;
mod services;

pub(super) use ec2::kind_of;

use std::collections::BTreeMap;

use super::call::Call;
use super::lookup::Lookup;

/// Tags, by key.
pub(super) type Tags = BTreeMap<String, String>;

/// One action on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Permission {
    /// `ec2:CreateVpc`
    pub action: String,
    /// Its ARN, `*` in place of an id that is not there yet; `None` for an action that knows no resources.
    pub resource: Option<String>,
    /// Condition keys that the request tells.
    pub context: BTreeMap<String, Vec<String>>,
    /// The tags that a resource is made with, which are its own from the start; `None` for one that is there.
    pub made_with: Option<Tags>,
}

impl Permission {
    /// An action that knows no resources.
    fn alone(action: impl Into<String>) -> Self {
        Self { action: action.into(), resource: None, context: BTreeMap::new(), made_with: None }
    }

    /// An action on something that is there.
    fn on(action: impl Into<String>, arn: impl Into<String>) -> Self {
        Self { resource: Some(arn.into()), ..Self::alone(action) }
    }

    /// An action that makes something.
    fn making(action: impl Into<String>, arn: impl Into<String>, tags: &Tags) -> Self {
        Self { made_with: Some(tags.clone()), ..Self::on(action, arn) }.requesting(tags)
    }

    /// The tags in the request.
    fn requesting(mut self, tags: &Tags) -> Self {
        if !tags.is_empty() {
            self.context.insert("aws:TagKeys".to_owned(), tags.keys().cloned().collect());
        }
        for (key, value) in tags {
            self.context.insert(format!("aws:RequestTag/{key}"), vec![value.clone()]);
        }
        self
    }

    /// A condition key with its value.
    fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.context.entry(key.to_owned()).or_default().push(value.into());
        self
    }

    /// That a role is handed to a service.
    fn pass_role(role_arn: impl Into<String>, service: &str) -> Self {
        Self::on("iam:PassRole", role_arn).with("iam:PassedToService", service)
    }
}

/// The prefix by which policies call a service that signatures call otherwise.
pub(super) fn prefix(service: &str) -> &str {
    match service {
        "tagging" => "tag",
        "monitoring" => "cloudwatch",
        other => other,
    }
}

/// What a call has to be allowed; empty for calls that need no permission.
pub(super) async fn of(lookup: &Lookup<'_>) -> Vec<Permission> {
    let call = lookup.call;
    match call.service.as_str() {
        "ec2" => ec2::of(lookup).await,
        "iam" => iam::of(lookup).await,
        "eks" => eks::of(lookup).await,
        _ => services::of(call),
    }
}

/// `arn:aws:<service>:<region>:<account>:<what>` where the call works.
fn arn(call: &Call, service: &str, what: &str) -> String {
    format!("arn:aws:{service}:{}:{}:{what}", call.region, call.account)
}

/// The tags of a flat query list: `<prefix>.1.Key`, `<prefix>.1.Value`. A list of keys alone has empty values.
fn tags_at(parameters: &BTreeMap<String, String>, prefix: &str) -> Tags {
    (1..)
        .map_while(|n| {
            let key =
                parameters.get(&format!("{prefix}.{n}.Key")).or_else(|| parameters.get(&format!("{prefix}.{n}")))?;
            Some((key.clone(), parameters.get(&format!("{prefix}.{n}.Value")).cloned().unwrap_or_default()))
        })
        .collect()
}

#[cfg(test)]
mod tests;
