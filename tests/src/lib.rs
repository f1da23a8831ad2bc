//! What the tests share: the repository's files, and a machine's worth of sample data.

pub mod generated;
pub mod repository;
pub mod samples;
