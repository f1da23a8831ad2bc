//! The vocabulary and the score: what a cluster is asked to be, what a step is, what can go wrong, and the
//! state machines themselves. No I/O, no clock, no environment.

pub mod error;
pub mod finding;
pub mod immutable;
pub mod names;
pub mod plan;
pub mod prices;
pub mod resume;
pub mod spec;
pub mod step;
pub mod teardown;
pub mod validate;

pub use error::{ErrorName, StepError};
pub use finding::{Finding, Kind};
pub use resume::{Made, Stage};
pub use spec::ClusterSpec;
pub use step::{ClusterEndpoint, ClusterKey, Done, Progress, Run, Step, Waiting};
pub use validate::Violation;
