//! A cluster's objects, as EKS itself reads and applies them: with the admin client of its control plane.

use anyhow::Context;
use kube::Client;
use serde_json::Value;

/// The kinds that EKS touches and where the API server keeps them.
const COLLECTIONS: &[(&str, &str, &str, bool)] = &[
    // kind, API path, plural, namespaced
    ("ClusterRole", "apis/rbac.authorization.k8s.io/v1", "clusterroles", false),
    ("ClusterRoleBinding", "apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", false),
    ("RoleBinding", "apis/rbac.authorization.k8s.io/v1", "rolebindings", true),
    ("MutatingWebhookConfiguration", "apis/admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", false),
    ("StorageClass", "apis/storage.k8s.io/v1", "storageclasses", false),
    ("DaemonSet", "apis/apps/v1", "daemonsets", true),
    ("Deployment", "apis/apps/v1", "deployments", true),
    ("Service", "api/v1", "services", true),
    ("ServiceAccount", "api/v1", "serviceaccounts", true),
    ("Namespace", "api/v1", "namespaces", false),
    ("Node", "api/v1", "nodes", false),
];

/// The field manager of everything that EKS applies.
const FIELD_MANAGER: &str = "eks";

/// The path of one object.
fn path(object: &Value) -> anyhow::Result<String> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let name = object["metadata"]["name"].as_str().context("an object needs a name")?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    object_path(kind, namespace, name)
}

fn object_path(kind: &str, namespace: &str, name: &str) -> anyhow::Result<String> {
    let (_, api, plural, namespaced) =
        COLLECTIONS.iter().find(|(known, ..)| *known == kind).with_context(|| format!("EKS knows no kind {kind:?}"))?;
    Ok(if *namespaced {
        format!("/{api}/namespaces/{namespace}/{plural}/{name}")
    } else {
        format!("/{api}/{plural}/{name}")
    })
}

/// Server-side-applies objects in order, taking over fields that others hold.
pub(super) async fn apply(client: &Client, objects: &[Value]) -> anyhow::Result<()> {
    for object in objects {
        let path = path(object)?;
        let request = http::Request::patch(format!("{path}?fieldManager={FIELD_MANAGER}&force=true"))
            .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml")
            .body(serde_json::to_vec(object)?)?;
        client.request_text(request).await.with_context(|| format!("applying {path}"))?;
    }
    Ok(())
}

/// Deletes objects; what is gone is fine.
pub(super) async fn delete(client: &Client, objects: &[Value]) -> anyhow::Result<()> {
    for object in objects {
        let path = path(object)?;
        let request = http::Request::delete(&path).body(Vec::new())?;
        match client.request_text(request).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            answer => answer.map(|_| ()).with_context(|| format!("deleting {path}"))?,
        }
    }
    Ok(())
}

/// One object; `None` where there is none.
pub(super) async fn get(client: &Client, kind: &str, namespace: &str, name: &str) -> anyhow::Result<Option<Value>> {
    read(client, &object_path(kind, namespace, name)?).await
}

/// The nodes of a managed node group.
pub(super) async fn group_nodes(client: &Client, group: &str) -> anyhow::Result<Vec<Value>> {
    let path = format!("/api/v1/nodes?labelSelector=eks.amazonaws.com%2Fnodegroup%3D{group}");
    let list = read(client, &path).await?.unwrap_or_default();
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

async fn read(client: &Client, path: &str) -> anyhow::Result<Option<Value>> {
    match client.request::<Value>(http::Request::get(path).body(Vec::new())?).await {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {path}")),
    }
}

/// Whether a node says that it is ready.
pub(super) fn is_ready(node: &Value) -> bool {
    node["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"))
}
