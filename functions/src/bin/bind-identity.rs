//! The step `bind-identity` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("bind-identity"))
}
