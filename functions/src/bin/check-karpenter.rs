//! The step `check-karpenter` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("check-karpenter"))
}
