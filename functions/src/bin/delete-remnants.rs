//! The step `delete-remnants` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("delete-remnants"))
}
