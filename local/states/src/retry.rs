//! Who retries, when, and who catches: pure rules of the States Language.

use std::time::Duration;

use crate::definition::Retrier;
use crate::failure::{ALL, DATA_LIMIT_EXCEEDED, Failure, HEARTBEAT_TIMEOUT, RUNTIME, TASK_FAILED, TIMEOUT};

/// How often each retrier of one visit to a state has retried. A state entered again starts afresh.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempts(Vec<u64>);

impl Attempts {
    /// The delay before the next try, if there is one.
    ///
    /// The first retrier that matches decides, even when it has no attempts left: later ones are not asked.
    /// `fraction` in [0, 1) is the die of FULL jitter.
    pub(crate) fn next(
        &mut self,
        retriers: &[Retrier],
        failure: &Failure,
        fraction: impl FnOnce() -> f64,
    ) -> Option<Duration> {
        self.0.resize(retriers.len(), 0);
        let index = retriers.iter().position(|retrier| matches(&retrier.errors, failure))?;
        let retrier = &retriers[index];
        if self.0[index] >= retrier.max_attempts {
            return None;
        }
        let delay = delay(retrier, self.0[index]);
        self.0[index] += 1;
        Some(if retrier.full_jitter { delay.mul_f64(fraction()) } else { delay })
    }
}

/// The delay before retry number `done + 1`, before jitter: the cap comes first, jitter afterwards.
fn delay(retrier: &Retrier, done: u64) -> Duration {
    let most = retrier.max_delay.unwrap_or(Duration::from_secs(99_999_999)).as_secs_f64();
    let exponent = i32::try_from(done).unwrap_or(i32::MAX);
    let seconds = retrier.interval.as_secs_f64() * retrier.backoff_rate.powi(exponent);
    Duration::from_secs_f64(seconds.min(most))
}

/// Whether an ErrorEquals matches a failure.
///
/// - States.Runtime is never handled, not even by name ("will always cause the execution to fail").
/// - States.ALL matches all but States.DataLimitExceeded (and States.Runtime).
/// - States.TaskFailed matches the same, except timeouts.
/// - States.Timeout matches a missed heartbeat too, which is a timeout with a name of its own.
///
/// Source: "Handling errors in Step Functions workflows", AWS Step Functions developer guide.
pub(crate) fn matches(errors: &[String], failure: &Failure) -> bool {
    let error = failure.error.as_str();
    if error == RUNTIME {
        return false;
    }
    let timeout = error == TIMEOUT || error == HEARTBEAT_TIMEOUT;
    errors.iter().any(|name| match name.as_str() {
        name if name == error => true,
        ALL => error != DATA_LIMIT_EXCEEDED,
        TASK_FAILED => error != DATA_LIMIT_EXCEEDED && !timeout,
        TIMEOUT => timeout,
        _ => false,
    })
}
