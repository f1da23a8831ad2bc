//! The values that Karpenter's chart gets from us, and Helm's rule for laying values over each other.

use serde_json::{Map, Value, json};
use slipway_statemachine::spec::Identity;

/// The release's name, and with it the name of the deployment.
pub const RELEASE: &str = "karpenter";

/// What our values depend on.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The EKS cluster's name.
    pub cluster: &'a str,
    /// The interruption queue's name, not its URL.
    pub queue: &'a str,
    /// How the controller proves who it is.
    pub identity: Identity,
    /// The controller's role.
    pub controller_role_arn: &'a str,
    /// The cluster is registered for zonal shift; Karpenter ends with a panic when it is told so of one that is not.
    pub zonal_shift: bool,
}

/// Our values with the user's laid over them.
#[must_use]
pub fn values(settings: &Settings<'_>, user: &Map<String, Value>) -> Map<String, Value> {
    let mut values = Map::new();
    values.insert(
        "settings".to_owned(),
        json!({
            "clusterName": settings.cluster,
            "interruptionQueue": settings.queue,
            "eksControlPlane": true,
        }),
    );
    if settings.zonal_shift {
        values["settings"]["enableZonalShift"] = json!(true);
    }
    let mut account = json!({ "create": true, "name": crate::policy::SERVICE_ACCOUNT });
    if settings.identity == Identity::Irsa {
        account["annotations"] = json!({ ROLE_ANNOTATION: settings.controller_role_arn });
    }
    values.insert("serviceAccount".to_owned(), account);
    // EKS gives a pod its identity when it is made and never after, so another identity must make other pods: one at a
    // time, as the deployment rolls.
    let identity = match settings.identity {
        Identity::Irsa => "irsa",
        Identity::PodIdentity => "podIdentity",
    };
    values.insert("podAnnotations".to_owned(), json!({ IDENTITY_ANNOTATION: identity }));
    values.insert("replicas".to_owned(), json!(2));
    values.insert("logLevel".to_owned(), json!("info"));
    // Karpenter makes the nodes that CoreDNS may wait for, so it must not itself wait for CoreDNS.
    values.insert("dnsPolicy".to_owned(), json!("Default"));
    // Fits a t4g.medium beside CoreDNS and the daemons; memory is limited because the collector reads the limit.
    values.insert(
        "controller".to_owned(),
        json!({ "resources": {
            "requests": { "cpu": "500m", "memory": "1Gi" },
            "limits": { "memory": "1Gi" },
        } }),
    );
    overlay(&mut values, user);
    values
}

/// The annotation by which a service account names its IAM role.
pub const ROLE_ANNOTATION: &str = "eks.amazonaws.com/role-arn";

/// The annotation by which a pod of the controller says how it proves who it is.
pub const IDENTITY_ANNOTATION: &str = "slipway/identity";

/// Helm's merge: maps are merged key by key, anything else is replaced, and null takes a key away.
pub fn overlay(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (_, Value::Null) => {
                base.shift_remove(key);
            }
            (Some(Value::Object(below)), Value::Object(above)) => overlay(below, above),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn settings(identity: Identity) -> Settings<'static> {
        Settings {
            cluster: "demo",
            queue: "slipway-eks-demo",
            identity,
            controller_role_arn: "arn:role",
            zonal_shift: false,
        }
    }

    #[test]
    fn another_identity_makes_other_pods() {
        let pods = |identity| values(&settings(identity), &Map::new())["podAnnotations"].clone();
        assert_ne!(pods(Identity::Irsa), pods(Identity::PodIdentity));
    }

    #[test]
    fn the_users_values_win_and_leave_the_rest() {
        let settings = settings(Identity::Irsa);
        let user = map(&json!({ "replicas": 3, "settings": { "batchIdleDuration": "2s" }, "dnsPolicy": null }));
        let values = values(&settings, &user);
        assert_eq!(values["replicas"], 3);
        assert_eq!(
            values["settings"],
            json!({
                "clusterName": "demo", "interruptionQueue": "slipway-eks-demo", "eksControlPlane": true,
                "batchIdleDuration": "2s",
            })
        );
        assert!(!values.contains_key("dnsPolicy"));
        assert_eq!(values["serviceAccount"]["annotations"], json!({ "eks.amazonaws.com/role-arn": "arn:role" }));
    }

    #[test]
    fn pod_identity_needs_no_annotation() {
        let settings = Settings { zonal_shift: true, ..settings(Identity::PodIdentity) };
        let values = values(&settings, &Map::new());
        assert_eq!(values["serviceAccount"], json!({ "create": true, "name": "karpenter" }));
        assert_eq!(values["settings"]["enableZonalShift"], true);
    }

    #[test]
    fn overlay_follows_helm() {
        let mut base = map(&json!({ "a": { "b": 1, "c": 2 }, "list": [1, 2], "gone": { "x": 1 }, "scalar": 1 }));
        overlay(&mut base, &map(&json!({ "a": { "c": 3 }, "list": [3], "gone": null, "scalar": { "now": "map" } })));
        assert_eq!(Value::Object(base), json!({ "a": { "b": 1, "c": 3 }, "list": [3], "scalar": { "now": "map" } }));
    }
}
