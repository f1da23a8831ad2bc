//! The step `delete-node-groups` alone.

fn main() -> std::process::ExitCode {
    slipway_functions::runtime::main(Some("delete-node-groups"))
}
