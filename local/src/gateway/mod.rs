//! One endpoint for every AWS call: identify, authorize, record, fault, route.

pub mod call;
pub mod wire;
