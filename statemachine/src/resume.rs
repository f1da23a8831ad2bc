//! Where a run goes on that comes after a failed one.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ErrorName;

/// A state of the provision machine at which a run may begin: the facts that it needs are all in [`Made`]. From
/// `CheckKarpenter` on every run goes to the end: whether the cluster works is never taken on trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Stage {
    /// Network, roles and queue are there.
    CreateCluster,
    /// The control plane is, too.
    Furnish,
    /// Add-ons, core nodes, identity and chart are.
    CheckKarpenter,
}

impl Stage {
    /// The state's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreateCluster => "CreateCluster",
            Self::Furnish => "Furnish",
            Self::CheckKarpenter => "CheckKarpenter",
        }
    }
}

/// What a run has behind it: the machine's `$made`. Empty before the first stage is over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Made {
    /// The stage that is next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Stage>,
    /// What the steps before it answered, by what the machine calls it.
    #[serde(flatten)]
    pub facts: BTreeMap<String, Value>,
}

impl ErrorName {
    /// Those whose remedy lies outside of all that a run makes, so that the run after it need not look for the reason
    /// there. Any other name may accuse an earlier step's work, which only a run that looks at everything repairs.
    pub const RESUMED: &'static [Self] = &[
        Self::AccessDenied,
        Self::AdmissionRefused,
        Self::AwsUnavailable,
        Self::CapacityUnavailable,
        Self::ChartNotFound,
        Self::KubernetesRefused,
        Self::PodQuotaExceeded,
        Self::QuotaExceeded,
        Self::Throttled,
    ];
}
