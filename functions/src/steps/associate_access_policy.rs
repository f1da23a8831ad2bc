//! associate-access-policy: who may log in to the cluster: this control plane first, the admins, Karpenter's nodes.

use std::collections::BTreeMap;

use aws_sdk_eks::types::{AccessScope, AccessScopeType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError, names, plan::Planned,
};

use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        partition,
        tags::{self, missing, ours},
    },
    cluster,
};

/// An entry takes some seconds to be believed; the endpoint of a new cluster up to three minutes to answer.
const POLL_SECONDS: u32 = 10;
/// People and programs.
const STANDARD: &str = "STANDARD";
/// Nodes.
const EC2_LINUX: &str = "EC2_LINUX";

/// Makes the access entries and proves the first.
#[derive(Debug)]
pub struct AssociateAccessPolicy;

/// Who may log in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// ARNs of IAM roles or users that become cluster admins.
    #[serde(default)]
    pub admins: Vec<String>,
    /// What Karpenter's nodes run as.
    pub karpenter_node_role_arn: String,
    /// The API server.
    pub endpoint: ClusterEndpoint,
    /// The spec's tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// Who may log in now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {
    /// ARNs of the principals that have an entry of ours.
    pub entries: Vec<String>,
}

impl Step for AssociateAccessPolicy {
    const NAME: &'static str = "associate-access-policy";
    const ERRORS: &'static [ErrorName] = &[ErrorName::NotOurs];
    type Input = Input;
    type Output = Progress<Output>;
}

/// An entry as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    principal: String,
    kind: &'static str,
    /// Whether its role is one that we make, so that we may look how old it is.
    our_role: bool,
}

/// An entry as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    arn: String,
    kind: String,
    tags: BTreeMap<String, String>,
    /// Whether it has the cluster admin policy for the whole cluster.
    admin: bool,
    /// Whether its role was made after it: EKS ties an entry to the role's unique id, so it lets nobody in any more.
    dead: bool,
}

/// One change to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Delete,
    Create,
    Associate,
    Tag(BTreeMap<String, String>),
}

/// The entries, this control plane's first: with it the others can be repaired.
pub(crate) fn wanted(cluster_access: &str, input: &Input) -> Vec<Wanted> {
    let mut wanted = vec![Wanted { principal: cluster_access.to_owned(), kind: STANDARD, our_role: true }];
    for admin in &input.admins {
        if wanted.iter().all(|entry| entry.principal != *admin) {
            wanted.push(Wanted { principal: admin.clone(), kind: STANDARD, our_role: false });
        }
    }
    let nodes = input.karpenter_node_role_arn.clone();
    wanted.push(Wanted { principal: nodes, kind: EC2_LINUX, our_role: true });
    wanted
}

/// What it takes to make an entry what it should be. A cluster has at most one entry a principal, and the cluster is
/// ours, so an entry of the right type is adopted whoever made it.
pub(crate) fn decide(
    wanted: &Wanted,
    tags: &BTreeMap<String, String>,
    found: Option<&Observed>,
) -> Result<Vec<Change>, StepError> {
    let make = || {
        let associate = (wanted.kind == STANDARD).then_some(Change::Associate);
        [Change::Create].into_iter().chain(associate)
    };
    let Some(found) = found else { return Ok(make().collect()) };
    if found.kind != wanted.kind {
        return Err(StepError::new(
            ErrorName::NotOurs,
            format!(
                "The access entry of {} has the type {}, and {} is needed.",
                wanted.principal, found.kind, wanted.kind
            ),
        )
        .remedy("Delete the access entry and start again; a type cannot be changed."));
    }
    if found.dead {
        return Ok([Change::Delete].into_iter().chain(make()).collect());
    }
    let mut changes = Vec::new();
    if wanted.kind == STANDARD && !found.admin {
        changes.push(Change::Associate);
    }
    let lacking = missing(tags, &found.tags);
    if !lacking.is_empty() {
        changes.push(Change::Tag(lacking));
    }
    Ok(changes)
}

/// The policy that lets one do everything.
fn admin_policy(cluster: &ClusterKey) -> String {
    format!("arn:{}:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy", partition(&cluster.region))
}

/// Sees to every entry, then logs in and asks the API server whether that made us admin.
///
/// # Errors
/// `NotOurs` for an entry of another type; `PropagationPending` while a role is too fresh to be believed.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let tags = names::tags(&input.cluster, &input.tags);
    let entries = wanted(&cx.settings.cluster_access_role_arn, &input);
    for entry in &entries {
        let found = observe(cx, &input.cluster, entry).await?;
        let changes = decide(entry, &tags, found.as_ref())?;
        if !changes.is_empty() {
            cx.state.hold(&input.run, &input.cluster).await?;
        }
        for change in changes {
            act(cx, &input, entry, found.as_ref(), &tags, change).await?;
        }
    }
    for entry in dismissed(cx, &input.cluster, &entries).await? {
        cx.state.hold(&input.run, &input.cluster).await?;
        act(cx, &input, &entry, None, &tags, Change::Delete).await?;
    }
    let admitted = match cluster::connect(cx, &input.cluster, &input.endpoint).await {
        Ok(login) => login.is_admin().await,
        Err(error) => Err(error),
    };
    match admitted {
        Ok(true) => {
            let entries = entries.into_iter().map(|entry| entry.principal).collect();
            Ok(Progress::done(Output { entries }))
        }
        Ok(false) => Ok(Progress::wait(POLL_SECONDS, "the API server does not know us as admin yet")),
        Err(error) if error.name == ErrorName::ClusterUnreachable => Ok(Progress::wait(POLL_SECONDS, error.cause)),
        Err(error) => Err(error),
    }
}

/// What would become of the entries.
///
/// # Errors
/// As [`run`].
pub(crate) async fn plan(cx: &Context, input: &Input, cluster_is_there: bool) -> Result<Vec<Planned>, StepError> {
    const KIND: &str = "EKS access entry";
    let tags = names::tags(&input.cluster, &input.tags);
    let entries = wanted(&cx.settings.cluster_access_role_arn, input);
    let mut planned = Vec::new();
    for entry in &entries {
        let found = observe(cx, &input.cluster, entry).await?;
        let changes = decide(entry, &tags, found.as_ref())?;
        let told: Vec<String> = changes
            .iter()
            .map(|change| match change {
                Change::Delete => "its role was made after it".to_owned(),
                Change::Create => "it is made again".to_owned(),
                Change::Associate => "it becomes cluster admin".to_owned(),
                Change::Tag(lacking) => tags::told(lacking),
            })
            .collect();
        planned.push(Planned::of(KIND, &entry.principal, found.map(|_| told.as_slice())));
    }
    if cluster_is_there {
        for entry in dismissed(cx, &input.cluster, &entries).await? {
            planned.push(Planned::delete(KIND, &entry.principal, "the spec no longer names it"));
        }
    }
    Ok(planned)
}

pub(crate) async fn observe(
    cx: &Context,
    cluster: &ClusterKey,
    wanted: &Wanted,
) -> Result<Option<Observed>, StepError> {
    let (eks, principal) = (cx.aws.eks(), &wanted.principal);
    let entry = match eks.describe_access_entry().cluster_name(&cluster.name).principal_arn(principal).send().await {
        Ok(answer) => answer.access_entry,
        Err(error) if code(&error) == Some("ResourceNotFoundException") => None,
        Err(error) => return Err(refused("eks:DescribeAccessEntry", &error)),
    };
    let Some(entry) = entry else { return Ok(None) };
    let mut admin = false;
    if wanted.kind == STANDARD && entry.r#type.as_deref() == Some(STANDARD) {
        let listed = eks.list_associated_access_policies().cluster_name(&cluster.name).principal_arn(principal);
        let mut pages = listed.into_paginator().items().send();
        let policy = admin_policy(cluster);
        while let Some(association) = pages.next().await {
            let association = association.during("eks:ListAssociatedAccessPolicies")?;
            let scope = association.access_scope.and_then(|scope| scope.r#type);
            admin |= association.policy_arn.as_ref() == Some(&policy) && scope == Some(AccessScopeType::Cluster);
        }
    }
    let made = entry.created_at.map(|at| at.secs());
    let dead = wanted.our_role && role_made(cx, principal).await?.zip(made).is_some_and(|(role, entry)| role > entry);
    Ok(Some(Observed {
        arn: entry.access_entry_arn.unwrap_or_default(),
        kind: entry.r#type.unwrap_or_default(),
        tags: entry.tags.unwrap_or_default().into_iter().collect(),
        admin,
        dead,
    }))
}

/// Entries of ours that are no longer wanted: admins that the spec no longer names. What others made stays.
pub(crate) async fn dismissed(cx: &Context, cluster: &ClusterKey, wanted: &[Wanted]) -> Result<Vec<Wanted>, StepError> {
    let listed = cx.aws.eks().list_access_entries().cluster_name(&cluster.name).into_paginator().items().send();
    let listed = listed.collect::<Result<Vec<_>, _>>().await.during("eks:ListAccessEntries")?;
    let mut dismissed = Vec::new();
    for principal in listed {
        if wanted.iter().any(|entry| entry.principal == principal) {
            continue;
        }
        let entry = Wanted { principal, kind: STANDARD, our_role: false };
        if let Some(found) = observe(cx, cluster, &entry).await?
            && is_dismissed(cluster, &found)
        {
            dismissed.push(entry);
        }
    }
    Ok(dismissed)
}

/// Whether an entry that nobody asks for is ours to take away.
fn is_dismissed(cluster: &ClusterKey, found: &Observed) -> bool {
    found.kind == STANDARD && ours(cluster, &found.tags, "It").is_ok()
}

/// When a role was made, in seconds since 1970; none where there is no such role.
async fn role_made(cx: &Context, arn: &str) -> Result<Option<i64>, StepError> {
    let name = arn.rsplit('/').next().unwrap_or(arn);
    match cx.aws.iam().get_role().role_name(name).send().await {
        Ok(answer) => Ok(answer.role.map(|role| role.create_date.secs())),
        Err(error) if matches!(code(&error), Some("NoSuchEntity" | "NoSuchEntityException")) => Ok(None),
        Err(error) => Err(refused("iam:GetRole", &error)),
    }
}

async fn act(
    cx: &Context,
    input: &Input,
    wanted: &Wanted,
    found: Option<&Observed>,
    tags: &BTreeMap<String, String>,
    change: Change,
) -> Result<(), StepError> {
    let (eks, name, principal) = (cx.aws.eks(), &input.cluster.name, &wanted.principal);
    match change {
        Change::Delete => match eks.delete_access_entry().cluster_name(name).principal_arn(principal).send().await {
            Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(()),
            answer => answer.map(|_| ()).during("eks:DeleteAccessEntry"),
        },
        Change::Create => eks
            .create_access_entry()
            .cluster_name(name)
            .principal_arn(principal)
            .r#type(wanted.kind)
            .set_tags(Some(tags.clone().into_iter().collect()))
            .send()
            .await
            .map(|_| ())
            .during("eks:CreateAccessEntry"),
        Change::Associate => eks
            .associate_access_policy()
            .cluster_name(name)
            .principal_arn(principal)
            .policy_arn(admin_policy(&input.cluster))
            .access_scope(AccessScope::builder().r#type(AccessScopeType::Cluster).build())
            .send()
            .await
            .map(|_| ())
            .during("eks:AssociateAccessPolicy"),
        Change::Tag(lacking) => {
            let arn = found.map_or("", |found| found.arn.as_str());
            let call = eks.tag_resource().resource_arn(arn).set_tags(Some(lacking.into_iter().collect()));
            call.send().await.map(|_| ()).during("eks:TagResource")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ACCESS: &str = "arn:aws:iam::111122223333:role/slipway-cluster-access";
    const ADMIN: &str = "arn:aws:iam::111122223333:role/PlatformAdmin";
    const NODES: &str = "arn:aws:iam::111122223333:role/slipway-eks-demo-eu-west-1-node";

    fn tags() -> BTreeMap<String, String> {
        BTreeMap::from([("slipway:cluster".to_owned(), "demo".to_owned())])
    }

    fn entry(kind: &'static str) -> Wanted {
        Wanted { principal: ADMIN.to_owned(), kind, our_role: true }
    }

    fn there(kind: &str) -> Observed {
        Observed { arn: "arn:e".to_owned(), kind: kind.to_owned(), tags: tags(), admin: true, dead: false }
    }

    #[test]
    fn this_control_plane_comes_first_and_nobody_twice() {
        let input = Input {
            run: Run { id: "01".into(), fence: 1 },
            cluster: ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() },
            admins: vec![ADMIN.into(), ACCESS.into(), ADMIN.into()],
            karpenter_node_role_arn: NODES.into(),
            endpoint: ClusterEndpoint { url: String::new(), certificate_authority: String::new() },
            tags: BTreeMap::new(),
        };
        let entries: Vec<_> = wanted(ACCESS, &input).into_iter().map(|entry| (entry.principal, entry.kind)).collect();
        assert_eq!(
            entries,
            [(ACCESS.to_owned(), STANDARD), (ADMIN.to_owned(), STANDARD), (NODES.to_owned(), EC2_LINUX)]
        );
    }

    #[test]
    fn an_entry_is_made_completed_and_then_left_alone() {
        assert_eq!(decide(&entry(STANDARD), &tags(), None).unwrap(), [Change::Create, Change::Associate]);
        assert_eq!(decide(&entry(EC2_LINUX), &tags(), None).unwrap(), [Change::Create]);
        assert_eq!(decide(&entry(STANDARD), &tags(), Some(&there(STANDARD))).unwrap(), []);
        let bare = Observed { tags: BTreeMap::new(), admin: false, ..there(STANDARD) };
        assert_eq!(decide(&entry(STANDARD), &tags(), Some(&bare)).unwrap(), [Change::Associate, Change::Tag(tags())]);
        let nodes = Observed { admin: false, ..there(EC2_LINUX) };
        assert_eq!(decide(&entry(EC2_LINUX), &tags(), Some(&nodes)).unwrap(), []);
    }

    #[test]
    fn an_entry_older_than_its_role_is_made_again() {
        let dead = Observed { dead: true, ..there(STANDARD) };
        assert_eq!(
            decide(&entry(STANDARD), &tags(), Some(&dead)).unwrap(),
            [Change::Delete, Change::Create, Change::Associate]
        );
    }

    #[test]
    fn only_entries_of_ours_are_taken_away() {
        let demo = ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() };
        assert!(is_dismissed(&demo, &there(STANDARD)));
        assert!(!is_dismissed(&demo, &Observed { tags: BTreeMap::new(), ..there(STANDARD) }), "somebody's own");
        assert!(!is_dismissed(&demo, &there(EC2_LINUX)), "nodes");
    }

    #[test]
    fn an_entry_of_another_type_is_refused() {
        let error = decide(&entry(EC2_LINUX), &tags(), Some(&there(STANDARD))).unwrap_err();
        assert_eq!(error.name, ErrorName::NotOurs);
        assert!(error.cause.contains(ADMIN) && error.cause.contains("EC2_LINUX is needed"), "{}", error.cause);
    }
}
