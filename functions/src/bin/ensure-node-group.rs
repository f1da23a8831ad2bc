//! The step `ensure-node-group` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("ensure-node-group"))
}
