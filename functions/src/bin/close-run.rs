//! The step `close-run` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("close-run"))
}
