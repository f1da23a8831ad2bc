//! The step `open-run` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("open-run"))
}
