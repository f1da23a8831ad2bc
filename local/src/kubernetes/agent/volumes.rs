//! The files that a pod sees, in a folder of this machine: projected tokens, config maps, secrets, the downward API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Secret, ServiceAccount, ServiceAccountTokenProjection,
    Volume,
};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use tokio::time::Instant;

use super::environment::{Place, field};

/// Where the service account's own volume is mounted.
pub(super) const SERVICE_ACCOUNT_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A pod's volumes on this machine.
#[derive(Debug)]
pub(super) struct Volumes {
    dir: PathBuf,
    tokens: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    file: PathBuf,
    projection: ServiceAccountTokenProjection,
    /// After four fifths of its life, as the kubelet has it.
    refresh_at: Instant,
}

impl Volumes {
    /// Fills the pod's volumes. Kinds that only make sense on a real machine (host paths, devices) stay empty folders.
    ///
    /// # Errors
    /// A config map, secret or token that can't be had: the kubelet would wait with `FailedMount`.
    pub(super) async fn prepare(client: &kube::Client, place: &Place<'_>, dir: &Path) -> anyhow::Result<Self> {
        let mut volumes = Self { dir: dir.to_owned(), tokens: Vec::new() };
        for volume in place.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            volumes.fill(client, place, volume).await.with_context(|| format!("volume {}", volume.name))?;
        }
        Ok(volumes)
    }

    async fn fill(&mut self, client: &kube::Client, place: &Place<'_>, volume: &Volume) -> anyhow::Result<()> {
        let dir = self.dir.join(&volume.name);
        tokio::fs::create_dir_all(&dir).await?;
        if let Some(source) = &volume.config_map {
            let files = config_map(client, place, &source.name, source.optional, source.items.as_deref()).await?;
            write(&dir, files).await?;
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.clone().unwrap_or_default();
            write(&dir, secret(client, place, &name, source.optional, source.items.as_deref()).await?).await?;
        }
        if let Some(source) = &volume.downward_api {
            write(&dir, downward(place, source.items.as_deref())?).await?;
        }
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(projection) = &source.service_account_token {
                let mut token = Token {
                    file: dir.join(&projection.path),
                    projection: projection.clone(),
                    refresh_at: Instant::now(),
                };
                token.renew(client, place).await?;
                self.tokens.push(token);
            }
            if let Some(source) = &source.config_map {
                let files = config_map(client, place, &source.name, source.optional, source.items.as_deref()).await?;
                write(&dir, files).await?;
            }
            if let Some(source) = &source.secret {
                let files = secret(client, place, &source.name, source.optional, source.items.as_deref()).await?;
                write(&dir, files).await?;
            }
            if let Some(source) = &source.downward_api {
                write(&dir, downward(place, source.items.as_deref())?).await?;
            }
        }
        Ok(())
    }

    /// When the next token wants to be renewed.
    pub(super) fn next_refresh(&self) -> Option<Instant> {
        self.tokens.iter().map(|token| token.refresh_at).min()
    }

    /// Renews the tokens whose time has come; one that cannot be renewed now is tried again in a while.
    pub(super) async fn refresh(&mut self, client: &kube::Client, place: &Place<'_>) {
        let now = Instant::now();
        for token in self.tokens.iter_mut().filter(|token| token.refresh_at <= now) {
            if let Err(error) = token.renew(client, place).await {
                tracing::warn!(pod = place.pod.name_any(), %error, "a service account token could not be renewed");
                token.refresh_at = now + Duration::from_secs(10);
            }
        }
    }

    /// Where each of a container's mounts is on this machine, longest path first, so that the first match is the
    /// closest.
    pub(super) fn mounts(&self, container: &Container) -> Vec<(String, PathBuf)> {
        let mounts = container.volume_mounts.iter().flatten();
        let mut mounts: Vec<(String, PathBuf)> = mounts
            .map(|mount| {
                let dir = self.dir.join(&mount.name);
                let sub_path = mount.sub_path.as_deref().unwrap_or_default();
                (mount.mount_path.trim_end_matches('/').to_owned(), dir.join(sub_path))
            })
            .collect();
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        mounts
    }
}

/// A path inside a container as a path of this machine: a process has no file system of its own.
pub(super) fn outside(mounts: &[(String, PathBuf)], value: &str) -> String {
    for (mount, dir) in mounts {
        if let Some(rest) = value.strip_prefix(mount.as_str())
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return format!("{}{rest}", dir.display());
        }
    }
    value.to_owned()
}

impl Token {
    /// Asks for a token that is bound to the pod, and puts it in place in one step.
    async fn renew(&mut self, client: &kube::Client, place: &Place<'_>) -> anyhow::Result<()> {
        let pod = place.pod;
        let lifetime = self.projection.expiration_seconds.unwrap_or(3600);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: self.projection.audience.clone().map(|audience| vec![audience]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name_any()),
                    uid: pod.uid(),
                }),
                expiration_seconds: Some(lifetime),
            }),
            ..TokenRequest::default()
        };
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let account = account.unwrap_or_else(|| "default".to_owned());
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let token = accounts
            .create_token_request(&account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("token of service account {account}"))?;
        let token = token.status.and_then(|status| status.token).context("the API server answered without a token")?;
        replace(&self.file, token.as_bytes()).await?;
        self.refresh_at = Instant::now() + Duration::from_secs(lifetime.unsigned_abs()) * 4 / 5;
        Ok(())
    }
}

type Files = BTreeMap<String, Vec<u8>>;

async fn config_map(
    client: &kube::Client,
    place: &Place<'_>,
    name: &str,
    optional: Option<bool>,
    items: Option<&[KeyToPath]>,
) -> anyhow::Result<Files> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &place.pod.namespace().unwrap_or_default());
    let Some(map) = maps.get_opt(name).await? else { return absent("config map", name, optional) };
    let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    Ok(select(text.chain(binary).collect(), items))
}

async fn secret(
    client: &kube::Client,
    place: &Place<'_>,
    name: &str,
    optional: Option<bool>,
    items: Option<&[KeyToPath]>,
) -> anyhow::Result<Files> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &place.pod.namespace().unwrap_or_default());
    let Some(secret) = secrets.get_opt(name).await? else { return absent("secret", name, optional) };
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    Ok(select(data.collect(), items))
}

fn absent(kind: &str, name: &str, optional: Option<bool>) -> anyhow::Result<Files> {
    anyhow::ensure!(optional == Some(true), "{kind} {name:?} not found");
    Ok(Files::new())
}

fn select(mut files: Files, items: Option<&[KeyToPath]>) -> Files {
    match items {
        None => files,
        Some(items) => items.iter().filter_map(|item| Some((item.path.clone(), files.remove(&item.key)?))).collect(),
    }
}

fn downward(place: &Place<'_>, items: Option<&[DownwardAPIVolumeFile]>) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for item in items.into_iter().flatten() {
        if let Some(selector) = &item.field_ref {
            files.insert(item.path.clone(), field(place, &selector.field_path)?.into_bytes());
        }
    }
    Ok(files)
}

async fn write(dir: &Path, files: Files) -> anyhow::Result<()> {
    for (path, contents) in files {
        replace(&dir.join(path), &contents).await?;
    }
    Ok(())
}

/// Writes beside the file and renames, so that a reader sees the old or the new contents and nothing between.
async fn replace(file: &Path, contents: &[u8]) -> anyhow::Result<()> {
    if let Some(parent) = file.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    let beside = file.with_extension("new");
    tokio::fs::write(&beside, contents).await?;
    tokio::fs::rename(&beside, file).await.with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_path_segments_are_a_mount() {
        let mounts = vec![("/var/run/token".to_owned(), PathBuf::from("/tmp/pod/token"))];
        assert_eq!(outside(&mounts, "/var/run/token/file"), "/tmp/pod/token/file");
        assert_eq!(outside(&mounts, "/var/run/tokens"), "/var/run/tokens");
        assert_eq!(outside(&mounts, "eu-west-1"), "eu-west-1");
    }
}
