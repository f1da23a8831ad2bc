//! Child processes that end with us: a cleared environment, a log each, and a pipe by which they notice our end.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::Context;
use tokio::process::{ChildStdin, Command};

/// A child of ours. It ends when this is dropped or when we die, however we die: it watches its standard input,
/// whose other end we hold.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    process: tokio::process::Child,
    tether: Option<ChildStdin>,
}

/// Starts a program in an environment that holds only what was set on the command, as the leader of a process
/// group of its own, with its output appended to a log.
///
/// # Errors
/// Where the log cannot be opened or the program cannot be started.
pub fn spawn(name: &str, command: Command, log: &Path) -> anyhow::Result<Child> {
    let command = command.into_std();
    let set: Vec<(OsString, OsString)> =
        command.get_envs().filter_map(|(variable, value)| Some((variable.to_owned(), value?.to_owned()))).collect();
    let mut cleared = Command::new(command.get_program());
    cleared.args(command.get_args()).env_clear().envs(set);
    if let Some(folder) = command.get_current_dir() {
        cleared.current_dir(folder);
    }
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open the log {}", log.display()))?;
    let errors = output.try_clone().context("share the log between output and errors")?;
    // Not kill_on_drop: a child that sees its tether go takes its own children along, a killed one could not.
    cleared.stdin(Stdio::piped()).stdout(output).stderr(errors).process_group(0);
    let mut process = cleared.spawn().with_context(|| format!("start {name} ({})", command.get_program().display()))?;
    let tether = process.stdin.take();
    Ok(Child { name: name.to_owned(), log: log.to_owned(), process, tether })
}

impl Child {
    /// The process's id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// What it was called when it was started.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Where the system cannot tell.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        // tokio's own wait would first close the standard input of a child; ours was taken out, so it stays open.
        self.process.wait().await.with_context(|| format!("wait for {}", self.name))
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// Where the system cannot tell.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.process.try_wait().with_context(|| format!("look after {}", self.name))
    }

    /// Lets go of its tether, so that it ends soon.
    pub fn let_go(&mut self) {
        self.tether = None;
    }

    /// Ends it: by letting go of its tether, so that it takes its own children along, and by force after two seconds.
    ///
    /// # Errors
    /// Where the system refuses.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.let_go();
        let grace = std::time::Duration::from_secs(2);
        if tokio::time::timeout(grace, self.process.wait()).await.is_err() {
            self.process.kill().await.with_context(|| format!("end {}", self.name))?;
        }
        Ok(())
    }

    /// The last lines of its log, for an error that has to say why it ended.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_child_sees_only_what_it_is_given_and_ends_with_its_tether() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "/usr/bin/env; read line; echo let go"]).env("GIVEN", "1");
        let mut child = spawn("shell", command, &log).unwrap();
        assert!(child.ended().unwrap().is_none());
        child.kill().await.unwrap();
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(said.contains("GIVEN=1") && said.contains("let go"), "{said}");
        assert!(!said.contains("HOME="), "{said}");
    }
}
