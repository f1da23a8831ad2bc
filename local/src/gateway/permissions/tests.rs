//! What calls of the product's and of Karpenter's need, resource by resource.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::gateway::call::{Answer, Principal, Service};
use crate::gateway::route::Routes;

/// A service that answers one text to everything.
struct Says(String);

#[async_trait]
impl Service for Says {
    async fn handle(&self, _call: Call) -> Answer {
        let body = Bytes::from(self.0.clone());
        Answer { status: StatusCode::OK, headers: HeaderMap::new(), body, error_code: None }
    }
}

fn call(service: &str, action: &str, body: &str) -> Call {
    let mut headers = HeaderMap::new();
    let kind = if body.starts_with('{') { "application/x-amz-json-1.1" } else { "application/x-www-form-urlencoded" };
    headers.insert("content-type", kind.parse().unwrap());
    Call {
        request_id: "r".into(),
        account: "111122223333".into(),
        region: "eu-west-1".into(),
        principal: Principal::service("x", "111122223333"),
        service: service.into(),
        action: action.into(),
        method: Method::POST,
        uri: "/".parse().unwrap(),
        headers,
        body: Bytes::from(body.to_owned()),
    }
}

fn rest(service: &str, action: &str, path: &str, body: &Value) -> Call {
    Call { uri: path.parse().unwrap(), ..call(service, action, &body.to_string()) }
}

/// `action on resource`, account and region left out; `action` alone where it knows none.
async fn needed(call: &Call, routes: &Routes) -> Vec<String> {
    let written = |permission: Permission| match permission.resource {
        Some(arn) => {
            let arn = arn.replace("arn:aws:", "").replace(":eu-west-1:", ":").replace(":111122223333:", ":");
            format!("{} on {}", permission.action, arn.replace("::", ":"))
        }
        None => permission.action,
    };
    of(&Lookup::new(routes, call)).await.into_iter().map(written).collect()
}

async fn alone(call: &Call) -> Vec<String> {
    needed(call, &Routes::default()).await
}

#[tokio::test]
async fn networks_are_judged_by_what_they_join_and_make() {
    let form = "VpcId=vpc-1a&CidrBlock=10.0.0.0/24&TagSpecification.1.ResourceType=subnet\
        &TagSpecification.1.Tag.1.Key=slipway:cluster&TagSpecification.1.Tag.1.Value=demo&Filter.1.Value.1=vpc-2b";
    let subnet = call("ec2", "CreateSubnet", form);
    assert_eq!(
        alone(&subnet).await,
        ["ec2:CreateSubnet on ec2:subnet/*", "ec2:CreateSubnet on ec2:vpc/vpc-1a", "ec2:CreateTags on ec2:subnet/*"]
    );
    let tagging = of(&Lookup::new(&Routes::default(), &subnet)).await.pop().unwrap();
    assert_eq!(tagging.context["ec2:CreateAction"], ["CreateSubnet"]);
    assert_eq!(tagging.context["aws:RequestTag/slipway:cluster"], ["demo"]);
    assert_eq!(tagging.context["aws:TagKeys"], ["slipway:cluster"]);
    let route = call("ec2", "CreateRoute", "RouteTableId=rtb-1a&NatGatewayId=nat-2b");
    assert_eq!(alone(&route).await, ["ec2:CreateRoute on ec2:route-table/rtb-1a"]);
    assert_eq!(alone(&call("ec2", "DescribeVpcs", "VpcId.1=vpc-1a")).await, ["ec2:DescribeVpcs"]);
    let attribute = call("ec2", "DescribeVpcAttribute", "VpcId=vpc-1a");
    assert_eq!(alone(&attribute).await, ["ec2:DescribeVpcAttribute on ec2:vpc/vpc-1a"]);
    let tags = call("ec2", "CreateTags", "ResourceId.1=i-1a&ResourceId.2=vol-2b&Tag.1.Key=Name&Tag.1.Value=x");
    assert_eq!(alone(&tags).await, ["ec2:CreateTags on ec2:instance/i-1a", "ec2:CreateTags on ec2:volume/vol-2b"]);
    let logs =
        call("ec2", "CreateFlowLogs", "ResourceId.1=vpc-1a&DeliverLogsPermissionArn=arn:aws:iam::111122223333:role/r");
    let logs = alone(&logs).await;
    assert_eq!(logs.last().unwrap(), "iam:PassRole on iam:role/r");
    assert!(logs.contains(&"ec2:CreateFlowLogs on ec2:vpc-flow-log/*".to_owned()), "{logs:?}");
}

#[tokio::test]
async fn an_address_is_found_by_its_association() {
    let routes = Routes::default();
    let found =
        "<R><item><allocationId>eipalloc-1a</allocationId><associationId>eipassoc-2b</associationId></item></R>";
    routes.add("ec2", Arc::new(Says(found.to_owned())));
    let call = call("ec2", "DisassociateAddress", "AssociationId=eipassoc-2b");
    assert_eq!(needed(&call, &routes).await, ["ec2:DisassociateAddress on ec2:elastic-ip/eipalloc-1a"]);
}

#[tokio::test]
async fn an_instant_fleet_is_judged_by_all_that_it_launches() {
    let routes = Routes::default();
    let template = "<R><launchTemplateId>lt-1a</launchTemplateId><launchTemplateData><imageId>ami-1a</imageId>\
        <iamInstanceProfile><name>p</name></iamInstanceProfile><securityGroupIdSet><item>sg-1a</item></securityGroupIdSet>\
        <tagSpecificationSet><item><resourceType>network-interface</resourceType><tagSet><item><key>k</key>\
        <value>v</value></item></tagSet></item></tagSpecificationSet></launchTemplateData></R>";
    routes.add("ec2", Arc::new(Says(template.to_owned())));
    routes.add("iam", Arc::new(Says("<R><Arn>arn:aws:iam::111122223333:role/node</Arn></R>".to_owned())));
    let form = "Type=instant&LaunchTemplateConfigs.1.LaunchTemplateSpecification.LaunchTemplateName=karpenter\
        &LaunchTemplateConfigs.1.Overrides.1.SubnetId=subnet-1a&TagSpecification.1.ResourceType=instance\
        &TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=v";
    let found = needed(&call("ec2", "CreateFleet", form), &routes).await;
    for expected in [
        "ec2:CreateFleet on ec2:fleet/*",
        "ec2:CreateFleet on ec2:instance/*",
        "ec2:CreateFleet on ec2:volume/*",
        "ec2:CreateFleet on ec2:launch-template/lt-1a",
        "ec2:CreateFleet on ec2:subnet/subnet-1a",
        "ec2:RunInstances on ec2:instance/*",
        "ec2:RunInstances on ec2:network-interface/*",
        "ec2:RunInstances on ec2:security-group/sg-1a",
        "ec2:CreateTags on ec2:instance/*",
        "ec2:CreateTags on ec2:network-interface/*",
        "iam:PassRole on iam:role/node",
    ] {
        assert!(found.iter().any(|needed| needed == expected), "{expected}: {found:#?}");
    }
    assert!(
        found.iter().any(|needed| needed.starts_with("ec2:RunInstances on ec2:") && needed.ends_with("image/ami-1a")),
        "{found:#?}"
    );
}

#[tokio::test]
async fn iam_is_judged_by_whole_arns_and_by_what_is_attached() {
    let attach = call("iam", "AttachRolePolicy", "RoleName=r&PolicyArn=arn:aws:iam::aws:policy/X");
    assert_eq!(alone(&attach).await, ["iam:AttachRolePolicy on iam:role/r"]);
    let permission = of(&Lookup::new(&Routes::default(), &attach)).await.pop().unwrap();
    assert_eq!(permission.context["iam:PolicyARN"], ["arn:aws:iam::aws:policy/X"]);
    let provider =
        "Url=https%3A%2F%2Foidc.eks.eu-west-1.amazonaws.com%2Fid%2FA&Tags.member.1.Key=k&Tags.member.1.Value=v";
    assert_eq!(
        alone(&call("iam", "CreateOpenIDConnectProvider", provider)).await,
        [
            "iam:CreateOpenIDConnectProvider on iam:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A",
            "iam:TagOpenIDConnectProvider on iam:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A"
        ]
    );
    let linked = call("iam", "CreateServiceLinkedRole", "AWSServiceName=spot.amazonaws.com");
    let role = "iam:CreateServiceLinkedRole on iam:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot";
    assert_eq!(alone(&linked).await, [role]);
    assert_eq!(alone(&call("iam", "ListRoles", "")).await, ["iam:ListRoles"]);
}

#[tokio::test]
async fn eks_passes_roles_and_tags_what_it_makes() {
    let role = "arn:aws:iam::111122223333:role/core";
    let group = json!({"nodegroupName": "core", "nodeRole": role, "tags": {"slipway:cluster": "demo"}});
    let create = rest("eks", "CreateNodegroup", "/clusters/demo/node-groups", &group);
    assert_eq!(
        alone(&create).await,
        [
            "eks:CreateNodegroup on eks:cluster/demo",
            "eks:TagResource on eks:nodegroup/demo/core/*",
            "iam:PassRole on iam:role/core",
            "iam:PassRole on iam:role/core",
            "iam:GetRole on iam:role/core",
            "iam:ListAttachedRolePolicies on iam:role/core"
        ]
    );
    let cluster = json!({"name": "demo", "roleArn": role, "encryptionConfig": [{"provider": {"keyArn": "arn:aws:kms:eu-west-1:111122223333:key/k"}}]});
    assert_eq!(
        alone(&rest("eks", "CreateCluster", "/clusters", &cluster)).await,
        [
            "eks:CreateCluster",
            "iam:PassRole on iam:role/core",
            "kms:DescribeKey on kms:key/k",
            "kms:CreateGrant on kms:key/k"
        ]
    );
    let entry = "/clusters/demo/access-entries/arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Fadmin/access-policies";
    let policy = json!({"policyArn": "arn:aws:eks::aws:cluster-access-policy/X", "accessScope": {"type": "cluster"}});
    let associate = rest("eks", "AssociateAccessPolicy", entry, &policy);
    assert_eq!(
        alone(&associate).await,
        ["eks:AssociateAccessPolicy on eks:access-entry/demo/role/111122223333/admin/*"]
    );
    let versions = rest("eks", "DescribeClusterVersions", "/cluster-versions", &json!({}));
    assert_eq!(alone(&versions).await, ["eks:DescribeClusterVersions"]);
}

#[tokio::test]
async fn other_services_by_their_names() {
    let queue = call("sqs", "CreateQueue", &json!({"QueueName": "q", "tags": {"k": "v"}}).to_string());
    assert_eq!(alone(&queue).await, ["sqs:CreateQueue on sqs:q", "sqs:TagQueue on sqs:q"]);
    let url = call("sqs", "DeleteQueue", &json!({"QueueUrl": "http://127.0.0.1:1/111122223333/q"}).to_string());
    assert_eq!(alone(&url).await, ["sqs:DeleteQueue on sqs:q"]);
    let targets =
        json!({"Rule": "r", "Targets": [{"Id": "1", "Arn": "a", "RoleArn": "arn:aws:iam::111122223333:role/r"}]});
    assert_eq!(
        alone(&call("events", "PutTargets", &targets.to_string())).await,
        ["events:PutTargets on events:rule/r", "iam:PassRole on iam:role/r"]
    );
    let event = json!({"Entries": [{"EventBusName": "slipway"}]}).to_string();
    assert_eq!(alone(&call("events", "PutEvents", &event)).await, ["events:PutEvents on events:event-bus/slipway"]);
    let stack = "StackName=slipway-network-demo&RoleARN=arn:aws:iam::111122223333:role/r";
    assert_eq!(
        alone(&call("cloudformation", "UpdateStack", stack)).await,
        ["cloudformation:UpdateStack on cloudformation:stack/slipway-network-demo/*", "iam:PassRole on iam:role/r"]
    );
    assert_eq!(alone(&call("cloudformation", "DescribeStacks", "")).await, ["cloudformation:ListStacks"]);
    let items = json!({"TransactItems": [{"Put": {"TableName": "t"}}, {"ConditionCheck": {"TableName": "t"}}]});
    assert_eq!(
        alone(&call("dynamodb", "TransactWriteItems", &items.to_string())).await,
        ["dynamodb:PutItem on dynamodb:table/t", "dynamodb:ConditionCheckItem on dynamodb:table/t"]
    );
    let parameter = json!({"Name": "/aws/service/eks/optimized-ami/1.36/x"}).to_string();
    assert_eq!(
        alone(&call("ssm", "GetParameter", &parameter)).await,
        ["ssm:GetParameter on ssm:parameter/aws/service/eks/optimized-ami/1.36/x"]
    );
    let invoke = rest("lambda", "Invoke", "/2015-03-31/functions/slipway-x/invocations?Qualifier=live", &json!({}));
    assert_eq!(alone(&invoke).await, ["lambda:InvokeFunction on lambda:function:slipway-x:live"]);
    assert_eq!(alone(&call("tagging", "GetResources", "{}")).await, ["tag:GetResources"]);
    assert_eq!(alone(&call("sts", "GetCallerIdentity", "")).await, Vec::<String>::new());
}
