//! Writes every generated file anew: `cargo run -p slipway-tests --bin schemas`.

fn main() -> anyhow::Result<()> {
    for (path, text) in slipway_tests::generated::files()? {
        let path = slipway_tests::repository::root().join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)?;
    }
    Ok(())
}
