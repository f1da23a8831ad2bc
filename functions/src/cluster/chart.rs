//! Karpenter's chart out of an OCI registry, anonymously.

use std::time::Duration;

use oci_client::Reference;
use oci_client::client::{Client, ClientConfig};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use slipway_statemachine::{ErrorName, StepError};

/// The one layer of a chart, as Helm pushes it.
const CHART_LAYER: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";

/// Bytes that a packed chart may have.
const LARGEST: i64 = 10 << 20;

/// A chart as it was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The manifest's digest, `sha256:…`: what the tag meant when it was pulled.
    pub digest: String,
    /// The gzipped tar.
    pub bytes: Vec<u8>,
}

/// Pulls `chart` (`oci://…`, without tag) in a version, which is a tag or a digest. Proxies of the environment are
/// honoured, and so is SSL_CERT_FILE.
///
/// # Errors
/// `ChartNotFound` names chart and version; `AwsUnavailable` if the registry does not answer.
pub async fn pull(chart: &str, version: &str) -> Result<Pulled, StepError> {
    let reference = reference(chart, version)?;
    let failed = |error: OciDistributionError| refused(chart, version, &error);
    let client = client().map_err(failed)?;
    let (manifest, digest) = client.pull_image_manifest(&reference, &RegistryAuth::Anonymous).await.map_err(failed)?;
    let no_chart = |what: String| {
        StepError::new(ErrorName::ChartNotFound, format!("{chart} in version {version} is no Helm chart: {what}."))
    };
    let layer = manifest
        .layers
        .iter()
        .find(|layer| layer.media_type == CHART_LAYER)
        .ok_or_else(|| no_chart(format!("it has no layer of type {CHART_LAYER}")))?;
    if layer.size > LARGEST {
        return Err(no_chart(format!("it has {} bytes", layer.size)));
    }
    let mut bytes = Vec::new();
    client.pull_blob(&reference, layer, &mut bytes).await.map_err(failed)?;
    Ok(Pulled { digest, bytes })
}

/// Whether a chart can be pulled: asks for its manifest's digest alone.
///
/// # Errors
/// As [`pull`].
pub async fn reachable(chart: &str, version: &str) -> Result<(), StepError> {
    let reference = reference(chart, version)?;
    let failed = |error: OciDistributionError| refused(chart, version, &error);
    let client = client().map_err(failed)?;
    client.fetch_manifest_digest(&reference, &RegistryAuth::Anonymous).await.map_err(failed)?;
    Ok(())
}

fn client() -> Result<Client, OciDistributionError> {
    Client::try_from(ClientConfig {
        read_timeout: Some(Duration::from_secs(20)),
        connect_timeout: Some(Duration::from_secs(5)),
        ..ClientConfig::default()
    })
}

/// The OCI reference of a chart. A `+` in a version is written `_`, since tags know none (Helm's rule).
fn reference(chart: &str, version: &str) -> Result<Reference, StepError> {
    let wrong = |rule: &str| {
        StepError::new(ErrorName::ChartNotFound, format!("{chart} in version {version} cannot be pulled: {rule}."))
    };
    let name = chart.strip_prefix("oci://").ok_or_else(|| wrong("karpenter.chart must begin with oci://"))?;
    let whole = if version.starts_with("sha256:") {
        format!("{name}@{version}")
    } else {
        format!("{name}:{}", version.replace('+', "_"))
    };
    whole.parse().map_err(|error| wrong(&format!("{whole} is no OCI reference, {error}")))
}

fn refused(chart: &str, version: &str, error: &OciDistributionError) -> StepError {
    let missing = match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::RegistryError { envelope, .. } => envelope.errors.iter().any(|error| {
            matches!(error.code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound)
        }),
        OciDistributionError::ServerError { code, .. } => *code == 404,
        _ => false,
    };
    if missing {
        let cause = format!("The registry has no chart {chart} in version {version}.");
        return StepError::new(ErrorName::ChartNotFound, cause);
    }
    let denied = matches!(
        error,
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_)
    );
    let mut reason: &dyn std::error::Error = error;
    while let Some(deeper) = reason.source() {
        reason = deeper;
    }
    let cause = format!("Chart {chart} in version {version} cannot be pulled: {reason}.");
    if denied {
        StepError::new(ErrorName::ChartNotFound, cause)
            .remedy("Charts are pulled without credentials: copy it to a registry that allows that.")
    } else {
        StepError::new(ErrorName::AwsUnavailable, cause)
            .remedy("Check that the registry can be reached, and start again.")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_tag_or_a_digest() {
        let chart = "oci://public.ecr.aws/karpenter/karpenter";
        let whole = |version: &str| reference(chart, version).unwrap().whole();
        assert_eq!(whole("1.14.1"), "public.ecr.aws/karpenter/karpenter:1.14.1");
        assert_eq!(whole("1.14.1+build"), "public.ecr.aws/karpenter/karpenter:1.14.1_build");
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(whole(&digest), format!("public.ecr.aws/karpenter/karpenter@{digest}"));
    }

    #[test]
    fn what_is_no_oci_chart_says_so() {
        let error = reference("https://charts.karpenter.sh", "1.14.1").unwrap_err();
        assert_eq!(error.name, ErrorName::ChartNotFound);
        assert!(error.cause.contains("must begin with oci://"), "{}", error.cause);
        assert!(reference("oci://public.ecr.aws/karpenter", "no such tag").is_err());
    }

    #[test]
    fn a_missing_tag_names_chart_and_version() {
        let error =
            refused("oci://r/karpenter", "9.9.9", &OciDistributionError::ImageManifestNotFoundError("x".into()));
        assert_eq!(error.name, ErrorName::ChartNotFound);
        assert_eq!(error.cause, "The registry has no chart oci://r/karpenter in version 9.9.9.");
        let error = refused(
            "oci://r/karpenter",
            "1",
            &OciDistributionError::ServerError { code: 503, url: "https://r".to_owned(), message: "busy".to_owned() },
        );
        assert_eq!(error.name, ErrorName::AwsUnavailable);
    }
}
