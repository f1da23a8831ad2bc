//! ensure-node-group: the small on-demand group that carries Karpenter itself, two nodes in two zones.

use std::collections::BTreeMap;

use aws_sdk_eks::types::{AmiTypes, CapacityTypes, Nodegroup, NodegroupScalingConfig, NodegroupStatus};
use futures::try_join;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterKey, ErrorName, Progress, Run, Step, StepError,
    names::{self, CORE_NODE_GROUP},
    plan::Planned,
    spec::{Architecture, CoreSpec},
};

use crate::{
    Context,
    aws::{
        ec2::{filter, states_of},
        error::{During as _, code, refused},
        health,
        networks::{WayOut, ways_out},
        tags::{self, missing, takes},
    },
};

/// A group takes three minutes.
const CREATING_SECONDS: u32 = 30;
/// A change of size takes one.
const UPDATING_SECONDS: u32 = 15;
/// After so many seconds something is in its way. EKS itself gives up after twenty to thirty minutes.
const SLOW: u32 = 420;

/// Makes the core node group.
#[derive(Debug)]
pub struct EnsureNodeGroup;

/// Which nodes, and where.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Types and number.
    pub core: CoreSpec,
    /// Kubernetes minor.
    pub version: String,
    /// Private, in at least two zones.
    pub subnet_ids: Vec<String>,
    /// What the nodes run as.
    pub core_node_role_arn: String,
    /// The spec's tags.
    pub tags: BTreeMap<String, String>,
    /// A group of the name that bears nobody's tag is taken over.
    #[serde(default)]
    pub adopt: bool,
    /// Seconds that the machine has waited for it so far.
    #[serde(default)]
    pub waited: u32,
}

/// The group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Its name.
    pub node_group: String,
    /// EKS's name of the image family, for example `AL2023_ARM_64_STANDARD`.
    pub ami_type: String,
}

impl Step for EnsureNodeGroup {
    const NAME: &'static str = "ensure-node-group";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::NodeGroupFailed, ErrorName::CapacityUnavailable, ErrorName::NotOurs];
    type Input = Input;
    type Output = Progress<Output>;
}

/// A group as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    status: NodegroupStatus,
    ami_type: String,
    /// Minimum, desired, maximum.
    size: [i32; 3],
    tags: BTreeMap<String, String>,
    /// `code: message (resources)` of each health issue.
    issues: Vec<String>,
    arn: String,
    /// What EC2 says, where the group does not come up.
    machines: Option<Machines>,
}

/// The machines of a group that does not come up, and the way out of its subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machines {
    /// State and reason by instance.
    states: BTreeMap<String, String>,
    /// By subnet.
    ways_out: BTreeMap<String, Option<WayOut>>,
}

impl Machines {
    /// What it comes to: sentences of a cause.
    fn told(&self) -> String {
        let states: Vec<_> = self.states.iter().map(|(id, state)| format!("{id} is {state}")).collect();
        let states = if states.is_empty() { "none".to_owned() } else { states.join(", ") };
        let ways: Vec<_> = self
            .ways_out
            .iter()
            .map(|(subnet, way)| match way {
                Some(WayOut { target, blackhole: true }) => format!("{subnet} to {target}, which is gone"),
                Some(WayOut { target, .. }) => format!("{subnet} to {target}"),
                None => format!("{subnet} has none"),
            })
            .collect();
        format!("Its instances in EC2: {states}. Default routes: {}.", ways.join(", "))
    }
}

/// Whether something is in a group's way, so that it is worth asking EC2 what.
fn stuck(input: &Input, found: &Observed) -> bool {
    match found.status {
        NodegroupStatus::Creating => input.waited >= SLOW,
        NodegroupStatus::Active | NodegroupStatus::Updating | NodegroupStatus::Deleting => false,
        _ => true,
    }
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Create,
    Resize,
    Tag(BTreeMap<String, String>),
    Wait(u32, String),
    Done(Output),
}

pub(crate) fn decide(input: &Input, found: Option<&Observed>) -> Result<Action, StepError> {
    let Some(found) = found else { return Ok(Action::Create) };
    takes(&input.cluster, input.adopt, &found.tags, &format!("The node group {CORE_NODE_GROUP}"))?;
    let machines = found.machines.as_ref().map(Machines::told);
    match &found.status {
        NodegroupStatus::Creating if found.issues.is_empty() => {
            let slow = machines.map(|told| format!(", for longer than usual. {told}")).unwrap_or_default();
            Ok(Action::Wait(CREATING_SECONDS, format!("EKS starts the core nodes{slow}")))
        }
        // What EKS still complains of after so long it does not get over.
        NodegroupStatus::Creating if input.waited < SLOW => {
            let issues = health::said(&found.issues);
            Ok(Action::Wait(CREATING_SECONDS, format!("EKS starts the core nodes, and says: {issues}")))
        }
        NodegroupStatus::Updating => Ok(Action::Wait(UPDATING_SECONDS, "EKS changes the core node group".to_owned())),
        NodegroupStatus::Deleting => {
            Ok(Action::Wait(CREATING_SECONDS, "the former core node group is being deleted".to_owned()))
        }
        NodegroupStatus::Active => {
            let size = i32::try_from(input.core.size).unwrap_or(i32::MAX);
            let tags = missing(&names::tags(&input.cluster, &input.tags), &found.tags);
            if found.size != [size; 3] {
                Ok(Action::Resize)
            } else if tags.is_empty() {
                Ok(Action::Done(Output { node_group: CORE_NODE_GROUP.to_owned(), ami_type: found.ami_type.clone() }))
            } else {
                Ok(Action::Tag(tags))
            }
        }
        status => {
            let what = format!("The node group {CORE_NODE_GROUP} is {}", status.as_str());
            let again = "then delete the node group and start again";
            let mut error = health::failure(ErrorName::NodeGroupFailed, &what, &found.issues, again);
            if let Some(told) = machines {
                error.cause = format!("{} {told}", error.cause);
            }
            Err(error)
        }
    }
}

/// The image family of instance types, which are all of one architecture (preflight sees to it).
fn ami_type(types: &[String]) -> AmiTypes {
    match types.first().map(|name| architecture(name)) {
        Some(Architecture::Arm64) => AmiTypes::Al2023Arm64Standard,
        _ => AmiTypes::Al2023X8664Standard,
    }
}

/// Graviton types carry a `g` after the generation (`t4g`, `im4gn`, `c7gd`), and there is `a1` (EC2's naming rules).
fn architecture(instance_type: &str) -> Architecture {
    let family = instance_type.split('.').next().unwrap_or_default();
    let attributes =
        family.trim_start_matches(|c: char| c.is_ascii_lowercase()).trim_start_matches(|c: char| c.is_ascii_digit());
    if family == "a1" || attributes.starts_with('g') { Architecture::Arm64 } else { Architecture::Amd64 }
}

/// Makes the group, or reports how far it is.
///
/// # Errors
/// `NodeGroupFailed` with EKS's health issues and what EC2 says, `CapacityUnavailable` and `QuotaExceeded` where it is
/// that; `NotOurs` for a group of that name without our tag.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let eks = cx.aws.eks();
    let name = &input.cluster.name;
    let mut found = observe(cx, name).await?;
    if let Some(group) = found.as_mut().filter(|group| stuck(&input, group)) {
        let of_group = [("tag:eks:cluster-name", name.as_str()), ("tag:eks:nodegroup-name", CORE_NODE_GROUP)];
        let filters = of_group.map(|(tag, value)| filter(tag, [value])).to_vec();
        let (states, ways_out) = try_join!(states_of(cx, filters), ways_out(cx.aws.ec2(), &input.subnet_ids))?;
        group.machines = Some(Machines { states, ways_out });
    }
    let size = i32::try_from(input.core.size).unwrap_or(i32::MAX);
    let scaling = NodegroupScalingConfig::builder().min_size(size).desired_size(size).max_size(size).build();
    match decide(&input, found.as_ref())? {
        Action::Done(output) => Ok(Progress::done(output)),
        Action::Wait(seconds, detail) => Ok(Progress::wait(seconds, detail)),
        Action::Create => {
            cx.state.hold(&input.run, &input.cluster).await?;
            eks.create_nodegroup()
                .cluster_name(name)
                .nodegroup_name(CORE_NODE_GROUP)
                .scaling_config(scaling)
                .set_subnets(Some(input.subnet_ids))
                .ami_type(ami_type(&input.core.instance_types))
                .set_instance_types(Some(input.core.instance_types))
                .capacity_type(CapacityTypes::OnDemand)
                .node_role(input.core_node_role_arn)
                .version(input.version)
                .set_tags(Some(names::tags(&input.cluster, &input.tags).into_iter().collect()))
                .client_request_token(format!("{}-{CORE_NODE_GROUP}", input.run.id))
                .send()
                .await
                .during("eks:CreateNodegroup")?;
            Ok(Progress::wait(CREATING_SECONDS, "EKS starts the core nodes"))
        }
        Action::Resize => {
            cx.state.hold(&input.run, &input.cluster).await?;
            let call = eks.update_nodegroup_config().cluster_name(name).nodegroup_name(CORE_NODE_GROUP);
            call.scaling_config(scaling).send().await.during("eks:UpdateNodegroupConfig")?;
            Ok(Progress::wait(UPDATING_SECONDS, "EKS resizes the core node group"))
        }
        Action::Tag(tags) => {
            cx.state.hold(&input.run, &input.cluster).await?;
            let found =
                found.ok_or_else(|| StepError::new(ErrorName::Internal, "A group without an ARN was tagged."))?;
            let call = eks.tag_resource().resource_arn(&found.arn).set_tags(Some(tags.into_iter().collect()));
            call.send().await.during("eks:TagResource")?;
            let output = Output { node_group: CORE_NODE_GROUP.to_owned(), ami_type: found.ami_type };
            Ok(Progress::done(output))
        }
    }
}

/// What would become of the group.
///
/// # Errors
/// As [`run`].
pub(crate) async fn plan(cx: &Context, input: &Input) -> Result<Planned, StepError> {
    let found = observe(cx, &input.cluster.name).await?;
    let told = match decide(input, found.as_ref())? {
        Action::Create | Action::Done(_) => Vec::new(),
        Action::Resize => vec![format!("it gets {} nodes", input.core.size)],
        Action::Tag(lacking) => vec![tags::told(&lacking)],
        Action::Wait(_, detail) => vec![detail],
    };
    Ok(Planned::of("EKS node group", CORE_NODE_GROUP, found.map(|_| told.as_slice())))
}

pub(crate) async fn observe(cx: &Context, cluster: &str) -> Result<Option<Observed>, StepError> {
    match cx.aws.eks().describe_nodegroup().cluster_name(cluster).nodegroup_name(CORE_NODE_GROUP).send().await {
        Ok(answer) => Ok(answer.nodegroup.map(found)),
        Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(None),
        Err(error) => Err(refused("eks:DescribeNodegroup", &error)),
    }
}

fn found(group: Nodegroup) -> Observed {
    let scaling = group.scaling_config.as_ref();
    let number = |of: fn(&NodegroupScalingConfig) -> Option<i32>| scaling.and_then(of).unwrap_or_default();
    let issues = group.health.and_then(|health| health.issues).unwrap_or_default();
    Observed {
        status: group.status.unwrap_or(NodegroupStatus::Creating),
        ami_type: group.ami_type.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        size: [
            number(NodegroupScalingConfig::min_size),
            number(NodegroupScalingConfig::desired_size),
            number(NodegroupScalingConfig::max_size),
        ],
        tags: group.tags.unwrap_or_default().into_iter().collect(),
        issues: issues
            .into_iter()
            .map(|issue| {
                let resources = issue.resource_ids.unwrap_or_default();
                health::issue(issue.code.as_ref().map(AsRef::as_ref), issue.message.as_deref(), &resources)
            })
            .collect(),
        arn: group.nodegroup_arn.unwrap_or_default(),
        machines: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn input() -> Input {
        Input {
            run: Run { id: "01".into(), fence: 1 },
            cluster: ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() },
            core: CoreSpec::default(),
            version: "1.36".into(),
            subnet_ids: vec![],
            core_node_role_arn: "arn:r".into(),
            tags: BTreeMap::new(),
            adopt: false,
            waited: 0,
        }
    }

    fn group(status: NodegroupStatus) -> Observed {
        Observed {
            status,
            ami_type: "AL2023_ARM_64_STANDARD".into(),
            size: [2; 3],
            tags: names::tags(&input().cluster, &BTreeMap::new()),
            issues: vec![],
            arn: "arn:g".into(),
            machines: None,
        }
    }

    #[test]
    fn a_group_is_made_waited_for_and_then_left_alone() {
        assert_eq!(decide(&input(), None).unwrap(), Action::Create);
        let creating = decide(&input(), Some(&group(NodegroupStatus::Creating))).unwrap();
        assert!(matches!(creating, Action::Wait(CREATING_SECONDS, _)));
        assert!(matches!(decide(&input(), Some(&group(NodegroupStatus::Active))).unwrap(), Action::Done(_)));
    }

    #[test]
    fn another_size_is_corrected_in_place() {
        let mut bigger = input();
        bigger.core.size = 3;
        assert_eq!(decide(&bigger, Some(&group(NodegroupStatus::Active))).unwrap(), Action::Resize);
    }

    #[test]
    fn a_failed_group_says_what_eks_says() {
        let mut failed = group(NodegroupStatus::CreateFailed);
        failed.issues = vec!["NodeCreationFailure: Instances failed to join (i-1).".into()];
        let error = decide(&input(), Some(&failed)).unwrap_err();
        assert_eq!(error.name, ErrorName::NodeGroupFailed);
        assert!(error.cause.contains("CREATE_FAILED") && error.cause.contains("Instances failed to join"));
        assert!(error.remedy.contains("default route") && error.remedy.contains("delete the node group"));
    }

    fn machines() -> Machines {
        let way = |target: &str, blackhole| Some(WayOut { target: target.to_owned(), blackhole });
        Machines {
            states: BTreeMap::from([("i-1".to_owned(), "running".to_owned())]),
            ways_out: BTreeMap::from([
                ("subnet-a".to_owned(), way("nat-1", false)),
                ("subnet-b".to_owned(), way("nat-2", true)),
                ("subnet-c".to_owned(), None),
            ]),
        }
    }

    #[test]
    fn a_group_that_does_not_come_up_says_what_ec2_says() {
        let told = "Its instances in EC2: i-1 is running. Default routes: subnet-a to nat-1, subnet-b to nat-2, which is \
                    gone, subnet-c has none.";
        let mut slow = Observed { machines: Some(machines()), ..group(NodegroupStatus::Creating) };
        let late = Input { waited: SLOW, ..input() };
        let Action::Wait(_, detail) = decide(&late, Some(&slow)).unwrap() else { unreachable!() };
        assert!(
            detail.starts_with("EKS starts the core nodes, for longer than usual.") && detail.ends_with(told),
            "{detail}"
        );
        slow.issues = vec!["NodeCreationFailure: Instances failed to join (i-1).".into()];
        let error = decide(&late, Some(&slow)).unwrap_err();
        assert_eq!(error.name, ErrorName::NodeGroupFailed);
        assert!(error.cause.contains("failed to join") && error.cause.ends_with(told), "{}", error.cause);
        slow.machines = None;
        assert!(matches!(decide(&input(), Some(&slow)).unwrap(), Action::Wait(..)), "EKS may get over it");
    }

    #[test]
    fn ec2_is_asked_only_about_groups_that_do_not_come_up() {
        let late = Input { waited: SLOW, ..input() };
        for (input, status, asked) in [
            (&input(), NodegroupStatus::Creating, false),
            (&late, NodegroupStatus::Creating, true),
            (&input(), NodegroupStatus::CreateFailed, true),
            (&input(), NodegroupStatus::Degraded, true),
            (&late, NodegroupStatus::Active, false),
            (&late, NodegroupStatus::Updating, false),
        ] {
            assert_eq!(stuck(input, &group(status.clone())), asked, "{status:?}");
        }
    }

    #[test]
    fn capacity_and_quotas_have_names_of_their_own() {
        for (words, name) in [
            (
                "InsufficientInstanceCapacity - We currently do not have sufficient t4g.medium capacity",
                ErrorName::CapacityUnavailable,
            ),
            (
                "VcpuLimitExceeded - You have requested more vCPU capacity than your limit allows",
                ErrorName::QuotaExceeded,
            ),
        ] {
            let mut failed = group(NodegroupStatus::CreateFailed);
            failed.issues = vec![format!("AsgInstanceLaunchFailures: Could not launch On-Demand Instances. {words}.")];
            assert_eq!(decide(&input(), Some(&failed)).unwrap_err().name, name);
        }
    }

    #[test]
    fn a_strangers_group_is_refused() {
        let mut strange = group(NodegroupStatus::Active);
        strange.tags.clear();
        assert_eq!(decide(&input(), Some(&strange)).unwrap_err().name, ErrorName::NotOurs);
        let adopting = Input { adopt: true, ..input() };
        let tags = names::tags(&input().cluster, &BTreeMap::new());
        assert_eq!(decide(&adopting, Some(&strange)).unwrap(), Action::Tag(tags));
    }

    #[test]
    fn the_image_has_the_architecture_of_the_types() {
        for name in
            ["t4g.medium", "m7gd.large", "im4gn.large", "is4gen.medium", "a1.large", "g5g.xlarge", "x2gd.medium"]
        {
            assert_eq!(architecture(name), Architecture::Arm64, "{name}");
        }
        for name in ["t3.medium", "m7i.large", "g5.xlarge", "g4dn.xlarge", "c7a.large", "u-6tb1.metal", "m5dn.large"] {
            assert_eq!(architecture(name), Architecture::Amd64, "{name}");
        }
    }
}
