//! Whether a run may go on where the one before it failed, without another look at what that one has just made sure of.
//! In any doubt it looks at everything.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{ClusterSpec, ErrorName, Made, spec::NetworkSpec};
use time::{Duration, OffsetDateTime};

use crate::state::runs::{Outcome, Purpose, RunRow};

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

impl Resumption {
    /// The same for a run with this fencing number, if nobody had the lease between the two.
    #[must_use]
    pub fn before(self, fence: u64) -> Option<Self> {
        (self.fence + 1 == fence).then_some(self)
    }
}

/// A run that is about to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The release that opens it.
    pub release: &'a str,
    /// The completed spec.
    pub spec: &'a ClusterSpec,
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
    let registered: Option<ClusterSpec> = serde_json::from_value(registered.clone()).ok();
    let alike = registered.as_ref() == Some(asked.spec) && before.release.as_deref() == Some(asked.release);
    // Subnets that are found by their tags are other ones once somebody has tagged more, which may be the remedy.
    let by_tag = matches!(&asked.spec.network, NetworkSpec::Existing(given) if given.subnet_ids.is_empty());
    let made = before.made.clone().filter(|made| made.next.is_some())?;
    let same_cluster = match made.facts.get("eks") {
        Some(eks) => eks.pointer("/endpoint/url").and_then(Value::as_str) == asked.endpoint,
        None => true,
    };
    (failed && first && fresh && alike && !by_tag && same_cluster).then(|| Resumption {
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

    const RELEASE: &str = "0.1.0+7";
    const URL: &str = "https://demo.example";

    fn ended() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap()
    }

    /// A run that failed at its last stage, of nothing that it had made.
    fn failed() -> RunRow {
        let made =
            json!({ "next": "CheckKarpenter", "network": {"vpcId": "vpc-1"}, "eks": {"endpoint": {"url": URL}} });
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

    /// A completed spec, and as the registry has it.
    fn spec(more: &Value) -> (ClusterSpec, Value) {
        let mut spec = json!({ "name": "demo", "version": "1.36" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = ClusterSpec::parse(&spec).unwrap();
        let registered = serde_json::to_value(&spec).unwrap();
        (spec, registered)
    }

    fn decided(before: &RunRow) -> Option<Resumption> {
        let (spec, registered) = spec(&json!({}));
        let asked = Asked { release: RELEASE, spec: &spec, endpoint: Some(URL), at: ended() + Duration::minutes(10) };
        decide(before, &registered, asked)
    }

    #[test]
    fn a_run_goes_on_where_the_one_before_it_failed_innocently() {
        let resumption = decided(&failed()).unwrap();
        assert_eq!((resumption.run.as_str(), resumption.fence), ("01J", 3));
        assert_eq!(resumption.made.next, Some(Stage::CheckKarpenter));
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
        assert_eq!(but(|row| row.release = Some("0.1.0+6".to_owned())), None);
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
        let ((spec, registered), (_, other)) = (spec(&json!({})), spec(&json!({ "core": {"size": 3} })));
        let asked = Asked { release: RELEASE, spec: &spec, endpoint: Some(URL), at: ended() };
        assert!(decide(&failed(), &registered, asked).is_some());
        assert_eq!(decide(&failed(), &other, asked), None);
        assert_eq!(decide(&failed(), &registered, Asked { endpoint: None, ..asked }), None, "it is gone");
        let anew = Asked { endpoint: Some("https://anew.example"), ..asked };
        assert_eq!(decide(&failed(), &registered, anew), None, "it was made anew");
    }

    #[test]
    fn subnets_that_are_found_by_their_tags_are_looked_for_again() {
        let decided = |network: Value| {
            let (spec, registered) = spec(&json!({ "network": { "existing": network } }));
            let asked = Asked { release: RELEASE, spec: &spec, endpoint: Some(URL), at: ended() };
            decide(&failed(), &registered, asked)
        };
        let vpc = "vpc-0123456789abcdef0";
        let subnets = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"];
        assert!(decided(json!({ "vpcId": vpc, "subnetIds": subnets })).is_some());
        assert_eq!(decided(json!({ "vpcId": vpc, "subnetIds": [] })), None);
        assert_eq!(decided(json!({ "vpcId": vpc })), None);
    }

    #[test]
    fn nobody_had_the_lease_between_the_two() {
        let resumption = decided(&failed()).unwrap();
        assert_eq!(resumption.clone().before(4), Some(resumption.clone()));
        assert_eq!(resumption.before(5), None);
    }

    #[test]
    fn what_a_run_would_repair_is_not_gone_on_with() {
        for name in ErrorName::RESUMED {
            assert!(!name.remedy().contains("the run "), "{name}: {}", name.remedy());
        }
    }
}
