//! Updates of clusters, node groups and add-ons: made by the Update operations, asked for by DescribeUpdate.

use std::time::Duration;

use serde_json::{Value, json};

use super::state::{Cluster, ClusterId, Update};
use super::{AwsError, Eks, Request, not_found, now, uuid};

/// How long a change of a cluster's or a node group's configuration takes.
pub(super) const CONFIGURATION_UPDATE: Duration = Duration::from_secs(90);

/// What an update is about, beside its cluster.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    Cluster,
    Nodegroup(&'a str),
    Addon(&'a str),
}

impl Cluster {
    /// Notes an update that goes on and answers its `update` shape.
    pub(super) fn begin_update(
        &mut self,
        subject: Subject<'_>,
        kind: &str,
        params: &[(&str, String)],
        request: &Value,
    ) -> Value {
        let params: Vec<Value> = params.iter().map(|(kind, value)| json!({"type": kind, "value": value})).collect();
        let view = json!({"id": uuid(), "status": "InProgress", "type": kind, "params": params, "createdAt": now(),
            "errors": []});
        let (nodegroup, addon) = match subject {
            Subject::Cluster => (None, None),
            Subject::Nodegroup(name) => (Some(name.to_owned()), None),
            Subject::Addon(name) => (None, Some(name.to_owned())),
        };
        self.updates.push(Update { view: view.clone(), nodegroup, addon, request: request.clone() });
        view
    }

    /// The update that an earlier request with the same token made.
    pub(super) fn update_of(&self, request: &Value) -> Option<Value> {
        request["clientRequestToken"].as_str()?;
        self.updates.iter().find(|update| update.request == *request).map(|update| update.view.clone())
    }

    /// Ends the updates of a subject that go on.
    pub(super) fn end_updates(&mut self, subject: Subject<'_>, status: &str) {
        for update in self.updates.iter_mut().filter(|update| update.is_about(subject)) {
            if update.view["status"] == "InProgress" {
                update.view["status"] = json!(status);
            }
        }
    }
}

impl Update {
    fn is_about(&self, subject: Subject<'_>) -> bool {
        match subject {
            Subject::Cluster => self.nodegroup.is_none() && self.addon.is_none(),
            Subject::Nodegroup(name) => self.nodegroup.as_deref() == Some(name),
            Subject::Addon(name) => self.addon.as_deref() == Some(name),
        }
    }
}

impl Request {
    fn subject(&self) -> Subject<'_> {
        match (self.input["nodegroupName"].as_str(), self.input["addonName"].as_str()) {
            (Some(name), _) => Subject::Nodegroup(name),
            (None, Some(name)) => Subject::Addon(name),
            (None, None) => Subject::Cluster,
        }
    }
}

impl Eks {
    pub(super) fn describe_update(&self, request: &Request) -> Result<Value, AwsError> {
        let id = request.text("updateId");
        let mut state = self.state();
        let cluster = state.cluster(&request.cluster())?;
        let update =
            cluster.updates.iter().find(|update| update.view["id"] == id && update.is_about(request.subject()));
        update
            .map(|update| json!({"update": update.view}))
            .ok_or_else(|| not_found(format!("No update found for id: {id}.")))
    }

    pub(super) fn list_updates(&self, request: &Request) -> Result<Value, AwsError> {
        let mut state = self.state();
        let cluster = state.cluster(&request.cluster())?;
        let about = cluster.updates.iter().filter(|update| update.is_about(request.subject()));
        let ids: Vec<Value> = about.map(|update| update.view["id"].clone()).collect();
        request.page("updateIds", &ids)
    }

    /// Ends a cluster's own update when its time has passed.
    pub(super) fn finish_cluster_update(&self, id: &ClusterId) {
        let (this, clock, id) = (self.this.clone(), self.config.clock, id.clone());
        self.go_on(async move {
            clock.sleep(CONFIGURATION_UPDATE).await;
            let Some(eks) = this.upgrade() else { return };
            if let Ok(cluster) = eks.state().cluster(&id) {
                cluster.end_updates(Subject::Cluster, "Successful");
                if cluster.status() == "UPDATING" {
                    cluster.view["status"] = json!("ACTIVE");
                }
            }
            eks.open_log_group(&id).await;
        });
    }
}
