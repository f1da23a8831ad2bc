//! A cluster's API server: login, reading, server-side apply and pruning, and errors with the machine's names.

mod applied;
pub mod chart;
pub mod reach;
pub(crate) mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::try_join_all;
use futures::lock::Mutex;
use kube::api::{DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{GroupVersion, Status};
use kube::discovery::{ApiGroup, ApiResource, Scope};
use kube::{Api, Client, Config};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, StepError, plan::Planned};

use crate::Context;

/// Who owns the fields that we apply.
pub const FIELD_MANAGER: &str = "slipway";

/// How long an API server may take to answer; a function has a minute for all of its calls.
const ANSWER: Duration = Duration::from_secs(15);

/// A cluster's API server, logged in as the cluster-access role.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    url: String,
    /// Group versions that were asked for, since each costs a call.
    known: std::sync::Arc<Mutex<BTreeMap<String, ApiGroup>>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A kind of object: `("apps/v1", "Deployment")`.
pub type Kind<'a> = (&'a str, &'a str);

/// The finalizers of an object.
#[must_use]
pub fn finalizers(object: &Value) -> Vec<String> {
    let listed = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    listed.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Logs in to a cluster.
///
/// # Errors
/// What STS raises; `ClusterUnreachable` if the endpoint is none.
pub async fn connect(cx: &Context, cluster: &ClusterKey, endpoint: &ClusterEndpoint) -> Result<Cluster, StepError> {
    let token = token::login(cx, cluster).await?;
    let client = client(endpoint, token)?;
    Ok(Cluster { client, url: endpoint.url.clone(), known: std::sync::Arc::default() })
}

/// A client that trusts the cluster's own authority alone, and goes through no proxy: proxies of the environment are
/// for public names.
fn client(endpoint: &ClusterEndpoint, token: String) -> Result<Client, StepError> {
    let wrong = |what: &str| {
        StepError::new(ErrorName::ClusterUnreachable, format!("The cluster's {what} cannot be read."))
            .remedy("Compare the step's input with what eks:DescribeCluster answers.")
    };
    let mut config = Config::new(endpoint.url.parse().map_err(|_| wrong("endpoint URL"))?);
    let authority = STANDARD.decode(&endpoint.certificate_authority).map_err(|_| wrong("certificate authority"))?;
    let roots: Vec<_> = CertificateDer::pem_slice_iter(&authority)
        .map(|root| root.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| wrong("certificate authority"))?;
    config.root_cert = Some(roots);
    config.auth_info.token = Some(token.into());
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(ANSWER);
    config.reset_reader_on_write = true;
    Client::try_from(config).map_err(|error| refused("The login", &endpoint.url, &error))
}

/// What applying manifests to a cluster would do; all are new where there is no cluster yet.
///
/// # Errors
/// What [`Cluster::refused`] names.
pub async fn plan(cluster: Option<&Cluster>, manifests: &[Value]) -> Result<Vec<Planned>, StepError> {
    let Some(cluster) = cluster else {
        let new = |manifest: &Value| {
            Planned::of(&format!("Kubernetes {}", text(manifest, "/kind")), text(manifest, "/metadata/name"), None)
        };
        return Ok(manifests.iter().map(new).collect());
    };
    let served = &cluster.api_versions().await?;
    try_join_all(manifests.iter().map(|manifest| cluster.plan(manifest, served))).await
}

impl Cluster {
    /// The client itself, for calls that have a type of their own.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Names a failed call; `what` begins the sentence: `Reading pod a`.
    #[must_use]
    pub fn refused(&self, what: &str, error: &kube::Error) -> StepError {
        refused(what, &self.url, error)
    }

    /// The group versions that the API server serves: `v1`, `apps/v1`, …
    ///
    /// # Errors
    /// `ClusterUnreachable` and what else [`Self::refused`] names.
    pub async fn api_versions(&self) -> Result<BTreeSet<String>, StepError> {
        let groups =
            self.client.list_api_groups().await.map_err(|error| self.refused("Reading the API groups", &error))?;
        let versions = groups.groups.into_iter().flat_map(|group| group.versions);
        Ok(versions.map(|version| version.group_version).chain(["v1".to_owned()]).collect())
    }

    /// An object, none if it is not there.
    ///
    /// # Errors
    /// What [`Self::refused`] names.
    pub async fn get(&self, kind: Kind<'_>, namespace: &str, name: &str) -> Result<Option<Value>, StepError> {
        let what = || format!("Reading {} {name}", kind.1);
        let api = self.api(kind, Some(namespace)).await?;
        let object = api.get_opt(name).await.map_err(|error| self.refused(&what(), &error))?;
        object.map(|object| json(&object)).transpose()
    }

    /// The objects of a namespace, or of all of them, that a label selector finds.
    ///
    /// # Errors
    /// What [`Self::refused`] names.
    pub async fn list(&self, kind: Kind<'_>, namespace: Option<&str>, selector: &str) -> Result<Vec<Value>, StepError> {
        let api = self.api(kind, namespace).await?;
        let found = api
            .list(&ListParams::default().labels(selector))
            .await
            .map_err(|error| self.refused(&format!("Listing {} objects", kind.1), &error))?;
        found.items.iter().map(json).collect()
    }

    /// Applies a manifest on the server, as [`FIELD_MANAGER`], over whoever else holds its fields; not at all where the
    /// object is as applied already. Answers the object as it is then.
    ///
    /// # Errors
    /// `KubernetesRefused` with the API server's words, and what else [`Self::refused`] names.
    pub async fn apply(&self, manifest: &Value) -> Result<Value, StepError> {
        let (api_version, kind, name) =
            (text(manifest, "/apiVersion"), text(manifest, "/kind"), text(manifest, "/metadata/name"));
        let api =
            self.api((api_version, kind), manifest.pointer("/metadata/namespace").and_then(Value::as_str)).await?;
        let there = api.get_opt(name).await.map_err(|error| self.refused(&format!("Reading {kind} {name}"), &error))?;
        if let Some(there) = there.as_ref().map(json).transpose()?
            && applied::stands(manifest, &there)
        {
            return Ok(there);
        }
        let applied = api
            .patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(manifest))
            .await
            .map_err(|error| self.refused(&format!("Applying {kind} {name}"), &error))?;
        json(&applied)
    }

    /// What applying a manifest would do; `served` are the group versions that [`Self::api_versions`] answers.
    async fn plan(&self, manifest: &Value, served: &BTreeSet<String>) -> Result<Planned, StepError> {
        let (api_version, kind) = (text(manifest, "/apiVersion"), text(manifest, "/kind"));
        let (namespace, name) = (text(manifest, "/metadata/namespace"), text(manifest, "/metadata/name"));
        // A kind that is not served yet has no objects.
        let there =
            if served.contains(api_version) { self.get((api_version, kind), namespace, name).await? } else { None };
        let stands = match &there {
            None => false,
            Some(there) => applied::stands(manifest, there) || self.try_out(manifest, there).await?,
        };
        let told = if stands { Vec::new() } else { vec!["its fields differ".to_owned()] };
        Ok(Planned::of(&format!("Kubernetes {kind}"), name, there.map(|_| told.as_slice())))
    }

    /// Whether the API server, asked to try an apply and not to do it, would leave the object as it is.
    async fn try_out(&self, manifest: &Value, there: &Value) -> Result<bool, StepError> {
        let (api_version, kind) = (text(manifest, "/apiVersion"), text(manifest, "/kind"));
        let namespace = manifest.pointer("/metadata/namespace").and_then(Value::as_str);
        let api = self.api((api_version, kind), namespace).await?;
        let (name, params) = (text(manifest, "/metadata/name"), PatchParams::apply(FIELD_MANAGER).force().dry_run());
        let tried = api
            .patch(name, &params, &Patch::Apply(manifest))
            .await
            .map_err(|error| self.refused(&format!("Trying {kind} {name}"), &error))?;
        Ok(applied::same(&json(&tried)?, there))
    }

    /// Takes an annotation from an object of no namespace.
    ///
    /// # Errors
    /// What [`Self::refused`] names.
    pub async fn remove_annotation(&self, kind: Kind<'_>, name: &str, key: &str) -> Result<(), StepError> {
        let without = serde_json::json!({ "metadata": { "annotations": { key: null } } });
        let api = self.api(kind, None).await?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patched = api.patch(name, &params, &Patch::Merge(&without)).await;
        patched.map(|_| ()).map_err(|error| self.refused(&format!("Changing {} {name}", kind.1), &error))
    }

    /// Creates an object; false if one of its name is there already.
    ///
    /// # Errors
    /// What [`Self::refused`] names.
    pub async fn create(&self, manifest: &Value) -> Result<bool, StepError> {
        let (api_version, kind, name) =
            (text(manifest, "/apiVersion"), text(manifest, "/kind"), text(manifest, "/metadata/name"));
        let api =
            self.api((api_version, kind), manifest.pointer("/metadata/namespace").and_then(Value::as_str)).await?;
        let object: DynamicObject = serde_json::from_value(manifest.clone())
            .map_err(|error| StepError::new(ErrorName::Internal, format!("{kind} {name} is no object: {error}.")))?;
        match api
            .create(&PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }, &object)
            .await
        {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(false),
            Err(error) => Err(self.refused(&format!("Creating {kind} {name}"), &error)),
        }
    }

    /// Deletes an object; false if it was gone, or is another one than that of the given UID.
    ///
    /// # Errors
    /// What [`Self::refused`] names.
    pub async fn delete(
        &self,
        kind: Kind<'_>,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<bool, StepError> {
        let preconditions = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() });
        let how = DeleteParams { preconditions, ..DeleteParams::background() };
        match self.api(kind, Some(namespace)).await?.delete(name, &how).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(self.refused(&format!("Deleting {} {name}", kind.1), &error)),
        }
    }

    /// Merges a patch into an object (RFC 7386); false if it was gone.
    ///
    /// # Errors
    /// What [`Self::refused`] names.
    pub async fn merge(&self, kind: Kind<'_>, namespace: &str, name: &str, patch: &Value) -> Result<bool, StepError> {
        let how = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match self.api(kind, Some(namespace)).await?.patch(name, &how, &Patch::Merge(patch)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(self.refused(&format!("Changing {} {name}", kind.1), &error)),
        }
    }

    /// The end of a log of a pod's container, at most 64 KiB; empty if there is none. `previous` is the log of the life
    /// before this one, `since` leaves out what is older than so many seconds.
    pub async fn log(&self, namespace: &str, pod: &str, previous: bool, since: Option<i64>) -> String {
        const LINES: i64 = 400;
        const BYTES: usize = 64 * 1024;
        let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(self.client(), namespace);
        let wanted = LogParams { previous, tail_lines: Some(LINES), since_seconds: since, ..LogParams::default() };
        // A log helps to explain a failure; failing to read it must not become one.
        let log = api.logs(pod, &wanted).await.unwrap_or_default();
        let from = (log.len().saturating_sub(BYTES)..log.len()).find(|at| log.is_char_boundary(*at));
        from.map_or_else(String::new, |from| log[from..].to_owned())
    }

    /// A token of a service account for one audience.
    ///
    /// # Errors
    /// What [`Self::refused`] names.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
    ) -> Result<String, StepError> {
        use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
        use k8s_openapi::api::core::v1::ServiceAccount;

        let api: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let wanted = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_owned()]),
                // The shortest that an API server grants.
                expiration_seconds: Some(600),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let minted = api
            .create_token_request(account, &PostParams::default(), &wanted)
            .await
            .map_err(|error| self.refused(&format!("Minting a token of service account {account}"), &error))?;
        minted.status.and_then(|status| status.token).ok_or_else(|| {
            StepError::new(ErrorName::KubernetesRefused, format!("The API server minted no token for {account}."))
        })
    }

    async fn api(
        &self,
        (api_version, kind): Kind<'_>,
        namespace: Option<&str>,
    ) -> Result<Api<DynamicObject>, StepError> {
        let unknown = || {
            let name = if api_version.starts_with("karpenter.") {
                ErrorName::CrdNotServed
            } else {
                ErrorName::KubernetesRefused
            };
            StepError::new(name, format!("The API server has no kind {kind} in {api_version}."))
        };
        let mut known = self.known.lock().await;
        if !known.contains_key(api_version) {
            let version: GroupVersion = api_version.parse().map_err(|_| unknown())?;
            let group = match kube::discovery::pinned_group(&self.client, &version).await {
                Ok(group) => group,
                Err(kube::Error::Api(status)) if status.code == 404 => return Err(unknown()),
                Err(error) => return Err(self.refused(&format!("Reading what {api_version} has"), &error)),
            };
            known.insert(api_version.to_owned(), group);
        }
        let resource: Option<(ApiResource, Scope)> = known
            .get(api_version)
            .and_then(|group| group.recommended_kind(kind))
            .map(|(resource, capabilities)| (resource, capabilities.scope));
        drop(known);
        let (resource, scope) = resource.ok_or_else(unknown)?;
        Ok(match (scope, namespace) {
            (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(self.client(), namespace, &resource),
            _ => Api::all_with(self.client(), &resource),
        })
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn json(object: &DynamicObject) -> Result<Value, StepError> {
    serde_json::to_value(object).map_err(|error| {
        StepError::new(ErrorName::Internal, format!("The API server's object has no JSON form: {error}."))
    })
}

/// Names what an API server answered, or that it did not.
fn refused(what: &str, url: &str, error: &kube::Error) -> StepError {
    if let kube::Error::Api(status) = error {
        return answered(what, status);
    }
    let mut reason: &dyn std::error::Error = error;
    while let Some(deeper) = reason.source() {
        reason = deeper;
    }
    StepError::new(ErrorName::ClusterUnreachable, format!("{what} did not get through to {url}: {reason}."))
}

fn answered(what: &str, status: &Status) -> StepError {
    let message = status.message.trim_end_matches('.');
    let name = match status.code {
        401 => ErrorName::ClusterUnreachable,
        // RBAC's refusals name the user; quotas and admission say 403 too, but mean the object.
        403 if message.contains("User \"") => ErrorName::ClusterUnreachable,
        429 => ErrorName::Throttled,
        500.. => ErrorName::AwsUnavailable,
        _ => ErrorName::KubernetesRefused,
    };
    StepError::new(name, format!("{what} was refused: {message} (HTTP {}).", status.code))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        Status { code, message: message.to_owned(), ..serde_json::from_str("{}").unwrap() }
    }

    #[test]
    fn answers_of_an_api_server_have_the_machines_names() {
        for (code, message, name) in [
            (401, "Unauthorized", ErrorName::ClusterUnreachable),
            (
                403,
                r#"pods is forbidden: User "arn:aws:sts::1:assumed-role/x" cannot list resource "pods""#,
                ErrorName::ClusterUnreachable,
            ),
            (403, r#"pods "a" is forbidden: exceeded quota: pods"#, ErrorName::KubernetesRefused),
            (422, "NodePool.karpenter.sh \"x\" is invalid: spec: …", ErrorName::KubernetesRefused),
            (429, "slow down", ErrorName::Throttled),
            (503, "etcdserver: leader changed", ErrorName::AwsUnavailable),
        ] {
            let error = answered("Applying NodePool x", &status(code, message));
            assert_eq!(error.name, name, "{message}");
            assert!(error.cause.starts_with("Applying NodePool x was refused: "), "{}", error.cause);
        }
    }

    fn endpoint(url: &str, authority: &str) -> ClusterEndpoint {
        ClusterEndpoint { url: url.to_owned(), certificate_authority: STANDARD.encode(authority) }
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_names_the_endpoint() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("http://127.0.0.1:{port}");
        let cluster = Cluster {
            client: client(&endpoint(&url, ""), "token".to_owned()).unwrap(),
            url: url.clone(),
            known: std::sync::Arc::default(),
        };
        let error = cluster.get(("v1", "Namespace"), "", "default").await.unwrap_err();
        assert_eq!(error.name, ErrorName::ClusterUnreachable);
        assert!(error.cause.contains(&url), "{}", error.cause);
        assert!(!error.cause.contains("token"), "{}", error.cause);
    }

    #[test]
    fn a_broken_authority_is_told_apart_from_a_cluster_that_is_down() {
        let mut broken = endpoint("https://example.com", "");
        broken.certificate_authority = "%".to_owned();
        let error = client(&broken, String::new()).map(|_| ()).unwrap_err();
        assert!(error.cause.contains("certificate authority"), "{}", error.cause);
    }
}
