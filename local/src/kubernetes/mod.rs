//! Real Kubernetes control planes, one per cluster, and the machines that join them.

use std::path::PathBuf;

use async_trait::async_trait;

/// What a control plane is made for.
#[derive(Debug, Clone)]
pub struct NewControlPlane {
    /// The account that the cluster belongs to.
    pub account: String,
    /// Its region.
    pub region: String,
    /// The cluster's name: unique in account and region.
    pub name: String,
    /// The id in the cluster's endpoint and issuer, for example `0F1E2D3C4B5A69788796A5B4C3D2E1F0`.
    pub id: String,
    /// The Kubernetes version asked for, `1.36`. The component binaries have one version; this one is only reported.
    pub version: String,
    /// Where services get their addresses from, for example `172.20.0.0/16`.
    pub service_cidr: String,
    /// The issuer of service account tokens: `https://oidc.eks.<region>.amazonaws.com/id/<id>`.
    pub issuer: String,
    /// A plain http address on loopback that answers `TokenReview`s (v1): how IAM tokens log in.
    pub token_webhook_url: String,
}

/// A control plane that answers.
#[derive(Clone)]
pub struct ControlPlane {
    /// `https://127.0.0.1:<port>`.
    pub url: String,
    /// The authority that signed the server's certificate, PEM.
    pub certificate_authority_pem: String,
    /// The public keys of the service account token issuer, a JSON Web Key Set.
    pub jwks: serde_json::Value,
    /// A client that may do everything.
    pub admin: kube::Client,
    /// The cluster's folder: logs, certificates, `admin.kubeconfig`. Gone after [`ControlPlanes::stop`].
    pub dir: PathBuf,
}

/// Who makes control planes.
#[async_trait]
pub trait ControlPlanes: Send + Sync {
    /// Starts a control plane and returns when it is ready for use: it answers, and namespaces have their
    /// default service account.
    ///
    /// # Errors
    /// A component that is missing, ends or doesn't become ready in time, with its last log lines.
    async fn start(&self, cluster: NewControlPlane) -> anyhow::Result<ControlPlane>;

    /// Stops a control plane with everything that runs in its cluster, and removes its folder. Stopping what
    /// doesn't run is no error.
    async fn stop(&self, account: &str, region: &str, name: &str);
}

/// Who decides which machines may join a cluster: EKS, by the access entries of type `EC2_LINUX`.
#[async_trait]
pub trait NodeAuthority: Send + Sync {
    /// Whether instances of this role may join.
    async fn may_join(&self, account: &str, region: &str, cluster: &str, role_arn: &str) -> bool;
}
