//! Recorded histories of the provision machine, read and shown.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use aws_sdk_sfn::primitives::DateTime;
use aws_sdk_sfn::types::{
    HistoryEvent, HistoryEventType, StateEnteredEventDetails, TaskFailedEventDetails, TaskSucceededEventDetails,
};
use serde_json::json;
use slipway_cli::cost::{ClusterCost, RunCost};
use slipway_cli::history::{Event, What};
use slipway_cli::live::{Lines, Show as _, Table, duration, table};
use slipway_cli::progress::{Progress, Status, Step};
use slipway_cli::report::{self, StepRow};
use slipway_cli::timeline::{critical_path, stretches, total, unscaled_millis};
use slipway_statemachine::prices::Prices;

fn events(name: &str) -> Vec<Event> {
    let path = format!("{}/tests/histories/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn recorded(name: &str) -> Progress {
    Progress::of(&events(name))
}

fn step<'a>(progress: &'a Progress, name: &str) -> &'a Step {
    progress.steps.iter().find(|step| step.name == name).unwrap()
}

/// A history of one's own: state events in order, each after the one before.
fn history(entries: Vec<(i64, What)>) -> Vec<Event> {
    let event = |(index, (at, what)): (usize, (i64, What))| Event {
        id: index as u64 + 1,
        previous: if index == 1 { 0 } else { index as u64 },
        at,
        what,
    };
    entries.into_iter().enumerate().map(event).collect()
}

fn entered(state: &str, kind: &str) -> What {
    What::Entered { state: state.to_owned(), kind: kind.to_owned() }
}

fn exited(state: &str) -> What {
    What::Exited { state: state.to_owned() }
}

fn failed(error: &str, cause: &str) -> What {
    What::Failed { error: error.to_owned(), cause: cause.to_owned() }
}

fn answered(answer: serde_json::Value) -> What {
    What::Answered { answer }
}

/// A step that is asked twice, waits in between and is tried again once.
fn small() -> Vec<Event> {
    let ask = json!({ "done": false, "retryAfterSeconds": 30, "detail": "the stack is CREATE_IN_PROGRESS" });
    history(vec![
        (0, What::Started { input: json!({ "name": "demo", "region": "eu-west-1" }) }),
        (0, entered("EnsureNetwork", "Task")),
        (0, What::Scheduled),
        (1_000, answered(ask)),
        (1_000, exited("EnsureNetwork")),
        (1_000, entered("EnsureNetworkDone", "Choice")),
        (1_000, exited("EnsureNetworkDone")),
        (1_000, entered("EnsureNetworkWait", "Wait")),
        (5_000, exited("EnsureNetworkWait")),
        (5_000, entered("EnsureNetwork", "Task")),
        (5_000, What::Scheduled),
        (6_000, failed("Throttled", "EC2 answered RequestLimitExceeded.")),
        (7_000, What::Scheduled),
        (8_000, answered(json!({ "done": true, "output": {} }))),
        (8_000, exited("EnsureNetwork")),
        (
            8_000,
            What::Ended {
                status: "SUCCEEDED".to_owned(),
                error: None,
                cause: None,
                output: Some(json!({ "vpcId": "vpc-1" })),
            },
        ),
    ])
}

#[test]
fn a_step_is_a_task_with_its_choices_and_waits() {
    let progress = Progress::of(&small());
    assert_eq!(progress.steps.len(), 1);
    let network = &progress.steps[0];
    assert_eq!((network.name.as_str(), network.visits.len()), ("ensure-network", 4));
    assert_eq!((network.answers, network.retries, &network.status), (3, 1, &Status::Done));
    assert_eq!(progress.span(network), (0, 8_000));
    let times = total(&progress);
    assert_eq!((times.functions, times.waits, times.retries), (3_000, 4_000, 1_000));
    assert_eq!(stretches(&progress, network).len(), 5);
    // 3 s in functions, and 5 s of waiting sixty times slower.
    assert_eq!(unscaled_millis(&progress, 60.0), 303_000);
}

#[test]
fn a_step_says_what_it_does_while_it_does_it() {
    let all = small();
    let status = |count: usize| Progress::of(&all[..count]).steps[0].status.clone();
    assert_eq!(status(3), Status::Running);
    let waiting = Status::Waiting { detail: "the stack is CREATE_IN_PROGRESS".to_owned() };
    assert_eq!(status(4), waiting);
    assert_eq!(status(8), waiting);
    assert_eq!(status(10), Status::Running);
    let retrying =
        Status::Retrying { error: "Throttled".to_owned(), cause: "EC2 answered RequestLimitExceeded.".to_owned() };
    assert_eq!(status(12), retrying);
    assert_eq!(status(13), Status::Running);
    assert_eq!(status(15), Status::Done);
}

#[test]
fn a_run_that_goes_on_with_a_failed_one_says_where() {
    let opened = json!({
        "run": { "id": "01B", "fence": 2 }, "cluster": { "name": "demo" }, "spec": {},
        "resumes": "01A", "made": { "next": "CheckKarpenter" },
    });
    let progress = Progress::of(&history(vec![
        (0, What::Started { input: json!({ "name": "demo" }) }),
        (0, entered("OpenRun", "Task")),
        (0, What::Scheduled),
        (1_000, answered(opened)),
        (1_000, exited("OpenRun")),
        (1_000, entered("CheckKarpenter", "Task")),
        (1_000, What::Scheduled),
    ]));
    let lines = table(&progress, 2_000, false);
    assert!(lines[1].ends_with("goes on at check-karpenter, where run 01A failed"), "{}", lines[1]);
    let mut text = Vec::new();
    Lines::new(&mut text).show(&progress, 2_000).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("done: goes on at check-karpenter, where run 01A failed\n"), "{text}");
}

#[test]
fn lines_tell_every_change_once() {
    let all = small();
    let mut text = Vec::new();
    let mut lines = Lines::new(&mut text);
    for count in [1, 3, 4, 4, 8, 10, 12, 13, 15, 16, 16] {
        let progress = Progress::of(&all[..count]);
        lines.show(&progress, progress.latest).unwrap();
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(
        text.lines().map(str::trim).collect::<Vec<_>>(),
        [
            "0.0 s  ensure-network            running",
            "1.0 s  ensure-network            waiting: the stack is CREATE_IN_PROGRESS",
            "6.0 s  ensure-network            tried again after Throttled (try 2): EC2 answered RequestLimitExceeded.",
            "8.0 s  ensure-network            done",
            "8.0 s  SUCCEEDED",
        ]
    );
}

#[test]
fn a_table_paints_over_itself() {
    let all = small();
    let mut screen = Vec::new();
    let mut shown = Table::new(&mut screen, false);
    shown.show(&Progress::of(&all[..4]), 2_500).unwrap();
    shown.show(&Progress::of(&all), 9_000).unwrap();
    let screen = String::from_utf8(screen).unwrap();
    assert_eq!(screen.matches("\u{1b}[2A").count(), 1, "the second frame goes up two lines");
    assert!(!screen.contains("\u{1b}[32m"), "no colours were asked for");
    assert_eq!(
        table(&Progress::of(&all[..4]), 2_500, false),
        [
            "RUNNING  2.5 s  0 of 1 steps begun are done",
            "… ensure-network                 2.5 s  waiting: the stack is CREATE_IN_PROGRESS",
        ]
    );
    assert_eq!(table(&Progress::of(&all), 9_000, false)[1], "✔ ensure-network                 8.0 s");
    assert!(table(&Progress::of(&all), 9_000, true)[1].starts_with("\u{1b}[32m✔\u{1b}[0m"));
}

#[test]
fn a_report_shows_bars_and_sums() {
    let progress = Progress::of(&small());
    let rows = BTreeMap::from([("ensure-network".to_owned(), StepRow { busy_millis: 2_500 })]);
    let mut text = Vec::new();
    report::write(&mut text, &progress, &rows, &Prices::published().unwrap(), Some(60.0)).unwrap();
    report::ending(&mut text, &progress).unwrap();
    let text = String::from_utf8(text).unwrap();
    let expected = "                            0 s                                        8.0 s
* ensure-network            ██████░░░░░░░░░░░░░░░░░░░░░░░░██████▒▒▒▒▒▒██████      8.0 s  asked 2 times, tried again once
                            █ function  ░ waiting for AWS  ▒ before trying again  * critical path

critical path  ensure-network
its time       8.0 s = waits 4.0 s + functions 3.0 s + pauses before trying again 1.0 s + Step Functions 0.0 s
on AWS         about 5 min 03 s: here its waits passed 60 times faster
functions      2.5 s in the steps' own code, 0.5 s around it (starts, Invoke, transport)
transitions    5 = $0.0001
Lambda         3 calls, 3.0 s at 256 MB on arm64 = $0.0000
cost           $0.0001 for the run; the cluster $0.222 an hour
               EKS control plane $0.100 + 2 t4g.medium $0.074 + 1 NAT gateway $0.048; nodes that Karpenter adds come on top
               prices of 2026-11-22 without free tiers
SUCCEEDED after 8.0 s
";
    assert_eq!(text, expected);
}

#[test]
fn a_recorded_success_has_every_step_done() {
    let progress = recorded("succeeded");
    assert!(progress.succeeded());
    assert_eq!(progress.steps.len(), 18);
    for step in &progress.steps {
        assert_eq!(step.status, Status::Done, "{}", step.name);
    }
    assert_eq!(step(&progress, "wait-oidc").answers, 6);
    assert_eq!(progress.steps[0].name, "open-run");
}

/// Inside a Parallel the branch that ended last is critical, nested ones as well.
#[test]
fn the_critical_path_follows_the_last_branch() {
    let progress = recorded("succeeded");
    let path = critical_path(&progress);
    let names: Vec<&str> = path.steps.iter().map(|index| progress.steps[*index].name.as_str()).collect();
    assert_eq!(
        names,
        [
            "open-run",
            "preflight",
            "ensure-interruption-queue",
            "create-cluster",
            "wait-oidc",
            "bind-identity",
            "probe-identity",
            "install-karpenter",
            "check-karpenter",
            "apply-node-pools",
            "verify-capacity",
            "close-run"
        ]
    );
    // On virtual time nothing else takes time: the path's own time is the run's.
    let times = path.times;
    assert_eq!(times.functions + times.waits + times.retries, progress.duration_millis());
    assert_eq!(unscaled_millis(&progress, 1.0), progress.duration_millis());
}

#[test]
fn a_recorded_failure_names_step_error_and_page() {
    let progress = recorded("failed");
    assert!(!progress.succeeded());
    let Status::Failed { error, cause } = &step(&progress, "install-karpenter").status else { panic!("it failed") };
    assert_eq!(error, "ChartNotFound");
    assert!(cause.contains("karpenter:9.9.9"));
    assert_eq!(step(&progress, "close-failed").status, Status::Done);
    assert_eq!(step(&progress, "ensure-node-group").status, Status::Done);

    let mut text = Vec::new();
    report::ending(&mut text, &progress).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("FAILED with ChartNotFound\nThe registry has no karpenter:9.9.9."), "{text}");
    assert!(text.ends_with("Runbook: docs/runbook.md#chartnotfound\n"), "{text}");
}

#[test]
fn one_logs_in_to_what_is_there() {
    let ending = |progress: &Progress| {
        let mut out = Vec::new();
        report::ending(&mut out, progress).unwrap();
        String::from_utf8(out).unwrap()
    };
    let mut progress = recorded("succeeded");
    assert!(ending(&progress).contains("aws eks update-kubeconfig --name"), "{}", ending(&progress));
    // A teardown's answer.
    progress.end.as_mut().unwrap().output = Some(json!({"cluster": {"name": "demo"}, "notes": []}));
    assert!(!ending(&progress).contains("Log in"), "{}", ending(&progress));
}

#[test]
fn a_stopped_run_leaves_its_steps_stopped() {
    let mut all = small();
    all.truncate(8);
    let end = What::Ended { status: "ABORTED".to_owned(), error: None, cause: None, output: None };
    all.push(Event { id: 9, previous: 8, at: 2_000, what: What::Aborted });
    all.push(Event { id: 10, previous: 8, at: 2_000, what: end });
    assert_eq!(Progress::of(&all).steps[0].status, Status::Aborted);
}

#[test]
fn every_recorded_history_can_be_shown_at_every_moment() {
    for name in ["succeeded", "failed"] {
        let all = events(name);
        for count in 0..=all.len() {
            let progress = Progress::of(&all[..count]);
            assert_eq!(table(&progress, progress.latest, false).len(), progress.steps.len() + 1);
            let mut text = Vec::new();
            report::write(&mut text, &progress, &BTreeMap::new(), &Prices::published().unwrap(), None).unwrap();
        }
    }
}

#[test]
fn costs_come_from_the_table() {
    let prices = Prices::published().unwrap();
    let run = RunCost::of(&Progress::of(&small()), &prices);
    assert_eq!((run.transitions, run.invocations), (5, 3));
    assert!((run.transitions_dollars - 5.0 * 0.025 / 1000.0).abs() < 1e-12);
    assert!((run.lambda_dollars - (3.0 * 0.25 * 0.000_013_333_4 + 3.0 * 0.000_000_2)).abs() < 1e-12);

    let three = json!({
        "name": "demo", "region": "us-east-1", "core": { "instanceTypes": ["t4g.large"], "size": 3 },
        "network": { "create": { "zones": 3, "nat": "perZone" } },
    });
    let cluster = ClusterCost::of(&three, &prices);
    assert!((cluster.dollars() - (0.10 + 3.0 * 0.0672 + 3.0 * 0.045)).abs() < 1e-9, "{cluster:?}");
    let unknown = ClusterCost::of(&json!({ "name": "demo", "region": "mars-1" }), &prices);
    assert_eq!(unknown.lines[1], ("2 t4g.medium".to_owned(), None), "an unknown price is not guessed");
}

/// What the SDK gives is read with the function's own words, without the JSON that Lambda wraps them in.
#[test]
fn events_are_read_from_the_api() {
    let event = |kind: HistoryEventType| {
        HistoryEvent::builder().id(2).previous_event_id(1).timestamp(DateTime::from_millis(1_500)).r#type(kind)
    };
    let entered = StateEnteredEventDetails::builder().name("OpenRun").build().unwrap();
    let entered = event(HistoryEventType::TaskStateEntered).state_entered_event_details(entered).build().unwrap();
    let wanted = What::Entered { state: "OpenRun".to_owned(), kind: "Task".to_owned() };
    assert_eq!(Event::read(&entered), Event { id: 2, previous: 1, at: 1_500, what: wanted });

    let succeeded = TaskSucceededEventDetails::builder()
        .resource_type("lambda")
        .resource("invoke")
        .output(r#"{"ExecutedVersion":"1","Payload":{"done":true},"StatusCode":200}"#)
        .build()
        .unwrap();
    let succeeded = event(HistoryEventType::TaskSucceeded).task_succeeded_event_details(succeeded).build().unwrap();
    assert_eq!(Event::read(&succeeded).what, answered(json!({ "done": true })));

    let failure = |cause: &str| {
        let details = TaskFailedEventDetails::builder().resource_type("lambda").resource("invoke").error("NotOurs");
        let details = details.cause(cause).build().unwrap();
        Event::read(&event(HistoryEventType::TaskFailed).task_failed_event_details(details).build().unwrap()).what
    };
    assert_eq!(
        failure(r#"{"errorType":"NotOurs","errorMessage":"It is theirs."}"#),
        failed("NotOurs", "It is theirs.")
    );
    assert_eq!(failure("plain words"), failed("NotOurs", "plain words"));
}

#[test]
fn durations_are_written_for_people() {
    assert_eq!([0, 7_340, 65_000, 3_840_000].map(duration), ["0.0 s", "7.3 s", "1 min 05 s", "1 h 04 min"]);
}
