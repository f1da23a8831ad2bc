//! delete-identity: instance profiles, roles, managed policies and OIDC providers of a cluster. Service-linked roles stay.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Kind, Run, Step, StepError};

use crate::{
    Context,
    aws::{
        inventory::{self, Place},
        removal::remove,
    },
    ownership::{self, Maker, Resource, of_cluster},
};

/// Deletes a cluster's identities.
#[derive(Debug)]
pub struct DeleteIdentity;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The cluster may have been made by somebody else, who calls roles and policies otherwise.
    #[serde(default)]
    pub adopt: bool,
}

/// What was deleted by this call.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Names of instance profiles.
    pub instance_profiles: Vec<String>,
    /// Names of roles.
    pub roles: Vec<String>,
    /// ARNs of managed policies.
    pub policies: Vec<String>,
    /// ARNs of OIDC providers.
    pub providers: Vec<String>,
}

impl Step for DeleteIdentity {
    const NAME: &'static str = "delete-identity";
    const ERRORS: &'static [ErrorName] = &[ErrorName::DeletionBlocked];
    type Input = Input;
    type Output = Output;
}

/// What goes: profiles first, then roles, which may not be in one, then policies, which may be on none. The provider of a
/// cluster that was still there went with it (see `delete-cluster`); these are of clusters that went without us.
pub(crate) fn decide<'a>(cluster: &ClusterKey, adopt: bool, found: &'a [Resource]) -> Vec<&'a Resource> {
    let own = of_cluster(cluster, adopt, found).into_iter().map(|(resource, _)| resource);
    let mut going: Vec<&Resource> = own.filter(|one| ownership::maker(one) != Maker::Network).collect();
    going.sort_by(|a, b| (a.kind, &a.arn).cmp(&(b.kind, &b.arn)));
    going
}

/// Deletes what is there.
///
/// # Errors
/// `DeletionBlocked` names what still holds a role or policy.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Input { run, cluster, adopt } = &input;
    let found = inventory::identities(cx, Place::of(cluster, *adopt)).await?;
    let mut deleted = Output::default();
    for one in decide(cluster, *adopt, &found) {
        cx.state.hold(run, cluster).await?;
        remove(cx, one.kind, &one.arn, &one.name).await?;
        match one.kind {
            Kind::InstanceProfile => deleted.instance_profiles.push(one.name.clone()),
            Kind::Role => deleted.roles.push(one.name.clone()),
            Kind::Policy => deleted.policies.push(one.arn.clone()),
            _ => deleted.providers.push(one.arn.clone()),
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use slipway_statemachine::names;

    use super::*;

    fn cluster(name: &str) -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: name.into() }
    }

    fn left(cluster: &ClusterKey) -> Vec<Resource> {
        let tags = BTreeMap::from([(names::CLUSTER_TAG.to_owned(), cluster.name.clone())]);
        let arn = |what: &str, name: &str| format!("arn:aws:iam::111122223333:{what}/{name}");
        let role = names::role(cluster, "node");
        let policy = names::policy(cluster, "interruption");
        let issuer = format!("oidc.eks.{}.amazonaws.com/id/0F1E{}", cluster.region, cluster.name);
        vec![
            Resource::new(Kind::OidcProvider, arn("oidc-provider", &issuer), "0F1E").tagged(tags.clone()),
            Resource::new(Kind::Policy, arn("policy", &policy), policy).tagged(tags.clone()),
            Resource::new(Kind::Role, arn("role", &role), role.clone()).tagged(tags),
            // EKS's of a node group: it says nothing itself and has the role.
            Resource::new(
                Kind::InstanceProfile,
                arn("instance-profile", &format!("eks-{role}")),
                format!("eks-{role}"),
            )
            .part_of([role]),
        ]
    }

    #[test]
    fn profiles_go_before_roles_roles_before_policies_and_no_neighbours() {
        let demo = cluster("demo");
        let elsewhere = ClusterKey { region: "us-east-1".into(), ..demo.clone() };
        let neighbours = ["demo-2", "demo_2", "dem", "demo-eu-west-1"].map(cluster);
        let found: Vec<Resource> = neighbours.iter().chain([&elsewhere, &demo]).flat_map(left).collect();
        for adopt in [false, true] {
            let going: Vec<_> =
                decide(&demo, adopt, &found).into_iter().map(|one| (one.kind, one.arn.clone())).collect();
            let mut own: Vec<_> = left(&demo).into_iter().map(|one| (one.kind, one.arn)).collect();
            own.sort();
            assert_eq!(going, own);
            let order = [Kind::InstanceProfile, Kind::Role, Kind::Policy, Kind::OidcProvider];
            assert_eq!(going.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), order);
        }
    }

    #[test]
    fn the_role_of_a_network_that_stays_stays() {
        let tags = BTreeMap::from([(names::CLUSTER_TAG.to_owned(), "demo".to_owned())]);
        let role = Resource::new(Kind::Role, "arn:r", "slipway-network-demo-FlowLogRole").tagged(tags);
        assert!(decide(&cluster("demo"), false, &[role]).is_empty());
    }
}
