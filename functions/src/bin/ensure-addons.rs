//! The step `ensure-addons` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("ensure-addons"))
}
