//! The step `audit` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("audit"))
}
