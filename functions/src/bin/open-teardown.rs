//! The step `open-teardown` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("open-teardown"))
}
