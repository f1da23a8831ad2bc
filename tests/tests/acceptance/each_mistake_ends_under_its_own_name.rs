//! A cluster on which things are broken in turn, each by what breaks it in life: every mistake ends under its own name
//! and within its bound, and what was broken works again once it is mended.
// A soak of minutes says how far it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{LimitRange, Node, Pod, ResourceQuota, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use slipway_karpenter::diagnosis::{Kind, Scarcity, capacity};
use slipway_karpenter::policy::web_identity_trust;
use slipway_local::cloud::{ACCOUNT, REGION};
use slipway_local::services::capacity::Shortage;
use slipway_statemachine::ErrorName;
use slipway_tests::identity::{CLUSTER, NAMESPACE, PACE, Waited, Workbench};
use slipway_tests::{repository, secrets, wait::eventually};

/// What the machine may take beyond a mistake's own patience, in its seconds: controllers that start, fail and back off
/// on a busy machine, where one second is ten of these.
const SLACK: u64 = 400;

/// The table as it grows, and what did not end as it should.
struct Table<'a> {
    bench: &'a Workbench,
    rows: Vec<String>,
    wrong: Vec<String>,
}

impl Table<'_> {
    /// Checks and heals until the end, which must be a failure of this name.
    async fn ends(&mut self, what: &str, name: ErrorName, patience: u32) {
        self.ends_with("irsa", what, name, patience).await;
    }

    async fn ends_with(&mut self, identity: &str, what: &str, name: ErrorName, patience: u32) {
        let began = Instant::now();
        let watched = self.bench.watch(identity).await;
        self.row(what, name, patience, watched, began);
    }

    /// Writes a row down.
    fn row<T: std::fmt::Debug>(
        &mut self,
        what: &str,
        name: ErrorName,
        patience: u32,
        Waited { ended, seconds }: Waited<T>,
        began: Instant,
    ) {
        let bound = u64::from(patience) + SLACK;
        let right = seconds <= bound
            && ended
                .as_ref()
                .is_err_and(|failure| failure.error == name.as_str() && failure.cause.contains("docs/runbook.md#"));
        let row =
            format!("| {what} | `{name}` | {patience} s | {seconds} s | {:.0} s |", began.elapsed().as_secs_f64());
        eprintln!("{row}");
        self.rows.push(row);
        if !right {
            self.wrong.push(format!("{what}: {ended:?} after {seconds} s, not {name} within {bound} s"));
        }
    }

    /// Everything works again.
    async fn mended(&mut self, what: &str) {
        let watched = self.bench.watch("irsa").await;
        if let Err(failure) = watched.ended {
            self.wrong.push(format!("{what} was mended: {failure:?}"));
        }
    }

    fn bench_api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.bench.admin.clone(), NAMESPACE)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about ten minutes"]
async fn soak_of_the_mistakes_each_of_which_ends_under_its_own_name() {
    let bench = Workbench::start().await.unwrap();
    bench.propagate(1, 0, 0);
    let mut table = Table { bench: &bench, rows: Vec::new(), wrong: Vec::new() };
    mistakes_in_aws(&mut table).await;
    mistakes_in_values(&mut table).await;
    mistakes_in_the_cluster(&mut table).await;
    mistakes_that_keep_capacity_away(&mut table).await;
    mistakes_with_pod_identity(&mut table).await;
    // Last: with its definition go the node pools.
    a_crd_that_is_gone(&mut table).await;

    let mut report = format!(
        "A mistake is believed once it was seen without a break for as long as its patience; one second here is {PACE} of the \
         machine's.\n\n| what is wrong | the run ends as | patience | ended after | real time |\n|---|---|---|---|---|\n"
    );
    for row in &table.rows {
        writeln!(report, "{row}").unwrap();
    }
    assert!(table.wrong.is_empty(), "{:#?}", table.wrong);
    secrets::are_nowhere(&bench.deployed, CLUSTER).await.unwrap();
    repository::report("mistakes", &report).unwrap();
    bench.deployed.cloud.stop().await;
}

async fn mistakes_in_aws(table: &mut Table<'_>) {
    let bench = table.bench;
    let iam = aws_sdk_iam::Client::new(&bench.deployed.config);
    let provider = bench.provider();
    let issuer = bench.payload("bind-identity", json!({}))["issuer"].as_str().unwrap().to_owned();

    iam.delete_open_id_connect_provider().open_id_connect_provider_arn(&provider).send().await.unwrap();
    bench.recreate_pods().await.unwrap();
    assert_eq!(bench.probe("irsa").await.unwrap_err().error, "OidcProviderMissing");
    table.ends("no OIDC provider in IAM", ErrorName::OidcProviderMissing, 0).await;

    iam.create_open_id_connect_provider().url(&issuer).client_id_list("vault").send().await.unwrap();
    assert_eq!(bench.probe("irsa").await.unwrap_err().error, "IdentityRefused");
    bench.recreate_pods().await.unwrap();
    table.ends("a provider without the audience sts.amazonaws.com", ErrorName::IdentityRefused, 0).await;
    iam.delete_open_id_connect_provider().open_id_connect_provider_arn(&provider).send().await.unwrap();
    bench.until_done("wait-oidc", bench.payload("wait-oidc", json!({}))).await.ended.unwrap();

    let trust = web_identity_trust(&provider, &issuer, "kube-system").to_string();
    iam.update_assume_role_policy().role_name(bench.role()).policy_document(trust).send().await.unwrap();
    bench.recreate_pods().await.unwrap();
    assert_eq!(bench.probe("irsa").await.unwrap_err().error, "IdentityRefused");
    table.ends("a trust policy for another subject", ErrorName::IdentityRefused, 0).await;
    bench.bind("irsa", "bind").await.unwrap();

    let accounts: Api<ServiceAccount> = table.bench_api();
    let bare = json!({ "metadata": { "annotations": { "eks.amazonaws.com/role-arn": null } } });
    accounts.patch("karpenter", &PatchParams::default(), &Patch::Merge(bare)).await.unwrap();
    bench.recreate_pods().await.unwrap();
    table.ends("a service account without its annotation", ErrorName::IdentityNotInjected, 0).await;
    // The probe gives the annotation back; the pods that were made without are healed.
    bench.probe("irsa").await.unwrap();
    let recovered = bench.recover("irsa").await.unwrap();
    assert!(recovered.diagnoses.iter().any(|found| found == "IdentityNotInjected"), "{recovered:?}");

    detach(bench, "resource-discovery").await;
    bench.recreate_pods().await.unwrap();
    let denied = Kind::Denied { action: String::new() };
    table
        .ends("the controller's role lacks its policy of EC2's reading", ErrorName::ControllerDenied, denied.patience())
        .await;
    bench.bind("irsa", "bind").await.unwrap();
    table.mended("the controller's role").await;
}

/// Takes one of its policies from the controller's role.
async fn detach(bench: &Workbench, part: &str) {
    let iam = aws_sdk_iam::Client::new(&bench.deployed.config);
    let arn = format!("arn:aws:iam::{ACCOUNT}:policy/slipway-eks-{CLUSTER}-{REGION}-{part}");
    iam.detach_role_policy().role_name(bench.role()).policy_arn(arn).send().await.unwrap();
}

async fn mistakes_in_values(table: &mut Table<'_>) {
    let settings = |name: &str, value: Value| json!({ "settings": { name: value } });
    let image = |tag: &str| json!({ "controller": { "image": { "tag": tag } } });
    let sts = json!({ "controller": { "env": [{ "name": "AWS_ENDPOINT_URL_STS", "value": "http://127.0.0.1:9" }] } });
    let scarce = Kind::Unschedulable(Scarcity::TooFewNodes).patience();
    for (what, values, name, patience) in [
        (
            "an image that is not there",
            image("missing"),
            ErrorName::ImagePullFailed,
            Kind::ImagePull { hopeless: false }.patience(),
        ),
        ("an image whose name is none", image("no tag"), ErrorName::ImagePullFailed, 0),
        ("an STS that nobody reaches", sts, ErrorName::StsUnreachable, Kind::StsUnreachable.patience()),
        (
            "an interruption queue that is not there",
            settings("interruptionQueue", json!("no-such-queue")),
            ErrorName::InterruptionQueueMissing,
            Kind::QueueMissing.patience(),
        ),
        (
            "zonal shift where the cluster has none",
            settings("enableZonalShift", json!(true)),
            ErrorName::ZonalShiftNotRegistered,
            0,
        ),
        (
            "another cluster's name",
            settings("clusterName", json!("elsewhere")),
            ErrorName::ClusterEndpointWrong,
            Kind::ClusterEndpoint.patience(),
        ),
        ("more replicas than nodes", json!({ "replicas": 3 }), ErrorName::KarpenterUnschedulable, scarce),
        (
            "more memory than a node has",
            json!({ "controller": { "resources": { "requests": { "memory": "64Gi" }, "limits": { "memory": "64Gi" } } } }),
            ErrorName::KarpenterUnschedulable,
            scarce,
        ),
    ] {
        table.bench.install("irsa", &values).await.unwrap();
        table.ends(what, name, patience).await;
    }
    table.bench.install("irsa", &json!({})).await.unwrap();
    table.mended("values").await;
}

async fn mistakes_in_the_cluster(table: &mut Table<'_>) {
    let bench = table.bench;
    let scarce = Kind::Unschedulable(Scarcity::Taints).patience();
    taint(bench, &json!([{ "key": "dedicated", "value": "db", "effect": "NoSchedule" }])).await;
    bench.recreate_pods().await.unwrap();
    table.ends("nodes with a taint", ErrorName::KarpenterUnschedulable, scarce).await;
    taint(bench, &json!([])).await;

    let limits: LimitRange = object(json!({
        "metadata": { "name": "tiny" }, "spec": { "limits": [{ "type": "Container", "max": { "memory": "64Mi" } }] },
    }));
    let ranges: Api<LimitRange> = table.bench_api();
    refused(table, "a LimitRange that is too small", ErrorName::PodQuotaExceeded, &ranges, &limits).await;

    let quotas: Api<ResourceQuota> = table.bench_api();
    // The status is what the quota controller would write, which the local cloud's clusters do without.
    let none = json!({ "pods": "0" });
    let quota: ResourceQuota = object(json!({
        "metadata": { "name": "tiny" }, "spec": { "hard": none }, "status": { "hard": none, "used": none },
    }));
    refused(table, "a ResourceQuota that is used up", ErrorName::PodQuotaExceeded, &quotas, &quota).await;

    let policies: Api<ValidatingAdmissionPolicy> = Api::all(bench.admin.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(bench.admin.clone());
    let rules = json!([{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }]);
    let policy: ValidatingAdmissionPolicy = object(json!({
        "metadata": { "name": "tiny" },
        "spec": {
            "failurePolicy": "Fail", "matchConstraints": { "resourceRules": rules },
            "validations": [{ "expression": "false", "message": "no pods today" }],
        },
    }));
    let here = json!({ "matchLabels": { "kubernetes.io/metadata.name": NAMESPACE } });
    let binding: ValidatingAdmissionPolicyBinding = object(json!({
        "metadata": { "name": "tiny" },
        "spec": {
            "policyName": "tiny", "validationActions": ["Deny"], "matchResources": { "namespaceSelector": here },
        },
    }));
    policies.create(&PostParams::default(), &policy).await.unwrap();
    refused(table, "a ValidatingAdmissionPolicy that denies pods", ErrorName::AdmissionRefused, &bindings, &binding)
        .await;
    policies.delete("tiny", &DeleteParams::default()).await.unwrap();

    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(bench.admin.clone());
    let webhook: ValidatingWebhookConfiguration = object(json!({
        "metadata": { "name": "tiny" },
        "webhooks": [{
            "name": "tiny.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "timeoutSeconds": 1, "clientConfig": { "url": "https://127.0.0.1:9/" }, "rules": rules,
            "namespaceSelector": here,
        }],
    }));
    refused(table, "a webhook that nobody answers for", ErrorName::AdmissionRefused, &webhooks, &webhook).await;

    let bindings: Api<RoleBinding> = table.bench_api();
    bindings.delete("karpenter", &DeleteParams::default()).await.unwrap();
    bench.recreate_pods().await.unwrap();
    let patience = Kind::LeaderElection.patience();
    table.ends("no RoleBinding for the leader's lease", ErrorName::LeaderElectionDenied, patience).await;
    bench.install("irsa", &json!({})).await.unwrap();
    // The last minute of logs is looked at, and a minute is ten here.
    bench.recreate_pods().await.unwrap();
    table.mended("the RoleBinding").await;
}

/// What keeps the API server from making pods, for as long as it is there.
async fn refused<K>(table: &mut Table<'_>, what: &str, name: ErrorName, api: &Api<K>, object: &K)
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), object).await.unwrap();
    let status = serde_json::to_value(object).unwrap()["status"].take();
    if !status.is_null() {
        let patch = Patch::Merge(json!({ "status": status }));
        api.patch_status("tiny", &PatchParams::default(), &patch).await.unwrap();
    }
    // Admission hears of it within a second or two.
    let pods: Api<Pod> = table.bench_api();
    let probe: Pod = self::object(json!({
        "metadata": { "name": "tiny" }, "spec": { "containers": [{ "name": "x", "image": "x", "resources": { "requests": { "memory": "65Mi" }, "limits": { "memory": "65Mi" } } }] },
    }));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually(what, async || pods.create(&dry, &probe).await.is_err().then_some(())).await;
    table.bench.recreate_pods().await.unwrap();
    let patience = if name == ErrorName::PodQuotaExceeded { Kind::Quota } else { Kind::AdmissionRefused }.patience();
    table.ends(what, name, patience).await;
    api.delete("tiny", &DeleteParams::default()).await.unwrap();
    eventually(what, async || pods.create(&dry, &probe).await.is_ok().then_some(())).await;
    table.bench.recreate_pods().await.unwrap();
    table.mended(what).await;
}

/// Karpenter runs, and yet no node comes.
async fn mistakes_that_keep_capacity_away(table: &mut Table<'_>) {
    let bench = table.bench;
    let verify = bench.payload("verify-capacity", json!({}));
    let always = json!({ "image": verify["verify"]["image"], "when": "always" });
    let verify = bench.payload("verify-capacity", json!({ "verify": always }));

    bench.deployed.cloud.lack(&[Shortage::of("*", "*", "*")]).unwrap();
    let began = Instant::now();
    let waited = bench.until_done("verify-capacity", verify.clone()).await;
    let patience = capacity::Kind::NoCapacity.patience();
    table.row("EC2 out of every type of an architecture", ErrorName::CapacityUnavailable, patience, waited, began);
    bench.deployed.cloud.lack(&[]).unwrap();
    forget_capacity(table).await;

    let eks = aws_sdk_eks::Client::new(&bench.deployed.config);
    let role = verify["karpenterNodeRoleArn"].as_str().unwrap();
    eks.delete_access_entry().cluster_name(CLUSTER).principal_arn(role).send().await.unwrap();
    let began = Instant::now();
    let waited = bench.until_done("verify-capacity", verify.clone()).await;
    table.row("no access entry for the nodes' role", ErrorName::NodesNeverJoin, 0, waited, began);
    bench
        .until_done("associate-access-policy", bench.payload("associate-access-policy", json!({})))
        .await
        .ended
        .unwrap();
    let verified = bench.until_done("verify-capacity", verify).await;
    if let Err(failure) = verified.ended {
        table.wrong.push(format!("the access entry was mended: {failure:?}"));
    }

    detach(bench, "node-lifecycle").await;
    // A controller that is new tries out anew what it may.
    forget_capacity(table).await;
    let apply = bench.payload("apply-node-pools", json!({}));
    let began = Instant::now();
    let waited = loop {
        let waited = bench.until_done("apply-node-pools", apply.clone()).await;
        // Until the new one leads, the class is as ready as the old one left it.
        if waited.ended.is_err() || began.elapsed() > Duration::from_mins(1) {
            break waited;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let patience = capacity::Kind::Denied { action: String::new() }.patience();
    table.row(
        "the controller's role lacks its policy of launching",
        ErrorName::ControllerDenied,
        patience,
        waited,
        began,
    );
    bench.bind("irsa", "bind").await.unwrap();
    // Karpenter itself would hold to the denial for half an hour.
    let began = Instant::now();
    while let Err(failure) = bench.until_done("apply-node-pools", apply.clone()).await.ended {
        if began.elapsed() > Duration::from_mins(1) {
            table.wrong.push(format!("the launching was mended: {failure:?}"));
            break;
        }
    }
}

/// A Karpenter that has not met any shortage, and no pods that wait.
async fn forget_capacity(table: &mut Table<'_>) {
    let pods: Api<Pod> = Api::namespaced(table.bench.admin.clone(), "slipway-verify");
    let now = DeleteParams::default().grace_period(0);
    pods.delete_collection(&now, &ListParams::default()).await.unwrap();
    eventually("the test pods' end", async || {
        pods.list(&ListParams::default()).await.unwrap().items.is_empty().then_some(())
    })
    .await;
    table.bench.recreate_pods().await.unwrap();
    table.mended("Karpenter").await;
}

async fn mistakes_with_pod_identity(table: &mut Table<'_>) {
    let bench = table.bench;
    bench.bind("podIdentity", "bind").await.unwrap();
    bench.probe("podIdentity").await.unwrap();
    bench.install("podIdentity", &json!({})).await.unwrap();
    bench.recover("podIdentity").await.unwrap();
    bench.bind("podIdentity", "settle").await.unwrap();

    bench.dissociate().await.unwrap();
    assert_eq!(bench.probe("podIdentity").await.unwrap_err().error, "IdentityNotInjected");
    bench.recreate_pods().await.unwrap();
    let what = "Pod Identity without its association";
    table.ends_with("podIdentity", what, ErrorName::IdentityNotInjected, 0).await;
    bench.bind("podIdentity", "bind").await.unwrap();

    let iam = aws_sdk_iam::Client::new(&bench.deployed.config);
    let trust = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "Service": "pods.eks.amazonaws.com" }, "Action": "sts:AssumeRole" },
    ] });
    iam.update_assume_role_policy().role_name(bench.role()).policy_document(trust.to_string()).send().await.unwrap();
    assert_eq!(bench.probe("podIdentity").await.unwrap_err().error, "IdentityRefused");
    bench.recreate_pods().await.unwrap();
    let what = "Pod Identity whose trust policy lacks sts:TagSession";
    table.ends_with("podIdentity", what, ErrorName::IdentityRefused, 0).await;

    bench.bind("irsa", "bind").await.unwrap();
    bench.probe("irsa").await.unwrap();
    bench.bind("irsa", "release").await.unwrap();
    bench.install("irsa", &json!({})).await.unwrap();
    table.mended("IRSA after Pod Identity").await;
    bench.bind("irsa", "settle").await.unwrap();
}

async fn a_crd_that_is_gone(table: &mut Table<'_>) {
    let bench = table.bench;
    let crds: Api<CustomResourceDefinition> = Api::all(bench.admin.clone());
    crds.delete("nodepools.karpenter.sh", &DeleteParams::default()).await.unwrap();
    eventually("the definition's end", async || {
        crds.get_opt("nodepools.karpenter.sh").await.unwrap().is_none().then_some(())
    })
    .await;
    bench.recreate_pods().await.unwrap();
    table.ends("the CRD of node pools deleted", ErrorName::CrdNotServed, Kind::CrdMissing.patience()).await;
    bench.install("irsa", &json!({})).await.unwrap();
    bench.recreate_pods().await.unwrap();
    table.mended("the CRD").await;
}

fn object<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

/// Gives every node of the core group these taints.
async fn taint(bench: &Workbench, taints: &Value) {
    let nodes: Api<Node> = Api::all(bench.admin.clone());
    let core = ListParams::default().labels("eks.amazonaws.com/nodegroup=core");
    for node in nodes.list(&core).await.unwrap().items {
        let name = node.metadata.name.unwrap();
        let patch = Patch::Merge(json!({ "spec": { "taints": taints } }));
        nodes.patch(&name, &PatchParams::default(), &patch).await.unwrap();
    }
}
