//! Does a resource belong to a cluster, and why; who made it, what removes it, what it costs.
//!
//! Ownership is a tag, or a name that is exactly one of ours, never the beginning of a name: `demo`, `demo-2` and
//! `demo_2` live side by side in one account. What bears another cluster's tag is that cluster's, whatever it is called.
//! A cluster that somebody else made is found by what they call and tag things, too, once a person says `adopt`.

use std::collections::{BTreeMap, BTreeSet};

use slipway_statemachine::{
    ClusterKey, Kind, names,
    prices::{HOURS_A_MONTH, Prices},
};
use time::OffsetDateTime;

/// The parts of Karpenter's controller policy, as `bind-identity` names them (slipway-karpenter, `policy`).
const POLICY_PARTS: [&str; 6] =
    ["node-lifecycle", "iam-integration", "eks-integration", "interruption", "zonal-shift", "resource-discovery"];
/// The roles of a cluster, as `ensure-cluster-roles` and `bind-identity` name them.
const ROLES: [&str; 4] = ["cluster", "core", "node", "controller"];

/// Tags whose value is the cluster's name. Ours, and
pub const NAME_TAGS: [&str; 10] = [
    names::CLUSTER_TAG,
    // EKS': nodes of managed groups; its own resources; Karpenter and Auto Mode under EKS's prefix.
    "eks:cluster-name",
    "aws:eks:cluster-name",
    "eks:eks-cluster-name",
    // Karpenter's: instance profiles and launch templates; what it is to find.
    "karpenter.k8s.aws/cluster",
    names::DISCOVERY_TAG,
    // of the VPC CNI, the AWS Load Balancer Controller, the EBS CSI driver (new and old).
    "cluster.k8s.amazonaws.com/name",
    "elbv2.k8s.aws/cluster",
    "ebs.csi.aws.com/cluster-name",
    "KubernetesCluster",
];
/// `kubernetes.io/cluster/<name>` = `owned`; `shared` is somebody else's, which the cluster may use.
const KUBERNETES_TAG: &str = "kubernetes.io/cluster/";
/// CloudFormation's own tag. What has it goes with its stack, and not otherwise.
pub const STACK_TAG: &str = "aws:cloudformation:stack-name";
/// A volume that is to outlive its claim, and so its cluster: it is nobody's leftover from then on.
pub const RETAINED_TAG: &str = "slipway:retained";

/// A resource as its service describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// What it is.
    pub kind: Kind,
    /// Its ARN.
    pub arn: String,
    /// As its service calls it: a role's or rule's name, an instance's id, a group's name.
    pub name: String,
    /// Its description, where its kind has one.
    pub description: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The ids of what it is attached to or part of: an interface's instance and groups, an endpoint's VPC.
    pub part_of: Vec<String>,
    /// An instance's type.
    pub instance_type: Option<String>,
    /// A volume's size.
    pub gib: Option<i32>,
    /// `available`, `deleting`, …, where its kind has states.
    pub state: String,
    /// What EKS complains of about it, a sentence each.
    pub issues: Vec<String>,
    /// When it was made, where its service says so.
    pub created_at: Option<OffsetDateTime>,
}

impl Resource {
    /// A resource of which no more is known yet.
    pub fn new(kind: Kind, arn: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            arn: arn.into(),
            name: name.into(),
            description: String::new(),
            tags: BTreeMap::new(),
            part_of: Vec::new(),
            instance_type: None,
            gib: None,
            state: String::new(),
            issues: Vec::new(),
            created_at: None,
        }
    }

    /// With its tags.
    #[must_use]
    pub fn tagged(mut self, tags: BTreeMap<String, String>) -> Self {
        self.tags = tags;
        self
    }

    /// With its state.
    #[must_use]
    pub fn in_state(mut self, state: impl Into<String>) -> Self {
        self.state = state.into();
        self
    }

    /// With the time at which it was made, in seconds since 1970.
    #[must_use]
    pub fn made_at(mut self, seconds: Option<i64>) -> Self {
        self.created_at = seconds.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        self
    }

    /// With the ids of what it is part of.
    #[must_use]
    pub fn part_of(mut self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.part_of = ids.into_iter().map(Into::into).collect();
        self
    }

    /// With its description.
    #[must_use]
    pub fn described(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    fn tag(&self, key: &str) -> Option<&str> {
        self.tags.get(key).map(String::as_str)
    }
}

/// The tag that Kubernetes' controllers put on what they make; its value is `owned`, or `shared` for what they only use.
#[must_use]
pub fn kubernetes_tag(cluster: &ClusterKey) -> String {
    format!("{KUBERNETES_TAG}{}", cluster.name)
}

/// The keys of all tags that may say that something is the cluster's, for a filter of AWS's.
#[must_use]
pub fn keys(cluster: &ClusterKey) -> Vec<String> {
    NAME_TAGS.iter().map(|&key| key.to_owned()).chain([kubernetes_tag(cluster)]).collect()
}

/// Why a resource belongs to a cluster; none if it does not. With `adopt` also what others' names and Karpenter's
/// discovery tag say, which people put on what is theirs, too.
#[must_use]
pub fn belongs(cluster: &ClusterKey, adopt: bool, resource: &Resource) -> Option<String> {
    if is_anothers(cluster, &resource.tags) || !may_be_of_the_region(cluster, adopt, resource) {
        return None;
    }
    by_tag(cluster, adopt, resource).or_else(|| by_name(cluster, resource)).or_else(|| {
        let because = format!("it is called as others call what is of a cluster {}", cluster.name);
        (adopt && others_call_it(cluster, resource)).then_some(because)
    })
}

/// All that belongs to a cluster, and why: by itself, or by what it is part of.
#[must_use]
pub fn of_cluster<'a>(cluster: &ClusterKey, adopt: bool, resources: &'a [Resource]) -> Vec<(&'a Resource, String)> {
    let mut ids = BTreeSet::new();
    let (mut found, mut left) = (Vec::new(), Vec::new());
    for resource in resources {
        match belongs(cluster, adopt, resource) {
            Some(because) => {
                ids.extend([resource.arn.clone(), resource.name.clone()]);
                found.push((resource, because));
            }
            None => left.push(resource),
        }
    }
    for resource in left {
        found.extend(belongs_with(cluster, resource, &ids).map(|because| (resource, because)));
    }
    found
}

/// The same for a resource that says nothing itself, from the ids of what already was found to belong to the cluster.
fn belongs_with(cluster: &ClusterKey, resource: &Resource, ids: &BTreeSet<String>) -> Option<String> {
    let holder = resource.part_of.iter().find(|id| ids.contains(*id))?;
    (!is_anothers(cluster, &resource.tags)).then(|| format!("it is part of {holder}, which is the cluster's"))
}

/// The names of the clusters that a resource speaks of, by which an audit of an account learns of clusters.
#[must_use]
pub fn clusters_named(resource: &Resource) -> BTreeSet<String> {
    if let Some(ours) = resource.tag(names::CLUSTER_TAG) {
        return BTreeSet::from([ours.to_owned()]);
    }
    let mut named: BTreeSet<String> = owners(&resource.tags).map(str::to_owned).collect();
    // Discovery marks what a cluster may use, not what it made: subnets of a VPC that somebody else runs.
    let tags = NAME_TAGS.iter().filter(|key| **key != names::DISCOVERY_TAG);
    named.extend(tags.filter_map(|key| resource.tag(key)).map(str::to_owned));
    named.extend(
        match resource.kind {
            Kind::Cluster => Some(resource.name.as_str()),
            Kind::NodeGroup | Kind::FargateProfile => resource.arn.split('/').nth(1),
            Kind::LogGroup => log_group_of(&resource.name),
            Kind::NetworkInterface => interface_of_eks(&resource.description),
            Kind::InstanceProfile => karpenter_path(&resource.arn).map(|(_, cluster)| cluster),
            _ => None,
        }
        .map(str::to_owned),
    );
    named
}

/// Whether a volume was made for a claim: it holds somebody's data.
#[must_use]
pub fn is_of_claim(resource: &Resource) -> bool {
    resource.kind == Kind::Volume
        && resource.tags.keys().any(|key| key.starts_with("kubernetes.io/created-for/") || key == "CSIVolumeName")
}

/// Whether it bears the tag by which Slipway knows its own.
#[must_use]
pub fn is_tagged(resource: &Resource) -> bool {
    resource.tags.contains_key(names::CLUSTER_TAG)
}

/// The clusters that own something by Kubernetes' tag.
fn owners(tags: &BTreeMap<String, String>) -> impl Iterator<Item = &str> {
    tags.iter().filter(|(_, value)| *value == "owned").filter_map(|(key, _)| key.strip_prefix(KUBERNETES_TAG))
}

/// Whether a tag says that it is another cluster's, too, or is to be kept: then it is not ours to judge.
fn is_anothers(cluster: &ClusterKey, tags: &BTreeMap<String, String>) -> bool {
    if tags.contains_key(RETAINED_TAG) {
        return true;
    }
    match tags.get(names::CLUSTER_TAG) {
        Some(ours) => *ours != cluster.name,
        None => owners(tags).any(|owner| owner != cluster.name),
    }
}

/// The key of the tag that says so.
fn owning_tag(cluster: &ClusterKey, adopt: bool, tags: &BTreeMap<String, String>) -> Option<String> {
    if is_anothers(cluster, tags) {
        return None;
    }
    let mut keys = NAME_TAGS.iter().filter(|key| adopt || **key != names::DISCOVERY_TAG);
    let names_it = keys.find(|key| tags.get(**key) == Some(&cluster.name)).map(|key| (*key).to_owned());
    names_it.or_else(|| owners(tags).next().map(|_| kubernetes_tag(cluster)))
}

fn by_tag(cluster: &ClusterKey, adopt: bool, resource: &Resource) -> Option<String> {
    if resource.kind.is_network() && !is_tagged(resource) {
        // Any other tag on a network says who may use it.
        let stack = resource.tag(STACK_TAG)?;
        return (stack == names::stack(cluster)).then(|| format!("it is in the cluster's network stack {stack}"));
    }
    let key = owning_tag(cluster, adopt, &resource.tags)?;
    let value = resource.tag(&key)?;
    Some(format!("its tag {key} is {value}"))
}

fn by_name(cluster: &ClusterKey, resource: &Resource) -> Option<String> {
    let name = resource.name.as_str();
    let is = |ours: bool, because: &str| ours.then(|| because.to_owned());
    match resource.kind {
        Kind::Cluster => is(name == cluster.name, "it is the cluster"),
        Kind::NodeGroup | Kind::FargateProfile => {
            is(resource.arn.split('/').nth(1) == Some(cluster.name.as_str()), "it is part of the cluster")
        }
        Kind::Role => is(ROLES.iter().any(|role| names::role(cluster, role) == name), "its name is exactly ours"),
        Kind::Policy => {
            is(POLICY_PARTS.iter().any(|part| names::policy(cluster, part) == name), "its name is exactly ours")
        }
        Kind::Queue => is(names::queue(cluster) == name, "its name is exactly ours"),
        Kind::Rule => {
            let kinds = slipway_karpenter::policy::interruption_rules();
            is(kinds.iter().any(|rule| names::rule(cluster, rule.kind) == name), "its name is exactly ours")
        }
        Kind::Stack => is(names::stack(cluster) == name, "its name is exactly ours"),
        Kind::LogGroup => is(log_group_of(name) == Some(&cluster.name), "it is where EKS logs for the cluster"),
        Kind::NetworkInterface => {
            is(interface_of_eks(&resource.description) == Some(&cluster.name), "EKS describes it as the cluster's")
        }
        Kind::InstanceProfile => {
            let path = Some((cluster.region.as_str(), cluster.name.as_str()));
            is(karpenter_path(&resource.arn) == path, "its path is Karpenter's for the cluster")
        }
        _ => None,
    }
}

/// Whether it is called `Karpenter<What>-<cluster>`, as Karpenter's guide and the Terraform modules call roles, policies,
/// profiles, queues and rules. `<What>` has no hyphen, so that the cluster's name is a whole one.
fn others_call_it(cluster: &ClusterKey, resource: &Resource) -> bool {
    let kinds = [Kind::Role, Kind::Policy, Kind::InstanceProfile, Kind::Queue, Kind::Rule];
    let of = resource.name.strip_prefix("Karpenter").and_then(|rest| rest.split_once('-')).map(|(_, of)| of);
    kinds.contains(&resource.kind) && of == Some(&cluster.name)
}

/// IAM is one for all regions, and two regions may have clusters of one name: there the name, path, ARN or a tag must
/// speak for the region, or the resource is left alone. Others' names and tags don't tell of regions: whoever adopts a
/// cluster vouches for that.
fn may_be_of_the_region(cluster: &ClusterKey, adopt: bool, resource: &Resource) -> bool {
    let region = resource.tag("topology.kubernetes.io/region");
    let tagged = region == Some(&cluster.region) || (adopt && region.is_none() && !is_tagged(resource));
    match resource.kind {
        Kind::Role => tagged || is_called(&resource.name, |suffix| names::role(cluster, suffix)),
        Kind::Policy => tagged || is_called(&resource.name, |suffix| names::policy(cluster, suffix)),
        Kind::InstanceProfile => match karpenter_path(&resource.arn) {
            Some((region, _)) => region == cluster.region,
            None => tagged || is_called(&resource.name, |suffix| names::role(cluster, suffix)),
        },
        Kind::OidcProvider => resource.arn.contains(&format!("/oidc.eks.{}.", cluster.region)),
        _ => true,
    }
}

/// Whether it is worth asking for the tags of something that its list shows without them: it may be this cluster's by
/// its name, or some cluster's if none is given.
#[must_use]
pub fn may_belong(cluster: Option<&ClusterKey>, adopt: bool, resource: &Resource) -> bool {
    let Some(cluster) = cluster else {
        return resource.name.starts_with("slipway-eks-") || !clusters_named(resource).is_empty();
    };
    let speaks_of_it = || resource.name.to_lowercase().contains(&cluster.name.to_lowercase());
    by_name(cluster, resource).is_some()
        || matches!(resource.kind, Kind::Role | Kind::Policy) && may_be_of_the_region(cluster, false, resource)
        || adopt && speaks_of_it()
}

/// Whether a name is what the cluster's would be with one of the endings that it could have.
fn is_called(name: &str, ours: impl Fn(&str) -> String) -> bool {
    name.match_indices('-').any(|(at, _)| ours(&name[at + 1..]) == name)
}

/// The cluster of `/aws/eks/<cluster>/cluster`.
fn log_group_of(name: &str) -> Option<&str> {
    name.strip_prefix("/aws/eks/")?.strip_suffix("/cluster").filter(|cluster| !cluster.contains('/'))
}

/// The cluster of `Amazon EKS <cluster>`, which is how EKS describes its interfaces in a cluster's subnets.
fn interface_of_eks(description: &str) -> Option<&str> {
    description.strip_prefix("Amazon EKS ").filter(|cluster| !cluster.is_empty() && !cluster.contains(' '))
}

/// Region and cluster of a profile at `/karpenter/<region>/<cluster>/<node class>/`.
fn karpenter_path(arn: &str) -> Option<(&str, &str)> {
    let mut path = arn.split_once(":instance-profile/karpenter/")?.1.split('/');
    let found = (path.next()?, path.next()?);
    // The profile's name, or the node class and then the name.
    path.next().map(|_| found)
}

/// Who made something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// Our steps.
    Slipway,
    /// CloudFormation, from our network's template.
    Network,
    /// EKS itself.
    Eks,
    /// Karpenter.
    Karpenter,
    /// The controller that makes load balancers for Services and Ingresses.
    ServiceController,
    /// The EBS CSI driver, for a PersistentVolumeClaim.
    VolumeDriver,
    /// The VPC CNI plugin.
    NetworkPlugin,
    /// Somebody else.
    Unknown,
}

/// Who made a resource.
#[must_use]
pub fn maker(resource: &Resource) -> Maker {
    let has = |keys: &[&str]| keys.iter().any(|key| resource.tags.contains_key(*key));
    let says = |beginning: &str| resource.description.starts_with(beginning);
    if has(&[STACK_TAG]) || resource.kind.is_network() {
        Maker::Network
    } else if has(&["karpenter.sh/nodepool", "karpenter.k8s.aws/cluster", "karpenter.k8s.aws/ec2nodeclass"])
        || karpenter_path(&resource.arn).is_some()
    {
        Maker::Karpenter
    } else if has(&["CSIVolumeName", "kubernetes.io/created-for/pvc/name"]) {
        Maker::VolumeDriver
    } else if has(&["kubernetes.io/service-name", "service.k8s.aws/stack", "ingress.k8s.aws/stack"])
        || says("ELB ")
        || says("Security group for Kubernetes ELB ")
    {
        Maker::ServiceController
    } else if has(&["node.k8s.amazonaws.com/instance_id"]) || says("aws-K8S-") {
        Maker::NetworkPlugin
    } else if is_tagged(resource) {
        Maker::Slipway
    } else if has(&["eks:nodegroup-name", "aws:eks:cluster-name", "eks:cluster-name"])
        || says("Amazon EKS ")
        || resource.kind == Kind::LogGroup
    {
        Maker::Eks
    } else {
        Maker::Unknown
    }
}

/// What removes a resource, for whoever reads the audit.
#[must_use]
pub fn removed_by(resource: &Resource) -> &'static str {
    match (resource.kind, maker(resource)) {
        (Kind::RegistryRow, _) => "sweep",
        (Kind::Other, _) => "its own service: Slipway does not know this type",
        (Kind::LogGroup, _) => "teardown with \"logGroup\": \"delete\", or sweep",
        (_, Maker::Network) => "teardown with \"network\": \"delete\"",
        (_, Maker::ServiceController) => "deleting its Service or Ingress while the cluster lives, else sweep",
        (_, Maker::VolumeDriver) => "deleting its PersistentVolumeClaim while the cluster lives, else sweep",
        (Kind::NetworkInterface, Maker::NetworkPlugin) => "the VPC CNI while its node lives, else teardown or sweep",
        (Kind::NetworkInterface | Kind::SecurityGroup, Maker::Eks) => "EKS with the cluster, else teardown or sweep",
        (_, Maker::Karpenter) => "Karpenter with its node class, else teardown or sweep",
        _ => "teardown, or sweep",
    }
}

/// US dollars a month at list prices; zero for what costs nothing by being there, none where the price is not known.
#[must_use]
pub fn monthly_cost_usd(prices: &Prices, region: &str, resource: &Resource) -> Option<f64> {
    let here = prices.regions.get(region);
    let hourly = |price: Option<f64>| price.map(|price| (price * HOURS_A_MONTH * 100.0).round() / 100.0);
    match resource.kind {
        Kind::Cluster => hourly(Some(prices.eks_hour)),
        Kind::Instance => {
            let kind = resource.instance_type.as_ref()?;
            hourly(here.and_then(|here| here.instances.get(kind)).copied())
        }
        Kind::LoadBalancer => hourly(here.map(|here| here.load_balancer)),
        Kind::NatGateway => hourly(here.map(|here| here.nat_gateway)),
        Kind::Address => hourly(Some(prices.address_hour)),
        Kind::Volume => Some(here?.gp3_gib_month * f64::from(resource.gib?)),
        Kind::VpcEndpoint | Kind::FargateProfile | Kind::LogGroup | Kind::Other => None,
        _ => Some(0.0),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NEIGHBOURS: [&str; 3] = ["demo", "demo-2", "demo_2"];

    fn key(name: &str) -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: name.into() }
    }

    fn tags(tags: &[(&str, &str)]) -> BTreeMap<String, String> {
        tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn iam(kind: &str, name: &str) -> String {
        format!("arn:aws:iam::111122223333:{kind}/{name}")
    }

    /// Everything that there is for a cluster, as each maker leaves it, without a tag of ours.
    fn left_by_name(cluster: &ClusterKey) -> Vec<Resource> {
        let name = &cluster.name;
        let eks = format!("arn:aws:eks:eu-west-1:111122223333:cluster/{name}");
        let group = format!("arn:aws:eks:eu-west-1:111122223333:nodegroup/{name}/core/1");
        let profile = iam("instance-profile", &format!("karpenter/eu-west-1/{name}/0f1e/{name}_123"));
        let mut left = vec![
            Resource::new(Kind::Cluster, eks, name),
            Resource::new(Kind::NodeGroup, group, "core"),
            Resource::new(Kind::Queue, "arn:q", names::queue(cluster)),
            Resource::new(Kind::Stack, "arn:s", names::stack(cluster)),
            Resource::new(Kind::LogGroup, "arn:l", format!("/aws/eks/{name}/cluster")),
            Resource::new(Kind::NetworkInterface, "arn:n", "eni-1").described(format!("Amazon EKS {name}")),
            Resource::new(Kind::InstanceProfile, profile, format!("{name}_123")),
        ];
        left.extend(ROLES.iter().map(|role| Resource::new(Kind::Role, "arn:r", names::role(cluster, role))));
        left.extend(POLICY_PARTS.iter().map(|p| Resource::new(Kind::Policy, "arn:p", names::policy(cluster, p))));
        let rules = slipway_karpenter::policy::interruption_rules();
        left.extend(rules.iter().map(|rule| Resource::new(Kind::Rule, "arn:e", names::rule(cluster, rule.kind))));
        left
    }

    /// The same by tag: ours, Kubernetes', EKS', Karpenter's, the drivers'.
    fn left_by_tag(cluster: &ClusterKey) -> Vec<Resource> {
        let name = cluster.name.as_str();
        let owned = format!("kubernetes.io/cluster/{name}");
        let own = NAME_TAGS.iter().filter(|key| **key != names::DISCOVERY_TAG);
        let each: Vec<BTreeMap<String, String>> =
            own.map(|key| tags(&[(*key, name)])).chain([tags(&[(&owned, "owned")])]).collect();
        let kinds = [
            Kind::Instance,
            Kind::Volume,
            Kind::LoadBalancer,
            Kind::TargetGroup,
            Kind::NetworkInterface,
            Kind::LaunchTemplate,
            Kind::SecurityGroup,
            Kind::Other,
        ];
        let tagged =
            |kind: Kind| each.iter().map(move |tags| Resource::new(kind, "arn:x", "some-id").tagged(tags.clone()));
        let mut left: Vec<Resource> = kinds.into_iter().flat_map(tagged).collect();
        let ours = || tags(&[(names::CLUSTER_TAG, name)]);
        let provider = iam("oidc-provider", "oidc.eks.eu-west-1.amazonaws.com/id/0F1E");
        left.push(Resource::new(Kind::OidcProvider, provider, "0F1E").tagged(ours()));
        left.push(Resource::new(Kind::Role, "arn:r", names::role(cluster, "addon-ebs")).tagged(ours()));
        for kind in [Kind::Vpc, Kind::NatGateway, Kind::Address, Kind::Stack] {
            left.push(Resource::new(kind, "arn:n", "some-id").tagged(ours()));
            let of_stack = tags(&[(STACK_TAG, &names::stack(cluster))]);
            left.push(Resource::new(kind, "arn:n", "some-id").tagged(of_stack));
        }
        left
    }

    #[test]
    fn every_type_belongs_to_its_own_cluster_and_to_no_neighbour() {
        for owner in NEIGHBOURS {
            let left = [left_by_name(&key(owner)), left_by_tag(&key(owner))].concat();
            assert!(left.len() > 80, "{}", left.len());
            for resource in &left {
                for cluster in NEIGHBOURS {
                    let found = belongs(&key(cluster), false, resource);
                    let adopted = belongs(&key(cluster), true, resource);
                    assert_eq!(found.is_some(), adopted.is_some(), "{resource:?} of {owner} for {cluster}");
                    assert_eq!(found.is_some(), cluster == owner, "{resource:?} of {owner} for {cluster}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn what_bears_a_neighbours_tag_is_the_neighbours_whatever_it_is_called() {
        for resource in left_by_name(&key("demo")) {
            let taken = resource.clone().tagged(tags(&[(names::CLUSTER_TAG, "demo-2")]));
            assert_eq!(belongs(&key("demo"), true, &taken), None, "{resource:?}");
            let owned = resource.tagged(tags(&[("kubernetes.io/cluster/demo_2", "owned")]));
            assert_eq!(belongs(&key("demo"), true, &owned), None);
        }
        let both = tags(&[("kubernetes.io/cluster/demo", "owned"), ("kubernetes.io/cluster/demo-2", "owned")]);
        let group = Resource::new(Kind::SecurityGroup, "arn:g", "sg-1").tagged(both);
        assert_eq!(belongs(&key("demo"), true, &group), None);
    }

    #[test]
    fn tags_alone_say_whose_something_is() {
        let group =
            |tag: &str, value: &str| Resource::new(Kind::SecurityGroup, "arn:g", "sg-1").tagged(tags(&[(tag, value)]));
        for tag in keys(&key("demo")) {
            let value = if tag == kubernetes_tag(&key("demo")) { "owned" } else { "demo" };
            let discovered = tag == names::DISCOVERY_TAG;
            assert_eq!(belongs(&key("demo"), false, &group(&tag, value)).is_some(), !discovered, "{tag}");
            assert!(belongs(&key("demo"), true, &group(&tag, value)).is_some(), "{tag}");
            for other in ["demo-2", "demo_2", "dem", "Demo", "demo2", "shared", ""] {
                assert_eq!(belongs(&key("demo"), true, &group(&tag, other)), None, "{tag}={other}");
            }
        }
        let stranger = tags(&[(names::CLUSTER_TAG, "demo-2"), ("kubernetes.io/cluster/demo", "owned")]);
        let queue = Resource::new(Kind::Queue, "arn:q", "slipway-eks-demo");
        assert_eq!(belongs(&key("demo"), true, &queue.clone().tagged(stranger)), None);
        assert!(belongs(&key("demo"), false, &queue).is_some());
    }

    #[test]
    fn what_others_call_a_clusters_is_taken_with_an_adopted_cluster_alone() {
        let named = |kind, name: &str| Resource::new(kind, "arn:x", name);
        for (kind, name) in [
            (Kind::Role, "KarpenterController-demo"),
            (Kind::Role, "KarpenterNodeRole-demo"),
            (Kind::Policy, "KarpenterControllerPolicy-demo"),
            (Kind::InstanceProfile, "KarpenterNodeInstanceProfile-demo"),
            (Kind::Queue, "Karpenter-demo"),
            (Kind::Rule, "KarpenterRebalance-demo"),
        ] {
            assert_eq!(belongs(&key("demo"), false, &named(kind, name)), None, "{name}");
            assert!(belongs(&key("demo"), true, &named(kind, name)).is_some(), "{name}");
            assert!(may_belong(Some(&key("demo")), true, &named(kind, name)), "{name}");
            for neighbour in ["demo-2", "demo_2", "2-demo", "dem"] {
                assert_eq!(belongs(&key(neighbour), true, &named(kind, name)), None, "{name} for {neighbour}");
            }
        }
        assert_eq!(belongs(&key("demo"), true, &named(Kind::Queue, "demo")), None, "anybody's queue may be called so");
        let tagged = named(Kind::Queue, "demo").tagged(tags(&[(names::DISCOVERY_TAG, "demo")]));
        assert!(belongs(&key("demo"), true, &tagged).is_some());
        let elsewhere = tags(&[(names::DISCOVERY_TAG, "demo"), ("topology.kubernetes.io/region", "us-east-1")]);
        assert_eq!(belongs(&key("demo"), true, &named(Kind::Role, "KarpenterNodeRole-demo").tagged(elsewhere)), None);
    }

    #[test]
    fn a_volume_that_is_to_be_kept_is_nobodys_leftover() {
        let claim = [("kubernetes.io/cluster/demo", "owned"), ("kubernetes.io/created-for/pvc/name", "data")];
        let volume = Resource::new(Kind::Volume, "arn:v", "vol-1").tagged(tags(&claim));
        assert!(is_of_claim(&volume) && belongs(&key("demo"), false, &volume).is_some());
        let kept = volume.tagged(tags(&[claim[0], claim[1], (RETAINED_TAG, "demo")]));
        assert_eq!(belongs(&key("demo"), true, &kept), None);
    }

    #[test]
    fn what_a_cluster_only_uses_is_not_its_own() {
        let shared = tags(&[("kubernetes.io/cluster/demo", "shared"), (names::DISCOVERY_TAG, "demo")]);
        assert_eq!(
            belongs(&key("demo"), true, &Resource::new(Kind::Vpc, "arn:v", "vpc-1").tagged(shared.clone())),
            None
        );
        let tags = tags(&[("kubernetes.io/cluster/demo", "shared")]);
        assert_eq!(
            belongs(&key("demo"), true, &Resource::new(Kind::SecurityGroup, "arn:g", "sg-1").tagged(tags)),
            None
        );
        assert!(clusters_named(&Resource::new(Kind::Other, "arn:s", "subnet-1").tagged(shared)).is_empty());
    }

    #[test]
    fn iam_of_a_cluster_of_the_same_name_in_another_region_is_left_alone() {
        let there = ClusterKey { region: "us-east-1".into(), ..key("demo") };
        let ours = tags(&[(names::CLUSTER_TAG, "demo")]);
        let provider = iam("oidc-provider", "oidc.eks.us-east-1.amazonaws.com/id/0F1E");
        let profile = iam("instance-profile", "karpenter/us-east-1/demo/0f1e/demo_1");
        for resource in [
            Resource::new(Kind::Role, "arn:r", names::role(&there, "node")),
            Resource::new(Kind::Policy, "arn:p", names::policy(&there, "interruption")),
            Resource::new(Kind::OidcProvider, provider, "0F1E"),
            Resource::new(Kind::InstanceProfile, profile, "demo_1"),
        ] {
            let resource = resource.tagged(ours.clone());
            assert_eq!(belongs(&key("demo"), true, &resource), None, "{resource:?}");
            assert!(belongs(&there, false, &resource).is_some(), "{resource:?}");
        }
    }

    #[test]
    fn what_says_nothing_itself_goes_with_what_it_is_part_of() {
        let mut leaked = Resource::new(Kind::NetworkInterface, "arn:n", "eni-1").described("aws-K8S-i-1");
        leaked = leaked.part_of(["i-1", "sg-1"]);
        let ids = |id: &str| BTreeSet::from([id.to_owned()]);
        assert!(belongs_with(&key("demo"), &leaked, &ids("sg-1")).unwrap().contains("sg-1"));
        assert_eq!(belongs_with(&key("demo"), &leaked, &ids("sg-2")), None);
        let anothers = leaked.tagged(tags(&[("kubernetes.io/cluster/demo-2", "owned")]));
        assert_eq!(belongs_with(&key("demo"), &anothers, &ids("sg-1")), None);
    }

    #[test]
    fn an_account_learns_its_clusters_from_what_they_left() {
        for name in NEIGHBOURS {
            let left = [left_by_name(&key(name)), left_by_tag(&key(name))].concat();
            let named: BTreeSet<String> = left.iter().flat_map(clusters_named).collect();
            assert_eq!(named, BTreeSet::from([name.to_owned()]));
        }
    }

    #[test]
    fn who_made_it_says_what_removes_it() {
        let of = |kind, key: &str| Resource::new(kind, "arn:x", "x").tagged(tags(&[(key, "demo")]));
        for (resource, made_by) in [
            (of(Kind::Instance, "karpenter.sh/nodepool"), Maker::Karpenter),
            (of(Kind::Instance, "eks:nodegroup-name"), Maker::Eks),
            (of(Kind::LoadBalancer, "kubernetes.io/service-name"), Maker::ServiceController),
            (of(Kind::Volume, "CSIVolumeName"), Maker::VolumeDriver),
            (of(Kind::Role, names::CLUSTER_TAG), Maker::Slipway),
            (of(Kind::NatGateway, names::CLUSTER_TAG), Maker::Network),
            (Resource::new(Kind::NetworkInterface, "a", "e").described("aws-K8S-i-1"), Maker::NetworkPlugin),
            (Resource::new(Kind::NetworkInterface, "a", "e").described("Amazon EKS demo"), Maker::Eks),
            (of(Kind::SecurityGroup, "team"), Maker::Unknown),
        ] {
            assert_eq!(maker(&resource), made_by, "{resource:?}");
            assert!(!removed_by(&resource).is_empty());
        }
    }

    #[test]
    fn a_month_costs_what_the_table_says_and_nothing_is_guessed() {
        let prices = Prices::published().unwrap();
        let cost = |resource: &Resource| monthly_cost_usd(&prices, "eu-west-1", resource);
        assert_eq!(cost(&Resource::new(Kind::Cluster, "", "")), Some(73.0));
        assert_eq!(cost(&Resource::new(Kind::NatGateway, "", "")), Some(35.04));
        assert_eq!(cost(&Resource::new(Kind::Role, "", "")), Some(0.0));
        let mut instance = Resource::new(Kind::Instance, "", "");
        instance.instance_type = Some("t4g.medium".to_owned());
        assert_eq!(cost(&instance), Some(26.86));
        instance.instance_type = Some("x99.huge".to_owned());
        assert_eq!(cost(&instance), None);
        assert_eq!(monthly_cost_usd(&prices, "mars-1", &Resource::new(Kind::NatGateway, "", "")), None);
    }
}
