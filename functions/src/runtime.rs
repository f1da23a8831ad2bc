//! What Lambda meets: parses the input, runs the step, writes its row, names its error.

use std::{any::Any, env, panic::AssertUnwindSafe, process::ExitCode};

use futures::FutureExt as _;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use slipway_statemachine::{ClusterKey, ErrorName, Run, StepError};
use time::OffsetDateTime;
use tracing::{Instrument as _, Span, error, field, info, info_span, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    Context,
    state::steps::{Attempt, Status},
    steps::{self, Entry},
};

/// A whole function: `step` is its step; without one, the handler that Lambda was told (`_HANDLER`) names it.
#[must_use]
pub fn main(step: Option<&str>) -> ExitCode {
    log_as_json();
    let handler = step.map_or_else(|| env::var("_HANDLER").unwrap_or_default(), str::to_owned);
    let Some(entry) = steps::find(&handler) else {
        error!(handler, "no step has this name; set the function's handler to one of infra/template.yaml's");
        return ExitCode::FAILURE;
    };
    let served =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(lambda_runtime::Error::from);
    match served.and_then(|tokio| tokio.block_on(serve(entry))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(step = entry.name, failure, "the function ends");
            ExitCode::FAILURE
        }
    }
}

async fn serve(entry: &'static Entry) -> Result<(), lambda_runtime::Error> {
    let cx = &Context::from_env().await?;
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Value>| async move {
        invoke(entry, cx, event.payload, &event.context.request_id).await.map_err(Failure)
    }))
    .await
}

/// JSON lines; `RUST_LOG` filters, `info` by default. A panic is a line like any other.
fn log_as_json() {
    // The runtime repeats every error, without saying whose.
    let twice = "lambda_runtime::layers::panic=off".parse().ok();
    let asked = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = twice.into_iter().fold(asked, EnvFilter::add_directive);
    let lines = tracing_subscriber::fmt().json().flatten_event(true).with_span_list(false).with_env_filter(filter);
    // Only a second call in one process fails, and then logging is set up.
    let _ = lines.try_init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        error!(place, message = said(panic.payload()), "panic");
    }));
}

/// One invocation: the step, its log lines, its row.
async fn invoke(entry: &Entry, cx: &Context, payload: Value, request: &str) -> Result<Value, StepError> {
    let span = info_span!("step", step = entry.name, cluster = field::Empty, run = field::Empty, request);
    async {
        let asked = Subject::of(&payload);
        asked.show(&Span::current());
        let started = OffsetDateTime::now_utc();
        let result = AssertUnwindSafe((entry.run)(cx, payload)).catch_unwind().await.unwrap_or_else(|panic| {
            let cause = format!("{} panicked: {} Request id: {request}.", entry.name, said(panic.as_ref()));
            Err(StepError::new(ErrorName::InternalPanic, cause))
        });
        // What opens a run hears of it only from its own answer.
        let subject = asked.or(|| result.as_ref().map(Subject::of).unwrap_or_default());
        subject.show(&Span::current());

        let status = Status::of(&result);
        match &result {
            Ok(_) => info!(status = status.as_str(), "{}", status.detail().unwrap_or("done")),
            Err(failure) => warn!(status = status.as_str(), error = failure.name.as_str(), "{}", failure.cause),
        }
        if let Subject { run: Some(run), cluster: Some(cluster), phase } = &subject {
            let step = phase.as_ref().map_or_else(|| entry.name.to_owned(), |phase| format!("{}-{phase}", entry.name));
            let attempt = Attempt { step, started, ended: OffsetDateTime::now_utc(), status };
            // The row is for whoever watches; the machine's truth is the answer itself.
            if let Err(failure) = cx.state.record(cluster, run, &attempt).await {
                warn!(error = failure.name.as_str(), "the step's row was not written: {}", failure.cause);
            }
        }
        result
    }
    .instrument(span)
    .await
}

/// Whom an input or an answer speaks of, as far as it says.
#[derive(Debug, Clone, Default)]
struct Subject {
    run: Option<Run>,
    cluster: Option<ClusterKey>,
    /// Where the machine runs one step in several places.
    phase: Option<String>,
}

impl Subject {
    fn of(json: &Value) -> Self {
        let part = |name: &str| json.get(name).cloned().unwrap_or_default();
        Self {
            run: serde_json::from_value(part("run")).ok(),
            cluster: serde_json::from_value(part("cluster")).ok(),
            phase: serde_json::from_value(part("phase")).ok(),
        }
    }

    fn or(self, other: impl FnOnce() -> Self) -> Self {
        if self.run.is_some() && self.cluster.is_some() { self } else { other() }
    }

    fn show(&self, span: &Span) {
        if let Some(cluster) = &self.cluster {
            span.record("cluster", &cluster.name);
        }
        if let Some(run) = &self.run {
            span.record("run", &run.id);
        }
    }
}

/// A step's input, or `InvalidInput` that names the path.
///
/// # Errors
/// `InvalidInput`
pub fn parse<T: DeserializeOwned>(json: Value) -> Result<T, StepError> {
    serde_path_to_error::deserialize(json).map_err(|failure| {
        let path = failure.path().to_string();
        let place = if path == "." { "The input".to_owned() } else { format!("`{path}`") };
        StepError::new(ErrorName::InvalidInput, format!("{place} is wrong: {}.", plain(&failure.inner().to_string())))
    })
}

/// A step's output as JSON.
///
/// # Errors
/// `Internal`, if the output has no JSON form.
pub fn answer<T: Serialize>(output: &T) -> Result<Value, StepError> {
    serde_json::to_value(output)
        .map_err(|failure| StepError::new(ErrorName::Internal, format!("The answer has no JSON form: {failure}.")))
}

/// serde's words without the names of Rust's types.
fn plain(message: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in message.split(' ') {
        match (words.last().copied(), word) {
            (Some("struct"), _) => *words.last_mut().unwrap_or(&mut "") = "an object",
            (Some("enum"), _) => *words.last_mut().unwrap_or(&mut "") = "one of its forms",
            (_, "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64") => words.push("a whole number"),
            (_, "untagged") => {}
            _ => words.push(word),
        }
    }
    words.join(" ")
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// A failed step on its way to Lambda, which shows `errorType` to Step Functions as `Error`.
#[derive(Debug)]
struct Failure(StepError);

impl From<Failure> for Diagnostic {
    fn from(Failure(error): Failure) -> Self {
        Self { error_type: error.name.as_str().to_owned(), error_message: error.to_string() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;
    use slipway_statemachine::Progress;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Input {
        #[allow(dead_code)]
        run: Run,
        #[allow(dead_code)]
        names: Vec<String>,
    }

    #[test]
    fn a_bad_payload_names_its_path_and_no_rust_type() {
        let wrong = |json| parse::<Input>(json).unwrap_err();
        let number = wrong(json!({"run": {"id": "01", "fence": "1"}, "names": []}));
        assert_eq!(number.name, ErrorName::InvalidInput);
        assert_eq!(number.cause, "`run.fence` is wrong: invalid type: string \"1\", expected a whole number.");
        let item = wrong(json!({"run": {"id": "01", "fence": 1}, "names": ["a", 2]}));
        assert!(item.cause.starts_with("`names[1]` is wrong: invalid type: integer `2`"), "{}", item.cause);
        let object = wrong(json!({"run": 7, "names": []}));
        assert_eq!(object.cause, "`run` is wrong: invalid type: integer `7`, expected an object.");
        let missing = wrong(json!({"run": {"id": "01", "fence": 1}}));
        assert!(missing.cause.contains("missing field `names`"), "{}", missing.cause);
    }

    #[test]
    fn an_error_keeps_its_name_on_the_way_out() {
        let diagnostic = Diagnostic::from(Failure(StepError::new(ErrorName::LeaseHeld, "Run 1 holds it.")));
        assert_eq!(diagnostic.error_type, "LeaseHeld");
        assert!(diagnostic.error_message.starts_with("Run 1 holds it. Wait for"), "{}", diagnostic.error_message);
        assert!(diagnostic.error_message.ends_with("docs/runbook.md#leaseheld"), "{}", diagnostic.error_message);
    }

    #[test]
    fn a_waiting_answer_is_told_from_a_finished_one() {
        let waiting = answer(&Progress::<u8>::wait(20, "CREATING")).unwrap();
        assert_eq!(Status::of(&Ok(waiting)), Status::Waiting { detail: "CREATING".to_owned() });
        assert_eq!(Status::of(&Ok(answer(&Progress::done(1)).unwrap())), Status::Done);
        assert_eq!(Status::of(&Ok(json!({"nodeGroup": "core"}))), Status::Done);
    }

    #[test]
    fn a_subject_needs_both_halves() {
        let opened = json!({"run": {"id": "01", "fence": 3}, "cluster": {"account": "1", "region": "r", "name": "n"}});
        let from_answer = Subject::of(&json!({"spec": {}})).or(|| Subject::of(&opened));
        assert_eq!(from_answer.run.unwrap().fence, 3);
        assert_eq!(from_answer.cluster.unwrap().name, "n");
    }

    #[tokio::test]
    async fn a_panic_is_an_error_with_a_name() {
        let caught = AssertUnwindSafe(async { panic!("index out of bounds") }).catch_unwind().await;
        let panic: Box<dyn Any + Send> = caught.map(|(): ()| ()).unwrap_err();
        assert_eq!(said(panic.as_ref()), "index out of bounds");
    }
}
