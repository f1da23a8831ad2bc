//! Step Functions over a clock.

pub mod clock;
