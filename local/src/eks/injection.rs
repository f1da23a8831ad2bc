//! What EKS puts into new pods so that they are somebody to AWS: a web identity token (IRSA) where the service account
//! names a role, the address of the Pod Identity agent where an association does.
//!
//! The rules are those of amazon-eks-pod-identity-webhook:
//! <https://github.com/aws/amazon-eks-pod-identity-webhook>.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::state::ClusterId;
use super::{Eks, objects};
use crate::kubernetes::POD_IDENTITY_AGENT;

/// A token's volume, where it is mounted, for whom it is, and the environment that points at it.
#[derive(Debug, PartialEq)]
struct Identity {
    volume: &'static str,
    mount: &'static str,
    file: &'static str,
    audience: String,
    expiration_seconds: i64,
    environment: Vec<(&'static str, String)>,
}

/// Environment of a container that brings its own credentials' source: it keeps it.
const OWN: &[&str] = &["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];

impl Eks {
    /// The webhook's registration in a cluster. It fails open, as on AWS: a pod that is made while the webhook does
    /// not answer runs without identity.
    pub(super) fn injection_configuration(&self, id: &ClusterId) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "pod-identity-webhook"},
            "webhooks": [{
                "name": "iam-for-pods.amazonaws.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "reinvocationPolicy": "IfNeeded",
                "timeoutSeconds": 5,
                "clientConfig": {
                    "url": self.webhooks.injection_url(id),
                    "caBundle": STANDARD.encode(self.webhooks.certificate_pem()),
                },
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            }],
        })
    }

    /// Answers an `AdmissionReview` (admission.k8s.io/v1) of a new pod. Every pod is allowed.
    pub(super) async fn admit_pod(&self, id: &ClusterId, review: &Value) -> Value {
        let request = &review["request"];
        let pod = &request["object"];
        let namespace = request["namespace"].as_str().unwrap_or("default");
        let account = pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default");
        let mut response = json!({"uid": request["uid"], "allowed": true});
        if let Some(identity) = self.identity(id, namespace, account).await {
            let patch = Value::Array(patch(pod, &identity));
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(patch.to_string()));
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }

    /// What a service account is to AWS at this moment. Pod Identity goes before IRSA.
    async fn identity(&self, id: &ClusterId, namespace: &str, account: &str) -> Option<Identity> {
        if self.association("pod-identity-webhook", id, namespace, account).ok()?.is_some() {
            return Some(Identity::of_association(&id.region));
        }
        let admin = self.state().cluster(id).ok()?.plane.as_ref().map(|plane| plane.admin.clone());
        let object = objects::get(&admin?, "ServiceAccount", namespace, account).await;
        let object = object.inspect_err(|error| tracing::warn!("{namespace}/{account}: {error:#}")).ok()??;
        Identity::of_annotations(&object["metadata"]["annotations"], &id.region)
    }
}

impl Identity {
    fn of_association(region: &str) -> Self {
        let mount = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount";
        let file = "eks-pod-identity-token";
        Self {
            volume: "eks-pod-identity-token",
            mount,
            file,
            audience: "pods.eks.amazonaws.com".to_owned(),
            expiration_seconds: 86_400,
            environment: vec![
                ("AWS_STS_REGIONAL_ENDPOINTS", "regional".to_owned()),
                ("AWS_DEFAULT_REGION", region.to_owned()),
                ("AWS_REGION", region.to_owned()),
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", POD_IDENTITY_AGENT.to_owned()),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", format!("{mount}/{file}")),
            ],
        }
    }

    fn of_annotations(annotations: &Value, region: &str) -> Option<Self> {
        let annotation = |name: &str| annotations[format!("eks.amazonaws.com/{name}")].as_str();
        let role = annotation("role-arn")?;
        let mount = "/var/run/secrets/eks.amazonaws.com/serviceaccount";
        let file = "token";
        // The API server refuses less than ten minutes, EKS's webhook more than a day.
        let expiration = annotation("token-expiration").and_then(|text| text.parse().ok()).unwrap_or(86_400);
        Some(Self {
            volume: "aws-iam-token",
            mount,
            file,
            audience: annotation("audience").unwrap_or("sts.amazonaws.com").to_owned(),
            expiration_seconds: i64::clamp(expiration, 3_600, 86_400),
            environment: vec![
                ("AWS_STS_REGIONAL_ENDPOINTS", "regional".to_owned()),
                ("AWS_DEFAULT_REGION", region.to_owned()),
                ("AWS_REGION", region.to_owned()),
                ("AWS_ROLE_ARN", role.to_owned()),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", format!("{mount}/{file}")),
            ],
        })
    }
}

/// The JSON patch (RFC 6902) that gives a pod an identity.
fn patch(pod: &Value, identity: &Identity) -> Vec<Value> {
    let volume = json!({
        "name": identity.volume,
        "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {
            "audience": identity.audience, "expirationSeconds": identity.expiration_seconds, "path": identity.file,
        }}]},
    });
    let mut operations = Vec::new();
    add(&mut operations, &pod["spec"]["volumes"], "/spec/volumes", &volume);
    for list in ["initContainers", "containers"] {
        let containers = pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        for (index, container) in containers.iter().enumerate() {
            let at = format!("/spec/{list}/{index}");
            let has = |name: &str| {
                container["env"].as_array().is_some_and(|env| env.iter().any(|variable| variable["name"] == name))
            };
            if OWN.iter().any(|name| has(name)) {
                continue;
            }
            let missing: Vec<_> = identity.environment.iter().filter(|(name, _)| !has(name)).collect();
            let mut env = container["env"].clone();
            for (name, value) in missing {
                let variable = json!({"name": name, "value": value});
                add(&mut operations, &env, &format!("{at}/env"), &variable);
                env = json!(["now it is there"]);
            }
            let mount = json!({"name": identity.volume, "mountPath": identity.mount, "readOnly": true});
            add(&mut operations, &container["volumeMounts"], &format!("{at}/volumeMounts"), &mount);
        }
    }
    operations
}

/// Appends to a list that may not be there.
fn add(operations: &mut Vec<Value>, list: &Value, path: &str, item: &Value) {
    if list.as_array().is_some_and(|items| !items.is_empty()) {
        operations.push(json!({"op": "add", "path": format!("{path}/-"), "value": item}));
    } else {
        operations.push(json!({"op": "add", "path": path, "value": [item]}));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ROLE: &str = "arn:aws:iam::111122223333:role/karpenter";

    fn injected(pod: &Value, identity: &Identity) -> Value {
        let mut after = pod.clone();
        let patch: json_patch::Patch = serde_json::from_value(Value::Array(patch(pod, identity))).unwrap();
        json_patch::patch(&mut after, &patch).unwrap();
        after
    }

    fn value<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
        container["env"].as_array()?.iter().find(|variable| variable["name"] == name)?["value"].as_str()
    }

    #[test]
    fn an_annotated_service_account_gets_a_web_identity() {
        let identity = Identity::of_annotations(&json!({"eks.amazonaws.com/role-arn": ROLE}), "eu-west-1").unwrap();
        let pod = json!({"spec": {
            "volumes": [{"name": "tmp"}],
            "containers": [
                {"name": "bare"},
                {"name": "busy", "env": [{"name": "AWS_REGION", "value": "us-east-1"}], "volumeMounts": [{"name": "tmp"}]},
                {"name": "own", "env": [{"name": "AWS_ROLE_ARN", "value": "mine"}]},
            ],
        }});
        let after = injected(&pod, &identity);
        let token = &after["spec"]["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"];
        assert_eq!(*token, json!({"audience": "sts.amazonaws.com", "expirationSeconds": 86400, "path": "token"}));
        let containers = after["spec"]["containers"].as_array().unwrap();
        assert_eq!(value(&containers[0], "AWS_ROLE_ARN"), Some(ROLE));
        assert_eq!(containers[0]["volumeMounts"][0]["mountPath"], "/var/run/secrets/eks.amazonaws.com/serviceaccount");
        assert_eq!(value(&containers[1], "AWS_REGION"), Some("us-east-1"));
        assert_eq!(value(&containers[1], "AWS_ROLE_ARN"), Some(ROLE));
        assert_eq!(containers[1]["volumeMounts"].as_array().unwrap().len(), 2);
        assert_eq!(containers[2], pod["spec"]["containers"][2]);
    }

    #[test]
    fn no_annotation_no_identity() {
        assert_eq!(Identity::of_annotations(&json!({"other": "x"}), "eu-west-1"), None);
        assert_eq!(Identity::of_annotations(&Value::Null, "eu-west-1"), None);
    }

    #[test]
    fn an_association_gives_the_agents_address() {
        let after = injected(
            &json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}}),
            &Identity::of_association("eu-west-1"),
        );
        for container in [&after["spec"]["containers"][0], &after["spec"]["initContainers"][0]] {
            let file = value(container, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").unwrap();
            assert!(file.starts_with(container["volumeMounts"][0]["mountPath"].as_str().unwrap()), "{file}");
        }
    }
}
