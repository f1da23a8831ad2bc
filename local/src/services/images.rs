//! The machine images that EKS and Bottlerocket publish, as EC2 and SSM show them.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::eks::versions::KUBERNETES;

/// The build date of the EKS images.
const BUILD: &str = "20261110";
const BOTTLEROCKET: &str = "1.50.0";
/// The first eight digits of Bottlerocket's commit, a part of its images' names.
const BOTTLEROCKET_COMMIT: &str = "5c0e2a71";

/// Who made an image, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Amazon Linux 2023 with EKS's node software.
    Al2023,
    /// Bottlerocket's aws-k8s variant.
    Bottlerocket,
}

/// One image. The same in every account and region of the local cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `ami-` and 17 digits.
    pub id: String,
    /// Of Amazon Linux or Bottlerocket.
    pub family: Family,
    /// EC2's name: `x86_64` or `arm64`.
    pub architecture: &'static str,
    /// Kubernetes minor.
    pub kubernetes: &'static str,
    /// `amazon-eks-node-al2023-arm64-standard-1.36-v20261110`
    pub name: String,
    /// What SSM calls `release_version` (`1.36.3-20261110`) or `image_version` (`1.50.0`).
    pub release: String,
}

/// Every image: one of each family and architecture for each Kubernetes minor that EKS has.
#[must_use]
pub fn all() -> Vec<Image> {
    let mut images = Vec::new();
    for version in KUBERNETES {
        let (kubernetes, patch) = (version.minor, version.patch);
        for architecture in ["x86_64", "arm64"] {
            let name = format!("amazon-eks-node-al2023-{architecture}-standard-{kubernetes}-v{BUILD}");
            images.push(image(Family::Al2023, architecture, kubernetes, name, format!("{patch}-{BUILD}")));
            let machine = if architecture == "arm64" { "aarch64" } else { architecture };
            let name = format!("bottlerocket-aws-k8s-{kubernetes}-{machine}-v{BOTTLEROCKET}-{BOTTLEROCKET_COMMIT}");
            images.push(image(Family::Bottlerocket, architecture, kubernetes, name, BOTTLEROCKET.to_owned()));
        }
    }
    images
}

fn image(family: Family, architecture: &'static str, kubernetes: &'static str, name: String, release: String) -> Image {
    let id = format!("ami-{}", &hex::encode(Sha256::digest(name.as_bytes()))[..17]);
    Image { id, family, architecture, kubernetes, name, release }
}

/// Writes the images as moto reads them when it starts with `MOTO_AMIS_PATH` set. RegisterImage would lose the
/// architecture.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(path: &Path) -> std::io::Result<()> {
    let images: Vec<Value> = all().iter().map(as_moto_reads).collect();
    std::fs::write(path, Value::Array(images).to_string())
}

fn as_moto_reads(image: &Image) -> Value {
    let (owner, description) = match image.family {
        Family::Al2023 => (
            "602401143452",
            format!("EKS-optimized Kubernetes node based on Amazon Linux 2023, (k8s: {})", image.kubernetes),
        ),
        Family::Bottlerocket => ("092701018921", format!("{} [{}]", image.name, image.architecture)),
    };
    json!({
        "ami_id": image.id,
        "state": "available",
        "public": true,
        "owner_id": owner,
        "image_location": format!("amazon/{}", image.name),
        "sriov": "simple",
        "root_device_type": "ebs",
        "root_device_name": "/dev/xvda",
        "description": description,
        "image_type": "machine",
        "platform": null,
        "architecture": image.architecture,
        "name": image.name,
        "virtualization_type": "hvm",
        "hypervisor": "xen",
        "creation_date": "2026-11-10T18:21:07.000Z",
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_image_has_an_id_of_its_own() {
        let images = all();
        let ids: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        assert_eq!(ids.len(), KUBERNETES.len() * 4);
        assert!(ids.iter().all(|id| id.len() == 21));
        assert!(images.iter().any(|image| image.name == "amazon-eks-node-al2023-arm64-standard-1.36-v20261110"));
    }
}
