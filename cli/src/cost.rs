//! What a run and its cluster cost, at the published prices.

use serde_json::Value;
use slipway_statemachine::prices::Prices;

use crate::progress::Progress;
use crate::timeline;

/// What a run cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunCost {
    /// States entered, and tasks tried again.
    pub transitions: usize,
    /// Dollars for them.
    pub transitions_dollars: f64,
    /// Calls of functions.
    pub invocations: usize,
    /// Seconds in functions.
    pub lambda_seconds: f64,
    /// Dollars for them.
    pub lambda_dollars: f64,
}

impl RunCost {
    /// Counts a run. A function's time is taken from its scheduling to its answer, so it is a little more than billed.
    #[must_use]
    pub fn of(progress: &Progress, prices: &Prices) -> Self {
        let invocations: usize = progress.visits.iter().map(|visit| visit.attempts.len()).sum();
        let retries: usize = progress.steps.iter().map(|step| step.retries).sum();
        let transitions = progress.visits.len() + retries;
        // Counts and milliseconds of one run are small numbers.
        #[allow(clippy::cast_precision_loss)]
        let (counted, called, seconds) =
            (transitions as f64, invocations as f64, timeline::total(progress).functions as f64 / 1000.0);
        let gigabytes = f64::from(prices.lambda_megabytes) / 1024.0;
        Self {
            transitions,
            transitions_dollars: counted * prices.state_transition,
            invocations,
            lambda_seconds: seconds,
            lambda_dollars: seconds * gigabytes * prices.lambda_gb_second + called * prices.lambda_request,
        }
    }

    /// Dollars for the whole run.
    #[must_use]
    pub fn dollars(&self) -> f64 {
        self.transitions_dollars + self.lambda_dollars
    }
}

/// What a cluster costs in an hour, line by line, without what Karpenter adds.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterCost {
    /// What, and dollars per hour; `None` where the table has no price.
    pub lines: Vec<(String, Option<f64>)>,
}

impl ClusterCost {
    /// From a spec as open-run completed it, or as it was given: what is left out has the spec's defaults.
    #[must_use]
    pub fn of(spec: &Value, prices: &Prices) -> Self {
        let spec: Option<slipway_statemachine::ClusterSpec> = serde_json::from_value(spec.clone()).ok();
        let mut lines = vec![("EKS control plane".to_owned(), Some(prices.eks_hour))];
        let Some(spec) = spec else { return Self { lines } };
        let region = spec.region.as_deref().and_then(|region| prices.regions.get(region));
        if let Some(kind) = spec.core.instance_types.first() {
            let price =
                region.and_then(|region| region.instances.get(kind)).map(|price| price * f64::from(spec.core.size));
            lines.push((format!("{} {kind}", spec.core.size), price));
        }
        if let slipway_statemachine::spec::NetworkSpec::Create(network) = &spec.network {
            let count = match network.nat {
                slipway_statemachine::spec::Nat::Single => 1,
                slipway_statemachine::spec::Nat::PerZone => network.zones,
            };
            let gateways = if count == 1 { "NAT gateway" } else { "NAT gateways" };
            lines.push((format!("{count} {gateways}"), region.map(|region| region.nat_gateway * f64::from(count))));
        }
        Self { lines }
    }

    /// Dollars per hour of what has a price.
    #[must_use]
    pub fn dollars(&self) -> f64 {
        self.lines.iter().filter_map(|(_, dollars)| *dollars).sum()
    }
}
