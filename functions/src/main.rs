//! The one binary that every function deploys: the function's handler names the step.

use std::process::ExitCode;

fn main() -> ExitCode {
    slipway_functions::runtime::main(None)
}
