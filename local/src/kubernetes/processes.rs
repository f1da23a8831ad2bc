//! Child processes that end with us, however we end.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{ChildStdin, Command};

/// A running child. Dropping it kills it.
pub(crate) struct Child {
    process: tokio::process::Child,
    tether: Option<ChildStdin>,
}

impl Child {
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.process.wait().await
    }

    pub(crate) async fn kill(&mut self) {
        drop(self.tether.take());
        if tokio::time::timeout(Duration::from_secs(2), self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }
}

pub(crate) fn spawn(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let output = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let tether = process.stdin.take();
    Ok(Child { process, tether })
}
