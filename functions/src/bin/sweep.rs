//! The step `sweep` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("sweep"))
}
