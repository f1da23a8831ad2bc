//! The step `release-workloads` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("release-workloads"))
}
