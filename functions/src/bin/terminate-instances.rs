//! The step `terminate-instances` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("terminate-instances"))
}
