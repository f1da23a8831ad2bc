//! The step `delete-addons` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("delete-addons"))
}
