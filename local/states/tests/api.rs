//! The service as its clients see it: actions, errors, names, pages, task tokens, nested executions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use slipway_states::api::{ApiError, StepFunctions, StepFunctionsConfig, TaskInvoker};
use slipway_states::clock::ScaledClock;
use slipway_states::failure::Failure;

const ROLE: &str = "arn:aws:iam::111122223333:role/machine";

/// Functions that the tests call, and how many calls ended.
#[derive(Default)]
struct Functions {
    ended: AtomicU64,
}

#[async_trait]
impl TaskInvoker for Functions {
    async fn invoke_lambda(&self, role_arn: &str, function_name: &str, payload: Value) -> Result<Value, Failure> {
        assert_eq!(role_arn, ROLE);
        let answer = match function_name {
            "echo:live" => Ok(payload),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(Value::Null)
            }
            "broken" => {
                Err(Failure::from_function_error(&json!({ "errorType": "NetworkFailed", "errorMessage": "no route" })))
            }
            other => panic!("{other}"),
        };
        self.ended.fetch_add(1, Ordering::SeqCst);
        answer
    }

    async fn call(&self, _role_arn: &str, resource: &str, arguments: Value) -> Result<Value, Failure> {
        Ok(json!({ "resource": resource, "arguments": arguments }))
    }
}

struct Service {
    api: StepFunctions,
    functions: Arc<Functions>,
}

impl Service {
    fn new() -> Self {
        let functions = Arc::new(Functions::default());
        let api = StepFunctions::new(StepFunctionsConfig {
            clock: ScaledClock::new(100.0),
            tasks: Arc::clone(&functions) as Arc<dyn TaskInvoker>,
            account: "111122223333".to_owned(),
            region: "eu-west-1".to_owned(),
        });
        Self { api, functions }
    }

    async fn ok(&self, action: &str, body: Value) -> Value {
        self.api.handle(action, &body).await.unwrap_or_else(|error| panic!("{action}: {error}"))
    }

    async fn refused(&self, action: &str, body: Value) -> ApiError {
        self.api.handle(action, &body).await.expect_err("the call is refused")
    }

    async fn create(&self, name: &str, start_at: &str, states: Value) -> String {
        let definition = json!({ "QueryLanguage": "JSONata", "StartAt": start_at, "States": states }).to_string();
        let body = json!({ "name": name, "definition": definition, "roleArn": ROLE });
        self.ok("CreateStateMachine", body).await["stateMachineArn"].as_str().unwrap().to_owned()
    }

    async fn start(&self, machine: &str, body: Value) -> String {
        let mut body = body;
        body["stateMachineArn"] = json!(machine);
        self.ok("StartExecution", body).await["executionArn"].as_str().unwrap().to_owned()
    }

    /// Waits until an execution has ended and describes it.
    async fn end(&self, execution: &str) -> Value {
        for _ in 0..500 {
            let described = self.ok("DescribeExecution", json!({ "executionArn": execution })).await;
            if described["status"] != "RUNNING" {
                return described;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{execution} still runs");
    }
}

fn invoke(function: &str) -> Value {
    json!({
        "Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "End": true,
        "Arguments": { "FunctionName": function, "Payload": "{% $states.input %}" },
    })
}

#[tokio::test]
async fn a_function_is_called_with_its_payload_and_answers_in_the_integrations_shape() {
    let service = Service::new();
    let machine = service.create("echo", "Echo", json!({ "Echo": invoke("echo:live") })).await;
    let mut changes = service.api.status_changes();
    let execution = service.start(&machine, json!({ "input": "{\"a\":1}", "name": "one" })).await;
    assert_eq!(execution, "arn:aws:states:eu-west-1:111122223333:execution:echo:one");
    let ended = service.end(&execution).await;
    assert_eq!(ended["status"], "SUCCEEDED");
    let output: Value = serde_json::from_str(ended["output"].as_str().unwrap()).unwrap();
    assert_eq!(output, json!({ "ExecutedVersion": "$LATEST", "Payload": { "a": 1 }, "StatusCode": 200 }));

    let started = changes.recv().await.unwrap();
    assert_eq!((&started["status"], &started["stopDate"]), (&json!("RUNNING"), &Value::Null));
    let stopped = changes.recv().await.unwrap();
    assert_eq!(stopped["status"], "SUCCEEDED");
    assert_eq!(stopped["input"], "{\"a\":1}");
    assert!(stopped["stopDate"].as_i64().unwrap() >= stopped["startDate"].as_i64().unwrap());
}

/// API reference, StartExecution: the same name and input while it runs is the same execution; anything else with a
/// name that was used is ExecutionAlreadyExists, also after its end.
#[tokio::test]
async fn names_are_used_once() {
    let service = Service::new();
    let machine = service.create("slow", "Slow", json!({ "Slow": invoke("slow") })).await;
    let body = json!({ "stateMachineArn": machine, "name": "one", "input": "{}" });
    let first = service.ok("StartExecution", body.clone()).await;
    assert_eq!(service.ok("StartExecution", body.clone()).await, first);
    let other = json!({ "stateMachineArn": machine, "name": "one", "input": "{\"x\":1}" });
    assert_eq!(service.refused("StartExecution", other).await.code, "ExecutionAlreadyExists");
    service.end(first["executionArn"].as_str().unwrap()).await;
    assert_eq!(service.refused("StartExecution", body).await.code, "ExecutionAlreadyExists");
    for name in ["a b", "a/b", "a:b", "", &"x".repeat(81)] {
        let body = json!({ "stateMachineArn": machine, "name": name });
        assert_eq!(service.refused("StartExecution", body).await.code, "InvalidName", "{name}");
    }
    let unnamed = service.start(&machine, json!({})).await;
    assert_eq!(unnamed.rsplit(':').next().unwrap().len(), 36);
}

#[tokio::test]
async fn bad_calls_are_refused_by_name() {
    let service = Service::new();
    let machine = service.create("echo", "Echo", json!({ "Echo": invoke("echo:live") })).await;
    let nobody = "arn:aws:states:eu-west-1:111122223333:stateMachine:nobody";
    let start = |input: &str| json!({ "stateMachineArn": machine, "input": input });
    assert_eq!(service.refused("StartExecution", start("{")).await.code, "InvalidExecutionInput");
    let large = format!("\"{}\"", "x".repeat(262_144));
    assert_eq!(service.refused("StartExecution", start(&large)).await.code, "ValidationException");
    for action in ["StartExecution", "DescribeStateMachine", "ListExecutions", "UpdateStateMachine"] {
        let error = service.refused(action, json!({ "stateMachineArn": nobody })).await;
        assert_eq!(error.code, "StateMachineDoesNotExist", "{action}");
    }
    for action in ["DescribeExecution", "StopExecution", "GetExecutionHistory"] {
        let error = service.refused(action, json!({ "executionArn": nobody })).await;
        assert_eq!(error.code, "ExecutionDoesNotExist", "{action}");
    }
    assert_eq!(service.refused("SendTaskHeartbeat", json!({ "taskToken": "x" })).await.code, "InvalidToken");
    assert_eq!(service.refused("RedriveExecution", json!({})).await.code, "UnknownOperationException");
    let bad = json!({ "name": "bad", "roleArn": ROLE, "definition": "{\"StartAt\":\"A\",\"States\":{}}" });
    let error = service.refused("CreateStateMachine", bad).await;
    assert_eq!(error.code, "InvalidDefinition");
    assert!(error.message.starts_with("Invalid State Machine Definition: 'SCHEMA_VALIDATION_FAILED: "), "{error}");
}

/// API reference, CreateStateMachine is idempotent; UpdateStateMachine leaves running executions their definition.
#[tokio::test]
async fn machines_are_made_changed_and_deleted() {
    let service = Service::new();
    let pass = |output: &str| json!({ "Only": { "Type": "Wait", "Seconds": 10, "Output": output, "End": true } });
    let machine = service.create("one", "Only", pass("old")).await;
    assert_eq!(service.create("one", "Only", pass("old")).await, machine);
    let definition =
        |output| json!({ "QueryLanguage": "JSONata", "StartAt": "Only", "States": pass(output) }).to_string();
    let other = json!({ "name": "one", "roleArn": ROLE, "definition": definition("new") });
    assert_eq!(service.refused("CreateStateMachine", other).await.code, "StateMachineAlreadyExists");

    let running = service.start(&machine, json!({})).await;
    service.ok("UpdateStateMachine", json!({ "stateMachineArn": machine, "definition": definition("new") })).await;
    let fresh = service.start(&machine, json!({})).await;
    assert_eq!(service.end(&running).await["output"], "\"old\"");
    assert_eq!(service.end(&fresh).await["output"], "\"new\"");
    let described = service.ok("DescribeStateMachine", json!({ "stateMachineArn": machine })).await;
    assert_eq!((&described["definition"], &described["roleArn"]), (&json!(definition("new")), &json!(ROLE)));

    let tags = json!({ "resourceArn": machine, "tags": [{ "key": "slipway:cluster", "value": "demo" }] });
    service.ok("TagResource", tags.clone()).await;
    let listed = service.ok("ListTagsForResource", json!({ "resourceArn": machine })).await;
    assert_eq!(listed["tags"], tags["tags"]);
    service.ok("DeleteStateMachine", json!({ "stateMachineArn": machine })).await;
    assert_eq!(service.ok("ListStateMachines", json!({})).await["stateMachines"], json!([]));
}

/// API reference, GetExecutionHistory and ListExecutions: pages, the reverse order, the filter.
#[tokio::test]
async fn histories_and_lists_come_in_pages() {
    let service = Service::new();
    let machine = service.create("echo", "Echo", json!({ "Echo": invoke("echo:live") })).await;
    let execution = service.start(&machine, json!({})).await;
    service.end(&execution).await;
    for reverse in [false, true] {
        let mut ids = Vec::new();
        let mut token = Value::Null;
        loop {
            let mut body = json!({ "executionArn": execution, "maxResults": 3, "reverseOrder": reverse });
            if !token.is_null() {
                body["nextToken"] = token;
            }
            let page = service.ok("GetExecutionHistory", body).await;
            ids.extend(page["events"].as_array().unwrap().iter().map(|event| event["id"].as_u64().unwrap()));
            token = page["nextToken"].clone();
            if token.is_null() {
                break;
            }
        }
        let mut wanted: Vec<u64> = (1..=7).collect();
        if reverse {
            wanted.reverse();
        }
        assert_eq!(ids, wanted);
    }
    let second = service.start(&machine, json!({})).await;
    service.end(&second).await;
    let page = service.ok("ListExecutions", json!({ "stateMachineArn": machine, "maxResults": 1 })).await;
    let next = json!({ "stateMachineArn": machine, "maxResults": 1, "nextToken": page["nextToken"] });
    let last = service.ok("ListExecutions", next).await;
    assert!(last.get("nextToken").is_none());
    assert_eq!((page["executions"].as_array().unwrap().len(), last["executions"].as_array().unwrap().len()), (1, 1));
    let failed = json!({ "stateMachineArn": machine, "statusFilter": "FAILED" });
    assert_eq!(service.ok("ListExecutions", failed).await["executions"], json!([]));
    let bogus = json!({ "stateMachineArn": machine, "nextToken": "bogus" });
    assert_eq!(service.refused("ListExecutions", bogus).await.code, "InvalidToken");
}

/// Guide, "Invoke Lambda": a function's error is the state's; its cause is the answer as JSON text.
#[tokio::test]
async fn a_functions_error_keeps_its_name() {
    let service = Service::new();
    let machine = service.create("broken", "Broken", json!({ "Broken": invoke("broken") })).await;
    let execution = service.start(&machine, json!({})).await;
    let ended = service.end(&execution).await;
    assert_eq!((&ended["status"], &ended["error"]), (&json!("FAILED"), &json!("NetworkFailed")));
    let cause: Value = serde_json::from_str(ended["cause"].as_str().unwrap()).unwrap();
    assert_eq!(cause["errorMessage"], "no route");
    let nameless = Failure::from_function_error(&json!({ "errorMessage": "killed" }));
    assert_eq!(nameless.error, "Lambda.Unknown");
}

/// API reference, StopExecution; a function outlives its stopped execution, as on AWS.
#[tokio::test]
async fn a_stopped_execution_leaves_its_function_running() {
    let service = Service::new();
    let machine = service.create("slow", "Slow", json!({ "Slow": invoke("slow") })).await;
    let execution = service.start(&machine, json!({})).await;
    while !kinds(&service, &execution).await.contains(&"TaskStarted".to_owned()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let body = json!({ "executionArn": execution, "error": "Maintenance", "cause": "by hand" });
    let stopped = service.ok("StopExecution", body.clone()).await;
    let described = service.end(&execution).await;
    assert_eq!((&described["status"], &described["error"]), (&json!("ABORTED"), &json!("Maintenance")));
    assert_eq!(described["stopDate"], stopped["stopDate"]);
    assert_eq!(service.ok("StopExecution", body).await, stopped, "stopping twice changes nothing");
    let kinds = kinds(&service, &execution).await;
    assert_eq!(kinds[kinds.len() - 2..], ["TaskStateAborted", "ExecutionAborted"]);
    assert_eq!(service.functions.ended.load(Ordering::SeqCst), 0);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(service.functions.ended.load(Ordering::SeqCst), 1, "the function went on to its end");
}

async fn kinds(service: &Service, execution: &str) -> Vec<String> {
    let history = service.ok("GetExecutionHistory", json!({ "executionArn": execution })).await;
    history["events"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

/// Waits pass faster by the clock's speed; TimeoutSeconds of a task is real time.
#[tokio::test]
async fn waits_are_scaled_and_limits_are_not() {
    let service = Service::new();
    let states = json!({
        "Wait": { "Type": "Wait", "Seconds": 20, "Next": "Slow" },
        "Slow": {
            "Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "End": true, "TimeoutSeconds": 10,
            "Arguments": { "FunctionName": "slow" },
        },
    });
    let machine = service.create("scaled", "Wait", states).await;
    let begun = std::time::Instant::now();
    let execution = service.start(&machine, json!({})).await;
    // 20 s at 100 times the speed are 200 ms; 10 s scaled would be 100 ms and end the 200 ms task.
    assert_eq!(service.end(&execution).await["status"], "SUCCEEDED");
    assert!((400..5_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

/// Guide, "Wait for a callback with task token": heartbeats, one end, and nothing after it.
#[tokio::test]
async fn a_task_token_ends_its_task_once() {
    let service = Service::new();
    let ask = json!({
        "Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage.waitForTaskToken", "TimeoutSeconds": 60,
        "Arguments": { "MessageBody": "{% $states.context.Task.Token %}" }, "End": true,
    });
    let machine = service.create("ask", "Ask", json!({ "Ask": ask })).await;
    for succeed in [true, false] {
        let execution = service.start(&machine, json!({})).await;
        let token = loop {
            let body = json!({ "executionArn": execution });
            let history = service.ok("GetExecutionHistory", body).await;
            let submitted = history["events"]
                .as_array()
                .unwrap()
                .iter()
                .find_map(|event| event["taskSubmittedEventDetails"]["output"].as_str().map(str::to_owned));
            match submitted {
                Some(output) => {
                    let output: Value = serde_json::from_str(&output).unwrap();
                    break output["arguments"]["MessageBody"].as_str().unwrap().to_owned();
                }
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        service.ok("SendTaskHeartbeat", json!({ "taskToken": token })).await;
        let bad = json!({ "taskToken": token, "output": "{" });
        assert_eq!(service.refused("SendTaskSuccess", bad).await.code, "InvalidOutput");
        let (action, body) = if succeed {
            ("SendTaskSuccess", json!({ "taskToken": token, "output": "{\"yes\":true}" }))
        } else {
            ("SendTaskFailure", json!({ "taskToken": token, "error": "Refused", "cause": "by a person" }))
        };
        service.ok(action, body.clone()).await;
        let ended = service.end(&execution).await;
        if succeed {
            assert_eq!(ended["output"], "{\"yes\":true}");
        } else {
            assert_eq!((&ended["error"], &ended["cause"]), (&json!("Refused"), &json!("by a person")));
        }
        assert_eq!(service.refused(action, body).await.code, "TaskTimedOut");
    }
}

fn child(machine: &str, pattern: &str) -> Value {
    json!({ "Child": {
        "Type": "Task", "Resource": format!("arn:aws:states:::states:startExecution{pattern}"), "End": true,
        "Arguments": { "StateMachineArn": machine, "Input": { "a": 1 } },
    } })
}

/// Guide, "Manage Step Functions": `.sync:2` gives the child's input and output as JSON, `.sync` as text, and the plain
/// call does not wait; a failed child is States.TaskFailed with its description as the cause.
#[tokio::test]
async fn executions_nest() {
    let service = Service::new();
    let echo = service.create("echo", "Echo", json!({ "Echo": invoke("echo:live") })).await;
    let broken = service.create("broken", "Broken", json!({ "Broken": invoke("broken") })).await;
    let run = async |name: &str, machine: &str, pattern: &str| {
        let parent = service.create(name, "Child", child(machine, pattern)).await;
        service.end(&service.start(&parent, json!({})).await).await
    };
    let output = |ended: &Value| serde_json::from_str::<Value>(ended["output"].as_str().unwrap()).unwrap();

    let sync2 = output(&run("sync2", &echo, ".sync:2").await);
    assert_eq!((&sync2["Status"], &sync2["Input"]), (&json!("SUCCEEDED"), &json!({ "a": 1 })));
    assert_eq!(sync2["Output"]["Payload"], json!({ "a": 1 }));
    let sync = output(&run("sync", &echo, ".sync").await);
    assert_eq!(sync["Input"], "{\"a\":1}");
    assert!(sync["Output"].is_string());
    let plain = output(&run("plain", &echo, "").await);
    assert!(plain["ExecutionArn"].as_str().unwrap().contains(":execution:echo:"));

    let failed = run("failed", &broken, ".sync:2").await;
    assert_eq!(failed["error"], "States.TaskFailed");
    let cause: Value = serde_json::from_str(failed["cause"].as_str().unwrap()).unwrap();
    assert_eq!((&cause["Status"], &cause["Error"]), (&json!("FAILED"), &json!("NetworkFailed")));
    let missing = run("missing", "arn:aws:states:eu-west-1:111122223333:stateMachine:nobody", ".sync:2").await;
    assert_eq!(missing["error"], "StepFunctions.StateMachineDoesNotExistException");
}

/// Guide, "Service integration patterns", run a job: stopping the parent stops the child.
#[tokio::test]
async fn a_stopped_parent_stops_its_child() {
    let service = Service::new();
    let wait = json!({ "Wait": { "Type": "Wait", "Seconds": 6000, "End": true } });
    let slow = service.create("slow", "Wait", wait).await;
    let parent = service.create("parent", "Child", child(&slow, ".sync:2")).await;
    let execution = service.start(&parent, json!({})).await;
    let children = loop {
        let listed = service.ok("ListExecutions", json!({ "stateMachineArn": slow })).await;
        if listed["executions"].as_array().unwrap().len() == 1
            && kinds(&service, &execution).await.contains(&"TaskSubmitted".to_owned())
        {
            break listed;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    service.ok("StopExecution", json!({ "executionArn": execution })).await;
    let child = children["executions"][0]["executionArn"].as_str().unwrap();
    assert_eq!(service.end(child).await["status"], "ABORTED");
}

#[tokio::test]
async fn definitions_are_validated_without_being_kept() {
    let service = Service::new();
    let good = json!({ "QueryLanguage": "JSONata", "StartAt": "A", "States": { "A": { "Type": "Succeed" } } });
    let answer = service.ok("ValidateStateMachineDefinition", json!({ "definition": good.to_string() })).await;
    assert_eq!(answer, json!({ "result": "OK", "diagnostics": [], "truncated": false }));
    let answer = service.ok("ValidateStateMachineDefinition", json!({ "definition": "[]" })).await;
    assert_eq!((&answer["result"], &answer["diagnostics"][0]["severity"]), (&json!("FAIL"), &json!("ERROR")));
}
