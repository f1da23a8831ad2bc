//! EKS Pod Identity associations: which service account gets which role.

use std::collections::BTreeMap;

use slipway_statemachine::{ClusterKey, StepError};

use super::error::During as _;
use crate::Context;

/// An association as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Association {
    /// `a-…`
    pub id: String,
    /// The role that it leads to.
    pub role_arn: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// The association of a service account; a service account has at most one.
///
/// # Errors
/// What EKS refused.
pub async fn association(
    cx: &Context,
    cluster: &ClusterKey,
    namespace: &str,
    account: &str,
) -> Result<Option<Association>, StepError> {
    let eks = cx.aws.eks();
    let mut pages = eks
        .list_pod_identity_associations()
        .cluster_name(&cluster.name)
        .namespace(namespace)
        .service_account(account)
        .into_paginator()
        .items()
        .send();
    let Some(first) = pages.next().await else { return Ok(None) };
    let Some(id) = first.during("eks:ListPodIdentityAssociations")?.association_id else { return Ok(None) };
    let described =
        eks.describe_pod_identity_association().cluster_name(&cluster.name).association_id(&id).send().await;
    let found = described.during("eks:DescribePodIdentityAssociation")?.association;
    Ok(found.map(|found| Association {
        id,
        role_arn: found.role_arn.unwrap_or_default(),
        tags: found.tags.unwrap_or_default().into_iter().collect(),
    }))
}
