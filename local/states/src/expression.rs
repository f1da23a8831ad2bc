//! JSONata as Step Functions has it: version 2.0.6 inside `{% … %}`, functions of its own, no context document.
//! Source of the rules: "Transforming data with JSONata in Step Functions" in the AWS Step Functions developer guide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use jlens_core::reads::Read;
use jlens_core::{Bindings, Expression, HostFunction, Options};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::failure::{Failure, QUERY_EVALUATION_ERROR};
use crate::random::Random;

/// Values of a state's variables by name, without the `$`.
pub type Variables = Map<String, Value>;

/// A field that may hold expressions at any depth: an Arguments, an Output, an Assign, a Condition.
#[derive(Debug, Clone)]
pub enum Template {
    /// Holds no expression.
    Literal(Value),
    /// One expression.
    Query(Box<Query>),
    /// An array with an expression somewhere inside.
    Array(Vec<Template>),
    /// An object with an expression somewhere inside.
    Object(Vec<(String, Template)>),
}

/// One compiled expression.
#[derive(Debug, Clone)]
pub struct Query {
    expression: Expression,
    /// Every `$name` in it.
    names: BTreeSet<String>,
    /// What it reads of each variable, so that only that is copied: a small expression over a large spec stays small.
    reads: BTreeMap<String, Read>,
}

/// Members of `$states`, as far as a field may see them.
#[derive(Debug, Clone)]
pub(crate) struct States {
    pub(crate) input: Value,
    pub(crate) context: Context,
    pub(crate) result: Option<Value>,
    pub(crate) error_output: Option<Value>,
}

/// The context object in its parts; few expressions ask for it, so it is put together when one does.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Execution and StateMachine.
    pub(crate) execution: Arc<Map<String, Value>>,
    /// The state's name.
    pub(crate) state: String,
    /// When the state was entered, RFC 3339.
    pub(crate) entered: String,
    /// How often the state has been retried.
    pub(crate) retries: u64,
    /// Map, inside one.
    pub(crate) map: Option<Value>,
    /// The task's token, where it waits for one.
    pub(crate) token: Option<String>,
}

impl Context {
    fn value(&self) -> Value {
        let mut context = (*self.execution).clone();
        let state = json!({ "EnteredTime": self.entered, "Name": self.state, "RetryCount": self.retries });
        context.insert("State".to_owned(), state);
        if let Some(map) = &self.map {
            context.insert("Map".to_owned(), map.clone());
        }
        if let Some(token) = &self.token {
            context.insert("Task".to_owned(), json!({ "Token": token }));
        }
        Value::Object(context)
    }
}

/// Everything an evaluation depends on; the same surroundings give the same value.
pub(crate) struct Surroundings<'a> {
    pub(crate) states: &'a States,
    pub(crate) variables: &'a Variables,
    pub(crate) random: &'a Random,
    /// Milliseconds since the epoch, for `$now()` and `$millis()`.
    pub(crate) now: i64,
}

impl Template {
    /// Compiles every expression in `value`. A problem is reported with its place below `at`, a JSON pointer.
    pub(crate) fn parse(value: &Value, at: &str, problem: &mut dyn FnMut(&str, String)) -> Self {
        match value {
            Value::String(text) => match expression_in(text) {
                Ok(None) => Self::Literal(value.clone()),
                Ok(Some(source)) => match Query::compile(source) {
                    Ok(query) => Self::Query(Box::new(query)),
                    Err(why) => {
                        problem(at, why);
                        Self::Literal(Value::Null)
                    }
                },
                Err(why) => {
                    problem(at, why);
                    Self::Literal(Value::Null)
                }
            },
            Value::Array(items) => {
                let parts: Vec<_> = items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| Self::parse(item, &format!("{at}/{index}"), problem))
                    .collect();
                if parts.iter().all(Self::is_literal) { Self::Literal(value.clone()) } else { Self::Array(parts) }
            }
            Value::Object(members) => {
                let parts: Vec<_> = members
                    .iter()
                    .map(|(key, member)| (key.clone(), Self::parse(member, &format!("{at}/{key}"), problem)))
                    .collect();
                let literal = parts.iter().all(|(_, part)| part.is_literal());
                if literal { Self::Literal(value.clone()) } else { Self::Object(parts) }
            }
            _ => Self::Literal(value.clone()),
        }
    }

    /// Whether there is nothing to evaluate.
    #[must_use]
    pub const fn is_literal(&self) -> bool {
        matches!(self, Self::Literal(_))
    }

    /// The keys of an object.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let (literal, parts) = match self {
            Self::Literal(Value::Object(members)) => (Some(members), [].as_slice()),
            Self::Object(parts) => (None, parts.as_slice()),
            _ => (None, [].as_slice()),
        };
        let literal = literal.into_iter().flat_map(Map::keys).map(String::as_str);
        literal.chain(parts.iter().map(|(key, _)| key.as_str()))
    }

    /// Calls `f` for every expression.
    pub fn each_query<'a>(&'a self, f: &mut dyn FnMut(&'a Query)) {
        match self {
            Self::Literal(_) => {}
            Self::Query(query) => f(query),
            Self::Array(parts) => parts.iter().for_each(|part| part.each_query(f)),
            Self::Object(parts) => parts.iter().for_each(|(_, part)| part.each_query(f)),
        }
    }

    /// The value with every expression replaced by what it gives.
    ///
    /// # Errors
    /// `States.QueryEvaluationError` where an expression fails or is undefined.
    pub(crate) fn evaluate(&self, around: &Surroundings<'_>) -> Result<Value, Failure> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Query(query) => query.evaluate(around)?,
            Self::Array(parts) => {
                Value::Array(parts.iter().map(|part| part.evaluate(around)).collect::<Result<_, _>>()?)
            }
            Self::Object(parts) => Value::Object(
                parts
                    .iter()
                    .map(|(key, part)| Ok((key.clone(), part.evaluate(around)?)))
                    .collect::<Result<_, Failure>>()?,
            ),
        })
    }
}

impl Query {
    /// Compiles an expression, refusing what JSONata 2.0.6 in Step Functions does not have.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn compile(source: &str) -> Result<Self, String> {
        let expression = Expression::compile(source).map_err(|error| match error.position() {
            Some(position) => format!("JSONata: {} (position {position})", error.message()),
            None => format!("JSONata: {}", error.message()),
        })?;
        let tree = serde_json::to_value(expression.ast()).map_err(|error| error.to_string())?;
        let mut found = Found::default();
        found.visit(&tree, true);
        if found.fallback {
            // Both operators came with JSONata 2.1; Step Functions has 2.0.6.
            return Err(
                "JSONata: the operators `??` and `?:` do not exist in JSONata 2.0.6; write `$exists(x) ? x : y`"
                    .to_owned(),
            );
        }
        if found.names.contains("eval") {
            return Err("JSONata: the function $eval is not supported in Step Functions".to_owned());
        }
        if found.names.contains("$") {
            return Err("JSONata: `$$` has no meaning in Step Functions, which gives no context document; use $states"
                .to_owned());
        }
        if found.bare {
            return Err("JSONata: a bare field name or `$` at the top level reads a context document, which Step \
                        Functions does not give; start from $states or a variable"
                .to_owned());
        }
        let reads = expression.reads_with(&FUNCTIONS).bindings().clone();
        Ok(Self { expression, names: found.names, reads })
    }

    /// The expression without its `{%` and `%}`.
    #[must_use]
    pub fn source(&self) -> &str {
        self.expression.source()
    }

    /// Every `$name` in the expression, without the `$`: variables, functions and names that it binds itself.
    #[must_use]
    pub const fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// The names read from outside the expression that no built-in function has.
    #[must_use]
    pub fn free_variables(&self) -> BTreeSet<&str> {
        let functions: BTreeSet<&str> = jlens_core::function_catalog().iter().map(|function| function.name).collect();
        self.reads
            .keys()
            .map(String::as_str)
            .filter(|name| *name != "states" && !functions.contains(name) && FUNCTIONS.get_function(name).is_none())
            .collect()
    }

    /// The members of `$states` that it reads by name.
    pub(crate) fn members(&self) -> impl Iterator<Item = &str> {
        self.reads.get("states").and_then(Read::fields).into_iter().flat_map(BTreeMap::keys).map(String::as_str)
    }

    fn evaluate(&self, around: &Surroundings<'_>) -> Result<Value, Failure> {
        let mut bindings = FUNCTIONS.clone();
        for (name, read) in &self.reads {
            if name == "states" {
                bindings = bindings.var("states", around.states.cut(read));
            } else if let Some(value) = around.variables.get(name) {
                bindings = bindings.var(name.clone(), read.cut(value));
            }
        }
        let seed = around.random.bits();
        if self.names.contains("random") {
            bindings = bindings.function("random", random(seed));
        }
        if self.names.contains("uuid") {
            let generator = Random::seeded(seed);
            bindings = bindings.function("uuid", HostFunction::new(0, move |_, _| Ok(Some(json!(generator.uuid())))));
        }
        let options = Options::new().now(around.now).seed(seed);
        match self.expression.evaluate_with(None, &bindings, &options) {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(self.failure("returned nothing (undefined)")),
            Err(error) => Err(self.failure(&error.message())),
        }
    }

    fn failure(&self, why: &str) -> Failure {
        Failure::new(QUERY_EVALUATION_ERROR, format!("The JSONata expression '{}' {why}", self.source()))
    }
}

impl States {
    /// As much of `$states` as an expression reads.
    fn cut(&self, read: &Read) -> Value {
        let mut object = Map::new();
        let mut put = |name: &str, value: &dyn Fn() -> Option<Value>| {
            if read.fields().is_none_or(|fields| fields.contains_key(name))
                && let Some(value) = value()
            {
                object.insert(name.to_owned(), value);
            }
        };
        let inside = |name: &str, value: &Value| {
            read.fields().and_then(|fields| fields.get(name)).map_or_else(|| value.clone(), |read| read.cut(value))
        };
        put("input", &|| Some(inside("input", &self.input)));
        put("context", &|| Some(inside("context", &self.context.value())));
        put("result", &|| self.result.as_ref().map(|value| inside("result", value)));
        put("errorOutput", &|| self.error_output.as_ref().map(|value| inside("errorOutput", value)));
        Value::Object(object)
    }
}

/// The expression inside `{% … %}`; `None` for ordinary text.
fn expression_in(text: &str) -> Result<Option<&str>, String> {
    match (text.strip_prefix("{%"), text.ends_with("%}")) {
        (Some(rest), true) if rest.len() >= 2 => Ok(Some(rest[..rest.len() - 2].trim())),
        (Some(_), _) => Err("an expression that starts with `{%` must end with `%}`".to_owned()),
        (None, true) => Err("an expression that ends with `%}` must start with `{%`".to_owned()),
        (None, false) => Ok(None),
    }
}

/// What a walk over a syntax tree finds.
#[derive(Default)]
struct Found {
    names: BTreeSet<String>,
    /// `??` or `?:`.
    fallback: bool,
    /// Something reads the context document, which does not exist.
    bare: bool,
}

impl Found {
    /// Walks a tree in its serialised form, which spares a match over two dozen kinds of nodes. `top`: no path, filter
    /// or transform around the node gives it a context of its own.
    fn visit(&mut self, node: &Value, top: bool) {
        match node {
            Value::Array(items) => items.iter().for_each(|item| self.visit(item, top)),
            Value::Object(members) => self.visit_node(members, top),
            _ => {}
        }
    }

    fn visit_node(&mut self, members: &Map<String, Value>, top: bool) {
        let kind = members.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "variable" => {
                let name = members.get("name").and_then(Value::as_str).unwrap_or_default();
                self.bare |= top && name.is_empty();
                self.names.insert(name.to_owned());
            }
            "name" | "wildcard" | "descendant" | "parent" => self.bare |= top,
            "fallback" => self.fallback = true,
            _ => {}
        }
        for (field, member) in members {
            match (kind, field.as_str(), member) {
                ("path", "steps", Value::Array(steps)) => {
                    for (index, step) in steps.iter().enumerate() {
                        self.visit(step, top && index == 0);
                    }
                }
                (_, "stages" | "predicate" | "group", _) | ("transform" | "sort", _, _) => self.visit(member, false),
                _ => self.visit(member, top),
            }
        }
    }
}

/// The functions that Step Functions adds to JSONata, except those that need an evaluation's seed.
static FUNCTIONS: LazyLock<Bindings> = LazyLock::new(|| {
    Bindings::new()
        .function("partition", HostFunction::new(2, |args, _| partition(args)).without_input())
        .function("range", HostFunction::new(3, |args, _| range(args)).without_input())
        .function("hash", HostFunction::new(2, |args, _| hash(args)).without_input())
        .function("parse", HostFunction::new(1, |args, _| parse(args)).without_input())
        .function("uuid", HostFunction::new(0, |_, _| Ok(None)).without_input())
        .function("random", HostFunction::new(1, |_, _| Ok(None)).without_input())
});

type Answer = jlens_core::Result<Option<Value>>;
type Args = [Option<Value>];

fn refused(message: impl Into<String>) -> jlens_core::Error {
    jlens_core::Error::new("States").with("message", message.into())
}

fn argument(args: &Args, index: usize) -> Option<&Value> {
    args.get(index).and_then(Option::as_ref)
}

/// `$partition(array, size)`: the array in pieces of `size`, the last one shorter.
fn partition(args: &Args) -> Answer {
    let Some(items) = argument(args, 0) else { return Ok(None) };
    let single = std::slice::from_ref(items);
    let items = items.as_array().map_or(single, Vec::as_slice);
    let size = argument(args, 1).and_then(integer).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
    let Some(size) = size else { return Err(refused("$partition needs a positive integer as its second argument")) };
    Ok(Some(items.chunks(size).map(|chunk| Value::Array(chunk.to_vec())).collect()))
}

/// `$range(first, last, step)`: both ends included.
fn range(args: &Args) -> Answer {
    let numbers = [0, 1, 2].map(|index| argument(args, index).and_then(integer));
    let [Some(first), Some(last), Some(step)] = numbers else {
        return Err(refused("$range needs three integers"));
    };
    if step == 0 {
        return Err(refused("$range needs a step other than 0"));
    }
    let count = (last - first) / step + 1;
    if count > 1_000 {
        return Err(refused("$range gives at most 1,000 items"));
    }
    Ok(Some((0..count.max(0)).map(|index| json!(first + index * step)).collect()))
}

/// `$hash(data, algorithm)`: hexadecimal.
fn hash(args: &Args) -> Answer {
    let Some(data) = argument(args, 0) else { return Ok(None) };
    let text = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
    Ok(Some(json!(match argument(args, 1).and_then(Value::as_str) {
        Some("SHA-256") => hex::encode(Sha256::digest(text)),
        Some("SHA-384") => hex::encode(Sha384::digest(text)),
        Some("SHA-512") => hex::encode(Sha512::digest(text)),
        // AWS has MD5 and SHA-1 as well; nothing should start to depend on them.
        _ => return Err(refused("$hash here knows SHA-256, SHA-384 and SHA-512")),
    })))
}

/// `$parse(text)`: JSON text to a value; the counterpart of `$string`, since there is no `$eval`.
fn parse(args: &Args) -> Answer {
    let Some(value) = argument(args, 0) else { return Ok(None) };
    let Some(text) = value.as_str() else { return Err(refused("$parse needs a string")) };
    serde_json::from_str(text).map(Some).map_err(|error| refused(format!("$parse: not valid JSON: {error}")))
}

/// `$random()` or `$random(seed)`, in [0, 1).
fn random(seed: u64) -> HostFunction {
    let generator = Random::seeded(seed);
    HostFunction::new(1, move |args, _| {
        Ok(Some(json!(match argument(args, 0).and_then(integer) {
            Some(own) => Random::seeded(own.unsigned_abs()).fraction(),
            None => generator.fraction(),
        })))
    })
}

/// An integer, also where JSONata's doubles wrote it as `3.0`.
pub(crate) fn integer(value: &Value) -> Option<i64> {
    if let Some(integer) = value.as_i64() {
        return Some(integer);
    }
    let float = value.as_f64()?;
    // Beyond 2^53 a double no longer holds every integer.
    #[allow(clippy::cast_possible_truncation)]
    (float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0).then_some(float as i64)
}
