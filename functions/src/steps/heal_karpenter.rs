//! heal-karpenter: recreates failing pods, so that they start with fresh tokens and without kubelet's back-off.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, Run, Step, StepError};

use crate::{Context, cluster};

/// Heals Karpenter.
#[derive(Debug)]
pub struct HealKarpenter;

/// What fails, and how often this run healed already.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that heals.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Karpenter's namespace.
    pub namespace: String,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
    /// The pods to recreate, as check-karpenter named them.
    pub pods: Vec<Pod>,
    /// What check-karpenter says that the run ends with if they cannot be healed.
    pub error: ErrorName,
    /// The cause that it then gives.
    pub cause: String,
    /// Heals of this run so far.
    pub heals: u32,
    /// The most that a run may heal.
    pub max_heals: u32,
}

/// A pod.
#[derive(Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID: another pod of that name is left alone.
    pub uid: String,
}

/// What was done.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The pods that were deleted and are made anew by their deployment.
    pub recreated: Vec<String>,
    /// Heals of this run, this one included.
    pub heals: u32,
    /// Seconds until a look is worth it: longer after each heal, so that five of them outlast a minute's propagation.
    pub retry_after_seconds: u32,
}

impl Step for HealKarpenter {
    const NAME: &'static str = "heal-karpenter";
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::ClusterUnreachable,
        ErrorName::KubernetesRefused,
        ErrorName::KarpenterNotReady,
        ErrorName::IdentityNotBelieved,
        ErrorName::IdentityNotInjected,
    ];
    type Input = Input;
    type Output = Output;
}

/// The pods to recreate, unless the run has healed often enough or what fails is no matter of identity: making other
/// pods anew only hides what is wrong with them.
pub(crate) fn decide(input: &Input) -> Result<&[Pod], StepError> {
    if ![ErrorName::IdentityNotBelieved, ErrorName::IdentityNotInjected].contains(&input.error) {
        return Err(StepError::new(ErrorName::KarpenterNotReady, format!("Healing does not help. {}", input.cause)));
    }
    if input.heals < input.max_heals {
        return Ok(&input.pods);
    }
    Err(StepError::new(input.error, format!("After {} heals Karpenter still fails. {}", input.heals, input.cause)))
}

/// 5, 10, 20, 40, then 60 seconds.
fn wait(heals: u32) -> u32 {
    5_u32.saturating_mul(2_u32.saturating_pow(heals)).min(60)
}

/// Deletes the failing pods.
///
/// # Errors
/// What check-karpenter named, once the bound is reached.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let pods = decide(&input)?;
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    cx.state.hold(&input.run, &input.cluster).await?;
    let mut recreated = Vec::new();
    for Pod { name, uid } in pods {
        if cluster.delete(("v1", "Pod"), &input.namespace, name, Some(uid)).await? {
            recreated.push(name.clone());
        }
    }
    Ok(Output { recreated, heals: input.heals + 1, retry_after_seconds: wait(input.heals) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(error: &str, heals: u32, max_heals: u32) -> Input {
        serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "namespace": "karpenter",
            "endpoint": { "url": "https://example.com", "certificateAuthority": "" },
            "pods": [{ "name": "karpenter-a", "uid": "1", "reason": "more than we read" }],
            "error": error,
            "cause": "AWS does not believe it. Seen: pod karpenter-a",
            "heals": heals,
            "maxHeals": max_heals,
        }))
        .unwrap()
    }

    #[test]
    fn pods_are_recreated_up_to_the_bound_and_never_more() {
        for name in ["IdentityNotBelieved", "IdentityNotInjected"] {
            assert_eq!(decide(&input(name, 0, 5)).unwrap().len(), 1);
            assert_eq!(decide(&input(name, 4, 5)).unwrap()[0].name, "karpenter-a");
            let error = decide(&input(name, 5, 5)).unwrap_err();
            assert_eq!(error.name.as_str(), name);
            assert_eq!(
                error.cause,
                "After 5 heals Karpenter still fails. AWS does not believe it. Seen: pod karpenter-a"
            );
            assert!(decide(&input(name, 0, 0)).is_err());
        }
    }

    #[test]
    fn what_is_no_matter_of_identity_is_not_healed() {
        let error = decide(&input("ImagePullFailed", 0, 5)).unwrap_err();
        assert_eq!(error.name, ErrorName::KarpenterNotReady);
    }

    #[test]
    fn the_waits_of_the_default_bound_outlast_a_minute() {
        assert_eq!((0..6).map(wait).collect::<Vec<_>>(), [5, 10, 20, 40, 60, 60]);
        assert_eq!(wait(u32::MAX), 60);
    }
}
