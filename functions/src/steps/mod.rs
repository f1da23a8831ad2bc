//! Every step there is: its name, what it takes and gives, what it may raise, and the function that runs it.

use std::pin::Pin;

use schemars::Schema;
use serde_json::Value;
use slipway_statemachine::{ErrorName, Step, StepError};

use crate::{Context, runtime};

/// A step as the runtime and the contract tests see it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Kebab-case, as in the template's handler.
    pub name: &'static str,
    /// What it may raise beyond [`ErrorName::COMMON`].
    pub errors: &'static [ErrorName],
    /// JSON schema of what it takes.
    pub input: fn() -> Schema,
    /// JSON schema of what it answers.
    pub output: fn() -> Schema,
    /// Runs it once: JSON in, JSON out.
    pub run: for<'a> fn(&'a Context, Value) -> Running<'a>,
}

/// A step at work.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Value, StepError>> + Send + 'a>>;

/// `module::Type` of each step: the type implements [`Step`], the module has `run(&Context, Input)`.
macro_rules! steps {
    ($($module:ident::$step:ident,)*) => {
        /// Every step, in the machine's order.
        pub const ALL: &[Entry] = &[$(Entry {
            name: <$module::$step as Step>::NAME,
            errors: <$module::$step as Step>::ERRORS,
            input: || schemars::schema_for!(<$module::$step as Step>::Input),
            output: || schemars::schema_for!(<$module::$step as Step>::Output),
            run: |cx, payload| Box::pin(async move {
                let input: <$module::$step as Step>::Input = runtime::parse(payload)?;
                let output: <$module::$step as Step>::Output = $module::run(cx, input).await?;
                runtime::answer(&output)
            }),
        },)*];
    };
}

// A new step is two lines here: its module, and its place in the table.
pub mod apply_node_pools;
pub mod associate_access_policy;
pub mod audit;
pub mod bind_identity;
pub mod check_karpenter;
pub mod close_run;
pub mod create_cluster;
pub mod delete_addons;
pub mod delete_cluster;
pub mod delete_identity;
pub mod delete_network;
pub mod delete_node_groups;
pub mod delete_queue;
pub mod delete_remnants;
pub mod drain_capacity;
pub mod ensure_addons;
pub mod ensure_cluster_roles;
pub mod ensure_interruption_queue;
pub mod ensure_network;
pub mod ensure_node_group;
pub mod heal_karpenter;
pub mod install_karpenter;
pub mod open_run;
pub mod open_teardown;
pub mod plan;
pub mod preflight;
pub mod probe_identity;
pub mod release_workloads;
pub mod sweep;
pub mod terminate_instances;
pub mod uninstall_karpenter;
pub mod verify_capacity;
pub mod wait_oidc;

steps! {
    open_run::OpenRun,
    plan::Plan,
    preflight::Preflight,
    ensure_network::EnsureNetwork,
    ensure_cluster_roles::EnsureClusterRoles,
    ensure_interruption_queue::EnsureInterruptionQueue,
    create_cluster::CreateCluster,
    wait_oidc::WaitOidc,
    associate_access_policy::AssociateAccessPolicy,
    ensure_addons::EnsureAddons,
    ensure_node_group::EnsureNodeGroup,
    bind_identity::BindIdentity,
    probe_identity::ProbeIdentity,
    install_karpenter::InstallKarpenter,
    check_karpenter::CheckKarpenter,
    heal_karpenter::HealKarpenter,
    apply_node_pools::ApplyNodePools,
    verify_capacity::VerifyCapacity,
    open_teardown::OpenTeardown,
    release_workloads::ReleaseWorkloads,
    drain_capacity::DrainCapacity,
    uninstall_karpenter::UninstallKarpenter,
    delete_addons::DeleteAddons,
    delete_node_groups::DeleteNodeGroups,
    delete_queue::DeleteQueue,
    terminate_instances::TerminateInstances,
    delete_cluster::DeleteCluster,
    delete_identity::DeleteIdentity,
    delete_remnants::DeleteRemnants,
    delete_network::DeleteNetwork,
    close_run::CloseRun,
    audit::Audit,
    sweep::Sweep,
}

/// The step of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    ALL.iter().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_can_be_invoked_alone() {
        let manifest = include_str!("../../Cargo.toml");
        for Entry { name, .. } in ALL {
            let bin = format!("name = \"{name}\"\npath = \"src/bin/{name}.rs\"\nrequired-features = [\"step-bins\"]");
            assert!(manifest.contains(&bin), "functions/Cargo.toml lacks the bin {name}");
        }
    }

    #[test]
    fn every_step_is_found_by_its_name_alone() {
        for entry in ALL {
            assert_eq!(ALL.iter().filter(|other| other.name == entry.name).count(), 1, "{}", entry.name);
            assert!(
                entry.errors.iter().all(|error| !ErrorName::COMMON.contains(error)),
                "{} repeats a common error",
                entry.name
            );
        }
        assert!(find("no-such-step").is_none());
    }
}
