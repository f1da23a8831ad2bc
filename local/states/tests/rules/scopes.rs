//! Scopes: what branches and iterations see and what leaves them.

use serde_json::{Value, json};

use crate::support::{fails, machine, moments, parsed, pass, recorder, run, task, timed, types, with};

fn parallel(branches: &[Value], extra: Value) -> Value {
    let branches: Vec<_> = branches
        .iter()
        .enumerate()
        .map(|(i, state)| json!({ "StartAt": format!("B{i}"), "States": { format!("B{i}"): state } }))
        .collect();
    let mut state = json!({ "Type": "Parallel", "Branches": branches });
    for (name, value) in extra.as_object().unwrap() {
        state[name] = value.clone();
    }
    state
}

/// Guide, "Passing data between states with variables", variable scope: branches see outer variables; what they
/// assign does not leave them. Output does.
#[test]
fn branches_see_outer_variables_and_keep_their_own() {
    let states = json!({
        "Set": pass(json!({ "Assign": { "outer": 1 }, "Next": "Both" })),
        "Both": parallel(
            &[
                pass(json!({ "Assign": { "inner": 2 }, "Output": "{% $outer + 1 %}" })),
                pass(json!({ "Output": "{% $exists($inner) %}" })),
            ],
            json!({ "Assign": { "published": "{% $states.result[0] %}" }, "Next": "After" }),
        ),
        "After": pass(json!({ "Output": ["{% $states.input %}", "{% $exists($inner) %}", "{% $published %}"] })),
    });
    assert_eq!(run(&machine("Set", states), &json!({})).result, Ok(json!([[2, false], false, 2])));
}

/// Specification, "Parallel state": Arguments is every branch's input; results come in the order of the branches,
/// not of their ends.
#[test]
fn a_parallel_passes_arguments_and_keeps_order() {
    let states = json!({ "Both": parallel(
        &[
            json!({ "Type": "Wait", "Seconds": 9, "Output": "{% $states.input.x & 'slow' %}", "End": true }),
            pass(json!({ "Output": "{% $states.input.x & 'fast' %}" })),
        ],
        json!({ "Arguments": { "x": "{% $states.input & '-' %}" }, "End": true }),
    ) });
    let simulated = run(&machine("Both", states), &json!("in"));
    assert_eq!(simulated.result, Ok(json!(["in-slow", "in-fast"])));
    assert_eq!(simulated.duration.as_secs(), 9);
}

/// Guide, "Map state": iterations see item, index and outer variables; ItemSelector makes their input; results are
/// in the order of the items; MaxConcurrency bounds how many run at once.
#[test]
fn a_map_runs_its_items() {
    let states = json!({
        "Set": pass(json!({ "Assign": { "prefix": "node" }, "Next": "Each" })),
        "Each": {
            "Type": "Map", "Items": "{% $states.input.names %}", "MaxConcurrency": 2,
            "ItemSelector": {
                "name": "{% $prefix & '-' & $states.context.Map.Item.Value %}",
                "index": "{% $states.context.Map.Item.Index %}",
            },
            "ItemProcessor": { "ProcessorConfig": { "Mode": "INLINE" }, "StartAt": "Make", "States": {
                "Make": task(json!({
                    "Arguments": { "FunctionName": "f", "Payload": "{% $states.input %}" },
                    "Output": "{% $states.result & $string($states.context.Map.Item.Index) %}",
                })),
            } },
            "End": true,
        },
    });
    let simulated = timed(&machine("Set", states), &json!({ "names": ["a", "b", "c"] }), |call| {
        let slow = call.arguments["Payload"]["index"] == 0;
        (if slow { 30 } else { 10 }, Ok(call.arguments["Payload"]["name"].clone()))
    });
    assert_eq!(simulated.result, Ok(json!(["node-a0", "node-b1", "node-c2"])));
    // The third begins when the second ends, though the first still runs.
    assert_eq!(moments(&simulated, "MapIterationStarted"), [0, 0, 10_000]);
    assert_eq!(simulated.duration.as_secs(), 30);
}

/// Guide, "Map state", Items: an array or an object; the input itself where there is no Items; an empty one gives an
/// empty array.
#[test]
fn a_map_takes_arrays_and_objects() {
    let each = |items: Value| {
        let mut state = json!({
            "Type": "Map", "End": true,
            "ItemProcessor": { "StartAt": "Item", "States": {
                "Item": pass(json!({ "Output": "{% $states.context.Map.Item %}" })),
            } },
        });
        if !items.is_null() {
            state["Items"] = items;
        }
        machine("Each", json!({ "Each": state }))
    };
    assert_eq!(run(&each(Value::Null), &json!(["x"])).result, Ok(json!([{ "Value": "x", "Index": 0 }])));
    let wanted = json!([{ "Key": "k", "Value": 5, "Index": 0 }]);
    assert_eq!(run(&each(json!("{% $states.input %}")), &json!({ "k": 5 })).result, Ok(wanted));
    assert_eq!(run(&each(json!([])), &json!({})).result, Ok(json!([])));
    let simulated = run(&each(json!("{% 'text' %}")), &json!({}));
    assert_eq!(simulated.result.unwrap_err().error, "States.QueryEvaluationError");
}

/// Specification, "Parallel state": when a branch fails the others are ended, and what they wait for with them.
#[test]
fn siblings_of_a_failed_branch_are_cancelled() {
    let (calls, seen) = recorder();
    let states = json!({ "Both": parallel(&[task(json!({})), task(json!({}))], json!({ "End": true })) });
    let simulated = timed(&machine("Both", states), &json!({}), move |call| {
        calls.lock().unwrap().push(call.state.to_owned());
        if call.state == "B0" { (3, fails("A", "")) } else { (600, Ok(json!(1))) }
    });
    assert_eq!(simulated.result.clone().unwrap_err().error, "A");
    assert_eq!(simulated.duration.as_secs(), 3);
    assert_eq!(*seen.lock().unwrap(), ["B0", "B1"]);
    let kinds = types(&simulated);
    assert_eq!(kinds.iter().filter(|kind| **kind == "TaskStateAborted").count(), 2, "{kinds:?}");
}

/// Guide, "Map state": an iteration that fails fails the state with its own error.
#[test]
fn a_failing_iteration_fails_the_map() {
    let states = json!({
        "Each": {
            "Type": "Map", "Items": [1, 2, 3], "MaxConcurrency": 1,
            "ItemProcessor": { "StartAt": "Item", "States": { "Item": task(json!({
                "Arguments": { "FunctionName": "f", "Payload": "{% $states.input %}" },
            })) } },
            "Catch": [{ "ErrorEquals": ["A"], "Next": "Caught" }], "Next": "Caught",
        },
        "Caught": pass(json!({})),
    });
    let simulated = with(&machine("Each", states), &json!({}), |call| {
        if call.arguments["Payload"] == 2 { fails("A", "second") } else { Ok(json!(0)) }
    });
    assert_eq!(simulated.result.clone().unwrap()["Cause"], "second");
    let kinds = types(&simulated);
    assert_eq!(kinds.iter().filter(|kind| **kind == "MapIterationStarted").count(), 2);
    assert!(kinds.contains(&"MapIterationFailed") && kinds.contains(&"MapStateFailed"), "{kinds:?}");
}

/// Specification, "Map state" and "Parallel state" nest, and the inner item hides the outer one.
#[test]
fn levels_nest() {
    let definition = json!({
        "QueryLanguage": "JSONata", "StartAt": "Rows",
        "States": { "Rows": {
            "Type": "Map", "Items": [[1, 2], [3]], "End": true,
            "ItemProcessor": { "StartAt": "Cells", "States": { "Cells": {
                "Type": "Map", "End": true,
                "ItemProcessor": { "StartAt": "Cell", "States": {
                    "Cell": pass(json!({ "Output": "{% $states.context.Map.Item.Value * 10 %}" })),
                } },
            } } },
        } },
    });
    assert_eq!(run(&parsed(&definition), &json!({})).result, Ok(json!([[10, 20], [30]])));
}
