//! The step `drain-capacity` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("drain-capacity"))
}
