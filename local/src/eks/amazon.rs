//! What EKS asks of EC2, IAM, SSM and STS: always through the gateway, so it is authorized and recorded like
//! everybody's calls.

use std::collections::BTreeMap;

use http::{HeaderValue, Method};
use serde_json::{Value, json};

use super::invalid;
use crate::gateway::call::{Aws, AwsError};
use crate::gateway::wire;

/// A subnet, as far as EKS cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subnet {
    pub(super) id: String,
    pub(super) vpc: String,
    pub(super) zone: String,
    pub(super) zone_id: String,
}

/// An IAM role, or what logs in like one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) arn: String,
    /// `AROA…`
    pub(super) id: String,
    /// The trust policy.
    pub(super) trust: Value,
}

/// Who STS says a presigned request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) arn: String,
    pub(super) user_id: String,
    pub(super) account: String,
}

/// The subnets in the order asked for.
pub(super) async fn subnets(aws: &Aws, ids: &[String]) -> Result<Vec<Subnet>, AwsError> {
    let names: Vec<String> = (1..=ids.len()).map(|n| format!("SubnetId.{n}")).collect();
    let params: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(ids.iter().map(String::as_str)).collect();
    let xml = aws.query("ec2", "DescribeSubnets", &params).await.map_err(|refusal| match refusal.code.as_str() {
        "InvalidSubnetID.NotFound" | "InvalidSubnetID.Malformed" => {
            invalid(format!("{} (Service: AmazonEC2; Status Code: 400; Error Code: {})", refusal.message, refusal.code))
        }
        _ => refusal,
    })?;
    let document = parse(&xml)?;
    let found: BTreeMap<String, Subnet> = items(&document, "subnetSet")
        .map(|item| {
            let subnet = Subnet {
                id: text(item, "subnetId"),
                vpc: text(item, "vpcId"),
                zone: text(item, "availabilityZone"),
                zone_id: text(item, "availabilityZoneId"),
            };
            (subnet.id.clone(), subnet)
        })
        .collect();
    ids.iter()
        .map(|id| found.get(id).cloned().ok_or_else(|| invalid(format!("The subnet ID '{id}' does not exist"))))
        .collect()
}

/// A VPC's first IPv4 block.
pub(super) async fn vpc_cidr(aws: &Aws, vpc: &str) -> Result<String, AwsError> {
    let xml = aws.query("ec2", "DescribeVpcs", &[("VpcId.1", vpc)]).await?;
    let document = parse(&xml)?;
    Ok(items(&document, "vpcSet").next().map(|item| text(item, "cidrBlock")).unwrap_or_default())
}

/// The role behind a role ARN; `None` where IAM has no such role.
pub(super) async fn role(aws: &Aws, arn: &str) -> Result<Option<Role>, AwsError> {
    let name = arn.rsplit('/').next().unwrap_or(arn);
    let xml = match aws.query("iam", "GetRole", &[("RoleName", name)]).await {
        Ok(xml) => xml,
        Err(refusal) if refusal.code == "NoSuchEntity" => return Ok(None),
        Err(refusal) => return Err(refusal),
    };
    let document = parse(&xml)?;
    let Some(node) = descendant(document.root(), "Role") else { return Ok(None) };
    let policy = text(node, "AssumeRolePolicyDocument");
    let decoded = percent_decoded(&policy);
    let role = Role {
        arn: text(node, "Arn"),
        id: text(node, "RoleId"),
        trust: serde_json::from_str(&decoded).or_else(|_| serde_json::from_str(&policy)).unwrap_or_default(),
    };
    Ok((role.arn == arn).then_some(role))
}

/// The user id (`AIDA…`) of an IAM user; `None` where IAM has no such user.
pub(super) async fn user_id(aws: &Aws, arn: &str) -> Result<Option<String>, AwsError> {
    let name = arn.rsplit('/').next().unwrap_or(arn);
    match aws.query("iam", "GetUser", &[("UserName", name)]).await {
        Ok(xml) => Ok(Some(text(parse(&xml)?.root(), "UserId"))),
        Err(refusal) if refusal.code == "NoSuchEntity" => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// The security group that EKS makes for each cluster: everything may speak to everything in it.
pub(super) async fn create_security_group(aws: &Aws, cluster: &str, vpc: &str, id: &str) -> Result<String, AwsError> {
    let number = u32::from_str_radix(id.get(..7).unwrap_or("0"), 16).unwrap_or(0);
    let name = format!("eks-cluster-sg-{cluster}-{number:09}");
    let owned = format!("kubernetes.io/cluster/{cluster}");
    let description = "EKS created security group applied to ENI that is attached to EKS Control Plane master nodes, \
                       as well as any managed workloads.";
    let xml = aws
        .query(
            "ec2",
            "CreateSecurityGroup",
            &[
                ("GroupName", &name),
                ("GroupDescription", description),
                ("VpcId", vpc),
                ("TagSpecification.1.ResourceType", "security-group"),
                ("TagSpecification.1.Tag.1.Key", "Name"),
                ("TagSpecification.1.Tag.1.Value", &name),
                ("TagSpecification.1.Tag.2.Key", &owned),
                ("TagSpecification.1.Tag.2.Value", "owned"),
                ("TagSpecification.1.Tag.3.Key", "aws:eks:cluster-name"),
                ("TagSpecification.1.Tag.3.Value", cluster),
            ],
        )
        .await?;
    let group = text(parse(&xml)?.root(), "groupId");
    aws.query(
        "ec2",
        "AuthorizeSecurityGroupIngress",
        &[("GroupId", &group), ("IpPermissions.1.IpProtocol", "-1"), ("IpPermissions.1.Groups.1.GroupId", &group)],
    )
    .await?;
    Ok(group)
}

/// Deletes a security group; one that is gone is fine.
pub(super) async fn delete_security_group(aws: &Aws, group: &str) -> Result<(), AwsError> {
    match aws.query("ec2", "DeleteSecurityGroup", &[("GroupId", group)]).await {
        Err(refusal) if refusal.code != "InvalidGroup.NotFound" => Err(refusal),
        _ => Ok(()),
    }
}

/// The architectures (`arm64`, `x86_64`) of instance types, by type; types that EC2 doesn't know are absent.
pub(super) async fn architectures(aws: &Aws, types: &[String]) -> Result<BTreeMap<String, Vec<String>>, AwsError> {
    let names: Vec<String> = (1..=types.len()).map(|n| format!("InstanceType.{n}")).collect();
    let params: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(types.iter().map(String::as_str)).collect();
    let xml = match aws.query("ec2", "DescribeInstanceTypes", &params).await {
        Ok(xml) => xml,
        Err(refusal) if refusal.code.starts_with("InvalidInstanceType") => return Ok(BTreeMap::new()),
        Err(refusal) => return Err(refusal),
    };
    let document = parse(&xml)?;
    Ok(items(&document, "instanceTypeSet")
        .map(|item| {
            let supported = descendant(item, "supportedArchitectures")
                .map(|list| list.children().filter_map(|child| child.text()).map(str::trim).map(str::to_owned))
                .map(|list| list.filter(|name| !name.is_empty()).collect())
                .unwrap_or_default();
            (text(item, "instanceType"), supported)
        })
        .collect())
}

/// The image that EKS recommends: what its node groups boot.
pub(super) async fn recommended_image(aws: &Aws, version: &str, architecture: &str) -> Result<String, AwsError> {
    let name = format!(
        "/aws/service/eks/optimized-ami/{version}/amazon-linux-2023/{architecture}/standard/recommended/image_id"
    );
    let answer = aws.json("ssm", "AmazonSSM.GetParameter", &json!({"Name": name})).await?;
    Ok(answer["Parameter"]["Value"].as_str().unwrap_or_default().to_owned())
}

/// An instance profile with one role in it.
pub(super) async fn create_instance_profile(aws: &Aws, name: &str, role_arn: &str) -> Result<(), AwsError> {
    let role = role_arn.rsplit('/').next().unwrap_or(role_arn);
    aws.query("iam", "CreateInstanceProfile", &[("InstanceProfileName", name)]).await?;
    aws.query("iam", "AddRoleToInstanceProfile", &[("InstanceProfileName", name), ("RoleName", role)]).await?;
    Ok(())
}

/// Deletes it again; what is gone is fine.
pub(super) async fn delete_instance_profile(aws: &Aws, name: &str, role_arn: &str) -> Result<(), AwsError> {
    let role = role_arn.rsplit('/').next().unwrap_or(role_arn);
    let absent = |answer: Result<String, AwsError>| match answer {
        Err(refusal) if refusal.code != "NoSuchEntity" => Err(refusal),
        _ => Ok(()),
    };
    let remove = [("InstanceProfileName", name), ("RoleName", role)];
    absent(aws.query("iam", "RemoveRoleFromInstanceProfile", &remove).await)?;
    absent(aws.query("iam", "DeleteInstanceProfile", &[("InstanceProfileName", name)]).await)
}

/// What instances of a node group are made from.
pub(super) struct NewInstances<'a> {
    pub(super) image: &'a str,
    pub(super) instance_type: &'a str,
    pub(super) count: usize,
    pub(super) subnet: &'a str,
    pub(super) security_group: &'a str,
    pub(super) instance_profile: &'a str,
    pub(super) spot: bool,
    pub(super) user_data: &'a str,
    pub(super) tags: &'a BTreeMap<String, String>,
}

/// Runs instances and answers their ids.
pub(super) async fn run_instances(aws: &Aws, new: &NewInstances<'_>) -> Result<Vec<String>, AwsError> {
    let count = new.count.to_string();
    let mut params: Vec<(String, &str)> = [
        ("ImageId", new.image),
        ("InstanceType", new.instance_type),
        ("MinCount", &count),
        ("MaxCount", &count),
        ("SubnetId", new.subnet),
        ("SecurityGroupId.1", new.security_group),
        ("IamInstanceProfile.Name", new.instance_profile),
        ("UserData", new.user_data),
        ("TagSpecification.1.ResourceType", "instance"),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if new.spot {
        params.push(("InstanceMarketOptions.MarketType".to_owned(), "spot"));
    }
    for (index, (key, value)) in (1..).zip(new.tags) {
        params.push((format!("TagSpecification.1.Tag.{index}.Key"), key));
        params.push((format!("TagSpecification.1.Tag.{index}.Value"), value));
    }
    let params: Vec<(&str, &str)> = params.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let xml = aws.query("ec2", "RunInstances", &params).await?;
    let document = parse(&xml)?;
    Ok(items(&document, "instancesSet").map(|item| text(item, "instanceId")).collect())
}

/// An instance that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) subnet: String,
    pub(super) private_dns_name: String,
}

/// A node group's instances that are pending or running.
pub(super) async fn group_instances(aws: &Aws, cluster: &str, group: &str) -> Result<Vec<Instance>, AwsError> {
    instances(
        aws,
        &[
            ("Filter.1.Name", "tag:eks:cluster-name"),
            ("Filter.1.Value.1", cluster),
            ("Filter.2.Name", "tag:eks:nodegroup-name"),
            ("Filter.2.Value.1", group),
            ("Filter.3.Name", "instance-state-name"),
            ("Filter.3.Value.1", "pending"),
            ("Filter.3.Value.2", "running"),
        ],
    )
    .await
}

/// The private DNS name of an instance; `None` where there is no such instance.
pub(super) async fn private_dns_name(aws: &Aws, instance: &str) -> Option<String> {
    let found = instances(aws, &[("InstanceId.1", instance)]).await.ok()?;
    found.into_iter().next().map(|instance| instance.private_dns_name).filter(|name| !name.is_empty())
}

async fn instances(aws: &Aws, params: &[(&str, &str)]) -> Result<Vec<Instance>, AwsError> {
    let xml = aws.query("ec2", "DescribeInstances", params).await?;
    let document = parse(&xml)?;
    Ok(document
        .descendants()
        .filter(|node| node.has_tag_name_local("instancesSet"))
        .flat_map(|set| set.children().filter(|child| child.has_tag_name_local("item")))
        .map(|item| Instance {
            id: text(item, "instanceId"),
            subnet: text(item, "subnetId"),
            private_dns_name: text(item, "privateDnsName"),
        })
        .collect())
}

/// Terminates instances; none is no call.
pub(super) async fn terminate(aws: &Aws, ids: &[String]) -> Result<(), AwsError> {
    if ids.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = (1..=ids.len()).map(|n| format!("InstanceId.{n}")).collect();
    let params: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(ids.iter().map(String::as_str)).collect();
    aws.query("ec2", "TerminateInstances", &params).await.map(|_| ())
}

/// Asks STS who a presigned GetCallerIdentity is, with the header that it was signed with.
pub(super) async fn presigned_identity(aws: &Aws, query: &str, host: &str, cluster: &str) -> Result<Caller, AwsError> {
    let mut call = wire::outgoing(aws, "sts", "GetCallerIdentity", Method::GET, &format!("/?{query}"))?;
    "anonymous".clone_into(&mut call.principal.arn);
    let header = |text: &str| {
        HeaderValue::from_str(text).map_err(|_| AwsError::new(400, "InvalidHeader", format!("bad header value {text}")))
    };
    call.headers.insert(http::header::HOST, header(host)?);
    call.headers.insert("x-k8s-aws-id", header(cluster)?);
    let answer = aws.gateway.dispatch(call).await;
    if let Some(refusal) = wire::error_of(&answer) {
        return Err(refusal);
    }
    let xml = String::from_utf8_lossy(&answer.body);
    let document = parse(&xml)?;
    let root = document.root();
    Ok(Caller { arn: text(root, "Arn"), user_id: text(root, "UserId"), account: text(root, "Account") })
}

trait LocalName {
    fn has_tag_name_local(&self, name: &str) -> bool;
}

impl LocalName for roxmltree::Node<'_, '_> {
    /// AWS's namespaces carry dates, which nobody wants to repeat.
    fn has_tag_name_local(&self, name: &str) -> bool {
        self.tag_name().name() == name
    }
}

fn parse(xml: &str) -> Result<roxmltree::Document<'_>, AwsError> {
    roxmltree::Document::parse(xml)
        .map_err(|error| AwsError::new(500, "ServerException", format!("an AWS answer is not XML: {error}")))
}

fn descendant<'a, 'i>(node: roxmltree::Node<'a, 'i>, name: &str) -> Option<roxmltree::Node<'a, 'i>> {
    node.descendants().find(|node| node.has_tag_name_local(name))
}

fn items<'a, 'i>(document: &'a roxmltree::Document<'i>, set: &str) -> impl Iterator<Item = roxmltree::Node<'a, 'i>> {
    descendant(document.root(), set)
        .into_iter()
        .flat_map(|set| set.children().filter(|child| child.has_tag_name_local("item")))
}

/// The text of the first element of a name below `node`; empty where there is none.
fn text(node: roxmltree::Node<'_, '_>, name: &str) -> String {
    descendant(node, name).and_then(|node| node.text()).unwrap_or_default().trim().to_owned()
}

fn percent_decoded(text: &str) -> String {
    // A form's value is percent-encoded too; a plus stays a plus in a policy.
    let encoded = text.replace('+', "%2B");
    url::form_urlencoded::parse(format!("v={encoded}").as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

impl Role {
    /// Whether the trust policy lets a service assume the role.
    pub(super) fn trusts(&self, service: &str) -> bool {
        let has = |value: &Value, wanted: &[&str]| match value {
            Value::String(one) => wanted.contains(&one.as_str()),
            Value::Array(many) => many.iter().filter_map(Value::as_str).any(|one| wanted.contains(&one)),
            _ => false,
        };
        let statements = match &self.trust["Statement"] {
            Value::Array(many) => many.iter().collect(),
            one => vec![one],
        };
        statements.iter().any(|statement| {
            statement["Effect"] == "Allow"
                && has(&statement["Action"], &["sts:AssumeRole", "sts:*", "*"])
                && has(&statement["Principal"]["Service"], &[service])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trust_policy_names_the_service() {
        let eks = "eks.amazonaws.com";
        let trusts = |service: Value, action: Value| {
            let trust = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
                "Principal": {"Service": service}, "Action": action}]});
            Role { arn: String::new(), id: String::new(), trust }.trusts(eks)
        };
        assert!(trusts(json!(eks), json!("sts:AssumeRole")));
        assert!(trusts(json!(["ec2.amazonaws.com", eks]), json!(["sts:AssumeRole", "sts:TagSession"])));
        assert!(!trusts(json!("ec2.amazonaws.com"), json!("sts:AssumeRole")));
        assert!(!trusts(json!(eks), json!("sts:TagSession")));
    }

    #[test]
    fn a_policy_out_of_iam_is_percent_encoded() {
        assert_eq!(percent_decoded("%7B%22a%22%3A%20%22b+c%22%7D"), "{\"a\": \"b+c\"}");
    }
}
