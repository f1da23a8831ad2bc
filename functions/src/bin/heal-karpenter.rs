//! The step `heal-karpenter` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("heal-karpenter"))
}
