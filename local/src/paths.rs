//! Where things are: the cache that set-up filled, this crate's own files, the functions' binary.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// What set-up made, and what the build made.
#[derive(Debug, Clone)]
pub struct Paths {
    cache: PathBuf,
}

impl Paths {
    /// The paths below a cache folder.
    #[must_use]
    pub fn new(cache: PathBuf) -> Self {
        Self { cache }
    }

    /// The cache folder that set-up fills: `SLIPWAY_CACHE`, or `~/.cache/slipway`.
    ///
    /// # Errors
    /// Where neither `SLIPWAY_CACHE` nor `HOME` is set.
    pub fn default_cache() -> anyhow::Result<PathBuf> {
        if let Some(cache) = std::env::var_os("SLIPWAY_CACHE") {
            return Ok(PathBuf::from(cache));
        }
        let home = std::env::var_os("HOME").context("neither SLIPWAY_CACHE nor HOME is set: set one of them")?;
        Ok(Path::new(&home).join(".cache/slipway"))
    }

    /// The cache folder.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Python with MiniStack and moto.
    ///
    /// # Errors
    /// Where set-up has not made it.
    pub fn cloud_python(&self) -> anyhow::Result<PathBuf> {
        self.made("cloud/bin/python")
    }

    /// A program of the tools environment: `sam`, `aws`, `cfn-lint`.
    ///
    /// # Errors
    /// Where set-up has not made it.
    pub fn tool(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.made(&format!("tools/bin/{name}"))
    }

    /// A program of the cache's `bin`: `etcd`, `kube-apiserver`, `karpenter`, `tether`, …
    ///
    /// # Errors
    /// Where set-up has not made it.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.made(&format!("bin/{name}"))
    }

    fn made(&self, below: &str) -> anyhow::Result<PathBuf> {
        let path = self.cache.join(below);
        if !path.exists() {
            bail!("{} is missing: `make setup` (or `python3 local/setup.py`) gets it", path.display());
        }
        Ok(path)
    }

    /// This crate's folder in the clone that it was built from, for the emulators' wrappers.
    #[must_use]
    pub fn source() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    /// The clone that this crate was built from.
    #[must_use]
    pub fn repository() -> &'static Path {
        Self::source().parent().unwrap_or(Self::source())
    }

    /// The functions' binary for this machine: `SLIPWAY_BOOTSTRAP`, or `bootstrap` beside the running program
    /// (a test runs one folder below it).
    ///
    /// # Errors
    /// Where it was not built.
    pub fn bootstrap() -> anyhow::Result<PathBuf> {
        if let Some(path) = std::env::var_os("SLIPWAY_BOOTSTRAP") {
            return Ok(PathBuf::from(path));
        }
        let program = std::env::current_exe().context("find the running program")?;
        program
            .ancestors()
            .skip(1)
            .take(2)
            .map(|folder| folder.join("bootstrap"))
            .find(|path| path.exists())
            .with_context(|| {
                format!(
                    "no `bootstrap` beside {}: `cargo build -p slipway-functions` makes the functions' binary",
                    program.display()
                )
            })
    }
}
