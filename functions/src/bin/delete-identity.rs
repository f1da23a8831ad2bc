//! The step `delete-identity` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("delete-identity"))
}
