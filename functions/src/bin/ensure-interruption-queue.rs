//! The step `ensure-interruption-queue` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("ensure-interruption-queue"))
}
