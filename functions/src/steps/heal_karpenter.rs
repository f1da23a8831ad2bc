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
}

impl Step for HealKarpenter {
    const NAME: &'static str = "heal-karpenter";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::ClusterUnreachable, ErrorName::KubernetesRefused, ErrorName::KarpenterNotReady];
    type Input = Input;
    type Output = Output;
}

/// The pods to recreate, unless the run has healed often enough.
fn decide(input: &Input) -> Result<&[Pod], StepError> {
    if input.heals < input.max_heals {
        return Ok(&input.pods);
    }
    let pods: Vec<_> = input.pods.iter().map(|pod| pod.name.as_str()).collect();
    let cause = format!("After {} heals these pods still fail: {}.", input.heals, pods.join(", "));
    Err(StepError::new(ErrorName::KarpenterNotReady, cause))
}

/// Deletes the failing pods.
///
/// # Errors
/// `KarpenterNotReady` once the bound is reached.
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
    Ok(Output { recreated, heals: input.heals + 1 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(heals: u32, max_heals: u32) -> Input {
        serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "namespace": "karpenter",
            "endpoint": { "url": "https://example.com", "certificateAuthority": "" },
            "pods": [{ "name": "karpenter-a", "uid": "1", "reason": "more than we read" }],
            "heals": heals,
            "maxHeals": max_heals,
        }))
        .unwrap()
    }

    #[test]
    fn pods_are_recreated_up_to_the_bound_and_never_more() {
        assert_eq!(decide(&input(0, 5)).unwrap().len(), 1);
        assert_eq!(decide(&input(4, 5)).unwrap()[0].name, "karpenter-a");
        let error = decide(&input(5, 5)).unwrap_err();
        assert_eq!(error.name, ErrorName::KarpenterNotReady);
        assert_eq!(error.cause, "After 5 heals these pods still fail: karpenter-a.");
        assert!(decide(&input(0, 0)).is_err());
    }
}
