//! EKS's health issues of clusters, node groups and add-ons: one sentence each, and what a person does about them.

use slipway_statemachine::{ErrorName, StepError};

/// An issue as a sentence: code, message and, where there are any, the resources.
#[must_use]
pub fn issue(code: Option<&str>, message: Option<&str>, resources: &[String]) -> String {
    let message = message.unwrap_or("no message").trim_end_matches('.');
    let resources = if resources.is_empty() { String::new() } else { format!(" ({})", resources.join(", ")) };
    format!("{}: {message}{resources}.", code.unwrap_or("no code"))
}

/// What EKS says, or that it says nothing.
#[must_use]
pub fn said(issues: &[String]) -> String {
    if issues.is_empty() { "EKS names no health issue.".to_owned() } else { issues.join(" ") }
}

/// What has a cure of its own: words of an issue, the error that it is, and the cure. The first that fits counts, so
/// what EC2 said goes before the code of the issue that carries it (EKS API reference, "Issue", "ClusterIssue",
/// "AddonIssue"; EC2 API reference, "Error codes").
const CURES: &[(&[&str], Option<ErrorName>, &str)] = &[
    (
        &["VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "ResourceLimitExceeded"],
        Some(ErrorName::QuotaExceeded),
        "Raise the quota that the cause names in Service Quotas",
    ),
    (
        &["InsufficientInstanceCapacity", "UnfulfillableCapacity", "do not have sufficient"],
        Some(ErrorName::CapacityUnavailable),
        "Name other or more types in core.instanceTypes, or other zones, or start again later",
    ),
    (
        &[
            "does not match the architecture",
            "is not supported by the specified AMI",
            "not a valid instance type for requested amiType",
        ],
        None,
        "Let core.instanceTypes be of one architecture, which its images are made for",
    ),
    (
        &["InsufficientFreeAddresses", "InsufficientFreeAddressesInSubnet"],
        None,
        "Give the cluster larger subnets, or free addresses in those that the cause names",
    ),
    (
        &["Client.InvalidKMSKey", "KmsKey", "InvalidKMSKey"],
        None,
        "Enable the key that the cause names and let the account's services use it",
    ),
    (
        &[
            "IamNodeRoleNotFound",
            "IamRoleNotFound",
            "IamInstanceProfileNotFound",
            "AccessDenied",
            "UnauthorizedOperation",
        ],
        None,
        "Start again: the run makes roles, policies and access entries; look for a boundary or an organisation's policy \
         that denies them",
    ),
    (
        &[
            "Ec2SubnetNotFound",
            "Ec2SubnetInvalidConfiguration",
            "Ec2SecurityGroupNotFound",
            "Ec2SecurityGroupDeletionFailure",
            "VpcIdNotFound",
        ],
        None,
        "Put back the subnet, group or setting that the cause names",
    ),
    (
        &["AmiIdNotFound", "Ec2InstanceTypeDoesNotExist"],
        None,
        "Name types in core.instanceTypes that the region has, and a version that EKS has images for",
    ),
    (
        &["NodeCreationFailure", "failed to join"],
        None,
        "See that the subnets' default route leads to a NAT gateway that is there, that the cluster's security group is as \
         EKS made it, and that the node role's policies are attached",
    ),
    (
        &["InsufficientNumberOfReplicas"],
        None,
        "See why the add-on's pods in kube-system do not run: nodes, taints, images, or its configuration",
    ),
    (
        &["ConfigurationConflict", "AdmissionRequestDenied", "UnsupportedAddonModification", "K8sResourceNotFound"],
        None,
        "Take out what somebody changed or denies in the add-on's objects in kube-system, or correct addons.<name>.configuration",
    ),
    (
        &["AddonPermissionFailure", "AddonSubscriptionNeeded"],
        None,
        "Give the add-on its role (addons.<name>.identity) or its subscription",
    ),
    (
        &["ClusterUnreachable"],
        None,
        "See that EKS reaches the cluster: its security group, subnets, and webhooks that answer for everything",
    ),
];

/// A failed thing as an error: what it is, EKS's issues, and the cure of the first that has one. `again` says how the
/// thing is had again afterwards.
#[must_use]
pub fn failure(name: ErrorName, what: &str, issues: &[String], again: &str) -> StepError {
    let said = said(issues);
    let cure = CURES.iter().find(|(words, ..)| words.iter().any(|word| said.contains(word)));
    let name = cure.and_then(|(_, name, _)| *name).unwrap_or(name);
    let error = StepError::new(name, format!("{what}: {said}"));
    match cure {
        Some((.., cure)) => error.remedy(format!("{cure}; {again}.")),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issue_is_one_sentence_whatever_is_missing() {
        let nodes = ["i-1".to_owned(), "i-2".to_owned()];
        assert_eq!(issue(Some("A"), Some("Failed to join."), &nodes), "A: Failed to join (i-1, i-2).");
        assert_eq!(issue(None, None, &[]), "no code: no message.");
        assert_eq!(said(&[]), "EKS names no health issue.");
    }

    #[test]
    fn each_issue_has_its_name_and_cure() {
        for (code, message, name, cure) in [
            (
                "AsgInstanceLaunchFailures",
                "Could not launch On-Demand Instances. VcpuLimitExceeded - You have requested more vCPU capacity than your current vCPU limit of 5 allows",
                ErrorName::QuotaExceeded,
                "Raise the quota",
            ),
            (
                "AsgInstanceLaunchFailures",
                "Could not launch On-Demand Instances. InsufficientInstanceCapacity - We currently do not have sufficient t4g.medium capacity in the Availability Zone you requested (eu-west-1a)",
                ErrorName::CapacityUnavailable,
                "core.instanceTypes",
            ),
            (
                "AsgInstanceLaunchFailures",
                "Could not launch On-Demand Instances. InvalidParameterValue - The architecture 'arm64' of the specified instance type does not match the architecture 'x86_64' of the specified AMI",
                ErrorName::NodeGroupFailed,
                "one architecture",
            ),
            (
                "InsufficientFreeAddresses",
                "One or more of the subnets associated with your nodegroup does not have enough available IP addresses",
                ErrorName::NodeGroupFailed,
                "larger subnets",
            ),
            (
                "IamNodeRoleNotFound",
                "We couldn't find an IAM role for your managed node group",
                ErrorName::NodeGroupFailed,
                "the run makes roles",
            ),
            (
                "AccessDenied",
                "Your worker nodes do not have access to the cluster",
                ErrorName::NodeGroupFailed,
                "the run makes roles",
            ),
            (
                "NodeCreationFailure",
                "Instances failed to join the kubernetes cluster",
                ErrorName::NodeGroupFailed,
                "default route",
            ),
            ("Ec2SubnetNotFound", "We couldn't find one or more subnets", ErrorName::NodeGroupFailed, "Put back"),
            (
                "InsufficientNumberOfReplicas",
                "The add-on is unhealthy because it doesn't have the desired number of replicas",
                ErrorName::NodeGroupFailed,
                "pods in kube-system",
            ),
            (
                "ConfigurationConflict",
                "Conflicts found when trying to apply",
                ErrorName::NodeGroupFailed,
                "somebody changed",
            ),
            ("ResourceLimitExceeded", "You have reached the limit", ErrorName::QuotaExceeded, "Raise the quota"),
        ] {
            let issues = [issue(Some(code), Some(message), &[])];
            let error = failure(ErrorName::NodeGroupFailed, "The group is CREATE_FAILED", &issues, "then start again");
            assert_eq!(error.name, name, "{message}");
            assert!(error.cause.contains(message), "{}", error.cause);
            assert!(error.remedy.contains(cure) && error.remedy.ends_with("; then start again."), "{}", error.remedy);
        }
        let unknown = failure(ErrorName::AddonFailed, "x", &[], "start again");
        assert_eq!((unknown.name, unknown.remedy.as_str()), (ErrorName::AddonFailed, ErrorName::AddonFailed.remedy()));
    }
}
