//! The step `delete-queue` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("delete-queue"))
}
