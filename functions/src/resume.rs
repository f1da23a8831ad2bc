//! Whether a run may go on where the one before it failed. It saves the reads of what that run has just looked at, and
//! nothing else: any doubt, and the run looks at everything.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{ErrorName, Made};
use time::{Duration, OffsetDateTime};

use crate::state::runs::{Outcome, Purpose, RunRow};

/// The release that opens and resumes runs.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// For how long after its end a run is gone on with.
const WITHIN: Duration = Duration::hours(1);

/// A run that failed, as the one that goes on with it has it in its row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resumption {
    /// ULID of the run that failed.
    pub run: String,
    /// Its fencing number: nobody had the lease between the two if the next one's is one more.
    pub fence: u64,
    /// What it had behind it.
    pub made: Made,
}

/// A run that is about to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The completed spec.
    pub spec: &'a Value,
    /// The API server's URL of the cluster that is there.
    pub endpoint: Option<&'a str>,
    /// Now.
    pub at: OffsetDateTime,
}

/// What of the run before, whose completed spec was `registered`, need not be looked at again.
#[must_use]
pub fn decide(before: &RunRow, registered: &Value, asked: Asked<'_>) -> Option<Resumption> {
    let innocent = ErrorName::RESUMED.iter().any(|name| before.error.as_deref() == Some(name.as_str()));
    let failed = before.purpose == Purpose::Provision && before.outcome == Some(Outcome::Failed) && innocent;
    // Once: a run that went on and failed, too, may have failed of what it did not look at.
    let first = before.resumes.is_none();
    let fresh = before.ended_at.is_some_and(|ended| asked.at - ended < WITHIN);
    let alike = registered == asked.spec && before.release.as_deref() == Some(RELEASE);
    let made = before.made.clone().filter(|made| made.next.is_some())?;
    let same_cluster = match made.facts.get("eks") {
        Some(eks) => eks.pointer("/endpoint/url").and_then(Value::as_str) == asked.endpoint,
        None => true,
    };
    (failed && first && fresh && alike && same_cluster).then(|| Resumption {
        run: before.run.id.clone(),
        fence: before.run.fence,
        made,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use slipway_statemachine::{Run, Stage};

    use super::*;

    const URL: &str = "https://demo.example";

    fn ended() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap()
    }

    /// A run that failed at its last stage, of nothing that it had made.
    fn failed() -> RunRow {
        let made =
            json!({ "next": "VerifyCapacity", "network": {"vpcId": "vpc-1"}, "eks": {"endpoint": {"url": URL}} });
        RunRow {
            run: Run { id: "01J".to_owned(), fence: 3 },
            purpose: Purpose::Provision,
            execution: "arn".to_owned(),
            outcome: Some(Outcome::Failed),
            error: Some("CapacityUnavailable".to_owned()),
            cause: None,
            outputs: Value::Null,
            announced: true,
            ended_at: Some(ended()),
            release: Some(RELEASE.to_owned()),
            made: Some(serde_json::from_value(made).unwrap()),
            resumes: None,
        }
    }

    fn decided(before: &RunRow) -> Option<Resumption> {
        let spec = json!({ "name": "demo" });
        let asked = Asked { spec: &spec, endpoint: Some(URL), at: ended() + Duration::minutes(10) };
        decide(before, &spec, asked)
    }

    #[test]
    fn a_run_goes_on_where_the_one_before_it_failed_innocently() {
        let resumption = decided(&failed()).unwrap();
        assert_eq!((resumption.run.as_str(), resumption.fence), ("01J", 3));
        assert_eq!(resumption.made.next, Some(Stage::VerifyCapacity));
        assert_eq!(resumption.made.facts["network"], json!({ "vpcId": "vpc-1" }));
    }

    #[test]
    fn in_any_doubt_everything_is_looked_at() {
        let but = |change: fn(&mut RunRow)| {
            let mut row = failed();
            change(&mut row);
            decided(&row)
        };
        assert_eq!(but(|row| row.purpose = Purpose::Teardown), None);
        assert_eq!(but(|row| row.outcome = Some(Outcome::Succeeded)), None);
        assert_eq!(but(|row| row.outcome = None), None, "it may be at work");
        assert_eq!(but(|row| row.release = Some("0.0.1".to_owned())), None);
        assert_eq!(but(|row| row.release = None), None, "a release that wrote none");
        assert_eq!(but(|row| row.made = None), None);
        assert_eq!(but(|row| row.made = Some(Made::default())), None, "it failed before anything was made");
        assert_eq!(but(|row| row.ended_at = Some(ended() - Duration::hours(1))), None);
        let resumed = |row: &mut RunRow| row.resumes = decided(&failed());
        assert_eq!(but(resumed), None, "it went on itself");
        // The trust policy may be what is wrong, a stop or a time-out says nothing.
        for error in ["IdentityRefused", "OidcProviderMissing", "NodesNeverJoin", "States.Timeout", "ExecutionStopped"]
        {
            assert_eq!(decided(&RunRow { error: Some(error.to_owned()), ..failed() }), None, "{error}");
        }
    }

    #[test]
    fn another_spec_or_another_cluster_is_looked_at() {
        let (spec, other) = (json!({ "name": "demo" }), json!({ "name": "demo", "core": {"size": 3} }));
        let asked = Asked { spec: &spec, endpoint: Some(URL), at: ended() };
        assert!(decide(&failed(), &spec, asked).is_some());
        assert_eq!(decide(&failed(), &other, asked), None);
        assert_eq!(decide(&failed(), &spec, Asked { endpoint: None, ..asked }), None, "it is gone");
        let anew = Asked { endpoint: Some("https://anew.example"), ..asked };
        assert_eq!(decide(&failed(), &spec, anew), None, "it was made anew");
    }
}
