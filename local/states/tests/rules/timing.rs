//! Waits, limits, callbacks, quotas of events.

use serde_json::json;
use slipway_states::simulation::{Answer, Stuck, simulate};
use std::time::Duration;

use crate::support::{details, fails, machine, moments, parsed, pass, run, task, timed, types, with};

/// Specification, "Wait state": Seconds, an expression or a number, or a Timestamp.
#[test]
fn a_wait_waits() {
    let waits = |wait: serde_json::Value| {
        let mut state = wait;
        state["Type"] = json!("Wait");
        state["End"] = json!(true);
        run(&machine("Wait", json!({ "Wait": state })), &json!({ "retryAfterSeconds": 45 })).duration.as_secs()
    };
    assert_eq!(waits(json!({ "Seconds": 20 })), 20);
    assert_eq!(waits(json!({ "Seconds": "{% $states.input.retryAfterSeconds %}" })), 45);
    assert_eq!(waits(json!({ "Timestamp": "2026-01-01T00:01:00Z" })), 60);
    assert_eq!(waits(json!({ "Timestamp": "{% '2026-01-01T01:01:00+01:00' %}" })), 60);
    assert_eq!(waits(json!({ "Timestamp": "2025-01-01T00:00:00Z" })), 0, "the past is not waited for");
}

/// Guide, "Wait state": Seconds must give a whole number; anything else is a States.QueryEvaluationError.
#[test]
fn a_wait_needs_whole_seconds() {
    for input in [json!("10"), json!(1.5), json!(-1), json!(null)] {
        let states = json!({ "Wait": { "Type": "Wait", "Seconds": "{% $states.input %}", "End": true } });
        let simulated = run(&machine("Wait", states), &input);
        assert_eq!(simulated.result.unwrap_err().error, "States.QueryEvaluationError", "{input}");
    }
}

/// Specification, "Timeouts": a task beyond TimeoutSeconds fails with States.Timeout; each retry has its own time.
#[test]
fn a_task_times_out() {
    let states = json!({
        "Work": task(json!({
            "TimeoutSeconds": 30, "Retry": [{ "ErrorEquals": ["States.Timeout"], "MaxAttempts": 1 }],
            "Catch": [{ "ErrorEquals": ["States.ALL"], "Next": "Caught" }], "Next": "Caught",
        })),
        "Caught": pass(json!({ "Output": "{% $states.input.Error %}" })),
    });
    let simulated = timed(&machine("Work", states), &json!({}), |_| (31, Ok(json!(1))));
    assert_eq!(simulated.result, Ok(json!("States.Timeout")));
    assert_eq!(moments(&simulated, "TaskTimedOut"), [30_000, 61_000]);
    let timeout = details(&simulated, "TaskTimedOut");
    assert_eq!(timeout, json!({ "resourceType": "lambda", "resource": "invoke", "error": "States.Timeout" }));
    let in_time = json!({ "Work": task(json!({ "TimeoutSeconds": "{% 30 %}" })) });
    assert!(timed(&machine("Work", in_time), &json!({}), |_| (29, Ok(json!(1)))).result.is_ok());
}

/// Specification, top-level fields: TimeoutSeconds of the machine ends the execution as TIMED_OUT; no Catch sees it.
#[test]
fn a_machine_times_out() {
    let definition = json!({
        "QueryLanguage": "JSONata", "StartAt": "Work", "TimeoutSeconds": 60,
        "States": {
            "Work": task(json!({ "Catch": [{ "ErrorEquals": ["States.ALL"], "Next": "Caught" }] })),
            "Caught": pass(json!({})),
        },
    });
    let simulated = timed(&parsed(&definition), &json!({}), |_| (600, Ok(json!(1))));
    assert_eq!(simulated.result, fails("States.Timeout", ""));
    assert_eq!(simulated.duration.as_secs(), 60);
    let kinds = types(&simulated);
    assert_eq!(kinds[kinds.len() - 2..], ["TaskStateAborted", "ExecutionTimedOut"]);
}

/// Guide, "Wait for a callback with task token": the token is in the context object, and HeartbeatSeconds without a
/// heartbeat is States.HeartbeatTimeout, which States.Timeout matches too.
#[test]
fn a_callback_that_never_comes_misses_its_heartbeat() {
    let states = json!({
        "Ask": {
            "Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage.waitForTaskToken",
            "Arguments": { "MessageBody": { "token": "{% $states.context.Task.Token %}" } },
            "HeartbeatSeconds": 20, "TimeoutSeconds": 600,
            "Catch": [{ "ErrorEquals": ["States.Timeout"], "Next": "Caught" }], "End": true,
        },
        "Caught": pass(json!({ "Output": "{% $states.input.Error %}" })),
    });
    let simulated = with(&machine("Ask", states), &json!({}), |call| {
        assert_eq!(call.arguments["MessageBody"]["token"].as_str().map(str::len), Some(36));
        Ok(json!({ "MessageId": "1" }))
    });
    assert_eq!(simulated.result, Ok(json!("States.HeartbeatTimeout")));
    assert_eq!(simulated.duration.as_secs(), 20);
    assert!(types(&simulated).contains(&"TaskSubmitted"));
}

/// A token that nobody answers, without any limit: virtual time has nowhere to go, and says so.
#[test]
fn a_simulation_that_cannot_go_on_says_so() {
    let states = json!({ "Ask": {
        "Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage.waitForTaskToken", "Arguments": {}, "End": true,
    } });
    let simulated =
        simulate(&machine("Ask", states), &json!({}), 1, |_| Answer { after: Duration::ZERO, result: Ok(json!({})) });
    assert_eq!(simulated, Err(Stuck));
}

/// Guide, "Avoid reaching the history quota": event 25,000 is ExecutionSucceeded or the execution fails.
#[test]
fn a_history_ends_at_25_000_events() {
    let turns = |last: u64| {
        let states = json!({
            "Turn": { "Type": "Choice", "Default": "Done", "Choices": [
                { "Condition": format!("{{% $states.input < {last} %}}"), "Next": "Turn", "Output": "{% $states.input + 1 %}" },
            ] },
            "Done": { "Type": "Succeed" },
        });
        run(&machine("Turn", states), &json!(0))
    };
    // Started, (n + 1) turns of two events, Done's two, Succeeded: 25,000 is even, so 24,998 is the most that succeed.
    let most = turns(12_496);
    assert!(most.result.is_ok());
    assert_eq!(most.events.len(), 24_998);
    let over = turns(12_498);
    assert_eq!(over.result.clone().unwrap_err().error, "States.Runtime");
    assert_eq!(over.events.len(), 25_000);
    assert_eq!(over.events.last().unwrap().kind, "ExecutionFailed");
}
