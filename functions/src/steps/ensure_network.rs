//! ensure-network: makes the cluster's VPC as a CloudFormation stack and keeps it as the spec asks, or checks one that
//! is there.

mod drift;
pub(crate) mod existing;

use std::collections::BTreeMap;

use aws_sdk_cloudformation::types::{Capability, Parameter, Tag};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use slipway_statemachine::{
    ClusterKey, ErrorName, Progress, Run, Step, StepError,
    names::{CLUSTER_TAG, stack as stack_name, tags},
    plan::Planned,
    spec::{Nat, NetworkCreate, NetworkExisting, NetworkSpec},
};
use time::OffsetDateTime;
use ulid::Ulid;

use self::drift::{Drift, drift};
use crate::{
    Context,
    aws::{
        error::{During as _, code},
        networks::{self, Network, Subnets},
        stacks::{self, Change, ChangeSet, Effect, Stack, State},
    },
};

const TEMPLATE: &str = include_str!("../../../infra/network.yaml");

/// A NAT gateway alone takes two minutes.
const STACK_POLL_SECONDS: u32 = 20;
/// CloudFormation compares for a few seconds.
const CHANGE_SET_POLL_SECONDS: u32 = 5;

/// Types that carry nodes and the control plane: a cluster does not survive that they are replaced or deleted.
const BEARING: &[&str] = &["AWS::EC2::VPC", "AWS::EC2::Subnet"];
/// Parameters that decide over such resources.
const FIXED: &[&str] = &["Cidr", "ClusterName", "PrivateHostBits", "PublicHostBits", "Zone1", "Zone2", "Zone3"];

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
    /// The spec's: whether the deletion of our stack is refused.
    #[serde(default)]
    pub deletion_protection: bool,
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
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::ImmutableChange,
        ErrorName::NetworkDrifted,
        ErrorName::NetworkFailed,
        ErrorName::NetworkStuck,
        ErrorName::NetworkUnsuitable,
        ErrorName::NotOurs,
    ];
    type Input = Input;
    type Output = Progress<Output>;
}

/// The stack that a spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Of `infra/network.yaml`.
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) template: String,
    pub(crate) protected: bool,
}

/// The stack as it is, with what is worth looking at once it is settled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// None, where there is no such stack.
    pub(crate) stack: Option<Stack>,
    /// As the stack was made or changed with last.
    pub(crate) template: String,
    /// Of the stack, where it is not as wanted.
    pub(crate) change_sets: Vec<ChangeSet>,
    /// What this run's change set would do, once that is known.
    pub(crate) changes: Vec<Change>,
    /// As EC2 has it.
    pub(crate) network: Network,
}

/// What to do about the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make it.
    Create,
    /// Clear away what an earlier run's failed creation left: a stack without resources that are used.
    Clear,
    /// Ask again.
    Wait,
    /// Have CloudFormation say what a change would do; why there is one.
    Propose(String),
    /// Have it done.
    Execute,
    /// It would replace what carries the cluster: throw the change set away, and say so.
    Discard(StepError),
    /// Go on with the way back of an earlier run's failed update.
    RollBack,
    /// It is there; put back the tags and the protection that it lacks.
    Settle {
        /// By subnet.
        tags: BTreeMap<String, BTreeMap<String, String>>,
        /// What it is to be, if it is not.
        protect: Option<bool>,
        /// What later steps need.
        output: Output,
    },
    /// It failed, under this name; its events say why.
    Explain(ErrorName),
    /// It cannot be used.
    Refuse(StepError),
}

impl Action {
    fn changes_something(&self) -> bool {
        match self {
            Self::Wait | Self::Explain(_) | Self::Refuse(_) => false,
            Self::Settle { tags, protect, .. } => !tags.is_empty() || protect.is_some(),
            _ => true,
        }
    }
}

/// What to do about the stack of `cluster`, which should be as `wanted`, in a run that began at `run_began` and whose
/// change sets end in `run`.
#[must_use]
pub(crate) fn decide(
    seen: &Observed,
    wanted: &Wanted,
    cluster: &ClusterKey,
    run: &str,
    run_began: OffsetDateTime,
) -> Action {
    let Some(stack) = &seen.stack else { return Action::Create };
    let name = stack_name(cluster);
    if stack.tags.get(CLUSTER_TAG) != Some(&cluster.name) {
        let cause = format!("The stack {name} exists without the tag {CLUSTER_TAG}={}.", cluster.name);
        return Action::Refuse(StepError::new(ErrorName::NotOurs, cause));
    }
    let of_this_run = stack.changed_at >= run_began;
    match stack.status.as_str() {
        "CREATE_COMPLETE" | "UPDATE_COMPLETE" | "UPDATE_ROLLBACK_COMPLETE" | "IMPORT_COMPLETE" => {
            if let Some(error) = immutable(stack, wanted, cluster) {
                return Action::Refuse(error);
            }
            match differences(stack, &seen.template, wanted) {
                None => settle(seen, stack, wanted, cluster),
                // Nobody asks again for what has just failed.
                Some(_) if of_this_run && stack.status == "UPDATE_ROLLBACK_COMPLETE" => {
                    Action::Explain(ErrorName::NetworkFailed)
                }
                Some(differences) => change(seen, stack, wanted, cluster, run, differences),
            }
        }
        // A stack is not made again under its name until it is gone; but this run's failure is to be told.
        "ROLLBACK_COMPLETE" | "ROLLBACK_FAILED" if !of_this_run => Action::Clear,
        "UPDATE_ROLLBACK_FAILED" if !of_this_run => Action::RollBack,
        "REVIEW_IN_PROGRESS" => Action::Refuse(
            StepError::new(ErrorName::NetworkStuck, format!("The stack {name} is a draft that nobody executed."))
                .remedy(format!("Delete the stack {name}, and start again.")),
        ),
        status if status.ends_with("_IN_PROGRESS") => Action::Wait,
        "UPDATE_ROLLBACK_FAILED" | "DELETE_FAILED" | "ROLLBACK_FAILED" => Action::Explain(ErrorName::NetworkStuck),
        _ => Action::Explain(ErrorName::NetworkFailed),
    }
}

/// Refuses what would be another network, before anything is asked of CloudFormation.
pub(crate) fn immutable(stack: &Stack, wanted: &Wanted, cluster: &ClusterKey) -> Option<StepError> {
    let differences: Vec<String> = FIXED
        .iter()
        .filter_map(|name| difference(name, stack.parameters.get(*name), wanted.parameters.get(*name)))
        .collect();
    (!differences.is_empty()).then(|| refused_change(cluster, &differences.join("; ")))
}

fn refused_change(cluster: &ClusterKey, why: &str) -> StepError {
    let cause = format!("The network of {} is not rebuilt under its cluster: {why}.", cluster.name);
    StepError::new(ErrorName::ImmutableChange, cause)
        .remedy("Ask for the network that is there, or make a cluster of another name and move to it.")
}

fn difference(name: &str, have: Option<&String>, wanted: Option<&String>) -> Option<String> {
    let (have, wanted) = (have.map_or("", String::as_str), wanted.map_or("", String::as_str));
    (have != wanted).then(|| format!("{name} is {have:?}, asked for is {wanted:?}"))
}

/// What the stack has otherwise than it should, for a person.
fn differences(stack: &Stack, template: &str, wanted: &Wanted) -> Option<String> {
    let mut different: Vec<String> = wanted
        .parameters
        .iter()
        .filter_map(|(name, wanted)| difference(name, stack.parameters.get(name), Some(wanted)))
        .collect();
    if stack.tags != wanted.tags {
        different.push("its tags are others".to_owned());
    }
    if template.trim_end() != wanted.template.trim_end() {
        different.push("its template is of another release".to_owned());
    }
    (!different.is_empty()).then(|| different.join("; "))
}

/// The way by a change set: made, looked at, executed. Its name says what is asked for and by which run.
fn change(
    seen: &Observed,
    stack: &Stack,
    wanted: &Wanted,
    cluster: &ClusterKey,
    run: &str,
    differences: String,
) -> Action {
    let (asked, ours) = (change_set_prefix(wanted), change_set_name(wanted, run));
    // Text that means the same, found out once, is not asked about on every run.
    if seen.change_sets.iter().any(|set| set.name.starts_with(&asked) && set.state == State::Empty) {
        return settle(seen, stack, wanted, cluster);
    }
    match seen.change_sets.iter().find(|set| set.name == ours).map(|set| &set.state) {
        None => Action::Propose(differences),
        Some(State::Planning | State::Executed | State::Empty) => Action::Wait,
        Some(State::Failed(reason)) => Action::Discard(StepError::new(
            ErrorName::NetworkFailed,
            format!(
                "CloudFormation cannot change the stack {}: {}.",
                stack_name(cluster),
                reason.trim_end_matches('.')
            ),
        )),
        Some(State::Ready) => {
            let bearing = |change: &&Change| {
                BEARING.contains(&change.kind.as_str()) && matches!(change.effect, Effect::Replaces | Effect::Removes)
            };
            let lost: Vec<&Change> = seen.changes.iter().filter(bearing).collect();
            if lost.is_empty() {
                return Action::Execute;
            }
            let lost: Vec<Change> = lost.into_iter().cloned().collect();
            Action::Discard(refused_change(cluster, &format!("the change {}", summary(&lost))))
        }
    }
}

/// The end: what later steps need, if it is really there.
fn settle(seen: &Observed, stack: &Stack, wanted: &Wanted, cluster: &ClusterKey) -> Action {
    let name = stack_name(cluster);
    let Some(output) = output(&name, &stack.outputs) else {
        let cause = format!("The stack {name} lacks outputs that infra/network.yaml has.");
        return Action::Refuse(StepError::new(ErrorName::NetworkFailed, cause));
    };
    let Drift { tags, faults } = drift(&output, &seen.network, &cluster.name);
    if !faults.is_empty() {
        let cause = format!("The network of {} is not as its stack made it: {}.", cluster.name, faults.join("; "));
        return Action::Refuse(StepError::new(ErrorName::NetworkDrifted, cause));
    }
    Action::Settle { tags, protect: (stack.protected != wanted.protected).then_some(wanted.protected), output }
}

/// `adds NatGateway2 (AWS::EC2::NatGateway); changes PrivateDefaultRoute2 (AWS::EC2::Route)`
fn summary(changes: &[Change]) -> String {
    let mut by_effect: BTreeMap<Effect, Vec<String>> = BTreeMap::new();
    for change in changes {
        by_effect.entry(change.effect).or_default().push(format!("{} ({})", change.resource, change.kind));
    }
    let said = by_effect.into_iter().map(|(effect, resources)| {
        let verb = match effect {
            Effect::Adds => "adds",
            Effect::Changes => "changes",
            Effect::Replaces => "replaces",
            Effect::Removes => "removes",
        };
        format!("{verb} {}", resources.join(", "))
    });
    let said = said.collect::<Vec<_>>().join("; ");
    if said.is_empty() { "changes outputs alone".to_owned() } else { said }
}

/// `slipway-<what is asked for>-`
fn change_set_prefix(wanted: &Wanted) -> String {
    let mut hash = Sha256::new();
    hash.update(&wanted.template);
    for (name, value) in wanted.parameters.iter().chain(&wanted.tags) {
        hash.update([name.as_str(), "\0", value, "\0"].concat());
    }
    let digest = hash.finalize().iter().take(8).fold(0_u64, |digest, byte| digest << 8 | u64::from(*byte));
    format!("slipway-{digest:016x}-")
}

fn change_set_name(wanted: &Wanted, run: &str) -> String {
    format!("{}{run}", change_set_prefix(wanted))
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
/// `InvalidInput`, when the block or the zones are not as the spec's rules have them; `ImmutableChange`, when the
/// network that is there has more or fewer zones.
pub(crate) fn parameters(
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
    // Preflight names the zones of a network that is there.
    if zones.len() != usize::from(create.zones) {
        let (asked, there) = (create.zones, zones.join(", "));
        return Err(refused_change(cluster, &format!("{asked} zones are asked for, the network is in {there}")));
    }
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

/// The template as it is sent: a comment that changes is no change of a network.
fn template() -> String {
    let said = |line: &&str| !line.trim_start().starts_with('#') && !line.trim().is_empty();
    TEMPLATE.lines().filter(said).flat_map(|line| [line, "\n"]).collect()
}

/// The stack that a spec asks for.
///
/// # Errors
/// `InvalidInput`, when the block or the zones are not as the spec's rules have them.
pub(crate) fn wanted(input: &Input, create: &NetworkCreate) -> Result<Wanted, StepError> {
    Ok(Wanted {
        parameters: parameters(&input.cluster, create, &input.zones)?,
        tags: tags(&input.cluster, &input.tags),
        template: template(),
        protected: input.deletion_protection,
    })
}

/// Makes the network, or reports how far it is.
///
/// # Errors
/// `NetworkFailed` with the failed resource's own words, `NetworkStuck` where a person has to help the stack,
/// `ImmutableChange` before a subnet would be replaced, `NetworkDrifted`, `NetworkUnsuitable` for an existing network,
/// `NotOurs`.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    match &input.network {
        NetworkSpec::Create(create) => make(cx, &input, create).await,
        NetworkSpec::Existing(existing) => check(cx, &input.cluster, existing).await.map(Progress::done),
    }
}

async fn check(cx: &Context, cluster: &ClusterKey, existing: &NetworkExisting) -> Result<Output, StepError> {
    let network = networks::survey(cx.aws.ec2(), &existing.vpc_id, existing::to_look_at(existing)).await?;
    existing::decide(existing, &network, &cluster.name)
}

async fn make(cx: &Context, input: &Input, create: &NetworkCreate) -> Result<Progress<Output>, StepError> {
    let Input { run, cluster, .. } = input;
    let (name, wanted) = (stack_name(cluster), wanted(input, create)?);
    let run_began = Ulid::from_string(&run.id).map_or(OffsetDateTime::UNIX_EPOCH, |id| id.datetime().into());
    let seen = observe(cx, &name, &wanted, &run.id).await?;
    let cloudformation = cx.aws.cloudformation();
    let (id, status) = seen.stack.as_ref().map_or((name.as_str(), ""), |stack| (&stack.id, stack.status.as_str()));
    let action = decide(&seen, &wanted, cluster, &run.id, run_began);
    if action.changes_something() {
        cx.state.hold(run, cluster).await?;
    }
    match action {
        Action::Refuse(error) => Err(error),
        Action::Explain(error) => {
            let reason = stacks::reason(cloudformation, id, status).await?;
            Err(explained(error, &name, status, &reason))
        }
        Action::Wait if status.ends_with("_IN_PROGRESS") => {
            let busy = stacks::busy(cloudformation, &name).await?;
            Ok(Progress::wait(STACK_POLL_SECONDS, format!("{name} is {status}{busy}")))
        }
        Action::Wait => {
            let what = format!("CloudFormation compares {name} with what is asked for");
            Ok(Progress::wait(CHANGE_SET_POLL_SECONDS, what))
        }
        Action::Settle { tags, protect, output } => {
            settle_now(cx, &name, tags, protect).await?;
            Ok(Progress::done(output))
        }
        Action::Create => {
            self::create(cx, input, &name, &wanted).await?;
            Ok(Progress::wait(STACK_POLL_SECONDS, format!("{name} is begun")))
        }
        Action::Clear => {
            // A protected stack could not be cleared away, and this one protects nothing.
            settle_now(cx, &name, BTreeMap::new(), seen.stack.filter(|stack| stack.protected).map(|_| false)).await?;
            let token = format!("slipway-clear-{}", run.id);
            let delete = cloudformation.delete_stack().stack_name(&name).client_request_token(token);
            delete.send().await.during("cloudformation:DeleteStack")?;
            Ok(Progress::wait(CHANGE_SET_POLL_SECONDS, format!("{name} of an earlier run is cleared away")))
        }
        Action::RollBack => {
            let token = format!("slipway-rollback-{}", run.id);
            let go_on = cloudformation.continue_update_rollback().stack_name(&name).client_request_token(token);
            go_on.send().await.during("cloudformation:ContinueUpdateRollback")?;
            Ok(Progress::wait(STACK_POLL_SECONDS, format!("{name} goes on rolling back an earlier run's change")))
        }
        Action::Propose(differences) => {
            propose(cx, input, &name, &wanted).await?;
            Ok(Progress::wait(CHANGE_SET_POLL_SECONDS, format!("{name} is to be changed: {differences}")))
        }
        Action::Execute => {
            let change_set = change_set_name(&wanted, &run.id);
            let execute = cloudformation.execute_change_set().stack_name(&name).change_set_name(change_set);
            let execute = execute.client_request_token(format!("slipway-change-{}", run.id));
            execute.send().await.during("cloudformation:ExecuteChangeSet")?;
            Ok(Progress::wait(STACK_POLL_SECONDS, format!("{name} is changed: {}", summary(&seen.changes))))
        }
        Action::Discard(error) => {
            let change_set = change_set_name(&wanted, &run.id);
            let discard = cloudformation.delete_change_set().stack_name(&name).change_set_name(change_set);
            discard.send().await.during("cloudformation:DeleteChangeSet")?;
            Err(error)
        }
    }
}

/// What would become of the stack, or of an existing network, which nothing changes; with it what later steps know of a
/// network that is there.
///
/// # Errors
/// As [`run`].
pub(crate) async fn foresee(cx: &Context, input: &Input) -> Result<(Planned, Option<Output>), StepError> {
    let create = match &input.network {
        NetworkSpec::Existing(existing) => {
            let network = check(cx, &input.cluster, existing).await?;
            return Ok((Planned::of("VPC", &network.vpc_id, Some(&[])), Some(network)));
        }
        NetworkSpec::Create(create) => create,
    };
    let (name, wanted) = (stack_name(&input.cluster), wanted(input, create)?);
    let seen = observe(cx, &name, &wanted, &input.run.id).await?;
    let status = seen.stack.as_ref().map_or("", |stack| stack.status.as_str()).to_owned();
    let mut there = None;
    let told = match decide(&seen, &wanted, &input.cluster, &input.run.id, OffsetDateTime::UNIX_EPOCH) {
        Action::Refuse(error) | Action::Discard(error) => return Err(error),
        Action::Explain(error) => {
            let id = seen.stack.as_ref().map_or(name.as_str(), |stack| &stack.id);
            let reason = stacks::reason(cx.aws.cloudformation(), id, &status).await?;
            return Err(explained(error, &name, &status, &reason));
        }
        Action::Create => Vec::new(),
        Action::Clear => vec![format!("it is {status} and is made anew")],
        Action::RollBack => vec![format!("it is {status}, and its rollback goes on")],
        Action::Wait | Action::Execute => vec![format!("it is {status}")],
        Action::Propose(differences) => vec![differences],
        Action::Settle { tags, protect, output } => {
            there = Some(output);
            let tags = tags.keys().map(|subnet| format!("{subnet} lacks tags"));
            tags.chain(protect.map(|protect| format!("its termination protection becomes {protect}"))).collect()
        }
    };
    Ok((Planned::of("CloudFormation stack", &name, seen.stack.map(|_| told.as_slice())), there))
}

/// The failure of a stack, with what helps it.
fn explained(error: ErrorName, name: &str, status: &str, reason: &str) -> StepError {
    let explained = StepError::new(error, format!("The stack {name} is {status}: {reason}."));
    match status {
        "DELETE_FAILED" => explained.remedy(format!(
            "Remove what holds the named resource (load balancers, interfaces, endpoints), delete the stack {name} again, and \
             start again."
        )),
        "UPDATE_ROLLBACK_FAILED" => explained.remedy(
            "Put right what the named resource says, then start again: the next run continues the rollback.",
        ),
        "ROLLBACK_FAILED" => explained
            .remedy("Put right what the named resource says, then start again: the next run deletes what is left."),
        "ROLLBACK_COMPLETE" | "UPDATE_ROLLBACK_COMPLETE" => {
            explained.remedy("Put right what the named resource says, then start again; the stack went back by itself.")
        }
        _ => explained,
    }
}

/// Everything that the decision needs, by reads alone.
pub(crate) async fn observe(cx: &Context, name: &str, wanted: &Wanted, run: &str) -> Result<Observed, StepError> {
    let cloudformation = cx.aws.cloudformation();
    let Some(stack) = stacks::describe(cloudformation, name).await? else { return Ok(Observed::default()) };
    let settled = stack.status.ends_with("_COMPLETE") && stack.status != "ROLLBACK_COMPLETE";
    if !settled {
        return Ok(Observed { stack: Some(stack), ..Observed::default() });
    }
    let outputs = output(name, &stack.outputs);
    let network = async {
        let Some(output) = &outputs else { return Ok(Network::default()) };
        let subnets = [output.private_subnet_ids.as_slice(), &output.public_subnet_ids].concat();
        networks::survey(cx.aws.ec2(), &output.vpc_id, Subnets::Ids(&subnets)).await
    };
    let (template, network) = tokio::try_join!(stacks::template(cloudformation, name), network)?;
    let mut seen = Observed { template, network, ..Observed::default() };
    if differences(&stack, &seen.template, wanted).is_some() {
        seen.change_sets = stacks::change_sets(cloudformation, name).await?;
        let ours = change_set_name(wanted, run);
        if seen.change_sets.iter().any(|set| set.name == ours && set.state == State::Ready) {
            seen.changes = stacks::changes(cloudformation, name, &ours).await?;
        }
    }
    seen.stack = Some(stack);
    Ok(seen)
}

async fn settle_now(
    cx: &Context,
    name: &str,
    tags: BTreeMap<String, BTreeMap<String, String>>,
    protect: Option<bool>,
) -> Result<(), StepError> {
    if let Some(protect) = protect {
        let request = cx.aws.cloudformation().update_termination_protection().stack_name(name);
        let request = request.enable_termination_protection(protect).send();
        request.await.during("cloudformation:UpdateTerminationProtection")?;
    }
    for (subnet, tags) in tags {
        let mut request = cx.aws.ec2().create_tags().resources(subnet);
        for (key, value) in tags {
            request = request.tags(aws_sdk_ec2::types::Tag::builder().key(key).value(value).build());
        }
        request.send().await.during("ec2:CreateTags")?;
    }
    Ok(())
}

fn as_parameters(parameters: &BTreeMap<String, String>) -> Vec<Parameter> {
    let parameter = |(name, value)| Parameter::builder().parameter_key(name).parameter_value(value).build();
    parameters.iter().map(parameter).collect()
}

fn as_tags(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// Protection comes when the stack is whole: a creation that fails is to be cleared away.
async fn create(cx: &Context, input: &Input, name: &str, wanted: &Wanted) -> Result<(), StepError> {
    let request = cx
        .aws
        .cloudformation()
        .create_stack()
        .stack_name(name)
        .template_body(&wanted.template)
        // The flow log's role.
        .capabilities(Capability::CapabilityIam)
        .client_request_token(format!("slipway-{}", input.run.id))
        .set_parameters(Some(as_parameters(&wanted.parameters)))
        .set_tags(Some(as_tags(&wanted.tags)));
    match request.send().await {
        // Somebody was faster; the next look tells who.
        Err(error) if code(&error) == Some("AlreadyExistsException") => Ok(()),
        other => other.map(|_| ()).during("cloudformation:CreateStack"),
    }
}

async fn propose(cx: &Context, input: &Input, name: &str, wanted: &Wanted) -> Result<(), StepError> {
    let request = cx
        .aws
        .cloudformation()
        .create_change_set()
        .stack_name(name)
        .change_set_name(change_set_name(wanted, &input.run.id))
        .description(format!("Slipway run {}", input.run.id))
        .template_body(&wanted.template)
        .capabilities(Capability::CapabilityIam)
        .client_token(format!("slipway-{}", input.run.id))
        .set_parameters(Some(as_parameters(&wanted.parameters)))
        .set_tags(Some(as_tags(&wanted.tags)));
    match request.send().await {
        // An answer that was lost; the next look finds it.
        Err(error) if code(&error) == Some("AlreadyExistsException") => Ok(()),
        other => other.map(|_| ()).during("cloudformation:CreateChangeSet"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use time::macros::datetime;

    use super::*;
    use crate::aws::networks::{Subnet, Vpc, WayOut};

    const RUN_BEGAN: OffsetDateTime = datetime!(2026-11-22 20:00:00 UTC);
    const RUN: &str = "01KAPQ3J5Z8Q6T4W2R0N9M7K5H";

    fn cluster() -> ClusterKey {
        ClusterKey { account: "111122223333".to_owned(), region: "eu-west-1".to_owned(), name: "demo".to_owned() }
    }

    fn wanted_of(create: &NetworkCreate, zones: &[&str]) -> Wanted {
        let zones: Vec<String> = zones.iter().map(|zone| (*zone).to_owned()).collect();
        let create = NetworkCreate { zones: u8::try_from(zones.len()).unwrap(), ..create.clone() };
        Wanted {
            parameters: parameters(&cluster(), &create, &zones).unwrap(),
            tags: tags(&cluster(), &BTreeMap::new()),
            template: template(),
            protected: false,
        }
    }

    fn wanted() -> Wanted {
        wanted_of(&NetworkCreate::default(), &["eu-west-1a", "eu-west-1b"])
    }

    fn per_zone() -> Wanted {
        wanted_of(&NetworkCreate { nat: Nat::PerZone, ..NetworkCreate::default() }, &["eu-west-1a", "eu-west-1b"])
    }

    fn stack(status: &str) -> Stack {
        let outputs = [
            ("VpcId", "vpc-1"),
            ("PrivateSubnetIds", "subnet-1,subnet-2"),
            ("PublicSubnetIds", "subnet-3,subnet-4"),
            ("Zones", "eu-west-1a,eu-west-1b"),
        ];
        Stack {
            id: "arn:stack".to_owned(),
            status: status.to_owned(),
            tags: wanted().tags,
            parameters: wanted().parameters,
            outputs: outputs.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            protected: false,
            created_at: RUN_BEGAN + time::Duration::seconds(5),
            changed_at: RUN_BEGAN + time::Duration::seconds(5),
        }
    }

    fn subnet(id: &str, way_out: &str, role: &str) -> Subnet {
        let mut tags = BTreeMap::from([(CLUSTER_TAG.to_owned(), "demo".to_owned()), (role.to_owned(), "1".to_owned())]);
        if role.ends_with("internal-elb") {
            tags.insert("karpenter.sh/discovery".to_owned(), "demo".to_owned());
        }
        Subnet {
            id: id.to_owned(),
            vpc_id: "vpc-1".to_owned(),
            zone: "eu-west-1a".to_owned(),
            zone_id: "euw1-az1".to_owned(),
            free_addresses: 4000,
            route_table: "rtb-1".to_owned(),
            way_out: Some(WayOut { target: way_out.to_owned(), blackhole: false }),
            tags,
        }
    }

    fn seen(stack: Stack) -> Observed {
        let (private, public) = ("kubernetes.io/role/internal-elb", "kubernetes.io/role/elb");
        Observed {
            stack: Some(stack),
            template: template(),
            network: Network {
                vpc: Some(Vpc::default()),
                subnets: vec![
                    subnet("subnet-1", "nat-1", private),
                    subnet("subnet-2", "nat-1", private),
                    subnet("subnet-3", "igw-1", public),
                    subnet("subnet-4", "igw-1", public),
                ],
                nat_gateways: BTreeSet::from(["nat-1".to_owned()]),
            },
            ..Observed::default()
        }
    }

    fn decided(stack: Stack) -> Action {
        decide(&seen(stack), &wanted(), &cluster(), RUN, RUN_BEGAN)
    }

    #[test]
    fn a_block_is_divided_by_its_size() {
        let bits = |cidr: &str| {
            let create = NetworkCreate { cidr: cidr.to_owned(), ..NetworkCreate::default() };
            let parameters = wanted_of(&create, &["a", "b", "c"]).parameters;
            (parameters["PrivateHostBits"].clone(), parameters["PublicHostBits"].clone(), parameters["Zone3"].clone())
        };
        assert_eq!(bits("10.20.0.0/16"), ("14".to_owned(), "12".to_owned(), "c".to_owned()));
        assert_eq!(bits("10.20.0.0/20"), ("10".to_owned(), "8".to_owned(), "c".to_owned()));
    }

    #[test]
    fn as_many_zones_as_are_asked_for() {
        let create = NetworkCreate { zones: 3, ..NetworkCreate::default() };
        let zones = ["a", "b"].map(str::to_owned);
        let error = parameters(&cluster(), &create, &zones).unwrap_err();
        assert_eq!(error.name, ErrorName::ImmutableChange);
        assert!(error.cause.contains("3 zones") && error.cause.contains("a, b"), "{}", error.cause);
    }

    #[test]
    fn the_template_has_every_parameter_and_output_and_no_comment() {
        let template = template();
        for name in wanted().parameters.keys() {
            assert!(template.contains(&format!("\n  {name}:\n    Type: ")), "{name}");
        }
        for name in stack("").outputs.keys() {
            assert!(template.contains(&format!("\n  {name}:\n    Description: ")), "{name}");
        }
        assert!(!template.contains('#') && template.len() < 51_200, "{} bytes", template.len());
    }

    #[test]
    fn a_stack_is_made_waited_for_and_used() {
        assert_eq!(decide(&Observed::default(), &wanted(), &cluster(), RUN, RUN_BEGAN), Action::Create);
        assert_eq!(decided(stack("CREATE_IN_PROGRESS")), Action::Wait);
        assert_eq!(decided(stack("ROLLBACK_IN_PROGRESS")), Action::Wait);
        assert_eq!(decided(stack("DELETE_IN_PROGRESS")), Action::Wait);
        let Action::Settle { tags, protect: None, output } = decided(stack("CREATE_COMPLETE")) else {
            panic!("not done")
        };
        assert!(tags.is_empty());
        assert_eq!(output.private_subnet_ids, ["subnet-1", "subnet-2"]);
        assert_eq!(output.stack_name.as_deref(), Some("slipway-network-demo"));
    }

    #[test]
    fn a_failure_is_told_by_its_own_run_and_cleared_away_by_the_next() {
        let earlier = |status: &str| {
            let mut earlier = stack(status);
            earlier.changed_at = RUN_BEGAN - time::Duration::hours(1);
            decided(earlier)
        };
        assert_eq!(decided(stack("ROLLBACK_COMPLETE")), Action::Explain(ErrorName::NetworkFailed));
        assert_eq!(earlier("ROLLBACK_COMPLETE"), Action::Clear);
        assert_eq!(decided(stack("UPDATE_ROLLBACK_FAILED")), Action::Explain(ErrorName::NetworkStuck));
        assert_eq!(earlier("UPDATE_ROLLBACK_FAILED"), Action::RollBack);
        assert_eq!(decided(stack("DELETE_FAILED")), Action::Explain(ErrorName::NetworkStuck));
        assert_eq!(earlier("DELETE_FAILED"), Action::Explain(ErrorName::NetworkStuck));
        let rolled_back = |changed_at| {
            let stack = Stack { changed_at, ..stack("UPDATE_ROLLBACK_COMPLETE") };
            decide(&seen(stack), &per_zone(), &cluster(), RUN, RUN_BEGAN)
        };
        assert_eq!(rolled_back(RUN_BEGAN), Action::Explain(ErrorName::NetworkFailed));
        assert!(matches!(rolled_back(RUN_BEGAN - time::Duration::hours(1)), Action::Propose(_)));
    }

    #[test]
    fn what_holds_a_stack_is_said_with_what_helps() {
        let error = explained(ErrorName::NetworkStuck, "s", "DELETE_FAILED", "Vpc (AWS::EC2::VPC): has dependencies");
        assert_eq!(error.cause, "The stack s is DELETE_FAILED: Vpc (AWS::EC2::VPC): has dependencies.");
        assert!(error.remedy.contains("delete the stack s again"), "{}", error.remedy);
    }

    #[test]
    fn a_foreign_stack_is_left_alone() {
        let mut foreign = stack("ROLLBACK_COMPLETE");
        foreign.tags.clear();
        let Action::Refuse(error) = decided(foreign) else { panic!("taken") };
        assert_eq!(error.name, ErrorName::NotOurs);
    }

    #[test]
    fn another_block_or_zone_is_refused_before_anything_is_asked() {
        let mut other = stack("CREATE_COMPLETE");
        other.parameters.insert("Cidr".to_owned(), "10.99.0.0/16".to_owned());
        let Action::Refuse(error) = decided(other) else { panic!("used") };
        assert_eq!(error.name, ErrorName::ImmutableChange);
        assert!(error.cause.contains("Cidr is \"10.99.0.0/16\", asked for is \"10.20.0.0/16\""), "{}", error.cause);
    }

    #[test]
    fn a_change_is_planned_looked_at_and_executed() {
        let wanted = per_zone();
        let mut seen = seen(stack("CREATE_COMPLETE"));
        let decide = |seen: &Observed| decide(seen, &wanted, &cluster(), RUN, RUN_BEGAN);
        let Action::Propose(why) = decide(&seen) else { panic!("not planned") };
        assert_eq!(why, "Nat is \"single\", asked for is \"perZone\"");
        let set = |name: String, state: State| vec![ChangeSet { name, state }];
        let ours = || change_set_name(&wanted, RUN);
        seen.change_sets = set(ours(), State::Planning);
        assert_eq!(decide(&seen), Action::Wait);
        seen.change_sets = set(ours(), State::Ready);
        let change =
            |resource: &str, kind: &str, effect| Change { resource: resource.into(), kind: kind.into(), effect };
        seen.changes = vec![
            change("NatGateway2", "AWS::EC2::NatGateway", Effect::Adds),
            change("PrivateDefaultRoute2", "AWS::EC2::Route", Effect::Changes),
        ];
        assert_eq!(decide(&seen), Action::Execute);
        assert_eq!(
            summary(&seen.changes),
            "adds NatGateway2 (AWS::EC2::NatGateway); changes PrivateDefaultRoute2 (AWS::EC2::Route)"
        );
        seen.changes.push(change("PrivateSubnet1", "AWS::EC2::Subnet", Effect::Replaces));
        let Action::Discard(error) = decide(&seen) else { panic!("executed") };
        assert_eq!(error.name, ErrorName::ImmutableChange);
        assert!(error.cause.contains("replaces PrivateSubnet1 (AWS::EC2::Subnet)"), "{}", error.cause);
        // Another run's, never executed: nobody has looked at it.
        seen.change_sets = set(change_set_name(&wanted, "01OTHER"), State::Ready);
        assert!(matches!(decide(&seen), Action::Propose(_)));
    }

    #[test]
    fn text_that_changes_nothing_is_asked_about_once() {
        let mut seen = seen(stack("CREATE_COMPLETE"));
        seen.template = "another".to_owned();
        let wanted = wanted();
        assert!(matches!(decide(&seen, &wanted, &cluster(), RUN, RUN_BEGAN), Action::Propose(_)));
        let name = change_set_name(&wanted, "01OTHER");
        seen.change_sets = vec![ChangeSet { name, state: State::Empty }];
        assert!(matches!(decide(&seen, &wanted, &cluster(), RUN, RUN_BEGAN), Action::Settle { .. }));
    }

    #[test]
    fn protection_and_tags_converge() {
        let protected = Wanted { protected: true, ..wanted() };
        let action = decide(&seen(stack("CREATE_COMPLETE")), &protected, &cluster(), RUN, RUN_BEGAN);
        assert!(matches!(action, Action::Settle { protect: Some(true), .. }), "{action:?}");
        let mut tagged = wanted();
        tagged.tags.insert("team".to_owned(), "shop".to_owned());
        let action = decide(&seen(stack("CREATE_COMPLETE")), &tagged, &cluster(), RUN, RUN_BEGAN);
        assert_eq!(action, Action::Propose("its tags are others".to_owned()));
    }

    #[test]
    fn drift_is_repaired_where_it_is_a_tag_and_told_where_it_is_not() {
        let mut seen = seen(stack("CREATE_COMPLETE"));
        seen.network.subnets[1].tags.remove("karpenter.sh/discovery");
        let decide = |seen: &Observed| decide(seen, &wanted(), &cluster(), RUN, RUN_BEGAN);
        let Action::Settle { tags, .. } = decide(&seen) else { panic!("not settled") };
        assert_eq!(tags["subnet-2"]["karpenter.sh/discovery"], "demo");
        seen.network.nat_gateways.clear();
        let Action::Refuse(error) = decide(&seen) else { panic!("overlooked") };
        assert_eq!(error.name, ErrorName::NetworkDrifted);
        assert!(error.cause.contains("goes to nat-1, which is gone"), "{}", error.cause);
    }
}
