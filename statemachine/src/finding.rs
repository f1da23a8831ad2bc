//! What an audit found: something that still exists for a cluster, why we believe so, what it costs, what removes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of thing a finding is. The order is the one in which things can be removed: what comes first holds what
/// comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An EKS node group: its instances come back while it is there.
    NodeGroup,
    /// An EKS Fargate profile.
    FargateProfile,
    /// An EKS cluster: its controllers make load balancers and volumes while it is there.
    Cluster,
    /// An EC2 instance.
    Instance,
    /// A network, application, gateway or classic load balancer.
    LoadBalancer,
    /// A load balancer's target group.
    TargetGroup,
    /// An EBS volume.
    Volume,
    /// An elastic network interface.
    NetworkInterface,
    /// An EC2 launch template.
    LaunchTemplate,
    /// A VPC security group.
    SecurityGroup,
    /// An EventBridge rule.
    Rule,
    /// An SQS queue.
    Queue,
    /// An IAM instance profile.
    InstanceProfile,
    /// An IAM role.
    Role,
    /// An IAM managed policy.
    Policy,
    /// An IAM OpenID Connect provider.
    OidcProvider,
    /// A CloudWatch log group.
    LogGroup,
    /// A CloudFormation stack.
    Stack,
    /// A VPC's NAT gateway.
    NatGateway,
    /// An elastic IP address.
    Address,
    /// A VPC endpoint.
    VpcEndpoint,
    /// A VPC.
    Vpc,
    /// A row of the state table whose cluster is gone.
    RegistryRow,
    /// Anything else that bears a cluster's tag.
    Other,
}

impl Kind {
    /// As JSON and people have it: `network-interface`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeGroup => "node-group",
            Self::FargateProfile => "fargate-profile",
            Self::Cluster => "cluster",
            Self::Instance => "instance",
            Self::LoadBalancer => "load-balancer",
            Self::TargetGroup => "target-group",
            Self::Volume => "volume",
            Self::NetworkInterface => "network-interface",
            Self::LaunchTemplate => "launch-template",
            Self::SecurityGroup => "security-group",
            Self::Rule => "rule",
            Self::Queue => "queue",
            Self::InstanceProfile => "instance-profile",
            Self::Role => "role",
            Self::Policy => "policy",
            Self::OidcProvider => "oidc-provider",
            Self::LogGroup => "log-group",
            Self::Stack => "stack",
            Self::NatGateway => "nat-gateway",
            Self::Address => "address",
            Self::VpcEndpoint => "vpc-endpoint",
            Self::Vpc => "vpc",
            Self::RegistryRow => "registry-row",
            Self::Other => "other",
        }
    }

    /// Whether it is part of a network, which a teardown keeps unless asked.
    #[must_use]
    pub const fn is_network(self) -> bool {
        matches!(self, Self::Stack | Self::NatGateway | Self::Address | Self::VpcEndpoint | Self::Vpc)
    }
}

/// Something that still exists for a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Its ARN; a registry row's is its partition key.
    pub arn: String,
    /// What it is.
    pub kind: Kind,
    /// As its service calls it: an id, a name.
    pub name: String,
    /// Since it was made, where its service says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// The cluster that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Why we believe so, and what state it is in where that matters.
    pub because: String,
    /// US dollars a month at list prices; none where the price is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly_cost_usd: Option<f64>,
    /// What removes it.
    pub removed_by: String,
    /// It bears our tag, so that a sweep may remove it without its ARN being named.
    pub tagged: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_called_the_same_everywhere() {
        for kind in [Kind::NodeGroup, Kind::OidcProvider, Kind::RegistryRow, Kind::Vpc] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn what_makes_others_goes_first() {
        assert!(Kind::NodeGroup < Kind::Cluster && Kind::Cluster < Kind::Instance);
        assert!(Kind::LoadBalancer < Kind::NetworkInterface && Kind::NetworkInterface < Kind::SecurityGroup);
        assert!(Kind::InstanceProfile < Kind::Role && Kind::Role < Kind::Policy);
        assert!(Kind::SecurityGroup < Kind::Stack);
    }
}
