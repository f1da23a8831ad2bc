//! What a person sees of a run: live progress, a timeline with its critical path, the cost.
//!
//! - [`history`]: the events of an execution, as far as a reader needs them.
//! - [`progress`]: what they amount to: which step runs, waits, is tried again, is done, and why.
//! - [`timeline`]: where the time went: bars, critical path, what waits would take on AWS.
//! - [`cost`]: transitions, Lambda time and the cluster, at published prices.
//! - [`findings`]: what an audit found and a sweep would remove.
//! - [`live`] and [`report`]: text of the above, for terminals and for logs.
//! - [`aws`]: the two doors: Step Functions and the state table.
//!
//! **Invariant.** Only [`aws`] speaks to anybody, and only with what a user's credentials may read or start.

pub mod aws;
pub mod cost;
pub mod findings;
pub mod history;
pub mod live;
pub mod progress;
pub mod report;
pub mod timeline;
