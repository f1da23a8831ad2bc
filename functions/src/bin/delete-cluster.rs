//! The step `delete-cluster` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("delete-cluster"))
}
