//! Thousands of runs of the real machines on virtual time, with sample answers and thrown-in failures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use slipway_functions::steps;
use slipway_statemachine::{ErrorName, Stage};
use slipway_states::definition::StateMachine;
use slipway_states::failure::TaskError;
use slipway_states::simulation::{Answer, Invocation, Simulated, simulate};
use slipway_tests::{repository, samples};

/// What was called: step, outcome of its call.
type Calls = Arc<Mutex<Vec<(String, Value, bool)>>>;

/// A machine, and what it is started with.
struct Machine {
    name: String,
    definition: Arc<StateMachine>,
    request: Value,
}

fn named(name: &str) -> Machine {
    let definition = StateMachine::parse(&repository::definition(name).unwrap()).unwrap();
    Machine { name: name.to_owned(), definition: Arc::new(definition), request: samples::request(name).unwrap() }
}

fn machine() -> Machine {
    named("provision")
}

fn machines() -> Vec<Machine> {
    repository::machines().unwrap().iter().map(|name| named(name)).collect()
}

/// A step's failure as Lambda reports it.
fn failure(name: &str, message: &str) -> TaskError {
    TaskError::from_function_error(&json!({ "errorType": name, "errorMessage": message, "stackTrace": [] }))
}

/// Runs the machine with an answer, or a failure, for every call of a step.
fn run(
    machine: &Machine,
    seed: u64,
    mut step: impl FnMut(&str, &Value, &Invocation<'_>) -> Result<Value, TaskError> + Send + 'static,
) -> (Simulated, Vec<(String, Value, bool)>) {
    let calls: Calls = Arc::default();
    let record = Arc::clone(&calls);
    let simulated = simulate(&machine.definition, &machine.request, seed, move |invocation| {
        let name = samples::step_of(invocation);
        let payload = invocation.arguments["Payload"].clone();
        let result = step(&name, &payload, invocation);
        record.lock().unwrap().push((name, payload, result.is_ok()));
        let result = result.map(|answer| json!({ "ExecutedVersion": "1", "StatusCode": 200, "Payload": answer }));
        Answer { after: Duration::from_millis(1 + invocation.random.bits() % 3000), result }
    })
    .unwrap();
    let calls = calls.lock().unwrap().clone();
    (simulated, calls)
}

fn waiting(seconds: u64) -> Value {
    json!({
        "done": false, "retryAfterSeconds": seconds, "detail": "not yet", "confirmed": { "times": 0, "overSeconds": 0 },
        "suspect": null,
    })
}

fn waits(step: &str) -> bool {
    samples::answer(step, &Value::Null)["done"] == true
}

#[test]
fn a_run_without_trouble_succeeds_with_useful_outputs_and_few_transitions() {
    let (simulated, calls) = run(&machine(), 7, |step, payload, _| Ok(samples::answer(step, payload)));
    let output = simulated.result.unwrap();
    assert_eq!(output["outcome"], "Succeeded");
    assert_eq!(output["cluster"]["version"], "1.36");
    assert_eq!(output["karpenter"]["chartVersion"], "1.14.1");
    assert_eq!(output["nodePools"], json!(["x86", "graviton"]));
    assert_eq!(output["capacity"]["nodes"][0]["architecture"], "arm64");
    let closing = &calls.last().unwrap().1;
    assert_eq!(
        (&closing["outcome"], &closing["outputs"]["network"]["vpcId"]),
        (&json!("Succeeded"), &output["network"]["vpcId"])
    );
    let transitions = simulated.events.iter().filter(|event| event.kind.ends_with("StateEntered")).count();
    assert!(transitions <= 45, "{transitions} transitions");
}

#[test]
fn every_payload_and_every_answer_fits_its_schema() {
    let schemas = schemas();
    let mut called = BTreeSet::new();
    let planning = Machine { request: samples::plan_request().unwrap(), ..machine() };
    for machine in machines().into_iter().chain([planning]) {
        called.extend(every_payload_fits(&machine, Arc::clone(&schemas)));
    }
    for step in steps::ALL {
        assert!(called.contains(step.name), "{} was not called", step.name);
    }
}

type Schemas = Arc<BTreeMap<&'static str, (jsonschema::Validator, jsonschema::Validator)>>;

fn schemas() -> Schemas {
    let validator = |schema: Value| jsonschema::validator_for(&schema).unwrap();
    let of = |step: &steps::Entry| {
        (step.name, (validator((step.input)().to_value()), validator((step.output)().to_value())))
    };
    Arc::new(steps::ALL.iter().map(of).collect())
}

fn fits(schema: &jsonschema::Validator, what: &str, value: &Value) {
    let errors: Vec<String> = schema.iter_errors(value).map(|e| format!("{} at {}", e, e.instance_path())).collect();
    assert!(errors.is_empty(), "{what} {value}: {errors:?}");
}

fn every_payload_fits(machine: &Machine, schemas: Schemas) -> BTreeSet<String> {
    let mut unhealthy = true;
    let (simulated, calls) = run(machine, 7, move |step, payload, _| {
        let mut answer = samples::answer(step, payload);
        if step == "check-karpenter" && std::mem::take(&mut unhealthy) {
            answer = samples::race("x");
        }
        let (input, output) = &schemas[step];
        fits(input, step, payload);
        fits(output, step, &answer);
        Ok(answer)
    });
    simulated.result.unwrap();
    calls.into_iter().map(|(name, ..)| name).collect()
}

#[test]
fn a_step_that_is_never_done_ends_in_a_named_failure() {
    for machine in machines() {
        let (_, calls) = run(&machine, 3, |step, payload, _| Ok(samples::answer(step, payload)));
        let polled = |step: &String| waits(step) || step == "check-karpenter";
        let waiting: BTreeSet<String> = calls.into_iter().map(|(step, ..)| step).filter(polled).collect();
        for step in waiting {
            never_done(&machine, &step);
        }
    }
}

/// Audit and sweep look, and keep no run.
fn opens_runs(machine: &Machine) -> bool {
    machine.definition.graph.states.contains_key("CloseFailed")
}

fn never_done(machine: &Machine, step: &str) {
    let stuck_step = step.to_owned();
    let (simulated, calls) = run(machine, 3, move |name, payload, _| {
        if name != stuck_step {
            return Ok(samples::answer(name, payload));
        }
        let mut stuck = samples::race("not yet");
        (stuck["health"], stuck["retryAfterSeconds"]) = (json!("Progressing"), json!(30));
        Ok(if stuck_step == "check-karpenter" { stuck } else { waiting(30) })
    });
    let failed = simulated.result.unwrap_err();
    assert!(ErrorName::ALL.iter().any(|name| name.as_str() == failed.error), "{step}: {failed}");
    assert!(failed.cause.contains("not yet"), "{step}: {}", failed.cause);
    if opens_runs(machine) {
        assert!(failed.cause.contains("same input"), "{step}: {}", failed.cause);
        assert_eq!(calls.last().unwrap().1["outcome"], "Failed", "{step}");
    }
    assert!(simulated.duration < Duration::from_secs(10_000), "{step}: {:?}", simulated.duration);
}

#[test]
fn a_failed_step_shows_its_own_error_and_how_to_go_on() {
    let machine = machine();
    for (step, name) in
        [("ensure-network", "NetworkFailed"), ("install-karpenter", "ChartNotFound"), ("preflight", "PreflightFailed")]
    {
        let (simulated, calls) = run(&machine, 5, move |called, payload, _| {
            if called == step {
                Err(failure(name, "The \"thing\" is wrong."))
            } else {
                Ok(samples::answer(called, payload))
            }
        });
        let failed = simulated.result.unwrap_err();
        assert_eq!(failed.error, name);
        assert!(
            failed.cause.starts_with("The \"thing\" is wrong. To go on, start the machine again"),
            "{}",
            failed.cause
        );
        let closing = &calls.last().unwrap().1;
        assert_eq!(closing["failure"], json!({ "error": name, "cause": "The \"thing\" is wrong." }));
    }
}

#[test]
fn a_cause_that_is_no_json_survives() {
    let machine = machine();
    for cause in ["plain text", "{broken", "{\"no\":\"message\"}", "", "{}"] {
        let (simulated, _) = run(&machine, 5, move |called, payload, _| match called {
            "create-cluster" => Err(TaskError::new("Runtime.Weird", cause)),
            _ => Ok(samples::answer(called, payload)),
        });
        let failed = simulated.result.unwrap_err();
        assert_eq!(failed.error, "Runtime.Weird");
        assert!(failed.cause.starts_with(cause), "{cause}: {}", failed.cause);
    }
}

#[test]
fn a_run_that_was_not_opened_fails_with_its_own_error_and_is_not_closed() {
    let (simulated, calls) = run(&machine(), 5, |_, _, _| Err(failure("InvalidInput", "$.name is required.")));
    let failed = simulated.result.unwrap_err();
    assert_eq!((failed.error.as_str(), failed.cause.as_str()), ("InvalidInput", "$.name is required."));
    assert_eq!(calls.len(), 1);
}

#[test]
fn karpenter_is_healed_no_more_often_than_the_spec_allows() {
    let (simulated, calls) = run(&machine(), 5, |step, payload, _| {
        let failing = samples::race("exit 1, 403");
        Ok(if step == "check-karpenter" { failing } else { samples::answer(step, payload) })
    });
    let failed = simulated.result.unwrap_err();
    assert_eq!(failed.error, "IdentityNotBelieved");
    assert!(failed.cause.contains("5 of 5 heals. exit 1, 403"), "{}", failed.cause);
    assert_eq!(calls.iter().filter(|(step, ..)| step == "heal-karpenter").count(), 5);
}

/// A heal is worth another look only when its pods had time to start: the waits grow.
#[test]
fn a_heal_is_followed_by_the_wait_that_it_asks_for() {
    let healed = Arc::new(Mutex::new(0));
    let (simulated, calls) = run(&machine(), 5, move |step, payload, _| {
        let mut healed = healed.lock().unwrap();
        let mut answer = samples::answer(step, payload);
        if step == "heal-karpenter" {
            *healed += 1;
            answer["retryAfterSeconds"] = json!(100);
        }
        Ok(if step == "check-karpenter" && *healed < 2 { samples::race("x") } else { answer })
    });
    assert_eq!(simulated.result.unwrap()["karpenter"]["heals"], 2);
    let waited =
        calls.iter().rfind(|(step, ..)| step == "check-karpenter").map(|(_, payload, _)| payload["waited"].clone());
    assert_eq!(waited, Some(json!(200)));
}

#[test]
fn an_identity_that_replaces_another_is_released_before_pods_are_made_and_settled_after() {
    for (old, phases) in [("podIdentity", vec!["bind", "release", "settle"]), ("irsa", vec!["bind", "settle"])] {
        let (simulated, calls) = run(&machine(), 5, move |step, payload, _| {
            let mut answer = samples::answer(step, payload);
            if step == "bind-identity" {
                answer["replaces"] = json!(old);
            }
            Ok(answer)
        });
        simulated.result.unwrap();
        let order: Vec<_> = calls.iter().map(|(step, payload, _)| (step.as_str(), payload["phase"].as_str())).collect();
        let bound: Vec<_> =
            order.iter().filter(|(step, _)| *step == "bind-identity").filter_map(|(_, phase)| *phase).collect();
        assert_eq!(bound, phases);
        let at = |step: &str, phase: Option<&str>| order.iter().position(|call| *call == (step, phase)).unwrap();
        let installed = at("install-karpenter", None);
        if old == "podIdentity" {
            assert!(at("probe-identity", None) < at("bind-identity", Some("release")));
            assert!(at("bind-identity", Some("release")) < installed);
        }
        assert!(at("check-karpenter", None) < at("bind-identity", Some("settle")));
    }
}

/// Whatever stage a run failed in, the next begins there and gives every later step just what the failed one would have.
#[test]
fn a_run_that_goes_on_knows_what_the_failed_one_knew() {
    let failures = [
        ("create-cluster", Value::Null, Stage::CreateCluster),
        ("ensure-node-group", Value::Null, Stage::Furnish),
        ("install-karpenter", Value::Null, Stage::Furnish),
        ("check-karpenter", Value::Null, Stage::CheckKarpenter),
        ("bind-identity", json!("settle"), Stage::CheckKarpenter),
        ("verify-capacity", Value::Null, Stage::CheckKarpenter),
    ];
    let (whole, asked) = replacing_an_identity(json!({}), None);
    let whole = whole.result.unwrap();
    for (failing, phase, stage) in failures {
        let (failed, until) = replacing_an_identity(json!({}), Some((failing, phase)));
        assert_eq!(failed.result.unwrap_err().error, "CapacityUnavailable", "{failing}");
        let made = until.last().unwrap().1["made"].clone();
        assert_eq!(made["next"], stage.as_str(), "{failing}");

        let (resumed, again) = replacing_an_identity(made, None);
        assert_eq!(resumed.result.unwrap(), whole, "{failing}");
        for call in &again {
            assert!(asked.contains(call), "{failing}: {} was given {}", call.0, call.1);
        }
        let called = |step: &str| again.iter().any(|(called, ..)| called == step);
        let stages_of = [
            ("preflight", None),
            ("ensure-network", None),
            ("create-cluster", Some(Stage::CreateCluster)),
            ("ensure-node-group", Some(Stage::Furnish)),
            ("check-karpenter", Some(Stage::CheckKarpenter)),
            ("apply-node-pools", Some(Stage::CheckKarpenter)),
            ("verify-capacity", Some(Stage::CheckKarpenter)),
        ];
        for (step, of) in stages_of {
            assert_eq!(called(step), of >= Some(stage), "{step} after a failure in {failing}");
        }
    }
}

/// A run that is told what was made before, and in which a step fails; in its own time it moves to another identity.
fn replacing_an_identity(made: Value, fails: Option<(&'static str, Value)>) -> (Simulated, Vec<(String, Value, bool)>) {
    let schemas = schemas();
    run(&machine(), 5, move |step, payload, _| {
        fits(&schemas[step].0, step, payload);
        if fails
            .as_ref()
            .is_some_and(|(failing, phase)| *failing == step && (phase.is_null() || payload["phase"] == *phase))
        {
            return Err(failure("CapacityUnavailable", "There is none."));
        }
        let mut answer = samples::answer(step, payload);
        match step {
            "open-run" => {
                answer["made"] = made.clone();
                answer["resumes"] = json!("01KAPQ3J5Z8Q6T4W2R0N9M7K5G");
                fits(&schemas[step].1, step, &answer);
            }
            "bind-identity" => answer["replaces"] = json!("irsa"),
            _ => {}
        }
        Ok(answer)
    })
}

/// Whatever happens, a run ends by itself, under a name, and closed if it was opened.
#[test]
fn a_thousand_troubled_runs_all_end_closed_and_named() {
    for machine in machines() {
        let outcomes: Mutex<BTreeMap<String, usize>> = Mutex::default();
        std::thread::scope(|scope| {
            for half in 0..2 {
                let (machine, outcomes) = (&machine, &outcomes);
                scope.spawn(move || {
                    for seed in (0..1000).filter(|seed| seed % 2 == half) {
                        *outcomes.lock().unwrap().entry(troubled(machine, seed)).or_default() += 1;
                    }
                });
            }
        });
        let outcomes = outcomes.into_inner().unwrap();
        assert!(outcomes["Succeeded"] > 400 && outcomes.len() > 4, "{}: {outcomes:?}", machine.name);
    }
}

/// A run in which things go wrong at random; its error's name, or `Succeeded`.
fn troubled(machine: &Machine, seed: u64) -> String {
    const TRANSIENT: &[&str] = &[
        "Lambda.TooManyRequestsException",
        "Lambda.Unknown",
        "Throttled",
        "AwsUnavailable",
        "PropagationPending",
        "States.Timeout",
    ];
    const FATAL: &[&str] = &["AccessDenied", "AwsRefused", "LeaseLost", "Internal", "QuotaExceeded"];
    let (simulated, calls) = run(machine, seed, move |step, payload, invocation| {
        let bits = usize::try_from(invocation.random.bits() % 60).unwrap();
        let dice = invocation.random.fraction();
        if dice < 0.08 {
            return Err(failure(TRANSIENT[bits % TRANSIENT.len()], "later"));
        }
        if dice < 0.09 {
            return Err(failure(FATAL[bits % FATAL.len()], "no"));
        }
        if dice < 0.3 && waits(step) {
            return Ok(waiting(1 + bits as u64));
        }
        if dice < 0.5 && step == "check-karpenter" {
            let mut answer = samples::race("x");
            answer["health"] = json!(["Progressing", "Healable"][bits % 2]);
            return Ok(answer);
        }
        Ok(samples::answer(step, payload))
    });
    let opened = calls.iter().any(|(step, _, fine)| step.starts_with("open-") && *fine);
    let closed = calls.iter().rfind(|(step, ..)| step == "close-run").map(|(_, payload, _)| payload["outcome"].clone());
    match &simulated.result {
        Ok(_) if !opens_runs(machine) => "Succeeded".to_owned(),
        Ok(output) => {
            assert_eq!((&output["outcome"], closed), (&json!("Succeeded"), Some(json!("Succeeded"))), "seed {seed}");
            "Succeeded".to_owned()
        }
        Err(failed) => {
            let known = ErrorName::ALL.iter().any(|name| name.as_str() == failed.error);
            assert!(known || TRANSIENT.contains(&failed.error.as_str()), "seed {seed}: {failed}");
            assert_eq!(closed, opened.then(|| json!("Failed")), "seed {seed}: {failed}");
            failed.error.clone()
        }
    }
}

/// The API server of a cluster may be gone, or refuse us: what is in AWS goes all the same, and the run says so.
#[test]
fn a_teardown_goes_on_without_an_api_server() {
    let kubernetes = ["release-workloads", "drain-capacity", "uninstall-karpenter"];
    for stuck in kubernetes {
        let (simulated, calls) = run(&named("teardown"), 5, move |step, payload, _| {
            if step == stuck && payload.get("endpoint").is_some() {
                return Err(failure("ClusterUnreachable", "Reading pods did not get through to https://x."));
            }
            Ok(samples::answer(step, payload))
        });
        let output = simulated.result.unwrap();
        let note = output["notes"][0].as_str().unwrap();
        assert!(note.contains("skipped") && note.contains("did not get through"), "{note}");
        assert!(calls.iter().any(|(step, ..)| step == "delete-network"), "{stuck}");
    }
    let (simulated, calls) = run(&named("teardown"), 5, move |step, payload, _| {
        let mut answer = samples::answer(step, payload);
        if step == "open-teardown" {
            answer["found"] = json!({ "detail": "absent" });
        }
        Ok(answer)
    });
    let output = simulated.result.unwrap();
    assert!(output["notes"][0].as_str().unwrap().contains("the control plane is absent"), "{output}");
    assert!(
        calls.iter().all(|(step, payload, _)| !kubernetes.contains(&step.as_str()) || payload["endpoint"].is_null())
    );
}

/// Nobody says that load balancers and volumes may go: without an API server AWS is asked what is left of them, and
/// nothing is deleted before.
#[test]
fn a_teardown_asks_aws_what_workloads_hold_where_no_api_server_tells() {
    for unreachable in ["open-teardown", "release-workloads", "drain-capacity", "uninstall-karpenter"] {
        let (simulated, calls) = run(&named("teardown"), 5, move |step, payload, _| {
            let mut answer = samples::answer(step, payload);
            match step {
                "open-teardown" if step == unreachable => answer["found"] = json!({ "detail": "absent" }),
                "release-workloads" if payload.get("endpoint").is_none() => {
                    return Err(failure("WorkloadsHoldResources", "Workloads left in AWS: load-balancer a1."));
                }
                _ if step == unreachable => return Err(failure("ClusterUnreachable", "It did not answer.")),
                _ => {}
            }
            Ok(answer)
        });
        assert_eq!(simulated.result.unwrap_err().error, "WorkloadsHoldResources");
        assert!(calls.iter().all(|(step, ..)| !step.starts_with("delete-") && step != "terminate-instances"));
    }
}

/// Whatever else happens: roles outlive the control plane that needs them, and nothing is deleted from a cluster whose
/// workloads were refused.
#[test]
fn a_teardown_keeps_its_order() {
    let (simulated, calls) = run(&named("teardown"), 5, |step, payload, _| Ok(samples::answer(step, payload)));
    simulated.result.unwrap();
    let at = |step: &str| calls.iter().position(|(name, ..)| name == step).unwrap_or_else(|| panic!("no {step}"));
    for (before, after) in [
        ("release-workloads", "drain-capacity"),
        ("drain-capacity", "uninstall-karpenter"),
        ("uninstall-karpenter", "delete-node-groups"),
        ("uninstall-karpenter", "delete-queue"),
        ("delete-node-groups", "terminate-instances"),
        ("terminate-instances", "delete-cluster"),
        ("delete-cluster", "delete-identity"),
        ("delete-remnants", "delete-network"),
        ("delete-network", "close-run"),
    ] {
        assert!(at(before) < at(after), "{before} comes before {after}");
    }
    let (simulated, calls) = run(&named("teardown"), 5, |step, payload, _| match step {
        "release-workloads" => Err(failure("WorkloadsHoldResources", "Workloads hold: Service shop/web.")),
        _ => Ok(samples::answer(step, payload)),
    });
    assert_eq!(simulated.result.unwrap_err().error, "WorkloadsHoldResources");
    let steps: Vec<&str> = calls.iter().map(|(step, ..)| step.as_str()).collect();
    assert_eq!(steps, ["open-teardown", "release-workloads", "close-run"]);
}
