//! The kubelets' port: containers' logs, for the API server and nobody else.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::ContainerStatus;
use kube::ResourceExt as _;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Cluster;
use super::containers::log_file;
use super::images::Image;
use crate::kubernetes::certificates::Certificates;

/// What the log of a container says that is not run.
const NOT_RUN: &str = "slipway: this container is not run; the local cloud only takes its pod to Running\n";

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(500);

/// The listener of all kubelets of a cluster: they have the same address, as they have the same machine.
pub(super) struct Server {
    listener: TcpListener,
    port: u16,
    acceptor: TlsAcceptor,
}

impl Server {
    /// Listens on a free port of loopback, for clients that the cluster's authority signed.
    pub(super) async fn bind(certificates: &Certificates) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificates.authority.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let certificate = CertificateDer::from_pem_slice(certificates.server.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(certificates.server.key.as_bytes())?;
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate], key)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port for the kubelets")?;
        Ok(Self { port: listener.local_addr()?.port(), listener, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) async fn run(self, cluster: Arc<Cluster>) {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/containerLogs/{namespace}/{pod}/{container}", get(logs))
            .with_state(cluster.clone());
        loop {
            let Ok((connection, _)) = self.listener.accept().await else {
                // Out of file descriptors: others may close some.
                tokio::time::sleep(FOLLOW).await;
                continue;
            };
            let (acceptor, router) = (self.acceptor.clone(), router.clone());
            cluster.spawn(async move {
                let connection = match acceptor.accept(connection).await {
                    Ok(connection) => connection,
                    Err(error) => return tracing::debug!(%error, "a kubelet refused a client"),
                };
                let service = TowerToHyperService::new(router);
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a kubelet's connection broke");
                }
            });
        }
    }
}

/// What `kubectl logs` asks for; `timestamps` and the options about time are ignored, as logs carry no time of ours.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Options {
    follow: bool,
    previous: bool,
    tail_lines: Option<usize>,
    limit_bytes: Option<usize>,
}

async fn logs(
    State(cluster): State<Arc<Cluster>>,
    UrlPath((namespace, pod, container)): UrlPath<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    match find(&cluster, &namespace, &pod, &container, options.previous) {
        Ok(Log::NotRun) => NOT_RUN.into_response(),
        Ok(Log::File(file)) => match read(&file, &options).await {
            Ok(body) => body.into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {error}", file.display())).into_response(),
        },
        Err((status, message)) => (status, message).into_response(),
    }
}

enum Log {
    File(PathBuf),
    NotRun,
}

/// Which log is meant, or the kubelet's words for why there is none.
fn find(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    container: &str,
    previous: bool,
) -> Result<Log, (StatusCode, String)> {
    let refuse =
        |why: &str| Err((StatusCode::BAD_REQUEST, format!("container \"{container}\" in pod \"{pod}\" {why}")));
    let Some(found) = cluster.find(namespace, pod) else {
        return Err((StatusCode::NOT_FOUND, format!("pod \"{namespace}/{pod}\" not found")));
    };
    let spec = found.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref());
    if init.is_some_and(|list| list.iter().any(|one| one.name == container)) {
        return Ok(Log::NotRun);
    }
    let image =
        spec.and_then(|spec| spec.containers.iter().find(|one| one.name == container)).map(|one| one.image.clone());
    let Some(image) = image else { return refuse("is not there") };
    if let Image::Program(_) = Image::of(image.as_deref().unwrap_or_default()) {
        let statuses = found.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        let status = statuses.and_then(|list| list.iter().find(|one| one.name == container));
        let life = status.map_or(0, |status| latest_life(status) - i32::from(previous));
        let file = log_file(&cluster.pod_dir(&found.uid().unwrap_or_default()), container, life);
        return match (previous, file.exists()) {
            (_, true) => Ok(Log::File(file)),
            (true, false) => refuse("has no previous terminated container"),
            (false, false) => refuse("is waiting to start: ContainerCreating"),
        };
    }
    if previous { refuse("has no previous terminated container") } else { Ok(Log::NotRun) }
}

/// The number of the life that ran last: a container that waits for its restart still shows the one before.
fn latest_life(status: &ContainerStatus) -> i32 {
    let waiting = status.state.as_ref().is_some_and(|state| state.waiting.is_some());
    (status.restart_count - i32::from(waiting)).max(0)
}

async fn read(file: &Path, options: &Options) -> std::io::Result<Body> {
    let mut open = tokio::fs::File::open(file).await?;
    let mut text = Vec::new();
    open.read_to_end(&mut text).await?;
    let mut text = tail(&text, options.tail_lines);
    if let Some(limit) = options.limit_bytes {
        text = &text[..text.len().min(limit)];
    }
    let head = Bytes::copy_from_slice(text);
    if !options.follow {
        return Ok(Body::from(head));
    }
    let rest = futures::stream::try_unfold((open, file.to_owned(), head), |(mut open, file, head)| async move {
        if !head.is_empty() {
            return Ok(Some((head, (open, file, Bytes::new()))));
        }
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = open.read(&mut buffer).await?;
            if read > 0 {
                buffer.truncate(read);
                return std::io::Result::Ok(Some((Bytes::from(buffer), (open, file, Bytes::new()))));
            }
            // The log goes with its pod.
            if !file.exists() {
                return Ok(None);
            }
            tokio::time::sleep(FOLLOW).await;
        }
    });
    Ok(Body::from_stream(rest))
}

fn tail(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return text };
    if lines == 0 {
        return &[];
    }
    let end = text.strip_suffix(b"\n").unwrap_or(text);
    let mut breaks = end.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    &text[breaks.nth(lines - 1).unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let log = b"one\ntwo\nthree\n";
        assert_eq!(tail(log, None), log);
        assert_eq!(tail(log, Some(2)), b"two\nthree\n");
        assert_eq!(tail(log, Some(9)), log);
        assert_eq!(tail(log, Some(0)), b"");
    }
}
