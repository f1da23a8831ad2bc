//! An OCI registry for the charts of the local cloud: read-only, anonymous, packed from folders when it opens.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
const LAYER: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";

/// Karpenter's chart is there in this version, too, so that a cluster can be moved from one to the other. It differs in
/// its version alone: labels, and the tag of the controller's image, of which there is one program.
const OTHER_KARPENTER: &str = "1.14.0";

/// The charts, packed.
#[derive(Debug, Default)]
pub struct Registry {
    /// By repository, for example `karpenter/karpenter`.
    repositories: BTreeMap<String, Repository>,
}

#[derive(Debug, Default)]
struct Repository {
    /// Digest by tag.
    tags: BTreeMap<String, String>,
    /// By digest.
    manifests: BTreeMap<String, Bytes>,
    /// By digest.
    blobs: BTreeMap<String, Bytes>,
}

impl Registry {
    /// Packs every chart of a folder as `<name>/<name>:<version>`, as its `Chart.yaml` says, and Karpenter's in one more
    /// version. The CRDs that Karpenter's chart carries are not kept beside it: they come from `crds`, where set-up put
    /// them.
    ///
    /// # Errors
    /// Where a folder cannot be read or a `Chart.yaml` lacks its name or version.
    pub fn open(charts: &Path, crds: &Path) -> anyhow::Result<Self> {
        let mut registry = Self::default();
        for chart in sorted(charts)?.into_iter().filter(|chart| chart.join("Chart.yaml").exists()) {
            let mut files = BTreeMap::new();
            collect(&chart, &chart, &mut files)?;
            let description = files.get("Chart.yaml").map(Vec::as_slice).unwrap_or_default();
            let description: Value = serde_saphyr::from_slice(description)
                .with_context(|| format!("read {}", chart.join("Chart.yaml").display()))?;
            let (Some(name), Some(version)) = (description["name"].as_str(), description["version"].as_str()) else {
                bail!("{} needs a name and a version", chart.join("Chart.yaml").display());
            };
            if name == "karpenter" {
                for crd in sorted(crds)? {
                    let file = crd.file_name().unwrap_or_default().to_string_lossy();
                    files.insert(format!("crds/{file}"), read(&crd)?);
                }
            }
            let repository = registry.repositories.entry(format!("{name}/{name}")).or_default();
            repository.add(version, &description, archive(name, &files)?);
            if name == "karpenter" {
                let mut other = description.clone();
                for field in ["version", "appVersion"] {
                    other[field] = json!(OTHER_KARPENTER);
                }
                files.insert("Chart.yaml".to_owned(), other.to_string().into_bytes());
                repository.add(OTHER_KARPENTER, &other, archive(name, &files)?);
            }
        }
        Ok(registry)
    }

    /// The registry's HTTP face: `/v2/`, manifests by tag and digest, blobs, tags.
    pub fn router(self) -> Router {
        Router::new().route("/v2/", get(|| async { "{}" })).route("/v2/{*rest}", get(serve)).with_state(Arc::new(self))
    }

    fn answer(&self, path: &str) -> Response {
        let [reference, kind, repository] = path.rsplitn(3, '/').collect::<Vec<_>>()[..] else {
            return refuse("NAME_INVALID", "a path needs a repository, a kind and a reference");
        };
        let Some(found) = self.repositories.get(repository) else {
            return refuse("NAME_UNKNOWN", &format!("the registry has no repository {repository}"));
        };
        match kind {
            "manifests" => {
                let digest = found.tags.get(reference).map_or(reference, String::as_str);
                match found.manifests.get(digest) {
                    Some(manifest) => content(MANIFEST, digest, manifest),
                    None => refuse("MANIFEST_UNKNOWN", &format!("{repository} has no manifest {reference}")),
                }
            }
            "blobs" => match found.blobs.get(reference) {
                Some(blob) => content("application/octet-stream", reference, blob),
                None => refuse("BLOB_UNKNOWN", &format!("{repository} has no blob {reference}")),
            },
            "tags" if reference == "list" => {
                let tags: Vec<&String> = found.tags.keys().collect();
                let body = json!({"name": repository, "tags": tags}).to_string();
                ([(header::CONTENT_TYPE, "application/json")], body).into_response()
            }
            _ => refuse("UNSUPPORTED", &format!("the registry does not serve {kind}")),
        }
    }
}

impl Repository {
    fn add(&mut self, tag: &str, description: &Value, layer: Vec<u8>) {
        let config = description.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": digest(&layer), "size": layer.len()}],
            "annotations": {
                "org.opencontainers.image.title": description["name"],
                "org.opencontainers.image.version": description["version"],
                "org.opencontainers.image.description": description["description"],
            },
        });
        let manifest = manifest.to_string().into_bytes();
        self.tags.insert(tag.to_owned(), digest(&manifest));
        self.manifests.insert(digest(&manifest), manifest.into());
        for blob in [config, layer] {
            self.blobs.insert(digest(&blob), blob.into());
        }
    }
}

async fn serve(State(registry): State<Arc<Registry>>, UrlPath(path): UrlPath<String>) -> Response {
    registry.answer(&path)
}

fn content(kind: &'static str, digest: &str, body: &Bytes) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(digest) = HeaderValue::from_str(digest) {
        headers.insert(HeaderName::from_static("docker-content-digest"), digest);
    }
    (headers, body.clone()).into_response()
}

fn refuse(code: &str, message: &str) -> Response {
    let body = json!({"errors": [{"code": code, "message": message, "detail": {}}]}).to_string();
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

/// The chart as `helm package` lays it out, the same bytes for the same files: no times, owners or modes of the
/// folder it came from.
fn archive(name: &str, files: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    // Helm expects Chart.yaml first, and reads no further when it only lists.
    let first = files.get_key_value("Chart.yaml");
    for (path, content) in first.into_iter().chain(files.iter().filter(|(path, _)| *path != "Chart.yaml")) {
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(content.len())?);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, format!("{name}/{path}"), content.as_slice()).context("pack a chart")?;
    }
    let tar = builder.into_inner().context("pack a chart")?;
    let mut zipped = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    zipped.write_all(&tar).context("compress a chart")?;
    zipped.finish().context("compress a chart")
}

/// Every file below a folder, by its path relative to the chart, `/` between the parts.
fn collect(chart: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> anyhow::Result<()> {
    for path in sorted(folder)? {
        if path.is_dir() {
            collect(chart, &path, files)?;
        } else {
            let parts = path.strip_prefix(chart)?.iter().map(|part| part.to_string_lossy());
            files.insert(parts.collect::<Vec<_>>().join("/"), read(&path)?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn sorted(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("read {}: `make setup` (or `python3 local/setup.py`) fills it", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read as _;

    use http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    fn folders() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let chart = dir.path().join("charts/karpenter");
        std::fs::create_dir_all(chart.join("templates")).unwrap();
        std::fs::create_dir_all(dir.path().join("crds")).unwrap();
        std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: karpenter\nversion: 1.14.1\n").unwrap();
        std::fs::write(chart.join("templates/service.yaml"), "kind: Service\n").unwrap();
        std::fs::write(dir.path().join("crds/nodepools.yaml"), "kind: CustomResourceDefinition\n").unwrap();
        dir
    }

    async fn fetch(dir: &tempfile::TempDir, path: &str) -> (StatusCode, Bytes) {
        let registry = Registry::open(&dir.path().join("charts"), &dir.path().join("crds")).unwrap();
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        let response = registry.router().oneshot(request).await.unwrap();
        (response.status(), response.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn a_chart_is_pulled_by_tag_and_by_digest() {
        let dir = folders();
        let (status, manifest) = fetch(&dir, "/v2/karpenter/karpenter/manifests/1.14.1").await;
        assert_eq!(status, StatusCode::OK);
        let by_digest = format!("/v2/karpenter/karpenter/manifests/{}", digest(&manifest));
        assert_eq!(fetch(&dir, &by_digest).await, (StatusCode::OK, manifest.clone()));
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["layers"][0]["mediaType"], LAYER);
        let layer = manifest["layers"][0]["digest"].as_str().unwrap();
        let (_, layer) = fetch(&dir, &format!("/v2/karpenter/karpenter/blobs/{layer}")).await;
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&layer[..]));
        let mut files = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.push(entry.path().unwrap().display().to_string());
        }
        assert_eq!(
            files,
            ["karpenter/Chart.yaml", "karpenter/crds/nodepools.yaml", "karpenter/templates/service.yaml"]
        );
    }

    #[tokio::test]
    async fn karpenters_chart_is_there_in_another_version_too() {
        let dir = folders();
        let (_, tags) = fetch(&dir, "/v2/karpenter/karpenter/tags/list").await;
        let tags: Value = serde_json::from_slice(&tags).unwrap();
        assert_eq!(tags["tags"], json!(["1.14.0", "1.14.1"]));
        let (_, manifest) = fetch(&dir, "/v2/karpenter/karpenter/manifests/1.14.0").await;
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap();
        let (_, config) = fetch(&dir, &format!("/v2/karpenter/karpenter/blobs/{config}")).await;
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!((&config["version"], &config["appVersion"]), (&json!("1.14.0"), &json!("1.14.0")));
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let dir = folders();
        let code = async |path: &str| {
            let (status, body) = fetch(&dir, path).await;
            assert_eq!(status, StatusCode::NOT_FOUND);
            serde_json::from_slice::<Value>(&body).unwrap()["errors"][0]["code"].as_str().unwrap().to_owned()
        };
        assert_eq!(code("/v2/karpenter/karpenter/manifests/9.9.9").await, "MANIFEST_UNKNOWN");
        assert_eq!(code("/v2/other/chart/manifests/1.0.0").await, "NAME_UNKNOWN");
        assert_eq!(code("/v2/karpenter/karpenter/blobs/sha256:00").await, "BLOB_UNKNOWN");
    }
}
