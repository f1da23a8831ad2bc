//! A state machine's definition: read once, checked whole at creation, every expression compiled.
//! Sources: the Amazon States Language specification and the AWS Step Functions developer guide.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::expression::Template;

/// A checked state machine.
#[derive(Debug, Clone)]
pub struct StateMachine {
    /// Its top level.
    pub graph: Graph,
    /// TimeoutSeconds of a whole execution.
    pub timeout: Option<Duration>,
}

/// States of one level: the machine's own, a Parallel's branch, or a Map's item processor.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Where it begins.
    pub start_at: String,
    /// By name.
    pub states: BTreeMap<String, State>,
}

/// One state.
#[derive(Debug, Clone)]
pub struct State {
    /// What it does.
    pub kind: Kind,
    /// Variables set when it is left.
    pub assign: Option<Template>,
    /// Its output, where that is not its result or input.
    pub output: Option<Template>,
    /// Where it goes; `None` ends the level.
    pub next: Option<String>,
    /// In order; the first that matches decides.
    pub retry: Vec<Retrier>,
    /// In order; the first that matches decides.
    pub catch: Vec<Catcher>,
}

/// The eight types.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Shapes data.
    Pass,
    /// Ends the level well.
    Succeed,
    /// Ends the level with an error.
    Fail {
        /// The error's name.
        error: Option<Template>,
        /// Its cause.
        cause: Option<Template>,
    },
    /// Waits.
    Wait(Until),
    /// Decides.
    Choice {
        /// In order; the first whose condition is true decides.
        rules: Vec<Rule>,
        /// Where it goes if none is.
        default: Option<String>,
    },
    /// Calls something.
    Task(Task),
    /// Runs branches side by side.
    Parallel {
        /// The input of every branch; the state's own input if absent.
        arguments: Option<Template>,
        /// The branches.
        branches: Vec<Graph>,
    },
    /// Runs one graph for every item.
    Map(Box<MapState>),
}

/// How long a Wait waits.
#[derive(Debug, Clone)]
pub enum Until {
    /// A number of seconds, 0 to 99,999,999.
    Seconds(Template),
    /// A moment, RFC 3339.
    Timestamp(Template),
}

/// One rule of a Choice.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Must give a boolean.
    pub condition: Template,
    /// Where it goes.
    pub next: String,
    /// Variables set if this rule is taken.
    pub assign: Option<Template>,
    /// The output if this rule is taken.
    pub output: Option<Template>,
}

/// What a Task calls.
#[derive(Debug, Clone)]
pub struct Task {
    /// The integration.
    pub resource: Resource,
    /// What it is called with; the state's input if absent.
    pub arguments: Option<Template>,
    /// TimeoutSeconds.
    pub timeout: Option<Template>,
    /// HeartbeatSeconds.
    pub heartbeat: Option<Template>,
}

/// A service integration, `arn:aws:states:::<service>:<action>[.<pattern>]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// As written.
    pub arn: String,
    /// `lambda`, `states`, `events`, `aws-sdk:dynamodb`, …; a history event's resourceType.
    pub service: String,
    /// `invoke`, `startExecution.sync:2`, …; a history event's resource.
    pub action: String,
    /// How its end is known.
    pub pattern: Pattern,
}

/// How the end of a task is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// By its answer.
    Response,
    /// By the end of the job that it starts; output as the API gives it.
    Sync,
    /// The same with JSON output.
    Sync2,
    /// By SendTaskSuccess or SendTaskFailure with the task's token.
    Callback,
}

/// A Map in INLINE mode.
#[derive(Debug, Clone)]
pub struct MapState {
    /// An array or object; the state's input if absent.
    pub items: Option<Template>,
    /// Each iteration's input; the item if absent.
    pub selector: Option<Template>,
    /// Iterations side by side; 0 is all.
    pub concurrency: Option<Template>,
    /// What runs for each.
    pub processor: Graph,
}

/// One entry of Retry.
#[derive(Debug, Clone, PartialEq)]
pub struct Retrier {
    /// Names and wildcards.
    pub errors: Vec<String>,
    /// IntervalSeconds, before the first retry.
    pub interval: Duration,
    /// 0 never retries.
    pub max_attempts: u64,
    /// At least 1.
    pub backoff_rate: f64,
    /// MaxDelaySeconds.
    pub max_delay: Option<Duration>,
    /// JitterStrategy FULL.
    pub full_jitter: bool,
}

/// One entry of Catch.
#[derive(Debug, Clone)]
pub struct Catcher {
    /// Names and wildcards.
    pub errors: Vec<String>,
    /// Where it goes.
    pub next: String,
    /// Variables set if this catcher is taken.
    pub assign: Option<Template>,
    /// The output if this catcher is taken; the error output if absent.
    pub output: Option<Template>,
}

/// What is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `SCHEMA_VALIDATION_FAILED`, `MISSING_TRANSITION_TARGET`, `DUPLICATE_STATE_NAME`, `INVALID_JSON_DESCRIPTION`.
    pub code: &'static str,
    /// For a person.
    pub message: String,
    /// JSON pointer into the definition.
    pub location: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} at {}", self.code, self.message, self.location)
    }
}

const SCHEMA: &str = "SCHEMA_VALIDATION_FAILED";
const TARGET: &str = "MISSING_TRANSITION_TARGET";
/// The longest duration of a state, in seconds.
const MAX_SECONDS: i64 = 99_999_999;

impl StateMachine {
    /// Reads and checks a definition.
    ///
    /// # Errors
    /// Everything that is wrong with it, never an empty list.
    pub fn parse(definition: &str) -> Result<Self, Vec<Problem>> {
        let value: Value = serde_json::from_str(definition).map_err(|error| {
            vec![Problem { code: "INVALID_JSON_DESCRIPTION", message: error.to_string(), location: "/".to_owned() }]
        })?;
        let mut reader = Reader::default();
        let machine = reader.machine(&value);
        match machine {
            Some(machine) if reader.problems.is_empty() => Ok(machine),
            _ => Err(reader.problems),
        }
    }
}

/// Which members of `$states` a field may read.
#[derive(Clone, Copy, PartialEq)]
enum Sees {
    InputOnly,
    Result,
    ErrorOutput,
}

#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
    names: BTreeSet<String>,
}

impl Reader {
    fn problem(&mut self, code: &'static str, location: &str, message: impl Into<String>) {
        let location = if location.is_empty() { "/" } else { location };
        self.problems.push(Problem { code, message: message.into(), location: location.to_owned() });
    }

    fn schema(&mut self, location: &str, message: impl Into<String>) {
        self.problem(SCHEMA, location, message);
    }

    fn machine(&mut self, value: &Value) -> Option<StateMachine> {
        let fields = self.object(value, "")?;
        self.known(fields, "", &["Comment", "QueryLanguage", "StartAt", "States", "TimeoutSeconds", "Version"]);
        let jsonata = self.jsonata(fields, "", false);
        let timeout = match fields.get("TimeoutSeconds") {
            None => None,
            Some(seconds) => {
                let seconds = seconds.as_i64().filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
                if seconds.is_none() {
                    self.schema("/TimeoutSeconds", "The value must be an integer from 1 to 99999999");
                }
                seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs()))
            }
        };
        let graph = self.graph(fields, "", jsonata)?;
        self.shadows(&graph, "", &BTreeSet::new());
        Some(StateMachine { graph, timeout })
    }

    /// Whether a level or state speaks JSONata, the one query language here.
    fn jsonata(&mut self, fields: &Map<String, Value>, at: &str, inherited: bool) -> bool {
        match fields.get("QueryLanguage").and_then(Value::as_str) {
            Some("JSONata") => true,
            Some(_) => {
                self.schema(&format!("{at}/QueryLanguage"), "Only JSONata is supported here");
                true
            }
            None => inherited,
        }
    }

    fn graph(&mut self, fields: &Map<String, Value>, at: &str, jsonata: bool) -> Option<Graph> {
        let start_at = fields.get("StartAt").and_then(Value::as_str).map(str::to_owned);
        if start_at.is_none() {
            self.schema(&format!("{at}/StartAt"), "The field 'StartAt' is required and must be a string");
        }
        let Some(entries) = fields.get("States").and_then(Value::as_object).filter(|states| !states.is_empty()) else {
            self.schema(&format!("{at}/States"), "The field 'States' is required and must be a non-empty object");
            return None;
        };
        let mut states = BTreeMap::new();
        for (name, value) in entries {
            let at = format!("{at}/States/{name}");
            if name.is_empty() || name.chars().count() > 80 {
                self.schema(&at, "A state's name must have 1 to 80 characters");
            }
            if !self.names.insert(name.clone()) {
                self.problem("DUPLICATE_STATE_NAME", &at, format!("The state name '{name}' is used more than once"));
            }
            if let Some(state) = self.state(value, &at, jsonata) {
                states.insert(name.clone(), state);
            }
        }
        let graph = Graph { start_at: start_at?, states };
        self.transitions(&graph, entries, at);
        Some(graph)
    }

    /// Every target exists on the same level, and every state is reached.
    fn transitions(&mut self, graph: &Graph, entries: &Map<String, Value>, at: &str) {
        if !entries.contains_key(&graph.start_at) {
            self.problem(TARGET, &format!("{at}/StartAt"), format!("Missing 'StartAt' target: {}", graph.start_at));
        }
        let mut reached = BTreeSet::from([graph.start_at.as_str()]);
        for (name, state) in &graph.states {
            for (field, target) in state.targets() {
                if entries.contains_key(target) {
                    if target != name {
                        reached.insert(target);
                    }
                } else {
                    self.problem(
                        TARGET,
                        &format!("{at}/States/{name}/{field}"),
                        format!("Missing '{field}' target: {target}"),
                    );
                }
            }
        }
        for name in entries.keys().filter(|name| !reached.contains(name.as_str())) {
            self.problem(TARGET, &format!("{at}/States/{name}"), format!("State \"{name}\" is not reachable."));
        }
    }

    /// An inner level may read the variables of the outer ones, but not have its own of the same name.
    fn shadows(&mut self, graph: &Graph, at: &str, outer: &BTreeSet<&str>) {
        let mut visible = outer.clone();
        for (name, state) in &graph.states {
            for variable in state.assigned() {
                if outer.contains(variable) {
                    let message = format!("The variable '{variable}' is already assigned in an outer scope");
                    self.schema(&format!("{at}/States/{name}/Assign"), message);
                }
                visible.insert(variable);
            }
        }
        for (name, state) in &graph.states {
            match &state.kind {
                Kind::Parallel { branches, .. } => {
                    for (index, branch) in branches.iter().enumerate() {
                        self.shadows(branch, &format!("{at}/States/{name}/Branches/{index}"), &visible);
                    }
                }
                Kind::Map(map) => {
                    self.shadows(&map.processor, &format!("{at}/States/{name}/ItemProcessor"), &visible);
                }
                _ => {}
            }
        }
    }

    fn state(&mut self, value: &Value, at: &str, inherited: bool) -> Option<State> {
        let fields = self.object(value, at)?;
        if !self.jsonata(fields, at, inherited) {
            self.schema(at, "The QueryLanguage must be JSONata, at the top level or in the state");
        }
        let Some(type_name) = fields.get("Type").and_then(Value::as_str) else {
            self.schema(&format!("{at}/Type"), "The field 'Type' is required and must be a string");
            return None;
        };
        let Some(own) = fields_of(type_name) else {
            self.schema(&format!("{at}/Type"), format!("The state type '{type_name}' is not supported"));
            return None;
        };
        let mut known = vec!["Type", "Comment", "QueryLanguage"];
        known.extend_from_slice(own);
        self.known(fields, at, &known);

        let runs = matches!(type_name, "Task" | "Parallel" | "Map");
        let sees = if runs { Sees::Result } else { Sees::InputOnly };
        let assign = self.assign(fields, at, sees);
        let output = self.template(fields, "Output", at, sees);
        let next = self.next(fields, at, type_name);
        let retry = if runs { self.retry(fields, at) } else { Vec::new() };
        let catch = if runs { self.catch(fields, at) } else { Vec::new() };
        let kind = match type_name {
            "Pass" => Kind::Pass,
            "Succeed" => Kind::Succeed,
            "Fail" => Kind::Fail { error: self.text(fields, "Error", at), cause: self.text(fields, "Cause", at) },
            "Wait" => Kind::Wait(self.wait(fields, at)?),
            "Choice" => self.choice(fields, at)?,
            "Task" => Kind::Task(self.task(fields, at)?),
            "Parallel" => self.parallel(fields, at, inherited)?,
            _ => Kind::Map(Box::new(self.map(fields, at, inherited)?)),
        };
        Some(State { kind, assign, output, next, retry, catch })
    }

    fn next(&mut self, fields: &Map<String, Value>, at: &str, type_name: &str) -> Option<String> {
        if matches!(type_name, "Choice" | "Succeed" | "Fail") {
            return None;
        }
        match (fields.get("Next"), fields.get("End")) {
            (Some(Value::String(next)), None) => Some(next.clone()),
            (None, Some(Value::Bool(true))) => None,
            _ => {
                self.schema(at, "A state needs either 'Next', a state's name, or 'End': true");
                None
            }
        }
    }

    fn wait(&mut self, fields: &Map<String, Value>, at: &str) -> Option<Until> {
        match (fields.contains_key("Seconds"), fields.contains_key("Timestamp")) {
            (true, false) => self.seconds(fields, "Seconds", at, 0).map(Until::Seconds),
            (false, true) => self.text(fields, "Timestamp", at).map(Until::Timestamp),
            _ => {
                self.schema(at, "A Wait needs either 'Seconds' or 'Timestamp'");
                None
            }
        }
    }

    fn choice(&mut self, fields: &Map<String, Value>, at: &str) -> Option<Kind> {
        let Some(entries) = fields.get("Choices").and_then(Value::as_array).filter(|rules| !rules.is_empty()) else {
            self.schema(&format!("{at}/Choices"), "The field 'Choices' is required and must be a non-empty array");
            return None;
        };
        let mut rules = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let at = format!("{at}/Choices/{index}");
            let Some(rule) = self.object(entry, &at) else { continue };
            self.known(rule, &at, &["Condition", "Next", "Assign", "Output", "Comment"]);
            let assign = self.assign(rule, &at, Sees::InputOnly);
            let output = self.template(rule, "Output", &at, Sees::InputOnly);
            let condition = self.template(rule, "Condition", &at, Sees::InputOnly);
            match (condition, rule.get("Next").and_then(Value::as_str)) {
                (Some(condition), Some(next)) => {
                    if matches!(&condition, Template::Literal(value) if !value.is_boolean()) {
                        self.schema(
                            &format!("{at}/Condition"),
                            "A condition must be a boolean or a JSONata expression",
                        );
                    }
                    rules.push(Rule { condition, next: next.to_owned(), assign, output });
                }
                _ => self.schema(&at, "A rule needs 'Condition' and 'Next'"),
            }
        }
        let default = fields.get("Default").and_then(Value::as_str).map(str::to_owned);
        Some(Kind::Choice { rules, default })
    }

    fn task(&mut self, fields: &Map<String, Value>, at: &str) -> Option<Task> {
        let place = format!("{at}/Resource");
        let Some(arn) = fields.get("Resource").and_then(Value::as_str) else {
            self.schema(&place, "The field 'Resource' is required and must be a string");
            return None;
        };
        let Some(resource) = Resource::parse(arn) else {
            self.schema(
                &place,
                format!("The resource '{arn}' is not supported; use a service integration arn:aws:states:::<service>:<action>"),
            );
            return None;
        };
        let timeout = self.seconds(fields, "TimeoutSeconds", at, 1);
        let heartbeat = self.seconds(fields, "HeartbeatSeconds", at, 1);
        if let (Some(Template::Literal(timeout)), Some(Template::Literal(heartbeat))) = (&timeout, &heartbeat)
            && heartbeat.as_i64() >= timeout.as_i64()
        {
            self.schema(&format!("{at}/HeartbeatSeconds"), "HeartbeatSeconds must be smaller than TimeoutSeconds");
        }
        let arguments = self.template(fields, "Arguments", at, Sees::InputOnly);
        if resource.service == "lambda" && arguments.is_none() {
            self.schema(&format!("{at}/Arguments"), "lambda:invoke needs 'Arguments' with 'FunctionName'");
        }
        Some(Task { resource, arguments, timeout, heartbeat })
    }

    fn parallel(&mut self, fields: &Map<String, Value>, at: &str, jsonata: bool) -> Option<Kind> {
        let arguments = self.template(fields, "Arguments", at, Sees::InputOnly);
        let Some(entries) = fields.get("Branches").and_then(Value::as_array).filter(|list| !list.is_empty()) else {
            self.schema(&format!("{at}/Branches"), "The field 'Branches' is required and must be a non-empty array");
            return None;
        };
        let mut branches = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let at = format!("{at}/Branches/{index}");
            let Some(branch) = self.object(entry, &at) else { continue };
            self.known(branch, &at, &["Comment", "QueryLanguage", "StartAt", "States"]);
            let jsonata = self.jsonata(branch, &at, jsonata);
            branches.extend(self.graph(branch, &at, jsonata));
        }
        Some(Kind::Parallel { arguments, branches })
    }

    fn map(&mut self, fields: &Map<String, Value>, at: &str, jsonata: bool) -> Option<MapState> {
        let items = self.template(fields, "Items", at, Sees::InputOnly);
        let selector = self.template(fields, "ItemSelector", at, Sees::InputOnly);
        let concurrency = self.seconds(fields, "MaxConcurrency", at, 0);
        let at = format!("{at}/ItemProcessor");
        let Some(processor) = fields.get("ItemProcessor").and_then(Value::as_object) else {
            self.schema(&at, "The field 'ItemProcessor' is required and must be an object");
            return None;
        };
        self.known(processor, &at, &["Comment", "ProcessorConfig", "QueryLanguage", "StartAt", "States"]);
        if let Some(mode) = processor.get("ProcessorConfig").and_then(|config| config.get("Mode"))
            && mode != "INLINE"
        {
            self.schema(&format!("{at}/ProcessorConfig/Mode"), "Only the mode INLINE is supported here");
        }
        let jsonata = self.jsonata(processor, &at, jsonata);
        let processor = self.graph(processor, &at, jsonata)?;
        Some(MapState { items, selector, concurrency, processor })
    }

    fn retry(&mut self, fields: &Map<String, Value>, at: &str) -> Vec<Retrier> {
        let entries = self.list(fields, "Retry", at);
        let count = entries.len();
        let mut retriers = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let at = format!("{at}/Retry/{index}");
            let Some(entry) = self.object(entry, &at) else { continue };
            let known = [
                "Comment",
                "ErrorEquals",
                "IntervalSeconds",
                "MaxAttempts",
                "BackoffRate",
                "MaxDelaySeconds",
                "JitterStrategy",
            ];
            self.known(entry, &at, &known);
            let errors = self.error_equals(entry, &at, index + 1 == count);
            let interval = self.whole(entry, "IntervalSeconds", &at, 1).unwrap_or(1);
            let max_attempts = self.whole(entry, "MaxAttempts", &at, 0).unwrap_or(3);
            let max_delay = self.whole(entry, "MaxDelaySeconds", &at, 1);
            if max_delay.is_some_and(|most| most <= interval) {
                self.schema(&format!("{at}/MaxDelaySeconds"), "MaxDelaySeconds must be greater than IntervalSeconds");
            }
            let backoff_rate = entry.get("BackoffRate").map_or(Some(2.0), Value::as_f64).filter(|rate| *rate >= 1.0);
            if backoff_rate.is_none() {
                self.schema(&format!("{at}/BackoffRate"), "BackoffRate must be a number of at least 1.0");
            }
            let full_jitter = match entry.get("JitterStrategy").map(Value::as_str) {
                None | Some(Some("NONE")) => false,
                Some(Some("FULL")) => true,
                Some(_) => {
                    self.schema(&format!("{at}/JitterStrategy"), "JitterStrategy must be FULL or NONE");
                    false
                }
            };
            retriers.push(Retrier {
                errors,
                interval: Duration::from_secs(interval),
                max_attempts,
                backoff_rate: backoff_rate.unwrap_or(2.0),
                max_delay: max_delay.map(Duration::from_secs),
                full_jitter,
            });
        }
        retriers
    }

    fn catch(&mut self, fields: &Map<String, Value>, at: &str) -> Vec<Catcher> {
        let entries = self.list(fields, "Catch", at);
        let count = entries.len();
        let mut catchers = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let at = format!("{at}/Catch/{index}");
            let Some(entry) = self.object(entry, &at) else { continue };
            self.known(entry, &at, &["Comment", "ErrorEquals", "Next", "Assign", "Output"]);
            let errors = self.error_equals(entry, &at, index + 1 == count);
            let assign = self.assign(entry, &at, Sees::ErrorOutput);
            let output = self.template(entry, "Output", &at, Sees::ErrorOutput);
            match entry.get("Next").and_then(Value::as_str) {
                Some(next) => catchers.push(Catcher { errors, next: next.to_owned(), assign, output }),
                None => self.schema(&format!("{at}/Next"), "The field 'Next' is required and must be a string"),
            }
        }
        catchers
    }

    /// ErrorEquals: States.ALL stands alone and last.
    fn error_equals(&mut self, fields: &Map<String, Value>, at: &str, last: bool) -> Vec<String> {
        let at = format!("{at}/ErrorEquals");
        let names: Vec<String> = fields
            .get("ErrorEquals")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            .unwrap_or_default();
        if names.is_empty() {
            self.schema(&at, "The field 'ErrorEquals' is required and must be a non-empty array of strings");
        }
        if names.iter().any(|name| name == crate::failure::ALL) {
            if names.len() > 1 {
                self.schema(&at, "States.ALL must appear alone in ErrorEquals");
            }
            if !last {
                self.schema(&at, "States.ALL must appear in the last entry only");
            }
        }
        for name in names.iter().filter(|name| name.starts_with("States.") && !RESERVED.contains(&name.as_str())) {
            self.schema(&at, format!("'{name}' is not an error name of the States Language"));
        }
        names
    }

    fn assign(&mut self, fields: &Map<String, Value>, at: &str, sees: Sees) -> Option<Template> {
        let entries = fields.get("Assign")?;
        let at_assign = format!("{at}/Assign");
        for name in self.object(entries, &at_assign)?.keys() {
            let mut characters = name.chars();
            let starts = characters.next().is_some_and(|first| first.is_alphabetic() || first == '_');
            if !starts || !characters.all(|c| c.is_alphanumeric() || c == '_') || name.chars().count() > 80 {
                self.schema(&at_assign, format!("'{name}' is not a variable name of at most 80 letters, digits and _"));
            }
            if name == "states" {
                self.schema(&at_assign, "The variable name 'states' is reserved");
            }
        }
        self.template(fields, "Assign", at, sees)
    }

    fn template(&mut self, fields: &Map<String, Value>, name: &str, at: &str, sees: Sees) -> Option<Template> {
        let at = format!("{at}/{name}");
        let value = fields.get(name)?;
        let mut problems = Vec::new();
        let template = Template::parse(value, &at, &mut |at, why| problems.push((at.to_owned(), why)));
        template.each_query(&mut |query| {
            for member in query.members() {
                let fine = match member {
                    "input" | "context" => true,
                    "result" => sees == Sees::Result,
                    "errorOutput" => sees == Sees::ErrorOutput,
                    _ => false,
                };
                if !fine {
                    problems.push((at.clone(), format!("$states.{member} is not available in this field")));
                }
            }
        });
        for (at, why) in problems {
            self.schema(&at, why);
        }
        Some(template)
    }

    /// Text, or one expression that gives text.
    fn text(&mut self, fields: &Map<String, Value>, name: &str, at: &str) -> Option<Template> {
        let template = self.template(fields, name, at, Sees::InputOnly)?;
        let fine = matches!(&template, Template::Query(_)) || matches!(&template, Template::Literal(Value::String(_)));
        if !fine {
            self.schema(&format!("{at}/{name}"), "The value must be a string or a JSONata expression");
        }
        Some(template)
    }

    /// A whole number in its bounds, or one expression that gives one.
    fn seconds(&mut self, fields: &Map<String, Value>, name: &str, at: &str, least: i64) -> Option<Template> {
        let template = self.template(fields, name, at, Sees::InputOnly)?;
        let fine = match &template {
            Template::Query(_) => true,
            Template::Literal(value) => value.as_i64().is_some_and(|n| (least..=MAX_SECONDS).contains(&n)),
            _ => false,
        };
        if !fine {
            let what = format!("The value must be an integer from {least} to 99999999 or a JSONata expression");
            self.schema(&format!("{at}/{name}"), what);
        }
        Some(template)
    }

    fn whole(&mut self, fields: &Map<String, Value>, name: &str, at: &str, least: u64) -> Option<u64> {
        let value = fields.get(name)?;
        let number = value.as_u64().filter(|n| (least..=MAX_SECONDS.unsigned_abs()).contains(n));
        if number.is_none() {
            self.schema(&format!("{at}/{name}"), format!("The value must be an integer from {least} to 99999999"));
        }
        number
    }

    fn list<'a>(&mut self, fields: &'a Map<String, Value>, name: &str, at: &str) -> &'a [Value] {
        match fields.get(name) {
            None => &[],
            Some(Value::Array(entries)) => entries,
            Some(_) => {
                self.schema(&format!("{at}/{name}"), "The value must be an array");
                &[]
            }
        }
    }

    fn object<'a>(&mut self, value: &'a Value, at: &str) -> Option<&'a Map<String, Value>> {
        if !value.is_object() {
            self.schema(at, "The value must be an object");
        }
        value.as_object()
    }

    fn known(&mut self, fields: &Map<String, Value>, at: &str, known: &[&str]) {
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            self.schema(&format!("{at}/{name}"), format!("The field '{name}' is not supported here"));
        }
    }
}

/// The fields of a state type beside Type, Comment and QueryLanguage.
fn fields_of(type_name: &str) -> Option<&'static [&'static str]> {
    Some(match type_name {
        "Pass" => &["Output", "Assign", "Next", "End"],
        "Succeed" => &["Output"],
        "Fail" => &["Error", "Cause"],
        "Wait" => &["Seconds", "Timestamp", "Output", "Assign", "Next", "End"],
        "Choice" => &["Choices", "Default", "Output", "Assign"],
        "Task" => &[
            "Resource",
            "Arguments",
            "TimeoutSeconds",
            "HeartbeatSeconds",
            "Output",
            "Assign",
            "Retry",
            "Catch",
            "Next",
            "End",
        ],
        "Parallel" => &["Branches", "Arguments", "Output", "Assign", "Retry", "Catch", "Next", "End"],
        "Map" => &[
            "Items",
            "ItemSelector",
            "ItemProcessor",
            "MaxConcurrency",
            "Output",
            "Assign",
            "Retry",
            "Catch",
            "Next",
            "End",
        ],
        _ => return None,
    })
}

/// Error names that begin with `States.`, which no one else may use.
const RESERVED: &[&str] = &[
    "States.ALL",
    "States.BranchFailed",
    "States.DataLimitExceeded",
    "States.ExceedToleratedFailureThreshold",
    "States.HeartbeatTimeout",
    "States.Http.Socket",
    "States.IntrinsicFailure",
    "States.ItemReaderFailed",
    "States.NoChoiceMatched",
    "States.ParameterPathFailure",
    "States.Permissions",
    "States.QueryEvaluationError",
    "States.ResultPathMatchFailure",
    "States.ResultWriterFailed",
    "States.Runtime",
    "States.TaskFailed",
    "States.Timeout",
];

impl State {
    /// Where it may go, with the field that says so.
    #[must_use]
    pub fn targets(&self) -> Vec<(String, &str)> {
        let mut targets: Vec<(String, &str)> = Vec::new();
        targets.extend(self.next.as_deref().map(|next| ("Next".to_owned(), next)));
        if let Kind::Choice { rules, default } = &self.kind {
            targets.extend(rules.iter().enumerate().map(|(i, rule)| (format!("Choices/{i}/Next"), rule.next.as_str())));
            targets.extend(default.as_deref().map(|next| ("Default".to_owned(), next)));
        }
        targets
            .extend(self.catch.iter().enumerate().map(|(i, entry)| (format!("Catch/{i}/Next"), entry.next.as_str())));
        targets
    }
}

impl State {
    /// The variables that it may assign: its own, its catchers' and its rules'.
    pub fn assigned(&self) -> impl Iterator<Item = &str> {
        let rules = match &self.kind {
            Kind::Choice { rules, .. } => rules.as_slice(),
            _ => &[],
        };
        let assigns = rules.iter().map(|rule| &rule.assign).chain(self.catch.iter().map(|entry| &entry.assign));
        assigns.chain([&self.assign]).flatten().flat_map(Template::keys)
    }
}

impl Kind {
    /// As in `Type`, and as in the names of history events.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pass => "Pass",
            Self::Succeed => "Succeed",
            Self::Fail { .. } => "Fail",
            Self::Wait(_) => "Wait",
            Self::Choice { .. } => "Choice",
            Self::Task(_) => "Task",
            Self::Parallel { .. } => "Parallel",
            Self::Map(_) => "Map",
        }
    }
}

impl Resource {
    fn parse(arn: &str) -> Option<Self> {
        let (service, action) = arn.strip_prefix("arn:aws:states:::")?.split_once(':')?;
        // `aws-sdk:dynamodb:getItem` has a two-part service.
        let (service, action) = match (service, action.split_once(':')) {
            ("aws-sdk", Some((api, action))) => (format!("aws-sdk:{api}"), action),
            _ => (service.to_owned(), action),
        };
        let pattern = match action.split_once('.').map(|(_, pattern)| pattern) {
            None => Pattern::Response,
            Some("sync") => Pattern::Sync,
            Some("sync:2") => Pattern::Sync2,
            Some("waitForTaskToken") => Pattern::Callback,
            Some(_) => return None,
        };
        (!action.is_empty()).then(|| Self { arn: arn.to_owned(), service, action: action.to_owned(), pattern })
    }

    /// The API's operation: `invoke`, `startExecution`.
    #[must_use]
    pub fn operation(&self) -> &str {
        self.action.split_once('.').map_or(self.action.as_str(), |(operation, _)| operation)
    }
}
