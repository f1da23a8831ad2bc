//! The ClusterSpec: what a person asks for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A cluster as a person asks for it. Only `name` is required; unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// Letters, digits, `-` and `_`; starts with a letter or digit; at most 100 characters.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"))]
    pub name: String,
    /// Default: the region that the control plane runs in. Always set after open-run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z]{2}(-[a-z]+)+-[0-9]$"))]
    pub region: Option<String>,
    /// Twelve digits. Default: the control plane's own. Always set after open-run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{12}$"))]
    pub account: Option<String>,
    /// Kubernetes minor, `1.36`. Default: what EKS calls default. Always set after open-run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^1\.[0-9]{2}$"))]
    pub version: Option<String>,
    /// Where it runs.
    #[serde(default)]
    pub network: NetworkSpec,
    /// Who may use it and from where.
    #[serde(default)]
    pub access: AccessSpec,
    /// The small on-demand group that carries Karpenter itself.
    #[serde(default)]
    pub core: CoreSpec,
    /// The autoscaler.
    #[serde(default)]
    pub karpenter: KarpenterSpec,
    /// What Karpenter may launch.
    #[serde(default = "default_node_pools")]
    #[schemars(length(min = 1))]
    pub node_pools: Vec<NodePoolSpec>,
    /// EKS add-ons beside the four that every cluster gets, by name.
    #[serde(default)]
    pub addons: BTreeMap<String, AddonSpec>,
    /// Control plane log types: api, audit, authenticator, controllerManager, scheduler.
    #[serde(default)]
    #[schemars(inner(regex(pattern = r"^(api|audit|authenticator|controllerManager|scheduler)$")))]
    pub logging: Vec<String>,
    /// KMS key for envelope encryption of secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^arn:aws[a-z-]*:kms:[^:]*:[0-9]{12}:key/.+$"))]
    pub encryption_key_arn: Option<String>,
    /// STANDARD or EXTENDED support.
    #[serde(default)]
    pub upgrade_policy: UpgradePolicy,
    /// Register the cluster for ARC zonal shift.
    #[serde(default)]
    pub zonal_shift: bool,
    /// Refuse deletion of the cluster.
    #[serde(default)]
    pub deletion_protection: bool,
    /// The proof at the end of a run.
    #[serde(default)]
    pub verify: VerifySpec,
    /// `plan` tells what a provision would do and changes nothing; left out, the provision is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Take over a cluster of this name, and what belongs to it, that bears nobody's tag.
    #[serde(default)]
    pub adopt: bool,
    /// Tags for everything that is made.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// What a start of the provision machine is for, beside provisioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Tell what would be done.
    Plan,
}

/// A new VPC, or one that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum NetworkSpec {
    /// Make a VPC of our own as a CloudFormation stack.
    Create(NetworkCreate),
    /// Use a VPC that is there.
    Existing(NetworkExisting),
}

impl Default for NetworkSpec {
    fn default() -> Self {
        Self::Create(NetworkCreate::default())
    }
}

/// The VPC to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkCreate {
    /// IPv4 block of the VPC, /16 to /20.
    #[schemars(regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,3}){3}/(16|17|18|19|20)$"))]
    pub cidr: String,
    /// 2 or 3.
    #[schemars(range(min = 2, max = 3))]
    pub zones: u8,
    /// One NAT gateway, or one a zone.
    pub nat: Nat,
    /// VPC flow logs to CloudWatch.
    pub flow_logs: bool,
}

impl Default for NetworkCreate {
    fn default() -> Self {
        Self { cidr: "10.20.0.0/16".to_owned(), zones: 2, nat: Nat::Single, flow_logs: false }
    }
}

/// How many NAT gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Nat {
    /// One for all zones: cheaper, and a zone's outage may cost the others their way out.
    Single,
    /// One a zone.
    PerZone,
}

/// A VPC that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkExisting {
    /// `vpc-…`
    #[schemars(regex(pattern = r"^vpc-([0-9a-f]{8}|[0-9a-f]{17})$"))]
    pub vpc_id: String,
    /// Private subnets in at least two zones. None listed: those that bear `karpenter.sh/discovery` with the cluster's
    /// name, else those that bear `kubernetes.io/role/internal-elb`.
    #[serde(default)]
    #[schemars(inner(regex(pattern = r"^subnet-([0-9a-f]{8}|[0-9a-f]{17})$")))]
    pub subnet_ids: Vec<String>,
}

/// Who may use the cluster and from where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessSpec {
    /// IAM role or user ARNs that become cluster admins.
    #[schemars(inner(regex(pattern = r"^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/.+$")))]
    pub admins: Vec<String>,
    /// The API server's endpoint.
    pub endpoint: EndpointSpec,
}

/// The API server's endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EndpointSpec {
    /// Reachable from outside the VPC.
    pub public: bool,
    /// Reachable inside the VPC.
    pub private: bool,
    /// Who may reach the public endpoint.
    #[schemars(length(max = 40), inner(regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}$")))]
    pub cidrs: Vec<String>,
}

impl Default for EndpointSpec {
    fn default() -> Self {
        Self { public: true, private: true, cidrs: vec!["0.0.0.0/0".to_owned()] }
    }
}

/// The core node group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CoreSpec {
    /// Types of one architecture.
    #[schemars(length(min = 1, max = 20), inner(regex(pattern = r"^[a-z0-9-]+\.[a-z0-9-]+$")))]
    pub instance_types: Vec<String>,
    /// Nodes; at least 2, since Karpenter's two replicas refuse to share one.
    #[schemars(range(min = 2, max = 450))]
    pub size: u32,
}

impl Default for CoreSpec {
    fn default() -> Self {
        Self { instance_types: vec!["t4g.medium".to_owned()], size: 2 }
    }
}

/// Karpenter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KarpenterSpec {
    /// The chart's version, also the controller's.
    pub version: String,
    /// `oci://…`, without tag.
    #[schemars(regex(pattern = r"^oci://[^/@]+/[^:@]+$"))]
    pub chart: String,
    /// Where it is installed.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub namespace: String,
    /// How its controller proves who it is.
    pub identity: Identity,
    /// How many times a run may recreate failing pods.
    #[schemars(range(max = 20))]
    pub max_heals: u32,
    /// Values laid over ours.
    #[schemars(with = "BTreeMap<String, Value>")]
    pub values: Map<String, Value>,
}

impl Default for KarpenterSpec {
    fn default() -> Self {
        Self {
            version: "1.14.1".to_owned(),
            chart: "oci://public.ecr.aws/karpenter/karpenter".to_owned(),
            namespace: "karpenter".to_owned(),
            identity: Identity::Irsa,
            max_heals: 5,
            values: Map::new(),
        }
    }
}

/// How Karpenter's controller proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// IAM roles for service accounts: a web identity token.
    Irsa,
    /// EKS Pod Identity.
    PodIdentity,
}

/// What Karpenter may launch, one architecture a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodePoolSpec {
    /// A DNS label.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// amd64 or arm64.
    pub architecture: Architecture,
    /// In order of preference by price; spot first with on-demand as the fallback by default.
    #[serde(default = "default_capacity")]
    #[schemars(length(min = 1))]
    pub capacity: Vec<Capacity>,
}

/// A CPU architecture, by its Kubernetes name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// x86-64
    Amd64,
    /// Graviton
    Arm64,
}

impl Architecture {
    /// The value of `kubernetes.io/arch`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// A way to buy an instance, by its Karpenter name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Capacity {
    /// Spot
    Spot,
    /// On demand
    OnDemand,
}

/// An EKS add-on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AddonSpec {
    /// Default: EKS's default for the cluster's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The add-on's own configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Value>,
    /// The IAM role of its pods, by EKS Pod Identity. Default: what the add-on has, or its nodes' role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<AddonIdentity>,
}

/// The IAM role of an add-on's pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum AddonIdentity {
    /// A role of its own with these managed policies; none listed: those that EKS recommends for the add-on.
    PolicyArns(
        #[schemars(length(max = 10), inner(regex(pattern = r"^arn:aws[a-z-]*:iam::(aws|[0-9]{12}):policy/.+$")))]
        Vec<String>,
    ),
    /// A role that is there, trusts `pods.eks.amazonaws.com` and is called `slipway-addon-…`, since no other is handed on.
    RoleArn(#[schemars(regex(pattern = r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/slipway-addon-.+$"))] String),
}

/// Support after a version's standard time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum UpgradePolicy {
    /// Upgraded when standard support ends.
    #[default]
    Standard,
    /// Kept, for money.
    Extended,
}

/// The proof at the end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VerifySpec {
    /// A tiny multi-architecture image.
    pub image: String,
    /// When capacity is proven again.
    pub when: VerifyWhen,
}

impl Default for VerifySpec {
    fn default() -> Self {
        Self { image: "public.ecr.aws/docker/library/busybox:stable".to_owned(), when: VerifyWhen::Changed }
    }
}

/// When capacity is proven again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum VerifyWhen {
    /// When Karpenter, a pool or the image differs from what was verified last.
    Changed,
    /// Every run.
    Always,
}

fn default_capacity() -> Vec<Capacity> {
    vec![Capacity::Spot, Capacity::OnDemand]
}

fn default_node_pools() -> Vec<NodePoolSpec> {
    let pool =
        |name: &str, architecture| NodePoolSpec { name: name.to_owned(), architecture, capacity: default_capacity() };
    vec![pool("x86", Architecture::Amd64), pool("graviton", Architecture::Arm64)]
}
