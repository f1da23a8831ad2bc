//! The step `ensure-network` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("ensure-network"))
}
