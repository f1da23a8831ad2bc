//! A killed process leaves nothing running: every child notices that its parent is gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{Cluster, eventually, processes_of};

/// Where the process to be killed has its cluster; set only for it.
const HELD: &str = "SLIPWAY_TEST_HELD_CLUSTER";

#[tokio::test]
async fn a_killed_process_leaves_no_control_plane() {
    if let Some(dir) = std::env::var_os(HELD) {
        return hold(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_leaves_nothing::a_killed_process_leaves_no_control_plane"])
        .env(HELD, dir.path())
        .spawn()
        .unwrap();
    let ready: PathBuf = dir.path().join("ready");
    eventually("a control plane to leave behind", || async { ready.exists().then_some(()) }).await;
    assert!(processes_of(dir.path()).len() >= 4);
    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually("nothing", || async { processes_of(dir.path()).is_empty().then_some(()) }).await;
}

/// Starts a cluster, says so, and waits to be killed, though not for ever.
async fn hold(dir: &Path) {
    let _cluster = Cluster::start(dir, "http://127.0.0.1:9").await;
    std::fs::write(dir.join("ready"), "").unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
}
