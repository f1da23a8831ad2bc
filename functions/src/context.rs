//! What every step is handed: clients, state table, settings.

use std::{collections::BTreeMap, env};

use slipway_statemachine::{ErrorName, StepError};
use time::Duration;

use crate::{aws::Clients, state::Table};

/// What every step is handed. Made once in a function's life.
#[derive(Debug)]
pub struct Context {
    /// AWS's APIs, in the region that the function runs in.
    pub aws: Clients,
    /// The lease, the registry, the runs.
    pub state: Table,
    /// What the template says.
    pub settings: Settings,
}

impl Context {
    /// Reads settings and credentials from the environment that Lambda gives.
    ///
    /// # Errors
    /// `Internal` when a setting is missing.
    pub async fn from_env() -> Result<Self, StepError> {
        let settings = Settings::from_env()?;
        let aws = Clients::load().await;
        let state = Table::new(aws.dynamodb().clone(), settings.table.clone());
        Ok(Self { aws, state, settings })
    }
}

/// What the template says about a function's surroundings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `SLIPWAY_TABLE`: the state table's name.
    pub table: String,
    /// `SLIPWAY_BUS`: the name of the bus that hears how runs end.
    pub bus: String,
    /// `SLIPWAY_CLUSTER_ACCESS_ROLE_ARN`: the role that logs in to clusters.
    pub cluster_access_role_arn: String,
    /// `SLIPWAY_LEASE_GRACE_SECONDS`: how long a function may outlive its stopped execution, at least the longest
    /// function timeout. A lease that was cut off is not taken before.
    pub lease_grace: Duration,
    /// `SLIPWAY_SWEEP_ACCOUNTS`: the accounts that a sweep may remove anything from, separated by commas; none if unset.
    pub sweep_accounts: Vec<String>,
    /// `SLIPWAY_STEP_ROLES`: the ARNs of the steps' roles that preflight asks about, as `step=arn`, separated by commas.
    pub step_roles: BTreeMap<String, String>,
    /// The release and, in Lambda, the function's version, which a deployment of other code raises: `0.1.0+7`.
    pub release: String,
    /// `SLIPWAY_PERMISSIONS_CHECK` is `warn`: what IAM's policy simulator says is no reason to end a run.
    pub permissions_warn: bool,
}

impl Settings {
    fn from_env() -> Result<Self, StepError> {
        let read = |name: &str| {
            env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
                StepError::new(ErrorName::Internal, format!("The environment variable {name} is not set."))
                    .remedy("Deploy infra/template.yaml, which sets it, or export it before running a step by hand.")
            })
        };
        Ok(Self {
            table: read("SLIPWAY_TABLE")?,
            bus: read("SLIPWAY_BUS")?,
            cluster_access_role_arn: read("SLIPWAY_CLUSTER_ACCESS_ROLE_ARN")?,
            lease_grace: read("SLIPWAY_LEASE_GRACE_SECONDS")?.parse().map(Duration::seconds).map_err(|_| {
                StepError::new(ErrorName::Internal, "SLIPWAY_LEASE_GRACE_SECONDS is not a whole number of seconds.")
            })?,
            sweep_accounts: listed("SLIPWAY_SWEEP_ACCOUNTS"),
            step_roles: listed("SLIPWAY_STEP_ROLES")
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(step, arn)| (step.to_owned(), arn.to_owned()))
                .collect(),
            release: format!(
                "{}+{}",
                env!("CARGO_PKG_VERSION"),
                env::var("AWS_LAMBDA_FUNCTION_VERSION").unwrap_or_default()
            ),
            permissions_warn: env::var("SLIPWAY_PERMISSIONS_CHECK").is_ok_and(|check| check == "warn"),
        })
    }
}

/// What an environment variable lists, separated by commas; nothing if it is not set.
fn listed(name: &str) -> Vec<String> {
    let listed = env::var(name).unwrap_or_default();
    listed.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
}
