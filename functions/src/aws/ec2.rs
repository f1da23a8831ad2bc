//! EC2's tags and filters.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Filter, Instance, Tag};
use slipway_statemachine::StepError;

use super::error::During as _;
use crate::Context;

/// Tags as a map.
#[must_use]
pub fn tags_of(tags: &[Tag]) -> BTreeMap<String, String> {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    tags.iter().map(|tag| (text(tag.key()), text(tag.value()))).collect()
}

/// A filter by name and values, of which one must fit.
#[must_use]
pub fn filter(name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Filter {
    Filter::builder().name(name).set_values(Some(values.into_iter().map(Into::into).collect())).build()
}

/// How instances are, by id: `running`, or `terminated, Client.InternalError: …`.
///
/// # Errors
/// What EC2 refused.
pub async fn states_of(cx: &Context, filters: Vec<Filter>) -> Result<BTreeMap<String, String>, StepError> {
    let mut pages = cx.aws.ec2().describe_instances().set_filters(Some(filters)).into_paginator().items().send();
    let mut states = BTreeMap::new();
    while let Some(reservation) = pages.next().await {
        for instance in reservation.during("ec2:DescribeInstances")?.instances.unwrap_or_default() {
            states.insert(instance.instance_id.clone().unwrap_or_default(), state(&instance));
        }
    }
    Ok(states)
}

/// State, and where EC2 gives one, the reason for it.
fn state(instance: &Instance) -> String {
    let state = instance.state().and_then(|state| state.name()).map_or("unknown", |name| name.as_str());
    let reason = instance.state_reason().and_then(|reason| reason.message()).filter(|reason| !reason.is_empty());
    reason.map_or_else(|| state.to_owned(), |reason| format!("{state}, {reason}"))
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState, InstanceStateName, StateReason};

    use super::*;

    #[test]
    fn a_machine_that_ended_says_why() {
        let of = |name: InstanceStateName| Instance::builder().state(InstanceState::builder().name(name).build());
        assert_eq!(state(&of(InstanceStateName::Running).build()), "running");
        let reason = StateReason::builder().message("Client.InternalError: Client error on launch").build();
        let ended = of(InstanceStateName::Terminated).state_reason(reason).build();
        assert_eq!(state(&ended), "terminated, Client.InternalError: Client error on launch");
        assert_eq!(state(&Instance::builder().build()), "unknown");
    }
}
