//! The two doors that clusters' API servers knock at, both on loopback: plain http for logins, https for the
//! injection of identities (an API server calls admission webhooks by https only).

use std::net::TcpListener;
use std::sync::{Arc, Weak};

use anyhow::Context;
use axum::extract::{Path, State};
use axum::routing::post;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Eks;
use super::state::ClusterId;

/// Where the webhooks are.
#[derive(Debug)]
pub(super) struct Webhooks {
    logins: String,
    injection: String,
    /// The certificate of the https door is its own authority.
    certificate_pem: String,
}

/// The ports, opened and not yet served.
pub(super) struct Listeners {
    logins: TcpListener,
    injection: TcpListener,
    tls: Arc<ServerConfig>,
}

type Cluster = Path<(String, String, String)>;

/// Opens both ports.
pub(super) fn bind() -> anyhow::Result<(Webhooks, Listeners)> {
    let open = || -> anyhow::Result<(TcpListener, String)> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        Ok((listener, address))
    };
    let ((logins, login_address), (injection, injection_address)) = (open()?, open()?);
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let webhooks = Webhooks {
        logins: format!("http://{login_address}"),
        injection: format!("https://{injection_address}"),
        certificate_pem: made.cert.pem(),
    };
    Ok((webhooks, Listeners { logins, injection, tls: Arc::new(tls) }))
}

impl Webhooks {
    /// Where a cluster's API server sends token reviews.
    pub(super) fn token_url(&self, id: &ClusterId) -> String {
        format!("{}/{}/{}/{}", self.logins, id.account, id.region, id.name)
    }

    /// Where a cluster's API server sends new pods.
    pub(super) fn injection_url(&self, id: &ClusterId) -> String {
        format!("{}/{}/{}/{}", self.injection, id.account, id.region, id.name)
    }

    /// What the https door's certificate is checked against.
    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }
}

impl Listeners {
    /// Serves both doors until EKS ends.
    pub(super) fn serve(self, eks: &Arc<Eks>) {
        let ending = eks.ending.clone();
        let logins = Router::new().route("/{account}/{region}/{name}", post(login)).with_state(Arc::downgrade(eks));
        let injection = Router::new().route("/{account}/{region}/{name}", post(inject)).with_state(Arc::downgrade(eks));
        eks.go_on(async move {
            if let Err(error) = serve_plain(self.logins, logins).await {
                tracing::error!("logins to clusters are not served: {error:#}");
            }
        });
        eks.go_on(async move {
            if let Err(error) = serve_tls(self.injection, self.tls, injection, ending).await {
                tracing::error!("identities are not injected: {error:#}");
            }
        });
    }
}

async fn serve_plain(listener: TcpListener, routes: Router) -> anyhow::Result<()> {
    axum::serve(tokio::net::TcpListener::from_std(listener)?, routes).await.context("serving http")
}

async fn serve_tls(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    routes: Router,
    ending: CancellationToken,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, routes, ending) = (acceptor.clone(), routes.clone(), ending.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let builder = auto::Builder::new(TokioExecutor::new());
            let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            // A connection that breaks is the API server's to repeat.
            tokio::select! {
                () = ending.cancelled() => {}
                _ = served => {}
            }
        });
    }
}

async fn login(
    State(eks): State<Weak<Eks>>,
    Path((account, region, name)): Cluster,
    Json(review): Json<Value>,
) -> Json<Value> {
    match eks.upgrade() {
        Some(eks) => Json(eks.review_token(&ClusterId { account, region, name }, &review).await),
        None => Json(Value::Null),
    }
}

async fn inject(
    State(eks): State<Weak<Eks>>,
    Path((account, region, name)): Cluster,
    Json(review): Json<Value>,
) -> Json<Value> {
    match eks.upgrade() {
        Some(eks) => Json(eks.admit_pod(&ClusterId { account, region, name }, &review).await),
        None => Json(Value::Null),
    }
}
