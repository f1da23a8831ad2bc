//! What the tests of this crate share: machines from JSON, closures as tasks, histories as lists of types.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use slipway_states::definition::StateMachine;
use slipway_states::failure::Failure;
use slipway_states::simulation::{Answer, Invocation, Simulated, simulate};

/// A machine with JSONata from its states and the first one's name.
pub(crate) fn machine(start_at: &str, states: Value) -> Arc<StateMachine> {
    parsed(&json!({ "QueryLanguage": "JSONata", "StartAt": start_at, "States": states }))
}

pub(crate) fn parsed(definition: &Value) -> Arc<StateMachine> {
    match StateMachine::parse(&definition.to_string()) {
        Ok(machine) => Arc::new(machine),
        Err(problems) => panic!("{problems:#?}"),
    }
}

/// What is wrong with a definition of JSONata states, one line each.
pub(crate) fn problems(start_at: &str, states: &Value) -> Vec<String> {
    let definition = json!({ "QueryLanguage": "JSONata", "StartAt": start_at, "States": states });
    StateMachine::parse(&definition.to_string()).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// Runs a machine whose tasks are never reached.
pub(crate) fn run(machine: &Arc<StateMachine>, input: &Value) -> Simulated {
    with(machine, input, |call| panic!("no task was expected, but {} ran", call.state))
}

/// Runs a machine with a closure that answers at once.
pub(crate) fn with(
    machine: &Arc<StateMachine>,
    input: &Value,
    mut task: impl FnMut(&Invocation<'_>) -> Result<Value, Failure> + Send + 'static,
) -> Simulated {
    timed(machine, input, move |call| (0, task(call)))
}

/// Runs a machine with a closure that answers after some seconds.
pub(crate) fn timed(
    machine: &Arc<StateMachine>,
    input: &Value,
    mut task: impl FnMut(&Invocation<'_>) -> (u64, Result<Value, Failure>) + Send + 'static,
) -> Simulated {
    simulate(machine, input, 7, move |call| {
        let (seconds, result) = task(call);
        Answer { after: Duration::from_secs(seconds), result }
    })
    .expect("the execution ends")
}

/// Answers of a task, in order of its calls, whatever the state.
pub(crate) fn answers(
    list: impl IntoIterator<Item = Result<Value, Failure>>,
) -> impl FnMut(&Invocation<'_>) -> Result<Value, Failure> + Send + 'static {
    let mut list: VecDeque<_> = list.into_iter().collect();
    move |_| list.pop_front().expect("the task is not called more often than it has answers")
}

pub(crate) fn fails<T>(error: &str, cause: &str) -> Result<T, Failure> {
    Err(Failure::new(error, cause))
}

/// A `lambda:invoke` task; `extra` is laid over it.
pub(crate) fn task(extra: Value) -> Value {
    let mut state = json!({
        "Type": "Task", "Resource": "arn:aws:states:::lambda:invoke",
        "Arguments": { "FunctionName": "slipway-step" },
    });
    overlay(&mut state, extra);
    if state.get("Next").is_none() {
        state["End"] = json!(true);
    }
    state
}

/// A Pass that ends; `extra` is laid over it.
pub(crate) fn pass(extra: Value) -> Value {
    let mut state = json!({ "Type": "Pass" });
    overlay(&mut state, extra);
    if state.get("Next").is_none() {
        state["End"] = json!(true);
    }
    state
}

fn overlay(state: &mut Value, extra: Value) {
    if let Value::Object(extra) = extra {
        for (name, value) in extra {
            state[name] = value;
        }
    }
}

/// The types of a history's events, in order.
pub(crate) fn types(simulated: &Simulated) -> Vec<&str> {
    simulated.events.iter().map(|event| event.kind.as_str()).collect()
}

/// The previousEventIds of a history's events, in order.
pub(crate) fn previous(simulated: &Simulated) -> Vec<u64> {
    simulated.events.iter().map(|event| event.previous).collect()
}

/// Moments, in virtual milliseconds since the start, at which events of a type were recorded.
pub(crate) fn moments(simulated: &Simulated, kind: &str) -> Vec<i64> {
    let start = simulated.events[0].at;
    simulated.events.iter().filter(|event| event.kind == kind).map(|event| event.at - start).collect()
}

/// The details of the first event of a type.
pub(crate) fn details(simulated: &Simulated, kind: &str) -> Value {
    let event = simulated.events.iter().find(|event| event.kind == kind).expect("the event was recorded");
    event.details.clone().expect("the event has details").1
}

/// What is shared with a closure.
pub(crate) type Record<T> = Arc<Mutex<Vec<T>>>;

/// A list that a closure fills and the test reads.
pub(crate) fn recorder<T>() -> (Record<T>, Record<T>) {
    let list = Arc::new(Mutex::new(Vec::new()));
    (Arc::clone(&list), list)
}
