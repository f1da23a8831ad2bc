//! A chart and values to the manifests that Helm would apply, in the order in which it would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gotmpl::{Value as TemplateValue, ValueFunc};
use serde_json::{Map, Value, json};

use crate::Error;
use crate::chart::{Chart, documents};
use crate::template::Engine;
use crate::values::overlay;

/// The label that every rendered object carries, with the release's name: what has it and is no longer rendered is
/// left over from an older version.
pub const RELEASE_LABEL: &str = "slipway/release";

/// Kinds in the order in which Helm installs them (`InstallOrder` in its source): what others need comes first.
const INSTALL_ORDER: [&str; 17] = [
    "PriorityClass",
    "Namespace",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Deployment",
    "StatefulSet",
    "Job",
];

/// Where a chart is rendered for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The release's name.
    pub release: &'a str,
    /// The namespace of the release.
    pub namespace: &'a str,
    /// Kubernetes' version as the API server says it, `v1.36.3-eks-1a2b3c4`, or just `1.36`.
    pub kubernetes: &'a str,
    /// The group versions that the API server serves: `v1`, `policy/v1`. Charts that ask for a kind (`v1/Pod`) hear no.
    pub api_versions: &'a BTreeSet<String>,
}

/// What a chart becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// CustomResourceDefinitions, to be applied and established before anything else.
    pub crds: Vec<Value>,
    /// Everything else in the order of installation. Each object is marked as Helm's release, so that Helm can adopt
    /// it, and with [`RELEASE_LABEL`].
    pub manifests: Vec<Value>,
}

/// Renders a chart with `values` laid over its defaults.
///
/// # Errors
/// A template does not parse or fails, or what it renders to is no Kubernetes object.
pub fn render(chart: &Chart, target: &Target<'_>, values: &Map<String, Value>) -> Result<Rendered, Error> {
    let failure = |file: &str, error: gotmpl::TemplateError| {
        let message = error.to_string();
        let message = message.strip_prefix("execution error: ").unwrap_or(&message).to_owned();
        Error::Template { file: file.to_owned(), message }
    };
    let engine = Engine::new(&chart.templates).map_err(|(file, error)| failure(&file, error))?;
    let mut merged = chart.values.clone();
    overlay(&mut merged, values);
    let data = data(chart, target, &merged).map_err(|error| failure("values.yaml", error))?;

    let mut manifests = Vec::new();
    for file in chart.templates.keys() {
        let name = file.rsplit('/').next().unwrap_or(file);
        // As in Helm: partials only define, and notes are for people.
        if name.starts_with('_') || name == "NOTES.txt" {
            continue;
        }
        let mut data = data.clone();
        data.insert(Arc::from("Template"), template_of(file));
        let text = engine.execute(file, &TemplateValue::Map(Arc::new(data))).map_err(|error| failure(file, error))?;
        for mut manifest in documents(file, &text)? {
            check(file, &manifest)?;
            mark(&mut manifest, target);
            manifests.push(manifest);
        }
    }
    manifests.sort_by_key(|manifest| {
        let kind = manifest["kind"].as_str().unwrap_or_default();
        INSTALL_ORDER.iter().position(|known| *known == kind).unwrap_or(INSTALL_ORDER.len())
    });
    Ok(Rendered { crds: chart.crds.clone(), manifests })
}

type Data = BTreeMap<Arc<str>, TemplateValue>;

/// The objects that a template starts from.
fn data(chart: &Chart, target: &Target<'_>, values: &Map<String, Value>) -> gotmpl::Result<Data> {
    let served = target.api_versions.clone();
    let has: ValueFunc = Arc::new(move |asked| {
        let asked = asked.first().and_then(TemplateValue::as_str).unwrap_or_default();
        Ok(TemplateValue::Bool(served.contains(asked)))
    });
    let mut capabilities = BTreeMap::from([(
        Arc::from("APIVersions"),
        TemplateValue::Map(Arc::new(BTreeMap::from([(Arc::from("Has"), TemplateValue::Function(has))]))),
    )]);
    capabilities.insert(Arc::from("KubeVersion"), gotmpl::to_value(&kubernetes_version(target.kubernetes))?);
    Ok(BTreeMap::from([
        (Arc::from("Values"), gotmpl::to_value(values)?),
        (Arc::from("Capabilities"), TemplateValue::Map(Arc::new(capabilities))),
        (
            Arc::from("Chart"),
            gotmpl::to_value(&json!({
                "Name": chart.metadata.name,
                "Version": chart.metadata.version,
                "AppVersion": chart.metadata.app_version,
            }))?,
        ),
        (
            Arc::from("Release"),
            gotmpl::to_value(&json!({
                "Name": target.release,
                "Namespace": target.namespace,
                "Service": "Helm",
                "IsInstall": true,
                "IsUpgrade": false,
                "Revision": 1,
            }))?,
        ),
    ]))
}

fn kubernetes_version(said: &str) -> Value {
    let bare = said.trim_start_matches('v');
    let mut numbers = bare.split(['.', '-', '+']);
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let version = if bare.matches('.').count() < 2 { format!("v{major}.{minor}.0") } else { format!("v{bare}") };
    json!({ "Version": version, "GitVersion": version, "Major": major, "Minor": minor })
}

fn template_of(file: &str) -> TemplateValue {
    let of = |text: &str| TemplateValue::String(text.into());
    TemplateValue::Map(Arc::new(BTreeMap::from([
        (Arc::from("Name"), of(file)),
        (Arc::from("BasePath"), of("templates")),
    ])))
}

fn check(file: &str, manifest: &Value) -> Result<(), Error> {
    for pointer in ["/apiVersion", "/kind", "/metadata/name"] {
        if manifest.pointer(pointer).and_then(Value::as_str).is_none_or(str::is_empty) {
            let message = format!("it has no {}", pointer.trim_start_matches('/').replace('/', "."));
            return Err(Error::Manifest { file: file.to_owned(), message });
        }
    }
    // Applied like any other object, a hook would run at the wrong time or for ever.
    if manifest["metadata"]["annotations"].get("helm.sh/hook").is_some() {
        return Err(Error::Unsupported(format!("the Helm hook in {file}")));
    }
    Ok(())
}

/// What Helm writes on an object that it installs, and what we find it by.
fn mark(manifest: &mut Value, target: &Target<'_>) {
    let metadata = &mut manifest["metadata"];
    for (field, entries) in [
        ("labels", [("app.kubernetes.io/managed-by", "Helm"), (RELEASE_LABEL, target.release)]),
        (
            "annotations",
            [("meta.helm.sh/release-name", target.release), ("meta.helm.sh/release-namespace", target.namespace)],
        ),
    ] {
        for (key, value) in entries {
            metadata[field][key] = json!(value);
        }
    }
}
