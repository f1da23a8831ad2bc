//! The resource types of the engine, as CloudFormation's registry describes them: how long each takes, and what a
//! change of each property does (the resource reference's "Update requires").

use std::time::Duration;

use serde_json::{Map, Value};

use super::validation_error;
use crate::gateway::call::AwsError;

/// A resource type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vpc,
    Subnet,
    InternetGateway,
    VpcGatewayAttachment,
    Eip,
    NatGateway,
    RouteTable,
    Route,
    SubnetRouteTableAssociation,
    NetworkAcl,
    NetworkAclEntry,
    SubnetNetworkAclAssociation,
    VpcEndpoint,
    FlowLog,
    LogGroup,
    Role,
    ManagedPolicy,
}

/// A type as the registry has it.
struct Type {
    kind: Kind,
    name: &'static str,
    /// The seconds that making one takes on AWS, as others' stack events show.
    seconds: u64,
    /// Properties whose change is made where the resource stands.
    in_place: &'static [&'static str],
    /// Properties whose change makes another resource.
    replacing: &'static [&'static str],
}

const TYPES: [Type; 17] = [
    Type {
        kind: Kind::Vpc,
        name: "AWS::EC2::VPC",
        seconds: 12,
        in_place: &["EnableDnsHostnames", "EnableDnsSupport", "Tags"],
        // Tenancy is replaced in one direction only; the engine takes the other for one too.
        replacing: &["CidrBlock", "InstanceTenancy"],
    },
    Type {
        kind: Kind::Subnet,
        name: "AWS::EC2::Subnet",
        seconds: 4,
        in_place: &["MapPublicIpOnLaunch", "Tags"],
        replacing: &["AvailabilityZone", "CidrBlock", "VpcId"],
    },
    Type {
        kind: Kind::InternetGateway,
        name: "AWS::EC2::InternetGateway",
        seconds: 16,
        in_place: &["Tags"],
        replacing: &[],
    },
    Type {
        kind: Kind::VpcGatewayAttachment,
        name: "AWS::EC2::VPCGatewayAttachment",
        seconds: 2,
        in_place: &["InternetGatewayId"],
        replacing: &["VpcId"],
    },
    Type { kind: Kind::Eip, name: "AWS::EC2::EIP", seconds: 16, in_place: &["Tags"], replacing: &["Domain"] },
    Type {
        kind: Kind::NatGateway,
        name: "AWS::EC2::NatGateway",
        seconds: 115,
        in_place: &["Tags"],
        replacing: &["AllocationId", "ConnectivityType", "SubnetId"],
    },
    Type {
        kind: Kind::RouteTable,
        name: "AWS::EC2::RouteTable",
        seconds: 10,
        in_place: &["Tags"],
        replacing: &["VpcId"],
    },
    Type {
        kind: Kind::Route,
        name: "AWS::EC2::Route",
        seconds: 3,
        in_place: &["GatewayId", "NatGatewayId"],
        replacing: &["DestinationCidrBlock", "DestinationIpv6CidrBlock", "RouteTableId"],
    },
    Type {
        kind: Kind::SubnetRouteTableAssociation,
        name: "AWS::EC2::SubnetRouteTableAssociation",
        seconds: 4,
        in_place: &["RouteTableId"],
        replacing: &["SubnetId"],
    },
    Type {
        kind: Kind::NetworkAcl,
        name: "AWS::EC2::NetworkAcl",
        seconds: 12,
        in_place: &["Tags"],
        replacing: &["VpcId"],
    },
    Type {
        kind: Kind::NetworkAclEntry,
        name: "AWS::EC2::NetworkAclEntry",
        seconds: 2,
        in_place: &["CidrBlock", "Icmp", "Ipv6CidrBlock", "PortRange", "Protocol", "RuleAction"],
        replacing: &["Egress", "NetworkAclId", "RuleNumber"],
    },
    Type {
        kind: Kind::SubnetNetworkAclAssociation,
        name: "AWS::EC2::SubnetNetworkAclAssociation",
        seconds: 2,
        in_place: &[],
        replacing: &["NetworkAclId", "SubnetId"],
    },
    Type {
        kind: Kind::VpcEndpoint,
        name: "AWS::EC2::VPCEndpoint",
        seconds: 20,
        in_place: &["PolicyDocument", "PrivateDnsEnabled", "RouteTableIds", "SecurityGroupIds", "SubnetIds", "Tags"],
        replacing: &["ServiceName", "VpcEndpointType", "VpcId"],
    },
    Type {
        kind: Kind::FlowLog,
        name: "AWS::EC2::FlowLog",
        seconds: 4,
        in_place: &["Tags"],
        replacing: &[
            "DeliverLogsPermissionArn",
            "LogDestination",
            "LogDestinationType",
            "LogFormat",
            "LogGroupName",
            "MaxAggregationInterval",
            "ResourceId",
            "ResourceType",
            "TrafficType",
        ],
    },
    Type {
        kind: Kind::LogGroup,
        name: "AWS::Logs::LogGroup",
        seconds: 3,
        in_place: &["KmsKeyId", "RetentionInDays", "Tags"],
        replacing: &["LogGroupName"],
    },
    Type {
        kind: Kind::Role,
        name: "AWS::IAM::Role",
        seconds: 17,
        in_place: &[
            "AssumeRolePolicyDocument",
            "Description",
            "ManagedPolicyArns",
            "MaxSessionDuration",
            "PermissionsBoundary",
            "Policies",
            "Tags",
        ],
        replacing: &["Path", "RoleName"],
    },
    Type {
        kind: Kind::ManagedPolicy,
        name: "AWS::IAM::ManagedPolicy",
        seconds: 18,
        in_place: &["Groups", "PolicyDocument", "Roles", "Users"],
        replacing: &["Description", "ManagedPolicyName", "Path"],
    },
];

impl Kind {
    /// The type of a CloudFormation name.
    pub(super) fn of(name: &str) -> Option<Self> {
        TYPES.iter().find(|known| known.name == name).map(|known| known.kind)
    }

    fn described(self) -> &'static Type {
        TYPES.iter().find(|known| known.kind == self).unwrap_or(&TYPES[0])
    }

    /// Its CloudFormation name.
    pub(super) fn name(self) -> &'static str {
        self.described().name
    }

    /// How long making one takes on AWS.
    pub(super) fn takes(self) -> Duration {
        Duration::from_secs(self.described().seconds)
    }

    /// How long deleting one takes: as long as making it, except that a NAT gateway goes in a minute.
    pub(super) fn takes_to_delete(self) -> Duration {
        if self == Self::NatGateway { Duration::from_mins(1) } else { self.takes() }
    }

    /// Whether a change of a property makes another resource.
    pub(super) fn replaced_by(self, property: &str) -> bool {
        self.described().replacing.contains(&property)
    }

    /// Whether the stack's tags go on to it.
    pub(super) fn taggable(self) -> bool {
        self.described().in_place.contains(&"Tags")
    }

    /// The service behind it, as CloudFormation's reasons call it.
    pub(super) fn service(self) -> &'static str {
        match self {
            Self::Role | Self::ManagedPolicy => "Iam",
            Self::LogGroup => "CloudWatchLogs",
            _ => "Ec2",
        }
    }

    /// Refuses a property that the type has not, or that nothing here would act on.
    pub(super) fn check(self, logical_id: &str, properties: &Map<String, Value>) -> Result<(), AwsError> {
        let Type { in_place, replacing, .. } = self.described();
        let unknown = |name: &&String| !in_place.contains(&name.as_str()) && !replacing.contains(&name.as_str());
        match properties.keys().find(unknown) {
            None => Ok(()),
            Some(name) => Err(validation_error(format!(
                "Properties validation failed for resource {logical_id} with message:\n[#: extraneous key [{name}] is \
                 not permitted]"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_property_that_nothing_acts_on_is_refused() {
        let properties = json!({"CidrBlock": "10.0.0.0/16", "Ipv4IpamPoolId": "x"});
        let refusal = Kind::Vpc.check("Vpc", properties.as_object().unwrap()).unwrap_err();
        assert!(refusal.message.contains("extraneous key [Ipv4IpamPoolId]"), "{refusal}");
    }
}
