//! install-karpenter: pulls the chart, renders it, applies CRDs and then the rest, prunes what an older version left.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_karpenter::chart::Chart;
use slipway_karpenter::render::{RELEASE_LABEL, Rendered, Target, render};
use slipway_karpenter::values::{RELEASE, Settings, values};
use slipway_statemachine::plan::Planned;
use slipway_statemachine::spec::KarpenterSpec;
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, Run, Step, StepError};

use crate::{
    Context,
    cluster::{self, Cluster, Kind, chart},
};

/// Installs Karpenter.
#[derive(Debug)]
pub struct InstallKarpenter;

/// Which chart, and what its values depend on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that installs.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Chart, version, namespace, the user's values.
    pub karpenter: KarpenterSpec,
    /// The role that the controller's service account names.
    pub controller_role_arn: String,
    /// The interruption queue.
    pub queue_name: String,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
    /// Kubernetes minor, `1.36`.
    pub version: String,
    /// The cluster is registered for zonal shift.
    #[serde(default)]
    pub zonal_shift: bool,
}

/// What was installed.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The version that the chart says.
    pub chart_version: String,
    /// What the registry served under that version, `sha256:…`.
    pub chart_digest: String,
    /// Objects applied, CRDs included.
    pub applied: usize,
    /// Objects of an older version deleted.
    pub pruned: usize,
}

impl Step for InstallKarpenter {
    const NAME: &'static str = "install-karpenter";
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::ChartNotFound,
        ErrorName::ChartInvalid,
        ErrorName::ClusterUnreachable,
        ErrorName::KubernetesRefused,
    ];
    type Input = Input;
    type Output = Output;
}

/// Kinds that a version of the chart has had, so that leftovers of them are found.
pub(crate) const PRUNED: [Kind<'static>; 12] = [
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
];

/// The manifests of a chart for a cluster that serves `api_versions`.
fn decide(input: &Input, chart: &Chart, api_versions: &BTreeSet<String>) -> Result<Rendered, slipway_karpenter::Error> {
    let karpenter = &input.karpenter;
    let settings = Settings {
        cluster: &input.cluster.name,
        queue: &input.queue_name,
        identity: karpenter.identity,
        controller_role_arn: &input.controller_role_arn,
        zonal_shift: input.zonal_shift,
    };
    let target = Target { release: RELEASE, namespace: &karpenter.namespace, kubernetes: &input.version, api_versions };
    render(chart, &target, &values(&settings, &karpenter.values))
}

/// What runs pods comes last: by then the CRDs that its pods watch are established.
fn runs_pods(manifest: &Value) -> bool {
    ["Deployment", "DaemonSet", "StatefulSet", "Job"].iter().any(|kind| manifest["kind"] == *kind)
}

/// Whether the API server serves a CRD's objects.
fn established(crd: &Value) -> bool {
    let conditions = crd["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

/// Whether an object of the release is in none of the manifests. Objects of a release of the same name in another
/// namespace are not ours.
fn left_over(object: &Value, kind: &str, namespace: &str, manifests: &[Value]) -> bool {
    let of_release = object["metadata"]["annotations"]["meta.helm.sh/release-namespace"] == namespace;
    let rendered = manifests.iter().any(|manifest| {
        manifest["kind"] == kind
            && ["name", "namespace"].iter().all(|field| manifest["metadata"][field] == object["metadata"][field])
    });
    of_release && !rendered
}

fn invalid(input: &Input, error: &slipway_karpenter::Error) -> StepError {
    let KarpenterSpec { chart, version, .. } = &input.karpenter;
    StepError::new(ErrorName::ChartInvalid, format!("Chart {chart} in version {version}: {error}."))
}

/// Installs the chart, or makes what is installed what the chart says.
///
/// # Errors
/// `ChartNotFound` names chart and version, `ChartInvalid` the file that does not render, `KubernetesRefused` the
/// object; `PropagationPending` while the API server does not serve a new CRD yet.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let KarpenterSpec { chart: name, version, namespace, .. } = &input.karpenter;
    let pulled = chart::pull(name, version).await?;
    let chart = Chart::from_tgz(&pulled.bytes).map_err(|error| invalid(&input, &error))?;
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    let Rendered { crds, manifests } =
        decide(&input, &chart, &cluster.api_versions().await?).map_err(|error| invalid(&input, &error))?;

    cx.state.hold(&input.run, &input.cluster).await?;
    for manifest in crds.iter().chain(manifests.iter().filter(|manifest| !runs_pods(manifest))) {
        cluster.apply(manifest).await?;
    }
    for crd in &crds {
        let name = crd["metadata"]["name"].as_str().unwrap_or_default();
        let seen = cluster.get(("apiextensions.k8s.io/v1", "CustomResourceDefinition"), "", name).await?;
        if !seen.as_ref().is_some_and(established) {
            let cause = format!("The API server does not serve {name} yet.");
            return Err(StepError::new(ErrorName::PropagationPending, cause));
        }
    }
    for manifest in manifests.iter().filter(|manifest| runs_pods(manifest)) {
        cluster.apply(manifest).await?;
    }

    let mut pruned = 0;
    for kind in PRUNED {
        for object in cluster.list(kind, None, &format!("{RELEASE_LABEL}={RELEASE}")).await? {
            if left_over(&object, kind.1, namespace, &manifests) {
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                pruned += usize::from(cluster.delete(kind, text("namespace"), text("name"), Some(text("uid"))).await?);
            }
        }
    }
    Ok(Output {
        chart_version: chart.metadata.version,
        chart_digest: pulled.digest,
        applied: crds.len() + manifests.len(),
        pruned,
    })
}

/// What would become of the chart's objects.
///
/// # Errors
/// As [`run`].
pub(crate) async fn plan(cluster: Option<&Cluster>, input: &Input) -> Result<Vec<Planned>, StepError> {
    let KarpenterSpec { chart: name, version, .. } = &input.karpenter;
    let pulled = chart::pull(name, version).await?;
    let chart = Chart::from_tgz(&pulled.bytes).map_err(|error| invalid(input, &error))?;
    let served = match cluster {
        Some(cluster) => cluster.api_versions().await?,
        None => BTreeSet::new(),
    };
    let Rendered { crds, manifests } = decide(input, &chart, &served).map_err(|error| invalid(input, &error))?;
    cluster::plan(cluster, &[crds, manifests].concat()).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(identity: &str) -> Input {
        serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "karpenter": { "identity": identity, "values": { "settings": { "extra": "user's" } } },
            "controllerRoleArn": "arn:role",
            "queueName": "slipway-eks-demo",
            "endpoint": { "url": "https://example.com", "certificateAuthority": "" },
            "version": "1.36",
        }))
        .unwrap()
    }

    fn chart(template: &str) -> Chart {
        let files = [("Chart.yaml", "name: karpenter\nversion: 1.14.1\n"), ("templates/a.yaml", template)];
        Chart::from_files(files.map(|(path, text)| (path.to_owned(), text.to_owned())).into()).unwrap()
    }

    const ECHO: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: echo\ndata:\n  values: {{ toYaml .Values | quote }}\n  version: {{ .Capabilities.KubeVersion.Version }}\n";

    #[test]
    fn the_chart_gets_the_clusters_values_and_the_users() {
        let rendered = decide(&input("irsa"), &chart(ECHO), &BTreeSet::new()).unwrap();
        let data = &rendered.manifests[0]["data"];
        let values = data["values"].as_str().unwrap();
        for part in ["clusterName: demo", "interruptionQueue: slipway-eks-demo", "extra: user's", "role-arn: arn:role"]
        {
            assert!(values.contains(part), "{part} in {values}");
        }
        assert_eq!(data["version"], "v1.36.0");
        let rendered = decide(&input("podIdentity"), &chart(ECHO), &BTreeSet::new()).unwrap();
        assert!(!rendered.manifests[0]["data"]["values"].as_str().unwrap().contains("role-arn"));
    }

    #[test]
    fn a_chart_that_does_not_render_is_named_with_its_file() {
        let error = decide(&input("irsa"), &chart("{{ required \"say x\" .Values.x }}"), &BTreeSet::new()).unwrap_err();
        let error = invalid(&input("irsa"), &error);
        assert_eq!(error.name, ErrorName::ChartInvalid);
        assert_eq!(
            error.cause,
            "Chart oci://public.ecr.aws/karpenter/karpenter in version 1.14.1: templates/a.yaml does not render: say x."
        );
    }

    #[test]
    fn a_crd_counts_when_it_is_served() {
        let crd = |status: &str| json!({ "status": { "conditions": [{ "type": "Established", "status": status }] } });
        assert!(established(&crd("True")));
        assert!(!established(&crd("False")));
        assert!(!established(&json!({})));
    }

    #[test]
    fn only_what_the_release_no_longer_has_is_left_over() {
        let object = |name: &str, release: &str| {
            json!({ "metadata": {
                "name": name, "namespace": "karpenter", "annotations": { "meta.helm.sh/release-namespace": release },
            } })
        };
        let manifests = [json!({ "kind": "Service", "metadata": { "name": "kept", "namespace": "karpenter" } })];
        let old = |object: &Value, kind: &str| left_over(object, kind, "karpenter", &manifests);
        assert!(!old(&object("kept", "karpenter"), "Service"));
        assert!(old(&object("kept", "karpenter"), "ConfigMap"), "another kind of the same name");
        assert!(old(&object("old", "karpenter"), "Service"));
        assert!(!old(&object("old", "elsewhere"), "Service"), "another release");
    }
}
