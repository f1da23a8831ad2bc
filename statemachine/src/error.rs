//! The names of everything that can go wrong. They are stable API: machines match them, people search for them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! error_names {
    ($($(#[$doc:meta])* $name:ident => $remedy:literal,)*) => {
        /// An error's name, as Step Functions sees it in `Error` and as `docs/runbook.md` heads its page.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum ErrorName { $($(#[$doc])* $name,)* }

        impl ErrorName {
            /// Every name there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The literal that Lambda reports as `errorType`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What a person does about it, when the raiser knows nothing better.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

error_names! {
    /// The event or spec is wrong; the cause names JSON path, value and rule.
    InvalidInput => "Correct the named field and start the run again.",
    /// A field that this release knows but does not act on yet.
    NotYetSupported => "Remove the field, or wait for the release that supports it.",
    /// The spec asks the cluster that is there for what EKS fixes when it makes one; nothing was touched.
    ImmutableChange => "Ask for what is there, or make a cluster of another name and move to it.",
    /// Another run holds the cluster's lease.
    LeaseHeld => "Wait for the named execution to end, or stop it; then start again.",
    /// The lease went to another run while this one worked.
    LeaseLost => "Another run took over; look at that run instead.",
    /// Preflight found what would fail later; the cause lists every finding.
    PreflightFailed => "Fix each finding, then start again.",
    /// The functions cannot reach the API server that the spec asks for.
    EndpointUnreachable => "Open the public endpoint to 0.0.0.0/0; every call still needs a login.",
    /// Something with the wanted name exists and is not ours.
    NotOurs => "Rename the cluster, delete the foreign resource, or set \"adopt\": true.",
    /// The network stack could not be made or changed; it went back by itself.
    NetworkFailed => "Put right what the stack's event in the cause says, then start again.",
    /// The network stack is in a state that it does not leave by itself.
    NetworkStuck => "Put right what the stack's event in the cause says, then start again.",
    /// A subnet, route or NAT gateway of our network was changed or deleted behind CloudFormation's back.
    NetworkDrifted => "Put back what the cause names, as infra/network.yaml has it, then start again.",
    /// The existing network cannot carry the cluster; the cause lists every fault with its field.
    NetworkUnsuitable => "Correct the network, or network.existing in the spec, then start again.",
    /// The control plane went to FAILED or cannot be made as asked.
    ClusterFailed => "Read EKS's message in the cause; delete the failed cluster and start again.",
    /// The node group went to a failed state; the cause carries EKS's health issues.
    NodeGroupFailed => "Follow the health issue in the cause; delete the node group and start again.",
    /// An add-on is degraded or failed; the cause carries its health issues.
    AddonFailed => "Follow the health issue in the cause.",
    /// The API server refuses or cannot be reached.
    ClusterUnreachable => "Check endpoint access, CIDRs and the access entry of the cluster-access role.",
    /// The Kubernetes API refused an object.
    KubernetesRefused => "Read the API server's message in the cause.",
    /// STS does not accept the controller's identity, for good.
    IdentityRefused => "Compare the role's trust policy and the IAM OIDC provider with what the cause names.",
    /// IAM has no OIDC provider of the cluster's issuer, so STS can believe no service account of it.
    OidcProviderMissing => "Start again: the run makes the provider; find out who deleted it.",
    /// Karpenter's pods run without the identity that was meant for them, and pods made anew would, too.
    IdentityNotInjected => "Give the service account the annotation or association that the cause names; karpenter.values may have taken it away.",
    /// AWS does not believe the controller's identity although all is as it should be, longer than propagation takes.
    IdentityNotBelieved => "Start again in some minutes; if it persists, look for an organisation's policy that denies the controller's role.",
    /// Karpenter's pods do not reach STS, or the Pod Identity agent.
    StsUnreachable => "Check the nodes' route to STS: NAT, endpoint and its security group, network policies, DNS (dnsPolicy: Default).",
    /// AWS denies Karpenter's controller an action; the cause names it.
    ControllerDenied => "Look for a permissions boundary or an organisation's policy that denies the action to the controller's role.",
    /// The interruption queue that Karpenter was told of does not exist.
    InterruptionQueueMissing => "Correct karpenter.values.settings.interruptionQueue, or take it out; start again: the run makes the queue.",
    /// The image of Karpenter's controller cannot be pulled.
    ImagePullFailed => "Correct the image in karpenter.values, or let the nodes reach its registry.",
    /// No node takes a pod of Karpenter; the cause says why.
    KarpenterUnschedulable => "Give core two nodes in two zones without taints; compare karpenter.values with the scheduler's words in the cause.",
    /// The API server does not serve a resource that Karpenter watches.
    CrdNotServed => "Start again: the run applies the CRDs; find out who deleted them, and see that chart and controller are of one version.",
    /// An admission webhook or policy refuses Karpenter's pods.
    AdmissionRefused => "Exempt Karpenter's namespace from the webhook or policy that the cause names.",
    /// A ResourceQuota or LimitRange of the namespace refuses Karpenter's pods.
    PodQuotaExceeded => "Raise or remove the quota or limit range that the cause names, or lower the controller's resources in karpenter.values.",
    /// Zonal shift is switched on in Karpenter for a cluster that is not registered for it.
    ZonalShiftNotRegistered => "Set zonalShift in the spec, or take enableZonalShift out of karpenter.values.",
    /// Karpenter does not find its cluster, or does not reach its API server.
    ClusterEndpointWrong => "Take clusterName and clusterEndpoint out of karpenter.values; check the way from the nodes to the API server.",
    /// Karpenter may not hold its leader election lease.
    LeaderElectionDenied => "Start again: the run applies the chart's roles; find out who changed them.",
    /// The chart or its version does not exist, or cannot be fetched.
    ChartNotFound => "Correct karpenter.chart or karpenter.version in the spec.",
    /// The chart was fetched but does not render.
    ChartInvalid => "Correct karpenter.values, or use a chart version that this release renders.",
    /// Karpenter did not become ready; the cause carries its last lines.
    KarpenterNotReady => "Read the log lines in the cause.",
    /// A NodePool or EC2NodeClass did not become Ready; the cause carries its condition.
    NodePoolNotReady => "Read the condition in the cause: subnets, security group, image or role.",
    /// A test pod never ran on a node of its architecture.
    CapacityNotVerified => "Read the scheduler's and Karpenter's events in the cause.",
    /// EC2 has no capacity for what was to be launched; the cause carries its words.
    CapacityUnavailable => "Allow more: both spot and on-demand in nodePools[].capacity, other core.instanceTypes, more zones, larger subnets; or start again later.",
    /// Karpenter knows no instance type that fits a test pod, its node pools and their limits.
    NoInstanceTypeFits => "Compare the node pool that the cause names with Karpenter's words: its limits, requirements, taints and capacity types.",
    /// Machines that Karpenter launches do not become nodes of the cluster; the cause says how far they came.
    NodesNeverJoin => "Check what a machine needs to join: the access entry of the node role, the security group, the way from its subnet to the API server and the registry.",
    /// The cluster is protected from deletion, by its spec or in EKS.
    DeletionProtected => "Start the teardown with \"liftDeletionProtection\": true.",
    /// Workloads hold load balancers or volumes; the cause lists them.
    WorkloadsHoldResources => "Delete what the cause lists, or start the teardown with \"workloads\": \"delete\".",
    /// Something cannot be deleted because something else holds it; the cause names what.
    DeletionBlocked => "Remove what the cause names, then start the teardown again.",
    /// An audit that had to be empty was not; the cause lists what still exists, and why we believe that it is the cluster's.
    OrphansFound => "Start the teardown again, or remove what the cause lists by what it names.",
    /// A sweep that is no dry run was not confirmed: the account in its input is missing or not the caller's.
    SweepUnconfirmed => "Look at the dry run first; then repeat the account's number as \"account\".",
    /// The account is not one that this deployment may sweep.
    SweepNotAllowed => "Deploy infra/template.yaml with the account in SweepAccounts, if everything in it may go.",
    /// A fresh IAM role, policy or provider is not believed yet. Retried by the machine.
    PropagationPending => "Start again; if it persists, check that the named role exists.",
    /// AWS throttled us beyond the SDK's own retries. Retried by the machine.
    Throttled => "Start again later, or raise the named API's limit.",
    /// AWS answered with a server error or not at all. Retried by the machine.
    AwsUnavailable => "Start again; check the AWS Health Dashboard if it persists.",
    /// AWS denied a call; the cause names principal and action.
    AccessDenied => "Allow the named action for the named role; compare with infra/template.yaml.",
    /// AWS refused a call with an error that no other name covers.
    AwsRefused => "Read AWS's code and message in the cause.",
    /// A limit of the account is reached.
    QuotaExceeded => "Raise the named quota in Service Quotas, or delete what is unused.",
    /// A bug of ours: a step panicked.
    InternalPanic => "Report it with the request id in the cause.",
    /// A bug of ours: the step met something that it believed impossible.
    Internal => "Report it with the cause.",
}

impl ErrorName {
    /// What any step may raise.
    pub const COMMON: &'static [Self] = &[
        Self::InvalidInput,
        Self::LeaseLost,
        Self::AccessDenied,
        Self::AwsRefused,
        Self::Throttled,
        Self::AwsUnavailable,
        Self::PropagationPending,
        Self::QuotaExceeded,
        Self::InternalPanic,
        Self::Internal,
    ];

    /// Those that resolve by themselves, so the machine retries them.
    pub const RETRIED: &'static [Self] = &[Self::PropagationPending, Self::Throttled, Self::AwsUnavailable];
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed step: a stable name, what happened in AWS's or Kubernetes' own words, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause} {remedy} See docs/runbook.md#{}", .name.as_str().to_lowercase())]
pub struct StepError {
    /// The stable name.
    pub name: ErrorName,
    /// What happened, a whole sentence. Never a token, never a Rust type name.
    pub cause: String,
    /// What to do, a whole sentence.
    pub remedy: String,
}

impl StepError {
    /// An error with the name's own remedy.
    pub fn new(name: ErrorName, cause: impl Into<String>) -> Self {
        Self { name, cause: cause.into(), remedy: name.remedy().to_owned() }
    }

    /// The same with a remedy that fits this case better.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}
