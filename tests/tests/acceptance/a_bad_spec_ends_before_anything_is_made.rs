//! Bad input ends in seconds, names the field, and nothing has been made. `tests/specs/bad/` has the specs, each with
//! the error that it must end with; those of the name `world-…` are bad only because of what is there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use slipway_local::cloud::Kubernetes;
use slipway_statemachine::{ClusterSpec, StepError};
use slipway_tests::{cloud::Deployed, repository};

/// A bad spec and how it ends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bad {
    /// What must be there first.
    given: Option<String>,
    spec: Value,
    /// The error's name.
    error: String,
    /// The path that the only violation names; none where the error comes from elsewhere.
    path: Option<String>,
    /// Part of the rule or cause.
    says: String,
}

/// The bad specs by the names of their files.
fn corpus() -> BTreeMap<String, Bad> {
    let folder = repository::root().join("tests/specs/bad");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files
        .map(|path| {
            let bad = serde_json::from_str(&std::fs::read_to_string(&path).unwrap());
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name.clone(), bad.unwrap_or_else(|error| panic!("{name}: {error}")))
        })
        .collect()
}

#[test]
fn each_bad_spec_is_refused_with_path_value_and_rule() {
    let pure: Vec<_> = corpus().into_iter().filter(|(name, _)| !name.starts_with("world-")).collect();
    assert!(pure.len() >= 40, "{} specs", pure.len());
    for (name, bad) in pure {
        let violations = ClusterSpec::parse(&bad.spec).expect_err(&name);
        assert_eq!(violations.len(), 1, "{name}: {violations:?}");
        let one = &violations[0];
        assert_eq!((one.name.as_str(), Some(&one.path)), (bad.error.as_str(), bad.path.as_ref()), "{name}: {one}");
        assert!(one.rule.contains(&bad.says), "{name}: {one}");
        let error = StepError::from(violations);
        assert!(error.cause.contains(&bad.path.unwrap()), "{name}: {}", error.cause);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_spec_ends_before_anything_is_made() {
    let deployed = Deployed::start(Kubernetes::None).await.unwrap();
    let places = network(&deployed).await;
    let mut bad: Vec<_> = corpus().into_iter().filter(|(name, _)| name.starts_with("world-")).collect();
    // And one of those that need no world, through the machine's own door.
    bad.push((
        "a-wrong-shape".to_owned(),
        Bad {
            given: None,
            spec: json!({"name": "demo", "core": {"size": "two"}}),
            error: "InvalidInput".to_owned(),
            path: None,
            says: "$.core.size".to_owned(),
        },
    ));
    bad.sort_by_key(|(_, bad)| bad.given.is_some());
    let mut before = deployed.last_call();
    let mut wrong = Vec::new();
    for (name, bad) in bad {
        if let Some(given) = &bad.given {
            assert_eq!(given, "as many VPCs as the quota allows");
            assert_eq!(mutations(&deployed, before), Vec::<String>::new());
            use_up_vpcs(&deployed).await;
            before = deployed.last_call();
        }
        let mut spec = bad.spec.to_string();
        for (place, id) in &places {
            spec = spec.replace(&format!("{{{{{place}}}}}"), id);
        }
        let ended = deployed.provision(&serde_json::from_str(&spec).unwrap()).await.unwrap();
        if (ended.status.as_str(), &ended.error) != ("FAILED", &bad.error) || !ended.cause.contains(&bad.says) {
            wrong.push(format!("{name} ended {} with {}: {}", ended.status, ended.error, ended.cause));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    what_an_organization_forbids_is_told_at_once(&deployed).await;
    assert_eq!(mutations(&deployed, before), Vec::<String>::new());
    deployed.cloud.stop().await;
}

/// Policies of an organization that deny what the run needs minutes later, and some that let it pass.
async fn what_an_organization_forbids_is_told_at_once(deployed: &Deployed) {
    let deny = |actions: Value, condition: Value| json!({"Effect": "Deny", "Action": actions, "Resource": "*", "Condition": condition});
    deployed.cloud.organize(vec![json!({"Version": "2012-10-17", "Statement": [
        deny(json!(["ec2:CreateVpc", "ec2:RunInstances", "eks:CreateNodegroup", "iam:CreateRole"]), json!({})),
        deny(json!("eks:CreateCluster"), json!({"Null": {"aws:RequestTag/cost": "true"}})),
        deny(json!("sqs:CreateQueue"), json!({"Null": {"aws:RequestTag/team": "true"}})),
        deny(json!("*"), json!({"StringNotEquals": {"aws:RequestedRegion": ["eu-west-1", "us-east-1"]}})),
        deny(json!("eks:CreateAddon"), json!({"ArnNotLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/slipway-*"}})),
    ]})]);
    let ended = deployed.provision(&json!({"name": "forbidden", "tags": {"team": "shop"}})).await.unwrap();
    assert_eq!((ended.status.as_str(), ended.error.as_str()), ("FAILED", "PreflightFailed"), "{}", ended.cause);
    let denied = "(permissions): A service control policy of the organization denies";
    for told in [
        format!("network.create {denied} ec2:CreateVpc to the role of slipway-ensure-network."),
        format!("account {denied} iam:CreateRole to the role of slipway-ensure-cluster-roles."),
        format!("name {denied} eks:CreateCluster to the role of slipway-create-cluster."),
        format!("core {denied} eks:CreateNodegroup to the role of slipway-ensure-node-group."),
        format!("karpenter {denied} iam:CreateRole to the role of slipway-bind-identity."),
        format!("nodePools {denied} ec2:RunInstances to Karpenter."),
    ] {
        assert!(ended.cause.contains(&told), "{told} is not in: {}", ended.cause);
    }
    assert_eq!(ended.cause.matches("(permissions)").count(), 6, "{}", ended.cause);
    deployed.cloud.organize(Vec::new());
}

fn mutations(deployed: &Deployed, since: u64) -> Vec<String> {
    let calls = deployed.mutations(since).into_iter();
    calls.map(|call| format!("{}:{} by {}", call.service, call.action, call.principal)).collect()
}

/// A VPC with public subnets and with subnets that have no way out, by what the specs call them.
async fn network(deployed: &Deployed) -> BTreeMap<&'static str, String> {
    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let vpc = ec2.create_vpc().cidr_block("10.77.0.0/16").send().await.unwrap().vpc.unwrap().vpc_id.unwrap();
    let gateway = ec2.create_internet_gateway().send().await.unwrap().internet_gateway.unwrap();
    let gateway = gateway.internet_gateway_id.unwrap();
    ec2.attach_internet_gateway().internet_gateway_id(&gateway).vpc_id(&vpc).send().await.unwrap();
    let table = ec2.create_route_table().vpc_id(&vpc).send().await.unwrap().route_table.unwrap();
    let table = table.route_table_id.unwrap();
    let route = ec2.create_route().route_table_id(&table).destination_cidr_block("0.0.0.0/0").gateway_id(&gateway);
    route.send().await.unwrap();
    let mut places = BTreeMap::from([("vpc", vpc.clone())]);
    for (number, (name, zone)) in [
        ("publicA", "eu-west-1a"),
        ("publicB", "eu-west-1b"),
        ("lonelyA", "eu-west-1a"),
        ("lonelyA2", "eu-west-1a"),
        ("lonelyB", "eu-west-1b"),
    ]
    .into_iter()
    .enumerate()
    {
        let block = format!("10.77.{number}.0/24");
        let made = ec2.create_subnet().vpc_id(&vpc).availability_zone(zone).cidr_block(block).send().await.unwrap();
        let id = made.subnet.unwrap().subnet_id.unwrap();
        if name.starts_with("public") {
            ec2.associate_route_table().route_table_id(&table).subnet_id(&id).send().await.unwrap();
        }
        places.insert(name, id);
    }
    places
}

/// Five VPCs a region is what an account has unless it asked for more.
async fn use_up_vpcs(deployed: &Deployed) {
    let ec2 = aws_sdk_ec2::Client::new(&deployed.config);
    let there = ec2.describe_vpcs().send().await.unwrap().vpcs.unwrap().len();
    for number in there..5 {
        ec2.create_vpc().cidr_block(format!("10.{}.0.0/16", 100 + number)).send().await.unwrap();
    }
}
