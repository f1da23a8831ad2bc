//! Karpenter's identity on a real cluster with the real controller: probed, raced, healed.
// A soak of minutes says how far it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{Value, json};
use slipway_tests::identity::{CLUSTER, PACE, Probed, Recovered, Workbench};
use slipway_tests::{repository, secrets};

/// One provision's worth of identity: role and service account made anew, probed, installed, checked.
struct Round {
    recovered: Recovered,
    probed: Probed,
    seconds: f64,
}

async fn round(bench: &Workbench, seed: u64) -> Round {
    bench.forget().await.unwrap();
    // Delays of 0 to 60 s from now on, other ones each round.
    bench.propagate(seed, 0, 60);
    let began = Instant::now();
    bench.bind("irsa", "bind").await.unwrap();
    let probed = bench.probe("irsa").await.unwrap();
    bench.install("irsa", &json!({})).await.unwrap();
    let recovered = bench.recover("irsa").await.unwrap();
    Round { recovered, probed, seconds: began.elapsed().as_secs_f64() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_race_is_probed_away_or_healed() {
    let bench = Workbench::start().await.unwrap();
    for seed in 1..=3 {
        let Round { recovered, probed: Probed { proof, .. }, .. } = round(&bench, seed).await;
        assert!(proof["confirmations"].as_u64() >= Some(3) && proof["overSeconds"].as_u64() >= Some(5), "{proof}");
        assert!(recovered.restarts + recovered.heals <= 1, "seed {seed}: {recovered:?}");
    }
    without_the_probe_controllers_crash_and_are_healed(&bench, 4).await;
    what_is_wrong_for_good_ends_under_its_own_name(&bench).await;
    secrets::are_nowhere(&bench.deployed, CLUSTER).await.unwrap();
    bench.deployed.cloud.stop().await;
}

async fn without_the_probe_controllers_crash_and_are_healed(bench: &Workbench, seed: u64) -> Recovered {
    bench.forget().await.unwrap();
    // Longer than a controller takes to start, and not as long as five heals with their waits.
    bench.propagate(seed, 100, 110);
    bench.bind("irsa", "bind").await.unwrap();
    bench.install("irsa", &json!({})).await.unwrap();
    let recovered = bench.recover("irsa").await.unwrap();
    assert!(recovered.diagnoses.iter().any(|diagnosis| diagnosis == "IdentityRace"), "{recovered:?}");
    assert!(recovered.heals >= 1, "{recovered:?}");
    assert_eq!(recovered.diagnoses.last().unwrap(), "Ready", "{recovered:?}");
    bench.propagate(seed, 0, 0);
    recovered
}

/// Two of the table of mistakes, one in values and one in IAM; the rest of it is soaked.
async fn what_is_wrong_for_good_ends_under_its_own_name(bench: &Workbench) {
    let shift = json!({ "settings": { "enableZonalShift": true } });
    bench.install("irsa", &shift).await.unwrap();
    let failure = bench.recover("irsa").await.unwrap_err();
    assert_eq!(failure.error, "ZonalShiftNotRegistered", "{}", failure.cause);
    assert!(failure.cause.contains(CLUSTER), "{}", failure.cause);

    let trust = slipway_karpenter::policy::web_identity_trust(
        &bench.provider(),
        bench.payload("bind-identity", Value::Null)["issuer"].as_str().unwrap(),
        "elsewhere",
    );
    let iam = aws_sdk_iam::Client::new(&bench.deployed.config);
    let update = iam.update_assume_role_policy().role_name(bench.role()).policy_document(trust.to_string());
    update.send().await.unwrap();
    bench.install("irsa", &json!({})).await.unwrap();
    bench.recreate_pods().await.unwrap();
    let failure = bench.recover("irsa").await.unwrap_err();
    assert_eq!(failure.error, "IdentityRefused", "{}", failure.cause);
}

/// Fifty provisions' worth of identity, and five without the probe, reported in docs/soak.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak: about fifteen minutes"]
async fn soak_of_the_identity() {
    const ROUNDS: u64 = 50;
    const RACES: u64 = 5;
    let bench = Workbench::start().await.unwrap();
    let began = Instant::now();
    let mut rounds = Vec::new();
    for seed in 1..=ROUNDS {
        let round = round(&bench, seed).await;
        let Round { probed, recovered, seconds } = &round;
        eprintln!("round {seed}: {} refusals, {recovered:?}, {seconds:.1} s", probed.refusals);
        rounds.push(round);
    }
    let probing = began.elapsed();
    let mut races = Vec::new();
    for seed in 1..=RACES {
        races.push(without_the_probe_controllers_crash_and_are_healed(&bench, 1000 + seed).await);
        eprintln!("race {seed}: {:?}", races.last());
    }
    secrets::are_nowhere(&bench.deployed, CLUSTER).await.unwrap();
    bench.deployed.cloud.stop().await;

    let sum = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>();
    let (restarts, heals) = (sum(|round| round.recovered.restarts), sum(|round| round.recovered.heals));
    let met = rounds.iter().filter(|round| round.probed.refusals > 0).count();
    let waited = |round: &Round| round.probed.proof["waitedSeconds"].as_u64().unwrap();
    let mut waits: Vec<u64> = rounds.iter().map(waited).collect();
    waits.sort_unstable();
    let unraced = rounds.iter().filter(|round| round.probed.refusals == 0).map(waited).max();
    let took = rounds.iter().map(|round| round.seconds).sum::<f64>() / f64::from(u32::try_from(rounds.len()).unwrap());
    let crashes: u64 = races.iter().map(|recovered| recovered.heals).sum();
    let (least, middle, most) = (waits[0], waits[waits.len() / 2], waits[waits.len() - 1]);
    let unraced_cost = unraced.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s"));
    let mut report = String::from("| with the probe | |\n|---|---|\n");
    for (what, figure) in [
        ("provisions' worth of identity (bind, probe, install, check)", ROUNDS.to_string()),
        ("delays of every role, trust policy and STS front end", format!("0 to 60 s, seeds 1 to {ROUNDS}")),
        ("pace: one second here is", format!("{PACE} s of the machine's")),
        ("rounds in which STS refused at least once before it believed", met.to_string()),
        ("container restarts of Karpenter", restarts.to_string()),
        ("heals", heals.to_string()),
        ("Karpenter Ready in the end", format!("{ROUNDS} of {ROUNDS}")),
        ("the probe where STS never refused, at most", unraced_cost),
        ("the probe in all rounds: least, median, most", format!("{least}, {middle}, {most} s")),
        ("real time a round", format!("{took:.1} s")),
        ("real time in all", format!("{:.0} s", probing.as_secs_f64())),
    ] {
        writeln!(report, "| {what} | {figure} |").unwrap();
    }
    report.push_str("\n| without the probe, delays of 100 to 110 s | |\n|---|---|\n");
    for (what, figure) in [
        ("rounds in which the controller crashed and was diagnosed `IdentityRace`", format!("{RACES} of {RACES}")),
        ("heals in all", crashes.to_string()),
        ("Karpenter Ready in the end", format!("{RACES} of {RACES}")),
    ] {
        writeln!(report, "| {what} | {figure} |").unwrap();
    }
    repository::report("identity", &report).unwrap();
    assert!(unraced.is_none_or(|seconds| seconds <= 6), "without a race the probe costs {unraced:?} s");
    assert!(met > 0, "no round met a race, so nothing was shown");
}
