//! The failures that no waiting cures, each with its error name, and how long one waits before believing it.

use slipway_statemachine::ErrorName;

use crate::identity::Flaw;

/// What fails for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// IAM has no OIDC provider of the cluster's issuer.
    NoOidcProvider(Flaw),
    /// Role, trust or audience can never let the controller in.
    TrustRefused(Flaw),
    /// Pods run without the identity that was meant for them. A pod made now would have it, unless there is a flaw.
    NotInjected(Option<Flaw>),
    /// STS, or the Pod Identity agent, was not reached.
    StsUnreachable,
    /// AWS denies the controller an action: `ec2:DescribeInstanceTypes`.
    Denied {
        /// As IAM writes it.
        action: String,
    },
    /// The interruption queue that the controller was told of does not exist.
    QueueMissing,
    /// The image cannot be had.
    ImagePull {
        /// No retry can help: the image's name is none.
        hopeless: bool,
    },
    /// No node takes the pod.
    Unschedulable(Scarcity),
    /// The API server does not serve a CRD that the controller watches.
    CrdMissing,
    /// An admission webhook or policy refuses the pods.
    AdmissionRefused,
    /// A ResourceQuota or LimitRange refuses the pods.
    Quota,
    /// Zonal shift is switched on for a cluster that is not registered for it.
    ZonalShift,
    /// The cluster's name or endpoint is wrong, or its API server is not reached from the pod.
    ClusterEndpoint,
    /// The controller may not hold its leader election lease.
    LeaderElection,
    /// Something that this release does not know: the cause carries the last lines.
    Unknown,
}

/// Why no node takes a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarcity {
    /// Fewer nodes than replicas, each of which wants one of its own.
    TooFewNodes,
    /// All nodes are in one zone, but replicas are spread over zones.
    OneZone,
    /// Nodes have taints that Karpenter does not tolerate.
    Taints,
    /// Nodes lack the labels that Karpenter asks for.
    Labels,
    /// Nodes are too small or too full.
    TooSmall,
    /// For another reason, which the scheduler's words say.
    Other,
}

impl Kind {
    /// The error under which a run ends.
    #[must_use]
    pub const fn name(&self) -> ErrorName {
        match self {
            Self::NoOidcProvider(_) => ErrorName::OidcProviderMissing,
            Self::TrustRefused(_) => ErrorName::IdentityRefused,
            Self::NotInjected(_) => ErrorName::IdentityNotInjected,
            Self::StsUnreachable => ErrorName::StsUnreachable,
            Self::Denied { .. } => ErrorName::ControllerDenied,
            Self::QueueMissing => ErrorName::InterruptionQueueMissing,
            Self::ImagePull { .. } => ErrorName::ImagePullFailed,
            Self::Unschedulable(_) => ErrorName::KarpenterUnschedulable,
            Self::CrdMissing => ErrorName::CrdNotServed,
            Self::AdmissionRefused => ErrorName::AdmissionRefused,
            Self::Quota => ErrorName::PodQuotaExceeded,
            Self::ZonalShift => ErrorName::ZonalShiftNotRegistered,
            Self::ClusterEndpoint => ErrorName::ClusterEndpointWrong,
            Self::LeaderElection => ErrorName::LeaderElectionDenied,
            Self::Unknown => ErrorName::KarpenterNotReady,
        }
    }

    /// What it is, a whole sentence for a person.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::NoOidcProvider(flaw) | Self::TrustRefused(flaw) | Self::NotInjected(Some(flaw)) => flaw.sentence(),
            Self::NotInjected(None) => "Karpenter's pods run without the identity that was meant for them.".to_owned(),
            Self::StsUnreachable => "Karpenter's pods do not reach STS, or the Pod Identity agent.".to_owned(),
            Self::Denied { action } => format!("AWS denies Karpenter's controller {action}."),
            Self::QueueMissing => "The interruption queue that Karpenter was told of does not exist.".to_owned(),
            Self::ImagePull { .. } => "The image of Karpenter's controller cannot be pulled.".to_owned(),
            Self::Unschedulable(scarcity) => format!("No node takes a pod of Karpenter: {}.", scarcity.clause()),
            Self::CrdMissing => "The API server does not serve a resource that Karpenter watches.".to_owned(),
            Self::AdmissionRefused => "An admission webhook or policy refuses Karpenter's pods.".to_owned(),
            Self::Quota => "A ResourceQuota or LimitRange of the namespace refuses Karpenter's pods.".to_owned(),
            Self::ZonalShift => {
                "Zonal shift is switched on in Karpenter, but the cluster is not registered for it.".to_owned()
            }
            Self::ClusterEndpoint => {
                "Karpenter does not find the cluster, or does not reach its API server.".to_owned()
            }
            Self::LeaderElection => "Karpenter may not hold its leader election lease.".to_owned(),
            Self::Unknown => "Karpenter fails for a reason that this release does not know.".to_owned(),
        }
    }

    /// For how many seconds it must have been seen without a break before it counts as final. What configuration alone
    /// decides is final at once; what nodes, networks, registries and fresh permissions may still bring has its time.
    #[must_use]
    pub const fn patience(&self) -> u32 {
        match self {
            Self::NoOidcProvider(_)
            | Self::TrustRefused(_)
            | Self::NotInjected(_)
            | Self::ZonalShift
            | Self::ImagePull { hopeless: true } => 0,
            Self::CrdMissing | Self::AdmissionRefused | Self::Quota => 60,
            // Longer than the minute of logs that is looked at: what was said before it was mended is no news then.
            Self::LeaderElection | Self::QueueMissing => 90,
            // A fresh policy is believed as late as a fresh trust: up to a minute.
            Self::StsUnreachable
            | Self::Denied { .. }
            | Self::ClusterEndpoint
            | Self::ImagePull { hopeless: false }
            | Self::Unknown => 120,
            Self::Unschedulable(_) => 300,
        }
    }
}

impl Scarcity {
    /// A clause that says what there is too little of.
    #[must_use]
    pub const fn clause(self) -> &'static str {
        match self {
            Self::TooFewNodes => "there are too few nodes, and each replica wants one of its own",
            Self::OneZone => "the nodes are in one zone, and replicas are spread over zones",
            Self::Taints => "the nodes have taints that Karpenter does not tolerate",
            Self::Labels => "the nodes lack the labels that its node selector or affinity asks for",
            Self::TooSmall => "the nodes have too little free CPU or memory",
            Self::Other => "see the scheduler's words",
        }
    }

    /// Reads the scheduler's words: `0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, …`.
    /// What keeps the most nodes away comes first; among equals, what adding nodes of the same kind would not cure.
    #[must_use]
    pub fn of(message: &str) -> Self {
        let reasons = message.split_once("available:").map_or(message, |(_, reasons)| reasons);
        let reasons = reasons.split("preemption:").next().unwrap_or(reasons);
        let known = [
            ("untolerated taint", Self::Taints),
            ("topology spread", Self::OneZone),
            ("Insufficient", Self::TooSmall),
            ("Too many pods", Self::TooSmall),
            ("anti-affinity", Self::TooFewNodes),
            ("node affinity", Self::Labels),
            ("no nodes available", Self::TooFewNodes),
        ];
        let counted = reasons.split(',').filter_map(|reason| {
            let (_, scarcity) = known.iter().find(|(words, _)| reason.contains(words))?;
            let count: u32 = reason.split_whitespace().next().and_then(|count| count.parse().ok()).unwrap_or(1);
            let rank = known.iter().position(|(_, other)| other == scarcity)?;
            Some((std::cmp::Reverse(count), rank, *scarcity))
        });
        counted.min_by_key(|(count, rank, _)| (*count, *rank)).map_or(Self::Other, |(_, _, scarcity)| scarcity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_says_what_is_missing() {
        for (message, scarcity) in [
            (
                "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules. preemption: 0/1 nodes are available: 1 Insufficient cpu.",
                Scarcity::TooFewNodes,
            ),
            (
                "0/2 nodes are available: 1 node(s) didn't match pod anti-affinity rules, 1 node(s) didn't match pod topology spread constraints.",
                Scarcity::OneZone,
            ),
            ("0/2 nodes are available: 2 node(s) had untolerated taint {dedicated: db}.", Scarcity::Taints),
            (
                "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.",
                Scarcity::TooSmall,
            ),
            ("no nodes available to schedule pods", Scarcity::TooFewNodes),
            ("0/0 nodes are available.", Scarcity::Other),
        ] {
            assert_eq!(Scarcity::of(message), scarcity, "{message}");
        }
    }
}
