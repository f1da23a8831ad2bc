//! AWS's errors, given the names that the state machine matches.

use aws_sdk_sts::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use slipway_statemachine::{ErrorName, StepError};

/// Names what AWS answered, and says which call it was.
pub trait During<T> {
    /// `action` as IAM writes it: `ec2:DescribeVpcs`.
    ///
    /// # Errors
    /// The failure, classified; AWS's code and words are in the cause.
    fn during(self, action: &str) -> Result<T, StepError>;
}

impl<T, E: ProvideErrorMetadata> During<T> for Result<T, SdkError<E, HttpResponse>> {
    fn during(self, action: &str) -> Result<T, StepError> {
        self.map_err(|error| refused(action, &error))
    }
}

/// Names what AWS answered to a deletion.
pub trait Deleted {
    /// `action` as IAM writes it. True: it is deleted now; false: it was gone already.
    ///
    /// # Errors
    /// What AWS refused; `DeletionBlocked` in AWS's words where something else holds the thing.
    fn deleted(self, action: &str) -> Result<bool, StepError>;
}

impl<T, E: ProvideErrorMetadata> Deleted for Result<T, SdkError<E, HttpResponse>> {
    fn deleted(self, action: &str) -> Result<bool, StepError> {
        match self {
            Ok(_) => Ok(true),
            Err(error) => match error.code() {
                Some(code) if is_gone(code) => Ok(false),
                Some(code) if is_held(code) => {
                    let said = error.message().unwrap_or("no message").trim_end_matches('.');
                    Err(StepError::new(ErrorName::DeletionBlocked, format!("{action} was refused: {said} ({code}).")))
                }
                _ => Err(refused(action, &error)),
            },
        }
    }
}

/// Whether a code says that the thing is not there, each service in its own words.
#[must_use]
pub fn is_gone(code: &str) -> bool {
    ["NotFound", "NotFoundException", "NoSuchEntity", "NoSuchEntityException", "NonExistentQueue", "QueueDoesNotExist"]
        .iter()
        .any(|ending| code.ends_with(ending))
}

/// Whether a code says that something else holds the thing, or that it is protected: EC2, IAM, EKS, load balancers.
#[must_use]
pub fn is_held(code: &str) -> bool {
    [
        "DependencyViolation",
        "DeleteConflict",
        "DeleteConflictException",
        "ResourceInUseException",
        "ResourceInUse",
        "InvalidGroup.InUse",
        "VolumeInUse",
        "InvalidNetworkInterface.InUse",
        "OperationNotPermitted",
    ]
    .contains(&code)
}

/// AWS's code, for example `ResourceNotFoundException`; none when no answer came.
pub fn code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.code()
}

/// AWS's words; none when no answer came.
pub fn message<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error.message()
}

/// The same as [`During::during`], for a caller that looked at the code first.
pub fn refused<E: ProvideErrorMetadata>(action: &str, error: &SdkError<E, HttpResponse>) -> StepError {
    match error {
        SdkError::ServiceError(answer) => {
            let (code, message) = (error.code().unwrap_or("no code"), error.message().unwrap_or("no message"));
            let request = error.meta().extra("aws_request_id").map_or(String::new(), |id| format!(", request {id}"));
            let name = classify(code, message, answer.raw().status().as_u16());
            StepError::new(name, format!("{action} was refused: {} ({code}{request}).", message.trim_end_matches('.')))
        }
        SdkError::TimeoutError(_) => {
            StepError::new(ErrorName::AwsUnavailable, format!("{action} did not answer in time."))
        }
        SdkError::DispatchFailure(failure) if failure.is_user() => StepError::new(
            ErrorName::Internal,
            format!(
                "{action} could not be sent: {}.",
                failure.as_connector_error().map_or_else(String::new, innermost)
            ),
        ),
        // Without credentials there is nobody to retry as.
        SdkError::DispatchFailure(failure) => StepError::new(
            ErrorName::AwsUnavailable,
            format!(
                "{action} did not get through: {}.",
                failure.as_connector_error().map_or_else(String::new, innermost)
            ),
        ),
        SdkError::ResponseError(answer) => StepError::new(
            ErrorName::AwsUnavailable,
            format!(
                "{action} was answered with HTTP {} and a body that cannot be read.",
                answer.raw().status().as_u16()
            ),
        ),
        _ => StepError::new(ErrorName::Internal, format!("{action} could not be written as a request.")),
    }
}

/// The reason at the bottom of a chain, in its own words: "Connection refused", where the top says "io error".
fn innermost(error: &(impl std::error::Error + 'static)) -> String {
    let mut error: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string().trim_end_matches('.').to_owned()
}

// AWS's words about a role, trust, profile or name that it has not heard of yet, each as its service puts it.
const PROPAGATION_WORDS: &[&str] = &[
    // EKS CreateCluster, CreateNodegroup
    "could not be assumed",
    "cannot be assumed",
    "cannot be found. (service: amazonidentitymanagement",
    "were not found in the trust relationships",
    // EKS CreatePodIdentityAssociation, CreateAddon
    "role provided in the request does not exist",
    "trust policy of the role provided is invalid",
    // IAM, SQS and EKS about principals
    "invalid principal",
    "principalarn is invalid",
    "principal arn is invalid",
    // EC2 and Auto Scaling about profiles
    "invalid iam instance profile",
    "has no associated iam roles",
];

const PROPAGATION_CODES: &[&str] = &[
    // SQS, for 60 s after the deletion of a queue of the same name
    "QueueDeletedRecently",
    "AWS.SimpleQueueService.QueueDeletedRecently",
    // IAM, while another change of the same entity settles
    "EntityTemporarilyUnmodifiable",
    "EntityTemporarilyUnmodifiableException",
    "ConcurrentModification",
    "ConcurrentModificationException",
    "OperationAborted",
];

const THROTTLE_CODES: &[&str] = &[
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "TooManyRequestsException",
    "RequestThrottled",
    "RequestThrottledException",
    "ProvisionedThroughputExceededException",
    "PriorRequestNotComplete",
    "TransactionInProgressException",
    "SlowDown",
    "EC2ThrottledException",
];

const DENIED_CODES: &[&str] = &[
    "UnauthorizedOperation",
    "Client.UnauthorizedOperation",
    "UnauthorizedAccess",
    "AuthorizationError",
    "AuthFailure",
    "NotAuthorized",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "ExpiredToken",
    "ExpiredTokenException",
    "OptInRequired",
];

const SERVER_CODES: &[&str] = &[
    "InternalFailure",
    "InternalError",
    "InternalServerError",
    "InternalServiceError",
    "InternalServerErrorException",
    "InternalException",
    "ServerException",
    "ServiceFailure",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "Unavailable",
    "RequestTimeout",
    "RequestTimeoutException",
];

/// The name of an error from AWS's code, words and HTTP status.
#[must_use]
pub fn classify(code: &str, message: &str, status: u16) -> ErrorName {
    let words = message.to_ascii_lowercase();
    if PROPAGATION_CODES.contains(&code) || PROPAGATION_WORDS.iter().any(|pattern| words.contains(pattern)) {
        ErrorName::PropagationPending
    } else if code.starts_with("Throttl") || THROTTLE_CODES.contains(&code) || status == 429 {
        ErrorName::Throttled
    } else if code.starts_with("AccessDenied") || DENIED_CODES.contains(&code) {
        ErrorName::AccessDenied
    } else if code.contains("LimitExceeded") || code.contains("QuotaExceeded") || code == "MaxSpotInstanceCountExceeded"
    {
        ErrorName::QuotaExceeded
    } else if (status >= 500 && status != 501) || SERVER_CODES.contains(&code) {
        ErrorName::AwsUnavailable
    } else {
        ErrorName::AwsRefused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_told_from_what_is_held() {
        for code in [
            "NoSuchEntity",
            "ResourceNotFoundException",
            "InvalidGroup.NotFound",
            "InvalidNetworkInterfaceID.NotFound",
            "InvalidLaunchTemplateId.NotFound",
            "AWS.SimpleQueueService.NonExistentQueue",
        ] {
            assert!(is_gone(code) && !is_held(code), "{code}");
        }
        for code in ["DependencyViolation", "DeleteConflict", "ResourceInUseException", "ResourceInUse", "VolumeInUse"]
        {
            assert!(is_held(code) && !is_gone(code), "{code}");
        }
        assert!(!is_gone("AccessDenied") && !is_held("AccessDenied"));
    }

    #[test]
    fn each_kind_of_answer_has_its_name() {
        use ErrorName::{AccessDenied, AwsRefused, AwsUnavailable, PropagationPending, QuotaExceeded, Throttled};
        let cases: &[(&str, &str, u16, ErrorName)] = &[
            ("AccessDenied", "User: arn is not authorized to perform: iam:CreateRole", 403, AccessDenied),
            ("AccessDeniedException", "no", 400, AccessDenied),
            ("UnauthorizedOperation", "You are not authorized to perform this operation.", 403, AccessDenied),
            ("Throttling", "Rate exceeded", 400, Throttled),
            ("ThrottlingException", "Rate exceeded", 400, Throttled),
            ("RequestLimitExceeded", "Request limit exceeded.", 503, Throttled),
            ("AnyCode", "slow down", 429, Throttled),
            ("InternalError", "An internal error has occurred", 500, AwsUnavailable),
            ("ServerException", "", 502, AwsUnavailable),
            ("Unavailable", "", 503, AwsUnavailable),
            ("VpcLimitExceeded", "The maximum number of VPCs has been reached.", 400, QuotaExceeded),
            ("LimitExceeded", "Cannot exceed quota for RolesPerAccount: 1000", 409, QuotaExceeded),
            ("ServiceQuotaExceededException", "", 402, QuotaExceeded),
            ("ResourceLimitExceededException", "Cluster limit exceeded", 400, QuotaExceeded),
            (
                "InvalidParameterException",
                "The provided role doesn't have the Amazon EKS Managed Policies associated with it or could not be assumed",
                400,
                PropagationPending,
            ),
            (
                "InvalidRequestException",
                "Role with arn: x, could not be assumed because it does not exist",
                400,
                PropagationPending,
            ),
            ("MalformedPolicyDocument", "Invalid principal in policy: \"AWS\":\"AROA\"", 400, PropagationPending),
            (
                "InvalidParameterException",
                "The specified principalArn is invalid: invalid principal.",
                400,
                PropagationPending,
            ),
            (
                "InvalidParameterException",
                "Following required service principals [eks.amazonaws.com] were not found in the trust relationships of clusterRole",
                400,
                PropagationPending,
            ),
            ("AWS.SimpleQueueService.QueueDeletedRecently", "You must wait 60 seconds", 400, PropagationPending),
            (
                "QueueDeletedRecently",
                "You must wait 60 seconds after deleting a queue before you can create another with the same name.",
                400,
                PropagationPending,
            ),
            (
                "InvalidParameterException",
                "Role with arn: x, could not be assumed because it does not exist or the trusted entity is not correct",
                400,
                PropagationPending,
            ),
            (
                "InvalidParameterException",
                "The role with name x cannot be found. (Service: AmazonIdentityManagement; Status Code: 404; Error \
                 Code: NoSuchEntity; Request ID: 1; Proxy: null)",
                400,
                PropagationPending,
            ),
            ("InvalidParameterException", "Role provided in the request does not exist.", 400, PropagationPending),
            (
                "InvalidParameterException",
                "Trust policy of the role provided is invalid. Follow the official documentation to resolve the issue.",
                400,
                PropagationPending,
            ),
            (
                "InvalidParameterValue",
                "Value (x) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name",
                400,
                PropagationPending,
            ),
            (
                "InvalidParameterValue",
                "IAM Instance Profile \"arn:aws:iam::1:instance-profile/x\" has no associated IAM Roles",
                400,
                PropagationPending,
            ),
            ("InvalidParameterException", "subnets must be in two zones", 400, AwsRefused),
            ("NotImplemented", "A header implies functionality that is not implemented.", 501, AwsRefused),
            ("ResourceInUseException", "Cluster already exists", 409, AwsRefused),
            ("ValidationError", "Stack with id x does not exist", 400, AwsRefused),
        ];
        for (code, message, status, name) in cases {
            assert_eq!(classify(code, message, *status), *name, "{code}: {message}");
        }
    }
}
