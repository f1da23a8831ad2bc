//! A network is made, changed by change sets, and left alone when nothing changed; what cannot be is refused by name;
//! networks of others are checked and not touched.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use slipway_local::cloud::{ACCOUNT, Kubernetes, REGION};
use slipway_local::gateway::call::Aws;
use slipway_states::failure::Failure;
use slipway_tests::{cloud::Deployed, privileges};

const ZONES: [&str; 3] = ["eu-west-1a", "eu-west-1b", "eu-west-1c"];

/// A run of one cluster that has got as far as its network.
struct Run<'a> {
    deployed: &'a Deployed,
    opened: Value,
}

/// How a step ended, with what it said on the way.
struct Ended {
    result: Result<Value, Failure>,
    said: Vec<String>,
}

impl Ended {
    fn output(self) -> Value {
        self.result.unwrap()
    }

    fn refused(self, name: &str) -> String {
        let failure = self.result.expect_err(name);
        assert_eq!(failure.error, name, "{}", failure.cause);
        failure.cause
    }
}

impl<'a> Run<'a> {
    /// Opens the `n`th run of a cluster, which closes the one before.
    async fn open(deployed: &'a Deployed, cluster: &str, n: u32) -> Self {
        let arn = format!("arn:aws:states:{REGION}:{ACCOUNT}:execution:slipway-provision:{cluster}-{n}");
        let execution = json!({"arn": arn, "startedAt": "2026-11-22T20:00:00Z"});
        let opened = deployed.invoke("open-run", &json!({"execution": execution, "spec": {"name": cluster}})).await;
        Self { deployed, opened: opened.unwrap() }
    }

    async fn close(self) {
        let mut closing = self.opened.clone();
        closing["outcome"] = json!("Succeeded");
        self.deployed.invoke("close-run", &closing).await.unwrap();
    }

    /// Asks for the network until it is there, or is not to be had.
    async fn ensure(&self, network: Value, more: Value) -> Ended {
        let zones = network["create"]["zones"].as_u64().unwrap_or(2);
        let mut input = json!({
            "run": self.opened["run"], "cluster": self.opened["cluster"], "network": network,
            "zones": ZONES[..usize::try_from(zones).unwrap()], "tags": {},
        });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (began, mut said) = (Instant::now(), Vec::new());
        while began.elapsed() < Duration::from_mins(2) {
            match self.deployed.invoke("ensure-network", &input).await {
                Ok(answer) if answer["done"] == false => {
                    said.push(answer["detail"].as_str().unwrap().to_owned());
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Ok(answer) => return Ended { result: Ok(answer["output"].clone()), said },
                Err(failure) => return Ended { result: Err(failure), said },
            }
        }
        panic!("no network after two minutes: {said:#?}");
    }
}

fn create(zones: u8, nat: &str, flow_logs: bool) -> Value {
    json!({"create": {"cidr": "10.20.0.0/16", "zones": zones, "nat": nat, "flowLogs": flow_logs}})
}

async fn ec2(aws: &Aws, action: &str, parameters: &[(&str, &str)]) -> String {
    aws.query("ec2", action, parameters).await.unwrap()
}

async fn nat_gateways(aws: &Aws, vpc: &str) -> usize {
    let of_vpc = [("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", vpc)];
    ec2(aws, "DescribeNatGateways", &of_vpc).await.matches("<state>available</state>").count()
}

fn ids(output: &Value, field: &str) -> Vec<String> {
    output[field].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_is_kept_as_its_spec_asks() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let aws = deployed.cloud.gateway().client("test.amazonaws.com", ACCOUNT, REGION);
    let output = is_made_and_left_alone(&deployed, &aws).await;
    is_changed_where_it_stands(&deployed, &aws, &output).await;
    its_drift_is_found(&deployed, &aws, &output).await;
    a_failure_is_told_and_cleared_away(&deployed, &aws).await;
    others_networks_are_checked_and_shared(&deployed, &aws, &output).await;
    privileges::compare(&deployed, "networks", &["provision", "teardown"]).unwrap();
    deployed.cloud.stop().await;
}

async fn is_made_and_left_alone(deployed: &Deployed, aws: &Aws) -> Value {
    let run = Run::open(deployed, "demo", 1).await;
    let asked = create(3, "perZone", true);
    let output = run.ensure(asked.clone(), json!({})).await.output();
    assert_eq!(ids(&output, "zones"), ZONES);
    assert_eq!((ids(&output, "privateSubnetIds").len(), ids(&output, "publicSubnetIds").len()), (3, 3));
    let vpc = output["vpcId"].as_str().unwrap();
    assert_eq!(nat_gateways(aws, vpc).await, 3);
    let logs = ec2(aws, "DescribeFlowLogs", &[]).await;
    assert!(
        logs.contains(&format!("<resourceId>{vpc}</resourceId>")) && logs.contains("/slipway/network/demo"),
        "{logs}"
    );

    let before = deployed.last_call();
    let again = run.ensure(asked, json!({})).await;
    assert!(again.said.is_empty(), "{:?}", again.said);
    assert_eq!(again.output(), output);
    let mutations = deployed.mutations(before);
    assert!(mutations.is_empty(), "{mutations:#?}");

    for other in [
        create(2, "perZone", true),
        json!({"create": {"cidr": "10.99.0.0/16", "zones": 3, "nat": "perZone", "flowLogs": true}}),
    ] {
        let cause = run.ensure(other, json!({})).await.refused("ImmutableChange");
        assert!(cause.contains("Zone3") || cause.contains("10.99.0.0/16"), "{cause}");
    }
    let mutations = deployed.mutations(before);
    assert!(mutations.is_empty(), "refused before anything was asked: {mutations:#?}");
    run.close().await;
    output
}

async fn is_changed_where_it_stands(deployed: &Deployed, aws: &Aws, output: &Value) {
    let run = Run::open(deployed, "demo", 2).await;
    let more = json!({"tags": {"team": "shop"}, "deletionProtection": true});
    let changed = run.ensure(create(3, "single", false), more.clone()).await;
    let said = changed.said.join("\n");
    for told in [
        "Nat is \"perZone\", asked for is \"single\"",
        "changes ",
        "PrivateDefaultRoute3 (AWS::EC2::Route)",
        "removes ",
    ] {
        assert!(said.contains(told), "{told} is not in: {said}");
    }
    assert_eq!(changed.output(), *output, "the same subnets");
    assert_eq!(nat_gateways(aws, output["vpcId"].as_str().unwrap()).await, 1);
    let subnet = &ids(output, "privateSubnetIds")[0];
    assert!(ec2(aws, "DescribeSubnets", &[("SubnetId.1", subnet)]).await.contains("<value>shop</value>"));
    let logs = ec2(aws, "DescribeFlowLogs", &[]).await;
    assert!(!logs.contains("/slipway/network/demo"), "{logs}");
    let stack = [("StackName", "slipway-network-demo")];
    let refused = aws.query("cloudformation", "DeleteStack", &stack).await.unwrap_err();
    assert!(refused.message.contains("TerminationProtection is enabled"), "{refused}");

    let before = deployed.last_call();
    run.ensure(create(3, "single", false), more).await.output();
    let mutations = deployed.mutations(before);
    assert!(mutations.is_empty(), "{mutations:#?}");
    run.close().await;
}

async fn its_drift_is_found(deployed: &Deployed, aws: &Aws, output: &Value) {
    let run = Run::open(deployed, "demo", 3).await;
    let asked = async || {
        run.ensure(create(3, "single", false), json!({"tags": {"team": "shop"}, "deletionProtection": true})).await
    };
    let subnet = &ids(output, "privateSubnetIds")[1];
    ec2(aws, "DeleteTags", &[("ResourceId.1", subnet), ("Tag.1.Key", "karpenter.sh/discovery")]).await;
    asked().await.output();
    assert!(ec2(aws, "DescribeSubnets", &[("SubnetId.1", subnet)]).await.contains("karpenter.sh/discovery"));

    let of_subnet = [("Filter.1.Name", "association.subnet-id"), ("Filter.1.Value.1", subnet.as_str())];
    let tables = ec2(aws, "DescribeRouteTables", &of_subnet).await;
    let of = |name: &str| tables.split(&format!("<{name}>")).nth(1).unwrap().split('<').next().unwrap().to_owned();
    let (table, gateway) = (of("routeTableId"), of("natGatewayId"));
    let route = [("RouteTableId", table.as_str()), ("DestinationCidrBlock", "0.0.0.0/0")];
    ec2(aws, "DeleteRoute", &route).await;
    let cause = asked().await.refused("NetworkDrifted");
    assert!(cause.contains(&format!("the private subnet {subnet}, in {table}, is gone")), "{cause}");
    ec2(aws, "CreateRoute", &[route[0], route[1], ("NatGatewayId", &gateway)]).await;
    asked().await.output();
    run.close().await;
}

async fn a_failure_is_told_and_cleared_away(deployed: &Deployed, aws: &Aws) {
    let group = json!({"logGroupName": "/slipway/network/other"});
    aws.json("logs", "Logs_20140328.CreateLogGroup", &group).await.unwrap();
    let (plain, logged) = (create(2, "single", false), create(2, "single", true));
    let run = Run::open(deployed, "other", 1).await;
    let cause = run.ensure(logged.clone(), json!({})).await.refused("NetworkFailed");
    assert!(cause.contains("ROLLBACK_COMPLETE: FlowLogGroup (AWS::Logs::LogGroup)"), "{cause}");
    run.close().await;

    let run = Run::open(deployed, "other", 2).await;
    let made = run.ensure(plain.clone(), json!({})).await;
    assert!(made.said[0].contains("is cleared away"), "{:?}", made.said);
    let output = made.output();
    run.close().await;

    let run = Run::open(deployed, "other", 3).await;
    let cause = run.ensure(logged.clone(), json!({})).await.refused("NetworkFailed");
    assert!(cause.contains("UPDATE_ROLLBACK_COMPLETE: FlowLogGroup (AWS::Logs::LogGroup)"), "{cause}");
    run.close().await;

    aws.json("logs", "Logs_20140328.DeleteLogGroup", &group).await.unwrap();
    let run = Run::open(deployed, "other", 4).await;
    let tagged = run.ensure(logged.clone(), json!({"tags": {"team": "shop"}})).await;
    assert_eq!(tagged.output(), output);
    run.close().await;
    let run = Run::open(deployed, "other", 5).await;
    let untagged = run.ensure(logged, json!({"tags": {}})).await;
    assert!(untagged.said[0].contains("its tags are others"), "{:?}", untagged.said);
    assert_eq!(untagged.output(), output);
    let subnet = &ids(&output, "privateSubnetIds")[0];
    assert!(!ec2(aws, "DescribeSubnets", &[("SubnetId.1", subnet)]).await.contains("shop"));
    run.close().await;
}

async fn others_networks_are_checked_and_shared(deployed: &Deployed, aws: &Aws, output: &Value) {
    let vpc = output["vpcId"].as_str().unwrap();
    let (private, public) = (ids(output, "privateSubnetIds"), ids(output, "publicSubnetIds"));
    let runs = [Run::open(deployed, "demo-2", 1).await, Run::open(deployed, "demo_2", 1).await];
    let before = deployed.last_call();
    // Two clusters of nearly one name, at the same time, in a VPC that bears a third one's tags.
    let listed = json!({"existing": {"vpcId": vpc, "subnetIds": [private[1], private[0]]}});
    let (one, other) =
        tokio::join!(runs[0].ensure(json!({"existing": {"vpcId": vpc}}), json!({})), runs[1].ensure(listed, json!({})));
    assert_eq!(ids(&one.output(), "privateSubnetIds"), private, "found by the tag of internal load balancers");
    assert_eq!(ids(&other.output(), "privateSubnetIds"), [private[1].clone(), private[0].clone()]);

    let bad = json!({"existing": {"vpcId": vpc, "subnetIds": [public[0], "subnet-0123456789abcdef0"]}});
    let cause = runs[0].ensure(bad, json!({})).await.refused("NetworkUnsuitable");
    for told in [
        &format!("network.existing.subnetIds[0]: {} is public", public[0]),
        "network.existing.subnetIds[1]: subnet-0123456789abcdef0 does not exist",
        "network.existing.subnetIds: the subnets are in 1 zone",
    ] {
        assert!(cause.contains(told), "{told} is not in: {cause}");
    }
    let nowhere = json!({"existing": {"vpcId": "vpc-0123456789abcdef0"}});
    let cause = runs[0].ensure(nowhere, json!({})).await.refused("NetworkUnsuitable");
    assert!(cause.contains("network.existing.vpcId: vpc-0123456789abcdef0 does not exist"), "{cause}");
    let mutations = deployed.mutations(before);
    assert!(mutations.is_empty(), "others' networks are not touched: {mutations:#?}");
    for run in runs {
        run.close().await;
    }
    let listed = aws.query("cloudformation", "ListStacks", &[]).await.unwrap();
    for stack in ["slipway-network-demo", "slipway-network-other", ">slipway<"] {
        assert!(listed.contains(stack), "{stack} is not in {listed}");
    }
}
