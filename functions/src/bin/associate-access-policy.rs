//! The step `associate-access-policy` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("associate-access-policy"))
}
