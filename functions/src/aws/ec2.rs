//! EC2's tags and filters.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Filter, Tag};
use slipway_statemachine::ClusterKey;

use crate::ownership;

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

/// What has any tag by which something may be the cluster's: a superset, which [`ownership::owned`] decides on.
#[must_use]
pub fn cluster_filter(cluster: &ClusterKey) -> Filter {
    filter("tag-key", ownership::keys(cluster))
}
