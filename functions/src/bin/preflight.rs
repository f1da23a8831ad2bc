//! The step `preflight` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("preflight"))
}
