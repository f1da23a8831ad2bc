//! The step `ensure-cluster-roles` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("ensure-cluster-roles"))
}
