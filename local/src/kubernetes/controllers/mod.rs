//! What AWS's own controllers make of a cluster's objects: the cloud controller manager, which EKS runs, a load balancer
//! of each Service of type LoadBalancer; the EBS driver, where its add-on is installed, a volume of each claim.
//!
//! They look and act twice a second instead of watching. What they made stays when the cluster goes without asking them.

mod balancers;
mod volumes;

use std::time::Duration;

use roxmltree::{Document, Node};

use crate::gateway::call::{Aws, AwsError};

/// How often the cluster is looked at, real time.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The controllers of one cluster.
pub(crate) struct Controllers {
    /// A client that may do everything.
    pub(crate) client: kube::Client,
    pub(crate) aws: Aws,
    pub(crate) cluster: String,
}

impl Controllers {
    /// Looks for as long as it is polled.
    pub(crate) async fn run(self) {
        let mut last_errors = [String::new(), String::new()];
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcomes = [("load balancers", balancers::look(&self).await), ("volumes", volumes::look(&self).await)];
            for ((what, outcome), last) in outcomes.into_iter().zip(&mut last_errors) {
                let error = outcome.err().map(|error| format!("{error:#}")).unwrap_or_default();
                // Once, not twice a second.
                if !error.is_empty() && error != *last {
                    tracing::warn!(cluster = self.cluster, error, "{what}: to be tried again");
                }
                *last = error;
            }
        }
    }

    /// The tag by which everybody knows what is the cluster's.
    fn owned(&self) -> String {
        format!("kubernetes.io/cluster/{}", self.cluster)
    }

    /// Calls a query- or ec2-protocol API, with an error of these codes as no answer.
    async fn query(
        &self,
        service: &str,
        action: &str,
        params: &[(&str, &str)],
        expected: &[&str],
    ) -> anyhow::Result<Option<String>> {
        match self.aws.query(service, action, params).await {
            Ok(answer) => Ok(Some(answer)),
            Err(AwsError { code, .. }) if expected.contains(&code.as_str()) => Ok(None),
            Err(refusal) => Err(anyhow::Error::from(refusal).context(format!("{service}:{action}"))),
        }
    }
}

/// The texts of all elements of a name, in order.
fn texts(answer: &str, name: &str) -> anyhow::Result<Vec<String>> {
    let document = Document::parse(answer)?;
    let named = document.descendants().filter(|node| node.has_tag_name_of(name));
    Ok(named.filter_map(|node| node.text().map(str::to_owned)).collect())
}

/// Element names without regard to their namespace.
trait Named {
    fn has_tag_name_of(&self, name: &str) -> bool;
}

impl Named for Node<'_, '_> {
    fn has_tag_name_of(&self, name: &str) -> bool {
        self.tag_name().name() == name
    }
}
