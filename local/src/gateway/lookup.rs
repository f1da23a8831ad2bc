//! What a decision needs to know of things that are there: their tags, their whole ARNs, what a launch template says.
//! The questions go straight to the service that has the thing: they are the cloud's own and are not recorded.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::call::{Call, Principal};
use super::permissions::{Tags, kind_of};
use super::route::Routes;
use super::wire;

/// Looks things up where a call works.
pub(super) struct Lookup<'a> {
    routes: &'a Routes,
    /// The call that is judged.
    pub(super) call: &'a Call,
}

/// What a launch template hands to its instances.
#[derive(Debug, Default)]
pub(super) struct LaunchTemplate {
    /// Ids of images, security groups and the like.
    pub ids: Vec<String>,
    /// The instance profile's name.
    pub profile: Option<String>,
    /// Tags of what is made, by kind.
    pub tags: BTreeMap<String, Tags>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(routes: &'a Routes, call: &'a Call) -> Self {
        Self { routes, call }
    }

    /// The tags of something; `None` if EC2 has no such thing, and then lets the caller know by its own error.
    pub(super) async fn tags(&self, arn: &str) -> Option<Tags> {
        let mut parts = arn.splitn(6, ':');
        let (service, rest) = (parts.nth(2)?, parts.nth(2)?);
        match service {
            "ec2" => self.ec2_tags(rest.rsplit('/').next().unwrap_or(rest)).await,
            "iam" => Some(self.iam_tags(arn, rest).await),
            "eks" => {
                let path = format!("/tags/{}", arn.replace(':', "%3A").replace('/', "%2F"));
                Some(mapped(&self.eks(&path).await.unwrap_or_default()["tags"]))
            }
            "sqs" => {
                let url = json!({"QueueUrl": format!("http://localhost/{}/{rest}", self.call.account)});
                let answer = self.json("sqs", "AmazonSQS.ListQueueTags", &url).await;
                Some(mapped(&answer.unwrap_or_default()["Tags"]))
            }
            "events" => {
                let answer = self.json("events", "AWSEvents.ListTagsForResource", &json!({"ResourceARN": arn})).await;
                Some(listed(&answer.unwrap_or_default()["Tags"]))
            }
            "logs" => {
                let target = "Logs_20140328.ListTagsForResource";
                let answer = self.json("logs", target, &json!({"resourceArn": arn.trim_end_matches(":*")})).await;
                Some(mapped(&answer.unwrap_or_default()["tags"]))
            }
            "cloudformation" => {
                let named = arn.strip_suffix("/*").map_or(arn, |stack| stack.rsplit('/').next().unwrap_or(stack));
                let answer = self.query("cloudformation", "DescribeStacks", &[("StackName", named)]).await;
                Some(answer.map(|xml| tags_in(&xml)).unwrap_or_default())
            }
            "elasticloadbalancing" => {
                let answer = self.query(service, "DescribeTags", &[("ResourceArns.member.1", arn)]).await;
                Some(answer.map(|xml| tags_in(&xml)).unwrap_or_default())
            }
            _ => Some(Tags::new()),
        }
    }

    async fn ec2_tags(&self, id: &str) -> Option<Tags> {
        let filter = [("Filter.1.Name", "resource-id"), ("Filter.1.Value.1", id)];
        let tags = tags_in(&self.query("ec2", "DescribeTags", &filter).await?);
        if !tags.is_empty() {
            return Some(tags);
        }
        let (describe, member) = match kind_of(id)? {
            "vpc" => ("DescribeVpcs", "VpcId.1"),
            "subnet" => ("DescribeSubnets", "SubnetId.1"),
            "security-group" => ("DescribeSecurityGroups", "GroupId.1"),
            "internet-gateway" => ("DescribeInternetGateways", "InternetGatewayId.1"),
            "natgateway" => ("DescribeNatGateways", "NatGatewayId.1"),
            "route-table" => ("DescribeRouteTables", "RouteTableId.1"),
            "network-acl" => ("DescribeNetworkAcls", "NetworkAclId.1"),
            "network-interface" => ("DescribeNetworkInterfaces", "NetworkInterfaceId.1"),
            "elastic-ip" => ("DescribeAddresses", "AllocationId.1"),
            "vpc-endpoint" => ("DescribeVpcEndpoints", "VpcEndpointId.1"),
            "instance" => ("DescribeInstances", "InstanceId.1"),
            "volume" => ("DescribeVolumes", "VolumeId.1"),
            "launch-template" => ("DescribeLaunchTemplates", "LaunchTemplateId.1"),
            "vpc-flow-log" => ("DescribeFlowLogs", "FlowLogId.1"),
            _ => return Some(Tags::new()),
        };
        let found = self.query("ec2", describe, &[(member, id)]).await;
        // Some of EC2's lists are silent about what they don't know.
        found.is_some_and(|answer| answer.contains(id)).then(Tags::new)
    }

    async fn iam_tags(&self, arn: &str, rest: &str) -> Tags {
        let name = rest.rsplit('/').next().unwrap_or(rest);
        let (action, member, value) = match rest.split('/').next() {
            Some("role") => ("ListRoleTags", "RoleName", name),
            // The emulator has no list of these tags; the description has them.
            Some("instance-profile") => {
                let answer = self.query("iam", "GetInstanceProfile", &[("InstanceProfileName", name)]).await;
                return answer.map(|xml| own_tags_in(&xml, "InstanceProfile")).unwrap_or_default();
            }
            Some("policy") => ("ListPolicyTags", "PolicyArn", arn),
            Some("oidc-provider") => ("ListOpenIDConnectProviderTags", "OpenIDConnectProviderArn", arn),
            _ => return Tags::new(),
        };
        self.query("iam", action, &[(member, value)]).await.map(|xml| tags_in(&xml)).unwrap_or_default()
    }

    /// The whole ARN of a role, instance profile or the like, whose path its name does not tell.
    pub(super) async fn iam_arn(&self, kind: &str, name: &str) -> Option<String> {
        let (action, member) = match kind {
            "role" => ("GetRole", "RoleName"),
            "instance-profile" => ("GetInstanceProfile", "InstanceProfileName"),
            "user" => ("GetUser", "UserName"),
            _ => return None,
        };
        let answer = self.query("iam", action, &[(member, name)]).await?;
        // An instance profile's answer has its role's ARN as well.
        let beginning = format!("arn:aws:iam::{}:{kind}/", self.call.account);
        texts(&answer, "Arn").into_iter().find(|arn| arn.starts_with(&beginning))
    }

    /// The ARN of the role in an instance profile.
    pub(super) async fn role_of_profile(&self, profile: &str) -> Option<String> {
        let answer = self.query("iam", "GetInstanceProfile", &[("InstanceProfileName", profile)]).await?;
        texts(&answer, "Arn").into_iter().find(|arn| arn.contains(":role/"))
    }

    /// The id of a launch template.
    pub(super) async fn launch_template_id(&self, name: &str) -> Option<String> {
        let answer = self.query("ec2", "DescribeLaunchTemplates", &[("LaunchTemplateName.1", name)]).await?;
        texts(&answer, "launchTemplateId").into_iter().next()
    }

    /// What the newest version of a launch template says; nothing of one that is not there.
    pub(super) async fn launch_template(&self, id: &str) -> LaunchTemplate {
        let answer = self.query("ec2", "DescribeLaunchTemplateVersions", &[("LaunchTemplateId", id)]).await;
        answer.and_then(|xml| read_launch_template(&xml)).unwrap_or_default()
    }

    /// What an association's filter finds, by the name of the element that has its id.
    pub(super) async fn associated(
        &self,
        describe: &str,
        filter: &str,
        association: &str,
        element: &str,
    ) -> Option<String> {
        let parameters = [("Filter.1.Name", filter), ("Filter.1.Value.1", association)];
        let answer = self.query("ec2", describe, &parameters).await?;
        let document = roxmltree::Document::parse(&answer).ok()?;
        let named = document.descendants().find(|node| node.text() == Some(association))?;
        // The element is beside the association's id, or in what has the association.
        named.ancestors().find_map(|node| {
            let beside = node.children().find(|child| child.tag_name().name() == element)?;
            beside.text().map(str::to_owned)
        })
    }

    /// What EKS answers to a GET; `None` for what it doesn't have.
    pub(super) async fn eks(&self, path: &str) -> Option<Value> {
        let mut call = self.own("eks", "");
        call.method = Method::GET;
        call.uri = path.parse().ok()?;
        let answer = self.routes.send(call).await;
        answer.status.is_success().then(|| serde_json::from_slice(&answer.body).ok()).flatten()
    }

    async fn query(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> Option<String> {
        let mut call = self.own(service, action);
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        call.headers.insert(header::CONTENT_TYPE, form);
        call.body = wire::form_body(action, wire::version(service), parameters);
        let answer = self.routes.send(call).await;
        answer.status.is_success().then(|| String::from_utf8_lossy(&answer.body).into_owned())
    }

    async fn json(&self, service: &str, target: &'static str, body: &Value) -> Option<Value> {
        let mut call = self.own(service, target.rsplit('.').next().unwrap_or(target));
        let kind = if service == "sqs" { "application/x-amz-json-1.0" } else { "application/x-amz-json-1.1" };
        call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        call.headers.insert(HeaderName::from_static("x-amz-target"), HeaderValue::from_static(target));
        call.body = Bytes::from(body.to_string());
        let answer = self.routes.send(call).await;
        answer.status.is_success().then(|| serde_json::from_slice(&answer.body).ok()).flatten()
    }

    fn own(&self, service: &str, action: &str) -> Call {
        Call {
            request_id: wire::request_id(),
            account: self.call.account.clone(),
            region: self.call.region.clone(),
            principal: Principal::service("iam.amazonaws.com", &self.call.account),
            service: service.to_owned(),
            action: action.to_owned(),
            method: Method::POST,
            uri: http::Uri::from_static("/"),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

fn mapped(value: &Value) -> Tags {
    let members = value.as_object().into_iter().flatten();
    members.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn listed(value: &Value) -> Tags {
    let tags = value.as_array().into_iter().flatten();
    tags.filter_map(|tag| Some((tag["Key"].as_str()?.to_owned(), tag["Value"].as_str().unwrap_or_default().to_owned())))
        .collect()
}

fn name(node: roxmltree::Node<'_, '_>) -> String {
    node.tag_name().name().to_owned()
}

/// Pairs of key and value, as `Key` and `Value` (IAM, CloudFormation) or `key` and `value` (EC2) side by side.
fn tags_in(xml: &str) -> Tags {
    let Ok(document) = roxmltree::Document::parse(xml) else {
        return Tags::new();
    };
    tags_below(document.root_element())
}

/// The tags of an element itself, not of what it contains.
fn own_tags_in(xml: &str, element: &str) -> Tags {
    let Ok(document) = roxmltree::Document::parse(xml) else {
        return Tags::new();
    };
    let found = document.descendants().find(|node| node.tag_name().name() == element);
    let own = found.and_then(|node| node.children().find(|child| child.tag_name().name() == "Tags"));
    own.map(tags_below).unwrap_or_default()
}

fn tags_below(node: roxmltree::Node<'_, '_>) -> Tags {
    node.descendants()
        .filter(|node| name(*node).eq_ignore_ascii_case("key"))
        .filter_map(|key| {
            let value = key.parent()?.children().find(|node| name(*node).eq_ignore_ascii_case("value"));
            Some((key.text()?.to_owned(), value.and_then(|value| value.text()).unwrap_or_default().to_owned()))
        })
        .collect()
}

fn texts(xml: &str, element: &str) -> Vec<String> {
    let Ok(document) = roxmltree::Document::parse(xml) else {
        return Vec::new();
    };
    let found = document.descendants().filter(|node| node.tag_name().name() == element);
    found.filter_map(|node| node.text()).map(|text| text.trim().to_owned()).collect()
}

fn read_launch_template(xml: &str) -> Option<LaunchTemplate> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let data = document.descendants().rfind(|node| node.tag_name().name() == "launchTemplateData")?;
    let texts = data.descendants().filter(roxmltree::Node::is_text).filter_map(|node| node.text());
    let ids = texts.filter(|text| kind_of(text).is_some());
    let profile = data.descendants().find(|node| node.tag_name().name() == "iamInstanceProfile");
    let profile = profile.and_then(|profile| {
        let text = profile.descendants().filter_map(|node| node.text()).find(|text| !text.trim().is_empty())?;
        Some(text.rsplit('/').next().unwrap_or(text).to_owned())
    });
    let mut tags: BTreeMap<String, Tags> = BTreeMap::new();
    for kind in data.descendants().filter(|node| node.tag_name().name() == "resourceType") {
        if let (Some(text), Some(specification)) = (kind.text(), kind.parent()) {
            tags.entry(text.to_owned()).or_default().extend(tags_below(specification));
        }
    }
    Some(LaunchTemplate { ids: ids.map(str::to_owned).collect(), profile, tags })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_profiles_tags_are_not_its_roles() {
        let xml = "<R><InstanceProfile><Roles><member><Tags><member><Key>a</Key><Value>1</Value></member></Tags></member>\
            </Roles><Tags><member><Key>b</Key><Value>2</Value></member></Tags></InstanceProfile></R>";
        assert_eq!(own_tags_in(xml, "InstanceProfile"), Tags::from([("b".to_owned(), "2".to_owned())]));
    }

    #[test]
    fn a_launch_template_is_read() {
        let xml = "<R xmlns=\"x\"><launchTemplateVersionSet><item><launchTemplateData><imageId>ami-1a</imageId>\
            <iamInstanceProfile><name>demo_1</name></iamInstanceProfile><securityGroupIdSet><item>sg-2b</item>\
            </securityGroupIdSet><tagSpecificationSet><item><resourceType>network-interface</resourceType><tagSet>\
            <item><key>karpenter.sh/nodepool</key><value>x86</value></item></tagSet></item></tagSpecificationSet>\
            </launchTemplateData></item></launchTemplateVersionSet></R>";
        let template = read_launch_template(xml).unwrap();
        assert_eq!(template.ids, ["ami-1a", "sg-2b"]);
        assert_eq!(template.profile.as_deref(), Some("demo_1"));
        assert_eq!(template.tags["network-interface"]["karpenter.sh/nodepool"], "x86");
    }
}
