//! close-run: writes outcome and timeline, tells the bus, gives the lease back.

use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Value, json};
use slipway_statemachine::{ClusterKey, ClusterSpec, ErrorName, Run, Step, StepError};
use time::{Duration, OffsetDateTime};

use crate::{
    Context,
    aws::error::During as _,
    state::runs::{Closing, Outcome, Purpose, RunRow},
};

/// Closes a run.
#[derive(Debug)]
pub struct CloseRun;

/// From the machine, or about it.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub enum Input {
    /// An execution that ended without closing its run: stopped, timed out, or failed beyond any Catch.
    Event(StatusChange),
    /// The machine closes its own run.
    Own(Box<Own>),
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Told apart by hand, so that an error names the field instead of "no variant".
        let json = Value::deserialize(deserializer)?;
        if json.get("detail-type").is_some() {
            serde_json::from_value(json).map(Self::Event).map_err(D::Error::custom)
        } else {
            serde_json::from_value(json).map(|own| Self::Own(Box::new(own))).map_err(D::Error::custom)
        }
    }
}

/// What the machine says at its end.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Own {
    /// The run.
    pub run: Run,
    /// The cluster.
    pub cluster: ClusterKey,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed, of a failed run.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// What was made, of a run that succeeded.
    #[serde(default)]
    #[schemars(with = "Option<std::collections::BTreeMap<String, Value>>")]
    pub outputs: Option<Value>,
    /// How far it came, of a failed run. What a later release calls a stage must not keep a run from being closed.
    #[serde(default)]
    #[schemars(with = "Option<slipway_statemachine::Made>")]
    pub made: Option<Value>,
    /// The spec that the run had.
    pub spec: ClusterSpec,
}

/// Why a run failed.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Failure {
    /// The error's name.
    pub error: String,
    /// What happened.
    pub cause: String,
}

/// EventBridge's `Step Functions Execution Status Change`, as far as it matters.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct StatusChange {
    /// `Step Functions Execution Status Change`
    #[serde(rename = "detail-type")]
    pub detail_type: String,
    /// The execution.
    pub detail: Ended,
}

/// An execution that ended.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// `arn:aws:states:<region>:<account>:execution:<machine>:<name>`
    pub execution_arn: String,
    /// `FAILED`, `TIMED_OUT` or `ABORTED`
    pub status: String,
    /// Epoch milliseconds.
    #[serde(default)]
    pub stop_date: Option<i64>,
    /// What it was started with; absent where that is too long for an event.
    #[serde(default)]
    pub input: Option<String>,
    /// Its error, where it has one.
    #[serde(default)]
    pub error: Option<String>,
    /// Its cause, where it has one.
    #[serde(default)]
    pub cause: Option<String>,
}

/// How the run is closed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    /// As the table has it, which an earlier closing may have decided.
    pub outcome: Outcome,
}

impl Step for CloseRun {
    const NAME: &'static str = "close-run";
    const ERRORS: &'static [ErrorName] = &[];
    type Input = Input;
    type Output = Output;
}

/// The machine's own closing.
fn own_closing(own: &Own, at: OffsetDateTime) -> Closing {
    let failure = own.failure.as_ref();
    Closing {
        outcome: own.outcome,
        error: failure.map(|failure| failure.error.clone()),
        cause: failure.map(|failure| failure.cause.clone()),
        outputs: own.outputs.clone().unwrap_or_default(),
        made: own.made.clone().unwrap_or_default(),
        at,
        free_at: None,
    }
}

/// The closing of an execution that was cut off: functions of it may still be at work.
fn cut_off(ended: &Ended, at: OffsetDateTime, grace: Duration) -> Closing {
    let stopped = ended
        .stop_date
        .and_then(|millis| OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok())
        .unwrap_or(at);
    let said = |said: &Option<String>| said.clone().filter(|said| !said.is_empty());
    let (error, cause) = match ended.status.as_str() {
        "TIMED_OUT" => ("States.Timeout", "The execution ran into the machine's time limit."),
        "ABORTED" => ("ExecutionStopped", "The execution was stopped."),
        _ => ("ExecutionFailed", "The execution failed in a way that the machine cannot catch."),
    };
    Closing {
        outcome: Outcome::Failed,
        error: Some(said(&ended.error).unwrap_or_else(|| error.to_owned())),
        cause: Some(said(&ended.cause).unwrap_or_else(|| cause.to_owned())),
        outputs: Value::Null,
        made: Value::Null,
        at,
        free_at: Some(stopped + grace),
    }
}

/// Which cluster an execution was for: its ARN says where, its input which.
fn cluster_of(execution: &str, input: &str) -> Option<ClusterKey> {
    let mut arn = execution.split(':').skip(3);
    let (region, account) = (arn.next()?.to_owned(), arn.next()?.to_owned());
    let input = serde_json::from_str::<Value>(input).ok()?;
    let name =
        ["/name", "/cluster/name", "/spec/name"].into_iter().find_map(|at| input.pointer(at)?.as_str())?.to_owned();
    Some(ClusterKey { account, region, name })
}

/// Closes the run; one that is closed stays as it is.
///
/// # Errors
/// What AWS refuses.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let at = OffsetDateTime::now_utc();
    match input {
        Input::Own(own) => close(cx, &own.cluster, &own.run, &own_closing(&own, at)).await,
        Input::Event(StatusChange { detail, .. }) => {
            let closing = cut_off(&detail, at, cx.settings.lease_grace);
            let input = match &detail.input {
                Some(input) => Some(input.clone()),
                None => input_of(cx, &detail.execution_arn).await?,
            };
            let Some(cluster) = cluster_of(&detail.execution_arn, input.as_deref().unwrap_or_default()) else {
                tracing::info!(execution = detail.execution_arn, "its input names no cluster, so it opened no run");
                return Ok(Output { outcome: closing.outcome });
            };
            let Some(row) = cx.state.run_of(&cluster, &detail.execution_arn).await? else {
                tracing::info!(execution = detail.execution_arn, cluster = cluster.name, "it opened no run");
                return Ok(Output { outcome: closing.outcome });
            };
            tracing::Span::current().record("cluster", &cluster.name).record("run", &row.run.id);
            close(cx, &cluster, &row.run, &closing).await
        }
    }
}

async fn input_of(cx: &Context, execution: &str) -> Result<Option<String>, StepError> {
    let answer = cx.aws.states().describe_execution().execution_arn(execution).send().await;
    Ok(answer.during("states:DescribeExecution")?.input)
}

async fn close(cx: &Context, cluster: &ClusterKey, run: &Run, closing: &Closing) -> Result<Output, StepError> {
    let row = match cx.state.run(cluster, &run.id).await? {
        Some(row) if row.outcome.is_some() => row,
        _ => cx.state.close(cluster, run, closing).await?,
    };
    if !row.announced {
        announce(cx, cluster, &row).await?;
        cx.state.announced(cluster, &run.id, closing.at).await?;
    }
    Ok(Output { outcome: row.outcome.unwrap_or(closing.outcome) })
}

/// What the bus hears: detail-type and detail.
fn event(cluster: &ClusterKey, row: &RunRow) -> (&'static str, Value) {
    let kind = match (row.outcome, row.purpose) {
        (Some(Outcome::Succeeded), Purpose::Provision) => "Cluster Ready",
        (Some(Outcome::Succeeded), Purpose::Teardown) => "Cluster Deleted",
        (Some(Outcome::Failed) | None, _) => "Cluster Failed",
    };
    let detail = json!({
        "cluster": cluster,
        "run": row.run.id,
        "execution": row.execution,
        "outcome": row.outcome,
        "error": row.error,
        "cause": row.cause,
        "outputs": row.outputs,
    });
    (kind, detail)
}

async fn announce(cx: &Context, cluster: &ClusterKey, row: &RunRow) -> Result<(), StepError> {
    let (kind, detail) = event(cluster, row);
    let entry = PutEventsRequestEntry::builder()
        .event_bus_name(&cx.settings.bus)
        .source("slipway")
        .detail_type(kind)
        .detail(detail.to_string())
        .build();
    let answer = cx.aws.events().put_events().entries(entry).send().await.during("events:PutEvents")?;
    // An entry is refused inside an answer that succeeds.
    match answer.entries().iter().find_map(|entry| entry.error_code().map(|code| (code, entry.error_message()))) {
        None => Ok(()),
        Some((code, message)) => {
            let message = message.unwrap_or("no message");
            let name = crate::aws::error::classify(code, message, 200);
            Err(StepError::new(name, format!("events:PutEvents refused the event: {message} ({code}).")))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::runtime::parse;

    const ARN: &str = "arn:aws:states:eu-west-1:111122223333:execution:slipway-provision:first";

    fn stopped() -> Value {
        json!({
            "version": "0", "source": "aws.states", "detail-type": "Step Functions Execution Status Change",
            "detail": {
                "executionArn": ARN, "stateMachineArn": "arn", "name": "first", "status": "ABORTED",
                "startDate": 1_795_377_600_000_i64, "stopDate": 1_795_377_660_000_i64,
                "input": "{\"name\":\"demo\"}", "inputDetails": {"included": true}, "output": null,
                "error": null, "cause": null
            }
        })
    }

    #[test]
    fn a_stopped_execution_leads_to_its_cluster_and_frees_it_later() {
        let Input::Event(event) = parse(stopped()).unwrap() else { panic!("not an event") };
        let cluster = cluster_of(&event.detail.execution_arn, event.detail.input.as_deref().unwrap()).unwrap();
        assert_eq!(
            (cluster.region.as_str(), cluster.account.as_str(), cluster.name.as_str()),
            ("eu-west-1", "111122223333", "demo")
        );
        let closing = cut_off(&event.detail, datetime!(2026-11-22 20:01:05 UTC), Duration::seconds(120));
        assert_eq!(closing.outcome, Outcome::Failed);
        assert_eq!(closing.error.as_deref(), Some("ExecutionStopped"));
        assert_eq!(closing.free_at.unwrap().unix_timestamp(), 1_795_377_660 + 120);
    }

    #[test]
    fn an_execution_without_a_cluster_is_nobodys() {
        assert_eq!(cluster_of(ARN, "{}"), None);
        assert_eq!(cluster_of(ARN, "not json"), None);
        assert_eq!(cluster_of(ARN, "{\"cluster\": {\"name\": \"demo\"}}").unwrap().name, "demo");
    }

    #[test]
    fn a_wrong_input_names_its_field() {
        let error = parse::<Input>(json!({"cluster": {}, "outcome": "Failed"})).unwrap_err();
        assert_eq!(error.name, ErrorName::InvalidInput);
        assert!(error.cause.contains("missing field `"), "{}", error.cause);
    }

    #[test]
    fn the_bus_hears_what_the_table_has() {
        let cluster = cluster_of(ARN, "{\"name\":\"demo\"}").unwrap();
        let row = RunRow {
            run: Run { id: "01A".to_owned(), fence: 3 },
            purpose: Purpose::Provision,
            execution: ARN.to_owned(),
            outcome: Some(Outcome::Failed),
            error: Some("ChartNotFound".to_owned()),
            cause: Some("There is no 9.9.9.".to_owned()),
            outputs: Value::Null,
            announced: false,
            ended_at: None,
            release: None,
            made: None,
            resumes: None,
        };
        let (kind, detail) = event(&cluster, &row);
        assert_eq!(kind, "Cluster Failed");
        assert_eq!((&detail["error"], &detail["cluster"]["name"]), (&json!("ChartNotFound"), &json!("demo")));
        let (kind, _) = event(&cluster, &RunRow { outcome: Some(Outcome::Succeeded), ..row.clone() });
        assert_eq!(kind, "Cluster Ready");
        let (kind, _) =
            event(&cluster, &RunRow { outcome: Some(Outcome::Succeeded), purpose: Purpose::Teardown, ..row });
        assert_eq!(kind, "Cluster Deleted");
    }
}
