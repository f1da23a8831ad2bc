//! The States Language, run: one execution over a [`World`] that has the time and the tasks.
//!
//! **Invariant.** Nothing here knows whether time is real, scaled or virtual, nor what a task does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::future::{BoxFuture, Either, FutureExt as _, select};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::definition::{Graph, Kind, MapState, Pattern, Resource, Rule, State, StateMachine, Task, Until};
use crate::expression::{Context, States, Surroundings, Template, Variables, integer};
use crate::failure::{
    DATA_LIMIT_EXCEEDED, Failure, HEARTBEAT_TIMEOUT, NO_CHOICE_MATCHED, QUERY_EVALUATION_ERROR, TIMEOUT,
};
use crate::history::{Entry, History};
use crate::random::Random;
use crate::retry::{self, Attempts};

/// The most bytes of a state's input, output, arguments, result or variable.
pub const MAX_PAYLOAD_BYTES: usize = 262_144;

/// What an execution needs from outside.
pub(crate) trait World: Send + Sync {
    /// Milliseconds since the epoch.
    fn now(&self) -> i64;
    /// Passes when a time that AWS makes us wait has passed: Wait states and retry delays.
    fn wait(&self, duration: Duration) -> BoxFuture<'static, ()>;
    /// Passes when a real time has passed: limits on how long work may take.
    fn limit(&self, duration: Duration) -> BoxFuture<'static, ()>;
    /// Starts a task. What was started runs on when the future is dropped.
    fn submit(&self, call: TaskCall) -> BoxFuture<'static, Result<Submitted, Failure>>;
    /// Where answers to a task token arrive.
    fn callback(&self, token: &str) -> UnboundedReceiver<Callback>;
}

/// A task to be started.
pub(crate) struct TaskCall {
    pub(crate) resource: Resource,
    pub(crate) arguments: Value,
    pub(crate) state: String,
    pub(crate) retry_count: u64,
}

/// A started task.
pub(crate) enum Submitted {
    /// It has answered.
    Done(Value),
    /// It has begun something that is waited for.
    Running {
        /// The answer of the call that began it.
        output: Value,
        /// Its end.
        result: BoxFuture<'static, Result<Value, Failure>>,
    },
}

/// What is said about a task token.
pub(crate) enum Callback {
    Heartbeat,
    End(Result<Value, Failure>),
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    Succeeded(Value),
    Failed(Failure),
    TimedOut,
}

/// One execution.
pub(crate) struct Run {
    pub(crate) machine: Arc<StateMachine>,
    pub(crate) world: Arc<dyn World>,
    pub(crate) history: Arc<History>,
    pub(crate) random: Random,
    /// The context object's Execution and StateMachine.
    pub(crate) context: Arc<Map<String, Value>>,
    pub(crate) role_arn: String,
    pub(crate) region: String,
    /// The last event of the top level: what the execution's own end follows.
    pub(crate) last: AtomicU64,
}

/// What a branch, an iteration or the top level sees around it.
#[derive(Clone)]
struct Outer {
    variables: Variables,
    /// The context object's Map, inside one.
    map: Option<Value>,
    /// Inside a Parallel or Map: states that end with the level are recorded as aborted.
    nested: bool,
}

/// What leaving a state amounts to.
struct Exit {
    next: Option<String>,
    output: Value,
    assigned: Option<Map<String, Value>>,
}

/// The state that is being visited: everything that its fields are evaluated with.
struct Visit<'a> {
    name: &'a str,
    state: &'a State,
    outer: &'a Outer,
    /// The last event of this level.
    last: &'a AtomicU64,
    entered: String,
}

impl Run {
    /// Runs to the end and records it.
    pub(crate) async fn execute(&self, input: Value) -> Ending {
        let text = input.to_string();
        let started = json!({ "input": text, "inputDetails": { "truncated": false }, "roleArn": self.role_arn });
        let started = Entry::with("ExecutionStarted", "executionStartedEventDetails", started);
        let ending = match self.history.push(self.world.now(), 0, started) {
            Ok(_) => self.top(input).await,
            Err(failure) => Ending::Failed(failure),
        };
        let entry = match &ending {
            Ending::Succeeded(output) => Entry::with(
                "ExecutionSucceeded",
                "executionSucceededEventDetails",
                json!({ "output": output.to_string(), "outputDetails": { "truncated": false } }),
            ),
            Ending::Failed(failure) => {
                Entry::with("ExecutionFailed", "executionFailedEventDetails", error_details(failure))
            }
            Ending::TimedOut => Entry::plain("ExecutionTimedOut"),
        };
        self.history.end(self.world.now(), self.last.load(Ordering::Relaxed), entry);
        ending
    }

    async fn top(&self, input: Value) -> Ending {
        let outer = Outer { variables: Variables::new(), map: None, nested: false };
        let level = self.level(&self.machine.graph, input, outer, &self.last);
        let result = match self.machine.timeout {
            None => level.await,
            Some(most) => match select(level, self.world.limit(most)).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => return Ending::TimedOut,
            },
        };
        match result {
            Ok(output) => Ending::Succeeded(output),
            Err(failure) => Ending::Failed(failure),
        }
    }

    fn record(&self, last: &AtomicU64, entry: Entry) -> Result<u64, Failure> {
        let id = self.history.push(self.world.now(), last.load(Ordering::Relaxed), entry)?;
        last.store(id, Ordering::Relaxed);
        Ok(id)
    }

    /// Runs one level from its start to its end. Boxed, because levels nest.
    fn level<'a>(
        &'a self,
        graph: &'a Graph,
        input: Value,
        mut outer: Outer,
        last: &'a AtomicU64,
    ) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            let mut name = graph.start_at.as_str();
            let mut input = input;
            loop {
                let (known, state) = graph.states.get_key_value(name).ok_or_else(|| missing(name))?;
                let exit = self.visit(known, state, input, &outer, last).await?;
                for (variable, value) in exit.assigned.into_iter().flatten() {
                    outer.variables.insert(variable, value);
                }
                match exit.next {
                    None => return Ok(exit.output),
                    Some(next) => {
                        let (next, _) = graph.states.get_key_value(&next).ok_or_else(|| missing(&next))?;
                        name = next;
                        input = exit.output;
                    }
                }
            }
        }
        .boxed()
    }

    /// Enters a state, does what it says with retries and catches, and leaves it.
    async fn visit(
        &self,
        name: &str,
        state: &State,
        input: Value,
        outer: &Outer,
        last: &AtomicU64,
    ) -> Result<Exit, Failure> {
        let kind = state.kind.name();
        let text = checked(&input, || format!("The state '{name}' was entered with an input"))?;
        let details = json!({ "name": name, "input": text, "inputDetails": { "truncated": false } });
        self.record(last, Entry::with(format!("{kind}StateEntered"), "stateEnteredEventDetails", details))?;
        let mut aborted = Aborted { run: self, kind, last, armed: true };
        let visit = Visit { name, state, outer, last, entered: timestamp(self.world.now()) };
        let exit = self.tried(&visit, input).await;
        // On the top level a failure ends the execution, which says so itself.
        aborted.armed = exit.is_err() && outer.nested;
        let (exit, text) = exit?;
        let mut details = json!({ "name": name, "output": text, "outputDetails": { "truncated": false } });
        if let Some(assigned) = &exit.assigned {
            let texts: Map<_, _> = assigned.iter().map(|(k, v)| (k.clone(), json!(v.to_string()))).collect();
            details["assignedVariables"] = Value::Object(texts);
            details["assignedVariablesDetails"] = json!({ "truncated": false });
        }
        self.record(last, Entry::with(format!("{kind}StateExited"), "stateExitedEventDetails", details))?;
        Ok(exit)
    }

    /// Does what a state says until it succeeds, is caught or fails for good. Answers the output's text as well.
    async fn tried(&self, visit: &Visit<'_>, input: Value) -> Result<(Exit, String), Failure> {
        let returned = || format!("The state/task '{}' returned a result", visit.name);
        let mut states = States { input, context: self.context(visit), result: None, error_output: None };
        let mut attempts = Attempts::default();
        let mut retries = 0;
        loop {
            states.context.retries = retries;
            states.result = None;
            let exit = self.attempt(visit, &mut states).await;
            let exit = exit.and_then(|exit| checked(&exit.output, returned).map(|text| (exit, text)));
            let Err(failure) = exit else { return exit };
            if let Some(delay) = attempts.next(&visit.state.retry, &failure, || self.random.fraction()) {
                self.world.wait(delay).await;
                retries += 1;
                continue;
            }
            let Some(catcher) = visit.state.catch.iter().find(|catcher| retry::matches(&catcher.errors, &failure))
            else {
                return Err(failure);
            };
            states.result = None;
            states.error_output = Some(failure.output());
            let assigned = self.assigned(visit, catcher.assign.as_ref(), &states)?;
            let output = self.output(visit, catcher.output.as_ref(), &states, || failure.output())?;
            let text = checked(&output, returned)?;
            return Ok((Exit { next: Some(catcher.next.clone()), output, assigned }, text));
        }
    }

    /// One try at what a state does.
    async fn attempt(&self, visit: &Visit<'_>, states: &mut States) -> Result<Exit, Failure> {
        let state = visit.state;
        match &state.kind {
            Kind::Pass | Kind::Succeed => {}
            Kind::Fail { error, cause } => {
                let error = self.optional_text(visit, error.as_ref(), states, "Error")?;
                let cause = self.optional_text(visit, cause.as_ref(), states, "Cause")?;
                return Err(Failure::new(error, cause));
            }
            Kind::Wait(until) => {
                let duration = self.duration(visit, until, states)?;
                self.world.wait(duration).await;
            }
            Kind::Choice { rules, default } => return self.choose(visit, rules, default.as_deref(), states),
            Kind::Task(task) => states.result = Some(self.task(visit, task, states).await?),
            Kind::Parallel { arguments, branches } => {
                let input = self.evaluated(visit, arguments.as_ref(), states, "Arguments")?;
                let input = input.unwrap_or_else(|| states.input.clone());
                states.result = Some(self.parallel(visit, branches, &input).await?);
            }
            Kind::Map(map) => states.result = Some(self.map(visit, map, states).await?),
        }
        let assigned = self.assigned(visit, state.assign.as_ref(), states)?;
        let default = || states.result.as_ref().unwrap_or(&states.input).clone();
        let output = self.output(visit, state.output.as_ref(), states, default)?;
        Ok(Exit { next: state.next.clone(), output, assigned })
    }

    fn choose(
        &self,
        visit: &Visit<'_>,
        rules: &[Rule],
        default: Option<&str>,
        states: &States,
    ) -> Result<Exit, Failure> {
        for rule in rules {
            let condition = self.evaluated(visit, Some(&rule.condition), states, "Condition")?;
            match condition {
                Some(Value::Bool(false)) => {}
                Some(Value::Bool(true)) => {
                    let assigned = self.assigned(visit, rule.assign.as_ref(), states)?;
                    let output = self.output(visit, rule.output.as_ref(), states, || states.input.clone())?;
                    return Ok(Exit { next: Some(rule.next.clone()), output, assigned });
                }
                other => return Err(self.mistyped(visit, "Condition", "a boolean", &other.unwrap_or_default())),
            }
        }
        let Some(default) = default else {
            return Err(Failure::new(NO_CHOICE_MATCHED, "No choice rule matched and the state has no Default"));
        };
        // The state's own Assign and Output belong to the default, not to the rules.
        let assigned = self.assigned(visit, visit.state.assign.as_ref(), states)?;
        let output = self.output(visit, visit.state.output.as_ref(), states, || states.input.clone())?;
        Ok(Exit { next: Some(default.to_owned()), output, assigned })
    }

    fn duration(&self, visit: &Visit<'_>, until: &Until, states: &States) -> Result<Duration, Failure> {
        match until {
            Until::Seconds(seconds) => {
                Ok(self.seconds(visit, Some(seconds), states, "Seconds")?.unwrap_or(Duration::ZERO))
            }
            Until::Timestamp(moment) => {
                let text = self.optional_text(visit, Some(moment), states, "Timestamp")?;
                let Ok(moment) = OffsetDateTime::parse(&text, &Rfc3339) else {
                    return Err(self.mistyped(visit, "Timestamp", "an RFC 3339 timestamp", &json!(text)));
                };
                let millis = moment.unix_timestamp_nanos() / 1_000_000 - i128::from(self.world.now());
                Ok(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
            }
        }
    }

    async fn task(&self, visit: &Visit<'_>, task: &Task, states: &mut States) -> Result<Value, Failure> {
        let resource = &task.resource;
        let mut callback = None;
        if resource.pattern == Pattern::Callback {
            let token = self.random.uuid();
            callback = Some(self.world.callback(&token));
            states.context.token = Some(token);
        }
        let arguments = self.evaluated(visit, task.arguments.as_ref(), states, "Arguments")?;
        let arguments = arguments.unwrap_or_else(|| states.input.clone());
        let timeout = self.seconds(visit, task.timeout.as_ref(), states, "TimeoutSeconds")?;
        let heartbeat = self.seconds(visit, task.heartbeat.as_ref(), states, "HeartbeatSeconds")?;
        let text = checked(&arguments, || format!("The state/task '{}' has arguments", visit.name))?;

        let mut scheduled = json!({
            "resourceType": resource.service, "resource": resource.action, "region": self.region, "parameters": text,
        });
        if let Some(timeout) = timeout {
            scheduled["timeoutInSeconds"] = json!(timeout.as_secs());
        }
        if let Some(heartbeat) = heartbeat {
            scheduled["heartbeatInSeconds"] = json!(heartbeat.as_secs());
        }
        self.record(visit.last, Entry::with("TaskScheduled", "taskScheduledEventDetails", scheduled))?;
        let about = || json!({ "resourceType": resource.service, "resource": resource.action });
        self.record(visit.last, Entry::with("TaskStarted", "taskStartedEventDetails", about()))?;

        let call = TaskCall {
            resource: resource.clone(),
            arguments,
            state: visit.name.to_owned(),
            retry_count: states.context.retries,
        };
        let work = self.work(visit, call, callback, heartbeat);
        let result = match timeout {
            None => work.await,
            Some(most) => match select(work.boxed(), self.world.limit(most)).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => Err(Failure::new(TIMEOUT, "")),
            },
        };
        let result = result.and_then(|value| {
            checked(&value, || format!("The state/task '{}' returned a result", visit.name)).map(|text| (value, text))
        });
        let mut details = about();
        match result {
            Ok((value, text)) => {
                details["output"] = json!(text);
                details["outputDetails"] = json!({ "truncated": false });
                self.record(visit.last, Entry::with("TaskSucceeded", "taskSucceededEventDetails", details))?;
                Ok(value)
            }
            Err(failure) => {
                details["error"] = json!(failure.error);
                if !failure.cause.is_empty() {
                    details["cause"] = json!(failure.cause);
                }
                let entry = if failure.error == TIMEOUT || failure.error == HEARTBEAT_TIMEOUT {
                    Entry::with("TaskTimedOut", "taskTimedOutEventDetails", details)
                } else {
                    Entry::with("TaskFailed", "taskFailedEventDetails", details)
                };
                self.record(visit.last, entry)?;
                Err(failure)
            }
        }
    }

    /// Submits a task and waits for what its pattern waits for.
    async fn work(
        &self,
        visit: &Visit<'_>,
        call: TaskCall,
        callback: Option<UnboundedReceiver<Callback>>,
        heartbeat: Option<Duration>,
    ) -> Result<Value, Failure> {
        let about = json!({ "resourceType": call.resource.service, "resource": call.resource.action });
        let submitted = |output: &Value| {
            let mut details = about;
            details["output"] = json!(output.to_string());
            details["outputDetails"] = json!({ "truncated": false });
            self.record(visit.last, Entry::with("TaskSubmitted", "taskSubmittedEventDetails", details))
        };
        match (self.world.submit(call).await?, callback) {
            (Submitted::Done(answer), None) => Ok(answer),
            (Submitted::Running { output, result }, _) => {
                submitted(&output)?;
                result.await
            }
            (Submitted::Done(answer), Some(mut calls)) => {
                submitted(&answer)?;
                loop {
                    let call = match heartbeat {
                        None => calls.next().await,
                        Some(most) => match select(calls.next(), self.world.limit(most)).await {
                            Either::Left((call, _)) => call,
                            Either::Right(_) => return Err(Failure::new(HEARTBEAT_TIMEOUT, "")),
                        },
                    };
                    match call {
                        Some(Callback::Heartbeat) => {}
                        Some(Callback::End(result)) => return result,
                        None => return Err(Failure::new(TIMEOUT, "The task token was discarded")),
                    }
                }
            }
        }
    }

    async fn parallel(&self, visit: &Visit<'_>, branches: &[Graph], input: &Value) -> Result<Value, Failure> {
        let started = self.record(visit.last, Entry::plain("ParallelStateStarted"))?;
        let jobs = branches
            .iter()
            .map(|graph| Job { graph, input: input.clone(), outer: visit.outer.inner(None), iteration: None })
            .collect();
        self.side_by_side(visit, jobs, branches.len(), started, "Parallel").await
    }

    async fn map(&self, visit: &Visit<'_>, map: &MapState, states: &mut States) -> Result<Value, Failure> {
        let items = self.evaluated(visit, map.items.as_ref(), states, "Items")?;
        let items: Vec<Value> = match items.unwrap_or_else(|| states.input.clone()) {
            Value::Array(items) => items.into_iter().map(|item| json!({ "Value": item })).collect(),
            Value::Object(members) => {
                members.into_iter().map(|(key, item)| json!({ "Key": key, "Value": item })).collect()
            }
            other => return Err(self.mistyped(visit, "Items", "an array or an object", &other)),
        };
        let concurrency = self.whole(visit, map.concurrency.as_ref(), states, "MaxConcurrency")?.unwrap_or(0);
        let concurrency = usize::try_from(concurrency).unwrap_or(usize::MAX);

        let details = json!({ "length": items.len() });
        let started =
            self.record(visit.last, Entry::with("MapStateStarted", "mapStateStartedEventDetails", details))?;
        let mut jobs = Vec::with_capacity(items.len());
        for (index, mut item) in items.into_iter().enumerate() {
            let value = item["Value"].clone();
            item["Index"] = json!(index);
            let item = json!({ "Item": item });
            let selected = match &map.selector {
                None => value,
                Some(selector) => {
                    states.context.map = Some(item.clone());
                    self.evaluated(visit, Some(selector), states, "ItemSelector")?.unwrap_or_default()
                }
            };
            let outer = visit.outer.inner(Some(item));
            jobs.push(Job { graph: &map.processor, input: selected, outer, iteration: Some(index) });
        }
        // What the item selector saw is not what the state's own Assign and Output see.
        states.context.map.clone_from(&visit.outer.map);
        let concurrency = if concurrency == 0 { jobs.len() } else { concurrency };
        self.side_by_side(visit, jobs, concurrency, started, "Map").await
    }

    /// Runs jobs side by side; the first failure drops the others, whose functions run on unheard.
    async fn side_by_side(
        &self,
        visit: &Visit<'_>,
        jobs: Vec<Job<'_>>,
        concurrency: usize,
        started: u64,
        kind: &str,
    ) -> Result<Value, Failure> {
        let count = jobs.len();
        let mut outputs = vec![Value::Null; count];
        let running: Vec<_> = jobs.into_iter().enumerate().map(|(i, job)| self.job(visit, i, job, started)).collect();
        let mut running = stream::iter(running).buffer_unordered(concurrency.max(1));
        let mut failed = None;
        loop {
            match running.try_next().await {
                Ok(None) => break,
                Ok(Some((index, output, end))) => {
                    outputs[index] = output;
                    visit.last.store(end, Ordering::Relaxed);
                }
                Err((failure, end)) => {
                    failed = Some((failure, end));
                    break;
                }
            }
        }
        // Siblings that still run are recorded as aborted before the state itself fails.
        drop(running);
        match failed {
            None => {
                self.record(visit.last, Entry::plain(format!("{kind}StateSucceeded")))?;
                Ok(Value::Array(outputs))
            }
            Some((failure, end)) => {
                visit.last.store(end, Ordering::Relaxed);
                self.record(visit.last, Entry::plain(format!("{kind}StateFailed")))?;
                Err(failure)
            }
        }
    }

    /// One branch or iteration: its index, output and last event, or its failure and last event.
    fn job<'a>(&'a self, visit: &'a Visit<'_>, index: usize, job: Job<'a>, started: u64) -> BoxFuture<'a, JobResult> {
        async move {
            let last = AtomicU64::new(started);
            let end = || last.load(Ordering::Relaxed);
            let Some(iteration) = job.iteration else {
                let output = self.level(job.graph, job.input, job.outer, &last).await;
                return output.map(|output| (index, output, end())).map_err(|failure| (failure, end()));
            };
            let details = || json!({ "name": visit.name, "index": iteration });
            let entry = |what: &str, name| Entry::with(format!("MapIteration{what}"), name, details());
            self.record(&last, entry("Started", "mapIterationStartedEventDetails"))
                .map_err(|failure| (failure, end()))?;
            let mut aborted = AbortedIteration { run: self, last: &last, details: details(), armed: true };
            let result = self.level(job.graph, job.input, job.outer, &last).await;
            aborted.armed = false;
            let (what, name) = match &result {
                Ok(_) => ("Succeeded", "mapIterationSucceededEventDetails"),
                Err(_) => ("Failed", "mapIterationFailedEventDetails"),
            };
            self.record(&last, entry(what, name)).map_err(|failure| (failure, end()))?;
            result.map(|output| (index, output, end())).map_err(|failure| (failure, end()))
        }
        .boxed()
    }

    fn context(&self, visit: &Visit<'_>) -> Context {
        Context {
            execution: Arc::clone(&self.context),
            state: visit.name.to_owned(),
            entered: visit.entered.clone(),
            retries: 0,
            map: visit.outer.map.clone(),
            token: None,
        }
    }

    /// Evaluates a field; a failure is recorded with the field's name.
    fn evaluated(
        &self,
        visit: &Visit<'_>,
        template: Option<&Template>,
        states: &States,
        field: &'static str,
    ) -> Result<Option<Value>, Failure> {
        let Some(template) = template else { return Ok(None) };
        let around =
            Surroundings { states, variables: &visit.outer.variables, random: &self.random, now: self.world.now() };
        template.evaluate(&around).map(Some).map_err(|failure| self.evaluation_failed(visit, field, failure))
    }

    fn evaluation_failed(&self, visit: &Visit<'_>, field: &str, failure: Failure) -> Failure {
        let details = json!({
            "error": failure.error, "cause": failure.cause, "location": field, "state": visit.name,
        });
        let entry = Entry::with("EvaluationFailed", "evaluationFailedEventDetails", details);
        self.record(visit.last, entry).err().unwrap_or(failure)
    }

    fn mistyped(&self, visit: &Visit<'_>, field: &str, wanted: &str, found: &Value) -> Failure {
        let cause = format!("The field '{field}' of the state '{}' must give {wanted}, not {found}", visit.name);
        self.evaluation_failed(visit, field, Failure::new(QUERY_EVALUATION_ERROR, cause))
    }

    /// Evaluates an Assign. Like an Output it reads variables as they were when the state was entered.
    fn assigned(
        &self,
        visit: &Visit<'_>,
        assign: Option<&Template>,
        states: &States,
    ) -> Result<Option<Map<String, Value>>, Failure> {
        match self.evaluated(visit, assign, states, "Assign")? {
            Some(Value::Object(variables)) => {
                for (name, value) in &variables {
                    checked(value, || format!("The state '{}' assigns '{name}' a value", visit.name))?;
                }
                Ok(Some(variables))
            }
            _ => Ok(None),
        }
    }

    fn output(
        &self,
        visit: &Visit<'_>,
        output: Option<&Template>,
        states: &States,
        default: impl FnOnce() -> Value,
    ) -> Result<Value, Failure> {
        Ok(self.evaluated(visit, output, states, "Output")?.unwrap_or_else(default))
    }

    fn optional_text(
        &self,
        visit: &Visit<'_>,
        template: Option<&Template>,
        states: &States,
        field: &'static str,
    ) -> Result<String, Failure> {
        match self.evaluated(visit, template, states, field)? {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.mistyped(visit, field, "a string", &other)),
        }
    }

    fn whole(
        &self,
        visit: &Visit<'_>,
        template: Option<&Template>,
        states: &States,
        field: &'static str,
    ) -> Result<Option<u64>, Failure> {
        let Some(value) = self.evaluated(visit, template, states, field)? else { return Ok(None) };
        match integer(&value).and_then(|number| u64::try_from(number).ok()).filter(|number| *number <= 99_999_999) {
            Some(number) => Ok(Some(number)),
            None => Err(self.mistyped(visit, field, "an integer from 0 to 99999999", &value)),
        }
    }

    fn seconds(
        &self,
        visit: &Visit<'_>,
        template: Option<&Template>,
        states: &States,
        field: &'static str,
    ) -> Result<Option<Duration>, Failure> {
        Ok(self.whole(visit, template, states, field)?.map(Duration::from_secs))
    }
}

/// A branch or iteration to run.
struct Job<'a> {
    graph: &'a Graph,
    input: Value,
    outer: Outer,
    iteration: Option<usize>,
}

type JobResult = Result<(usize, Value, u64), (Failure, u64)>;

impl Outer {
    /// What the inside of a Parallel or Map sees: today's variables. What it assigns stays inside.
    fn inner(&self, map: Option<Value>) -> Self {
        Self { variables: self.variables.clone(), map: map.or_else(|| self.map.clone()), nested: true }
    }
}

/// Records that a nested state ended without being left: its own failure, a sibling's, or a stop.
struct Aborted<'a> {
    run: &'a Run,
    kind: &'static str,
    last: &'a AtomicU64,
    armed: bool,
}

impl Drop for Aborted<'_> {
    fn drop(&mut self) {
        if self.armed && matches!(self.kind, "Task" | "Wait" | "Parallel" | "Map") {
            let entry = Entry::plain(format!("{}StateAborted", self.kind));
            // A full history has no room for it, and the execution's end says why.
            let _ = self.run.history.push(self.run.world.now(), self.last.load(Ordering::Relaxed), entry);
        }
    }
}

/// The same for an iteration of a Map.
struct AbortedIteration<'a> {
    run: &'a Run,
    last: &'a AtomicU64,
    details: Value,
    armed: bool,
}

impl Drop for AbortedIteration<'_> {
    fn drop(&mut self) {
        if self.armed {
            let entry = Entry::with(
                "MapIterationAborted",
                "mapIterationAbortedEventDetails",
                std::mem::take(&mut self.details),
            );
            let _ = self.run.history.push(self.run.world.now(), self.last.load(Ordering::Relaxed), entry);
        }
    }
}

/// The value's JSON text, if it is within the payload quota.
fn checked(value: &Value, what: impl FnOnce() -> String) -> Result<String, Failure> {
    // Not by Display, which formats piece by piece.
    let text = serde_json::to_string(value).unwrap_or_default();
    if text.len() > MAX_PAYLOAD_BYTES {
        let cause = format!("{} with a size exceeding the maximum number of bytes service limit.", what());
        return Err(Failure::new(DATA_LIMIT_EXCEEDED, cause));
    }
    Ok(text)
}

fn missing(name: &str) -> Failure {
    Failure::new(crate::failure::RUNTIME, format!("The state '{name}' does not exist"))
}

fn error_details(failure: &Failure) -> Value {
    let mut details = Map::new();
    if !failure.error.is_empty() {
        details.insert("error".to_owned(), json!(failure.error));
    }
    if !failure.cause.is_empty() {
        details.insert("cause".to_owned(), json!(failure.cause));
    }
    Value::Object(details)
}

/// RFC 3339 in UTC with milliseconds, as the context object has it.
pub(crate) fn timestamp(millis: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000);
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    moment.ok().and_then(|moment| moment.format(format).ok()).unwrap_or_default()
}
