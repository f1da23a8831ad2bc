//! The service: state machines, executions and task tokens behind the API's own actions (JSON 1.0 bodies).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::sync::{broadcast, oneshot, watch};

use crate::clock::ScaledClock;
use crate::definition::{Pattern, Problem, StateMachine};
use crate::failure::{Failure, TASK_FAILED, TaskError};
use crate::history::{Entry, History, seconds};
use crate::interpreter::{Callback, Ending, MAX_PAYLOAD_BYTES, Run, Submitted, TaskCall, World, timestamp};
use crate::random::Random;

/// What tasks call. Implementations work in the name of the machine's role.
#[async_trait]
pub trait TaskInvoker: Send + Sync + 'static {
    /// Invokes a function, synchronously. Answers the function's own payload.
    ///
    /// # Errors
    /// The function's error ([`Failure::from_function_error`]), or Lambda's own: `Lambda.TooManyRequestsException`,
    /// `Lambda.ServiceException`, `Lambda.ResourceNotFoundException`, …
    async fn invoke_lambda(&self, role_arn: &str, function_name: &str, payload: Value) -> Result<Value, TaskError>;

    /// Calls any other integration, `arn:aws:states:::<service>:<action>`, with the API's arguments in PascalCase.
    /// For `.waitForTaskToken` the answer only begins the task.
    ///
    /// # Errors
    /// `<Service>.<Code>`, for example `DynamoDB.ConditionalCheckFailedException`; `States.Runtime` where the
    /// integration is not offered.
    async fn call(&self, role_arn: &str, resource: &str, arguments: Value) -> Result<Value, TaskError>;
}

/// What the service is made of.
pub struct StepFunctionsConfig {
    /// For waits and retry delays.
    pub clock: ScaledClock,
    /// What tasks call.
    pub tasks: Arc<dyn TaskInvoker>,
    /// Twelve digits, part of every ARN.
    pub account: String,
    /// Part of every ARN.
    pub region: String,
}

/// An error of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// AWS's code: `ExecutionDoesNotExist`.
    pub code: String,
    /// For a person.
    pub message: String,
}

impl ApiError {
    fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// Step Functions. Clones share everything.
#[derive(Clone)]
pub struct StepFunctions {
    inner: Arc<Inner>,
}

struct Inner {
    config: StepFunctionsConfig,
    machines: Mutex<BTreeMap<String, Machine>>,
    executions: Mutex<BTreeMap<String, Arc<Execution>>>,
    tokens: Mutex<BTreeMap<String, UnboundedSender<Callback>>>,
    changes: broadcast::Sender<Value>,
    random: Random,
}

struct Machine {
    name: String,
    definition: String,
    parsed: Arc<StateMachine>,
    role_arn: String,
    created: i64,
    revision: String,
    tags: Map<String, Value>,
    /// Logging and tracing configuration, kept as given.
    settings: Map<String, Value>,
}

struct Execution {
    arn: String,
    name: String,
    machine_arn: String,
    input: String,
    started: i64,
    history: Arc<History>,
    /// `None` while it runs.
    end: watch::Sender<Option<End>>,
    stop: Mutex<Option<oneshot::Sender<Failure>>>,
}

#[derive(Debug, Clone)]
struct End {
    status: &'static str,
    at: i64,
    output: Option<String>,
    failure: Option<Failure>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl StepFunctions {
    /// An empty service. Must live inside a tokio runtime when executions start.
    #[must_use]
    pub fn new(config: StepFunctionsConfig) -> Self {
        let (changes, _) = broadcast::channel(1024);
        let seed = u64::from_ne_bytes(now().to_ne_bytes()) ^ u64::from(std::process::id()) << 40;
        Self {
            inner: Arc::new(Inner {
                config,
                machines: Mutex::default(),
                executions: Mutex::default(),
                tokens: Mutex::default(),
                changes,
                random: Random::seeded(seed),
            }),
        }
    }

    /// Status changes as the `detail` of EventBridge's `Step Functions Execution Status Change`: one when an
    /// execution starts and one when it ends. A receiver that lags loses the oldest, as best effort is.
    #[must_use]
    pub fn status_changes(&self) -> broadcast::Receiver<Value> {
        self.inner.changes.subscribe()
    }

    /// Answers one call: `action` as in `X-Amz-Target` after the dot, `body` as sent.
    ///
    /// # Errors
    /// AWS's own codes; `UnknownOperationException` for an action that is not offered.
    #[allow(clippy::unused_async)] // The gateway awaits every service alike; here nothing has to wait yet.
    pub async fn handle(&self, action: &str, body: &Value) -> Result<Value, ApiError> {
        let inner = &self.inner;
        match action {
            "CreateStateMachine" => inner.create(body),
            "UpdateStateMachine" => inner.update(body),
            "DescribeStateMachine" => inner.describe_machine(text(body, "stateMachineArn")?),
            "DescribeStateMachineForExecution" => {
                let execution = inner.execution(body)?;
                inner.describe_machine(&execution.machine_arn)
            }
            "DeleteStateMachine" => {
                lock(&inner.machines).remove(text(body, "stateMachineArn")?);
                Ok(json!({}))
            }
            "ListStateMachines" => inner.list_machines(body),
            "ValidateStateMachineDefinition" => Ok(validate(text(body, "definition")?)),
            "StartExecution" => inner.start(body).map(|execution| execution.started()),
            "StopExecution" => inner.stop(body).await,
            "DescribeExecution" => inner.execution(body).map(|execution| execution.describe()),
            "ListExecutions" => inner.list_executions(body),
            "GetExecutionHistory" => inner.history(body),
            "SendTaskSuccess" => {
                let output = text(body, "output")?;
                let output = serde_json::from_str(output)
                    .map_err(|error| ApiError::new("InvalidOutput", format!("The output is not JSON: {error}")))?;
                inner.answer(body, Callback::End(Ok(output)))
            }
            "SendTaskFailure" => {
                let failure = Failure::new(optional(body, "error"), optional(body, "cause"));
                inner.answer(body, Callback::End(Err(failure)))
            }
            "SendTaskHeartbeat" => inner.answer(body, Callback::Heartbeat),
            "TagResource" => inner.tag(body),
            "UntagResource" => inner.untag(body),
            "ListTagsForResource" => inner.tags(body),
            _ => Err(ApiError::new(
                "UnknownOperationException",
                format!("The local Step Functions does not offer {action}"),
            )),
        }
    }
}

impl Inner {
    fn arn(&self, kind: &str, rest: &str) -> String {
        format!("arn:aws:states:{}:{}:{kind}:{rest}", self.config.region, self.config.account)
    }

    fn create(&self, body: &Value) -> Result<Value, ApiError> {
        let name = text(body, "name")?;
        valid_name(name)?;
        if body.get("type").is_some_and(|kind| kind != "STANDARD") {
            return Err(ApiError::new("ValidationException", "Only STANDARD state machines are offered here"));
        }
        let definition = text(body, "definition")?;
        let role_arn = text(body, "roleArn")?;
        let parsed = parse(definition)?;
        let arn = self.arn("stateMachine", name);
        let mut machines = lock(&self.machines);
        if let Some(machine) = machines.get(&arn) {
            if machine.definition == definition && machine.role_arn == role_arn {
                return Ok(json!({ "stateMachineArn": arn, "creationDate": seconds(machine.created) }));
            }
            return Err(ApiError::new("StateMachineAlreadyExists", format!("State Machine Already Exists: '{arn}'")));
        }
        let created = now();
        let mut machine = Machine {
            name: name.to_owned(),
            definition: definition.to_owned(),
            parsed,
            role_arn: role_arn.to_owned(),
            created,
            revision: self.random.uuid(),
            tags: Map::new(),
            settings: Map::new(),
        };
        machine.set_tags(body);
        machine.set_settings(body);
        machines.insert(arn.clone(), machine);
        Ok(json!({ "stateMachineArn": arn, "creationDate": seconds(created) }))
    }

    fn update(&self, body: &Value) -> Result<Value, ApiError> {
        let arn = text(body, "stateMachineArn")?;
        let parsed = body.get("definition").and_then(Value::as_str).map(|text| Ok((text, parse(text)?))).transpose()?;
        let mut machines = lock(&self.machines);
        let machine = machines.get_mut(arn).ok_or_else(|| no_machine(arn))?;
        // Executions that run keep the definition that they began with.
        if let Some((definition, parsed)) = parsed {
            definition.clone_into(&mut machine.definition);
            machine.parsed = parsed;
        }
        if let Some(role_arn) = body.get("roleArn").and_then(Value::as_str) {
            role_arn.clone_into(&mut machine.role_arn);
        }
        machine.set_settings(body);
        machine.revision = self.random.uuid();
        Ok(json!({ "updateDate": seconds(now()), "revisionId": machine.revision }))
    }

    fn describe_machine(&self, arn: &str) -> Result<Value, ApiError> {
        let machines = lock(&self.machines);
        let machine = machines.get(arn).ok_or_else(|| no_machine(arn))?;
        let mut answer = json!({
            "stateMachineArn": arn, "name": machine.name, "status": "ACTIVE", "definition": machine.definition,
            "roleArn": machine.role_arn, "type": "STANDARD", "creationDate": seconds(machine.created),
            "revisionId": machine.revision,
            "loggingConfiguration": { "level": "OFF", "includeExecutionData": false },
            "tracingConfiguration": { "enabled": false },
        });
        for (name, value) in &machine.settings {
            answer[name] = value.clone();
        }
        Ok(answer)
    }

    fn list_machines(&self, body: &Value) -> Result<Value, ApiError> {
        let machines = lock(&self.machines);
        let all: Vec<Value> = machines
            .iter()
            .map(|(arn, machine)| {
                json!({
                    "stateMachineArn": arn, "name": machine.name, "type": "STANDARD",
                    "creationDate": seconds(machine.created),
                })
            })
            .collect();
        page(body, "stateMachines", all)
    }

    fn start(self: &Arc<Self>, body: &Value) -> Result<Arc<Execution>, ApiError> {
        let machine_arn = text(body, "stateMachineArn")?;
        let input = body.get("input").map_or(Ok("{}"), |_| text(body, "input"))?;
        let name = match body.get("name").and_then(Value::as_str) {
            Some(name) => {
                valid_name(name)?;
                name.to_owned()
            }
            None => self.random.uuid(),
        };
        if input.len() > MAX_PAYLOAD_BYTES {
            let what = format!("The input has {} bytes; at most {MAX_PAYLOAD_BYTES} are allowed", input.len());
            return Err(ApiError::new("ValidationException", what));
        }
        let value: Value = serde_json::from_str(input).map_err(|error| {
            ApiError::new("InvalidExecutionInput", format!("Invalid State Machine Execution Input: '{error}'"))
        })?;
        let (machine, machine_name, role_arn) = {
            let machines = lock(&self.machines);
            let machine = machines.get(machine_arn).ok_or_else(|| no_machine(machine_arn))?;
            (Arc::clone(&machine.parsed), machine.name.clone(), machine.role_arn.clone())
        };
        let arn = self.arn("execution", &format!("{machine_name}:{name}"));
        let (stop, stopped) = oneshot::channel();
        let execution = {
            let mut executions = lock(&self.executions);
            if let Some(there) = executions.get(&arn) {
                // The same name and input while it runs is the same start, not a second one.
                if there.end.borrow().is_none() && there.input == input {
                    return Ok(Arc::clone(there));
                }
                return Err(ApiError::new("ExecutionAlreadyExists", format!("Execution Already Exists: '{arn}'")));
            }
            let execution = Arc::new(Execution {
                arn: arn.clone(),
                name: name.clone(),
                machine_arn: machine_arn.to_owned(),
                input: input.to_owned(),
                started: now(),
                history: Arc::new(History::default()),
                end: watch::Sender::new(None),
                stop: Mutex::new(Some(stop)),
            });
            executions.insert(arn.clone(), Arc::clone(&execution));
            execution
        };
        let about = json!({
            "Id": arn, "Input": value, "Name": name, "RoleArn": role_arn, "StartTime": timestamp(execution.started),
            "RedriveCount": 0,
        });
        let machine_about = json!({ "Id": machine_arn, "Name": machine_name });
        let run = Run {
            machine,
            world: Arc::new(RealWorld { service: Arc::clone(self), role_arn: role_arn.clone() }),
            history: Arc::clone(&execution.history),
            random: Random::seeded(self.random.bits()),
            context: Arc::new(Map::from_iter([
                ("Execution".to_owned(), about),
                ("StateMachine".to_owned(), machine_about),
            ])),
            role_arn,
            region: self.config.region.clone(),
            last: AtomicU64::new(0),
        };
        self.announce(&execution);
        tokio::spawn(Arc::clone(self).drive(Arc::clone(&execution), run, value, stopped));
        Ok(execution)
    }

    /// Runs an execution until it ends or is stopped, and tells everybody.
    async fn drive(
        self: Arc<Self>,
        execution: Arc<Execution>,
        run: Run,
        input: Value,
        stopped: oneshot::Receiver<Failure>,
    ) {
        let stopped = async {
            match stopped.await {
                Ok(failure) => failure,
                // The stop door was closed unused: never.
                Err(_) => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ending = run.execute(input) => Ok(ending),
            failure = stopped => Err(failure),
        };
        let (status, output, failure) = match ended {
            Ok(Ending::Succeeded(output)) => ("SUCCEEDED", Some(output.to_string()), None),
            Ok(Ending::Failed(failure)) => ("FAILED", None, Some(failure)),
            Ok(Ending::TimedOut) => ("TIMED_OUT", None, Some(Failure::new(crate::failure::TIMEOUT, ""))),
            Err(failure) => {
                let details = json!({ "error": failure.error, "cause": failure.cause });
                let entry = Entry::with("ExecutionAborted", "executionAbortedEventDetails", details);
                execution.history.end(now(), run.last.load(Ordering::Relaxed), entry);
                ("ABORTED", None, Some(failure))
            }
        };
        execution.end.send_replace(Some(End { status, at: now(), output, failure }));
        self.announce(&execution);
    }

    fn announce(&self, execution: &Execution) {
        // Nobody listening is fine.
        let _ = self.changes.send(execution.detail());
    }

    async fn stop(&self, body: &Value) -> Result<Value, ApiError> {
        let execution = self.execution(body)?;
        let door = lock(&execution.stop).take();
        if let Some(door) = door {
            let _ = door.send(Failure::new(optional(body, "error"), optional(body, "cause")));
        }
        let mut end = execution.end.subscribe();
        let at = match end.wait_for(Option::is_some).await {
            Ok(end) => end.as_ref().map_or_else(now, |end| end.at),
            Err(_) => now(),
        };
        Ok(json!({ "stopDate": seconds(at) }))
    }

    fn execution(&self, body: &Value) -> Result<Arc<Execution>, ApiError> {
        let arn = text(body, "executionArn")?;
        let executions = lock(&self.executions);
        executions
            .get(arn)
            .cloned()
            .ok_or_else(|| ApiError::new("ExecutionDoesNotExist", format!("Execution Does Not Exist: '{arn}'")))
    }

    fn list_executions(&self, body: &Value) -> Result<Value, ApiError> {
        let machine_arn = text(body, "stateMachineArn")?;
        if !lock(&self.machines).contains_key(machine_arn) {
            return Err(no_machine(machine_arn));
        }
        let filter = body.get("statusFilter").and_then(Value::as_str);
        let mut found: Vec<Arc<Execution>> = lock(&self.executions)
            .values()
            .filter(|execution| execution.machine_arn == machine_arn)
            .filter(|execution| filter.is_none_or(|status| execution.status() == status))
            .cloned()
            .collect();
        found.sort_by_key(|execution| std::cmp::Reverse(execution.started));
        page(body, "executions", found.iter().map(|execution| execution.listed()).collect())
    }

    fn history(&self, body: &Value) -> Result<Value, ApiError> {
        let execution = self.execution(body)?;
        let most = most_results(body)?;
        let skip = skipped(body)?;
        let data = body.get("includeExecutionData").and_then(Value::as_bool).unwrap_or(true);
        let reverse = body.get("reverseOrder").and_then(Value::as_bool).unwrap_or(false);
        let count = execution.history.len();
        // A token names how many events have been seen, so pages stay put while the history grows (forwards).
        let mut events = if reverse {
            let last = count.saturating_sub(skip);
            execution.history.between(last.saturating_sub(most - 1), last)
        } else {
            execution.history.between(skip + 1, skip + most)
        };
        if reverse {
            events.reverse();
        }
        let seen = skip + events.len() as u64;
        let mut answer = json!({ "events": events.iter().map(|event| event.json(data)).collect::<Vec<_>>() });
        if seen < count {
            answer["nextToken"] = json!(seen.to_string());
        }
        Ok(answer)
    }

    fn answer(&self, body: &Value, callback: Callback) -> Result<Value, ApiError> {
        let token = text(body, "taskToken")?;
        let tokens = lock(&self.tokens);
        let Some(sender) = tokens.get(token) else {
            return Err(ApiError::new("InvalidToken", "Invalid Token: 'Invalid token'"));
        };
        let ends = matches!(callback, Callback::End(_));
        if sender.unbounded_send(callback).is_err() {
            let message = "Task Timed Out: 'Provided task does not exist anymore'";
            return Err(ApiError::new("TaskTimedOut", message));
        }
        if ends {
            // What is said afterwards finds a closed door, as it does on AWS.
            sender.close_channel();
        }
        Ok(json!({}))
    }

    fn tag(&self, body: &Value) -> Result<Value, ApiError> {
        self.tagged(body, |machine| machine.set_tags(body))
    }

    fn untag(&self, body: &Value) -> Result<Value, ApiError> {
        self.tagged(body, |machine| {
            for key in body.get("tagKeys").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
                machine.tags.shift_remove(key);
            }
        })
    }

    fn tags(&self, body: &Value) -> Result<Value, ApiError> {
        let mut tags = Vec::new();
        self.tagged(body, |machine| {
            tags = machine.tags.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        })?;
        Ok(json!({ "tags": tags }))
    }

    fn tagged(&self, body: &Value, change: impl FnOnce(&mut Machine)) -> Result<Value, ApiError> {
        let arn = text(body, "resourceArn")?;
        let mut machines = lock(&self.machines);
        let machine = machines
            .get_mut(arn)
            .ok_or_else(|| ApiError::new("ResourceNotFound", format!("Resource not found: '{arn}'")))?;
        change(machine);
        Ok(json!({}))
    }
}

impl Machine {
    fn set_tags(&mut self, body: &Value) {
        for tag in body.get("tags").and_then(Value::as_array).into_iter().flatten() {
            if let (Some(key), Some(value)) = (tag.get("key").and_then(Value::as_str), tag.get("value")) {
                self.tags.insert(key.to_owned(), value.clone());
            }
        }
    }

    fn set_settings(&mut self, body: &Value) {
        for name in ["loggingConfiguration", "tracingConfiguration", "encryptionConfiguration"] {
            if let Some(value) = body.get(name) {
                self.settings.insert(name.to_owned(), value.clone());
            }
        }
    }
}

impl Execution {
    fn status(&self) -> &'static str {
        self.end.borrow().as_ref().map_or("RUNNING", |end| end.status)
    }

    fn started(&self) -> Value {
        json!({ "executionArn": self.arn, "startDate": seconds(self.started) })
    }

    fn listed(&self) -> Value {
        let mut entry = json!({
            "executionArn": self.arn, "stateMachineArn": self.machine_arn, "name": self.name,
            "status": self.status(), "startDate": seconds(self.started), "redriveCount": 0,
        });
        if let Some(end) = self.end.borrow().as_ref() {
            entry["stopDate"] = seconds(end.at);
        }
        entry
    }

    fn describe(&self) -> Value {
        let mut answer = self.listed();
        answer["input"] = json!(self.input);
        answer["inputDetails"] = json!({ "included": true });
        answer["redriveStatus"] = json!("NOT_REDRIVABLE");
        if let Some(end) = self.end.borrow().as_ref() {
            if let Some(output) = &end.output {
                answer["output"] = json!(output);
                answer["outputDetails"] = json!({ "included": true });
            }
            for (name, value) in end.error_and_cause() {
                answer[name] = json!(value);
            }
        }
        answer
    }

    /// The detail of an execution status change event; dates are epoch milliseconds there.
    fn detail(&self) -> Value {
        let end = self.end.borrow();
        let end = end.as_ref();
        let output = end.and_then(|end| end.output.as_ref());
        let mut detail = json!({
            "executionArn": self.arn, "stateMachineArn": self.machine_arn, "name": self.name,
            "status": end.map_or("RUNNING", |end| end.status),
            "startDate": self.started, "stopDate": end.map(|end| end.at),
            "input": self.input, "inputDetails": { "included": true },
            "output": output, "outputDetails": output.map(|_| json!({ "included": true })),
            "stateMachineVersionArn": null, "stateMachineAliasArn": null,
            "redriveCount": 0, "redriveDate": null, "redriveStatus": "NOT_REDRIVABLE", "redriveStatusReason": null,
            "error": null, "cause": null,
        });
        for (name, value) in end.into_iter().flat_map(End::error_and_cause) {
            detail[name] = json!(value);
        }
        detail
    }

    /// What `startExecution.sync` gives its parent: PascalCase, dates in epoch milliseconds. With `parsed`, input
    /// and output are JSON instead of text.
    fn nested(&self, end: &End, parsed: bool) -> Value {
        let shown = |text: &str| match serde_json::from_str(text) {
            Ok(value) if parsed => value,
            _ => json!(text),
        };
        let mut answer = json!({
            "ExecutionArn": self.arn, "StateMachineArn": self.machine_arn, "Name": self.name, "Status": end.status,
            "StartDate": self.started, "StopDate": end.at,
            "Input": shown(&self.input), "InputDetails": { "Included": true },
        });
        if let Some(output) = &end.output {
            answer["Output"] = shown(output);
            answer["OutputDetails"] = json!({ "Included": true });
        }
        for (name, value) in end.error_and_cause() {
            answer[if name == "error" { "Error" } else { "Cause" }] = json!(value);
        }
        answer
    }
}

impl End {
    fn error_and_cause(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.failure
            .iter()
            .flat_map(|failure| [("error", failure.error.as_str()), ("cause", failure.cause.as_str())])
            .filter(|(_, text)| !text.is_empty())
    }
}

/// The world of an execution that really runs.
struct RealWorld {
    service: Arc<Inner>,
    role_arn: String,
}

impl World for RealWorld {
    fn now(&self) -> i64 {
        now()
    }

    fn wait(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let clock = self.service.config.clock;
        async move { clock.sleep(duration).await }.boxed()
    }

    fn limit(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration).boxed()
    }

    fn submit(&self, call: TaskCall) -> BoxFuture<'static, Result<Submitted, Failure>> {
        let TaskCall { resource, arguments, .. } = call;
        if resource.service == "states" && resource.operation() == "startExecution" {
            return self.start_nested(resource.pattern, &arguments).boxed();
        }
        let tasks = Arc::clone(&self.service.config.tasks);
        let role_arn = self.role_arn.clone();
        // Spawned, so that dropping the execution leaves the function running: it outlives its execution.
        let work = tokio::spawn(async move {
            if resource.service == "lambda" && resource.operation() == "invoke" {
                invoke(&*tasks, &role_arn, arguments).await
            } else {
                tasks.call(&role_arn, &resource.arn, arguments).await
            }
        });
        async move {
            match work.await {
                Ok(result) => result.map(Submitted::Done),
                Err(error) => Err(Failure::new(crate::failure::RUNTIME, format!("The task could not be run: {error}"))),
            }
        }
        .boxed()
    }

    fn callback(&self, token: &str) -> UnboundedReceiver<Callback> {
        let (sender, receiver) = unbounded();
        lock(&self.service.tokens).insert(token.to_owned(), sender);
        receiver
    }
}

impl RealWorld {
    fn start_nested(
        &self,
        pattern: Pattern,
        arguments: &Value,
    ) -> impl Future<Output = Result<Submitted, Failure>> + Send + use<> {
        let input = match arguments.get("Input") {
            None => "{}".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let mut body = json!({ "stateMachineArn": arguments.get("StateMachineArn"), "input": input });
        if let Some(name) = arguments.get("Name") {
            body["name"] = name.clone();
        }
        let started = self.service.start(&body);
        async move {
            let execution = started
                .map_err(|error| Failure::new(format!("StepFunctions.{}Exception", error.code), error.message))?;
            let output = json!({ "ExecutionArn": execution.arn, "StartDate": execution.started });
            match pattern {
                Pattern::Response | Pattern::Callback => Ok(Submitted::Done(output)),
                Pattern::Sync | Pattern::Sync2 => {
                    let result = nested_end(execution, pattern == Pattern::Sync2).boxed();
                    Ok(Submitted::Running { output, result })
                }
            }
        }
    }
}

/// Waits for a nested execution, and stops it when nobody waits any more.
async fn nested_end(execution: Arc<Execution>, parsed: bool) -> Result<Value, Failure> {
    struct Stop(Arc<Execution>);
    impl Drop for Stop {
        fn drop(&mut self) {
            if let Some(door) = lock(&self.0.stop).take() {
                let _ = door.send(Failure::new("", "The parent execution no longer waits for this one"));
            }
        }
    }
    let guard = Stop(execution);
    let mut end = guard.0.end.subscribe();
    let end = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
    let Some(end) = end else {
        return Err(Failure::new(TASK_FAILED, "The nested execution was lost"));
    };
    let answer = guard.0.nested(&end, parsed);
    if end.status == "SUCCEEDED" { Ok(answer) } else { Err(Failure::new(TASK_FAILED, answer.to_string())) }
}

/// `lambda:invoke` with its answer in the integration's shape.
async fn invoke(tasks: &dyn TaskInvoker, role_arn: &str, arguments: Value) -> Result<Value, Failure> {
    let Some(function) = arguments.get("FunctionName").and_then(Value::as_str) else {
        return Err(Failure::new("Lambda.InvalidParameterValueException", "FunctionName is missing or not a string"));
    };
    if arguments.get("InvocationType").is_some_and(|kind| kind != "RequestResponse") {
        let cause = "Only the InvocationType RequestResponse is offered here";
        return Err(Failure::new("Lambda.InvalidParameterValueException", cause));
    }
    let function = match arguments.get("Qualifier").and_then(Value::as_str) {
        Some(qualifier) => format!("{function}:{qualifier}"),
        None => function.to_owned(),
    };
    let payload = arguments.get("Payload").cloned().unwrap_or_else(|| json!({}));
    let answer = tasks.invoke_lambda(role_arn, &function, payload).await?;
    Ok(json!({ "ExecutedVersion": "$LATEST", "Payload": answer, "StatusCode": 200 }))
}

fn parse(definition: &str) -> Result<Arc<StateMachine>, ApiError> {
    StateMachine::parse(definition).map(Arc::new).map_err(|problems| {
        let list: Vec<String> = problems.iter().map(Problem::to_string).collect();
        ApiError::new("InvalidDefinition", format!("Invalid State Machine Definition: '{}'", list.join(", ")))
    })
}

fn validate(definition: &str) -> Value {
    let problems = StateMachine::parse(definition).err().unwrap_or_default();
    let diagnostics: Vec<Value> = problems
        .iter()
        .map(|problem| {
            json!({
                "severity": "ERROR", "code": problem.code, "message": problem.message, "location": problem.location,
            })
        })
        .collect();
    json!({ "result": if problems.is_empty() { "OK" } else { "FAIL" }, "diagnostics": diagnostics, "truncated": false })
}

fn no_machine(arn: &str) -> ApiError {
    ApiError::new("StateMachineDoesNotExist", format!("State Machine Does Not Exist: '{arn}'"))
}

fn text<'a>(body: &'a Value, name: &str) -> Result<&'a str, ApiError> {
    body.get(name)
        .and_then(Value::as_str)
        .ok_or_else(|| ApiError::new("ValidationException", format!("'{name}' is required and must be a string")))
}

fn optional(body: &Value, name: &str) -> String {
    body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// 1 to 80 characters without spaces, brackets, wildcards, other special characters or control characters.
fn valid_name(name: &str) -> Result<(), ApiError> {
    let refused = |c: char| c.is_whitespace() || c.is_control() || "<>{}[]?*\"#%\\^|~`$&,;:/".contains(c);
    if name.is_empty() || name.chars().count() > 80 || name.contains(refused) {
        return Err(ApiError::new("InvalidName", format!("Invalid Name: '{name}'")));
    }
    Ok(())
}

fn most_results(body: &Value) -> Result<u64, ApiError> {
    match body.get("maxResults").map(Value::as_u64) {
        None | Some(Some(0)) => Ok(100),
        Some(Some(most)) if most <= 1000 => Ok(most),
        Some(_) => Err(ApiError::new("ValidationException", "'maxResults' must be an integer from 0 to 1000")),
    }
}

fn skipped(body: &Value) -> Result<u64, ApiError> {
    match body.get("nextToken").and_then(Value::as_str) {
        None => Ok(0),
        Some(token) => token.parse().map_err(|_| ApiError::new("InvalidToken", format!("Invalid Token: '{token}'"))),
    }
}

fn page(body: &Value, name: &str, all: Vec<Value>) -> Result<Value, ApiError> {
    let skip = skipped(body)?;
    let most = most_results(body)?;
    let count = all.len() as u64;
    let from = usize::try_from(skip).unwrap_or(usize::MAX);
    let shown: Vec<Value> = all.into_iter().skip(from).take(usize::try_from(most).unwrap_or(usize::MAX)).collect();
    let seen = skip + shown.len() as u64;
    let mut answer = json!({});
    answer[name] = Value::Array(shown);
    if seen < count {
        answer["nextToken"] = json!(seen.to_string());
    }
    Ok(answer)
}
