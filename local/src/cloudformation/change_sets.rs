//! What an update would do, before it does it: the changes of a change set, and of an update whether there are any.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use time::OffsetDateTime;

use super::intrinsics::{Made, UNKNOWN};
use super::kinds::Kind;
use super::stack::{Stack, StackResource, Target, Wanted};
use super::validation_error;
use crate::gateway::call::AwsError;

/// A change set.
#[derive(Debug, Clone)]
pub(super) struct ChangeSet {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) token: Option<String>,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) execution_status: &'static str,
    pub(super) created: OffsetDateTime,
    pub(super) target: Arc<Target>,
    pub(super) changes: Vec<Change>,
}

/// What happens to one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) logical_id: String,
    /// Of a resource that is there.
    pub(super) physical_id: Option<String>,
    pub(super) kind: Kind,
    pub(super) action: Action,
}

/// What happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Add,
    Remove,
    Modify(Vec<Detail>),
}

/// What is changed of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detail {
    /// The property; none for the tags.
    pub(super) property: Option<String>,
    /// Whether it makes another resource.
    pub(super) recreates: bool,
    /// Whether the new value is known only when the change is made.
    pub(super) dynamic: bool,
}

impl Change {
    /// `True`, `False` or `Conditional`, as DescribeChangeSet says it; none for what is added or removed.
    pub(super) fn replacement(&self) -> Option<&'static str> {
        let Action::Modify(details) = &self.action else { return None };
        let recreating = || details.iter().filter(|detail| detail.recreates);
        Some(match (recreating().any(|detail| !detail.dynamic), recreating().count()) {
            (true, _) => "True",
            (false, 0) => "False",
            (false, _) => "Conditional",
        })
    }
}

/// What differs between a resource as it is and as it is wanted; nothing where it may stay as it is.
pub(super) fn differences(there: &StackResource, wanted: &Wanted) -> Vec<Detail> {
    let names: BTreeSet<&String> = there.last.properties.keys().chain(wanted.properties.keys()).collect();
    let changed = names.into_iter().filter(|name| there.last.properties.get(*name) != wanted.properties.get(*name));
    let mut details: Vec<Detail> = changed
        .map(|name| Detail {
            property: Some(name.clone()),
            recreates: wanted.kind.replaced_by(name),
            dynamic: wanted.properties.get(name).is_some_and(|value| value.to_string().contains(UNKNOWN)),
        })
        .collect();
    if there.last.tags.iter().collect::<BTreeSet<_>>() != wanted.tags.iter().collect::<BTreeSet<_>>() {
        details.push(Detail { property: None, recreates: false, dynamic: false });
    }
    details
}

/// What bringing the stack to `target` would do, each resource after those that it needs.
pub(super) fn changes(stack: &Stack, target: &Target) -> Result<Vec<Change>, AwsError> {
    let active = target.active()?;
    let mut made = stack.made();
    let mut changes = Vec::new();
    for name in in_order(target, &active) {
        let there = stack.resources.get(&name).filter(|resource| resource.is_there());
        let Some(kind) = target.template.resources.get(&name).and_then(|resource| Kind::of(&resource.kind)) else {
            continue;
        };
        let Some(there) = there else {
            made.insert(name.clone(), Made::unknown());
            changes.push(Change { logical_id: name, physical_id: None, kind, action: Action::Add });
            continue;
        };
        if there.last.kind != kind {
            return Err(validation_error(format!(
                "Update of resource type is not permitted. The new template modifies resource type of the following \
                 resources: [{name}]"
            )));
        }
        let details = match stack.wanted(target, &name, &made) {
            Ok(wanted) => wanted.map(|wanted| differences(there, &wanted)).unwrap_or_default(),
            // A function over what is not known yet, Fn::Cidr of a new block: the change is, its extent is not.
            Err(_) if made.values().any(|made| made.physical_id == UNKNOWN) => {
                vec![Detail { property: None, recreates: true, dynamic: true }]
            }
            Err(error) => return Err(error),
        };
        if details.is_empty() {
            continue;
        }
        let change = Change {
            logical_id: name.clone(),
            physical_id: Some(there.made.physical_id.clone()),
            kind,
            action: Action::Modify(details),
        };
        if change.replacement() != Some("False") {
            made.insert(name, Made::unknown());
        }
        changes.push(change);
    }
    let gone = stack.resources.iter().filter(|(name, resource)| resource.is_there() && !active.contains(*name));
    changes.extend(gone.map(|(name, resource)| Change {
        logical_id: name.clone(),
        physical_id: Some(resource.made.physical_id.clone()),
        kind: resource.last.kind,
        action: Action::Remove,
    }));
    Ok(changes)
}

/// Whether there is anything to do: a resource, or what the stack gives.
pub(super) fn changes_nothing(stack: &Stack, target: &Target, changes: &[Change]) -> bool {
    changes.is_empty() && stack.target.template.outputs == target.template.outputs
}

/// The active resources, each after those that it needs; the template's check has ruled circles out.
fn in_order(target: &Target, active: &BTreeSet<String>) -> Vec<String> {
    let mut open: BTreeMap<&String, BTreeSet<String>> = target
        .template
        .resources
        .iter()
        .filter(|(name, _)| active.contains(*name))
        .map(|(name, resource)| (name, target.template.dependencies(resource)))
        .collect();
    let mut ordered = Vec::new();
    while !open.is_empty() {
        let free: Vec<&String> = open
            .iter()
            .filter(|(_, needs)| !needs.iter().any(|need| open.contains_key(need)))
            .map(|(name, _)| *name)
            .collect();
        if free.is_empty() {
            break;
        }
        for name in free {
            open.remove(name);
            ordered.push(name.clone());
        }
    }
    ordered
}
