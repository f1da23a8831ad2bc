//! Which Kubernetes versions EKS has, and which versions of which add-on fit them.

use serde_json::{Value, json};
use time::Date;
use time::macros::date;

use super::{AwsError, Request, invalid};

/// One Kubernetes minor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KubernetesVersion {
    pub(crate) minor: &'static str,
    pub(crate) patch: &'static str,
    /// Release, end of standard support, end of extended support.
    dates: [Date; 3],
    status: Support,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Support {
    Standard,
    Extended,
}

/// What CreateCluster takes when nobody says.
pub(super) const DEFAULT_VERSION: &str = "1.36";

/// Newest first. Standard support lasts 14 months, extended support 12 more.
pub(crate) const KUBERNETES: &[KubernetesVersion] = &[
    KubernetesVersion {
        minor: "1.36",
        patch: "1.36.3",
        dates: [date!(2026 - 06 - 18), date!(2027 - 08 - 18), date!(2028 - 08 - 18)],
        status: Support::Standard,
    },
    KubernetesVersion {
        minor: "1.35",
        patch: "1.35.6",
        dates: [date!(2026 - 01 - 27), date!(2027 - 03 - 27), date!(2028 - 03 - 27)],
        status: Support::Standard,
    },
    KubernetesVersion {
        minor: "1.34",
        patch: "1.34.9",
        dates: [date!(2025 - 10 - 02), date!(2026 - 12 - 02), date!(2027 - 12 - 02)],
        status: Support::Standard,
    },
    KubernetesVersion {
        minor: "1.33",
        patch: "1.33.12",
        dates: [date!(2025 - 05 - 29), date!(2026 - 07 - 29), date!(2027 - 07 - 29)],
        status: Support::Extended,
    },
];

/// One add-on: what it runs in the cluster as, and its versions per Kubernetes minor.
#[derive(Debug, Clone, Copy)]
pub(super) struct AddonKind {
    pub(super) name: &'static str,
    /// `networking`, `storage`, …
    kind: &'static str,
    pub(super) workload: Workload,
    /// The image, without registry and tag.
    pub(super) image: &'static str,
    pub(super) service_account: &'static str,
    /// The managed policy that EKS recommends for its service account, if it needs AWS at all.
    policy: Option<&'static str>,
    versions: Versions,
}

/// What an add-on runs as in the cluster.
#[derive(Debug, Clone, Copy)]
pub(super) enum Workload {
    /// A DaemonSet of this name.
    DaemonSet(&'static str),
    /// A Deployment of this name with two replicas.
    Deployment(&'static str),
}

/// How an add-on's versions relate to the cluster's.
#[derive(Debug, Clone, Copy)]
enum Versions {
    /// The same ones for all, newest first; the first is the default.
    Same(&'static [&'static str]),
    /// Built of each Kubernetes minor's patch, with this suffix (kube-proxy).
    OfKubernetes(&'static str),
}

/// The add-ons that the local cloud has.
pub(super) const ADDONS: &[AddonKind] = &[
    AddonKind {
        name: "vpc-cni",
        kind: "networking",
        workload: Workload::DaemonSet("aws-node"),
        image: "amazon-k8s-cni",
        service_account: "aws-node",
        policy: Some("AmazonEKS_CNI_Policy"),
        versions: Versions::Same(&["v1.21.1-eksbuild.3", "v1.20.5-eksbuild.1"]),
    },
    AddonKind {
        name: "kube-proxy",
        kind: "networking",
        workload: Workload::DaemonSet("kube-proxy"),
        image: "eks/kube-proxy",
        service_account: "kube-proxy",
        policy: None,
        versions: Versions::OfKubernetes("eksbuild.2"),
    },
    AddonKind {
        name: "coredns",
        kind: "networking",
        workload: Workload::Deployment("coredns"),
        image: "eks/coredns",
        service_account: "coredns",
        policy: None,
        versions: Versions::Same(&["v1.13.2-eksbuild.1", "v1.12.4-eksbuild.1"]),
    },
    AddonKind {
        name: "eks-pod-identity-agent",
        kind: "security",
        workload: Workload::DaemonSet("eks-pod-identity-agent"),
        image: "eks/eks-pod-identity-agent",
        service_account: "default",
        policy: None,
        versions: Versions::Same(&["v1.3.10-eksbuild.1", "v1.3.9-eksbuild.5"]),
    },
    AddonKind {
        name: "aws-ebs-csi-driver",
        kind: "storage",
        workload: Workload::Deployment("ebs-csi-controller"),
        image: "eks/aws-ebs-csi-driver",
        service_account: "ebs-csi-controller-sa",
        policy: Some("service-role/AmazonEBSCSIDriverPolicy"),
        versions: Versions::Same(&["v1.55.0-eksbuild.1", "v1.54.0-eksbuild.1"]),
    },
    AddonKind {
        name: "metrics-server",
        kind: "observability",
        workload: Workload::Deployment("metrics-server"),
        image: "eks/metrics-server",
        service_account: "metrics-server",
        policy: None,
        versions: Versions::Same(&["v0.8.1-eksbuild.1", "v0.8.0-eksbuild.6"]),
    },
];

/// A Kubernetes minor that EKS has.
pub(super) fn kubernetes(minor: &str) -> Option<&'static KubernetesVersion> {
    KUBERNETES.iter().find(|version| version.minor == minor)
}

/// An add-on that EKS has.
pub(super) fn addon(name: &str) -> Option<&'static AddonKind> {
    ADDONS.iter().find(|addon| addon.name == name)
}

impl AddonKind {
    /// The versions that fit a Kubernetes minor; the first is the default.
    pub(super) fn versions_for(&self, minor: &str) -> Vec<String> {
        match (self.versions, kubernetes(minor)) {
            (_, None) => Vec::new(),
            (Versions::Same(versions), Some(_)) => versions.iter().map(|&version| version.to_owned()).collect(),
            (Versions::OfKubernetes(suffix), Some(version)) => vec![format!("v{}-{suffix}", version.patch)],
        }
    }

    /// The `AddonInfo` shape, for one Kubernetes minor or for all.
    fn info(&self, minor: Option<&str>) -> Value {
        let minors: Vec<_> = KUBERNETES.iter().filter(|v| minor.is_none_or(|wanted| v.minor == wanted)).collect();
        let mut names: Vec<String> = Vec::new();
        for name in minors.iter().flat_map(|version| self.versions_for(version.minor)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let compatibilities = |name: &String| -> Vec<Value> {
            let fits = minors.iter().filter_map(|version| {
                let versions = self.versions_for(version.minor);
                let position = versions.iter().position(|found| found == name)?;
                Some(json!({"clusterVersion": version.minor, "platformVersions": ["*"],
                    "defaultVersion": position == 0}))
            });
            fits.collect()
        };
        let versions: Vec<Value> = names
            .iter()
            .map(|name| {
                json!({"addonVersion": name, "architecture": ["amd64", "arm64"],
                    "computeTypes": ["ec2", "auto", "hybrid"], "compatibilities": compatibilities(name),
                    "requiresConfiguration": false, "requiresIamPermissions": self.policy.is_some()})
            })
            .collect();
        json!({"addonName": self.name, "type": self.kind, "addonVersions": versions, "publisher": "eks",
            "owner": "aws", "defaultNamespace": "kube-system"})
    }
}

impl KubernetesVersion {
    /// The `ClusterVersionInformation` shape.
    fn info(&self) -> Value {
        let [released, standard, extended] = self.dates.map(|date| date.midnight().assume_utc().unix_timestamp());
        json!({
            "clusterVersion": self.minor, "clusterType": "eks", "defaultPlatformVersion": "eks.1",
            "defaultVersion": self.minor == DEFAULT_VERSION, "releaseDate": released,
            "endOfStandardSupportDate": standard, "endOfExtendedSupportDate": extended,
            "status": self.status.word(), "versionStatus": self.status.code(), "kubernetesPatchVersion": self.patch,
        })
    }
}

impl Support {
    const fn code(self) -> &'static str {
        match self {
            Self::Standard => "STANDARD_SUPPORT",
            Self::Extended => "EXTENDED_SUPPORT",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Standard => "standard-support",
            Self::Extended => "extended-support",
        }
    }
}

pub(super) fn describe_cluster_versions(request: &Request) -> Result<Value, AwsError> {
    let wanted = request.input["clusterVersions"].as_array();
    let asked = |name: &str| request.input[name].as_str();
    let found: Vec<Value> = KUBERNETES
        .iter()
        .filter(|version| wanted.is_none_or(|wanted| wanted.contains(&json!(version.minor))))
        .filter(|version| request.input["defaultOnly"] != true || version.minor == DEFAULT_VERSION)
        .filter(|version| asked("versionStatus").is_none_or(|status| status == version.status.code()))
        .filter(|version| asked("status").is_none_or(|status| status == version.status.word()))
        .map(KubernetesVersion::info)
        .collect();
    if let Some(unknown) = wanted.into_iter().flatten().find(|v| kubernetes(v.as_str().unwrap_or_default()).is_none()) {
        return Err(invalid(format!("unsupported Kubernetes version {unknown}")));
    }
    request.page("clusterVersions", &found)
}

pub(super) fn describe_addon_versions(request: &Request) -> Result<Value, AwsError> {
    let (name, minor) = (request.input["addonName"].as_str(), request.input["kubernetesVersion"].as_str());
    if let Some(unknown) = name.filter(|name| addon(name).is_none()) {
        return Err(super::not_found(format!("Addon {unknown} specified is not supported")));
    }
    let listed = |member: &str, value: &str| {
        request.input[member].as_array().is_none_or(|values| values.contains(&json!(value)))
    };
    let found: Vec<Value> = ADDONS
        .iter()
        .filter(|addon| name.is_none_or(|name| name == addon.name))
        .filter(|addon| listed("types", addon.kind) && listed("publishers", "eks") && listed("owners", "aws"))
        .map(|addon| addon.info(minor))
        .filter(|info| info["addonVersions"].as_array().is_some_and(|versions| !versions.is_empty()))
        .collect();
    request.page("addons", &found)
}

pub(super) fn describe_addon_configuration(request: &Request) -> Result<Value, AwsError> {
    let (name, version) = (request.text("addonName"), request.text("addonVersion"));
    let known = addon(name).filter(|addon| {
        KUBERNETES.iter().any(|minor| addon.versions_for(minor.minor).iter().any(|known| known == version))
    });
    let addon = known
        .ok_or_else(|| super::not_found(format!("Addon {name} with version {version} specified is not supported")))?;
    let identity: Vec<Value> = addon
        .policy
        .map(|policy| {
            json!({"serviceAccount": addon.service_account,
                "recommendedManagedPolicies": [format!("arn:aws:iam::aws:policy/{policy}")]})
        })
        .into_iter()
        .collect();
    Ok(json!({"addonName": name, "addonVersion": version, "podIdentityConfiguration": identity,
        "configurationSchema": json!({"$schema": "http://json-schema.org/draft-06/schema#", "type": "object"}).to_string()}))
}
