//! The step `delete-network` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("delete-network"))
}
