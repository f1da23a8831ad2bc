//! The step `uninstall-karpenter` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("uninstall-karpenter"))
}
