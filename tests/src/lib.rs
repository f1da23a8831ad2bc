//! What the tests share: the repository's files, a machine's worth of sample data, and a cloud with our control plane.

pub mod account;
pub mod cloud;
pub mod generated;
pub mod heard;
pub mod identity;
pub mod privileges;
pub mod repository;
pub mod samples;
pub mod secrets;
pub mod wait;
