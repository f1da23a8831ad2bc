//! The AWS services of the local cloud that are ours, and the emulators that answer the rest.

pub mod images;
pub mod pricing;
pub mod proxy;
pub mod quotas;
pub mod registry;
pub mod ssm;
