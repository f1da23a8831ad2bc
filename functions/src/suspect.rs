//! Failures that may still pass: which one is seen, and since when. The machine carries it from one look to the next.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::ErrorName;

/// A failure that may still pass, and since when it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Suspect {
    /// The error that it becomes.
    pub error: ErrorName,
    /// What `waited` was when it was first seen.
    pub since: u32,
}

impl Suspect {
    /// What is suspected now that `error` is seen: since before, where it was seen the last time too.
    #[must_use]
    pub fn of(error: ErrorName, waited: u32, before: Option<Self>) -> Self {
        let since = before.filter(|before| before.error == error).map_or(waited, |before| before.since);
        Self { error, since }
    }

    /// For how many seconds it has been seen without a break.
    #[must_use]
    pub const fn lasts(self, waited: u32) -> u32 {
        waited.saturating_sub(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspicion_lasts_as_long_as_it_is_the_same() {
        let first = Suspect::of(ErrorName::CrdNotServed, 100, None);
        assert_eq!((first.since, first.lasts(155)), (100, 55));
        assert_eq!(Suspect::of(ErrorName::CrdNotServed, 155, Some(first)), first);
        assert_eq!(Suspect::of(ErrorName::AdmissionRefused, 155, Some(first)).lasts(160), 5);
    }
}
