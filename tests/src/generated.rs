//! Files that are generated from the code: JSON schemas and the steps' sample events.

use std::collections::BTreeMap;

use schemars::schema_for;
use serde_json::Value;
use slipway_functions::steps;
use slipway_statemachine::ClusterSpec;

use crate::samples;

/// Every generated file: its path from the repository's root, and its text.
///
/// # Errors
/// When the machine or the example cannot be read.
pub fn files() -> anyhow::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let mut add = |path: String, json: &Value| -> anyhow::Result<()> {
        files.insert(path, serde_json::to_string_pretty(json)? + "\n");
        Ok(())
    };
    let schemas = "statemachine/schemas";
    add(format!("{schemas}/cluster-spec.json"), schema_for!(ClusterSpec).as_value())?;
    for step in steps::ALL {
        add(format!("{schemas}/{}.input.json", step.name), (step.input)().as_value())?;
        add(format!("{schemas}/{}.output.json", step.name), (step.output)().as_value())?;
    }
    for (step, payload) in samples::events()? {
        add(format!("functions/events/{step}.json"), &payload)?;
    }
    Ok(files)
}
