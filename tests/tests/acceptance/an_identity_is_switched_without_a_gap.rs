//! A running cluster goes from IRSA to Pod Identity and back by starting provision again, and Karpenter never pauses.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use serde_json::{Value, json};
use slipway_local::cloud::{Kubernetes, REGION};
use slipway_local::gateway::record::Entry;
use slipway_tests::{cloud::Deployed, repository, secrets};
use tokio::task::JoinHandle;

const NAME: &str = "switched";

fn spec(identity: &str) -> Value {
    json!({
        "name": NAME, "region": REGION, "karpenter": { "identity": identity },
        "nodePools": [{ "name": "graviton", "architecture": "arm64" }],
    })
}

/// Looks at the Deployment ten times a second until it is told to stop.
struct Watch {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Seen>,
}

/// What a watch saw.
struct Seen {
    least: i32,
    looks: u32,
}

impl Watch {
    fn start(admin: kube::Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let looking = tokio::spawn(async move {
            let deployments: Api<Deployment> = Api::namespaced(admin, "karpenter");
            let mut seen = Seen { least: i32::MAX, looks: 0 };
            while !told.load(Ordering::Relaxed) {
                let status = deployments.get("karpenter").await.unwrap().status.unwrap();
                seen.least = seen.least.min(status.available_replicas.unwrap_or_default());
                seen.looks += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            seen
        });
        Self { stop, looking }
    }

    async fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.looking.await.unwrap()
    }
}

/// The calls of Karpenter's controller since call number `since`, and those by which it became somebody.
fn of_the_controller(deployed: &Deployed, since: u64) -> Vec<Entry> {
    let role = format!("assumed-role/slipway-eks-{NAME}-{REGION}-controller/");
    let entries = deployed.cloud.gateway().record().entries().into_iter().filter(|call| call.seq > since);
    entries
        .filter(|call| {
            // The probe says its name; a controller has none.
            let becomes = ["AssumeRoleWithWebIdentity", "AssumeRoleForPodIdentity"].contains(&call.action.as_str());
            call.principal.contains(&role) || (becomes && call.app_id.is_none())
        })
        .collect()
}

/// Who called EC2: the sessions of the controller's role.
fn sessions(calls: &[Entry]) -> BTreeSet<String> {
    let ec2 = calls.iter().filter(|call| call.service == "ec2" && call.status == 200);
    ec2.filter_map(|call| call.principal.rsplit('/').next().map(str::to_owned)).collect()
}

/// Whether a call did not get through to being judged: no credentials, or none that are believed.
fn refused_for_who_it_is(call: &Entry) -> bool {
    let becomes = ["AssumeRoleWithWebIdentity", "AssumeRoleForPodIdentity"].contains(&call.action.as_str());
    [401, 403].contains(&call.status) || (becomes && call.status != 200)
}

/// Pod Identity calls its sessions `eks-<cluster>-<pod>-<uuid>`, web identity by a number.
fn of_pod_identity(session: &str) -> bool {
    session.starts_with(&format!("eks-{NAME}-"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about four minutes"]
async fn soak_of_an_identity_that_is_switched_without_a_gap() {
    let deployed = Deployed::start(Kubernetes::Real).await.unwrap();
    let ended = deployed.provision(&spec("irsa")).await.unwrap();
    assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
    let before = sessions(&of_the_controller(&deployed, 0));
    assert!(!before.is_empty() && !before.iter().any(|session| of_pod_identity(session)), "{before:?}");
    let admin = deployed.admin(NAME).await.unwrap();

    let mut report = String::from(
        "| from, to | Karpenter's replicas available, at least | looks | calls of the controller | of them denied | sessions \
         on EC2 afterwards | the run took |\n|---|---|---|---|---|---|---|\n",
    );
    for (from, to) in [("irsa", "podIdentity"), ("podIdentity", "irsa")] {
        let (watch, since, began) = (Watch::start(admin.clone()), deployed.last_call(), Instant::now());
        let ended = deployed.provision(&spec(to)).await.unwrap();
        assert_eq!(ended.status, "SUCCEEDED", "{}: {}", ended.error, ended.cause);
        let took = began.elapsed();
        let settled = deployed.last_call();
        let after = loop {
            let after = sessions(&of_the_controller(&deployed, settled));
            if !after.is_empty() || began.elapsed() > took + Duration::from_mins(6) {
                break after;
            }
            // A controller that rests looks at EC2 again within five minutes.
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        let Seen { least, looks } = watch.end().await;
        let calls = of_the_controller(&deployed, since);
        let denied: Vec<_> = calls.iter().filter(|call| call.denied.is_some() || refused_for_who_it_is(call)).collect();
        assert!(least >= 1, "{from} to {to}: {least} replicas were available for a moment");
        assert!(denied.is_empty(), "{from} to {to}: {denied:#?}");
        assert!(
            !after.is_empty() && after.iter().all(|session| of_pod_identity(session) == (to == "podIdentity")),
            "{to}: {after:?}"
        );
        one_identity_is_left(&deployed, to).await;
        let example = after.first().map(|session| session.chars().take(24).collect::<String>()).unwrap_or_default();
        writeln!(
            report,
            "| {from}, {to} | {least} | {looks} | {} | 0 | `{example}…` | {:.0} s |",
            calls.len(),
            took.as_secs_f64()
        )
        .unwrap();
    }
    secrets::are_nowhere(&deployed, NAME).await.unwrap();
    deployed.cloud.stop().await;
    repository::report("switched identity", &report).unwrap();
}

/// What only the other identity needed is gone.
async fn one_identity_is_left(deployed: &Deployed, identity: &str) {
    let iam = aws_sdk_iam::Client::new(&deployed.config);
    let role = iam.get_role().role_name(format!("slipway-eks-{NAME}-{REGION}-controller")).send().await.unwrap();
    let trust = role.role.unwrap().assume_role_policy_document.unwrap();
    let eks = aws_sdk_eks::Client::new(&deployed.config);
    let listed = eks.list_pod_identity_associations().cluster_name(NAME).namespace("karpenter").send().await.unwrap();
    let associations = listed.associations.unwrap_or_default().len();
    let pods = identity == "podIdentity";
    assert_eq!((trust.contains("pods.eks.amazonaws.com"), associations), (pods, usize::from(pods)), "{trust}");
    assert_eq!(trust.contains("AssumeRoleWithWebIdentity"), !pods, "{trust}");
}
