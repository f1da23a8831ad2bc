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

/// Answers every call with ids of its own; refuses one action while told to.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<(String, Parameters)>>,
    refused: Mutex<Option<&'static str>>,
    calls_ever: std::sync::atomic::AtomicUsize,
}

impl Notes {
    fn actions(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(action, _)| action.clone()).collect()
    }

    fn refuse(&self, action: Option<&'static str>) {
        *self.refused.lock().unwrap() = action;
    }

    /// Forgets what was called until now.
    fn forget(&self) {
        self.calls.lock().unwrap().clear();
    }

    fn of(&self, action: &str) -> Parameters {
        self.calls.lock().unwrap().iter().find(|(other, _)| other == action).expect(action).1.clone()
    }
}

#[async_trait]
impl Dispatch for Notes {
    async fn dispatch(&self, call: Call) -> Answer {
        assert_eq!(call.principal.arn, "arn:aws:iam::111122223333:user/admin");
        self.calls.lock().unwrap().push((call.action.clone(), wire::parameters(&call)));
        if *self.refused.lock().unwrap() == Some(call.action.as_str()) {
            let error = match call.action.as_str() {
                "DeleteVpc" => ("DependencyViolation", "The vpc has dependencies and cannot be deleted."),
                _ => ("AddressLimitExceeded", "The maximum number of addresses has been reached."),
            };
            return wire::refuse(&call, &AwsError::new(400, error.0, error.1));
        }
        let number = self.calls_ever.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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
    let notes = Arc::new(Notes { refused: Mutex::new(refused), ..Notes::default() });
    (CloudFormation::new(notes.clone(), ScaledClock::new(10_000.0), None), notes)
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

/// The same as a creation, but with a token of its own.
fn update<'a>(extra: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    creation(&[&[("ClientRequestToken", "t-update")], extra].concat())
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
    assert!(events.contains("Resource handler returned message: &quot;The maximum number of addresses has been reached. (Service: Ec2, Status Code: 400, Request ID: "));
    assert!(events.contains("HandlerErrorCode: ServiceLimitExceeded)"), "{events}");
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
    let without = [without, vec![("ClientRequestToken", "t-2")]].concat();
    let same = ask(&engine, "UpdateStack", &without).await.unwrap_err();
    assert_eq!(same.message, "No updates are to be performed.");
    notes.forget();
    ask(&engine, "UpdateStack", &update(&[])).await.unwrap();
    let described = settled(&engine, "net").await;
    assert!(
        described.contains("UPDATE_COMPLETE") && described.contains("NatId"),
        "an omitted parameter takes its default"
    );
    assert_eq!(notes.actions(), ["AllocateAddress", "CreateNatGateway"]);
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

const OTHER_TEMPLATE: &str = "
Parameters:
  Block: {Type: String, Default: 10.20.0.0/16}
  Zones: {Type: List<String>}
Resources:
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: !Ref Block, EnableDnsSupport: true, EnableDnsHostnames: true}}
  Subnet:
    Type: AWS::EC2::Subnet
    Properties:
      VpcId: !Ref Vpc
      AvailabilityZone: !Select [1, !Ref Zones]
      CidrBlock: !Select [1, !Cidr [!GetAtt Vpc.CidrBlock, 4, 12]]
Outputs:
  VpcId: {Value: !Ref Vpc}
  SubnetId: {Value: !Ref Subnet}
";

/// The update to the other template: the VPC is changed where it stands, the subnet replaced, the rest goes.
fn other_template<'a>() -> Vec<(&'a str, &'a str)> {
    let update = update(&[]).into_iter().filter(|(name, _)| *name != "TemplateBody");
    update.chain([("TemplateBody", OTHER_TEMPLATE)]).collect()
}

async fn created(refused: Option<&'static str>) -> (Arc<CloudFormation>, Arc<Notes>) {
    let (engine, notes) = engine(None);
    ask(&engine, "CreateStack", &creation(&[])).await.unwrap();
    assert!(settled(&engine, "net").await.contains("<StackStatus>CREATE_COMPLETE</StackStatus>"));
    notes.forget();
    notes.refuse(refused);
    (engine, notes)
}

#[tokio::test]
async fn an_update_changes_replaces_adds_and_removes() {
    let (engine, notes) = created(None).await;
    let subnet_before =
        text_of(&ask(&engine, "DescribeStackResource", &named("Subnet")).await.unwrap(), "PhysicalResourceId");
    ask(&engine, "UpdateStack", &other_template()).await.unwrap();
    let described = settled(&engine, "net").await;
    assert!(described.contains("<StackStatus>UPDATE_COMPLETE</StackStatus>"), "{described}");
    assert!(described.contains("<LastUpdatedTime>") && described.contains("SubnetId"), "{described}");

    let actions = notes.actions();
    assert_eq!(actions[..2], ["ModifyVpcAttribute", "CreateSubnet"], "{actions:?}");
    assert_eq!(notes.of("CreateSubnet")["AvailabilityZone"], "eu-west-1b");
    let position = |action: &str| actions.iter().position(|other| other == action).expect(action);
    assert!(position("DeleteNatGateway") < position("DeleteSubnet"), "{actions:?}");
    assert_eq!(notes.of("DeleteSubnet")["SubnetId"], subnet_before);
    assert!(!actions.contains(&"DeleteVpc".to_owned()));
    let events = ask(&engine, "DescribeStackEvents", &[("StackName", "net")]).await.unwrap();
    assert!(events.contains("Requested update requires the creation of a new physical resource; hence creating one."));
    assert!(events.contains("<ClientRequestToken>t-update</ClientRequestToken>"));
    let again = ask(&engine, "UpdateStack", &other_template()).await.unwrap();
    assert_eq!(id_in(&again), id_in(&described), "the token was seen");
    let after = settled(&engine, "net").await;
    assert_eq!(text_of(&after, "LastUpdatedTime"), text_of(&described, "LastUpdatedTime"), "and nothing is begun");
}

#[tokio::test]
async fn tags_of_the_stack_go_on_to_what_is_there() {
    let (engine, notes) = created(None).await;
    let tags =
        update(&[("Tags.member.1.Value", "other"), ("Tags.member.2.Key", "team"), ("Tags.member.2.Value", "shop")]);
    ask(&engine, "UpdateStack", &tags).await.unwrap();
    assert!(settled(&engine, "net").await.contains("UPDATE_COMPLETE"));
    assert_eq!(notes.actions().iter().filter(|action| *action == "CreateTags").count(), 5, "{:?}", notes.actions());
    assert_eq!(notes.actions().len(), 5, "an attachment has no tags");
    let tagged = notes.of("CreateTags");
    let values: Vec<&String> = ["Tag.1.Value", "Tag.2.Value"].iter().map(|name| &tagged[*name]).collect();
    assert_eq!(values, ["other", "shop"], "{tagged:?}");
}

#[tokio::test]
async fn an_update_that_fails_goes_back() {
    let without =
        creation(&[("Parameters.member.2.ParameterKey", "Nat"), ("Parameters.member.2.ParameterValue", "false")]);
    let (engine, notes) = engine(None);
    ask(&engine, "CreateStack", &without).await.unwrap();
    settled(&engine, "net").await;
    notes.refuse(Some("CreateNatGateway"));
    notes.forget();
    ask(&engine, "UpdateStack", &update(&[])).await.unwrap();
    let described = settled(&engine, "net").await;
    assert!(described.contains("<StackStatus>UPDATE_ROLLBACK_COMPLETE</StackStatus>"), "{described}");
    assert!(
        described.contains("<ParameterValue>false</ParameterValue>"),
        "the parameters are those before: {described}"
    );
    assert_eq!(notes.actions(), ["AllocateAddress", "CreateNatGateway", "ReleaseAddress"]);
    let events = ask(&engine, "DescribeStackEvents", &[("StackName", "net")]).await.unwrap();
    assert!(events.contains("The following resource(s) failed to create: [NatGateway]."), "{events}");
    assert!(events.contains("UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS"), "{events}");
    notes.refuse(None);
    ask(&engine, "UpdateStack", &update(&[("ClientRequestToken", "t-3")])).await.unwrap();
    assert!(settled(&engine, "net").await.contains("<StackStatus>UPDATE_COMPLETE</StackStatus>"));
}

#[tokio::test]
async fn a_replacement_that_fails_brings_the_old_one_back() {
    let (engine, notes) = created(Some("CreateSubnet")).await;
    ask(&engine, "UpdateStack", &other_template()).await.unwrap();
    assert!(settled(&engine, "net").await.contains("<StackStatus>UPDATE_ROLLBACK_COMPLETE</StackStatus>"));
    assert!(!notes.actions().iter().any(|action| action.starts_with("Delete")), "{:?}", notes.actions());
    assert_eq!(notes.actions(), ["ModifyVpcAttribute", "CreateSubnet", "ModifyVpcAttribute"]);
    assert_eq!(notes.of("ModifyVpcAttribute")["EnableDnsHostnames.Value"], "true");
}

#[tokio::test]
async fn a_way_back_that_fails_is_gone_again_when_asked() {
    let (engine, notes) = created(Some("ModifyVpcAttribute")).await;
    ask(&engine, "UpdateStack", &other_template()).await.unwrap();
    assert!(settled(&engine, "net").await.contains("<StackStatus>UPDATE_ROLLBACK_FAILED</StackStatus>"));
    let refused = ask(&engine, "UpdateStack", &update(&[("ClientRequestToken", "t-9")])).await.unwrap_err();
    assert!(refused.message.ends_with("is in UPDATE_ROLLBACK_FAILED state and can not be updated."), "{refused}");
    ask(&engine, "ContinueUpdateRollback", &[("StackName", "net")]).await.unwrap();
    assert!(settled(&engine, "net").await.contains("<StackStatus>UPDATE_ROLLBACK_FAILED</StackStatus>"));
    notes.refuse(None);
    ask(&engine, "ContinueUpdateRollback", &[("StackName", "net")]).await.unwrap();
    assert!(settled(&engine, "net").await.contains("<StackStatus>UPDATE_ROLLBACK_COMPLETE</StackStatus>"));
}

fn named(resource: &str) -> [(&str, &str); 2] {
    [("StackName", "net"), ("LogicalResourceId", resource)]
}

fn text_of(xml: &str, name: &str) -> String {
    xml.split(&format!("<{name}>")).nth(1).expect(name).split('<').next().unwrap().to_owned()
}

fn change_set<'a>(name: &'a str, update: Vec<(&'a str, &'a str)>) -> Vec<(&'a str, &'a str)> {
    let update = update.into_iter().filter(|(name, _)| *name != "ClientRequestToken");
    update.chain([("ChangeSetName", name), ("ClientToken", "c-1")]).collect()
}

/// Polls until the change set is made, and answers it.
async fn planned(engine: &CloudFormation, name: &str) -> String {
    for _ in 0..500 {
        let about = [("StackName", "net"), ("ChangeSetName", name)];
        let described = ask(engine, "DescribeChangeSet", &about).await.unwrap();
        if !described.contains("<Status>CREATE_IN_PROGRESS</Status>") {
            return described;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the change set is not made");
}

#[tokio::test]
async fn a_change_set_says_what_would_be_done_and_does_it() {
    let (engine, notes) = created(None).await;
    let made = ask(&engine, "CreateChangeSet", &change_set("change-1", other_template())).await.unwrap();
    let again = ask(&engine, "CreateChangeSet", &change_set("change-1", other_template())).await.unwrap();
    assert_eq!(text_of(&made, "Id"), text_of(&again, "Id"), "the token was seen");
    let described = planned(&engine, "change-1").await;
    assert_eq!(text_of(&described, "Status"), "CREATE_COMPLETE");
    let replaced: Vec<(String, String, String)> = described
        .split("<ResourceChange>")
        .skip(1)
        .map(|change| {
            let replacement =
                if change.contains("<Replacement>") { text_of(change, "Replacement") } else { String::new() };
            (text_of(change, "Action"), text_of(change, "LogicalResourceId"), replacement)
        })
        .collect();
    let expected = [
        ("Modify", "Vpc", "False"),
        ("Modify", "Subnet", "True"),
        ("Remove", "Address", ""),
        ("Remove", "Attachment", ""),
        ("Remove", "Gateway", ""),
        ("Remove", "NatGateway", ""),
    ];
    assert_eq!(replaced, expected.map(|(action, name, how)| (action.to_owned(), name.to_owned(), how.to_owned())));
    assert!(notes.actions().is_empty(), "nothing is done yet");

    let execute = [("StackName", "net"), ("ChangeSetName", "change-1")];
    ask(&engine, "ExecuteChangeSet", &execute).await.unwrap();
    assert!(settled(&engine, "net").await.contains("<StackStatus>UPDATE_COMPLETE</StackStatus>"));
    let executed = ask(&engine, "ExecuteChangeSet", &execute).await.unwrap_err();
    assert_eq!(executed.code, "InvalidChangeSetStatus");
    assert!(executed.message.contains("current execution status of [EXECUTE_COMPLETE]"), "{executed}");
}

#[tokio::test]
async fn a_change_set_without_changes_fails() {
    let (engine, _) = created(None).await;
    ask(&engine, "CreateChangeSet", &change_set("same", update(&[]))).await.unwrap();
    let described = planned(&engine, "same").await;
    assert_eq!(text_of(&described, "Status"), "FAILED");
    assert!(text_of(&described, "StatusReason").starts_with("The submitted information didn't contain changes."));
    let refused =
        ask(&engine, "ExecuteChangeSet", &[("StackName", "net"), ("ChangeSetName", "same")]).await.unwrap_err();
    assert!(refused.message.ends_with("cannot be executed in its current status of [FAILED]"), "{refused}");
    ask(&engine, "DeleteChangeSet", &[("StackName", "net"), ("ChangeSetName", "same")]).await.unwrap();
    let listed = ask(&engine, "ListChangeSets", &[("StackName", "net")]).await.unwrap();
    assert!(!listed.contains("same"), "{listed}");
}

#[tokio::test]
async fn a_change_set_can_make_a_stack() {
    let (engine, notes) = engine(None);
    let mut creating = change_set("first", creation(&[]));
    creating.push(("ChangeSetType", "CREATE"));
    ask(&engine, "CreateChangeSet", &creating).await.unwrap();
    let described = planned(&engine, "first").await;
    assert_eq!(described.matches("<Action>Add</Action>").count(), 6, "{described}");
    assert!(notes.actions().is_empty());
    ask(&engine, "ExecuteChangeSet", &[("StackName", "net"), ("ChangeSetName", "first")]).await.unwrap();
    assert!(settled(&engine, "net").await.contains("<StackStatus>CREATE_COMPLETE</StackStatus>"));
}

#[tokio::test]
async fn a_deletion_that_fails_says_why_and_can_leave_things_behind() {
    let (engine, notes) = created(Some("DeleteVpc")).await;
    ask(&engine, "UpdateTerminationProtection", &[("StackName", "net"), ("EnableTerminationProtection", "true")])
        .await
        .unwrap();
    let protected = ask(&engine, "DeleteStack", &[("StackName", "net")]).await.unwrap_err();
    assert_eq!(protected.message, "Stack [net] cannot be deleted while TerminationProtection is enabled");
    ask(&engine, "UpdateTerminationProtection", &[("StackName", "net"), ("EnableTerminationProtection", "false")])
        .await
        .unwrap();
    let early = [("StackName", "net"), ("RetainResources.member.1", "Vpc")];
    assert!(ask(&engine, "DeleteStack", &early).await.unwrap_err().message.contains("DELETE_FAILED"));
    ask(&engine, "DeleteStack", &[("StackName", "net")]).await.unwrap();
    let described = settled(&engine, "net").await;
    assert!(described.contains("<StackStatus>DELETE_FAILED</StackStatus>"), "{described}");
    assert!(described.contains("The following resource(s) failed to delete: [Vpc]."), "{described}");
    let events = ask(&engine, "DescribeStackEvents", &[("StackName", "net")]).await.unwrap();
    assert!(events.contains("has dependencies and cannot be deleted."), "{events}");
    let wrong = [("StackName", "net"), ("RetainResources.member.1", "Subnet")];
    assert!(ask(&engine, "DeleteStack", &wrong).await.unwrap_err().message.contains("[Subnet]"));
    notes.forget();
    ask(&engine, "DeleteStack", &early).await.unwrap();
    let gone = settled(&engine, &id_in(&described)).await;
    assert!(gone.contains("<StackStatus>DELETE_COMPLETE</StackStatus>"), "{gone}");
    assert!(notes.actions().is_empty(), "what is retained is left alone: {:?}", notes.actions());
}

#[tokio::test]
async fn lists_come_in_pages() {
    let notes = Arc::new(Notes::default());
    let engine = CloudFormation::new(notes, ScaledClock::new(10_000.0), Some(2));
    ask(&engine, "CreateStack", &creation(&[])).await.unwrap();
    settled(&engine, "net").await;
    let (mut names, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut about = vec![("StackName", "net")];
        if let Some(token) = &token {
            about.push(("NextToken", token));
        }
        let page = ask(&engine, "ListStackResources", &about).await.unwrap();
        let found: Vec<String> =
            page.split("<LogicalResourceId>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned()).collect();
        assert!(found.len() <= 2, "{found:?}");
        names.extend(found);
        if !page.contains("<NextToken>") {
            break;
        }
        token = Some(text_of(&page, "NextToken"));
    }
    assert_eq!(names, ["Address", "Attachment", "Gateway", "NatGateway", "Subnet", "Vpc"]);
    let bogus = ask(&engine, "ListStackResources", &[("StackName", "net"), ("NextToken", "x")]).await.unwrap_err();
    assert_eq!(bogus.code, "ValidationError");
}

#[test]
fn a_template_with_other_types_belongs_to_somebody_else() {
    assert!(owns(TEMPLATE));
    assert!(!owns("Resources:\n  A: {Type: AWS::EC2::VPC}\n  B: {Type: AWS::Lambda::Function}\n"));
    assert!(!owns("Transform: AWS::Serverless-2016-10-31\nResources:\n  A: {Type: AWS::EC2::VPC}\n"));
    assert!(!owns("not: [a template"));
}
