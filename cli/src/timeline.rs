//! Where the time of a run went: per step, on the critical path, and what it would be on AWS.

use std::collections::{BTreeMap, BTreeSet};

use crate::progress::{Progress, Step, Visit};

/// Why time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A Wait state passes: AWS is at work.
    Wait,
    /// Between a failed try and the next.
    Retry,
    /// A function is called and runs.
    Function,
}

/// A stretch of a step's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Milliseconds since the epoch.
    pub from: i64,
    /// Milliseconds since the epoch.
    pub to: i64,
    /// Why.
    pub reason: Reason,
}

/// Milliseconds by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// In functions, from scheduling to answer.
    pub functions: i64,
    /// In Wait states.
    pub waits: i64,
    /// Between tries.
    pub retries: i64,
}

/// The stretches of a step, in order.
#[must_use]
pub fn stretches(progress: &Progress, step: &Step) -> Vec<Stretch> {
    progress.visits_of(step).flat_map(|visit| of_visit(progress, visit)).collect()
}

fn of_visit(progress: &Progress, visit: &Visit) -> Vec<Stretch> {
    let open = progress.end.as_ref().map_or(progress.latest, |end| end.at);
    let mut stretches = Vec::new();
    let mut put = |from: i64, to: i64, reason| stretches.push(Stretch { from, to: to.max(from), reason });
    match visit.kind.as_str() {
        "Wait" => put(visit.entered, visit.left.unwrap_or(open), Reason::Wait),
        "Task" => {
            let mut failed: Option<i64> = None;
            for attempt in &visit.attempts {
                if let Some(failed) = failed.take() {
                    put(failed, attempt.from, Reason::Retry);
                }
                let to = attempt.to.unwrap_or(open);
                put(attempt.from, to, Reason::Function);
                failed = attempt.failure.as_ref().map(|_| to);
            }
            if let (Some(failed), None) = (failed, visit.left) {
                put(failed, open, Reason::Retry);
            }
        }
        _ => {}
    }
    stretches
}

/// Time of all steps together, side by side or not.
#[must_use]
pub fn total(progress: &Progress) -> Times {
    sum(progress.visits.iter().flat_map(|visit| of_visit(progress, visit)))
}

fn sum(stretches: impl Iterator<Item = Stretch>) -> Times {
    let mut times = Times::default();
    for stretch in stretches {
        let millis = stretch.to - stretch.from;
        match stretch.reason {
            Reason::Function => times.functions += millis,
            Reason::Wait => times.waits += millis,
            Reason::Retry => times.retries += millis,
        }
    }
    times
}

/// The chain of states that decided how long the run took: every state of the top level, and inside a Parallel or Map
/// those of the branch that ended last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CriticalPath {
    /// Indices of [`Progress::steps`].
    pub steps: BTreeSet<usize>,
    /// Where its time went.
    pub times: Times,
}

/// Finds the critical path.
#[must_use]
pub fn critical_path(progress: &Progress) -> CriticalPath {
    let mut path = Vec::new();
    let levels = Levels::of(progress);
    levels.walk(progress, None, &mut path);
    let visits = || path.iter().filter_map(|index| progress.visits.get(*index));
    CriticalPath {
        steps: visits().filter_map(|visit| visit.step).collect(),
        times: sum(visits().flat_map(|visit| of_visit(progress, visit))),
    }
}

/// How long the run would take, in milliseconds, if its waits and retry delays passed `speed` times slower, as they do
/// on AWS. Functions are taken to be as fast as here.
#[must_use]
pub fn unscaled_millis(progress: &Progress, speed: f64) -> i64 {
    let levels = Levels::of(progress);
    let seconds = levels.unscaled(progress, None, speed);
    // A run lasts hours at most; nothing is lost.
    #[allow(clippy::cast_possible_truncation)]
    let millis = seconds.round() as i64;
    millis
}

/// Visits by the Parallel or Map around them and by branch, in order.
struct Levels(BTreeMap<Option<usize>, BTreeMap<usize, Vec<usize>>>);

impl Levels {
    fn of(progress: &Progress) -> Self {
        let mut levels: BTreeMap<Option<usize>, BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
        for (index, visit) in progress.visits.iter().enumerate() {
            levels.entry(visit.parent).or_default().entry(visit.branch).or_default().push(index);
        }
        Self(levels)
    }

    fn branches(&self, parent: Option<usize>) -> impl Iterator<Item = &Vec<usize>> {
        self.0.get(&parent).into_iter().flat_map(BTreeMap::values)
    }

    fn walk(&self, progress: &Progress, parent: Option<usize>, path: &mut Vec<usize>) {
        let end = |branch: &&Vec<usize>| {
            branch
                .iter()
                .filter_map(|index| progress.visits.get(*index))
                .map(|visit| visit.left.unwrap_or(i64::MAX))
                .max()
        };
        for index in self.branches(parent).max_by_key(end).into_iter().flatten() {
            path.push(*index);
            self.walk(progress, Some(*index), path);
        }
    }

    fn unscaled(&self, progress: &Progress, parent: Option<usize>, speed: f64) -> f64 {
        self.branches(parent)
            .map(|branch| branch.iter().map(|index| self.unscaled_visit(progress, *index, speed)).sum())
            .fold(0.0, f64::max)
    }

    fn unscaled_visit(&self, progress: &Progress, index: usize, speed: f64) -> f64 {
        let Some(visit) = progress.visits.get(index) else { return 0.0 };
        let times = sum(of_visit(progress, visit).into_iter());
        // Milliseconds of a run stay far below what a double holds exactly.
        #[allow(clippy::cast_precision_loss)]
        let own = times.functions as f64 + (times.waits + times.retries) as f64 * speed;
        own + self.unscaled(progress, Some(index), speed)
    }
}
