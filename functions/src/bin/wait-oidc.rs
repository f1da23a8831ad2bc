//! The step `wait-oidc` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("wait-oidc"))
}
