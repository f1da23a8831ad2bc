//! Published prices, entered by hand: what a run, a cluster and a leftover cost.

use std::collections::BTreeMap;

use serde::Deserialize;

const TABLE: &str = include_str!("../prices.yaml");
/// As AWS's own calculator reckons a month.
pub const HOURS_A_MONTH: f64 = 730.0;

/// Published prices in US dollars.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prices {
    /// When they were read.
    pub date: String,
    /// Per transition of a Standard machine.
    pub state_transition: f64,
    /// Per gigabyte and second on arm64.
    pub lambda_gb_second: f64,
    /// Per invocation.
    pub lambda_request: f64,
    /// Memory of a function.
    pub lambda_megabytes: u32,
    /// A control plane for an hour.
    pub eks_hour: f64,
    /// A public IPv4 address for an hour, in use or not.
    pub address_hour: f64,
    /// What differs by region.
    pub regions: BTreeMap<String, RegionPrices>,
}

/// Prices of a region.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegionPrices {
    /// One NAT gateway for an hour, without its traffic.
    pub nat_gateway: f64,
    /// One load balancer for an hour, without its traffic.
    pub load_balancer: f64,
    /// A GiB of a gp3 volume for a month, without IOPS and throughput bought on top.
    pub gp3_gib_month: f64,
    /// An hour on demand, by instance type.
    pub instances: BTreeMap<String, f64>,
}

impl Prices {
    /// The table that comes with the program.
    ///
    /// # Errors
    /// When the table cannot be read, which its test would have said.
    pub fn published() -> Result<Self, String> {
        serde_saphyr::from_str(TABLE).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_read_and_has_the_home_regions() {
        let prices = Prices::published().unwrap();
        for region in ["eu-west-1", "us-east-1"] {
            assert!(prices.regions[region].instances["t4g.medium"] > 0.0, "{region}");
        }
    }
}
