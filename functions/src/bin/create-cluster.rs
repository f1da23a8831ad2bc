//! The step `create-cluster` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("create-cluster"))
}
