//! Everything Karpenter, without any I/O: its chart rendered to manifests, our values, node pools, the IAM policies of
//! its controller, and what the state of its pods means.

pub mod chart;
mod error;
pub mod health;
mod heap;
pub mod node_pools;
pub mod policy;
pub mod render;
mod template;
pub mod values;

pub use error::Error;
