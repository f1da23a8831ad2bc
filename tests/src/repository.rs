//! The repository's own files, and the tools that `local/setup.py` puts into the cache folder.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

/// The repository's root.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A file of the repository, by its path from the root.
///
/// # Errors
/// When it cannot be read; the path is in the message.
pub fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))
}

/// A JSON file of the repository.
///
/// # Errors
/// When it cannot be read or is not JSON; the path is in the message.
pub fn read_json(path: &str) -> anyhow::Result<Value> {
    serde_json::from_str(&read(path)?).with_context(|| format!("{path} is not JSON"))
}

/// The machines, by the names of their files: `provision`, …
///
/// # Errors
/// When the folder cannot be read.
pub fn machines() -> anyhow::Result<Vec<String>> {
    let mut machines = Vec::new();
    for entry in std::fs::read_dir(root().join("statemachine")).context("cannot read statemachine/")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        machines.extend(name.strip_suffix(".asl.json").map(str::to_owned));
    }
    machines.sort();
    Ok(machines)
}

/// A machine's definition as CloudFormation would deploy it: every `${Name}` replaced by an ARN whose function is
/// called `Name`.
///
/// # Errors
/// When the definition cannot be read.
pub fn definition(machine: &str) -> anyhow::Result<String> {
    let definition = read(&format!("statemachine/{machine}.asl.json"))?;
    Ok(definition
        .replace("${", "arn:aws:lambda:eu-west-1:111122223333:function:")
        .replace("Function}", "Function:live"))
}

/// Puts what a soak found into docs/soak.md, under a heading of its own.
///
/// # Errors
/// When the page cannot be read or written.
pub fn report(heading: &str, text: &str) -> anyhow::Result<()> {
    let (path, title) = ("docs/soak.md", format!("## {heading}\n"));
    let page = read(path)?;
    let (before, rest) = page.split_once(&title).unwrap_or((&page, ""));
    let after = rest.find("\n## ").map_or("", |next| &rest[next..]);
    let page = format!("{}\n\n{title}{}\n{after}", before.trim_end(), text.trim_end());
    std::fs::write(root().join(path), page).with_context(|| format!("cannot write {path}"))
}

/// A tool of the cache folder, by its path there.
///
/// # Errors
/// When it is not there, with what to do.
pub fn tool(path: &str) -> anyhow::Result<PathBuf> {
    let cache = match env::var_os("SLIPWAY_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache/slipway"),
    };
    let tool = cache.join(path);
    anyhow::ensure!(tool.exists(), "{} is missing: run `python3 local/setup.py`", tool.display());
    Ok(tool)
}
