//! The contract between the state machine and a step: what a step is called, takes, gives and may raise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ErrorName;

/// What every step declares. A step is a pure function from its input and the world it observes to one
/// action; this trait is only its face, so that the machine, the template and the schemas can be checked
/// against it without running anything.
pub trait Step {
    /// Kebab-case: the Lambda handler, the name for `cargo lambda invoke`, the file, the ASL's function.
    const NAME: &'static str;
    /// Every error name that the step may raise beyond [`ErrorName::COMMON`].
    const ERRORS: &'static [ErrorName];
    /// What the state machine passes. Unknown fields are tolerated: a running machine may meet the next
    /// release's functions.
    type Input: DeserializeOwned + JsonSchema;
    /// What the step answers. A step that waits answers [`Progress`] of its own output type.
    type Output: Serialize + JsonSchema;
}

/// The run that a step works for. Mutating steps hold `fence` against the lease before they act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// ULID of the run, the sort key of its rows.
    pub id: String,
    /// The lease's fencing number when this run took it.
    pub fence: u64,
}

/// Which cluster: the key of its rows, of its tags and of its log lines.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct ClusterKey {
    /// Twelve digits.
    pub account: String,
    /// For example `eu-west-1`.
    pub region: String,
    /// The EKS cluster's name.
    pub name: String,
}

/// How one logs in to a cluster's API server, beside a token of the cluster-access role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterEndpoint {
    /// `https://…`, as DescribeCluster answers it.
    pub url: String,
    /// PEM in base64, as DescribeCluster answers it.
    pub certificate_authority: String,
}

/// The answer of a step that may have to wait: `{"done": false, "retryAfterSeconds": n, "detail": "…"}` or
/// `{"done": true, "output": {…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Progress<T> {
    /// Not there yet; the machine waits and asks again.
    Waiting(Waiting),
    /// There.
    Done(Done<T>),
}

/// What is waited for, and for how long before it is worth asking again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Always false.
    #[schemars(extend("const" = false))]
    pub done: bool,
    /// Seconds, chosen from how long the thing usually takes.
    #[schemars(range(min = 1, max = 300))]
    pub retry_after_seconds: u32,
    /// For whoever watches.
    pub detail: String,
}

/// The finished answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done<T> {
    /// Always true.
    #[schemars(extend("const" = true))]
    pub done: bool,
    /// The facts that the step found or made.
    pub output: T,
}

impl<T> Progress<T> {
    /// Ask again after `seconds`, because of `detail`.
    pub fn wait(seconds: u32, detail: impl Into<String>) -> Self {
        Self::Waiting(Waiting { done: false, retry_after_seconds: seconds, detail: detail.into() })
    }

    /// Finished with `output`.
    pub fn done(output: T) -> Self {
        Self::Done(Done { done: true, output })
    }
}
