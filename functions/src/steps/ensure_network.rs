//! ensure-network: makes the cluster's VPC as a CloudFormation stack, or checks one that is there.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_cloudformation::types::{Capability, Parameter, Stack, Tag};
use aws_sdk_ec2::types::{Filter, RouteTable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterKey, ErrorName, Progress, Run, Step, StepError,
    names::{CLUSTER_TAG, DISCOVERY_TAG, stack as stack_name, tags},
    spec::{Nat, NetworkCreate, NetworkExisting, NetworkSpec},
};
use time::OffsetDateTime;
use ulid::Ulid;

use crate::{
    Context,
    aws::error::{During as _, code, message, refused},
};

const TEMPLATE: &str = include_str!("../../../infra/network.yaml");

/// A NAT gateway alone takes two minutes.
const STACK_POLL_SECONDS: u32 = 20;

/// Makes or checks the network.
#[derive(Debug)]
pub struct EnsureNetwork;

/// Which network, and where.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// The cluster.
    pub cluster: ClusterKey,
    /// The spec's.
    pub network: NetworkSpec,
    /// Zones by name, as preflight chose them.
    pub zones: Vec<String>,
    /// The spec's.
    pub tags: BTreeMap<String, String>,
}

/// The network as later steps need it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// `vpc-…`
    pub vpc_id: String,
    /// One a zone, in the order of `zones`; for an existing network as the spec lists them.
    pub private_subnet_ids: Vec<String>,
    /// One a zone, in the order of `zones`; empty for an existing network.
    pub public_subnet_ids: Vec<String>,
    /// By name.
    pub zones: Vec<String>,
    /// The stack, where we made one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_name: Option<String>,
}

impl Step for EnsureNetwork {
    const NAME: &'static str = "ensure-network";
    const ERRORS: &'static [ErrorName] = &[ErrorName::NetworkFailed, ErrorName::NotOurs];
    type Input = Input;
    type Output = Progress<Output>;
}

/// The stack as CloudFormation describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its ARN.
    pub id: String,
    /// `CREATE_IN_PROGRESS`, …
    pub status: String,
    /// The value of [`CLUSTER_TAG`].
    pub owner: Option<String>,
    /// As it was made with.
    pub parameters: BTreeMap<String, String>,
    /// As it gives.
    pub outputs: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// What to do about the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make it.
    Create,
    /// Clear away what an earlier run's failed creation left: a stack without resources.
    Delete,
    /// Ask again.
    Wait,
    /// It is there.
    Done(Output),
    /// It failed; its events say why.
    Explain,
    /// It cannot be used.
    Refuse(StepError),
}

/// What to do about the stack of `cluster`, which should have these parameters.
#[must_use]
pub fn decide(
    stack: Option<&Observed>,
    wanted: &BTreeMap<String, String>,
    cluster: &ClusterKey,
    run_began: OffsetDateTime,
) -> Action {
    let Some(stack) = stack else { return Action::Create };
    let name = stack_name(cluster);
    if stack.owner.as_deref() != Some(&cluster.name) {
        let cause = format!("The stack {name} exists without the tag {CLUSTER_TAG}={}.", cluster.name);
        return Action::Refuse(StepError::new(ErrorName::NotOurs, cause));
    }
    match stack.status.as_str() {
        "CREATE_COMPLETE" | "UPDATE_COMPLETE" | "UPDATE_ROLLBACK_COMPLETE" | "IMPORT_COMPLETE" => {
            match (differences(&stack.parameters, wanted), output(&name, &stack.outputs)) {
                (Some(differences), _) => Action::Refuse(
                    StepError::new(
                        ErrorName::NetworkFailed,
                        format!("The network of {} is not as the spec asks: {differences}.", cluster.name),
                    )
                    .remedy(format!(
                        "A network that carries a cluster is not rebuilt. Put the old value back into the spec, or \
                         update the stack {name} by hand with infra/network.yaml, then start again."
                    )),
                ),
                (None, Some(output)) => Action::Done(output),
                (None, None) => {
                    let cause = format!("The stack {name} lacks outputs that infra/network.yaml has.");
                    Action::Refuse(StepError::new(ErrorName::NetworkFailed, cause))
                }
            }
        }
        // A stack is not made again under its name until it is gone; but this run's failure is to be told.
        "ROLLBACK_COMPLETE" if stack.created_at < run_began => Action::Delete,
        status if status.ends_with("_IN_PROGRESS") => Action::Wait,
        _ => Action::Explain,
    }
}

/// What the stack has otherwise than it should, for a person.
fn differences(have: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> Option<String> {
    let different: Vec<String> = wanted
        .iter()
        .filter_map(|(name, wanted)| {
            let have = have.get(name).map_or("", String::as_str);
            (have != wanted).then(|| format!("{name} is {have:?}, asked for is {wanted:?}"))
        })
        .collect();
    (!different.is_empty()).then(|| different.join("; "))
}

fn output(name: &str, outputs: &BTreeMap<String, String>) -> Option<Output> {
    let list = |name: &str| -> Option<Vec<String>> { Some(outputs.get(name)?.split(',').map(str::to_owned).collect()) };
    Some(Output {
        vpc_id: outputs.get("VpcId")?.clone(),
        private_subnet_ids: list("PrivateSubnetIds")?,
        public_subnet_ids: list("PublicSubnetIds")?,
        zones: list("Zones")?,
        stack_name: Some(name.to_owned()),
    })
}

/// The parameters of `infra/network.yaml`.
///
/// # Errors
/// `InvalidInput`, when the block or the zones are not as the spec's rules have them.
pub fn parameters(
    cluster: &ClusterKey,
    create: &NetworkCreate,
    zones: &[String],
) -> Result<BTreeMap<String, String>, StepError> {
    let invalid = |cause: String| StepError::new(ErrorName::InvalidInput, cause);
    let block: ipnet::Ipv4Net = create
        .cidr
        .parse()
        .map_err(|_| invalid(format!("`network.create.cidr` is no IPv4 block: {:?}.", create.cidr)))?;
    let prefix = block.prefix_len();
    if !(16..=20).contains(&prefix) {
        return Err(invalid(format!("`network.create.cidr` must be /16 to /20, not /{prefix}.")));
    }
    let [first, second, more @ ..] = zones else {
        return Err(invalid(format!("`zones` must name two or three zones, not {zones:?}.")));
    };
    let nat = match create.nat {
        Nat::Single => "single",
        Nat::PerZone => "perZone",
    };
    Ok(BTreeMap::from(
        [
            ("ClusterName", cluster.name.clone()),
            ("Cidr", create.cidr.clone()),
            ("PrivateHostBits", (30 - prefix).to_string()),
            ("PublicHostBits", (28 - prefix).to_string()),
            ("Zone1", first.clone()),
            ("Zone2", second.clone()),
            ("Zone3", more.first().cloned().unwrap_or_default()),
            ("Nat", nat.to_owned()),
            ("FlowLogs", create.flow_logs.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    ))
}

/// Makes the network, or reports how far it is.
///
/// # Errors
/// `NetworkFailed` with the failed resource's own words; `NotOurs`.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    match &input.network {
        NetworkSpec::Create(create) => make(cx, &input, create).await,
        NetworkSpec::Existing(existing) => adopt(cx, &input, existing).await.map(Progress::done),
    }
}

async fn make(cx: &Context, input: &Input, create: &NetworkCreate) -> Result<Progress<Output>, StepError> {
    let Input { run, cluster, zones, .. } = input;
    let (name, wanted) = (stack_name(cluster), parameters(cluster, create, zones)?);
    let run_began = Ulid::from_string(&run.id).map_or(OffsetDateTime::UNIX_EPOCH, |id| id.datetime().into());
    let stack = observe(cx, &name).await?;
    let status = stack.as_ref().map_or("", |stack| stack.status.as_str());
    match decide(stack.as_ref(), &wanted, cluster, run_began) {
        Action::Done(output) => Ok(Progress::done(output)),
        Action::Refuse(error) => Err(error),
        Action::Explain => Err(StepError::new(
            ErrorName::NetworkFailed,
            format!(
                "The stack {name} is {status}: {}.",
                reason(cx, stack.as_ref().map_or(&name, |stack| &stack.id)).await?
            ),
        )),
        Action::Wait => {
            let busy = busy(cx, &name).await?;
            Ok(Progress::wait(STACK_POLL_SECONDS, format!("{name} is {status}{busy}")))
        }
        Action::Delete => {
            cx.state.hold(run, cluster).await?;
            let token = format!("slipway-clear-{}", run.id);
            let delete = cx.aws.cloudformation().delete_stack().stack_name(&name).client_request_token(token);
            delete.send().await.during("cloudformation:DeleteStack")?;
            Ok(Progress::wait(5, format!("{name} of an earlier run is cleared away")))
        }
        Action::Create => {
            cx.state.hold(run, cluster).await?;
            self::create(cx, input, &name, &wanted).await?;
            Ok(Progress::wait(STACK_POLL_SECONDS, format!("{name} is begun")))
        }
    }
}

async fn create(
    cx: &Context,
    input: &Input,
    name: &str,
    parameters: &BTreeMap<String, String>,
) -> Result<(), StepError> {
    let mut request = cx
        .aws
        .cloudformation()
        .create_stack()
        .stack_name(name)
        .template_body(TEMPLATE)
        // The flow log's role.
        .capabilities(Capability::CapabilityIam)
        .client_request_token(format!("slipway-{}", input.run.id));
    for (name, value) in parameters {
        request = request.parameters(Parameter::builder().parameter_key(name).parameter_value(value).build());
    }
    for (key, value) in tags(&input.cluster, &input.tags) {
        request = request.tags(Tag::builder().key(key).value(value).build());
    }
    match request.send().await {
        // Somebody was faster; the next look tells who.
        Err(error) if code(&error) == Some("AlreadyExistsException") => Ok(()),
        other => other.map(|_| ()).during("cloudformation:CreateStack"),
    }
}

/// The stack of a name, if there is one.
pub(super) async fn observe(cx: &Context, name: &str) -> Result<Option<Observed>, StepError> {
    match cx.aws.cloudformation().describe_stacks().stack_name(name).send().await {
        Ok(answer) => Ok(answer.stacks().first().map(observed)),
        Err(error)
            if code(&error) == Some("ValidationError")
                && message(&error).is_some_and(|message| message.contains("does not exist")) =>
        {
            Ok(None)
        }
        Err(error) => Err(refused("cloudformation:DescribeStacks", &error)),
    }
}

fn observed(stack: &Stack) -> Observed {
    let pair = |name: Option<&str>, value: Option<&str>| Some((name?.to_owned(), value.unwrap_or_default().to_owned()));
    Observed {
        id: stack.stack_id().unwrap_or_default().to_owned(),
        status: stack.stack_status().map(|status| status.as_str().to_owned()).unwrap_or_default(),
        owner: stack
            .tags()
            .iter()
            .find(|tag| tag.key() == Some(CLUSTER_TAG))
            .and_then(|tag| tag.value())
            .map(str::to_owned),
        parameters: stack.parameters().iter().filter_map(|p| pair(p.parameter_key(), p.parameter_value())).collect(),
        outputs: stack.outputs().iter().filter_map(|o| pair(o.output_key(), o.output_value())).collect(),
        created_at: stack
            .creation_time()
            .and_then(|at| OffsetDateTime::from_unix_timestamp(at.secs()).ok())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH),
    }
}

/// Which resources are being made, for whoever watches.
async fn busy(cx: &Context, name: &str) -> Result<String, StepError> {
    let answer = cx.aws.cloudformation().describe_stack_resources().stack_name(name).send().await;
    let answer = answer.during("cloudformation:DescribeStackResources")?;
    let mut busy: Vec<&str> = answer
        .stack_resources()
        .iter()
        .filter(|resource| resource.resource_status().is_some_and(|status| status.as_str().ends_with("_IN_PROGRESS")))
        .filter_map(|resource| resource.logical_resource_id())
        .collect();
    busy.sort_unstable();
    Ok(match busy.as_slice() {
        [] => String::new(),
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!(": {first}, {second}, {third} and {} more", rest.len())
        }
        few => format!(": {}", few.join(", ")),
    })
}

/// Why a stack failed: the first resource that did, in its own words; later ones were cancelled for it.
async fn reason(cx: &Context, stack: &str) -> Result<String, StepError> {
    let events = cx
        .aws
        .cloudformation()
        .describe_stack_events()
        .stack_name(stack)
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>()
        .await
        .during("cloudformation:DescribeStackEvents")?;
    let newest_first: Vec<Event> = events
        .iter()
        .map(|event| Event {
            resource: event.logical_resource_id().unwrap_or_default(),
            kind: event.resource_type().unwrap_or_default(),
            status: event.resource_status().map_or("", |status| status.as_str()),
            reason: event.resource_status_reason().unwrap_or_default(),
        })
        .collect();
    Ok(culprit(&newest_first))
}

/// A stack's event, as far as it explains.
#[derive(Debug, Clone, Copy)]
struct Event<'a> {
    resource: &'a str,
    kind: &'a str,
    status: &'a str,
    reason: &'a str,
}

fn culprit(newest_first: &[Event]) -> String {
    let failed = |event: &&Event| event.status.ends_with("_FAILED") && !event.reason.contains("creation cancelled");
    let said = |event: &Event| format!("{} ({}): {}", event.resource, event.kind, event.reason.trim_end_matches('.'));
    newest_first.iter().rev().find(failed).map_or_else(|| "its events name no failed resource".to_owned(), said)
}

/// A subnet of an existing network, as far as a cluster's nodes care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// `subnet-…`
    pub id: String,
    /// `vpc-…`
    pub vpc_id: String,
    /// By name.
    pub zone: String,
    /// Where 0.0.0.0/0 goes: `igw-…`, `nat-…`, `tgw-…`; none without such a route.
    pub way_out: Option<String>,
    /// The value of [`DISCOVERY_TAG`].
    pub discovery: Option<String>,
}

/// Everything about an existing network that a cluster of this name cannot use.
#[must_use]
pub fn faults(existing: &NetworkExisting, subnets: &[Subnet], cluster: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for id in &existing.subnet_ids {
        let Some(subnet) = subnets.iter().find(|subnet| subnet.id == *id) else {
            faults.push(format!("{id} does not exist"));
            continue;
        };
        if subnet.vpc_id != existing.vpc_id {
            faults.push(format!("{id} is in {}, not in {}", subnet.vpc_id, existing.vpc_id));
        }
        match subnet.way_out.as_deref() {
            None => faults.push(format!("{id} has no route to 0.0.0.0/0, so nodes cannot reach EKS and images")),
            Some(gateway) if gateway.starts_with("igw-") => {
                faults.push(format!(
                    "{id} is public: its default route goes to {gateway}, while nodes have no public address"
                ));
            }
            Some(_) => {}
        }
        if let Some(other) = subnet.discovery.as_deref().filter(|other| *other != cluster) {
            faults.push(format!(
                "{id} has {DISCOVERY_TAG}={other}: Karpenter finds it for that cluster, and a tag has one value"
            ));
        }
    }
    let zones: BTreeSet<&str> = subnets.iter().map(|subnet| subnet.zone.as_str()).collect();
    if zones.len() < 2 {
        faults.push(format!("the subnets are in {} zone, EKS and Karpenter need two", zones.len()));
    }
    faults
}

/// The subnets of an existing network, as they are; those that don't exist are missing.
pub(super) async fn survey(cx: &Context, existing: &NetworkExisting) -> Result<Vec<Subnet>, StepError> {
    let filter = |name: &str, values: &[String]| Filter::builder().name(name).set_values(Some(values.to_vec())).build();
    // By filter, which leaves out what does not exist, where ids would fail for the first.
    let subnets = cx
        .aws
        .ec2()
        .describe_subnets()
        .filters(filter("subnet-id", &existing.subnet_ids))
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>();
    let vpc = std::slice::from_ref(&existing.vpc_id);
    let tables = cx
        .aws
        .ec2()
        .describe_route_tables()
        .filters(filter("vpc-id", vpc))
        .into_paginator()
        .items()
        .send()
        .collect::<Result<Vec<_>, _>>();
    let (subnets, tables) = tokio::join!(subnets, tables);
    let (subnets, tables) = (subnets.during("ec2:DescribeSubnets")?, tables.during("ec2:DescribeRouteTables")?);
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    Ok(subnets
        .iter()
        .map(|subnet| Subnet {
            id: text(subnet.subnet_id()),
            vpc_id: text(subnet.vpc_id()),
            zone: text(subnet.availability_zone()),
            way_out: way_out(&tables, subnet.subnet_id().unwrap_or_default()),
            discovery: subnet.tags().iter().find(|tag| tag.key() == Some(DISCOVERY_TAG)).map(|tag| text(tag.value())),
        })
        .collect())
}

/// The target of a subnet's default route: of its own table, or of the VPC's main one.
fn way_out(tables: &[RouteTable], subnet: &str) -> Option<String> {
    let own = tables.iter().find(|table| table.associations().iter().any(|a| a.subnet_id() == Some(subnet)));
    let main = || tables.iter().find(|table| table.associations().iter().any(|a| a.main() == Some(true)));
    let route = own.or_else(main)?.routes().iter().find(|route| route.destination_cidr_block() == Some("0.0.0.0/0"))?;
    route
        .nat_gateway_id()
        .or(route.transit_gateway_id())
        .or(route.network_interface_id())
        .or(route.instance_id())
        .or(route.core_network_arn())
        .or(route.vpc_peering_connection_id())
        .or(route.gateway_id())
        .map(str::to_owned)
}

/// Takes the network as it is, but for the tag by which Karpenter finds the subnets.
async fn adopt(cx: &Context, input: &Input, existing: &NetworkExisting) -> Result<Output, StepError> {
    let subnets = survey(cx, existing).await?;
    let faults = faults(existing, &subnets, &input.cluster.name);
    if !faults.is_empty() {
        let cause = format!("The network {} cannot carry the cluster: {}.", existing.vpc_id, faults.join("; "));
        return Err(StepError::new(ErrorName::NetworkFailed, cause)
            .remedy("Correct the network, or `network.existing` in the spec, and start again."));
    }
    let untagged: Vec<String> =
        subnets.iter().filter(|subnet| subnet.discovery.is_none()).map(|subnet| subnet.id.clone()).collect();
    if !untagged.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
        let tag = aws_sdk_ec2::types::Tag::builder().key(DISCOVERY_TAG).value(&input.cluster.name).build();
        let request = cx.aws.ec2().create_tags().set_resources(Some(untagged)).tags(tag);
        request.send().await.during("ec2:CreateTags")?;
    }
    Ok(Output {
        vpc_id: existing.vpc_id.clone(),
        private_subnet_ids: existing.subnet_ids.clone(),
        public_subnet_ids: Vec::new(),
        zones: input.zones.clone(),
        stack_name: None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const RUN_BEGAN: OffsetDateTime = datetime!(2026-11-22 20:00:00 UTC);

    fn cluster() -> ClusterKey {
        ClusterKey { account: "111122223333".to_owned(), region: "eu-west-1".to_owned(), name: "demo".to_owned() }
    }

    fn wanted() -> BTreeMap<String, String> {
        let zones = ["eu-west-1a", "eu-west-1b"].map(str::to_owned);
        parameters(&cluster(), &NetworkCreate::default(), &zones).unwrap()
    }

    fn stack(status: &str) -> Observed {
        let outputs = [
            ("VpcId", "vpc-1"),
            ("PrivateSubnetIds", "subnet-1,subnet-2"),
            ("PublicSubnetIds", "subnet-3,subnet-4"),
            ("Zones", "eu-west-1a,eu-west-1b"),
        ];
        Observed {
            id: "arn:stack".to_owned(),
            status: status.to_owned(),
            owner: Some("demo".to_owned()),
            parameters: wanted(),
            outputs: outputs.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            created_at: RUN_BEGAN + time::Duration::seconds(5),
        }
    }

    fn decided(stack: &Observed) -> Action {
        decide(Some(stack), &wanted(), &cluster(), RUN_BEGAN)
    }

    #[test]
    fn a_block_is_divided_by_its_size() {
        let bits = |cidr: &str| {
            let create = NetworkCreate { cidr: cidr.to_owned(), ..NetworkCreate::default() };
            let zones = ["a", "b", "c"].map(str::to_owned);
            let parameters = parameters(&cluster(), &create, &zones).unwrap();
            (parameters["PrivateHostBits"].clone(), parameters["PublicHostBits"].clone(), parameters["Zone3"].clone())
        };
        assert_eq!(bits("10.20.0.0/16"), ("14".to_owned(), "12".to_owned(), "c".to_owned()));
        assert_eq!(bits("10.20.0.0/20"), ("10".to_owned(), "8".to_owned(), "c".to_owned()));
    }

    #[test]
    fn the_template_has_every_parameter_and_output() {
        for name in wanted().keys() {
            assert!(TEMPLATE.contains(&format!("\n  {name}:\n    Type: ")), "{name}");
        }
        for name in stack("").outputs.keys() {
            assert!(TEMPLATE.contains(&format!("\n  {name}:\n    Description: ")), "{name}");
        }
    }

    #[test]
    fn a_stack_is_made_waited_for_and_used() {
        assert_eq!(decide(None, &wanted(), &cluster(), RUN_BEGAN), Action::Create);
        assert_eq!(decided(&stack("CREATE_IN_PROGRESS")), Action::Wait);
        assert_eq!(decided(&stack("ROLLBACK_IN_PROGRESS")), Action::Wait);
        let Action::Done(output) = decided(&stack("CREATE_COMPLETE")) else { panic!("not done") };
        assert_eq!(output.private_subnet_ids, ["subnet-1", "subnet-2"]);
        assert_eq!(output.stack_name.as_deref(), Some("slipway-network-demo"));
    }

    #[test]
    fn a_failure_is_told_by_its_own_run_and_cleared_away_by_the_next() {
        let mut failed = stack("ROLLBACK_COMPLETE");
        assert_eq!(decided(&failed), Action::Explain);
        failed.created_at = RUN_BEGAN - time::Duration::hours(1);
        assert_eq!(decided(&failed), Action::Delete);
        assert_eq!(decided(&stack("DELETE_FAILED")), Action::Explain);
    }

    #[test]
    fn a_foreign_stack_is_left_alone() {
        let mut foreign = stack("ROLLBACK_COMPLETE");
        foreign.owner = None;
        let Action::Refuse(error) = decided(&foreign) else { panic!("taken") };
        assert_eq!(error.name, ErrorName::NotOurs);
    }

    #[test]
    fn a_network_that_is_there_is_not_rebuilt() {
        let mut other = stack("CREATE_COMPLETE");
        other.parameters.insert("Cidr".to_owned(), "10.99.0.0/16".to_owned());
        let Action::Refuse(error) = decided(&other) else { panic!("used") };
        assert_eq!(error.name, ErrorName::NetworkFailed);
        assert!(error.cause.contains("Cidr is \"10.99.0.0/16\", asked for is \"10.20.0.0/16\""), "{}", error.cause);
    }

    #[test]
    fn the_first_failure_explains_a_stack() {
        let event = |resource, status, reason| Event { resource, kind: "AWS::EC2::EIP", status, reason };
        let newest_first = [
            event("slipway-network-demo", "ROLLBACK_IN_PROGRESS", "The following resource(s) failed"),
            event("PublicSubnet1", "CREATE_FAILED", "Resource creation cancelled"),
            event("NatAddress1", "CREATE_FAILED", "The maximum number of addresses has been reached."),
            event("NatAddress1", "CREATE_IN_PROGRESS", ""),
        ];
        let told = "NatAddress1 (AWS::EC2::EIP): The maximum number of addresses has been reached";
        assert_eq!(culprit(&newest_first), told);
    }

    #[test]
    fn every_fault_of_an_existing_network_is_told() {
        let ids = ["subnet-1", "subnet-2", "subnet-3"].map(str::to_owned);
        let existing = NetworkExisting { vpc_id: "vpc-1".to_owned(), subnet_ids: ids.to_vec() };
        let subnet = |id: &str, zone: &str, way_out: Option<&str>, discovery: Option<&str>| Subnet {
            id: id.to_owned(),
            vpc_id: "vpc-1".to_owned(),
            zone: zone.to_owned(),
            way_out: way_out.map(str::to_owned),
            discovery: discovery.map(str::to_owned),
        };
        let good = [
            subnet("subnet-1", "a", Some("nat-1"), None),
            subnet("subnet-2", "b", Some("tgw-1"), Some("demo")),
            subnet("subnet-3", "b", Some("nat-1"), None),
        ];
        assert_eq!(faults(&existing, &good, "demo"), Vec::<String>::new());
        let bad = [subnet("subnet-1", "a", Some("igw-1"), Some("other")), subnet("subnet-2", "a", None, None)];
        let told = faults(&existing, &bad, "demo");
        assert_eq!(told.len(), 5, "{told:#?}");
    }
}
