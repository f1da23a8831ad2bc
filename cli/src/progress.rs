//! What a history amounts to: visits of states, and the steps that they make up.
//!
//! A step is a Task state with everything that belongs to it: its retries, and the Choice and Wait states of asking
//! again. Which state belongs where follows from the events' order in their branch (`previousEventId`), not from names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::history::{Event, What};

/// An execution as far as it has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// When it began, milliseconds since the epoch.
    pub started: i64,
    /// The input that it was started with.
    pub input: Value,
    /// What open-run answered: `run`, `cluster`, the completed `spec`, and what it goes on with.
    pub opened: Option<Value>,
    /// How it ended, once it has.
    pub end: Option<End>,
    /// Every state that was entered, in order.
    pub visits: Vec<Visit>,
    /// Every step, in the order in which they began.
    pub steps: Vec<Step>,
    /// The last event's time, milliseconds since the epoch.
    pub latest: i64,
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Milliseconds since the epoch.
    pub at: i64,
    /// `SUCCEEDED`, `FAILED`, `ABORTED` or `TIMED_OUT`.
    pub status: String,
    /// The error's name, where it failed.
    pub error: Option<String>,
    /// The error's cause, where it failed.
    pub cause: Option<String>,
    /// Its output, where it succeeded.
    pub output: Option<Value>,
}

/// A state between being entered and being left.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The state's name.
    pub state: String,
    /// Its type.
    pub kind: String,
    /// Milliseconds since the epoch.
    pub entered: i64,
    /// Milliseconds since the epoch; `None` while it lasts.
    pub left: Option<i64>,
    /// The step that it belongs to: an index of [`Progress::steps`].
    pub step: Option<usize>,
    /// The Parallel or Map around it: an index of [`Progress::visits`].
    pub parent: Option<usize>,
    /// The first visit of its branch; of the top level where there is no parent.
    pub branch: usize,
    /// Time in functions, and between their tries.
    pub attempts: Vec<Attempt>,
}

/// One try at a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Milliseconds since the epoch.
    pub from: i64,
    /// Milliseconds since the epoch; `None` while it runs.
    pub to: Option<i64>,
    /// Why it failed: the error's name and its cause.
    pub failure: Option<(String, String)>,
}

/// A Task state with its retries and its asking again.
#[derive(Debug, Clone)]
pub struct Step {
    /// Kebab-case, from the state's name: `ensure-network`.
    pub name: String,
    /// Indices of [`Progress::visits`], of every type.
    pub visits: Vec<usize>,
    /// How it stands.
    pub status: Status,
    /// How often its function answered or failed.
    pub answers: usize,
    /// How often it was tried again after a failure.
    pub retries: usize,
}

/// How a step stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Its function runs.
    Running,
    /// It asked to be asked again.
    Waiting {
        /// For what.
        detail: String,
    },
    /// It failed and will be tried again.
    Retrying {
        /// The error's name.
        error: String,
        /// What happened.
        cause: String,
    },
    /// It is over.
    Done,
    /// It failed for good.
    Failed {
        /// The error's name.
        error: String,
        /// What happened.
        cause: String,
    },
    /// The run ended around it.
    Aborted,
}

impl Progress {
    /// Reads a history from its start; it need not be complete.
    #[must_use]
    pub fn of(events: &[Event]) -> Self {
        let mut reader = Reader::default();
        for event in events {
            reader.read(event);
        }
        reader.progress
    }

    /// From start to end, or to the last event.
    #[must_use]
    pub fn duration_millis(&self) -> i64 {
        self.end.as_ref().map_or(self.latest, |end| end.at) - self.started
    }

    /// Whether it is over and went well.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.status == "SUCCEEDED")
    }

    /// The visits of a step, in order.
    pub fn visits_of<'a>(&'a self, step: &'a Step) -> impl Iterator<Item = &'a Visit> {
        step.visits.iter().filter_map(|index| self.visits.get(*index))
    }

    /// What a person should know of a step that is done: of open-run, that earlier steps are left out.
    #[must_use]
    pub fn note(&self, step: &Step) -> Option<String> {
        let opened = self.opened.as_ref().filter(|_| step.name == "open-run")?;
        let (run, next) = (opened.get("resumes")?.as_str()?, opened.pointer("/made/next")?.as_str()?);
        Some(format!("goes on at {}, where run {run} failed", kebab(next)))
    }

    /// From when a step began until when it last did anything.
    #[must_use]
    pub fn span(&self, step: &Step) -> (i64, i64) {
        let from = self.visits_of(step).map(|visit| visit.entered).min().unwrap_or(self.started);
        let open = self.end.as_ref().map_or(self.latest, |end| end.at);
        let to = self.visits_of(step).map(|visit| visit.left.unwrap_or(open)).max().unwrap_or(from);
        (from, to)
    }
}

#[derive(Default)]
struct Reader {
    progress: Progress,
    /// Which visit an event belongs to.
    place: BTreeMap<u64, usize>,
    /// Events after which a branch begins.
    openings: BTreeSet<u64>,
    /// Steps by state and branch: the same state in two items of a Map is two steps.
    steps: BTreeMap<(String, usize), usize>,
}

impl Reader {
    fn read(&mut self, event: &Event) {
        self.progress.latest = self.progress.latest.max(event.at);
        let here = self.place.get(&event.previous).copied();
        let place = match &event.what {
            What::Started { input } => {
                self.progress.started = event.at;
                self.progress.input = input.clone();
                None
            }
            What::Ended { status, error, cause, output } => {
                let end = End {
                    at: event.at,
                    status: status.clone(),
                    error: error.clone(),
                    cause: cause.clone(),
                    output: output.clone(),
                };
                self.progress.end = Some(end);
                self.settle();
                None
            }
            What::Entered { state, kind } => Some(self.enter(event, here, state, kind)),
            What::Exited { state } => self.exit(event, here, state),
            What::LevelStarted | What::IterationStarted => {
                self.openings.insert(event.id);
                here
            }
            What::Scheduled => {
                self.attempt(here, Status::Running, |visit| {
                    visit.attempts.push(Attempt { from: event.at, to: None, failure: None });
                });
                here
            }
            What::Answered { answer } => {
                if self.progress.opened.is_none() && answer.get("run").is_some() && answer.get("cluster").is_some() {
                    self.progress.opened = Some(answer.clone());
                }
                let status = match waits_for(answer) {
                    Some(detail) => Status::Waiting { detail },
                    None => Status::Done,
                };
                self.attempt(here, status, |visit| close(visit, event.at, None));
                here
            }
            What::Failed { error, cause } => {
                let status = Status::Retrying { error: error.clone(), cause: cause.clone() };
                self.attempt(here, status, |visit| close(visit, event.at, Some((error.clone(), cause.clone()))));
                here
            }
            What::Aborted => {
                if let Some(visit) = here.and_then(|index| self.progress.visits.get_mut(index)) {
                    visit.left.get_or_insert(event.at);
                    let step = visit.step;
                    close(visit, event.at, None);
                    self.abort(step);
                }
                here
            }
            What::Other => here,
        };
        if let Some(place) = place {
            self.place.insert(event.id, place);
        }
    }

    fn enter(&mut self, event: &Event, here: Option<usize>, state: &str, kind: &str) -> usize {
        let index = self.progress.visits.len();
        let before = here.and_then(|here| self.progress.visits.get(here));
        let (parent, branch, inherited) = match before {
            Some(_) if self.openings.contains(&event.previous) => (here, index, None),
            Some(before) => (before.parent, before.branch, before.step),
            None => (None, 0, None),
        };
        let step = match kind {
            "Task" => Some(self.step(state, branch)),
            "Choice" | "Wait" => inherited,
            _ => None,
        };
        if let Some(step) = step.and_then(|step| self.progress.steps.get_mut(step)) {
            step.visits.push(index);
            if kind == "Task" {
                step.status = Status::Running;
            }
        }
        self.progress.visits.push(Visit {
            state: state.to_owned(),
            kind: kind.to_owned(),
            entered: event.at,
            left: None,
            step,
            parent,
            branch,
            attempts: Vec::new(),
        });
        index
    }

    fn step(&mut self, state: &str, branch: usize) -> usize {
        let key = (state.to_owned(), branch);
        if let Some(step) = self.steps.get(&key) {
            return *step;
        }
        let index = self.progress.steps.len();
        self.progress.steps.push(Step {
            name: kebab(state),
            visits: Vec::new(),
            status: Status::Running,
            answers: 0,
            retries: 0,
        });
        self.steps.insert(key, index);
        index
    }

    fn exit(&mut self, event: &Event, here: Option<usize>, state: &str) -> Option<usize> {
        // What leaves a Parallel follows an event of its last branch, so the name decides.
        let visits = &self.progress.visits;
        let same = |index: &usize| visits.get(*index).is_some_and(|visit| visit.state == state && visit.left.is_none());
        let index = here.filter(same).or_else(|| (0..visits.len()).rev().find(same))?;
        let visit = self.progress.visits.get_mut(index)?;
        visit.left = Some(event.at);
        let step = visit.step.filter(|_| visit.kind == "Task").and_then(|step| self.progress.steps.get_mut(step));
        if let Some(step) = step
            && let Status::Retrying { error, cause } = &step.status
        {
            // It was left without a success: the error was caught.
            step.status = Status::Failed { error: error.clone(), cause: cause.clone() };
        }
        Some(index)
    }

    fn attempt(&mut self, here: Option<usize>, status: Status, change: impl FnOnce(&mut Visit)) {
        let Some(visit) = here.and_then(|index| self.progress.visits.get_mut(index)) else { return };
        change(visit);
        let tried = visit.attempts.len() > 1;
        let Some(step) = visit.step.and_then(|step| self.progress.steps.get_mut(step)) else { return };
        match status {
            Status::Running => step.retries += usize::from(tried),
            _ => step.answers += 1,
        }
        step.status = status;
    }

    fn abort(&mut self, step: Option<usize>) {
        if let Some(step) = step.and_then(|step| self.progress.steps.get_mut(step)) {
            step.status = match std::mem::replace(&mut step.status, Status::Aborted) {
                // It failed its branch itself.
                Status::Retrying { error, cause } => Status::Failed { error, cause },
                _ => Status::Aborted,
            };
        }
    }

    /// The execution is over, so nothing runs or waits any more.
    fn settle(&mut self) {
        let failed = self.progress.end.as_ref().and_then(|end| end.error.clone());
        for index in 0..self.progress.steps.len() {
            let step = &self.progress.steps[index];
            let last = step.visits.last().and_then(|visit| self.progress.visits.get(*visit));
            let left = last.is_some_and(|visit| visit.left.is_some());
            match (&step.status, &failed) {
                (Status::Done | Status::Failed { .. } | Status::Aborted, _) => {}
                // Left while it still waited: the machine gave up, and says so in the execution's own error.
                (Status::Waiting { detail }, Some(error)) if left => {
                    let cause = format!("no longer waited for: {detail}");
                    self.progress.steps[index].status = Status::Failed { error: error.clone(), cause };
                }
                (Status::Waiting { .. }, None) if left => self.progress.steps[index].status = Status::Done,
                _ => self.abort(Some(index)),
            }
        }
    }
}

fn close(visit: &mut Visit, at: i64, failure: Option<(String, String)>) {
    if let Some(attempt) = visit.attempts.last_mut().filter(|attempt| attempt.to.is_none()) {
        attempt.to = Some(at);
        attempt.failure = failure;
    }
}

/// What an answer waits for, if it asks to be asked again.
fn waits_for(answer: &Value) -> Option<String> {
    let again = match answer.get("done").and_then(Value::as_bool) {
        Some(done) => !done,
        None if answer.get("health").is_some_and(|health| health == "Ready") => false,
        None => answer.get("retryAfterSeconds").and_then(Value::as_u64).is_some_and(|seconds| seconds > 0),
    };
    again.then(|| answer.get("detail").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// `EnsureNetwork` to `ensure-network`.
fn kebab(state: &str) -> String {
    let mut name = String::with_capacity(state.len() + 4);
    for (index, letter) in state.chars().enumerate() {
        if letter.is_uppercase() && index > 0 && !name.ends_with('-') {
            name.push('-');
        }
        if letter == ' ' {
            name.push('-');
        } else {
            name.extend(letter.to_lowercase());
        }
    }
    name
}
