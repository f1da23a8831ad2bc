//! The only way out: an HTTPS proxy that serves the few public names that the product speaks to, and no other.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::Router;
use axum::extract::Request as AxumRequest;
use axum::response::{IntoResponse as _, Response};
use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// What an issuer serves at `<host>/<path>` (no scheme): its discovery document or its keys. `None` where there is
/// no such issuer, or not yet.
pub type IssuerDocuments = Arc<dyn Fn(&str) -> Option<Value> + Send + Sync>;

/// What the proxy serves.
pub struct ProxyConfig {
    /// Where the certificate of the cloud's own authority is written.
    pub dir: PathBuf,
    /// Behind `oidc.eks.<region>.amazonaws.com`.
    pub issuers: IssuerDocuments,
    /// Behind `public.ecr.aws`.
    pub registry: Router,
}

/// A running proxy; gone when dropped.
pub struct Proxy {
    address: SocketAddr,
    certificates: PathBuf,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Makes an authority of its own and listens on a loopback port.
    ///
    /// # Errors
    /// Where the port or the certificate's file cannot be had.
    pub async fn start(config: ProxyConfig) -> anyhow::Result<Self> {
        let authority = Authority::create().context("make the cloud's certificate authority")?;
        let certificates = config.dir.join("ca.pem");
        std::fs::write(&certificates, authority.issuer.pem())
            .with_context(|| format!("write {}", certificates.display()))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen for the proxy")?;
        let address = listener.local_addr().context("ask for the proxy's port")?;
        let names = Arc::new(Names { authority, registry: config.registry, issuers: issuer_router(config.issuers) });
        let task = tokio::spawn(accept(listener, names));
        Ok(Self { address, certificates, task })
    }

    /// For `HTTPS_PROXY`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// For `SSL_CERT_FILE`: the authority's certificate and no other, since nothing else is reached by TLS.
    #[must_use]
    pub fn certificates(&self) -> &Path {
        &self.certificates
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Server configurations by host name.
    leaves: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

impl Authority {
    fn create() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Slipway local cloud");
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?, leaves: Mutex::default() })
    }

    fn server(&self, host: &str) -> anyhow::Result<Arc<ServerConfig>> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = leaves.get(host) {
            return Ok(known.clone());
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let chain = vec![leaf.der().clone(), self.issuer.der().clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        leaves.insert(host.to_owned(), config.clone());
        Ok(config)
    }
}

struct Names {
    authority: Authority,
    registry: Router,
    issuers: Router,
}

impl Names {
    /// What is behind `host:port`.
    fn find(&self, target: &str) -> Option<(String, Router)> {
        let host = target.strip_suffix(":443")?.to_ascii_lowercase();
        let region = host.strip_prefix("oidc.eks.").and_then(|rest| rest.strip_suffix(".amazonaws.com"));
        let router = if host == "public.ecr.aws" {
            &self.registry
        } else if region.is_some_and(|region| !region.is_empty() && !region.contains('.')) {
            &self.issuers
        } else {
            return None;
        };
        Some((host, router.clone()))
    }
}

async fn accept(listener: TcpListener, names: Arc<Names>) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream, names.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, names: Arc<Names>) {
    let tunnel = Arc::new(Mutex::new(None));
    let opened = tunnel.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (names, opened) = (names.clone(), opened.clone());
        async move {
            let target = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            if request.method() != Method::CONNECT {
                return Ok::<_, std::convert::Infallible>(refuse(request.uri().to_string().as_str()));
            }
            let Some((host, router)) = names.find(&target) else { return Ok(refuse(&target)) };
            let config = match names.authority.server(&host) {
                Ok(config) => config,
                Err(error) => return Ok((StatusCode::BAD_GATEWAY, error.to_string()).into_response()),
            };
            let wanted = (hyper::upgrade::on(request), config, router);
            *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted);
            Ok(StatusCode::OK.into_response())
        }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if connection.with_upgrades().await.is_err() {
        return;
    }
    let wanted = tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, config, router)) = wanted
        && let Ok(upgraded) = upgrade.await
    {
        inside(upgraded, config, router).await;
    }
}

/// The TLS connection within the tunnel. A client that goes away, or does not trust the authority, is no error of ours.
async fn inside(upgraded: Upgraded, config: Arc<ServerConfig>, router: Router) {
    let Ok(stream) = TlsAcceptor::from(config).accept(TokioIo::new(upgraded)).await else { return };
    let service = TowerToHyperService::new(router);
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection through the proxy ended early");
    }
}

fn refuse(target: &str) -> Response {
    let text = format!(
        "The local cloud does not let {target} out. Its proxy serves public.ecr.aws and oidc.eks.<region>.amazonaws.com, \
         port 443; docs/local-cloud.md says why.\n"
    );
    (StatusCode::FORBIDDEN, text).into_response()
}

fn issuer_router(documents: IssuerDocuments) -> Router {
    Router::new().fallback(move |request: AxumRequest| {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        let found = documents(&format!("{}{}", host.trim_end_matches(":443"), request.uri().path()));
        async move {
            match found {
                Some(document) => ([(header::CONTENT_TYPE, "application/json")], document.to_string()).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    async fn proxy(dir: &Path) -> (Proxy, reqwest::Client) {
        let issuers: IssuerDocuments =
            Arc::new(|path| (path == "oidc.eks.eu-west-1.amazonaws.com/id/A/keys").then(|| json!({"keys": []})));
        let registry = Router::new().route("/v2/", axum::routing::get(|| async { "{}" }));
        let proxy = Proxy::start(ProxyConfig { dir: dir.to_owned(), issuers, registry }).await.unwrap();
        let pem = std::fs::read(proxy.certificates()).unwrap();
        let client = reqwest::Client::builder()
            .proxy(reqwest::Proxy::https(proxy.url()).unwrap())
            .tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()])
            .build()
            .unwrap();
        (proxy, client)
    }

    #[tokio::test]
    async fn the_known_names_are_served_over_tls() {
        let dir = tempfile::tempdir().unwrap();
        let (_proxy, client) = proxy(dir.path()).await;
        let text = async |url: &str| {
            let response = client.get(url).send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        };
        assert_eq!(text("https://public.ecr.aws/v2/").await, (200, "{}".to_owned()));
        let keys = "https://oidc.eks.eu-west-1.amazonaws.com/id/A/keys";
        assert_eq!(text(keys).await, (200, "{\"keys\":[]}".to_owned()));
        assert_eq!(text("https://oidc.eks.eu-west-1.amazonaws.com/id/B/keys").await.0, 404);
    }

    #[tokio::test]
    async fn no_other_name_gets_out() {
        let dir = tempfile::tempdir().unwrap();
        let (proxy, client) = proxy(dir.path()).await;
        for url in ["https://example.com/", "https://public.ecr.aws:8443/", "https://oidc.eks.a.b.amazonaws.com/"] {
            assert!(client.get(url).send().await.is_err(), "{url}");
        }
        let plain = reqwest::Client::builder().proxy(reqwest::Proxy::http(proxy.url()).unwrap()).build().unwrap();
        let refused = plain.get("http://example.com/").send().await.unwrap();
        assert_eq!(refused.status(), 403);
        assert!(refused.text().await.unwrap().contains("does not let http://example.com/ out"));
    }
}
