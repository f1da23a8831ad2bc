//! delete-remnants: what a cluster leaves once its control plane is gone: load balancers and volumes of workloads if they
//! may go, detached network interfaces, volumes of nodes, launch templates, security groups, the log group if it is to go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterKey, ErrorName, Kind, Progress, Run, Step, StepError,
    teardown::{Fate, Workloads},
};

use crate::{
    Context,
    aws::{
        inventory::{self, Place},
        removal::remove,
    },
    ownership::{self, Maker, Resource, of_cluster},
};

/// Deletes what is left in EC2 and beside it.
#[derive(Debug)]
pub struct DeleteRemnants;

/// Of which cluster, and what of it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// What only bears the tag by which Karpenter discovers it goes too: somebody else made it for this cluster.
    #[serde(default)]
    pub adopt: bool,
    /// What becomes of load balancers, and of volumes that hold somebody's data.
    #[serde(default = "refuse")]
    pub workloads: Workloads,
    /// What becomes of the control plane's log group.
    #[serde(default = "keep")]
    pub log_group: Fate,
    /// Seconds that this run has waited for what holds something else.
    #[serde(default)]
    pub waited: u32,
}

const fn refuse() -> Workloads {
    Workloads::Refuse
}

const fn keep() -> Fate {
    Fate::Keep
}

/// What was deleted by this call.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Names of load balancers.
    pub load_balancers: Vec<String>,
    /// Names of target groups.
    pub target_groups: Vec<String>,
    /// Ids of volumes.
    pub volumes: Vec<String>,
    /// Ids of network interfaces.
    pub network_interfaces: Vec<String>,
    /// Ids of launch templates.
    pub launch_templates: Vec<String>,
    /// Ids of security groups.
    pub security_groups: Vec<String>,
    /// Names of log groups.
    pub log_groups: Vec<String>,
}

impl Step for DeleteRemnants {
    const NAME: &'static str = "delete-remnants";
    const ERRORS: &'static [ErrorName] = &[ErrorName::DeletionBlocked];
    type Input = Input;
    type Output = Progress<Output>;
}

/// Interfaces of what was just deleted leave a security group within minutes.
const ASK_AGAIN: u32 = 15;
/// After so many seconds what holds something is the run's failure.
const PATIENCE: u32 = 600;

/// What goes of what is there, in the order in which things hold each other. What a stack has goes with its stack.
pub(crate) fn decide<'a>(input: &Input, found: &'a [Resource]) -> Vec<&'a Resource> {
    let goes = |resource: &Resource| match resource.kind {
        Kind::LoadBalancer | Kind::TargetGroup => input.workloads == Workloads::Delete,
        Kind::Volume if resource.state == "deleting" => false,
        Kind::Volume if ownership::is_of_claim(resource) => input.workloads == Workloads::Delete,
        // Who knows what a volume is that no node had.
        Kind::Volume => matches!(ownership::maker(resource), Maker::Karpenter | Maker::Eks),
        Kind::NetworkInterface => resource.state == "available",
        Kind::LogGroup => input.log_group == Fate::Delete,
        _ => ownership::maker(resource) != Maker::Network,
    };
    let mut going: Vec<&Resource> = of_cluster(&input.cluster, input.adopt, found)
        .into_iter()
        .map(|(resource, _)| resource)
        .filter(|resource| goes(resource))
        .collect();
    going.sort_by(|a, b| (a.kind, &a.arn).cmp(&(b.kind, &b.arn)));
    going
}

/// Deletes what is left, in the order in which things hold each other.
///
/// # Errors
/// `DeletionBlocked` names what holds something, such as an interface, and whose it is, that is in a security group.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let found = observe(cx, &input).await?;
    let (mut deleted, mut held) = (Output::default(), Vec::new());
    for resource in decide(&input, &found) {
        cx.state.hold(&input.run, &input.cluster).await?;
        match remove(cx, resource.kind, &resource.arn, &resource.name).await {
            Ok(_) => deleted.add(resource),
            Err(error) if error.name == ErrorName::DeletionBlocked => held.push(error.cause),
            Err(error) => return Err(error),
        }
    }
    if held.is_empty() {
        Ok(Progress::done(deleted))
    } else if input.waited >= PATIENCE {
        Err(StepError::new(ErrorName::DeletionBlocked, held.join(" ")))
    } else {
        Ok(Progress::wait(ASK_AGAIN, held.join(" ")))
    }
}

impl Output {
    fn add(&mut self, resource: &Resource) {
        let list = match resource.kind {
            Kind::LoadBalancer => &mut self.load_balancers,
            Kind::TargetGroup => &mut self.target_groups,
            Kind::Volume => &mut self.volumes,
            Kind::NetworkInterface => &mut self.network_interfaces,
            Kind::LaunchTemplate => &mut self.launch_templates,
            Kind::LogGroup => &mut self.log_groups,
            _ => &mut self.security_groups,
        };
        list.push(resource.name.clone());
    }
}

/// What may be the cluster's of the kinds that go here; of those that may not go nothing is asked.
async fn observe(cx: &Context, input: &Input) -> Result<Vec<Resource>, StepError> {
    let place = Place::of(&input.cluster, input.adopt);
    let (templates, interfaces, volumes, groups) = futures::try_join!(
        inventory::launch_templates(cx, place),
        inventory::interfaces(cx, place),
        inventory::volumes(cx, place),
        inventory::security_groups(cx, place),
    )?;
    let mut found = [templates, interfaces, volumes, groups].concat();
    if input.workloads == Workloads::Delete {
        found.extend(inventory::load_balancers(cx, place).await?);
    }
    if input.log_group == Fate::Delete {
        found.extend(inventory::log_groups(cx, place).await?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use slipway_statemachine::names::{CLUSTER_TAG, DISCOVERY_TAG};

    use super::*;
    use crate::ownership::{RETAINED_TAG, STACK_TAG};

    const OWNED: (&str, &str) = ("kubernetes.io/cluster/demo", "owned");

    fn input(adopt: bool, workloads: Workloads, log_group: Fate) -> Input {
        let cluster = ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() };
        Input { run: Run { id: "01".into(), fence: 1 }, cluster, adopt, workloads, log_group, waited: 0 }
    }

    fn ours() -> Input {
        input(false, Workloads::Refuse, Fate::Keep)
    }

    fn thing(kind: Kind, name: &str, tags: &[(&str, &str)]) -> Resource {
        let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Resource::new(kind, format!("arn:{name}"), name).tagged(tags)
    }

    fn going(input: &Input, found: &[Resource]) -> Vec<String> {
        decide(input, found).into_iter().map(|resource| resource.name.clone()).collect()
    }

    #[test]
    fn what_a_stack_has_stays_with_its_stack() {
        let made = (CLUSTER_TAG, "demo");
        let group = thing(Kind::SecurityGroup, "sg-1", &[made]);
        let in_stack = thing(Kind::SecurityGroup, "sg-2", &[made, (STACK_TAG, "slipway-network-demo")]);
        assert_eq!(going(&ours(), &[group, in_stack]), ["sg-1"]);
    }

    #[test]
    fn what_karpenter_only_discovers_goes_with_an_adopted_cluster_alone() {
        let found = [
            thing(Kind::SecurityGroup, "sg-1", &[(DISCOVERY_TAG, "demo")]),
            thing(Kind::SecurityGroup, "sg-2", &[(DISCOVERY_TAG, "demo-2")]),
        ];
        assert!(going(&ours(), &found).is_empty());
        assert_eq!(going(&input(true, Workloads::Refuse, Fate::Keep), &found), ["sg-1"]);
    }

    #[test]
    fn interfaces_that_nothing_uses_go_and_are_told_apart_by_the_whole_name() {
        let interface = |name: &str, description: &str, state: &str| {
            thing(Kind::NetworkInterface, name, &[]).described(description).in_state(state)
        };
        let found = [
            interface("eni-1", "Amazon EKS demo", "available"),
            interface("eni-2", "Amazon EKS demo", "in-use"),
            interface("eni-3", "Amazon EKS demo-2", "available"),
            interface("eni-4", "Amazon EKS demo_2", "available"),
            // Leaked by the VPC CNI without a tag: it is in the cluster's group.
            interface("eni-5", "aws-K8S-i-0123", "available").part_of(["sg-1"]),
            interface("eni-6", "aws-K8S-i-0123", "available").part_of(["sg-2"]),
            thing(Kind::SecurityGroup, "sg-1", &[OWNED]),
        ];
        assert_eq!(going(&ours(), &found), ["eni-1", "eni-5", "sg-1"]);
    }

    #[test]
    fn a_volume_with_somebodys_data_goes_only_if_workloads_may() {
        let (node, claim) = (("karpenter.sh/nodepool", "x86"), ("kubernetes.io/created-for/pvc/name", "data"));
        let neighbour = ("kubernetes.io/cluster/demo-2", "owned");
        let found = [
            thing(Kind::Volume, "vol-node", &[node, OWNED]),
            thing(Kind::Volume, "vol-data", &[OWNED, claim]),
            thing(Kind::Volume, "vol-csi", &[OWNED, ("CSIVolumeName", "pvc-1")]),
            thing(Kind::Volume, "vol-kept", &[OWNED, claim, (RETAINED_TAG, "demo")]),
            thing(Kind::Volume, "vol-unknown", &[OWNED]),
            thing(Kind::Volume, "vol-neighbour", &[node, neighbour]),
            thing(Kind::Volume, "vol-theirs", &[neighbour, claim]),
        ];
        assert_eq!(going(&ours(), &found), ["vol-node"]);
        let all = input(false, Workloads::Delete, Fate::Keep);
        assert_eq!(going(&all, &found), ["vol-csi", "vol-data", "vol-node"]);
    }

    #[test]
    fn load_balancers_go_before_what_they_hold_and_only_if_workloads_may() {
        let found = [
            thing(Kind::SecurityGroup, "sg-1", &[OWNED]),
            thing(Kind::TargetGroup, "k8s-web", &[("elbv2.k8s.aws/cluster", "demo")]),
            thing(Kind::LoadBalancer, "a1", &[OWNED]),
            thing(Kind::LoadBalancer, "a2", &[("kubernetes.io/cluster/demo_2", "owned")]),
        ];
        assert_eq!(going(&ours(), &found), ["sg-1"]);
        assert_eq!(going(&input(false, Workloads::Delete, Fate::Keep), &found), ["a1", "k8s-web", "sg-1"]);
    }

    #[test]
    fn the_log_group_goes_when_asked() {
        let found = [
            thing(Kind::LogGroup, "/aws/eks/demo/cluster", &[]),
            thing(Kind::LogGroup, "/aws/eks/demo-2/cluster", &[]),
            thing(Kind::LogGroup, "/aws/eks/demo/cluster-audit", &[]),
        ];
        assert!(going(&ours(), &found).is_empty());
        assert_eq!(going(&input(false, Workloads::Refuse, Fate::Delete), &found), ["/aws/eks/demo/cluster"]);
    }
}
