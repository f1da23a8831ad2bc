//! Clusters without a control plane, for what ends before Kubernetes is spoken to.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use async_trait::async_trait;
use serde_json::json;

use super::certificates::Certificates;
use super::control_plane::{client, kubeconfig};
use super::{ControlPlane, ControlPlanes, NewControlPlane};

/// Where nobody answers: port 9 is that of the discard protocol, which no machine serves any more.
const NOWHERE: &str = "https://127.0.0.1:9";

/// Control planes that start at once and never answer.
#[derive(Debug)]
pub struct AbsentControlPlanes {
    dir: PathBuf,
}

impl AbsentControlPlanes {
    /// Control planes whose (empty) folders would be in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

#[async_trait]
impl ControlPlanes for AbsentControlPlanes {
    async fn start(&self, cluster: NewControlPlane) -> anyhow::Result<ControlPlane> {
        let certificates = tokio::task::spawn_blocking(|| Certificates::generate(Ipv4Addr::LOCALHOST)).await??;
        Ok(ControlPlane {
            url: NOWHERE.to_owned(),
            admin: client(kubeconfig(NOWHERE, &certificates.authority, &certificates.admin)).await?,
            certificate_authority_pem: certificates.authority,
            jwks: json!({ "keys": [] }),
            dir: self.dir.join(cluster.account).join(cluster.region).join(cluster.name),
        })
    }

    async fn stop(&self, _account: &str, _region: &str, _name: &str) {}
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_answers() {
        let cluster = NewControlPlane {
            account: "111122223333".to_owned(),
            region: "eu-west-1".to_owned(),
            name: "demo".to_owned(),
            id: "ABC".to_owned(),
            version: "1.36".to_owned(),
            service_cidr: "172.20.0.0/16".to_owned(),
            issuer: "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC".to_owned(),
            token_webhook_url: "http://127.0.0.1:9/".to_owned(),
        };
        let plane = AbsentControlPlanes::new(PathBuf::from("/nowhere")).start(cluster).await.unwrap();
        assert!(plane.admin.apiserver_version().await.is_err());
    }
}
