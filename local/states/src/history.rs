//! An execution's history, event by event, as GetExecutionHistory gives it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use crate::failure::{Failure, RUNTIME};

/// The quota of events in one execution's history.
pub const MAX_EVENTS: usize = 25_000;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// 1 and up, without gaps.
    pub id: u64,
    /// The event before it in its branch; 0 for the first of an execution and for its first state.
    pub previous: u64,
    /// Milliseconds since the epoch.
    pub at: i64,
    /// AWS's type: `TaskStateEntered`.
    pub kind: String,
    /// The details' member name and the details: `stateEnteredEventDetails`.
    pub details: Option<(&'static str, Value)>,
}

/// What goes into an event beside its ids and time.
pub(crate) struct Entry {
    pub(crate) kind: String,
    pub(crate) details: Option<(&'static str, Value)>,
}

impl Entry {
    pub(crate) fn plain(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), details: None }
    }

    pub(crate) fn with(kind: impl Into<String>, name: &'static str, details: Value) -> Self {
        Self { kind: kind.into(), details: Some((name, details)) }
    }
}

/// An append-only log.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Vec<Event>>);

impl History {
    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event and answers its id.
    ///
    /// The last place is kept for the execution's own end: "If the event number 25,000 isn't ExecutionSucceeded,
    /// the ExecutionFailed event is logged" (developer guide, "Avoid reaching the history quota").
    ///
    /// # Errors
    /// The uncatchable failure of an execution whose history is full.
    pub(crate) fn push(&self, at: i64, previous: u64, entry: Entry) -> Result<u64, Failure> {
        let mut events = self.events();
        if events.len() >= MAX_EVENTS - 1 {
            let cause = format!("The execution reached the maximum number of history events ({MAX_EVENTS}).");
            return Err(Failure::new(RUNTIME, cause));
        }
        Ok(append(&mut events, at, previous, entry))
    }

    /// Appends the event that ends the execution.
    pub(crate) fn end(&self, at: i64, previous: u64, entry: Entry) {
        append(&mut self.events(), at, previous, entry);
    }

    /// A copy of the events with ids from `first` to `last`, both included, in order.
    pub(crate) fn between(&self, first: u64, last: u64) -> Vec<Event> {
        let events = self.events();
        let index = |id: u64| usize::try_from(id).unwrap_or(usize::MAX).min(events.len());
        events[index(first.saturating_sub(1))..index(last)].to_vec()
    }

    pub(crate) fn len(&self) -> u64 {
        self.events().len() as u64
    }
}

fn append(events: &mut Vec<Event>, at: i64, previous: u64, entry: Entry) -> u64 {
    let id = events.len() as u64 + 1;
    events.push(Event { id, previous, at, kind: entry.kind, details: entry.details });
    id
}

impl Event {
    /// As the API gives it. Without `data`, inputs, outputs and parameters are left out.
    #[must_use]
    pub fn json(&self, data: bool) -> Value {
        let mut event = Map::new();
        event.insert("timestamp".to_owned(), seconds(self.at));
        event.insert("type".to_owned(), json!(self.kind));
        event.insert("id".to_owned(), json!(self.id));
        event.insert("previousEventId".to_owned(), json!(self.previous));
        if let Some((name, details)) = &self.details {
            let mut details = details.clone();
            if !data && let Some(members) = details.as_object_mut() {
                for member in ["input", "inputDetails", "output", "outputDetails", "parameters"] {
                    members.shift_remove(member);
                }
            }
            event.insert((*name).to_owned(), details);
        }
        Value::Object(event)
    }
}

/// Epoch seconds with milliseconds, as the json 1.0 protocol writes a timestamp.
#[must_use]
pub fn seconds(millis: i64) -> Value {
    // Milliseconds since 1970 stay exact in a double for 285,000 years.
    #[allow(clippy::cast_precision_loss)]
    let seconds = millis as f64 / 1000.0;
    json!(seconds)
}
