//! Recorded histories, read and shown.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use slipway_cli::history::Event;
use slipway_cli::progress::Progress;

fn events(name: &str) -> Vec<Event> {
    let path = format!("{}/tests/histories/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn recorded(name: &str) -> Progress {
    Progress::of(&events(name))
}
