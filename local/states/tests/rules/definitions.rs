//! What is refused when a machine is created.

use serde_json::{Value, json};
use slipway_states::definition::StateMachine;

use crate::support::{pass, problems, task};

/// The one problem of a single state, without its code.
fn problem(state: &Value) -> String {
    let found = problems("Only", &json!({ "Only": state, "Next": pass(json!({})) }));
    let found: Vec<_> = found.iter().filter(|line| !line.contains("\"Next\" is not reachable")).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

fn output(expression: &str) -> String {
    problem(&pass(json!({ "Output": expression })))
}

/// Specification, "Transitions": every target exists, every state is reached.
#[test]
fn transitions_lead_somewhere() {
    let found = problems("Nowhere", &json!({ "A": pass(json!({ "Next": "B" })), "C": pass(json!({})) }));
    assert_eq!(
        found,
        [
            "MISSING_TRANSITION_TARGET: Missing 'StartAt' target: Nowhere at /StartAt",
            "MISSING_TRANSITION_TARGET: Missing 'Next' target: B at /States/A/Next",
            "MISSING_TRANSITION_TARGET: State \"A\" is not reachable. at /States/A",
            "MISSING_TRANSITION_TARGET: State \"C\" is not reachable. at /States/C",
        ]
    );
    let state = task(json!({ "Catch": [{ "ErrorEquals": ["States.ALL"], "Next": "Nobody" }] }));
    assert!(problem(&state).contains("Missing 'Catch/0/Next' target: Nobody"));
    assert!(problem(&json!({ "Type": "Pass" })).contains("either 'Next'"));
    assert!(problem(&json!({ "Type": "Pass", "Next": "Next", "End": true })).contains("either 'Next'"));
}

/// A branch may not leave its level.
#[test]
fn transitions_stay_on_their_level() {
    let branch = json!({ "StartAt": "In", "States": { "In": pass(json!({ "Next": "Out" })) } });
    let both = json!({ "Type": "Parallel", "Branches": [branch], "Next": "Out" });
    let found = problems("Both", &json!({ "Both": both, "Out": pass(json!({})) }));
    assert_eq!(
        found,
        ["MISSING_TRANSITION_TARGET: Missing 'Next' target: Out at /States/Both/Branches/0/States/In/Next"]
    );
}

/// Guide, "Transforming data with JSONata", restrictions: no context document, so no bare names, no `$`, no `$$`.
#[test]
fn an_expression_has_no_context_document() {
    for expression in ["{% name %}", "{% $ %}", "{% $.name %}", "{% $uppercase(name) %}", "{% *.x %}"] {
        assert!(output(expression).contains("does not give; start from $states"), "{expression}");
    }
    assert!(output("{% $$.name %}").contains("`$$` has no meaning"));
    for expression in [
        "{% $states.input.items[status = 'ACTIVE'].name %}",
        "{% $map($states.input.items, function($i) { $i.name }) %}",
        "{% ($f := function($x) { $x + 1 }; $f($states.input.n)) %}",
        "{% $states.input.items.{ 'n': name, 'up': $uppercase(name) } %}",
        "{% $parse($states.input.text).name %}",
        "{% $states.input.items^(>size).$.name %}",
    ] {
        let found = problems("Only", &json!({ "Only": pass(json!({ "Output": expression })) }));
        assert!(found.is_empty(), "{expression}: {found:?}");
    }
}

/// Guide, "Transforming data with JSONata": version 2.0.6, which has neither `??` nor `?:`, and no `$eval`.
#[test]
fn an_expression_is_jsonata_2_0_6() {
    assert!(output("{% $states.input.a ?? 1 %}").contains("do not exist in JSONata 2.0.6"));
    assert!(output("{% [1, $states.input.a ?: 1] %}").contains("do not exist in JSONata 2.0.6"));
    assert!(output("{% $eval('1') %}").contains("$eval is not supported"));
    assert!(output("{% $states.input. %}").contains("JSONata: "));
    assert!(problem(&pass(json!({ "Output": { "deep": ["{% 1 + %}"] } }))).contains("/States/Only/Output/deep/0"));
}

/// Guide, "Transforming data with JSONata": opened is closed, at the very ends of the string.
#[test]
fn an_expression_is_opened_and_closed() {
    assert!(output("{% 1").contains("must end with `%}`"));
    assert!(output("1 %}").contains("must start with `{%`"));
}

/// Guide, "Transforming data with JSONata": `$states.result` and `$states.errorOutput` are refused at creation where
/// they do not exist; `states` is no variable name.
#[test]
fn the_members_of_states_have_their_places() {
    assert!(output("{% $states.result %}").contains("$states.result is not available"));
    let early = task(json!({ "Arguments": { "FunctionName": "f", "Payload": "{% $states.result %}" } }));
    assert!(problem(&early).contains("$states.result is not available"));
    assert!(problem(&task(json!({ "Output": "{% $states.errorOutput %}" }))).contains("$states.errorOutput"));
    assert!(output("{% $states.inptu %}").contains("$states.inptu"));
    assert!(problem(&pass(json!({ "Assign": { "states": 1 } }))).contains("reserved"));
    assert!(problem(&pass(json!({ "Assign": { "a-b": 1 } }))).contains("not a variable name"));
}

/// Guide, "Passing data between states with variables", variable scope: a name of an outer scope is taken.
#[test]
fn an_inner_scope_has_names_of_its_own() {
    let inner = |name: &str| {
        let branch = json!({ "StartAt": "In", "States": { "In": pass(json!({ "Assign": { name: 1 } })) } });
        problems(
            "Both",
            &json!({
                "Both": { "Type": "Parallel", "Branches": [branch], "Next": "Out" },
                "Out": pass(json!({ "Assign": { "taken": "{% 1 %}" } })),
            }),
        )
    };
    assert!(inner("free").is_empty());
    assert_eq!(
        inner("taken"),
        ["SCHEMA_VALIDATION_FAILED: The variable 'taken' is already assigned in an outer scope at \
         /States/Both/Branches/0/States/In/Assign"]
    );
}

/// Guide, "Handling errors": States.ALL alone in ErrorEquals and last in the list.
#[test]
fn states_all_stands_alone_and_last() {
    let retry = |entries: Value| problem(&task(json!({ "Retry": entries })));
    assert!(retry(json!([{ "ErrorEquals": ["A", "States.ALL"] }])).contains("alone"));
    assert!(retry(json!([{ "ErrorEquals": ["States.ALL"] }, { "ErrorEquals": ["A"] }])).contains("last"));
    assert!(retry(json!([{ "ErrorEquals": [] }])).contains("non-empty"));
    assert!(retry(json!([{ "ErrorEquals": ["States.Nonsense"] }])).contains("not an error name"));
    let catch = json!([{ "ErrorEquals": ["States.ALL"], "Next": "Next" }, { "ErrorEquals": ["A"], "Next": "Next" }]);
    let found = problems("Only", &json!({ "Only": task(json!({ "Catch": catch })), "Next": pass(json!({})) }));
    assert!(found.len() == 1 && found[0].contains("last"), "{found:?}");
}

/// Specification, "Retrying after error": bounds of the numbers.
#[test]
fn retriers_have_bounds() {
    let retry = |entry: Value| {
        let mut entry = entry;
        entry["ErrorEquals"] = json!(["A"]);
        problem(&task(json!({ "Retry": [entry] })))
    };
    assert!(retry(json!({ "IntervalSeconds": 0 })).contains("from 1"));
    assert!(retry(json!({ "MaxAttempts": -1 })).contains("from 0"));
    assert!(retry(json!({ "BackoffRate": 0.5 })).contains("at least 1.0"));
    assert!(retry(json!({ "IntervalSeconds": 5, "MaxDelaySeconds": 5 })).contains("greater than IntervalSeconds"));
    assert!(retry(json!({ "JitterStrategy": "HALF" })).contains("FULL or NONE"));
}

/// Fields that a state type does not have, JSONPath's among them, are refused, not ignored.
#[test]
fn unknown_fields_are_refused() {
    for field in ["InputPath", "Parameters", "ResultPath", "Result", "Nonsense"] {
        assert!(problem(&pass(json!({ field: {} }))).contains(&format!("'{field}' is not supported")), "{field}");
    }
    assert!(problem(&json!({ "Type": "Nap", "End": true })).contains("'Nap' is not supported"));
    assert!(
        problem(&task(json!({ "Resource": "arn:aws:lambda:eu-west-1:111122223333:function:f" }))).contains("resource")
    );
    assert!(problem(&task(json!({ "TimeoutSeconds": 0 }))).contains("from 1"));
    assert!(problem(&task(json!({ "TimeoutSeconds": 5, "HeartbeatSeconds": 5 }))).contains("smaller"));
    assert!(problem(&json!({ "Type": "Wait", "End": true })).contains("either 'Seconds'"));
}

/// Specification, "States": names are unique in the whole machine and at most 80 characters long.
#[test]
fn names_are_unique_and_short() {
    let branch = json!({ "StartAt": "Same", "States": { "Same": pass(json!({})) } });
    let both = json!({ "Type": "Parallel", "Branches": [branch, branch], "End": true });
    assert!(problems("Both", &json!({ "Both": both }))[0].starts_with("DUPLICATE_STATE_NAME"));
    let long = "x".repeat(81);
    assert!(problems(&long, &json!({ long.as_str(): pass(json!({})) }))[0].contains("1 to 80 characters"));
}

/// The query language is JSONata, said once at the top or in every state.
#[test]
fn the_query_language_is_jsonata() {
    let definition = |top: Value| {
        let mut definition = json!({ "StartAt": "Only", "States": { "Only": pass(json!({})) } });
        if !top.is_null() {
            definition["QueryLanguage"] = top;
        }
        StateMachine::parse(&definition.to_string()).is_ok()
    };
    assert!(definition(json!("JSONata")));
    assert!(!definition(json!("JSONPath")));
    assert!(!definition(Value::Null));
    assert_eq!(StateMachine::parse("{").unwrap_err()[0].code, "INVALID_JSON_DESCRIPTION");
}
