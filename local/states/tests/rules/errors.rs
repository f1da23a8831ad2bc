//! Retry and Catch.

use serde_json::{Value, json};
use slipway_states::simulation::simulate;

use crate::support::{answers, details, fails, machine, moments, pass, recorder, run, task, types, with};

fn caught(by: &str, error: &str) -> bool {
    let states = json!({
        "Work": task(json!({ "Catch": [{ "ErrorEquals": [by], "Next": "Caught" }] })),
        "Caught": pass(json!({ "Output": "caught" })),
    });
    let error = error.to_owned();
    let simulated = with(&machine("Work", states), &json!({}), move |_| fails(&error, "why"));
    simulated.result == Ok(json!("caught"))
}

/// Specification, "Retrying after error": the interpreter scans the retriers in order; the first that names the error
/// decides, and each retrier counts its own attempts.
#[test]
fn each_retrier_counts_its_own_attempts() {
    let states = json!({ "Work": task(json!({ "Retry": [
        { "ErrorEquals": ["A"], "IntervalSeconds": 1, "MaxAttempts": 2, "BackoffRate": 1.0 },
        { "ErrorEquals": ["B"], "IntervalSeconds": 10, "MaxAttempts": 1 },
    ] })) });
    let machine = machine("Work", states);
    let list = [fails("A", ""), fails("B", ""), fails("A", ""), Ok(json!("done"))];
    let simulated = with(&machine, &json!({}), answers(list));
    assert_eq!(simulated.result, Ok(json!("done")));
    assert_eq!(moments(&simulated, "TaskScheduled"), [0, 1_000, 11_000, 12_000]);

    let list = [fails("A", ""), fails("A", ""), fails("A", "third")];
    assert_eq!(with(&machine, &json!({}), answers(list)).result, fails("A", "third"));
}

/// Specification, "Retrying after error": a retrier whose attempts are used up is not followed by a later one.
#[test]
fn the_first_matching_retrier_decides_even_when_it_is_used_up() {
    let states = json!({ "Work": task(json!({ "Retry": [
        { "ErrorEquals": ["A"], "MaxAttempts": 0 },
        { "ErrorEquals": ["States.ALL"], "MaxAttempts": 5 },
    ] })) });
    let simulated = with(&machine("Work", states), &json!({}), answers([fails("A", "once")]));
    assert_eq!(simulated.result, fails("A", "once"));
}

/// Specification, "Retrying after error": defaults are IntervalSeconds 1, MaxAttempts 3, BackoffRate 2.0.
#[test]
fn a_retrier_has_defaults() {
    let states = json!({ "Work": task(json!({ "Retry": [{ "ErrorEquals": ["A"] }] })) });
    let simulated = with(&machine("Work", states), &json!({}), |_| fails("A", ""));
    assert_eq!(moments(&simulated, "TaskScheduled"), [0, 1_000, 3_000, 7_000]);
}

/// Guide, "Handling errors": the counters belong to one visit; a state that is entered again starts afresh.
#[test]
fn counters_start_afresh_when_a_state_is_entered_again() {
    let states = json!({
        "Work": task(json!({
            "Retry": [{ "ErrorEquals": ["A"], "MaxAttempts": 1 }],
            "Catch": [{ "ErrorEquals": ["States.ALL"], "Next": "Again" }],
        })),
        "Again": pass(json!({ "Next": "Work" })),
    });
    let list = [fails("A", ""), fails("A", ""), fails("A", ""), Ok(json!("done"))];
    assert_eq!(with(&machine("Work", states), &json!({}), answers(list)).result, Ok(json!("done")));
}

/// Guide, "Handling errors", MaxDelaySeconds and JitterStrategy: the delay grows to the cap, and FULL jitter picks
/// between 0 and that.
#[test]
fn jitter_comes_after_the_cap() {
    let retry = |jitter: &str| {
        json!({ "Work": task(json!({ "Retry": [{
            "ErrorEquals": ["A"], "IntervalSeconds": 4, "BackoffRate": 10, "MaxDelaySeconds": 8, "MaxAttempts": 40,
            "JitterStrategy": jitter,
        }] })) })
    };
    let delays = |jitter: &str| {
        let simulated = with(&machine("Work", retry(jitter)), &json!({}), |_| fails("A", ""));
        let moments = moments(&simulated, "TaskScheduled");
        moments.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()
    };
    let plain = delays("NONE");
    assert_eq!((plain[0], &plain[1..4]), (4_000, &[8_000, 8_000, 8_000][..]));
    let full = delays("FULL");
    assert!(full.iter().all(|delay| (0..=8_000).contains(delay)), "{full:?}");
    // Jitter before the cap would leave most of 39 delays at exactly 8 s; after it they spread evenly.
    assert!(full[1..].iter().filter(|delay| **delay < 4_000).count() > 10, "{full:?}");
    assert!(full[1..].iter().filter(|delay| **delay == 8_000).count() < 3, "{full:?}");
}

/// Guide, "Error names": States.ALL catches neither States.DataLimitExceeded nor States.Runtime.
#[test]
fn states_all_misses_the_terminal_errors() {
    for error in ["A", "States.Timeout", "States.QueryEvaluationError", "Lambda.Unknown"] {
        assert!(caught("States.ALL", error), "{error}");
    }
    assert!(!caught("States.ALL", "States.DataLimitExceeded"));
    assert!(!caught("States.ALL", "States.Runtime"));
}

/// Guide, "Error names": States.Runtime "will always cause the execution to fail", also when it is named.
#[test]
fn states_runtime_is_never_handled() {
    assert!(!caught("States.Runtime", "States.Runtime"));
    assert!(caught("States.DataLimitExceeded", "States.DataLimitExceeded"));
}

/// Guide, "Error names": States.TaskFailed is a wildcard for every known error except States.Timeout.
#[test]
fn states_task_failed_misses_timeouts() {
    for error in ["A", "Lambda.Unknown", "States.QueryEvaluationError"] {
        assert!(caught("States.TaskFailed", error), "{error}");
    }
    for error in ["States.Timeout", "States.HeartbeatTimeout", "States.DataLimitExceeded", "States.Runtime"] {
        assert!(!caught("States.TaskFailed", error), "{error}");
    }
}

/// Guide, "Error names": States.TaskFailed is no privilege of Task states; a Parallel's own Retry may use it.
#[test]
fn states_task_failed_works_on_a_parallel() {
    let states = json!({ "Both": {
        "Type": "Parallel", "End": true, "Retry": [{ "ErrorEquals": ["States.TaskFailed"], "MaxAttempts": 1 }],
        "Branches": [{ "StartAt": "Work", "States": { "Work": task(json!({})) } }],
    } });
    let simulated = with(&machine("Both", states), &json!({}), answers([fails("A", ""), Ok(json!(1))]));
    assert_eq!(simulated.result, Ok(json!([1])));
}

/// Specification, "Catch": Assign and Output of the catcher, with `$states.errorOutput`; the state's own Assign and
/// Output do not happen.
#[test]
fn a_catcher_has_its_own_assign_and_output() {
    let states = json!({
        "Work": task(json!({
            "Assign": { "never": true }, "Output": "never",
            "Catch": [{
                "ErrorEquals": ["States.ALL"], "Next": "Caught",
                "Assign": { "name": "{% $states.errorOutput.Error %}" },
                "Output": "{% $states.input.id & ': ' & $states.errorOutput.Cause %}",
            }],
        })),
        "Caught": pass(json!({ "Output": {
            "input": "{% $states.input %}", "name": "{% $name %}", "never": "{% $exists($never) %}",
        } })),
    });
    let simulated = with(&machine("Work", states), &json!({ "id": "x" }), |_| fails("A", "why"));
    assert_eq!(simulated.result, Ok(json!({ "input": "x: why", "name": "A", "never": false })));
}

/// Specification, "Catch": without an Output of its own the catcher's output is the error output.
#[test]
fn a_catchers_default_output_is_the_error_output() {
    let states = json!({
        "Work": task(json!({ "Catch": [{ "ErrorEquals": ["States.ALL"], "Next": "Caught" }] })),
        "Caught": pass(json!({})),
    });
    let simulated = with(&machine("Work", states), &json!({}), |_| fails("A", "why"));
    assert_eq!(simulated.result, Ok(json!({ "Error": "A", "Cause": "why" })));
}

/// Specification, "Retrying after error" and "Catch": Catch only after the retries.
#[test]
fn retries_come_before_catches() {
    let (calls, seen) = recorder();
    let states = json!({
        "Work": task(json!({
            "Retry": [{ "ErrorEquals": ["A"], "MaxAttempts": 2 }],
            "Catch": [{ "ErrorEquals": ["A"], "Next": "Caught" }],
        })),
        "Caught": pass(json!({ "Output": "caught" })),
    });
    let simulated = with(&machine("Work", states), &json!({}), move |call| {
        calls.lock().unwrap().push(call.retry_count);
        fails("A", "")
    });
    assert_eq!(simulated.result, Ok(json!("caught")));
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
}

/// Guide, "Context object": State.RetryCount is how often the state has been retried.
#[test]
fn the_context_counts_retries() {
    let states = json!({ "Work": task(json!({
        "Arguments": { "FunctionName": "f", "Payload": "{% $states.context.State.RetryCount %}" },
        "Retry": [{ "ErrorEquals": ["A"] }],
    })) });
    let (payloads, seen) = recorder();
    let mut next = answers([fails("A", ""), fails("A", ""), Ok(json!(1))]);
    with(&machine("Work", states), &json!({}), move |call| {
        payloads.lock().unwrap().push(call.arguments["Payload"].clone());
        next(call)
    });
    assert_eq!(*seen.lock().unwrap(), [json!(0), json!(1), json!(2)]);
}

/// Guide, "Handling errors": the Cause is JSON from a Lambda function but plain text from others, so a machine that
/// parses it must guard; an unguarded `$parse` in a catcher fails the execution.
#[test]
fn a_cause_may_be_no_json() {
    let states = |output: &str| {
        json!({
            "Work": task(json!({
                "TimeoutSeconds": 1,
                "Catch": [{ "ErrorEquals": ["States.ALL"], "Next": "Caught", "Output": output }],
            })),
            "Caught": pass(json!({})),
        })
    };
    let parse = "{% $parse($states.errorOutput.Cause).errorMessage %}";
    let message = json!({ "errorType": "A", "errorMessage": "no route" }).to_string();
    let simulated = with(&machine("Work", states(parse)), &json!({}), move |_| fails("A", &message));
    assert_eq!(simulated.result, Ok(json!("no route")));
    let simulated = with(&machine("Work", states(parse)), &json!({}), |_| fails("States.Timeout", "plain"));
    assert_eq!(simulated.result.unwrap_err().error, "States.QueryEvaluationError");
    let guarded = "{% $match($states.errorOutput.Cause, /^\\{/) ? $parse($states.errorOutput.Cause).errorMessage \
                   : $states.errorOutput.Cause %}";
    let simulated = with(&machine("Work", states(guarded)), &json!({}), |_| fails("States.Timeout", "plain"));
    assert_eq!(simulated.result, Ok(json!("plain")));
}

/// Guide, "Transforming data with JSONata", error handling: what fails in a catcher is not caught by its siblings.
#[test]
fn a_failing_catcher_fails_the_level() {
    let states = json!({ "Both": {
        "Type": "Parallel", "Next": "Caught",
        "Catch": [{ "ErrorEquals": ["States.QueryEvaluationError"], "Next": "Caught" }],
        "Branches": [{ "StartAt": "Work", "States": {
            "Work": task(json!({ "Catch": [
                { "ErrorEquals": ["A"], "Next": "Never", "Output": "{% $missing %}" },
                { "ErrorEquals": ["States.ALL"], "Next": "Never" },
            ] })),
            "Never": pass(json!({})),
        } }],
    }, "Caught": pass(json!({ "Output": "outside" })) });
    let simulated = with(&machine("Both", states), &json!({}), |_| fails("A", ""));
    assert_eq!(simulated.result, Ok(json!("outside")));
}

/// Specification, "Fail state"; "Parallel state": a branch's unhandled error is the Parallel's. A machine should
/// catch it by its own name and as States.BranchFailed; here it keeps its own name.
#[test]
fn a_failing_branch_fails_the_parallel_with_its_own_error() {
    let states = json!({
        "Both": {
            "Type": "Parallel", "Next": "Never",
            "Catch": [{ "ErrorEquals": ["NetworkFailed", "States.BranchFailed"], "Next": "Caught" }],
            "Branches": [
                { "StartAt": "Bad", "States": { "Bad": { "Type": "Fail", "Error": "NetworkFailed", "Cause": "{% 'no ' & 'route' %}" } } },
                { "StartAt": "Good", "States": { "Good": { "Type": "Wait", "Seconds": 5, "End": true } } },
            ],
        },
        "Caught": pass(json!({})), "Never": pass(json!({})),
    });
    let states = {
        let mut s = states;
        s["Caught"]["Next"] = json!("Never");
        s["Caught"].as_object_mut().unwrap().shift_remove("End");
        s
    };
    let simulated = run(&machine("Both", states), &json!({}));
    assert_eq!(simulated.result, Ok(json!({ "Error": "NetworkFailed", "Cause": "no route" })));
    assert_eq!(simulated.duration.as_secs(), 0, "siblings are not waited for");
}

/// Specification, "Choice state": no rule, no Default, States.NoChoiceMatched.
#[test]
fn a_choice_without_match_fails() {
    let states = json!({
        "Pick": { "Type": "Choice", "Choices": [{ "Condition": "{% $states.input.a = 1 %}", "Next": "One" }] },
        "One": pass(json!({})),
    });
    assert_eq!(run(&machine("Pick", states), &json!({ "a": 2 })).result.unwrap_err().error, "States.NoChoiceMatched");
}

/// Guide, "Service quotas": the Fail state's error ends the execution, and the history says so.
#[test]
fn a_fail_state_ends_the_execution() {
    let states = json!({ "Bad": { "Type": "Fail", "Error": "ProvisionFailed", "Cause": "because" } });
    let simulated = run(&machine("Bad", states), &json!({}));
    assert_eq!(simulated.result, fails("ProvisionFailed", "because"));
    assert_eq!(types(&simulated), ["ExecutionStarted", "FailStateEntered", "ExecutionFailed"]);
    assert_eq!(details(&simulated, "ExecutionFailed"), json!({ "error": "ProvisionFailed", "cause": "because" }));
}

/// The same seed makes the same run, jitter included; another seed another one.
#[test]
fn a_seed_decides_everything() {
    let states = json!({ "Work": task(json!({ "Retry": [{
        "ErrorEquals": ["States.ALL"], "MaxAttempts": 5, "JitterStrategy": "FULL",
    }] })) });
    let machine = machine("Work", states);
    let run = |seed| {
        simulate(&machine, &Value::Null, seed, |call| slipway_states::simulation::Answer {
            after: std::time::Duration::from_millis(call.random.bits() % 1_000),
            result: fails("A", ""),
        })
        .unwrap()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).duration, run(2).duration);
}
