//! bind-identity: the controller's role, which exactly one service account of exactly this cluster may get, its six
//! managed policies and, with Pod Identity, the association.
//!
//! A running cluster changes from one identity to the other without a gap: `bind` adds the new one beside the old, whose
//! trust statement stays; `release` takes the association away that would keep new pods from their annotation, once
//! the new identity is proven; `settle` leaves the new trust alone, once every pod has it.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_karpenter::policy::{
    ControllerPolicy, SERVICE_ACCOUNT, Scope, controller_policies, pod_identity_trust, web_identity_trust,
};
use slipway_statemachine::{ClusterKey, ErrorName, Run, Step, StepError, names, plan::Planned, spec::Identity};

use crate::{
    Context,
    aws::{
        documents::same_document,
        error::{During as _, code, refused},
        iam::{self, Role, ensure_policy, ensure_role, plan_policy, plan_role},
        pod_identity::{Association, association},
        tags::ours,
    },
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
    /// Which part of it.
    #[serde(default)]
    pub phase: Phase,
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

/// When it is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Before the identity is probed: adds it, and leaves what running pods use.
    #[default]
    Bind,
    /// Once it is proven, before pods are made: takes away what would give them another one.
    Release,
    /// Once every pod has it: takes away what only the old one needed.
    Settle,
}

/// The controller's identity.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The role.
    pub controller_role_arn: String,
    /// Its policies.
    pub policy_arns: Vec<String>,
    /// The identity that is still there beside the wanted one: it is to be released and settled.
    pub replaces: Option<Identity>,
}

impl Step for BindIdentity {
    const NAME: &'static str = "bind-identity";
    const ERRORS: &'static [ErrorName] = &[ErrorName::NotOurs];
    type Input = Input;
    type Output = Output;
}

/// What is there already.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Observed {
    /// The role's trust policy.
    pub trust: Option<Value>,
    /// The service account's association.
    pub association: Option<Association>,
}

/// What is to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Action {
    /// The role's trust policy.
    pub trust: Value,
    /// What becomes of the association.
    pub association: Change,
    /// What is left of the other identity afterwards.
    pub replaces: Option<Identity>,
}

/// What becomes of an association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is as it should be, or rightly not there.
    Keep,
    Create,
    /// It leads to another role.
    Redirect(String),
    Delete(String),
}

/// Trust and association of a phase. Until `settle` the trust statement of the other identity stays if it is there:
/// pods that run with it ask for credentials again and again.
///
/// # Errors
/// `NotOurs` for an association without our tag.
pub(crate) fn decide(input: &Input, role_arn: &str, observed: &Observed) -> Result<Action, StepError> {
    if let Some(found) = &observed.association {
        ours(&input.cluster, &found.tags, &format!("The Pod Identity association {} of {SERVICE_ACCOUNT}", found.id))?;
    }
    let web = web_identity_trust(&input.provider_arn, &input.issuer, &input.namespace);
    let (wanted, other, other_identity) = match input.identity {
        Identity::Irsa => (web, pod_identity_trust(), Identity::PodIdentity),
        Identity::PodIdentity => (pod_identity_trust(), web, Identity::Irsa),
    };
    let trusted = observed.trust.as_ref().is_some_and(|trust| has_statement(trust, &other["Statement"][0]));
    let keep_other = trusted && input.phase != Phase::Settle;
    let association = match (input.identity, &observed.association) {
        (Identity::PodIdentity, None) => Change::Create,
        (Identity::PodIdentity, Some(found)) if found.role_arn != role_arn => Change::Redirect(found.id.clone()),
        (Identity::Irsa, Some(found)) if input.phase != Phase::Bind => Change::Delete(found.id.clone()),
        _ => Change::Keep,
    };
    let associated = input.identity == Identity::Irsa && observed.association.is_some() && association == Change::Keep;
    let mut trust = wanted;
    if keep_other && let Some(statements) = trust["Statement"].as_array_mut() {
        statements.push(other["Statement"][0].clone());
    }
    Ok(Action { trust, association, replaces: (keep_other || associated).then_some(other_identity) })
}

fn has_statement(trust: &Value, statement: &Value) -> bool {
    let statements = &trust["Statement"];
    let all = statements.as_array().map_or_else(|| std::slice::from_ref(statements), Vec::as_slice);
    all.iter().any(|one| same_document(one, statement))
}

/// The role, which carries the policies of these ARNs, as it should be.
fn role(input: &Input, trust: Value, policies: Vec<String>) -> Role {
    Role {
        name: names::role(&input.cluster, CONTROLLER),
        description: "Karpenter's controller in an EKS cluster",
        trust,
        policies,
        tags: names::tags(&input.cluster, &input.tags),
    }
}

/// The suffix of the role's name.
const CONTROLLER: &str = "controller";

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

/// Looks at the role's trust and the service account's association.
pub(crate) async fn observe(cx: &Context, input: &Input) -> Result<Observed, StepError> {
    Ok(Observed {
        trust: iam::trust(cx, &names::role(&input.cluster, CONTROLLER)).await?,
        association: association(cx, &input.cluster, &input.namespace, SERVICE_ACCOUNT).await?,
    })
}

/// Makes what is missing, corrects what differs, and takes away what the phase allows.
///
/// # Errors
/// `NotOurs` when a role, policy or association of the name is there without our tag.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let tags = names::tags(&input.cluster, &input.tags);
    let documents = policies(&input);
    let policy_arns = try_join_all(documents.iter().map(|policy| {
        let name = names::policy(&input.cluster, policy.part);
        let (run, cluster, tags) = (&input.run, &input.cluster, &tags);
        async move { ensure_policy(cx, run, cluster, &name, &policy.document, tags).await }
    }))
    .await?;
    let role_arn = iam::role_arn(&input.cluster, &names::role(&input.cluster, CONTROLLER));
    let Action { trust, association, replaces } = decide(&input, &role_arn, &observe(cx, &input).await?)?;
    let role = role(&input, trust, policy_arns.clone());
    let controller_role_arn = ensure_role(cx, &input.run, &input.cluster, &role).await?;
    if association != Change::Keep {
        cx.state.hold(&input.run, &input.cluster).await?;
        associate(cx, &input, &controller_role_arn, tags, association).await?;
    }
    Ok(Output { controller_role_arn, policy_arns, replaces })
}

/// What would become of the policies, the role and, for Pod Identity, the association. Without an issuer, which comes
/// with the cluster, what the role trusts is not known yet.
///
/// # Errors
/// As [`run`].
pub(crate) async fn plan(cx: &Context, input: &Input, cluster_is_there: bool) -> Result<Vec<Planned>, StepError> {
    let tags = names::tags(&input.cluster, &input.tags);
    let documents = policies(input);
    let named = documents.iter().map(|policy| (names::policy(&input.cluster, policy.part), &policy.document));
    let named: Vec<_> = named.collect();
    let of_policies = named.iter().map(|(name, document)| plan_policy(cx, &input.cluster, name, document, &tags));
    let mut planned = try_join_all(of_policies).await?;
    let role_name = names::role(&input.cluster, CONTROLLER);
    if !cluster_is_there {
        let found = iam::role(cx, &role_name).await?;
        let told = ["it will trust the new cluster's issuer".to_owned()];
        planned.push(Planned::of("IAM role", &role_name, found.map(|_| told.as_slice())));
        return Ok(planned);
    }
    let observed = observe(cx, input).await?;
    let action = decide(input, &iam::role_arn(&input.cluster, &role_name), &observed)?;
    let arns = named.iter().map(|(name, _)| iam::policy_arn(&input.cluster, name)).collect();
    planned.push(plan_role(cx, &input.cluster, &role(input, action.trust, arns)).await?);
    let (kind, name) = ("EKS Pod Identity association", format!("{}/{SERVICE_ACCOUNT}", input.namespace));
    match action.association {
        Change::Create => planned.push(Planned::of(kind, &name, None)),
        Change::Redirect(_) => planned.push(Planned::of(kind, &name, Some(&["it leads to another role".to_owned()]))),
        Change::Delete(_) => planned.push(Planned::delete(kind, &name, "the spec asks for IRSA")),
        Change::Keep if observed.association.is_some() => planned.push(Planned::of(kind, &name, Some(&[]))),
        Change::Keep => {}
    }
    Ok(planned)
}

async fn associate(
    cx: &Context,
    input: &Input,
    role_arn: &str,
    tags: BTreeMap<String, String>,
    change: Change,
) -> Result<(), StepError> {
    let (eks, name) = (cx.aws.eks(), &input.cluster.name);
    match change {
        Change::Keep => Ok(()),
        Change::Create => {
            let created = eks
                .create_pod_identity_association()
                .cluster_name(name)
                .namespace(&input.namespace)
                .service_account(SERVICE_ACCOUNT)
                .role_arn(role_arn)
                .client_request_token(format!("slipway-{}-{}", input.run.id, input.namespace))
                .set_tags(Some(tags.into_iter().collect()))
                .send()
                .await;
            match created {
                Ok(_) => Ok(()),
                // Another invocation of this step was faster; the next look adopts it.
                Err(error) if code(&error) == Some("ResourceInUseException") => Err(StepError::new(
                    ErrorName::PropagationPending,
                    refused("eks:CreatePodIdentityAssociation", &error).cause,
                )),
                Err(error) => Err(refused("eks:CreatePodIdentityAssociation", &error)),
            }
        }
        Change::Redirect(id) => {
            let call = eks.update_pod_identity_association().cluster_name(name).association_id(id).role_arn(role_arn);
            call.send().await.during("eks:UpdatePodIdentityAssociation")?;
            Ok(())
        }
        Change::Delete(id) => {
            match eks.delete_pod_identity_association().cluster_name(name).association_id(id).send().await {
                Ok(_) => Ok(()),
                Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(()),
                Err(error) => Err(refused("eks:DeletePodIdentityAssociation", &error)),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input() -> Input {
        Input {
            run: Run { id: "01".into(), fence: 1 },
            cluster: ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() },
            phase: Phase::Bind,
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

    const ROLE: &str = "arn:aws:iam::111122223333:role/slipway-eks-demo-eu-west-1-controller";

    fn found(role_arn: &str) -> Association {
        let tags = names::tags(&input().cluster, &BTreeMap::new());
        Association { id: "a-1".into(), role_arn: role_arn.into(), tags }
    }

    fn asked(identity: Identity, phase: Phase, observed: &Observed) -> Action {
        decide(&Input { phase, identity, ..input() }, ROLE, observed).unwrap()
    }

    fn web() -> Value {
        web_identity_trust(&input().provider_arn, &input().issuer, "karpenter")
    }

    #[test]
    fn one_service_account_of_one_cluster_may_assume_the_role() {
        let Action { trust, association, replaces } = asked(Identity::Irsa, Phase::Bind, &Observed::default());
        assert_eq!(trust, web());
        let equals = &trust["Statement"][0]["Condition"]["StringEquals"];
        let issuer = "oidc.eks.eu-west-1.amazonaws.com/id/ABC";
        assert_eq!(equals[format!("{issuer}:sub")], json!("system:serviceaccount:karpenter:karpenter"));
        assert_eq!(equals[format!("{issuer}:aud")], json!("sts.amazonaws.com"));
        assert_eq!((association, replaces), (Change::Keep, None));
        assert_eq!(role(&input(), trust, vec!["arn:p".into()]).policies, ["arn:p"]);
    }

    #[test]
    fn pod_identity_is_the_agents_trust_and_an_association() {
        let made = asked(Identity::PodIdentity, Phase::Bind, &Observed::default());
        assert_eq!(made.trust, pod_identity_trust());
        assert_eq!((made.association, made.replaces), (Change::Create, None));
        let there = Observed { trust: Some(pod_identity_trust()), association: Some(found(ROLE)) };
        assert_eq!(asked(Identity::PodIdentity, Phase::Bind, &there).association, Change::Keep);
        let elsewhere = Observed { association: Some(found("arn:old")), ..there };
        assert_eq!(asked(Identity::PodIdentity, Phase::Bind, &elsewhere).association, Change::Redirect("a-1".into()));
    }

    #[test]
    fn from_irsa_to_pod_identity_the_old_trust_stays_until_every_pod_has_the_new() {
        let before = Observed { trust: Some(web()), association: None };
        let bound = asked(Identity::PodIdentity, Phase::Bind, &before);
        assert_eq!(bound.trust["Statement"].as_array().unwrap().len(), 2);
        assert_eq!((bound.association, bound.replaces), (Change::Create, Some(Identity::Irsa)));
        let between = Observed { trust: Some(bound.trust), association: Some(found(ROLE)) };
        assert_eq!(asked(Identity::PodIdentity, Phase::Bind, &between).replaces, Some(Identity::Irsa), "a second run");
        let settled = asked(Identity::PodIdentity, Phase::Settle, &between);
        assert_eq!((settled.trust, settled.association, settled.replaces), (pod_identity_trust(), Change::Keep, None));
    }

    #[test]
    fn from_pod_identity_to_irsa_the_association_goes_before_pods_are_made_and_its_trust_after() {
        let before = Observed { trust: Some(pod_identity_trust()), association: Some(found(ROLE)) };
        let bound = asked(Identity::Irsa, Phase::Bind, &before);
        assert_eq!((bound.association, bound.replaces), (Change::Keep, Some(Identity::PodIdentity)));
        let between = Observed { trust: Some(bound.trust.clone()), ..before };
        let released = asked(Identity::Irsa, Phase::Release, &between);
        assert_eq!((released.trust, released.association), (bound.trust.clone(), Change::Delete("a-1".into())));
        assert_eq!(released.replaces, Some(Identity::PodIdentity));
        let after = Observed { trust: Some(bound.trust), association: None };
        let settled = asked(Identity::Irsa, Phase::Settle, &after);
        assert_eq!((settled.trust, settled.association, settled.replaces), (web(), Change::Keep, None));
    }

    #[test]
    fn a_strangers_trust_is_not_kept_and_a_strangers_association_is_refused() {
        let stranger = json!({ "Statement": { "Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole" } });
        let bound = asked(Identity::Irsa, Phase::Bind, &Observed { trust: Some(stranger), association: None });
        assert_eq!((bound.trust, bound.replaces), (web(), None));
        let mut association = found(ROLE);
        association.tags.clear();
        let observed = Observed { trust: None, association: Some(association) };
        assert_eq!(decide(&input(), ROLE, &observed).unwrap_err().name, ErrorName::NotOurs);
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
