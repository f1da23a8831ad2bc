//! The steps, and the adapters they speak through.
//!
//! A tour for the first day:
//!
//! - [`runtime`] is what Lambda meets: it parses the input, runs the step, writes its row, names its error.
//! - [`steps`] has one file a step and one table of them all: what a step takes, gives and may raise.
//! - [`context`] is what every step is handed: clients, state table, settings.
//! - [`aws`] and [`cluster`] are the only modules that hold clients: AWS's APIs, and a cluster's API server.
//! - [`resume`] says whether a run may go on where the one before it failed.
//! - [`ownership`] says whether something that was found belongs to a cluster, and why.
//! - [`state`] is the table: the lease with its fencing number, the registry, the runs and the steps' rows.
//!
//! A step observes, decides (in a pure function), acts once and reports. It never sleeps or loops to wait: the state
//! machine owns order, waiting and retrying.

pub mod aws;
pub mod cluster;
pub mod context;
mod identity;
pub mod ownership;
pub mod resume;
pub mod runtime;
pub mod state;
pub mod steps;
pub mod suspect;

pub use context::Context;
