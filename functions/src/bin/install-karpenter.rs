//! The step `install-karpenter` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("install-karpenter"))
}
