//! How each service says that one may not.

use super::call::{AwsError, Call};
use super::permissions::{Permission, prefix};

/// Why a call is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A service control policy of the organization denies it.
    Organization,
    /// A statement of an identity policy denies it.
    ExplicitDeny,
    /// No identity policy allows it.
    Identity,
    /// The permissions boundary does not allow it.
    Boundary,
    /// The policies of the session do not allow it.
    Session,
}

impl Reason {
    fn words(self, action: &str) -> String {
        match self {
            Self::Organization => "with an explicit deny in a service control policy".to_owned(),
            Self::ExplicitDeny => "with an explicit deny in an identity-based policy".to_owned(),
            Self::Identity => format!("because no identity-based policy allows the {action} action"),
            Self::Boundary => format!("because no permissions boundary allows the {action} action"),
            Self::Session => format!("because no session policy allows the {action} action"),
        }
    }
}

/// The refusal of a call for want of a permission, in its service's words.
pub(super) fn refusal(call: &Call, lacking: &Permission, reason: Reason) -> AwsError {
    // SQS writes its actions in lower case.
    let action = if call.service == "sqs" { lacking.action.to_lowercase() } else { lacking.action.clone() };
    let on = lacking.resource.as_deref().map_or_else(String::new, |arn| format!(" on resource: {arn}"));
    let because = reason.words(&action);
    let text = format!("User: {} is not authorized to perform: {action}{on} {because}", call.principal.arn);
    match prefix(&call.service) {
        "ec2" => {
            let text = format!("You are not authorized to perform this operation. {text}.");
            AwsError::new(403, "UnauthorizedOperation", text)
        }
        "iam" | "sts" | "cloudformation" | "autoscaling" | "elasticloadbalancing" | "sqs" | "s3" => {
            AwsError::new(403, "AccessDenied", text)
        }
        // Services that are spoken to by method and path have statuses; the others' JSON knows 400 alone.
        "eks" | "eks-auth" | "lambda" | "scheduler" | "arc-zonal-shift" => {
            AwsError::new(403, "AccessDeniedException", text)
        }
        _ => AwsError::new(400, "AccessDeniedException", text),
    }
}

/// What EC2 answers to a dry run that would have been allowed.
pub(super) fn dry_run() -> AwsError {
    AwsError::new(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
}
