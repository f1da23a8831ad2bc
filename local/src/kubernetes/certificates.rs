//! The certificates and keys of one cluster.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use time::{Duration, OffsetDateTime};

/// A certificate with its private key, both PEM.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The certificate.
    pub(crate) certificate: String,
    /// Its key, PKCS #8.
    pub(crate) key: String,
}

/// Everything that the parts of one cluster prove themselves with.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    /// The cluster's own authority: EKS has one per cluster, too.
    pub(crate) authority: String,
    /// The API server and the kubelets (they listen on loopback, on ports of their own).
    pub(crate) server: Identity,
    /// `system:masters`, for the local cloud itself.
    pub(crate) admin: Identity,
    /// What the API server shows to a kubelet.
    pub(crate) kubelet_client: Identity,
    /// The controller manager. A member of `system:masters`: without credentials of their own per controller
    /// it would be refused nearly everything, and the not-ready taint would never leave a node.
    pub(crate) controller_manager: Identity,
    /// The scheduler.
    pub(crate) scheduler: Identity,
    /// Signs service account tokens: RSA, for RS256 as on EKS.
    pub(crate) service_account: Identity,
}

/// Where the files of [`Certificates::write`] are.
#[derive(Debug, Clone)]
pub(crate) struct CertificateFiles {
    dir: PathBuf,
}

impl CertificateFiles {
    /// A certificate's or key's file: `ca.crt`, `server.key`, `service-account.pub`, …
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

impl Certificates {
    /// Makes a new authority and everything that it signs. `service_address` is the address of the service
    /// `kubernetes`, the first of the cluster's service range.
    ///
    /// # Errors
    /// Only what the cryptographic library refuses.
    pub(crate) fn generate(service_address: Ipv4Addr) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        valid_for_a_year(&mut params);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let client = |organisation: Option<&str>, name: &str| signed(&authority, organisation, name, &[]);
        let names = [
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(service_address.into()),
            SanType::DnsName("localhost".try_into()?),
            SanType::DnsName("kubernetes.default.svc".try_into()?),
        ];
        let service_account = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        Ok(Self {
            server: signed(&authority, None, "kube-apiserver", &names)?,
            admin: client(Some("system:masters"), "kubernetes-admin")?,
            kubelet_client: client(Some("system:masters"), "kube-apiserver-kubelet-client")?,
            controller_manager: client(Some("system:masters"), "system:kube-controller-manager")?,
            scheduler: client(None, "system:kube-scheduler")?,
            service_account: Identity {
                certificate: service_account.public_key_pem(),
                key: service_account.serialize_pem(),
            },
            authority: authority.pem(),
        })
    }

    /// Writes what the components read from files into `dir`, which is made.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<CertificateFiles> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let files = [
            ("ca.crt", &self.authority),
            ("server.crt", &self.server.certificate),
            ("server.key", &self.server.key),
            ("kubelet-client.crt", &self.kubelet_client.certificate),
            ("kubelet-client.key", &self.kubelet_client.key),
            ("service-account.pub", &self.service_account.certificate),
            ("service-account.key", &self.service_account.key),
        ];
        for (name, contents) in files {
            let path = dir.join(name);
            std::fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(CertificateFiles { dir: dir.to_owned() })
    }
}

fn signed(
    authority: &CertifiedIssuer<'_, KeyPair>,
    organisation: Option<&str>,
    name: &str,
    names: &[SanType],
) -> anyhow::Result<Identity> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    params.subject_alt_names = names.to_vec();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![if names.is_empty() { ExtendedKeyUsagePurpose::ClientAuth } else { ExtendedKeyUsagePurpose::ServerAuth }];
    params.use_authority_key_identifier_extension = true;
    valid_for_a_year(&mut params);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A little into the past, because a guest's clock may be set back while a cluster runs.
fn valid_for_a_year(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(365);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;

    #[test]
    fn every_certificate_is_signed_by_the_clusters_authority() {
        let certificates = Certificates::generate(Ipv4Addr::new(172, 20, 0, 1)).unwrap();
        let der = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
        let authority = der(&certificates.authority);
        let (_, authority) = X509Certificate::from_der(&authority).unwrap();
        for identity in [&certificates.server, &certificates.admin, &certificates.scheduler] {
            let leaf = der(&identity.certificate);
            let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
            assert_eq!(leaf.issuer(), authority.subject());
            assert!(leaf.validity().is_valid());
        }
        assert!(certificates.service_account.certificate.contains("BEGIN PUBLIC KEY"));
    }
}
