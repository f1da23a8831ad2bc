//! Karpenter's identity on a real cluster with the real controller: probed, raced, broken, healed or named.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{LimitRange, Node, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use slipway_karpenter::policy::web_identity_trust;
use slipway_tests::identity::{NAMESPACE, PACE, Recovered, Workbench};
use slipway_tests::repository;

/// One provision's worth of identity: role and service account made anew, probed, installed, checked.
struct Round {
    recovered: Recovered,
    proof: Value,
    seconds: f64,
}

async fn round(bench: &Workbench, seed: u64) -> Round {
    bench.forget().await.unwrap();
    // Delays of 0 to 60 s from now on, other ones each round.
    bench.propagate(seed, 0, 60);
    let began = Instant::now();
    bench.bind("irsa", "bind").await.unwrap();
    let (proof, _) = bench.probe("irsa").await.unwrap();
    bench.install("irsa", &json!({})).await.unwrap();
    let recovered = bench.recover("irsa").await.unwrap();
    Round { recovered, proof, seconds: began.elapsed().as_secs_f64() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_race_is_probed_away_or_healed() {
    let bench = Workbench::start().await.unwrap();
    for seed in 1..=3 {
        let Round { recovered, proof, .. } = round(&bench, seed).await;
        assert!(proof["confirmations"].as_u64() >= Some(3) && proof["overSeconds"].as_u64() >= Some(5), "{proof}");
        assert!(recovered.restarts + recovered.heals <= 1, "seed {seed}: {recovered:?}");
    }
    without_the_probe_controllers_crash_and_are_healed(&bench).await;
    no_token_is_in_what_functions_wrote(&bench);
    bench.deployed.cloud.stop().await;
}

async fn without_the_probe_controllers_crash_and_are_healed(bench: &Workbench) {
    bench.forget().await.unwrap();
    // As long as a controller takes to start, three times over.
    bench.propagate(4, 150, 160);
    bench.bind("irsa", "bind").await.unwrap();
    bench.install("irsa", &json!({})).await.unwrap();
    let recovered = bench.recover("irsa").await.unwrap();
    assert!(recovered.diagnoses.iter().any(|diagnosis| diagnosis == "IdentityRace"), "{recovered:?}");
    assert!(recovered.heals >= 1, "{recovered:?}");
    assert_eq!(recovered.diagnoses.last().unwrap(), "Ready", "{recovered:?}");
    bench.propagate(4, 0, 0);
}

/// A cluster on which things are broken in turn, and what did not end as it should.
struct Table<'a> {
    bench: &'a Workbench,
    wrong: Vec<String>,
}

impl Table<'_> {
    /// Checks and heals until the end, which must be a failure of this name.
    async fn ends(&mut self, what: &str, name: &str) {
        let began = Instant::now();
        let ended = self.bench.recover("irsa").await;
        // The longest patience is 300 s of the machine's, asked for every 5 s.
        let right = ended.as_ref().is_err_and(|failure| {
            failure.error == name
                && failure.cause.contains("docs/runbook.md#")
                && began.elapsed() < Duration::from_mins(2)
        });
        if !right {
            self.wrong.push(format!("{what}: {ended:?} after {:?}", began.elapsed()));
        }
    }
}

/// What is broken, how it is mended, and the name under which a run ends that meets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about five minutes"]
async fn soak_of_the_mistakes_each_of_which_ends_under_its_own_name() {
    let bench = Workbench::start().await.unwrap();
    bench.propagate(1, 0, 0);
    let mut table = Table { bench: &bench, wrong: Vec::new() };
    mistakes_in_aws(&mut table).await;
    mistakes_in_values(&mut table).await;
    mistakes_in_the_cluster(&mut table).await;
    assert!(table.wrong.is_empty(), "{:#?}", table.wrong);
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
    table.ends("no OIDC provider", "OidcProviderMissing").await;

    iam.create_open_id_connect_provider().url(&issuer).client_id_list("vault").send().await.unwrap();
    assert_eq!(bench.probe("irsa").await.unwrap_err().error, "IdentityRefused");
    iam.delete_open_id_connect_provider().open_id_connect_provider_arn(&provider).send().await.unwrap();
    bench.until_done("wait-oidc", bench.payload("wait-oidc", json!({}))).await.unwrap();

    let trust = web_identity_trust(&provider, &issuer, "kube-system").to_string();
    iam.update_assume_role_policy().role_name(bench.role()).policy_document(trust).send().await.unwrap();
    bench.recreate_pods().await.unwrap();
    assert_eq!(bench.probe("irsa").await.unwrap_err().error, "IdentityRefused");
    table.ends("a trust policy for another subject", "IdentityRefused").await;
    bench.bind("irsa", "bind").await.unwrap();

    let accounts: Api<ServiceAccount> = Api::namespaced(bench.admin.clone(), NAMESPACE);
    let bare = json!({ "metadata": { "annotations": { "eks.amazonaws.com/role-arn": null } } });
    accounts.patch("karpenter", &PatchParams::default(), &Patch::Merge(bare)).await.unwrap();
    bench.recreate_pods().await.unwrap();
    table.ends("a service account without annotation", "IdentityNotInjected").await;
    // The probe gives the annotation back; the pods that were made without are healed.
    bench.probe("irsa").await.unwrap();
    let recovered = bench.recover("irsa").await.unwrap();
    assert!(recovered.diagnoses.iter().any(|found| found == "IdentityNotInjected"), "{recovered:?}");
}

async fn mistakes_in_values(table: &mut Table<'_>) {
    let settings = |name: &str, value: Value| json!({ "settings": { name: value } });
    for (what, values, name) in [
        ("an image that is not there", json!({ "controller": { "image": { "tag": "missing" } } }), "ImagePullFailed"),
        ("zonal shift", settings("enableZonalShift", json!(true)), "ZonalShiftNotRegistered"),
        ("another cluster's name", settings("clusterName", json!("elsewhere")), "ClusterEndpointWrong"),
        ("more replicas than nodes", json!({ "replicas": 3 }), "KarpenterUnschedulable"),
    ] {
        table.bench.install("irsa", &values).await.unwrap();
        table.ends(what, name).await;
    }
    table.bench.install("irsa", &json!({})).await.unwrap();
    table.bench.recover("irsa").await.unwrap();
}

async fn mistakes_in_the_cluster(table: &mut Table<'_>) {
    let bench = table.bench;
    taint(bench, &json!([{ "key": "dedicated", "value": "db", "effect": "NoSchedule" }])).await;
    bench.recreate_pods().await.unwrap();
    table.ends("tainted nodes", "KarpenterUnschedulable").await;
    taint(bench, &json!([])).await;

    let limits: LimitRange = object(json!({
        "metadata": { "name": "tiny" }, "spec": { "limits": [{ "type": "Container", "max": { "memory": "64Mi" } }] },
    }));
    let ranges: Api<LimitRange> = Api::namespaced(bench.admin.clone(), NAMESPACE);
    ranges.create(&PostParams::default(), &limits).await.unwrap();
    bench.recreate_pods().await.unwrap();
    table.ends("a limit range", "PodQuotaExceeded").await;
    ranges.delete("tiny", &DeleteParams::default()).await.unwrap();
    bench.recover("irsa").await.unwrap();
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

/// Tokens are in pods' volumes, where they belong, and nowhere else: not in state, logs or records.
fn no_token_is_in_what_functions_wrote(bench: &Workbench) {
    let mut open = vec![bench.deployed.cloud.dir().to_owned()];
    let mut files = 0;
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "clusters" {
                open.push(path);
            } else if path.is_file() && ["log", "jsonl", "json"].iter().any(|kind| name.ends_with(kind)) {
                let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
                assert!(!text.contains("eyJhbGciOi"), "{} has a token", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 3, "{files} files were searched");
}

/// Fifty provisions' worth of identity, reported in docs/soak.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about ten minutes"]
async fn soak_of_the_identity() {
    const ROUNDS: u64 = 50;
    let bench = Workbench::start().await.unwrap();
    let mut rounds = Vec::new();
    for seed in 1..=ROUNDS {
        rounds.push(round(&bench, seed).await);
    }
    bench.deployed.cloud.stop().await;

    let sum = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>();
    let (restarts, heals) = (sum(|round| round.recovered.restarts), sum(|round| round.recovered.heals));
    let mut waits: Vec<u64> = rounds.iter().map(|round| round.proof["waitedSeconds"].as_u64().unwrap()).collect();
    waits.sort_unstable();
    let took = rounds.iter().map(|round| round.seconds).sum::<f64>() / f64::from(u32::try_from(rounds.len()).unwrap());
    let mut report = String::new();
    writeln!(report, "| | |\n|---|---|").unwrap();
    writeln!(report, "| provisions' worth of identity (bind, probe, install, check) | {ROUNDS} |").unwrap();
    writeln!(report, "| delays of every role, trust policy and STS front end | 0 to 60 s, seeds 1 to {ROUNDS} |")
        .unwrap();
    writeln!(report, "| pace: one second here is | {PACE} s of the machine's |").unwrap();
    writeln!(report, "| container restarts of Karpenter | {restarts} |").unwrap();
    writeln!(report, "| heals | {heals} |").unwrap();
    writeln!(report, "| Karpenter Ready in the end | {ROUNDS} of {ROUNDS} |").unwrap();
    let (least, middle, most) = (waits[0], waits[waits.len() / 2], waits[waits.len() - 1]);
    writeln!(report, "| the probe, from no race to the longest: least, median, most | {least}, {middle}, {most} s |")
        .unwrap();
    writeln!(report, "| real time a round | {took:.1} s |").unwrap();
    repository::report("identity", &report).unwrap();
    assert!(least <= 6, "without a race the probe costs {least} s");
}
