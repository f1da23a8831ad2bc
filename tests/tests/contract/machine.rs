//! Every `*.asl.json`: every task names a step, passes what it takes, is retried, bounded and caught; every variable
//! is there when it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Map, Value};
use slipway_functions::steps;
use slipway_statemachine::ErrorName;
use slipway_states::definition::{Graph, Kind, State, StateMachine, Until};
use slipway_states::expression::Template;
use slipway_tests::{repository, samples};

/// Lambda's own errors that resolve by themselves (Step Functions developer guide, "Handle transient Lambda service
/// exceptions").
const LAMBDA_TRANSIENT: &[&str] = &[
    "Lambda.Unknown",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException",
];

/// Step names by what the raw definition calls them, and each state's JSON, with whether it is in a branch.
fn states() -> Vec<(String, Value, bool)> {
    fn collect(level: &Value, inner: bool, found: &mut Vec<(String, Value, bool)>) {
        for (name, state) in level["States"].as_object().unwrap() {
            found.push((name.clone(), state.clone(), inner));
            for branch in state["Branches"].as_array().into_iter().flatten() {
                collect(branch, true, found);
            }
        }
    }
    let mut found = Vec::new();
    for machine in repository::machines().unwrap() {
        let definition = repository::read_json(&format!("statemachine/{machine}.asl.json")).unwrap();
        let before = found.len();
        collect(&definition, false, &mut found);
        found[before..].iter_mut().for_each(|(name, ..)| *name = format!("{machine}: {name}"));
    }
    found
}

fn tasks() -> Vec<(String, Value, bool)> {
    states().into_iter().filter(|(_, state, _)| state["Type"] == "Task").collect()
}

/// The step that a task calls, by the substitution in its FunctionName.
fn step_of(task: &Value) -> String {
    let function = task["Arguments"]["FunctionName"].as_str().unwrap();
    let name = function.strip_prefix("${").and_then(|rest| rest.strip_suffix("Function}"));
    samples::kebab(name.unwrap_or_else(|| panic!("{function} is no ${{<Step>Function}}")))
}

fn machines() -> Vec<(String, StateMachine)> {
    let parsed = |machine: String| {
        let definition = repository::definition(&machine).unwrap();
        let parsed = StateMachine::parse(&definition).unwrap_or_else(|problems| panic!("{machine}: {problems:#?}"));
        (machine, parsed)
    };
    repository::machines().unwrap().into_iter().map(parsed).collect()
}

#[test]
fn asl_validator_agrees() {
    for machine in repository::machines().unwrap() {
        let checked = Command::new(repository::tool("node/bin/node").unwrap())
            .arg(repository::tool("node/node_modules/asl-validator/dist/bin/asl-validator.js").unwrap())
            .arg("--json-path")
            .arg(repository::root().join(format!("statemachine/{machine}.asl.json")))
            .output()
            .unwrap();
        assert!(checked.status.success(), "{machine}: {}", String::from_utf8_lossy(&checked.stdout));
    }
}

#[test]
fn every_task_calls_a_step_and_every_step_is_called() {
    let called: BTreeSet<String> = tasks()
        .iter()
        .map(|(name, task, _)| {
            assert_eq!(task["Resource"], "arn:aws:states:::lambda:invoke", "{name}");
            step_of(task)
        })
        .collect();
    let known: BTreeSet<String> = steps::ALL.iter().map(|step| step.name.to_owned()).collect();
    assert_eq!(called, known);
}

#[test]
fn every_task_passes_what_its_step_takes_and_nothing_else() {
    for (name, task, _) in tasks() {
        let step = steps::find(&step_of(&task)).unwrap();
        let schema = (step.input)().to_value();
        let passed: BTreeSet<String> = task["Arguments"]["Payload"].as_object().unwrap().keys().cloned().collect();
        let misfits: Vec<String> = shapes(&schema)
            .iter()
            .map(|shape| {
                let (required, known) = (names(&shape["required"]), names(&shape["properties"]));
                let missing: Vec<_> = required.difference(&passed).collect();
                let unknown: Vec<_> = passed.difference(&known).collect();
                if missing.is_empty() && unknown.is_empty() {
                    String::new()
                } else {
                    format!("lacks {missing:?}, has {unknown:?} too many")
                }
            })
            .collect();
        assert!(misfits.iter().any(String::is_empty), "{name} does not pass what {} takes: {misfits:?}", step.name);
    }
}

/// The shapes that a step's input may have: one, or several of which one is the machine's.
fn shapes(schema: &Value) -> Vec<Value> {
    let Some(alternatives) = schema["anyOf"].as_array() else { return vec![schema.clone()] };
    let resolve = |alternative: &Value| match alternative["$ref"].as_str() {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap().clone(),
        None => alternative.clone(),
    };
    alternatives.iter().map(resolve).collect()
}

/// The names in a schema's `required` or `properties`.
fn names(keyword: &Value) -> BTreeSet<String> {
    match keyword {
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::Object(members) => members.keys().cloned().collect(),
        _ => BTreeSet::new(),
    }
}

#[test]
fn every_task_is_bounded_and_retries_what_resolves_by_itself() {
    for (name, task, _) in tasks() {
        let timeout = task["TimeoutSeconds"].as_u64().unwrap_or_default();
        assert!((1..=120).contains(&timeout), "{name}: a function outlives its execution by at most 120 s");
        let retriers: Vec<&Map<String, Value>> =
            task["Retry"].as_array().into_iter().flatten().filter_map(Value::as_object).collect();
        let retrier = |error: &str| {
            let named =
                |retrier: &&&Map<String, Value>| retrier["ErrorEquals"].as_array().unwrap().contains(&error.into());
            *retriers.iter().find(named).unwrap_or_else(|| panic!("{name} does not retry {error}"))
        };
        for error in LAMBDA_TRANSIENT.iter().copied().chain(ErrorName::RETRIED.iter().map(|name| name.as_str())) {
            let retrier = retrier(error);
            let number = |field: &str| retrier[field].as_f64().unwrap();
            assert!(number("BackoffRate") > 1.0 && number("MaxAttempts") >= 3.0, "{name}: {error}");
            assert!(number("MaxDelaySeconds") > number("IntervalSeconds"), "{name}: {error}");
            assert_eq!(retrier["JitterStrategy"], "FULL", "{name}: {error}");
        }
        // A deleted queue's name is refused for 60 s; with full jitter a delay is half its cap on average.
        let pending = retrier("PropagationPending");
        let number = |field: &str| pending[field].as_f64().unwrap();
        let (mut delay, mut expected, mut attempts) = (number("IntervalSeconds"), 0.0, number("MaxAttempts"));
        while attempts >= 1.0 {
            expected += delay.min(number("MaxDelaySeconds")) / 2.0;
            delay *= number("BackoffRate");
            attempts -= 1.0;
        }
        assert!(expected >= 80.0, "{name} gives up on propagation after {expected} s");
    }
}

#[test]
fn every_failure_is_caught_and_closes_the_run() {
    for (machine, definition) in machines() {
        let top = &definition.graph.states;
        for (name, state) in top {
            if !matches!(state.kind, Kind::Task(_) | Kind::Parallel { .. }) {
                continue;
            }
            let Some((last, named)) = state.catch.split_last() else { panic!("{machine}: {name} has no catcher") };
            assert_eq!(last.errors, ["States.ALL"], "{machine}: {name}");
            let way = way_out(top, &last.next);
            let ends = top[way.last().unwrap().as_str()].kind.name();
            assert_eq!(ends, "Fail", "{machine}: {name} is caught to {way:?}");
            let closes = way.iter().any(|state| state == "CloseFailed");
            // Before the run is opened there is nothing to close, closing is tried once, and who only looks opens none.
            let opens = top.contains_key("CloseFailed");
            let exempt = !opens || ["OpenRun", "OpenTeardown", "Plan", "CloseFailed"].contains(&name.as_str());
            assert_eq!(closes, !exempt, "{machine}: {name} is caught to {way:?}");
            // A machine may go on after an error that it knows by name.
            for catcher in named {
                let known = |error: &String| ErrorName::ALL.iter().any(|name| name.as_str() == error);
                assert!(catcher.errors.iter().all(known), "{machine}: {name} catches {:?}", catcher.errors);
            }
        }
    }
    for (name, state, inner) in states() {
        assert!(!inner || state.get("Catch").is_none(), "{name}: a branch leaves its failures to the Parallel");
    }
}

/// The states from one to the end of the machine, along Next.
fn way_out(states: &BTreeMap<String, State>, from: &str) -> Vec<String> {
    let mut way = vec![from.to_owned()];
    while let Some(next) = &states[way.last().unwrap().as_str()].next {
        way.push(next.clone());
    }
    way
}

#[test]
fn every_error_that_the_machine_raises_has_a_page_in_the_runbook() {
    let known: BTreeSet<&str> = ErrorName::ALL.iter().map(|name| name.as_str()).collect();
    let mut raised = 0;
    for (name, state, _) in states() {
        let own = [&state["Error"]].into_iter();
        let rules = state["Choices"].as_array().into_iter().flatten().map(|rule| &rule["Assign"]["caught"]["Error"]);
        for error in own.chain(rules).filter_map(Value::as_str).filter(|error| !error.starts_with("{%")) {
            assert!(known.contains(error), "{name} raises {error}");
            raised += 1;
        }
    }
    assert!(raised > 8, "{raised} errors found");
}

#[test]
fn every_variable_is_assigned_on_every_path_to_its_reading() {
    for (name, machine) in machines() {
        let mut read = BTreeSet::new();
        check_variables(&machine.graph, &BTreeSet::new(), &BTreeSet::new(), &mut read);
        let assigned = assigned_anywhere(&machine.graph);
        let unread: Vec<_> = assigned.difference(&read).collect();
        assert!(unread.is_empty(), "{name}: nobody reads {unread:?}");
    }
}

/// Follows every path of a level. `given` is assigned when it begins; `outer` are the names of the levels around it,
/// which a level must not assign (Step Functions developer guide, "Workflow variables", scope).
fn check_variables(graph: &Graph, given: &BTreeSet<String>, outer: &BTreeSet<String>, read: &mut BTreeSet<String>) {
    let own = assigned_here(graph);
    let shadowed: Vec<_> = own.intersection(outer).collect();
    assert!(shadowed.is_empty(), "{shadowed:?} are assigned in a branch and outside of it");
    let around: BTreeSet<String> = own.union(outer).cloned().collect();

    let mut at_entry: BTreeMap<&str, BTreeSet<String>> = BTreeMap::from([(graph.start_at.as_str(), given.clone())]);
    let mut open = vec![graph.start_at.as_str()];
    while let Some(name) = open.pop() {
        let entry = at_entry[name].clone();
        for (next, assigns) in ways(&graph.states[name]) {
            let mut leaving = entry.clone();
            leaving.extend(assigns);
            let known = at_entry.get(next).cloned();
            let joined =
                known.as_ref().map_or(leaving.clone(), |known| known.intersection(&leaving).cloned().collect());
            if known.as_ref() != Some(&joined) {
                at_entry.insert(next, joined);
                open.push(next);
            }
        }
    }
    for (name, state) in &graph.states {
        let entry = at_entry.get(name.as_str()).unwrap_or_else(|| panic!("no way leads to {name}"));
        for template in templates(state) {
            template.each_query(&mut |query| {
                for variable in query.free_variables() {
                    assert!(
                        entry.contains(variable),
                        "{name} reads ${variable}, which is not assigned on every way there"
                    );
                    read.insert(variable.to_owned());
                }
            });
        }
        if let Kind::Parallel { branches, .. } = &state.kind {
            for branch in branches {
                check_variables(branch, entry, &around, read);
            }
        }
    }
}

/// Where a state may go, and what it has assigned by then.
fn ways(state: &State) -> Vec<(&str, BTreeSet<String>)> {
    let mut ways: Vec<(&str, BTreeSet<String>)> = Vec::new();
    ways.extend(state.next.as_deref().map(|next| (next, keys(state.assign.as_ref()))));
    ways.extend(state.catch.iter().map(|catcher| (catcher.next.as_str(), keys(catcher.assign.as_ref()))));
    if let Kind::Choice { rules, default } = &state.kind {
        ways.extend(rules.iter().map(|rule| (rule.next.as_str(), keys(rule.assign.as_ref()))));
        ways.extend(default.as_deref().map(|next| (next, keys(state.assign.as_ref()))));
    }
    ways
}

fn keys(assign: Option<&Template>) -> BTreeSet<String> {
    match assign {
        Some(Template::Object(parts)) => parts.iter().map(|(name, _)| name.clone()).collect(),
        Some(Template::Literal(Value::Object(fields))) => fields.keys().cloned().collect(),
        _ => BTreeSet::new(),
    }
}

fn assigned_here(graph: &Graph) -> BTreeSet<String> {
    graph.states.values().flat_map(|state| ways(state).into_iter().flat_map(|(_, assigns)| assigns)).collect()
}

fn assigned_anywhere(graph: &Graph) -> BTreeSet<String> {
    let mut names = assigned_here(graph);
    for state in graph.states.values() {
        if let Kind::Parallel { branches, .. } = &state.kind {
            names.extend(branches.iter().flat_map(assigned_anywhere));
        }
    }
    names
}

fn templates(state: &State) -> Vec<&Template> {
    let mut found: Vec<&Template> = state.assign.iter().chain(&state.output).collect();
    for catcher in &state.catch {
        found.extend(catcher.assign.iter().chain(&catcher.output));
    }
    match &state.kind {
        Kind::Fail { error, cause } => found.extend(error.iter().chain(cause)),
        Kind::Wait(Until::Seconds(at) | Until::Timestamp(at)) => {
            found.push(at);
        }
        Kind::Choice { rules, .. } => {
            for rule in rules {
                found.push(&rule.condition);
                found.extend(rule.assign.iter().chain(&rule.output));
            }
        }
        Kind::Task(task) => found.extend(task.arguments.iter().chain(&task.timeout).chain(&task.heartbeat)),
        Kind::Parallel { arguments, .. } => found.extend(arguments),
        Kind::Pass | Kind::Succeed | Kind::Map(_) => {}
    }
    found
}
