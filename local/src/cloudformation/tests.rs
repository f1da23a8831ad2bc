//! Stacks from creation to deletion, over an EC2 that only gives out ids and takes notes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};

use super::*;

const TEMPLATE: &str = "
Description: a network
Parameters:
  Block: {Type: String, Default: 10.20.0.0/16}
  Nat: {Type: String, Default: 'true', AllowedValues: ['true', 'false']}
  Zones: {Type: List<String>}
Conditions:
  WithNat: !Equals [!Ref Nat, 'true']
Resources:
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: !Ref Block, EnableDnsSupport: true}}
  Gateway: {Type: AWS::EC2::InternetGateway}
  Attachment: {Type: AWS::EC2::VPCGatewayAttachment, Properties: {VpcId: !Ref Vpc, InternetGatewayId: !Ref Gateway}}
  Subnet:
    Type: AWS::EC2::Subnet
    Properties:
      VpcId: !Ref Vpc
      AvailabilityZone: !Select [0, !Ref Zones]
      CidrBlock: !Select [1, !Cidr [!GetAtt Vpc.CidrBlock, 4, 12]]
      Tags: [{Key: Name, Value: !Sub '${AWS::StackName}-public'}]
  Address: {Type: AWS::EC2::EIP, Condition: WithNat, DependsOn: Attachment, Properties: {Domain: vpc}}
  NatGateway:
    Type: AWS::EC2::NatGateway
    Condition: WithNat
    Properties: {SubnetId: !Ref Subnet, AllocationId: !GetAtt Address.AllocationId}
Outputs:
  VpcId: {Value: !Ref Vpc}
  NatId: {Condition: WithNat, Value: !Ref NatGateway}
";

/// Answers every call with ids of its own; refuses one action if told to.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<(String, Parameters)>>,
    refused: Option<&'static str>,
}

impl Notes {
    fn actions(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(action, _)| action.clone()).collect()
    }

    fn of(&self, action: &str) -> Parameters {
        self.calls.lock().unwrap().iter().find(|(other, _)| other == action).expect(action).1.clone()
    }
}

#[async_trait]
impl Dispatch for Notes {
    async fn dispatch(&self, call: Call) -> Answer {
        assert_eq!(call.principal.arn, "arn:aws:iam::111122223333:user/admin");
        let number = {
            let mut calls = self.calls.lock().unwrap();
            calls.push((call.action.clone(), wire::parameters(&call)));
            calls.len()
        };
        if self.refused == Some(call.action.as_str()) {
            return wire::refuse(&call, &AwsError::new(400, "AddressLimitExceeded", "The maximum number of addresses"));
        }
        let names = ["vpcId", "internetGatewayId", "subnetId", "publicIp", "allocationId", "natGatewayId"];
        wire::ec2_answer(&call, &names.map(|name| element(name, &format!("{name}-{number}"))).concat())
    }
}

fn call(action: &str, parameters: &[(&str, &str)]) -> Call {
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", action)
        .extend_pairs(parameters)
        .finish();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    Call {
        request_id: wire::request_id(),
        account: "111122223333".into(),
        region: "eu-west-1".into(),
        principal: Principal::service("arn:aws:iam::111122223333:user/admin", "111122223333"),
        service: "cloudformation".into(),
        action: action.into(),
        method: Method::POST,
        uri: "/".parse().unwrap(),
        headers,
        body: form.into(),
    }
}

fn engine(refused: Option<&'static str>) -> (Arc<CloudFormation>, Arc<Notes>) {
    let notes = Arc::new(Notes { refused, ..Notes::default() });
    (CloudFormation::new(notes.clone(), ScaledClock::new(10_000.0)), notes)
}

fn creation<'a>(extra: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut parameters = vec![
        ("StackName", "net"),
        ("TemplateBody", TEMPLATE),
        ("ClientRequestToken", "t-1"),
        ("Parameters.member.1.ParameterKey", "Zones"),
        ("Parameters.member.1.ParameterValue", "eu-west-1a,eu-west-1b"),
        ("Tags.member.1.Key", "slipway:cluster"),
        ("Tags.member.1.Value", "demo"),
    ];
    parameters.extend(extra);
    parameters
}

async fn ask(engine: &CloudFormation, action: &str, parameters: &[(&str, &str)]) -> Result<String, AwsError> {
    let answer = engine.handle(call(action, parameters)).await;
    match wire::error_of(&answer) {
        Some(error) => Err(error),
        None => Ok(String::from_utf8(answer.body.to_vec()).unwrap()),
    }
}

/// Polls until the stack's status is no longer one of the `…_IN_PROGRESS`, and answers it.
async fn settled(engine: &CloudFormation, id: &str) -> String {
    for _ in 0..500 {
        let described = ask(engine, "DescribeStacks", &[("StackName", id)]).await.unwrap();
        let status = described.split("<StackStatus>").nth(1).unwrap().split('<').next().unwrap();
        if !status.ends_with("_IN_PROGRESS") {
            return described;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the stack does not settle");
}

fn id_in(xml: &str) -> String {
    xml.split("<StackId>").nth(1).unwrap().split('<').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_stack_is_made_in_order_and_unmade_in_reverse() {
    let (engine, notes) = engine(None);
    let id = id_in(&ask(&engine, "CreateStack", &creation(&[])).await.unwrap());
    let described = settled(&engine, "net").await;
    assert!(described.contains("<StackStatus>CREATE_COMPLETE</StackStatus>"), "{described}");
    assert!(described.contains("<OutputKey>VpcId</OutputKey><OutputValue>vpcId-"), "{described}");

    let subnet = notes.of("CreateSubnet");
    assert_eq!(subnet["CidrBlock"], "10.20.16.0/20");
    assert_eq!(subnet["AvailabilityZone"], "eu-west-1a");
    let tags: Vec<&String> = subnet.iter().filter(|(key, _)| key.ends_with(".Key")).map(|(_, value)| value).collect();
    assert_eq!(
        tags,
        [
            "slipway:cluster",
            "aws:cloudformation:stack-name",
            "aws:cloudformation:stack-id",
            "Name",
            "aws:cloudformation:logical-id"
        ]
    );
    assert!(notes.of("CreateNatGateway")["AllocationId"].starts_with("allocationId-"));

    let events = ask(&engine, "DescribeStackEvents", &[("StackName", "net")]).await.unwrap();
    assert!(events.find("CREATE_COMPLETE") < events.find("User Initiated"), "newest first: {events}");

    ask(&engine, "DeleteStack", &[("StackName", "net")]).await.unwrap();
    let described = settled(&engine, &id).await;
    assert!(described.contains("<StackStatus>DELETE_COMPLETE</StackStatus>"), "{described}");
    let deletions: Vec<String> = notes
        .actions()
        .into_iter()
        .filter(|action| !action.starts_with("Create") && !action.ends_with("Attribute"))
        .collect();
    let position = |action: &str| deletions.iter().position(|other| other == action).expect(action);
    assert!(position("DeleteNatGateway") < position("ReleaseAddress"));
    assert!(position("ReleaseAddress") < position("DetachInternetGateway"));
    assert!(position("DetachInternetGateway") < position("DeleteVpc"));
    let gone = ask(&engine, "DescribeStacks", &[("StackName", "net")]).await.unwrap_err();
    assert_eq!(gone.message, "Stack with id net does not exist");
}

#[tokio::test]
async fn a_failure_takes_everything_back_and_says_why() {
    let (engine, notes) = engine(Some("AllocateAddress"));
    ask(&engine, "CreateStack", &creation(&[])).await.unwrap();
    let described = settled(&engine, "net").await;
    assert!(described.contains("<StackStatus>ROLLBACK_COMPLETE</StackStatus>"), "{described}");
    let events = ask(&engine, "DescribeStackEvents", &[("StackName", "net")]).await.unwrap();
    assert!(events.contains("The maximum number of addresses (Status Code: 400, Error Code: AddressLimitExceeded)"));
    assert!(events.contains("The following resource(s) failed to create: [Address]. Rollback requested by user."));
    assert!(notes.actions().contains(&"DeleteVpc".to_owned()));
    assert!(!notes.actions().contains(&"ReleaseAddress".to_owned()), "what was never made is not unmade");
}

#[tokio::test]
async fn a_token_makes_a_creation_repeatable() {
    let (engine, _) = engine(None);
    let first = id_in(&ask(&engine, "CreateStack", &creation(&[])).await.unwrap());
    let again = id_in(&ask(&engine, "CreateStack", &creation(&[])).await.unwrap());
    assert_eq!(first, again);
    let other = [("StackName", "net"), ("TemplateBody", TEMPLATE), ("ClientRequestToken", "t-2")];
    assert_eq!(ask(&engine, "CreateStack", &other).await.unwrap_err().code, "AlreadyExistsException");
}

#[tokio::test]
async fn conditions_leave_resources_and_outputs_out() {
    let (engine, notes) = engine(None);
    let without =
        creation(&[("Parameters.member.2.ParameterKey", "Nat"), ("Parameters.member.2.ParameterValue", "false")]);
    ask(&engine, "CreateStack", &without).await.unwrap();
    let described = settled(&engine, "net").await;
    assert!(!described.contains("NatId"), "{described}");
    assert!(!notes.actions().contains(&"CreateNatGateway".to_owned()));
    let same = ask(&engine, "UpdateStack", &without).await.unwrap_err();
    assert_eq!(same.message, "No updates are to be performed.");
    let other = ask(&engine, "UpdateStack", &creation(&[])).await.unwrap_err();
    assert!(other.message.contains("only creates and deletes"), "an omitted parameter takes its default: {other}");
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_is_made() {
    let (engine, notes) = engine(None);
    let refused =
        async |parameters: &[(&str, &str)]| ask(&engine, "CreateStack", parameters).await.unwrap_err().message;
    let no_zones = [("StackName", "net"), ("TemplateBody", TEMPLATE)];
    assert_eq!(refused(&no_zones).await, "Parameters: [Zones] must have values");
    assert!(refused(&[("StackName", "1net"), ("TemplateBody", TEMPLATE)]).await.contains("regular expression"));
    let unknown = creation(&[("Parameters.member.2.ParameterKey", "Foo")]);
    assert_eq!(refused(&unknown).await, "Parameters: [Foo] do not exist in the template");
    let wrong = creation(&[("Parameters.member.2.ParameterKey", "Nat"), ("Parameters.member.2.ParameterValue", "no")]);
    assert_eq!(refused(&wrong).await, "Parameter 'Nat' must be one of AllowedValues");
    let role = "Resources:\n  Role: {Type: AWS::IAM::Role, Properties: {AssumeRolePolicyDocument: {}}}\n";
    assert_eq!(
        refused(&[("StackName", "net"), ("TemplateBody", role)]).await,
        "Requires capabilities : [CAPABILITY_IAM]"
    );
    assert!(notes.actions().is_empty());
}

#[test]
fn a_template_with_other_types_belongs_to_somebody_else() {
    assert!(owns(TEMPLATE));
    assert!(!owns("Resources:\n  A: {Type: AWS::EC2::VPC}\n  B: {Type: AWS::Lambda::Function}\n"));
    assert!(!owns("Transform: AWS::Serverless-2016-10-31\nResources:\n  A: {Type: AWS::EC2::VPC}\n"));
    assert!(!owns("not: [a template"));
}
