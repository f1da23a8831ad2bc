//! The machine, the steps, the template and the generated files agree with each other. No cloud is started.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod generated;
mod machine;
mod privileges;
mod simulation;
mod template;
