//! The step `plan` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("plan"))
}
