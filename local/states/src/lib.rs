//! Step Functions on one machine: the States Language with JSONata, over a clock that is scaled or virtual.
//!
//! - [`definition`]: a state machine read and checked, as CreateStateMachine would check it.
//! - [`expression`]: JSONata 2.0.6 as Step Functions offers it.
//! - `interpreter`: one execution, knowing neither time nor tasks.
//! - [`history`]: what happened, as GetExecutionHistory tells it.
//! - [`api`]: the service itself on a [`clock::ScaledClock`]: start, stop, describe, list, task tokens.
//! - [`simulation`]: the same interpreter on virtual time with closures as tasks, for thousands of runs.

pub mod api;
pub mod clock;
pub mod definition;
pub mod expression;
pub mod failure;
pub mod history;
mod interpreter;
pub mod random;
mod retry;
pub mod simulation;

pub use interpreter::MAX_PAYLOAD_BYTES;
