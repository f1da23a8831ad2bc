//! Data: Arguments, Output, Assign, undefined values, sizes.

use serde_json::{Value, json};

use crate::support::{answers, details, machine, pass, run, task, types, with};

const LIMIT: usize = slipway_states::MAX_PAYLOAD_BYTES;

/// Guide, "Passing data between states with variables", evaluation order in an Assign field: all expressions of a
/// state read the variables as they were when it was entered.
#[test]
fn assign_and_output_read_variables_as_at_entry() {
    let states = json!({
        "First": pass(json!({ "Assign": { "a": 1, "b": 2 }, "Next": "Second" })),
        "Second": pass(json!({
            "Assign": { "a": "{% $b %}", "b": "{% $a %}" },
            "Output": ["{% $a %}", "{% $b %}"],
            "Next": "Third",
        })),
        "Third": pass(json!({ "Output": { "then": "{% $states.input %}", "now": ["{% $a %}", "{% $b %}"] } })),
    });
    let simulated = run(&machine("First", states), &json!({}));
    assert_eq!(simulated.result, Ok(json!({ "then": [1, 2], "now": [2, 1] })));
}

/// Guide, "Transforming data with JSONata": an expression that gives undefined fails with
/// States.QueryEvaluationError, since JSON cannot say undefined.
#[test]
fn an_undefined_value_fails_the_state() {
    for field in [json!("{% $states.input.missing %}"), json!({ "a": ["{% $nobody %}"] })] {
        let simulated = run(&machine("Only", json!({ "Only": pass(json!({ "Output": field })) })), &json!({}));
        let failure = simulated.result.clone().unwrap_err();
        assert_eq!(failure.error, "States.QueryEvaluationError");
        assert_eq!(types(&simulated), ["ExecutionStarted", "PassStateEntered", "EvaluationFailed", "ExecutionFailed"]);
        let details = details(&simulated, "EvaluationFailed");
        assert_eq!((&details["location"], &details["state"]), (&json!("Output"), &json!("Only")));
    }
}

/// JSONata documentation, object constructors: a key whose value is undefined is left out.
#[test]
fn an_undefined_value_inside_an_object_literal_drops_its_key() {
    let states = json!({ "Only": pass(json!({ "Output": "{% { 'a': 1, 'b': $states.input.missing } %}" })) });
    assert_eq!(run(&machine("Only", states), &json!({})).result, Ok(json!({ "a": 1 })));
}

/// Guide, "Transforming data with JSONata", error handling: States.QueryEvaluationError is retried and caught like
/// any other error, whatever the field.
#[test]
fn an_evaluation_error_can_be_caught() {
    for field in ["Arguments", "Output", "Assign", "TimeoutSeconds"] {
        let bad = if field == "Assign" { json!({ "x": "{% $nobody %}" }) } else { json!("{% $nobody %}") };
        let states = json!({
            "Work": task(json!({
                field: bad,
                "Catch": [{ "ErrorEquals": ["States.QueryEvaluationError"], "Next": "Caught" }],
            })),
            "Caught": pass(json!({ "Output": "caught" })),
        });
        let simulated = with(&machine("Work", states), &json!({}), |_| Ok(json!(1)));
        assert_eq!(simulated.result, Ok(json!("caught")), "{field}");
    }
}

/// Specification, "Choice state" with JSONata: a condition must be a boolean.
#[test]
fn a_condition_must_be_a_boolean() {
    let states = json!({
        "Pick": { "Type": "Choice", "Choices": [{ "Condition": "{% $states.input.a %}", "Next": "End" }], "Default": "End" },
        "End": pass(json!({})),
    });
    let machine = machine("Pick", states);
    assert!(run(&machine, &json!({ "a": true })).result.is_ok());
    assert_eq!(run(&machine, &json!({ "a": "true" })).result.unwrap_err().error, "States.QueryEvaluationError");
}

/// Specification, "Choice state": a rule's own Assign and Output with the rule; the state's own with the Default.
#[test]
fn a_choice_assigns_by_the_way_it_takes() {
    let states = json!({
        "Pick": {
            "Type": "Choice",
            "Choices": [{
                "Condition": "{% $states.input = 1 %}", "Next": "End", "Assign": { "way": "rule" }, "Output": "one",
            }],
            "Default": "End", "Assign": { "way": "default" }, "Output": "other",
        },
        "End": pass(json!({ "Output": ["{% $way %}", "{% $states.input %}"] })),
    });
    let machine = machine("Pick", states);
    assert_eq!(run(&machine, &json!(1)).result, Ok(json!(["rule", "one"])));
    assert_eq!(run(&machine, &json!(2)).result, Ok(json!(["default", "other"])));
}

/// Specification, "Task state": without Arguments the input is passed, without Output the result is the output.
#[test]
fn fields_have_their_defaults() {
    let states = json!({ "Put": {
        "Type": "Task", "Resource": "arn:aws:states:::events:putEvents", "End": true,
    } });
    let simulated = with(&machine("Put", states), &json!({ "Entries": [] }), |call| Ok(json!([call.arguments])));
    assert_eq!(simulated.result, Ok(json!([{ "Entries": [] }])));
}

/// Guide, "Transforming data with JSONata": `{% %}` works at any depth, other strings are taken as they are.
#[test]
fn expressions_work_at_any_depth() {
    let output = json!({ "a": [1, { "b": "{%$states.input.x%}" }], "plain": "$states.input.x", "n": null });
    let states = json!({ "Only": pass(json!({ "Output": output })) });
    let wanted = json!({ "a": [1, { "b": { "y": [2] } }], "plain": "$states.input.x", "n": null });
    assert_eq!(run(&machine("Only", states), &json!({ "x": { "y": [2] } })).result, Ok(wanted));
}

/// Guide, "Service quotas": 256 KiB for a state's input, result and output; States.DataLimitExceeded beyond.
#[test]
fn payloads_are_limited() {
    let text = |bytes: usize| Value::String("x".repeat(bytes - 2));
    let states = json!({ "Work": task(json!({ "Output": "small" })) });
    let work = machine("Work", states);
    let fits = text(LIMIT);
    assert!(with(&work, &json!({}), move |_| Ok(fits.clone())).result.is_ok());
    let large = text(LIMIT + 1);
    let simulated = with(&work, &json!({}), move |_| Ok(large.clone()));
    assert_eq!(simulated.result.unwrap_err().error, "States.DataLimitExceeded");

    let output = |field: &str| {
        let state = match field {
            "Assign" => pass(json!({ "Assign": { "x": "{% $pad('', 262143, 'x') %}" } })),
            _ => pass(json!({ field: "{% $pad('', 262143, 'x') %}" })),
        };
        run(&machine("Only", json!({ "Only": state })), &json!({})).result.unwrap_err().error
    };
    assert_eq!(output("Output"), "States.DataLimitExceeded");
    assert_eq!(output("Assign"), "States.DataLimitExceeded");
    let states = json!({ "Work": task(json!({ "Arguments": { "FunctionName": "f", "Payload": "{% $pad('', 262143, 'x') %}" } })) });
    let simulated = with(&machine("Work", states), &json!({}), |_| panic!("never called"));
    assert_eq!(simulated.result.unwrap_err().error, "States.DataLimitExceeded");
}

/// Guide, "Service quotas": bytes of UTF-8, not characters.
#[test]
fn payloads_are_counted_in_bytes() {
    let states = json!({ "Work": task(json!({ "Output": "small" })) });
    let euros = Value::String("€".repeat(LIMIT / 3));
    let simulated = with(&machine("Work", states), &json!({}), answers([Ok(euros)]));
    assert_eq!(simulated.result.unwrap_err().error, "States.DataLimitExceeded");
}

/// Guide, "Context object": what `$states.context` holds.
#[test]
fn the_context_object_names_execution_state_and_machine() {
    let states = json!({ "Only": pass(json!({ "Output": "{% $states.context %}" })) });
    let context = run(&machine("Only", states), &json!({ "in": 1 })).result.unwrap();
    assert_eq!(context["Execution"]["Input"], json!({ "in": 1 }));
    assert_eq!(context["Execution"]["StartTime"], "2026-01-01T00:00:00.000Z");
    assert_eq!(context["State"], json!({ "EnteredTime": "2026-01-01T00:00:00.000Z", "Name": "Only", "RetryCount": 0 }));
    assert_eq!(context["StateMachine"]["Name"], "simulated");
}
