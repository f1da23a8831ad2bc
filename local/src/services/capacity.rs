//! What EC2 is out of: a file in the cloud's folder that moto's correction of launches reads each time.

use std::path::Path;

use serde::Serialize;

/// The file's name, in the cloud's folder.
pub const FILE: &str = "capacity.json";

/// Capacity that there is none of. `*` stands for any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shortage {
    /// `m6g.large`
    pub instance_type: String,
    /// `eu-west-1a`
    pub zone: String,
    /// `spot` or `on-demand`
    pub capacity_type: String,
}

impl Shortage {
    /// A shortage of a type in a zone by a way of paying, each a name or `*`.
    #[must_use]
    pub fn of(instance_type: &str, zone: &str, capacity_type: &str) -> Self {
        Self { instance_type: instance_type.to_owned(), zone: zone.to_owned(), capacity_type: capacity_type.to_owned() }
    }
}

/// Replaces what there is none of.
pub(crate) fn write(dir: &Path, shortages: &[Shortage]) -> anyhow::Result<()> {
    // Renamed into place: a launch reads the old list or the new one.
    let unready = dir.join(FILE).with_extension("unready");
    std::fs::write(&unready, serde_json::to_vec(shortages)?)?;
    std::fs::rename(&unready, dir.join(FILE))?;
    Ok(())
}
