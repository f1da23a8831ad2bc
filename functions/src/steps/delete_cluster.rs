//! delete-cluster: the IAM OIDC provider of its issuer, then the control plane, until EKS no longer knows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{ClusterKey, ErrorName, Kind, Progress, Run, Step, StepError};

use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        iam::oidc_provider_arn,
        removal::remove,
    },
};

/// Deletes the control plane.
#[derive(Debug)]
pub struct DeleteCluster;

/// Which one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// Switch its deletion protection off first.
    pub lift_deletion_protection: bool,
}

/// It is gone.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {}

impl Step for DeleteCluster {
    const NAME: &'static str = "delete-cluster";
    const ERRORS: &'static [ErrorName] = &[ErrorName::DeletionProtected, ErrorName::DeletionBlocked];
    type Input = Input;
    type Output = Progress<Output>;
}

/// A control plane goes in two to five minutes.
const DELETING_SECONDS: u32 = 20;
/// What is being made or changed cannot be deleted; that ends in its own time.
const BUSY_SECONDS: u32 = 30;

/// A control plane as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    status: String,
    protected: bool,
    issuer: Option<String>,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is gone.
    Done,
    /// EKS works on it.
    Wait(u32, String),
    /// Switch the protection off.
    Lift,
    /// Delete it.
    Delete,
}

pub(crate) fn decide(observed: Option<&Observed>, lift: bool) -> Result<Action, StepError> {
    let Some(Observed { status, protected, .. }) = observed else { return Ok(Action::Done) };
    Ok(match status.as_str() {
        "DELETING" => Action::Wait(DELETING_SECONDS, "the control plane is DELETING".to_owned()),
        "CREATING" | "UPDATING" | "PENDING" => {
            Action::Wait(BUSY_SECONDS, format!("the control plane is {status}, and goes after that"))
        }
        _ if *protected && lift => Action::Lift,
        _ if *protected => {
            let cause = "EKS protects the cluster from deletion: the protection was switched on during this teardown.";
            return Err(StepError::new(ErrorName::DeletionProtected, cause));
        }
        _ => Action::Delete,
    })
}

/// Deletes the control plane, one change at a time, and waits for its end.
///
/// # Errors
/// `DeletionBlocked` in EKS's words while something is attached to it.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let (name, eks) = (&input.cluster.name, cx.aws.eks());
    let observed = observe(cx, name).await?;
    match decide(observed.as_ref(), input.lift_deletion_protection)? {
        Action::Done => Ok(Progress::done(Output {})),
        Action::Wait(seconds, detail) => Ok(Progress::wait(seconds, detail)),
        Action::Lift => {
            cx.state.hold(&input.run, &input.cluster).await?;
            let call = eks.update_cluster_config().name(name).deletion_protection(false);
            call.send().await.during("eks:UpdateClusterConfig")?;
            Ok(Progress::wait(BUSY_SECONDS, "the deletion protection is being lifted"))
        }
        Action::Delete => {
            cx.state.hold(&input.run, &input.cluster).await?;
            // First, because the issuer is known only as long as the cluster is.
            if let Some(issuer) = observed.and_then(|observed| observed.issuer) {
                remove(cx, Kind::OidcProvider, &oidc_provider_arn(&input.cluster, &issuer), "").await?;
            }
            remove(cx, Kind::Cluster, "", name).await?;
            Ok(Progress::wait(DELETING_SECONDS, "the control plane is DELETING"))
        }
    }
}

/// The control plane of a name, if there is one.
pub(crate) async fn observe(cx: &Context, name: &str) -> Result<Option<Observed>, StepError> {
    let cluster = match cx.aws.eks().describe_cluster().name(name).send().await {
        Ok(answer) => answer.cluster,
        Err(error) if code(&error) == Some("ResourceNotFoundException") => None,
        Err(error) => return Err(refused("eks:DescribeCluster", &error)),
    };
    Ok(cluster.map(|cluster| Observed {
        status: cluster.status().map_or_else(String::new, |status| status.as_str().to_owned()),
        protected: cluster.deletion_protection().unwrap_or_default(),
        issuer: cluster.identity().and_then(|identity| identity.oidc()).and_then(|oidc| oidc.issuer.clone()),
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn observed(status: &str, protected: bool) -> Observed {
        Observed { status: status.into(), protected, issuer: None }
    }

    #[test]
    fn it_is_deleted_once_whatever_state_it_is_in() {
        assert_eq!(decide(None, false).unwrap(), Action::Done);
        for status in ["ACTIVE", "FAILED"] {
            assert_eq!(decide(Some(&observed(status, false)), false).unwrap(), Action::Delete);
        }
        for status in ["CREATING", "UPDATING", "DELETING"] {
            assert!(matches!(decide(Some(&observed(status, true)), true).unwrap(), Action::Wait(..)), "{status}");
        }
    }

    #[test]
    fn its_protection_is_lifted_only_when_asked() {
        let protected = observed("ACTIVE", true);
        assert_eq!(decide(Some(&protected), true).unwrap(), Action::Lift);
        assert_eq!(decide(Some(&protected), false).unwrap_err().name, ErrorName::DeletionProtected);
    }
}
