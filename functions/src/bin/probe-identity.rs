//! The step `probe-identity` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("probe-identity"))
}
