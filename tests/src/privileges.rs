//! What the template's roles allow, and what of it a tour of the machines used.

use std::collections::BTreeSet;
use std::fmt::{self, Display};

use anyhow::Context;
use serde_json::Value;
use slipway_local::gateway::authorize::Use;

use crate::cloud::Deployed;
use crate::repository;

/// One action that one statement allows to one role: `CreateClusterFunction PassClusterRole iam:PassRole`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Privilege {
    /// The resource of the template that has the statement: a function, a role, or a policy that several functions have.
    pub owner: String,
    /// The statement's Sid.
    pub sid: String,
    /// `iam:PassRole`
    pub action: String,
}

impl Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.owner, self.sid, self.action)
    }
}

/// A resource of the template with its statements of identity policies; those of trust are about others.
fn statements(resource: &Value) -> Vec<Value> {
    let of = |document: &Value| document["Statement"].as_array().cloned().unwrap_or_default();
    let properties = &resource["Properties"];
    let listed = properties["Policies"].as_array().into_iter().flatten();
    let inline = listed.flat_map(|policy| [of(policy), of(&policy["PolicyDocument"])].concat());
    inline.chain(of(&properties["PolicyDocument"])).collect()
}

fn texts(value: &Value) -> Vec<String> {
    let listed = value.as_array().into_iter().flatten();
    listed.chain(std::iter::once(value)).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Everything that the template's roles allow.
#[must_use]
pub fn allowed(template: &Value) -> BTreeSet<Privilege> {
    let resources = template["Resources"].as_object().into_iter().flatten();
    resources
        .flat_map(|(owner, resource)| statements(resource).into_iter().map(move |statement| (owner, statement)))
        .flat_map(|(owner, statement)| {
            let sid = statement["Sid"].as_str().unwrap_or_default().to_owned();
            let actions = texts(&statement["Action"]).into_iter();
            actions.map(move |action| Privilege { owner: owner.clone(), sid: sid.clone(), action })
        })
        .collect()
}

/// What of the template's privileges was used. Roles are told by the names that CloudFormation gives them
/// (`slipway-<logical id>-<random>`).
#[must_use]
pub fn used(template: &Value, uses: &BTreeSet<Use>) -> BTreeSet<Privilege> {
    let allowed = allowed(template);
    let mut found = BTreeSet::new();
    for used in uses {
        let role = used.role.rsplit('/').next().unwrap_or_default();
        let Some(id) = role.strip_prefix("slipway-").and_then(|rest| rest.split('-').next()) else { continue };
        let owner = id.strip_suffix("Role").filter(|function| function.ends_with("Function")).unwrap_or(id);
        let policies = texts(&template["Resources"][owner]["Properties"]["Policies"]);
        let owners = std::iter::once(owner.to_owned()).chain(policies);
        found.extend(owners.filter_map(|owner| {
            let privilege = Privilege { owner, sid: used.statement.clone(), action: used.action.clone() };
            allowed.contains(&privilege).then_some(privilege)
        }));
    }
    found
}

/// The template, with CloudFormation's tags gone: `!Ref Table` reads `"Table"`.
///
/// # Errors
/// When it cannot be read.
pub fn template() -> anyhow::Result<Value> {
    serde_saphyr::from_str(&repository::read("infra/template.yaml")?).context("infra/template.yaml is no YAML")
}

/// Where the privileges that a tour used are written down, and read from when nothing runs.
fn file(tour: &str) -> String {
    format!("tests/privileges/{tour}.txt")
}

/// What a tour used when it was last written down, line by line as [`Privilege`] is shown.
///
/// # Errors
/// When its file cannot be read.
pub fn written(tour: &str) -> anyhow::Result<BTreeSet<String>> {
    Ok(repository::read(&file(tour))?.lines().map(str::to_owned).collect())
}

/// Compares what a tour used with what is written down of it; writes it down where `SLIPWAY_WRITE_PRIVILEGES` is set,
/// without what is written down of the tours that it goes on from.
///
/// # Errors
/// Privileges that are written down as used, that the template still gives, and that the tour did not use.
pub fn compare(deployed: &Deployed, tour: &str, after: &[&str]) -> anyhow::Result<()> {
    let template = template()?;
    let used: BTreeSet<String> =
        used(&template, &deployed.cloud.gateway().used()).iter().map(ToString::to_string).collect();
    if std::env::var_os("SLIPWAY_WRITE_PRIVILEGES").is_some() {
        let mut before = BTreeSet::new();
        for tour in after {
            before.append(&mut written(tour)?);
        }
        let mut lines: Vec<&str> = used.difference(&before).map(String::as_str).collect();
        lines.push("");
        return std::fs::write(repository::root().join(file(tour)), lines.join("\n"))
            .context("write the privileges down");
    }
    let allowed: BTreeSet<String> = allowed(&template).iter().map(ToString::to_string).collect();
    let idle: Vec<String> =
        written(tour)?.into_iter().filter(|line| allowed.contains(line) && !used.contains(line)).collect();
    anyhow::ensure!(
        idle.is_empty(),
        "{} says that these are used, and they were not: take them out of the template, or give them a reason there \
         and run the test with SLIPWAY_WRITE_PRIVILEGES=1: {idle:#?}",
        file(tour)
    );
    Ok(())
}
