//! The rules of the States Language, one test each, on virtual time. Every test names where its rule is written.
//! "Guide" is the AWS Step Functions developer guide, "specification" is states-language.net/spec.html.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// A table of JSON reads better without a reference before every literal.
#![allow(clippy::needless_pass_by_value)]

mod data;
mod definitions;
mod errors;
mod histories;
mod jsonata;
mod provision;
mod scopes;
mod support;
mod timing;
