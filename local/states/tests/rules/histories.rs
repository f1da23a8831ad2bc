//! Histories: AWS's types, ids and details.

use serde_json::json;

use crate::support::{answers, details, fails, machine, pass, previous, recorder, run, task, types, with};

/// Guide, GetExecutionHistory in the API reference: one Lambda task through the optimised integration. The first
/// state's previousEventId is 0, as the first event's.
#[test]
fn a_lambda_task_tells_its_story() {
    let states = json!({ "Work": task(json!({
        "Arguments": { "FunctionName": "slipway-step:live", "Payload": { "a": 1 } },
        "TimeoutSeconds": 60, "Output": "{% $states.result.Payload %}", "Assign": { "x": [1] },
    })) });
    let simulated =
        with(&machine("Work", states), &json!({ "in": true }), |_| Ok(json!({ "Payload": { "done": true } })));
    assert_eq!(
        types(&simulated),
        [
            "ExecutionStarted",
            "TaskStateEntered",
            "TaskScheduled",
            "TaskStarted",
            "TaskSucceeded",
            "TaskStateExited",
            "ExecutionSucceeded",
        ]
    );
    assert_eq!(previous(&simulated), [0, 0, 2, 3, 4, 5, 6]);
    assert_eq!(simulated.events.iter().map(|event| event.id).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    let fine = json!({ "truncated": false });
    assert_eq!(
        details(&simulated, "ExecutionStarted"),
        json!({
            "input": "{\"in\":true}", "inputDetails": fine, "roleArn": "arn:aws:iam::111122223333:role/simulated",
        })
    );
    assert_eq!(
        details(&simulated, "TaskStateEntered"),
        json!({
            "name": "Work", "input": "{\"in\":true}", "inputDetails": fine,
        })
    );
    assert_eq!(
        details(&simulated, "TaskScheduled"),
        json!({
            "resourceType": "lambda", "resource": "invoke", "region": "eu-west-1",
            "parameters": "{\"FunctionName\":\"slipway-step:live\",\"Payload\":{\"a\":1}}", "timeoutInSeconds": 60,
        })
    );
    assert_eq!(details(&simulated, "TaskStarted"), json!({ "resourceType": "lambda", "resource": "invoke" }));
    assert_eq!(
        details(&simulated, "TaskSucceeded"),
        json!({
            "resourceType": "lambda", "resource": "invoke", "output": "{\"Payload\":{\"done\":true}}", "outputDetails": fine,
        })
    );
    assert_eq!(
        details(&simulated, "TaskStateExited"),
        json!({
            "name": "Work", "output": "{\"done\":true}", "outputDetails": fine,
            "assignedVariables": { "x": "[1]" }, "assignedVariablesDetails": fine,
        })
    );
    let event = simulated.events[3].json(true);
    assert_eq!(
        event,
        json!({
            "timestamp": 1_767_225_600.0, "type": "TaskStarted", "id": 4, "previousEventId": 3,
            "taskStartedEventDetails": { "resourceType": "lambda", "resource": "invoke" },
        })
    );
    assert!(simulated.events[2].json(false)["taskScheduledEventDetails"].get("parameters").is_none());
}

/// A retry is scheduled again without leaving the state; a catch leaves it.
#[test]
fn a_retry_stays_in_its_state() {
    let states = json!({
        "Work": task(json!({
            "Retry": [{ "ErrorEquals": ["A"] }], "Catch": [{ "ErrorEquals": ["B"], "Next": "Caught" }],
        })),
        "Caught": { "Type": "Succeed" },
    });
    let simulated = with(&machine("Work", states), &json!({}), answers([fails("A", "x"), fails("B", "y")]));
    assert_eq!(
        types(&simulated),
        [
            "ExecutionStarted",
            "TaskStateEntered",
            "TaskScheduled",
            "TaskStarted",
            "TaskFailed",
            "TaskScheduled",
            "TaskStarted",
            "TaskFailed",
            "TaskStateExited",
            "SucceedStateEntered",
            "SucceedStateExited",
            "ExecutionSucceeded",
        ]
    );
    assert_eq!(previous(&simulated), [0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(
        details(&simulated, "TaskFailed"),
        json!({
            "resourceType": "lambda", "resource": "invoke", "error": "A", "cause": "x",
        })
    );
}

/// Branches follow their own line from ParallelStateStarted. A task that fails its branch is recorded as aborted, off
/// the line: the Parallel's failure follows the task's.
#[test]
fn branches_have_lines_of_their_own() {
    let states = json!({ "Both": {
        "Type": "Parallel", "Next": "Done", "Catch": [{ "ErrorEquals": ["States.ALL"], "Next": "Done" }],
        "Branches": [{ "StartAt": "Work", "States": { "Work": task(json!({})) } }],
    }, "Done": pass(json!({})) });
    let parallel = machine("Both", states);
    let simulated = with(&parallel, &json!({}), |_| fails("A", ""));
    assert_eq!(
        types(&simulated),
        [
            "ExecutionStarted",
            "ParallelStateEntered",
            "ParallelStateStarted",
            "TaskStateEntered",
            "TaskScheduled",
            "TaskStarted",
            "TaskFailed",
            "TaskStateAborted",
            "ParallelStateFailed",
            "ParallelStateExited",
            "PassStateEntered",
            "PassStateExited",
            "ExecutionSucceeded",
        ]
    );
    assert_eq!(previous(&simulated), [0, 0, 2, 3, 4, 5, 6, 7, 7, 9, 10, 11, 12]);

    let simulated = with(&parallel, &json!({}), |_| Ok(json!(1)));
    assert_eq!(types(&simulated)[7..10], ["TaskStateExited", "ParallelStateSucceeded", "ParallelStateExited"]);
}

/// Two branches side by side: both begin after ParallelStateStarted.
#[test]
fn branches_begin_at_the_parallels_start() {
    let branch = |name: &str| json!({ "StartAt": name, "States": { name: pass(json!({})) } });
    let states = json!({ "Both": { "Type": "Parallel", "End": true, "Branches": [branch("L"), branch("R")] } });
    let simulated = run(&machine("Both", states), &json!({}));
    let starts: Vec<_> =
        simulated.events.iter().filter(|event| event.kind == "PassStateEntered").map(|event| event.previous).collect();
    assert_eq!(starts, [3, 3]);
}

/// Iterations are named and numbered.
#[test]
fn iterations_are_recorded() {
    let states = json!({ "Each": { "Type": "Map", "Items": [7], "End": true, "ItemProcessor": {
        "StartAt": "Item", "States": { "Item": pass(json!({})) },
    } } });
    let simulated = run(&machine("Each", states), &json!({}));
    assert_eq!(
        types(&simulated),
        [
            "ExecutionStarted",
            "MapStateEntered",
            "MapStateStarted",
            "MapIterationStarted",
            "PassStateEntered",
            "PassStateExited",
            "MapIterationSucceeded",
            "MapStateSucceeded",
            "MapStateExited",
            "ExecutionSucceeded",
        ]
    );
    assert_eq!(previous(&simulated), [0, 0, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(details(&simulated, "MapStateStarted"), json!({ "length": 1 }));
    assert_eq!(details(&simulated, "MapIterationStarted"), json!({ "name": "Each", "index": 0 }));
}

/// `startExecution.sync:2` submits, then succeeds with the end of what it began.
#[test]
fn a_job_is_submitted_before_it_succeeds() {
    let states = json!({ "Child": {
        "Type": "Task", "Resource": "arn:aws:states:::states:startExecution.sync:2", "End": true,
        "Arguments": { "StateMachineArn": "arn", "Input": {} },
    } });
    let (resources, seen) = recorder();
    let simulated = with(&machine("Child", states), &json!({}), move |call| {
        resources.lock().unwrap().push(call.resource.to_owned());
        Ok(json!({ "Status": "SUCCEEDED" }))
    });
    assert_eq!(types(&simulated)[2..6], ["TaskScheduled", "TaskStarted", "TaskSubmitted", "TaskSucceeded"]);
    assert_eq!(details(&simulated, "TaskScheduled")["resourceType"], "states");
    assert_eq!(details(&simulated, "TaskScheduled")["resource"], "startExecution.sync:2");
    assert_eq!(*seen.lock().unwrap(), ["arn:aws:states:::states:startExecution.sync:2"]);
}
