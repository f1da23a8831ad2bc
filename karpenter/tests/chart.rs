//! The chart of the local cloud, in the shape of Karpenter's own, becomes the objects that Helm would make of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use slipway_karpenter::Error;
use slipway_karpenter::chart::Chart;
use slipway_karpenter::render::{RELEASE_LABEL, Target, render};
use slipway_karpenter::values::{Settings, values};

fn chart() -> Chart {
    fn read(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(root, &path, files);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                files.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../local/charts/karpenter");
    let mut files = BTreeMap::new();
    read(&root, &root, &mut files);
    Chart::from_files(files).unwrap()
}

const SETTINGS: Settings<'static> = Settings {
    cluster: "demo",
    queue: "slipway-eks-demo",
    identity: slipway_statemachine::spec::Identity::Irsa,
    controller_role_arn: "arn:aws:iam::111122223333:role/slipway-eks-demo-eu-west-1-controller",
    zonal_shift: false,
};

fn manifests_on(user: &Value, kubernetes: &str, served: &[&str]) -> Result<Vec<Value>, Error> {
    let api_versions: BTreeSet<_> = served.iter().map(ToString::to_string).collect();
    let target = Target { release: "karpenter", namespace: "karpenter", kubernetes, api_versions: &api_versions };
    let values = values(&SETTINGS, user.as_object().unwrap());
    render(&chart(), &target, &values).map(|rendered| rendered.manifests)
}

fn manifests(user: &Value) -> Vec<Value> {
    manifests_on(user, "1.36", &["v1", "policy/v1"]).unwrap()
}

fn one(manifests: &[Value], kind: &str, name: &str) -> Value {
    let found: Vec<_> = manifests.iter().filter(|one| one["kind"] == kind && one["metadata"]["name"] == name).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found[0].clone()
}

fn environment(manifests: &[Value]) -> Map<String, Value> {
    let deployment = one(manifests, "Deployment", "karpenter");
    let env = deployment.pointer("/spec/template/spec/containers/0/env").unwrap().as_array().unwrap().clone();
    env.into_iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one["value"].clone())).collect()
}

#[test]
fn thirteen_objects_in_the_order_of_installation() {
    let manifests = manifests(&json!({}));
    let objects: Vec<_> = manifests
        .iter()
        .map(|one| {
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            (text(&one["kind"]), text(&one["metadata"]["namespace"]), text(&one["metadata"]["name"]))
        })
        .collect();
    let expected = [
        ("PodDisruptionBudget", "karpenter", "karpenter"),
        ("ServiceAccount", "karpenter", "karpenter"),
        ("ClusterRole", "-", "karpenter-admin"),
        ("ClusterRole", "-", "karpenter-core"),
        ("ClusterRole", "-", "karpenter"),
        ("ClusterRoleBinding", "-", "karpenter-core"),
        ("ClusterRoleBinding", "-", "karpenter"),
        ("Role", "karpenter", "karpenter"),
        ("Role", "kube-system", "karpenter-dns"),
        ("RoleBinding", "karpenter", "karpenter"),
        ("RoleBinding", "kube-system", "karpenter-dns"),
        ("Service", "karpenter", "karpenter"),
        ("Deployment", "karpenter", "karpenter"),
    ];
    assert_eq!(
        objects,
        expected.map(|(kind, namespace, name)| (kind.to_owned(), namespace.to_owned(), name.to_owned()))
    );
}

#[test]
fn the_pods_labels_reach_affinity_and_spread() {
    let manifests = manifests(&json!({}));
    let deployment = one(&manifests, "Deployment", "karpenter");
    let selector = deployment["spec"]["selector"].clone();
    assert_eq!(
        selector,
        json!({ "matchLabels": { "app.kubernetes.io/instance": "karpenter", "app.kubernetes.io/name": "karpenter" } })
    );
    let pod = &deployment["spec"]["template"]["spec"];
    let term = &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(term, &json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": selector }));
    assert_eq!(
        pod["topologySpreadConstraints"],
        json!([{
            "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": selector,
        }])
    );
    assert!(pod["affinity"]["nodeAffinity"].to_string().contains("karpenter.sh/nodepool"));
}

#[test]
fn a_selector_that_the_user_gives_is_kept() {
    let own = json!({ "matchLabels": { "mine": "yes" } });
    let manifests = manifests(&json!({
        "topologySpreadConstraints": [{ "maxSkew": 2, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": own }],
        "affinity": { "podAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
            { "weight": 1, "podAffinityTerm": { "topologyKey": "z" } },
        ] } },
    }));
    let pod = &one(&manifests, "Deployment", "karpenter")["spec"]["template"]["spec"];
    assert_eq!(pod["topologySpreadConstraints"][0]["labelSelector"], own);
    let preferred = &pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(preferred["podAffinityTerm"]["labelSelector"]["matchLabels"]["app.kubernetes.io/name"], "karpenter");
}

#[test]
fn the_controller_is_told_its_cluster_and_queue() {
    let manifests = manifests(&json!({ "settings": { "featureGates": { "nodeRepair": true } } }));
    let env = environment(&manifests);
    for (name, value) in [
        ("CLUSTER_NAME", "demo"),
        ("INTERRUPTION_QUEUE", "slipway-eks-demo"),
        ("EKS_CONTROL_PLANE", "true"),
        ("LOG_LEVEL", "info"),
        ("METRICS_PORT", "8080"),
        ("HEALTH_PROBE_PORT", "8081"),
        ("KARPENTER_SERVICE", "karpenter"),
        ("VM_MEMORY_OVERHEAD_PERCENT", "0.075"),
        (
            "FEATURE_GATES",
            "NodeRepair=true,NodeOverlay=false,ReservedCapacity=true,SpotToSpotConsolidation=false,StaticCapacity=false,CapacityBuffer=false",
        ),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    assert!(!env.contains_key("ENABLE_ZONAL_SHIFT"), "a cluster without zonal shift makes Karpenter panic");
    let pod = &one(&manifests, "Deployment", "karpenter")["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "public.ecr.aws/karpenter/controller:1.14.1");
    assert_eq!(pod["serviceAccountName"], "karpenter");
    assert_eq!(pod["dnsPolicy"], "Default");
}

#[test]
fn the_service_account_names_its_role() {
    let account = one(&manifests(&json!({})), "ServiceAccount", "karpenter");
    assert_eq!(account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"], SETTINGS.controller_role_arn);
}

#[test]
fn every_object_can_be_adopted_by_helm_and_found_by_us() {
    for manifest in manifests(&json!({})) {
        let metadata = &manifest["metadata"];
        assert_eq!(metadata["labels"]["app.kubernetes.io/managed-by"], "Helm");
        assert_eq!(metadata["labels"][RELEASE_LABEL], "karpenter");
        assert_eq!(metadata["labels"]["helm.sh/chart"], "karpenter-1.14.1");
        assert_eq!(metadata["annotations"]["meta.helm.sh/release-name"], "karpenter");
        assert_eq!(metadata["annotations"]["meta.helm.sh/release-namespace"], "karpenter");
    }
}

#[test]
fn a_service_monitor_needs_to_be_asked_for_and_served() {
    let asked = json!({ "serviceMonitor": { "enabled": true, "sampleLimit": 5 } });
    assert_eq!(manifests(&asked).len(), 13);
    let served = manifests_on(&asked, "v1.36.3-eks-1a2b3c4", &["policy/v1", "monitoring.coreos.com/v1"]).unwrap();
    assert_eq!(one(&served, "ServiceMonitor", "karpenter")["spec"]["sampleLimit"], 5);
    assert_eq!(served.len(), 14);
}

#[test]
fn the_budget_follows_the_kubernetes_version() {
    let budget = |kubernetes, served| {
        let manifests = manifests_on(&json!({}), kubernetes, served).unwrap();
        one(&manifests, "PodDisruptionBudget", "karpenter")["apiVersion"].clone()
    };
    assert_eq!(budget("v1.36.3-eks-1a2b3c4", &["policy/v1"]), "policy/v1");
    assert_eq!(budget("1.20", &["policy/v1"]), "policy/v1beta1");
    assert_eq!(budget("1.36", &[]), "policy/v1beta1");
}

#[test]
fn additional_things_land_where_they_belong() {
    let manifests = manifests(&json!({
        "additionalLabels": { "team": "platform" },
        "additionalAnnotations": { "owner": "us" },
        "additionalClusterRoleRules": [{ "apiGroups": ["x"], "resources": ["y"], "verbs": ["get"] }],
        "podLabels": { "pod": "label" },
        "controller": { "env": [{ "name": "EXTRA", "value": "multi\nline" }], "image": { "digest": "sha256:abc" } },
        "settings": { "clusterEndpoint": "https://{{ .Values.settings.clusterName }}.example" },
    }));
    for manifest in &manifests {
        assert_eq!(manifest["metadata"]["labels"]["team"], "platform", "{}", manifest["kind"]);
        assert_eq!(manifest["metadata"]["annotations"]["owner"], "us", "{}", manifest["kind"]);
    }
    let rules = one(&manifests, "ClusterRole", "karpenter-core")["rules"].clone();
    assert_eq!(rules.as_array().unwrap().last().unwrap()["apiGroups"], json!(["x"]));
    let pod = &one(&manifests, "Deployment", "karpenter")["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["pod"], "label");
    assert_eq!(pod["spec"]["containers"][0]["image"], "public.ecr.aws/karpenter/controller:1.14.1@sha256:abc");
    let env = environment(&manifests);
    assert_eq!(env["EXTRA"], "multi\nline");
    assert_eq!(env["CLUSTER_ENDPOINT"], "https://demo.example");
}

#[test]
fn what_cannot_be_rendered_names_the_file_and_the_reason() {
    let error = manifests_on(&json!({ "settings": { "clusterName": "" } }), "1.36", &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "templates/deployment.yaml does not render: settings.clusterName must name the cluster"
    );
    let error = manifests_on(&json!({ "podDisruptionBudget": { "name": "" } }), "1.36", &[]).unwrap_err();
    assert!(matches!(&error, Error::Manifest { file, .. } if file == "templates/budget.yaml"), "{error}");
    let error = manifests_on(&json!({ "replicas": "two: three" }), "1.36", &[]).unwrap_err();
    assert!(matches!(&error, Error::File { file, .. } if file == "templates/deployment.yaml"), "{error}");
}

#[test]
fn a_hook_is_refused_rather_than_applied_like_any_object() {
    let hook =
        "kind: Job\napiVersion: batch/v1\nmetadata:\n  name: x\n  annotations:\n    helm.sh/hook: post-install\n";
    let files = [("Chart.yaml", "name: x\nversion: 1.0.0\n"), ("templates/hook.yaml", hook)];
    let chart = Chart::from_files(files.map(|(path, text)| (path.to_owned(), text.to_owned())).into()).unwrap();
    let target = Target { release: "x", namespace: "x", kubernetes: "1.36", api_versions: &BTreeSet::new() };
    let error = render(&chart, &target, &Map::new()).unwrap_err();
    assert_eq!(error, Error::Unsupported("the Helm hook in templates/hook.yaml".to_owned()));
}
