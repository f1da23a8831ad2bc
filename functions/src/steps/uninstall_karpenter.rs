//! uninstall-karpenter: the chart's objects, its CRDs and its namespace, until no controller runs that could launch a node.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_karpenter::{render::RELEASE_LABEL, values::RELEASE};
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError};

use super::install_karpenter::PRUNED;
use crate::{
    Context,
    cluster::{self, Cluster, Kind},
};

/// Uninstalls Karpenter.
#[derive(Debug)]
pub struct UninstallKarpenter;

/// From which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
    /// Seconds that this run has waited for its pods.
    #[serde(default)]
    pub waited: u32,
}

/// No controller runs.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {}

impl Step for UninstallKarpenter {
    const NAME: &'static str = "uninstall-karpenter";
    const ERRORS: &'static [ErrorName] = &[ErrorName::ClusterUnreachable, ErrorName::KubernetesRefused];
    type Input = Input;
    type Output = Progress<Output>;
}

const CRD: Kind<'static> = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
const NAMESPACE: Kind<'static> = ("v1", "Namespace");
/// Karpenter's own label, whoever installed it.
const CHART_LABEL: &str = "app.kubernetes.io/name=karpenter";

const ASK_AGAIN: u32 = 10;
/// Pods of nodes that are dead never end; the node group's end ends them.
const PATIENCE: u32 = 120;

/// Whether a CRD is Karpenter's alone. The shared kinds of `autoscaling.x-k8s.io` stay.
fn is_karpenters(crd: &Value) -> bool {
    ["karpenter.sh", "karpenter.k8s.aws"].iter().any(|group| crd["spec"]["group"] == *group)
}

/// Deletes what is there and waits for the controller's end; for nothing else, since the cluster goes next.
///
/// # Errors
/// `ClusterUnreachable`, on which the machine goes on with what is in AWS.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    cx.state.hold(&input.run, &input.cluster).await?;
    for kind in PRUNED {
        for selector in [format!("{RELEASE_LABEL}={RELEASE}"), CHART_LABEL.to_owned()] {
            delete_all(&cluster, kind, &cluster.list(kind, None, &selector).await?).await?;
        }
    }
    let crds: Vec<Value> = cluster.list(CRD, None, "").await?.into_iter().filter(is_karpenters).collect();
    delete_all(&cluster, CRD, &crds).await?;
    let namespaces = cluster.list(NAMESPACE, None, &format!("{RELEASE_LABEL}={RELEASE}")).await?;
    delete_all(&cluster, NAMESPACE, &namespaces).await?;

    let pods = cluster.list(("v1", "Pod"), None, CHART_LABEL).await?;
    if pods.is_empty() || input.waited >= PATIENCE {
        return Ok(Progress::done(Output {}));
    }
    Ok(Progress::wait(ASK_AGAIN, format!("{} of Karpenter's pods are ending", pods.len())))
}

async fn delete_all(cluster: &Cluster, kind: Kind<'_>, objects: &[Value]) -> Result<(), StepError> {
    for object in objects.iter().filter(|object| !object["metadata"]["deletionTimestamp"].is_string()) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        cluster.delete(kind, text("namespace"), text("name"), Some(text("uid"))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_karpenters_own_kinds_go() {
        let crd = |group: &str| json!({ "spec": { "group": group } });
        assert!(is_karpenters(&crd("karpenter.sh")) && is_karpenters(&crd("karpenter.k8s.aws")));
        assert!(!is_karpenters(&crd("autoscaling.x-k8s.io")) && !is_karpenters(&crd("notkarpenter.sh")));
    }
}
