//! delete-addons: pod identity associations and add-ons of a cluster, until none is left.

use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Progress, Run, Step, StepError};

use crate::{
    Context,
    aws::{
        error::{Deleted as _, During as _, code, refused},
        health,
    },
};

/// Deletes pod identity associations and add-ons.
#[derive(Debug)]
pub struct DeleteAddons;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
}

/// None is left.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {}

impl Step for DeleteAddons {
    const NAME: &'static str = "delete-addons";
    const ERRORS: &'static [ErrorName] = &[ErrorName::DeletionBlocked];
    type Input = Input;
    type Output = Progress<Output>;
}

/// An add-on goes within half a minute.
const ASK_AGAIN: u32 = 10;

/// An add-on as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addon {
    name: String,
    status: String,
    /// Each health issue as a sentence.
    issues: Vec<String>,
}

/// Which of them to delete now; none while they are going.
pub(crate) fn decide(addons: &[Addon]) -> Result<Vec<&str>, StepError> {
    if let Some(failed) = addons.iter().find(|addon| addon.status == "DELETE_FAILED") {
        let issues = health::said(&failed.issues);
        let cause = format!("EKS could not delete the add-on {}. {issues}", failed.name);
        return Err(StepError::new(ErrorName::DeletionBlocked, cause));
    }
    Ok(addons.iter().filter(|addon| addon.status != "DELETING").map(|addon| addon.name.as_str()).collect())
}

/// Deletes what is there and waits for its end. A cluster that is gone has none.
///
/// # Errors
/// `DeletionBlocked` with EKS's health issues.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let (name, eks) = (&input.cluster.name, cx.aws.eks());
    let Some(associations) = associations(cx, name).await? else { return Ok(Progress::done(Output {})) };
    let addons = observe(cx, name).await?;
    let going = decide(&addons)?;
    if !associations.is_empty() || !going.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    for association in &associations {
        let call = eks.delete_pod_identity_association().cluster_name(name).association_id(association);
        call.send().await.deleted("eks:DeletePodIdentityAssociation")?;
    }
    for addon in &going {
        let call = eks.delete_addon().cluster_name(name).addon_name(*addon);
        call.send().await.deleted("eks:DeleteAddon")?;
    }
    if addons.is_empty() {
        return Ok(Progress::done(Output {}));
    }
    let names: Vec<&str> = addons.iter().map(|addon| addon.name.as_str()).collect();
    Ok(Progress::wait(ASK_AGAIN, format!("add-ons are going: {}", names.join(", "))))
}

/// Ids of the cluster's associations; none where there is no cluster.
async fn associations(cx: &Context, cluster: &str) -> Result<Option<Vec<String>>, StepError> {
    let mut pages = cx.aws.eks().list_pod_identity_associations().cluster_name(cluster).into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(item) = pages.next().await {
        match item {
            Ok(association) => found.extend(association.association_id),
            Err(error) if code(&error) == Some("ResourceNotFoundException") => return Ok(None),
            Err(error) => return Err(refused("eks:ListPodIdentityAssociations", &error)),
        }
    }
    Ok(Some(found))
}

/// The cluster's add-ons.
pub(crate) async fn observe(cx: &Context, cluster: &str) -> Result<Vec<Addon>, StepError> {
    let eks = cx.aws.eks();
    let names: Result<Vec<String>, _> =
        eks.list_addons().cluster_name(cluster).into_paginator().items().send().collect().await;
    let addons = names.during("eks:ListAddons")?.into_iter().map(|name| async move {
        match eks.describe_addon().cluster_name(cluster).addon_name(&name).send().await {
            Ok(answer) => Ok(answer.addon.map(|addon| Addon {
                status: addon.status().map_or_else(String::new, |status| status.as_str().to_owned()),
                issues: addon
                    .health()
                    .map(aws_sdk_eks::types::AddonHealth::issues)
                    .unwrap_or_default()
                    .iter()
                    .map(issue)
                    .collect(),
                name,
            })),
            // It went between the list and this question.
            Err(error) if code(&error) == Some("ResourceNotFoundException") => Ok(None),
            Err(error) => Err(refused("eks:DescribeAddon", &error)),
        }
    });
    Ok(try_join_all(addons).await?.into_iter().flatten().collect())
}

fn issue(issue: &aws_sdk_eks::types::AddonIssue) -> String {
    health::issue(issue.code().map(aws_sdk_eks::types::AddonIssueCode::as_str), issue.message(), issue.resource_ids())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn addon(name: &str, status: &str) -> Addon {
        Addon { name: name.into(), status: status.into(), issues: vec!["AccessDenied: no.".into()] }
    }

    #[test]
    fn each_is_deleted_once_and_a_failure_says_why() {
        assert_eq!(decide(&[addon("coredns", "ACTIVE"), addon("vpc-cni", "DELETING")]).unwrap(), ["coredns"]);
        assert!(decide(&[]).unwrap().is_empty());
        let error = decide(&[addon("coredns", "DELETE_FAILED")]).unwrap_err();
        assert_eq!(error.name, ErrorName::DeletionBlocked);
        assert!(error.cause.contains("coredns. AccessDenied: no"), "{}", error.cause);
    }
}
