//! The AWS services of the local cloud that are ours, and the emulators that answer the rest.

pub mod backend;
pub mod capacity;
pub mod deploy;
pub mod ec2;
pub mod iam;
pub mod images;
pub mod pricing;
pub mod proxy;
pub mod quotas;
pub mod registry;
pub mod sqs;
pub mod ssm;
pub mod stacks;
pub mod stepfunctions;
pub mod sts;
pub mod web_token;
