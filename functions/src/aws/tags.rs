//! Tags: what is ours, and which of the wanted ones are missing.

use std::collections::BTreeMap;

use slipway_statemachine::{ClusterKey, ErrorName, StepError, names};

/// Refuses what does not carry our tag for this cluster.
///
/// # Errors
/// `NotOurs`, naming `what`.
pub fn ours(cluster: &ClusterKey, tags: &BTreeMap<String, String>, what: &str) -> Result<(), StepError> {
    match tags.get(names::CLUSTER_TAG) {
        Some(name) if *name == cluster.name => Ok(()),
        Some(other) => Err(StepError::new(ErrorName::NotOurs, format!("{what} belongs to the cluster {other}."))),
        None => Err(StepError::new(
            ErrorName::NotOurs,
            format!("{what} exists and has no tag {}, so Slipway did not make it.", names::CLUSTER_TAG),
        )),
    }
}

/// The wanted tags that are missing or differ.
#[must_use]
pub fn missing(wanted: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    wanted.iter().filter(|(key, value)| found.get(*key) != Some(value)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Tags that are to be set, in a few words.
#[must_use]
pub fn told(tags: &BTreeMap<String, String>) -> String {
    format!("it lacks the tags {}", tags.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
}
