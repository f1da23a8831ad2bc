//! How a resource is made and unmade, through EC2's, IAM's and CloudWatch Logs' own APIs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::intrinsics::{Made, text};
use super::kinds::Kind;
use super::validation_error;
use crate::gateway::call::{Aws, AwsError};

/// One resource to make.
pub(super) struct Order<'a> {
    pub(super) aws: &'a Aws,
    pub(super) kind: Kind,
    pub(super) stack_name: &'a str,
    pub(super) logical_id: &'a str,
    /// Evaluated.
    pub(super) properties: &'a Map<String, Value>,
    /// Its own, the stack's and CloudFormation's.
    pub(super) tags: &'a [(String, String)],
    /// The attributes that the template reads of it.
    pub(super) attributes_read: &'a BTreeSet<String>,
}

/// The flat parameters of a query call.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    /// The properties of these names, under their own names; absent ones stay absent.
    pub(super) fn properties(mut self, properties: &Map<String, Value>, names: &[&str]) -> Self {
        for name in names {
            match properties.get(*name) {
                None => {}
                Some(document @ Value::Object(_)) => self.0.push(((*name).to_owned(), document.to_string())),
                Some(value) => self.0.push(((*name).to_owned(), text(value))),
            }
        }
        self
    }

    /// `<name>.1`, `<name>.2`, … of a list.
    pub(super) fn list(mut self, name: &str, values: Option<&Value>) -> Self {
        let values = values.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        self.0.extend(values.iter().zip(1..).map(|(value, index)| (format!("{name}.{index}"), text(value))));
        self
    }

    /// EC2's tag specification.
    fn tag_specification(mut self, resource_type: &str, tags: &[(String, String)]) -> Self {
        self.0.push(("TagSpecification.1.ResourceType".to_owned(), resource_type.to_owned()));
        self.tags("TagSpecification.1.Tag", tags)
    }

    pub(super) fn tags(mut self, prefix: &str, tags: &[(String, String)]) -> Self {
        for ((key, value), index) in tags.iter().zip(1..) {
            self.0.push((format!("{prefix}.{index}.Key"), key.clone()));
            self.0.push((format!("{prefix}.{index}.Value"), value.clone()));
        }
        self
    }

    pub(super) async fn send(self, aws: &Aws, service: &str, action: &str) -> Result<String, AwsError> {
        let pairs: Vec<(&str, &str)> = self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        aws.query(service, action, &pairs).await
    }
}

/// The text of the first element of a name anywhere in an answer.
pub(super) fn first(xml: &str, name: &str) -> Result<String, AwsError> {
    roxmltree::Document::parse(xml)
        .ok()
        .and_then(|document| {
            document.descendants().find(|node| node.tag_name().name() == name)?.text().map(str::to_owned)
        })
        .ok_or_else(|| AwsError::new(500, "InternalFailure", format!("the answer has no {name}")))
}

pub(super) fn property<'a>(properties: &'a Map<String, Value>, name: &str) -> Result<&'a str, AwsError> {
    properties.get(name).and_then(Value::as_str).ok_or_else(|| {
        validation_error(format!("Properties validation failed with message: [#: required key [{name}] not found]"))
    })
}

impl Order<'_> {
    /// Makes the resource. `made` carries its id as soon as there is one, so that what fails half way can be undone.
    pub(super) async fn create(&self, made: &mut Made) -> Result<(), AwsError> {
        self.kind.check(self.logical_id, self.properties)?;
        match self.kind {
            Kind::Vpc => self.create_vpc(made).await,
            Kind::Subnet => self.create_subnet(made).await,
            Kind::InternetGateway => {
                self.create_simple("CreateInternetGateway", "internet-gateway", "internetGatewayId", &[], made).await
            }
            Kind::RouteTable => {
                self.create_simple("CreateRouteTable", "route-table", "routeTableId", &["VpcId"], made).await
            }
            Kind::NetworkAcl => {
                self.create_simple("CreateNetworkAcl", "network-acl", "networkAclId", &["VpcId"], made).await
            }
            Kind::NatGateway => {
                let names = ["AllocationId", "ConnectivityType", "SubnetId"];
                self.create_simple("CreateNatGateway", "natgateway", "natGatewayId", &names, made).await
            }
            Kind::Eip => self.create_eip(made).await,
            Kind::VpcGatewayAttachment => {
                let form = Form::new().properties(self.properties, &["InternetGatewayId", "VpcId"]);
                form.send(self.aws, "ec2", "AttachInternetGateway").await?;
                made.physical_id = format!("IGW|{}", property(self.properties, "VpcId")?);
                Ok(())
            }
            Kind::Route => self.create_route(made).await,
            Kind::SubnetRouteTableAssociation => {
                let form = Form::new().properties(self.properties, &["RouteTableId", "SubnetId"]);
                let answer = form.send(self.aws, "ec2", "AssociateRouteTable").await?;
                made.physical_id = first(&answer, "associationId")?;
                Ok(())
            }
            Kind::NetworkAclEntry => self.create_acl_entry(made).await,
            Kind::SubnetNetworkAclAssociation => {
                let acl = property(self.properties, "NetworkAclId")?;
                let subnet = property(self.properties, "SubnetId")?;
                made.physical_id = replace_acl(self.aws, subnet, acl).await?;
                made.attributes.insert("AssociationId".to_owned(), made.physical_id.clone());
                Ok(())
            }
            Kind::VpcEndpoint => self.create_endpoint(made).await,
            Kind::FlowLog => self.create_flow_log(made).await,
            Kind::LogGroup => self.create_log_group(made).await,
            Kind::Role => self.create_role(made).await,
            Kind::ManagedPolicy => self.create_policy(made).await,
        }
    }

    /// A type that one EC2 call makes and names.
    async fn create_simple(
        &self,
        action: &str,
        resource_type: &str,
        id: &str,
        names: &[&str],
        made: &mut Made,
    ) -> Result<(), AwsError> {
        let form = Form::new().properties(self.properties, names).tag_specification(resource_type, self.tags);
        let answer = form.send(self.aws, "ec2", action).await?;
        made.physical_id = first(&answer, id)?;
        let attribute = format!("{}{}", id[..1].to_uppercase(), &id[1..]);
        made.attributes.insert(attribute, made.physical_id.clone());
        Ok(())
    }

    async fn create_vpc(&self, made: &mut Made) -> Result<(), AwsError> {
        self.create_simple("CreateVpc", "vpc", "vpcId", &["CidrBlock", "InstanceTenancy"], made).await?;
        made.attributes.insert("CidrBlock".to_owned(), property(self.properties, "CidrBlock")?.to_owned());
        for name in ["EnableDnsSupport", "EnableDnsHostnames"] {
            if let Some(value) = self.properties.get(name) {
                let form = Form::new().with("VpcId", &made.physical_id).with(&format!("{name}.Value"), text(value));
                form.send(self.aws, "ec2", "ModifyVpcAttribute").await?;
            }
        }
        if self.attributes_read.contains("DefaultSecurityGroup") {
            let form = filters(&[("vpc-id", &made.physical_id), ("group-name", "default")]);
            let answer = form.send(self.aws, "ec2", "DescribeSecurityGroups").await?;
            made.attributes.insert("DefaultSecurityGroup".to_owned(), first(&answer, "groupId")?);
        }
        if self.attributes_read.contains("DefaultNetworkAcl") {
            made.attributes.insert("DefaultNetworkAcl".to_owned(), default_acl(self.aws, &made.physical_id).await?);
        }
        Ok(())
    }

    async fn create_subnet(&self, made: &mut Made) -> Result<(), AwsError> {
        let names = ["VpcId", "CidrBlock", "AvailabilityZone"];
        self.create_simple("CreateSubnet", "subnet", "subnetId", &names, made).await?;
        let given = names.iter().filter_map(|name| Some(((*name).to_owned(), text(self.properties.get(*name)?))));
        made.attributes.extend(given);
        if let Some(public) = self.properties.get("MapPublicIpOnLaunch") {
            let form = Form::new().with("SubnetId", &made.physical_id).with("MapPublicIpOnLaunch.Value", text(public));
            form.send(self.aws, "ec2", "ModifySubnetAttribute").await?;
        }
        Ok(())
    }

    async fn create_eip(&self, made: &mut Made) -> Result<(), AwsError> {
        let form = Form::new().with("Domain", "vpc").tag_specification("elastic-ip", self.tags);
        let answer = form.send(self.aws, "ec2", "AllocateAddress").await?;
        made.physical_id = first(&answer, "publicIp")?;
        made.attributes.insert("PublicIp".to_owned(), made.physical_id.clone());
        made.attributes.insert("AllocationId".to_owned(), first(&answer, "allocationId")?);
        Ok(())
    }

    async fn create_route(&self, made: &mut Made) -> Result<(), AwsError> {
        let destination = ["DestinationCidrBlock", "DestinationIpv6CidrBlock"];
        let form = Form::new()
            .properties(self.properties, &destination)
            .properties(self.properties, &["RouteTableId", "GatewayId", "NatGatewayId"]);
        form.send(self.aws, "ec2", "CreateRoute").await?;
        let destination = destination.iter().find_map(|name| self.properties.get(*name)).map(text).unwrap_or_default();
        made.physical_id = format!("{}|{destination}", property(self.properties, "RouteTableId")?);
        Ok(())
    }

    async fn create_acl_entry(&self, made: &mut Made) -> Result<(), AwsError> {
        self.acl_entry().send(self.aws, "ec2", "CreateNetworkAclEntry").await?;
        made.physical_id = self.generated_name(255);
        Ok(())
    }

    /// An entry as EC2 takes it, whether it is new or put in another's place.
    pub(super) fn acl_entry(&self) -> Form {
        let names = ["NetworkAclId", "RuleNumber", "Protocol", "RuleAction", "Egress", "CidrBlock", "Ipv6CidrBlock"];
        let mut form = Form::new().properties(self.properties, &names);
        if !self.properties.contains_key("Egress") {
            form = form.with("Egress", "false");
        }
        for (nested, members) in [("PortRange", ["From", "To"]), ("Icmp", ["Code", "Type"])] {
            for member in members {
                if let Some(value) = self.properties.get(nested).and_then(|nested| nested.get(member)) {
                    form = form.with(&format!("{nested}.{member}"), text(value));
                }
            }
        }
        form
    }

    async fn create_endpoint(&self, made: &mut Made) -> Result<(), AwsError> {
        let names = ["VpcId", "ServiceName", "VpcEndpointType", "PolicyDocument", "PrivateDnsEnabled"];
        let form = Form::new()
            .properties(self.properties, &names)
            .list("RouteTableId", self.properties.get("RouteTableIds"))
            .list("SubnetId", self.properties.get("SubnetIds"))
            .list("SecurityGroupId", self.properties.get("SecurityGroupIds"))
            .tag_specification("vpc-endpoint", self.tags);
        let answer = form.send(self.aws, "ec2", "CreateVpcEndpoint").await?;
        made.physical_id = first(&answer, "vpcEndpointId")?;
        made.attributes.insert("Id".to_owned(), made.physical_id.clone());
        Ok(())
    }

    async fn create_flow_log(&self, made: &mut Made) -> Result<(), AwsError> {
        let names = [
            "DeliverLogsPermissionArn",
            "LogDestination",
            "LogDestinationType",
            "LogFormat",
            "LogGroupName",
            "MaxAggregationInterval",
            "ResourceType",
            "TrafficType",
        ];
        let form = Form::new()
            .properties(self.properties, &names)
            .with("ResourceId.1", property(self.properties, "ResourceId")?)
            .tag_specification("vpc-flow-log", self.tags);
        let answer = form.send(self.aws, "ec2", "CreateFlowLogs").await?;
        let refused = || AwsError::new(400, "InvalidRequest", first(&answer, "message").unwrap_or_default());
        made.physical_id = flow_log_id(&answer).ok_or_else(refused)?;
        made.attributes.insert("Id".to_owned(), made.physical_id.clone());
        Ok(())
    }

    async fn create_log_group(&self, made: &mut Made) -> Result<(), AwsError> {
        let name = self.name("LogGroupName", 512);
        let tags: Map<String, Value> =
            self.tags.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        let mut body = json!({"logGroupName": name, "tags": tags});
        if let Some(key) = self.properties.get("KmsKeyId") {
            body["kmsKeyId"] = key.clone();
        }
        self.aws.json("logs", "Logs_20140328.CreateLogGroup", &body).await?;
        made.physical_id.clone_from(&name);
        let arn = format!("arn:aws:logs:{}:{}:log-group:{name}:*", self.aws.region, self.aws.account);
        made.attributes.insert("Arn".to_owned(), arn);
        if let Some(days) = self.properties.get("RetentionInDays") {
            let days: u32 =
                text(days).parse().map_err(|_| validation_error("RetentionInDays must be a whole number"))?;
            let body = json!({"logGroupName": name, "retentionInDays": days});
            self.aws.json("logs", "Logs_20140328.PutRetentionPolicy", &body).await?;
        }
        Ok(())
    }

    async fn create_role(&self, made: &mut Made) -> Result<(), AwsError> {
        let name = self.name("RoleName", 64);
        let names = ["AssumeRolePolicyDocument", "Description", "MaxSessionDuration", "Path", "PermissionsBoundary"];
        let form = Form::new().with("RoleName", &name).properties(self.properties, &names);
        let answer = form.tags("Tags.member", self.tags).send(self.aws, "iam", "CreateRole").await?;
        made.physical_id.clone_from(&name);
        made.attributes.insert("Arn".to_owned(), first(&answer, "Arn")?);
        made.attributes.insert("RoleId".to_owned(), first(&answer, "RoleId")?);
        for arn in strings(self.properties.get("ManagedPolicyArns")) {
            let form = Form::new().with("RoleName", &name).with("PolicyArn", arn);
            form.send(self.aws, "iam", "AttachRolePolicy").await?;
        }
        let policies = self.properties.get("Policies").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for policy in policies.iter().filter_map(Value::as_object) {
            let form = Form::new().with("RoleName", &name).properties(policy, &["PolicyName", "PolicyDocument"]);
            form.send(self.aws, "iam", "PutRolePolicy").await?;
        }
        Ok(())
    }

    async fn create_policy(&self, made: &mut Made) -> Result<(), AwsError> {
        let form = Form::new()
            .with("PolicyName", self.name("ManagedPolicyName", 128))
            .properties(self.properties, &["Description", "Path", "PolicyDocument"]);
        let answer = form.send(self.aws, "iam", "CreatePolicy").await?;
        made.physical_id = first(&answer, "Arn")?;
        made.attributes.insert("PolicyArn".to_owned(), made.physical_id.clone());
        for (list, action, parameter) in ATTACHMENTS {
            for name in strings(self.properties.get(list)) {
                let form = Form::new().with(parameter, name).with("PolicyArn", &made.physical_id);
                form.send(self.aws, "iam", &format!("Attach{action}")).await?;
            }
        }
        Ok(())
    }

    fn name(&self, given: &str, longest: usize) -> String {
        self.properties.get(given).map_or_else(|| self.generated_name(longest), text)
    }

    /// `<stack>-<logical id>-<12 random characters>`, cut before the random part.
    fn generated_name(&self, longest: usize) -> String {
        let random = ulid::Ulid::generate().to_string();
        let mut name = format!("{}-{}", self.stack_name, self.logical_id);
        name.truncate(longest - 13);
        format!("{name}-{}", &random[random.len() - 12..])
    }
}

pub(super) const ATTACHMENTS: [(&str, &str, &str); 3] =
    [("Roles", "RolePolicy", "RoleName"), ("Users", "UserPolicy", "UserName"), ("Groups", "GroupPolicy", "GroupName")];

/// Unmakes a resource; one that is gone already is no error.
pub(super) async fn delete(
    aws: &Aws,
    kind: Kind,
    made: &Made,
    properties: &Map<String, Value>,
) -> Result<(), AwsError> {
    let deleted = match unmake(aws, kind, made, properties).await {
        Ok(()) => gone(aws, kind, &made.physical_id).await,
        refused => refused,
    };
    match deleted {
        Err(error) if is_absent(&error.code) => Ok(()),
        result => result,
    }
}

/// Waits for what EC2 deletes after its answer: until it is gone, its subnet and its address are in use.
async fn gone(aws: &Aws, kind: Kind, id: &str) -> Result<(), AwsError> {
    let (action, parameter) = match kind {
        Kind::NatGateway => ("DescribeNatGateways", "NatGatewayId.1"),
        Kind::VpcEndpoint => ("DescribeVpcEndpoints", "VpcEndpointId.1"),
        _ => return Ok(()),
    };
    // A minute on the clock: far beyond what any speed makes of EC2's own.
    for _ in 0..600 {
        let answer = Form::new().with(parameter, id).send(aws, "ec2", action).await?;
        if !all(&answer, "state").iter().any(|state| state == "deleting") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(AwsError::new(500, "InternalFailure", format!("{id} stays in deletion")))
}

pub(super) fn is_absent(code: &str) -> bool {
    code.ends_with(".NotFound")
        || code.ends_with("NotFound")
        || matches!(code, "NoSuchEntity" | "ResourceNotFoundException" | "Gateway.NotAttached")
}

async fn unmake(aws: &Aws, kind: Kind, made: &Made, properties: &Map<String, Value>) -> Result<(), AwsError> {
    let id = made.physical_id.as_str();
    let (action, form) = match kind {
        Kind::Vpc => ("DeleteVpc", Form::new().with("VpcId", id)),
        Kind::Subnet => ("DeleteSubnet", Form::new().with("SubnetId", id)),
        Kind::InternetGateway => ("DeleteInternetGateway", Form::new().with("InternetGatewayId", id)),
        Kind::VpcGatewayAttachment => {
            ("DetachInternetGateway", Form::new().properties(properties, &["InternetGatewayId", "VpcId"]))
        }
        Kind::Eip => {
            let allocation = made.attributes.get("AllocationId").map_or("", String::as_str);
            ("ReleaseAddress", Form::new().with("AllocationId", allocation))
        }
        Kind::NatGateway => ("DeleteNatGateway", Form::new().with("NatGatewayId", id)),
        Kind::RouteTable => ("DeleteRouteTable", Form::new().with("RouteTableId", id)),
        Kind::Route => {
            let names = ["RouteTableId", "DestinationCidrBlock", "DestinationIpv6CidrBlock"];
            ("DeleteRoute", Form::new().properties(properties, &names))
        }
        Kind::SubnetRouteTableAssociation => ("DisassociateRouteTable", Form::new().with("AssociationId", id)),
        Kind::NetworkAcl => ("DeleteNetworkAcl", Form::new().with("NetworkAclId", id)),
        Kind::NetworkAclEntry => {
            let egress = properties.get("Egress").map_or_else(|| "false".to_owned(), text);
            let form = Form::new().properties(properties, &["NetworkAclId", "RuleNumber"]).with("Egress", egress);
            ("DeleteNetworkAclEntry", form)
        }
        Kind::SubnetNetworkAclAssociation => return restore_default_acl(aws, properties).await,
        Kind::VpcEndpoint => ("DeleteVpcEndpoints", Form::new().with("VpcEndpointId.1", id)),
        Kind::FlowLog => ("DeleteFlowLogs", Form::new().with("FlowLogId.1", id)),
        Kind::LogGroup => {
            let body = json!({"logGroupName": id});
            return aws.json("logs", "Logs_20140328.DeleteLogGroup", &body).await.map(drop);
        }
        Kind::Role => return delete_role(aws, id).await,
        Kind::ManagedPolicy => return delete_policy(aws, id, properties).await,
    };
    form.send(aws, "ec2", action).await.map(drop)
}

async fn delete_role(aws: &Aws, name: &str) -> Result<(), AwsError> {
    let role = || Form::new().with("RoleName", name);
    let attached = role().send(aws, "iam", "ListAttachedRolePolicies").await?;
    for arn in all(&attached, "PolicyArn") {
        role().with("PolicyArn", arn).send(aws, "iam", "DetachRolePolicy").await?;
    }
    let inline = role().send(aws, "iam", "ListRolePolicies").await?;
    for policy in all_children(&inline, "PolicyNames") {
        role().with("PolicyName", policy).send(aws, "iam", "DeleteRolePolicy").await?;
    }
    role().send(aws, "iam", "DeleteRole").await.map(drop)
}

async fn delete_policy(aws: &Aws, arn: &str, properties: &Map<String, Value>) -> Result<(), AwsError> {
    for (list, action, parameter) in ATTACHMENTS {
        for name in strings(properties.get(list)) {
            let form = Form::new().with(parameter, name).with("PolicyArn", arn);
            match form.send(aws, "iam", &format!("Detach{action}")).await {
                Err(error) if !is_absent(&error.code) => return Err(error),
                _ => {}
            }
        }
    }
    Form::new().with("PolicyArn", arn).send(aws, "iam", "DeletePolicy").await.map(drop)
}

fn filters(pairs: &[(&str, &str)]) -> Form {
    let mut form = Form::new();
    for ((name, value), index) in pairs.iter().zip(1..) {
        form = form.with(&format!("Filter.{index}.Name"), *name).with(&format!("Filter.{index}.Value.1"), *value);
    }
    form
}

async fn default_acl(aws: &Aws, vpc: &str) -> Result<String, AwsError> {
    let answer = filters(&[("vpc-id", vpc), ("default", "true")]).send(aws, "ec2", "DescribeNetworkAcls").await?;
    first(&answer, "networkAclId")
}

/// Puts a subnet under another network ACL and answers the new association.
async fn replace_acl(aws: &Aws, subnet: &str, acl: &str) -> Result<String, AwsError> {
    let answer = filters(&[("association.subnet-id", subnet)]).send(aws, "ec2", "DescribeNetworkAcls").await?;
    let association = acl_association(&answer, subnet).ok_or_else(|| {
        AwsError::new(400, "InvalidSubnetID.NotFound", format!("The subnet ID '{subnet}' does not exist"))
    })?;
    let form = Form::new().with("AssociationId", association).with("NetworkAclId", acl);
    first(&form.send(aws, "ec2", "ReplaceNetworkAclAssociation").await?, "newAssociationId")
}

/// A subnet always has a network ACL, so losing one means getting the VPC's default back.
async fn restore_default_acl(aws: &Aws, properties: &Map<String, Value>) -> Result<(), AwsError> {
    let subnet = property(properties, "SubnetId")?;
    let answer = Form::new().with("SubnetId.1", subnet).send(aws, "ec2", "DescribeSubnets").await?;
    let acl = default_acl(aws, &first(&answer, "vpcId")?).await?;
    replace_acl(aws, subnet, &acl).await.map(drop)
}

fn acl_association(xml: &str, subnet: &str) -> Option<String> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let child = |node: roxmltree::Node<'_, '_>, name: &str| {
        node.children().find(|child| child.tag_name().name() == name)?.text().map(str::to_owned)
    };
    document
        .descendants()
        .find(|node| {
            child(*node, "subnetId").as_deref() == Some(subnet) && child(*node, "networkAclAssociationId").is_some()
        })
        .and_then(|node| child(node, "networkAclAssociationId"))
}

fn flow_log_id(xml: &str) -> Option<String> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let set = document.descendants().find(|node| node.tag_name().name() == "flowLogIdSet")?;
    set.children().find(roxmltree::Node::is_element)?.text().map(str::to_owned)
}

pub(super) fn all(xml: &str, name: &str) -> Vec<String> {
    let Ok(document) = roxmltree::Document::parse(xml) else { return Vec::new() };
    document
        .descendants()
        .filter(|node| node.tag_name().name() == name)
        .filter_map(|node| node.text().map(str::to_owned))
        .collect()
}

fn all_children(xml: &str, list: &str) -> Vec<String> {
    let Ok(document) = roxmltree::Document::parse(xml) else { return Vec::new() };
    let Some(list) = document.descendants().find(|node| node.tag_name().name() == list) else { return Vec::new() };
    list.children()
        .filter_map(|node| node.text().map(str::trim))
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect()
}

pub(super) fn strings(list: Option<&Value>) -> Vec<String> {
    list.and_then(Value::as_array).map_or(&[][..], Vec::as_slice).iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn answers_are_read() {
        let xml = "<r xmlns=\"x\"><associationSet><item><networkAclAssociationId>a-1</networkAclAssociationId><subnetId>s-1</subnetId></item><item><networkAclAssociationId>a-2</networkAclAssociationId><subnetId>s-2</subnetId></item></associationSet></r>";
        assert_eq!(acl_association(xml, "s-2").unwrap(), "a-2");
        assert_eq!(acl_association(xml, "s-3"), None);
        assert_eq!(
            flow_log_id("<r><unsuccessful/><flowLogIdSet><item>fl-1</item></flowLogIdSet></r>").unwrap(),
            "fl-1"
        );
        assert_eq!(
            all_children("<r><PolicyNames><member>a</member> <member>b</member></PolicyNames></r>", "PolicyNames"),
            ["a", "b"]
        );
    }
}
