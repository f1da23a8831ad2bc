//! bind-identity: the controller's role, which exactly one service account of exactly this cluster may assume, and its
//! six managed policies.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_karpenter::policy::{ControllerPolicy, Scope, controller_policies, web_identity_trust};
use slipway_statemachine::{ClusterKey, ErrorName, Run, Step, StepError, names, spec::Identity};

use crate::{
    Context,
    aws::iam::{Role, ensure_policy, ensure_role},
};

/// Binds Karpenter's service account to an IAM role.
#[derive(Debug)]
pub struct BindIdentity;

/// What is bound to what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// How the controller proves who it is.
    pub identity: Identity,
    /// Where Karpenter is installed.
    pub namespace: String,
    /// The cluster's issuer URL.
    pub issuer: String,
    /// The IAM OIDC provider of that issuer.
    pub provider_arn: String,
    /// The interruption queue.
    pub queue_arn: String,
    /// The role that the controller hands to its nodes.
    pub karpenter_node_role_arn: String,
    /// The EKS cluster.
    pub cluster_arn: String,
    /// The spec's tags.
    pub tags: BTreeMap<String, String>,
}

/// The controller's identity.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The role.
    pub controller_role_arn: String,
    /// Its policies.
    pub policy_arns: Vec<String>,
}

impl Step for BindIdentity {
    const NAME: &'static str = "bind-identity";
    const ERRORS: &'static [ErrorName] = &[ErrorName::NotYetSupported, ErrorName::NotOurs];
    type Input = Input;
    type Output = Output;
}

/// The role, which carries the policies of these ARNs, as it should be.
fn decide(input: &Input, policies: Vec<String>) -> Role {
    Role {
        name: names::role(&input.cluster, "controller"),
        description: "Karpenter's controller in an EKS cluster",
        trust: web_identity_trust(&input.provider_arn, &input.issuer, &input.namespace),
        policies,
        tags: names::tags(&input.cluster, &input.tags),
    }
}

fn policies(input: &Input) -> Vec<ControllerPolicy> {
    controller_policies(&Scope {
        account: &input.cluster.account,
        region: &input.cluster.region,
        cluster: &input.cluster.name,
        cluster_arn: &input.cluster_arn,
        queue_arn: &input.queue_arn,
        node_role_arn: &input.karpenter_node_role_arn,
    })
}

/// Makes what is missing, corrects what differs.
///
/// # Errors
/// `NotYetSupported` for Pod Identity; `NotOurs` when a role or policy of the name is there without our tag.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    if input.identity == Identity::PodIdentity {
        return Err(StepError::new(
            ErrorName::NotYetSupported,
            "`karpenter.identity` is \"podIdentity\", which this release does not bind.",
        ));
    }
    let tags = names::tags(&input.cluster, &input.tags);
    let documents = policies(&input);
    let policy_arns = try_join_all(documents.iter().map(|policy| {
        let name = names::policy(&input.cluster, policy.part);
        let (run, cluster, tags) = (&input.run, &input.cluster, &tags);
        async move { ensure_policy(cx, run, cluster, &name, &policy.document, tags).await }
    }))
    .await?;
    let role = decide(&input, policy_arns.clone());
    let controller_role_arn = ensure_role(cx, &input.run, &input.cluster, &role).await?;
    Ok(Output { controller_role_arn, policy_arns })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input() -> Input {
        Input {
            run: Run { id: "01".into(), fence: 1 },
            cluster: ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() },
            identity: Identity::Irsa,
            namespace: "karpenter".into(),
            issuer: "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC".into(),
            provider_arn: "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/ABC".into(),
            queue_arn: "arn:aws:sqs:eu-west-1:111122223333:slipway-eks-demo".into(),
            karpenter_node_role_arn: "arn:aws:iam::111122223333:role/slipway-eks-demo-eu-west-1-node".into(),
            cluster_arn: "arn:aws:eks:eu-west-1:111122223333:cluster/demo".into(),
            tags: BTreeMap::new(),
        }
    }

    #[test]
    fn one_service_account_of_one_cluster_may_assume_the_role() {
        let role = decide(&input(), vec!["arn:p".into()]);
        let equals = &role.trust["Statement"][0]["Condition"]["StringEquals"];
        let issuer = "oidc.eks.eu-west-1.amazonaws.com/id/ABC";
        assert_eq!(equals[format!("{issuer}:sub")], json!("system:serviceaccount:karpenter:karpenter"));
        assert_eq!(equals[format!("{issuer}:aud")], json!("sts.amazonaws.com"));
        assert_eq!(role.policies, ["arn:p"]);
    }

    #[test]
    fn each_policy_has_a_name_of_its_own() {
        let input = input();
        let mut names: Vec<_> =
            policies(&input).iter().map(|policy| names::policy(&input.cluster, policy.part)).collect();
        names.dedup();
        assert_eq!(names.len(), 6);
    }
}
