//! Everything Karpenter, without any I/O: its chart rendered to manifests, our values, node pools, the IAM policies of
//! its controller, and what the state of its pods means.

pub mod chart;
mod error;
mod heap;
pub mod policy;
mod template;

pub use error::Error;
