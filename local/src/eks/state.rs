//! What EKS remembers of each cluster.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use serde_json::Value;

use super::{AwsError, not_found};
use crate::kubernetes::ControlPlane;

/// Everything that EKS remembers.
#[derive(Default)]
pub(super) struct State {
    pub(super) clusters: HashMap<ClusterId, Cluster>,
}

/// A cluster's name is unique in account and region.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClusterId {
    pub(super) account: String,
    pub(super) region: String,
    pub(super) name: String,
}

/// A cluster and all that belongs to it. The `view`s are the model's shapes, as Describe answers them; `request` is
/// the input that made the thing, for a repeated request with the same token.
pub(super) struct Cluster {
    pub(super) view: Value,
    pub(super) request: Value,
    pub(super) issuer: String,
    /// Once it runs.
    pub(super) plane: Option<ControlPlane>,
    /// When the issuer's documents are served: a while after ACTIVE.
    pub(super) usable_from: Option<Instant>,
    pub(super) nodegroups: BTreeMap<String, Nodegroup>,
    pub(super) fargate_profiles: BTreeMap<String, FargateProfile>,
    pub(super) addons: BTreeMap<String, Addon>,
    /// By principal ARN.
    pub(super) entries: BTreeMap<String, AccessEntry>,
    /// By association id.
    pub(super) associations: BTreeMap<String, Association>,
    pub(super) updates: Vec<Update>,
}

pub(super) struct Nodegroup {
    pub(super) view: Value,
    pub(super) request: Value,
    pub(super) instance_profile: String,
}

pub(super) struct FargateProfile {
    pub(super) view: Value,
    pub(super) request: Value,
}

pub(super) struct Addon {
    pub(super) view: Value,
    pub(super) request: Value,
    /// When the create or update that goes on began.
    pub(super) since: Instant,
    /// Since when it lacks replicas though it was rolled out.
    pub(super) short: Option<Instant>,
    /// What the cluster said to its objects, where it refused them.
    pub(super) refusal: Option<String>,
}

pub(super) struct AccessEntry {
    pub(super) view: Value,
    pub(super) request: Value,
    /// `AROA…` or `AIDA…`: a role that is deleted and made again has another, and the entry is dead.
    pub(super) principal_id: String,
    /// `AssociatedAccessPolicy` shapes, by policy ARN.
    pub(super) policies: BTreeMap<String, Value>,
}

pub(super) struct Association {
    pub(super) view: Value,
    pub(super) request: Value,
}

pub(super) struct Update {
    pub(super) view: Value,
    pub(super) nodegroup: Option<String>,
    pub(super) addon: Option<String>,
    pub(super) request: Value,
}

impl State {
    /// A cluster, or EKS's error.
    pub(super) fn cluster(&mut self, id: &ClusterId) -> Result<&mut Cluster, AwsError> {
        self.clusters.get_mut(id).ok_or_else(|| not_found(format!("No cluster found for name: {}.", id.name)))
    }
}

impl Cluster {
    /// `CREATING`, `ACTIVE`, …
    pub(super) fn status(&self) -> &str {
        self.view["status"].as_str().unwrap_or_default()
    }

    /// A node group, or EKS's error.
    pub(super) fn nodegroup(&mut self, name: &str) -> Result<&mut Nodegroup, AwsError> {
        self.nodegroups.get_mut(name).ok_or_else(|| not_found(format!("No node group found for name: {name}.")))
    }

    /// An add-on, or EKS's error.
    pub(super) fn addon(&mut self, name: &str) -> Result<&mut Addon, AwsError> {
        let cluster = self.view["name"].as_str().unwrap_or_default();
        self.addons.get_mut(name).ok_or_else(|| not_found(format!("No addon: {name} found in cluster: {cluster}")))
    }

    /// An access entry, or EKS's error.
    pub(super) fn entry(&mut self, principal: &str) -> Result<&mut AccessEntry, AwsError> {
        self.entries.get_mut(principal).ok_or_else(|| {
            not_found(
                "The specified principalArn could not be found. You can view your available access entries with \
                 'list-access-entries'.",
            )
        })
    }
}
