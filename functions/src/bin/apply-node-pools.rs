//! The step `apply-node-pools` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("apply-node-pools"))
}
