//! Tags of everything that EKS makes, by ARN.

use serde_json::{Map, Value, json};

use super::state::{Cluster, State};
use super::{AwsError, Eks, Request};

/// Refuses tags that only AWS may give.
pub(super) fn check(operation: &str, input: &Value) -> Result<(), AwsError> {
    let mut keys = input["tags"].as_object().into_iter().flat_map(Map::keys);
    if !keys.any(|key| key.to_lowercase().starts_with("aws:")) {
        return Ok(());
    }
    let code = if operation == "TagResource" { "BadRequestException" } else { "InvalidParameterException" };
    Err(AwsError::new(400, code, "aws: prefixed tag key names are not allowed for external use."))
}

impl Cluster {
    /// The shapes of the cluster and of all that belongs to it.
    fn views(&mut self) -> impl Iterator<Item = &mut Value> {
        std::iter::once(&mut self.view)
            .chain(self.nodegroups.values_mut().map(|group| &mut group.view))
            .chain(self.fargate_profiles.values_mut().map(|profile| &mut profile.view))
            .chain(self.addons.values_mut().map(|addon| &mut addon.view))
            .chain(self.entries.values_mut().map(|entry| &mut entry.view))
            .chain(self.associations.values_mut().map(|association| &mut association.view))
    }
}

/// Does `change` to the tags of whatever has the ARN.
fn tagged<T>(
    state: &mut State,
    request: &Request,
    change: impl FnOnce(&mut Map<String, Value>) -> Result<T, AwsError>,
) -> Result<T, AwsError> {
    let arn = request.text("resourceArn");
    if !arn.starts_with("arn:aws:eks:") {
        return Err(AwsError::new(400, "BadRequestException", format!("Invalid ARN: {arn}")));
    }
    let is_it = |view: &&mut Value| {
        ["arn", "nodegroupArn", "fargateProfileArn", "addonArn", "accessEntryArn", "associationArn"]
            .iter()
            .any(|name| view[*name] == arn)
    };
    let view = state.clusters.values_mut().flat_map(Cluster::views).find(is_it);
    let view = view.ok_or_else(|| AwsError::new(404, "NotFoundException", format!("Resource not found: {arn}")))?;
    if !view["tags"].is_object() {
        view["tags"] = json!({});
    }
    match view["tags"].as_object_mut() {
        Some(tags) => change(tags),
        None => Err(AwsError::new(500, "ServerException", "tags are no map")),
    }
}

impl Eks {
    pub(super) fn tag_resource(&self, request: &Request) -> Result<Value, AwsError> {
        let new = request.tags();
        tagged(&mut self.state(), request, |tags| {
            let new = new.as_object().into_iter().flatten();
            let after: Map<String, Value> =
                tags.iter().chain(new).map(|(key, value)| (key.clone(), value.clone())).collect();
            if after.len() > 50 {
                return Err(AwsError::new(400, "BadRequestException", "A resource has at most 50 tags."));
            }
            *tags = after;
            Ok(json!({}))
        })
    }

    pub(super) fn untag_resource(&self, request: &Request) -> Result<Value, AwsError> {
        let keys = request.input["tagKeys"].as_array().cloned().unwrap_or_default();
        tagged(&mut self.state(), request, |tags| {
            tags.retain(|key, _| !keys.contains(&json!(key)));
            Ok(json!({}))
        })
    }

    pub(super) fn list_tags(&self, request: &Request) -> Result<Value, AwsError> {
        tagged(&mut self.state(), request, |tags| Ok(json!({"tags": tags})))
    }
}
