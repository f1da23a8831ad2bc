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

/// The same, but what bears no tag of ours may be taken over where the spec says `adopt`; never another cluster's.
///
/// # Errors
/// `NotOurs`, naming `what`.
pub fn takes(cluster: &ClusterKey, adopt: bool, tags: &BTreeMap<String, String>, what: &str) -> Result<(), StepError> {
    if adopt && !tags.contains_key(names::CLUSTER_TAG) { Ok(()) } else { ours(cluster, tags, what) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bears_nobodys_tag_is_taken_over_when_asked_and_another_clusters_never() {
        let demo = ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() };
        let tagged = |name: &str| BTreeMap::from([(names::CLUSTER_TAG.to_owned(), name.to_owned())]);
        assert!(takes(&demo, true, &BTreeMap::new(), "It").is_ok());
        assert!(takes(&demo, false, &BTreeMap::new(), "It").is_err());
        assert!(takes(&demo, false, &tagged("demo"), "It").is_ok());
        for near in ["demo-2", "demo_2", "Demo"] {
            assert!(takes(&demo, true, &tagged(near), "It").is_err(), "{near}");
        }
    }
}
