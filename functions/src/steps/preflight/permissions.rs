//! Whether the steps will be let: IAM's policy simulator is asked, for the role of each step, what the account's
//! policies, permissions boundaries and its organization say to what the step will ask for (docs/adr/0008).

use std::collections::BTreeMap;

use aws_sdk_iam::types::{
    ContextEntry, ContextKeyTypeEnum, EvaluationResult, PolicyEvaluationDecisionType, ResourceSpecificResult,
};
use slipway_statemachine::{
    ClusterKey, ClusterSpec, ErrorName, StepError,
    names::{self, partition},
    spec::NetworkSpec,
};

use super::{Findings, Observed, Severity, There, common_types};
use crate::{Context, aws::error::During as _};

/// What a step will ask AWS for.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// Whose role is meant.
    step: &'static str,
    /// The spec's field that asks for it.
    field: &'static str,
    when: When,
    whose: Whose,
    actions: &'static [&'static str],
    resource: String,
    context: BTreeMap<String, String>,
}

/// What must not be there yet for it to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    NoNetwork,
    NoCluster,
    Ever,
}

/// Whose word counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Every policy's that binds the step's role.
    Role,
    /// The organization's alone, which binds every role alike: Karpenter's, which is asked about, need not be there yet.
    Organization,
}

/// Who is in the way of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    Organization,
    Boundary,
    Denial,
    Role,
}

/// What the simulator said to each question.
pub(super) type Heard = Vec<(Ask, Result<Vec<EvaluationResult>, StepError>)>;

/// What stands in a step's way, action by action.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    ask: Ask,
    obstacle: Obstacle,
    actions: Vec<String>,
    severity: Severity,
}

/// Everything that a run asks for and that a policy might forbid; the simulator knows of a request what it is told, so
/// each comes with the condition keys that its request will have.
fn asks(cluster: &ClusterKey, spec: &ClusterSpec) -> Vec<Ask> {
    let ClusterKey { account, region, name } = cluster;
    let arn = |service: &str, region: &str, what: String| {
        format!("arn:{}:{service}:{region}:{account}:{what}", partition(&cluster.region))
    };
    let role = |suffix: &str| arn("iam", "", format!("role/{}", names::role(cluster, suffix)));
    let policy = |part: &str| arn("iam", "", format!("policy/{}", names::policy(cluster, part)));
    let the_cluster = arn("eks", region, format!("cluster/{name}"));
    let tags = names::tags(cluster, &spec.tags);
    let ask = |step, field, actions, resource: String| {
        let requested = tags.iter().map(|(key, value)| (format!("aws:RequestTag/{key}"), value.clone()));
        let region = ("aws:RequestedRegion".to_owned(), region.clone());
        let context = requested.chain([region]).collect();
        Ask { step, field, when: When::NoCluster, whose: Whose::Role, actions, resource, context }
    };
    let mut asks = Vec::new();
    if let NetworkSpec::Create(_) = &spec.network {
        let vpc = arn("ec2", region, "vpc/*".to_owned());
        let network = ask("ensure-network", "network.create", NETWORK, vpc);
        // CloudFormation calls with the step's role.
        asks.push(network.when(When::NoNetwork).with("aws:CalledVia", "cloudformation.amazonaws.com"));
    }
    let roles = ["iam:CreateRole", "iam:TagRole", "iam:AttachRolePolicy"].as_slice();
    let of_aws = format!("arn:{}:iam::aws:policy/AmazonEKSClusterPolicy", partition(region));
    let queue = arn("sqs", region, names::queue(cluster));
    let event_rule = arn("events", region, format!("rule/{}", names::rule(cluster, "spot-interruption")));
    let issuer = format!("oidc-provider/oidc.eks.{region}.amazonaws.com/id/*");
    asks.extend([
        ask("ensure-cluster-roles", "account", roles, role("cluster")).with("iam:PolicyARN", &of_aws),
        ask("ensure-interruption-queue", "karpenter", &["sqs:CreateQueue", "sqs:TagQueue"], queue),
        ask("ensure-interruption-queue", "karpenter", &["events:PutRule", "events:PutTargets"], event_rule),
        ask("create-cluster", "name", &["eks:CreateCluster"], "*".to_owned()).for_cluster(spec),
        ask("create-cluster", "name", &["iam:PassRole"], role("cluster"))
            .with("iam:PassedToService", "eks.amazonaws.com"),
        ask("wait-oidc", "account", PROVIDER, arn("iam", "", issuer)),
        ask("associate-access-policy", "access", &["eks:CreateAccessEntry"], the_cluster.clone()),
        ask("ensure-addons", "addons", &["eks:CreateAddon"], the_cluster.clone()),
        ask("ensure-node-group", "core", &["eks:CreateNodegroup"], the_cluster),
        ask("bind-identity", "karpenter", &["iam:CreatePolicy", "iam:TagPolicy"], policy("node-lifecycle")),
        ask("bind-identity", "karpenter", roles, role("controller")).with("iam:PolicyARN", &policy("node-lifecycle")),
        ask("bind-identity", "nodePools", LAUNCH, arn("ec2", region, "instance/*".to_owned()))
            .for_launch(cluster, spec),
    ]);
    asks
}

/// What the network's stack makes.
const NETWORK: &[&str] = &[
    "ec2:AllocateAddress",
    "ec2:AssociateRouteTable",
    "ec2:AttachInternetGateway",
    "ec2:CreateInternetGateway",
    "ec2:CreateNatGateway",
    "ec2:CreateNetworkAcl",
    "ec2:CreateRoute",
    "ec2:CreateRouteTable",
    "ec2:CreateSubnet",
    "ec2:CreateTags",
    "ec2:CreateVpc",
    "ec2:CreateVpcEndpoint",
];

const PROVIDER: &[&str] = &["iam:CreateOpenIDConnectProvider", "iam:TagOpenIDConnectProvider"];

/// How Karpenter launches a node.
const LAUNCH: &[&str] = &["ec2:CreateFleet", "ec2:CreateLaunchTemplate", "ec2:RunInstances"];

impl Ask {
    fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    fn with(mut self, key: &str, value: &str) -> Self {
        self.context.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With what EKS tells of a request for a cluster (Service Authorization Reference, Amazon EKS).
    fn for_cluster(self, spec: &ClusterSpec) -> Self {
        let endpoint = &spec.access.endpoint;
        self.with("eks:authenticationMode", "API")
            .with("eks:bootstrapClusterCreatorAdminPermissions", "false")
            .with("eks:bootstrapSelfManagedAddons", "false")
            .with("eks:endpointPublicAccess", &endpoint.public.to_string())
            .with("eks:endpointPrivateAccess", &endpoint.private.to_string())
            .with("eks:kubernetesVersion", spec.version.as_deref().unwrap_or_default())
    }

    /// With what EC2 tells of a node that Karpenter launches: its tags, and what an EC2NodeClass has by default.
    fn for_launch(self, cluster: &ClusterKey, spec: &ClusterSpec) -> Self {
        let pool = spec.node_pools.first();
        let kind = pool.and_then(|pool| common_types(pool.architecture).first()).copied().unwrap_or_default();
        Self { whose: Whose::Organization, ..self }
            .when(When::Ever)
            .with(&format!("aws:RequestTag/kubernetes.io/cluster/{}", cluster.name), "owned")
            .with("aws:RequestTag/eks:eks-cluster-name", &cluster.name)
            .with("aws:RequestTag/karpenter.sh/nodepool", pool.map_or("", |pool| &pool.name))
            .with("ec2:InstanceType", kind)
            .with("ec2:MetadataHttpTokens", "required")
            .with("ec2:MetadataHttpPutResponseHopLimit", "1")
            .with("ec2:Encrypted", "true")
            .with("ec2:Owner", "amazon")
            .with("ec2:VolumeType", "gp3")
    }
}

/// Asks the simulator everything, side by side. What it does not know of is not asked: a step that is tried by hand may
/// be told of no roles.
pub(super) async fn look(cx: &Context, cluster: &ClusterKey, spec: &ClusterSpec) -> Heard {
    let asked = asks(cluster, spec).into_iter().filter_map(|ask| {
        let role_arn = cx.settings.step_roles.get(ask.step)?;
        Some(async move {
            let heard = simulate(cx, role_arn, &ask).await;
            (ask, heard)
        })
    });
    futures::future::join_all(asked).await
}

async fn simulate(cx: &Context, role_arn: &str, ask: &Ask) -> Result<Vec<EvaluationResult>, StepError> {
    let entry = |key: &str, value: &str| {
        let entry = ContextEntry::builder().context_key_name(key).context_key_values(value);
        entry.context_key_type(kind(key, value)).build()
    };
    let told = ask.context.iter().map(|(key, value)| entry(key, value));
    // Who calls is the role; an organization often lets some roles do what others may not.
    let context = told.chain([entry("aws:PrincipalArn", role_arn), entry("aws:SecureTransport", "true")]).collect();
    let call = cx.aws.iam().simulate_principal_policy().policy_source_arn(role_arn).resource_arns(&ask.resource);
    let actions = ask.actions.iter().map(|action| (*action).to_owned()).collect();
    let call = call.set_action_names(Some(actions)).set_context_entries(Some(context));
    let results = call.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
    results.during("iam:SimulatePrincipalPolicy")
}

/// What a condition key's value is to the simulator.
fn kind(key: &str, value: &str) -> ContextKeyTypeEnum {
    match value {
        _ if key.starts_with("aws:RequestTag/") => ContextKeyTypeEnum::String,
        "true" | "false" => ContextKeyTypeEnum::Boolean,
        _ if key == "aws:CalledVia" => ContextKeyTypeEnum::StringList,
        _ if value.parse::<u32>().is_ok() => ContextKeyTypeEnum::Numeric,
        _ => ContextKeyTypeEnum::String,
    }
}

/// What stands in the way, told with a severity. A look that is denied is a finding.
pub(super) fn told(heard: Heard, severity: Severity, findings: &mut Findings) -> Result<Vec<Refused>, StepError> {
    let mut refused = Vec::new();
    let mut denied = false;
    for (ask, results) in heard {
        let is_denied = results.as_ref().is_err_and(|error| error.name == ErrorName::AccessDenied);
        // Who may not ask of one role may not ask of the others.
        if is_denied && std::mem::replace(&mut denied, true) {
            continue;
        }
        let results = findings.seen(results)?.unwrap_or_default();
        refused.extend(obstacles(&ask, severity, &results));
    }
    Ok(refused)
}

fn obstacles(ask: &Ask, severity: Severity, results: &[EvaluationResult]) -> Vec<Refused> {
    let mut actions = BTreeMap::<Obstacle, Vec<String>>::new();
    for result in results {
        if let Some(obstacle) = obstacle(ask.whose, result) {
            actions.entry(obstacle).or_default().push(result.eval_action_name().to_owned());
        }
    }
    let refused = |(obstacle, actions)| Refused { ask: ask.clone(), obstacle, actions, severity };
    actions.into_iter().map(refused).collect()
}

fn obstacle(whose: Whose, result: &EvaluationResult) -> Option<Obstacle> {
    if result.organizations_decision_detail().is_some_and(|detail| !detail.allowed_by_organizations()) {
        return Some(Obstacle::Organization);
    }
    if whose == Whose::Organization || *result.eval_decision() == PolicyEvaluationDecisionType::Allowed {
        return None;
    }
    if result.permissions_boundary_decision_detail().is_some_and(|detail| !detail.allowed_by_permissions_boundary()) {
        return Some(Obstacle::Boundary);
    }
    if *result.eval_decision() == PolicyEvaluationDecisionType::ExplicitDeny {
        return Some(Obstacle::Denial);
    }
    // A condition whose key the simulator was not told may hold in the real request.
    let missing = result.resource_specific_results().iter().flat_map(ResourceSpecificResult::missing_context_values);
    let told_all = missing.chain(result.missing_context_values()).next().is_none();
    told_all.then_some(Obstacle::Role)
}

/// A finding for each obstacle of each step, where the run will ask for it.
pub(super) fn check(seen: &Observed, findings: &mut Findings) {
    for Refused { ask, obstacle, actions, severity } in &seen.refused {
        let needed = match ask.when {
            When::NoNetwork => matches!(seen.stack, There::No),
            When::NoCluster => matches!(seen.cluster, There::No),
            When::Ever => true,
        };
        if !needed {
            continue;
        }
        let whom = match ask.whose {
            Whose::Role => format!("the role of slipway-{}", ask.step),
            Whose::Organization => "Karpenter".to_owned(),
        };
        let actions = actions.join(", ");
        let (evidence, remedy) = match obstacle {
            Obstacle::Organization => (
                format!("A service control policy of the organization denies {actions} to {whom}."),
                "Have the organization's policy except that role, or make the cluster in another account or region.",
            ),
            Obstacle::Boundary => (
                format!("The permissions boundary of {whom} does not allow {actions}."),
                "Extend the boundary, or deploy the control plane without it.",
            ),
            Obstacle::Denial => (
                format!("A policy denies {actions} to {whom}."),
                "Take the denial out of the role's policies or its boundary.",
            ),
            Obstacle::Role => (
                format!("No policy of {whom} allows {actions}."),
                "Deploy infra/template.yaml again, which gives the role what it needs.",
            ),
        };
        findings.add(*severity, ask.field, "permissions", evidence, remedy);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use aws_sdk_iam::types::{OrganizationsDecisionDetail, PermissionsBoundaryDecisionDetail};
    use serde_json::json;

    use super::*;

    fn cluster() -> ClusterKey {
        ClusterKey { account: "111122223333".to_owned(), region: "eu-west-1".to_owned(), name: "demo".to_owned() }
    }

    fn spec() -> ClusterSpec {
        ClusterSpec::parse(&json!({"name": "demo", "version": "1.36", "tags": {"team": "shop"}})).unwrap()
    }

    fn asked(step: &str) -> Ask {
        asks(&cluster(), &spec()).into_iter().find(|ask| ask.step == step).unwrap()
    }

    /// Something that stands in the way of a step.
    pub(in super::super) fn denied(step: &str) -> Refused {
        let ask = asked(step);
        let actions = vec![ask.actions[0].to_owned()];
        Refused { actions, ask, obstacle: Obstacle::Organization, severity: Severity::Error }
    }

    fn result(decision: PolicyEvaluationDecisionType) -> aws_sdk_iam::types::builders::EvaluationResultBuilder {
        EvaluationResult::builder().eval_action_name("ec2:CreateVpc").eval_decision(decision)
    }

    #[test]
    fn who_is_in_the_way_is_told_from_who_is_not() {
        use PolicyEvaluationDecisionType::{Allowed, ExplicitDeny, ImplicitDeny};
        let organization = |allowed| OrganizationsDecisionDetail::builder().allowed_by_organizations(allowed).build();
        let boundary =
            |allowed| PermissionsBoundaryDecisionDetail::builder().allowed_by_permissions_boundary(allowed).build();
        let cases = [
            (result(Allowed).organizations_decision_detail(organization(true)), None),
            (result(ExplicitDeny).organizations_decision_detail(organization(false)), Some(Obstacle::Organization)),
            (
                result(ImplicitDeny)
                    .organizations_decision_detail(organization(true))
                    .permissions_boundary_decision_detail(boundary(false)),
                Some(Obstacle::Boundary),
            ),
            (result(ExplicitDeny).permissions_boundary_decision_detail(boundary(true)), Some(Obstacle::Denial)),
            (result(ImplicitDeny), Some(Obstacle::Role)),
            (result(ImplicitDeny).missing_context_values("aws:SourceVpc"), None),
        ];
        for (case, expected) in cases {
            let case = case.build().unwrap();
            assert_eq!(obstacle(Whose::Role, &case), expected, "{case:?}");
            let of_all = expected.filter(|obstacle| *obstacle == Obstacle::Organization);
            assert_eq!(obstacle(Whose::Organization, &case), of_all, "{case:?}");
        }
    }

    #[test]
    fn a_request_is_told_as_it_will_be() {
        let cluster = asked("create-cluster");
        for (key, value) in [
            ("aws:RequestTag/slipway:cluster", "demo"),
            ("aws:RequestTag/team", "shop"),
            ("aws:RequestedRegion", "eu-west-1"),
            ("eks:endpointPublicAccess", "true"),
        ] {
            assert_eq!(cluster.context.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert_eq!(kind("eks:endpointPublicAccess", "true"), ContextKeyTypeEnum::Boolean);
        assert_eq!(kind("aws:RequestTag/spot", "true"), ContextKeyTypeEnum::String);
        assert_eq!(kind("eks:kubernetesVersion", "1.36"), ContextKeyTypeEnum::String);
        let existing = json!({"name": "demo", "network": {"existing": {"vpcId": "vpc-0a1b2c3d", "subnetIds": []}}});
        let asks = asks(&super::tests::cluster(), &ClusterSpec::parse(&existing).unwrap());
        assert!(asks.iter().all(|ask| ask.step != "ensure-network"), "an existing network is not made");
    }

    #[test]
    fn the_template_tells_of_every_role_that_is_asked_about() {
        let template = include_str!("../../../../infra/template.yaml");
        for ask in asks(&cluster(), &spec()) {
            let told = format!("!Sub {}=${{", ask.step);
            assert!(template.contains(&told), "{} is not among SLIPWAY_STEP_ROLES", ask.step);
        }
    }

    #[test]
    fn only_what_the_run_will_ask_for_is_told() {
        let all =
            [denied("ensure-network"), denied("create-cluster"), Refused { ask: launch(), ..denied("create-cluster") }];
        let fields = |stack: There<crate::aws::stacks::Stack>, cluster| {
            let seen = Observed { stack, cluster, refused: all.to_vec(), ..Observed::default() };
            let mut findings = Findings::default();
            check(&seen, &mut findings);
            findings.0.into_iter().map(|finding| finding.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(There::No, There::No), ["network.create", "name", "nodePools"]);
        let there = super::super::ThereCluster { version: "1.36".to_owned(), owner: Some("demo".to_owned()) };
        assert_eq!(fields(There::Unseen, There::Yes(there)), ["nodePools"]);
    }

    fn launch() -> Ask {
        asks(&cluster(), &spec()).into_iter().find(|ask| ask.field == "nodePools").unwrap()
    }

    #[test]
    fn one_that_may_not_ask_is_told_once() {
        let denied = || StepError::new(ErrorName::AccessDenied, "iam:SimulatePrincipalPolicy was refused.");
        let heard = vec![(launch(), Err(denied())), (launch(), Err(denied()))];
        let mut findings = Findings::default();
        assert!(told(heard, Severity::Error, &mut findings).unwrap().is_empty());
        assert_eq!(findings.0.len(), 1, "{findings:?}");
        let throttled = StepError::new(ErrorName::Throttled, "Slow down.");
        assert!(told(vec![(launch(), Err(throttled))], Severity::Error, &mut findings).is_err());
    }
}
