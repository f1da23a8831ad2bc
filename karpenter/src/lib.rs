//! Everything Karpenter, without any I/O: its chart rendered to manifests, our values, node pools, the IAM policies of
//! its controller, and what the state of its pods, logs and identity means.

pub mod chart;
pub mod diagnosis;
mod error;
mod heap;
pub mod identity;
pub mod node_pools;
pub mod policy;
pub mod render;
mod template;
pub mod values;

pub use error::Error;
