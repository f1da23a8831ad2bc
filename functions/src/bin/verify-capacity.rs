//! The step `verify-capacity` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("verify-capacity"))
}
