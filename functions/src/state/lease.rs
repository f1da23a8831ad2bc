//! The lease: who may change a cluster. Its fencing number grows with every taking and never falls.

use slipway_statemachine::{ErrorName, Run, StepError};
use time::{Duration, OffsetDateTime};

use super::{Row, attributes, read};

/// A cluster's lease, held or free. It is never deleted, since the fencing number must not start again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The number of the last taking.
    pub fence: u64,
    /// Who holds it; none when it is free.
    pub holder: Option<Holder>,
    /// A free lease may not be taken before.
    pub free_at: Option<OffsetDateTime>,
}

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// ULID of the run.
    pub run: String,
    /// ARN of the run's execution.
    pub execution: String,
    /// When it was taken.
    pub taken_at: OffsetDateTime,
}

/// What Step Functions says of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// It runs.
    Running,
    /// It ended then.
    Ended(OffsetDateTime),
    /// Step Functions has never heard of it, or not yet: DescribeExecution is eventually consistent.
    Unknown,
}

/// What to do about a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Take it under this fencing number.
    Take {
        /// One more than the last.
        fence: u64,
    },
    /// This execution has it already.
    Keep(Run),
    /// First ask what became of this execution.
    Ask {
        /// ARN of the holder's execution.
        execution: String,
    },
    /// Leave it: its run is at work.
    Leave {
        /// A whole sentence.
        because: String,
    },
    /// Leave it for a while: functions of its run may still be at work.
    TooEarly {
        /// A whole sentence.
        because: String,
        /// How long.
        seconds: i64,
    },
}

impl Lease {
    pub(super) fn of(row: &Row) -> Self {
        let text = |name| attributes::text(row, name);
        let holder = text("run").zip(text("execution")).map(|(run, execution)| {
            let taken_at = text("takenAt").as_deref().and_then(read).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            Holder { run, execution, taken_at }
        });
        Self {
            fence: attributes::number(row, "fence").unwrap_or_default(),
            holder,
            free_at: text("freeAt").as_deref().and_then(read),
        }
    }
}

/// May `execution` have the lease? `holder` is what became of the execution that holds it, once that was asked; `grace`
/// is how long a function may outlive its execution.
#[must_use]
pub fn decide(
    lease: Option<&Lease>,
    execution: &str,
    holder: Option<Execution>,
    now: OffsetDateTime,
    grace: Duration,
) -> Decision {
    let Some(lease) = lease else { return Decision::Take { fence: 1 } };
    let take = Decision::Take { fence: lease.fence + 1 };
    let too_early = |who: &str, until: OffsetDateTime| Decision::TooEarly {
        because: format!("{who}; functions of it may still be at work."),
        seconds: (until - now).whole_seconds().max(1),
    };
    let Some(held) = &lease.holder else {
        return match lease.free_at {
            Some(free_at) if now < free_at => too_early("The last run was cut off", free_at),
            _ => take,
        };
    };
    if held.execution == execution {
        return Decision::Keep(Run { id: held.run.clone(), fence: lease.fence });
    }
    match holder {
        None => Decision::Ask { execution: held.execution.clone() },
        Some(Execution::Running) => {
            Decision::Leave { because: format!("Run {} of {} is at work.", held.run, held.execution) }
        }
        Some(Execution::Ended(at)) if now < at + grace => {
            too_early(&format!("{} has just ended", held.execution), at + grace)
        }
        // Seconds after its start an execution may be unknown yet.
        Some(Execution::Unknown) if now < held.taken_at + grace => {
            too_early(&format!("{} is not known yet", held.execution), held.taken_at + grace)
        }
        Some(Execution::Ended(_) | Execution::Unknown) => take,
    }
}

/// Is the lease still this run's?
///
/// # Errors
/// `LeaseLost`
pub fn held(lease: Option<&Lease>, run: &Run) -> Result<(), StepError> {
    let holder = lease.and_then(|lease| lease.holder.as_ref().map(|holder| (lease.fence, holder)));
    match holder {
        Some((fence, holder)) if fence == run.fence && holder.run == run.id => Ok(()),
        Some((_, holder)) => {
            let cause = format!("Run {} lost the cluster to run {} of {}.", run.id, holder.run, holder.execution);
            Err(StepError::new(ErrorName::LeaseLost, cause))
        }
        None => {
            Err(StepError::new(ErrorName::LeaseLost, format!("Run {} was closed while a step of it worked.", run.id))
                .remedy("Start again; the new run takes up what this one left."))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const GRACE: Duration = Duration::seconds(120);
    const NOW: OffsetDateTime = datetime!(2026-11-22 20:00:00 UTC);

    fn held_by(execution: &str) -> Lease {
        let taken_at = NOW - Duration::minutes(10);
        let holder = Holder { run: "01A".to_owned(), execution: execution.to_owned(), taken_at };
        Lease { fence: 7, holder: Some(holder), free_at: None }
    }

    fn waits(decision: &Decision) -> bool {
        matches!(decision, Decision::TooEarly { .. })
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken_with_a_higher_number() {
        assert_eq!(decide(None, "e", None, NOW, GRACE), Decision::Take { fence: 1 });
        let free = Lease { fence: 7, holder: None, free_at: None };
        assert_eq!(decide(Some(&free), "e", None, NOW, GRACE), Decision::Take { fence: 8 });
    }

    #[test]
    fn the_same_execution_keeps_its_run() {
        let run = Run { id: "01A".to_owned(), fence: 7 };
        assert_eq!(decide(Some(&held_by("e")), "e", None, NOW, GRACE), Decision::Keep(run));
    }

    #[test]
    fn another_execution_is_asked_about_first() {
        assert_eq!(decide(Some(&held_by("a")), "b", None, NOW, GRACE), Decision::Ask { execution: "a".to_owned() });
    }

    #[test]
    fn a_running_holder_keeps_it() {
        let decision = decide(Some(&held_by("a")), "b", Some(Execution::Running), NOW, GRACE);
        assert_eq!(decision, Decision::Leave { because: "Run 01A of a is at work.".to_owned() });
    }

    #[test]
    fn an_ended_holder_loses_it_when_its_functions_are_surely_over() {
        let ended = |ago| {
            let ended = Execution::Ended(NOW - Duration::seconds(ago));
            decide(Some(&held_by("a")), "b", Some(ended), NOW, GRACE)
        };
        assert!(waits(&ended(0)));
        assert!(waits(&ended(119)));
        assert_eq!(ended(120), Decision::Take { fence: 8 });
    }

    #[test]
    fn an_unknown_holder_counts_from_its_taking() {
        let mut lease = held_by("a");
        assert_eq!(decide(Some(&lease), "b", Some(Execution::Unknown), NOW, GRACE), Decision::Take { fence: 8 });
        lease.holder.as_mut().unwrap().taken_at = NOW - Duration::seconds(5);
        assert!(waits(&decide(Some(&lease), "b", Some(Execution::Unknown), NOW, GRACE)));
    }

    #[test]
    fn a_run_that_was_cut_off_blocks_until_its_functions_are_surely_over() {
        let mut cut = Lease { fence: 7, holder: None, free_at: Some(NOW + Duration::seconds(30)) };
        let decision = decide(Some(&cut), "b", None, NOW, GRACE);
        assert!(matches!(decision, Decision::TooEarly { seconds: 30, .. }), "{decision:?}");
        cut.free_at = Some(NOW);
        assert_eq!(decide(Some(&cut), "b", None, NOW, GRACE), Decision::Take { fence: 8 });
    }

    #[test]
    fn a_step_holds_only_its_own_number() {
        let run = |id: &str, fence| Run { id: id.to_owned(), fence };
        assert_eq!(held(Some(&held_by("a")), &run("01A", 7)), Ok(()));
        let lost = held(Some(&held_by("a")), &run("01B", 6)).unwrap_err();
        assert_eq!(lost.name, ErrorName::LeaseLost);
        assert!(lost.cause.contains("to run 01A of a"), "{}", lost.cause);
        assert!(held(Some(&held_by("a")), &run("01A", 6)).is_err());
        assert!(held(Some(&Lease { fence: 7, holder: None, free_at: None }), &run("01A", 7)).is_err());
        assert!(held(None, &run("01A", 7)).is_err());
    }
}
