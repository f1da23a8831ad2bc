//! Calls that are made to fail, so that a test can see what the product does about it.

use std::sync::{Mutex, PoisonError};

use super::call::{AwsError, Call};

/// The next `times` calls of an operation fail.
#[derive(Debug, Clone)]
pub struct Fault {
    /// `ec2`
    pub service: String,
    /// `CreateVpc`
    pub action: String,
    /// How many calls it strikes.
    pub times: u32,
    /// What they get.
    pub error: AwsError,
}

/// The faults that are still to strike.
#[derive(Debug, Default)]
pub struct Faults {
    pending: Mutex<Vec<Fault>>,
}

impl Faults {
    /// Adds a fault.
    pub fn add(&self, fault: Fault) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    /// The error that a call gets instead of an answer.
    pub(super) fn strike(&self, call: &Call) -> Option<AwsError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = pending
            .iter_mut()
            .find(|fault| fault.times > 0 && fault.service == call.service && fault.action == call.action)?;
        fault.times -= 1;
        let error = fault.error.clone();
        pending.retain(|fault| fault.times > 0);
        Some(error)
    }
}
