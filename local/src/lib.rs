//! The local cloud: AWS and EKS on one machine, honest about what they are not.

pub mod cloud;
pub mod cloudformation;
pub mod demo;
pub mod eks;
pub mod gateway;
pub mod kubernetes;
pub mod paths;
pub mod processes;
pub mod propagation;
pub mod services;
