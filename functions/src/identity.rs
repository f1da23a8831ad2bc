//! Whether the controller's identity can work at all, as IAM, EKS and the service account say it.

use serde_json::Value;
use slipway_karpenter::identity::{Flaw, WebIdentity, never_trusts, never_trusts_pods};
use slipway_karpenter::policy::AUDIENCE;
use slipway_karpenter::values::ROLE_ANNOTATION;
use slipway_statemachine::{ClusterKey, StepError, spec::Identity};

use crate::{
    Context,
    aws::{
        error::{code, refused},
        iam, pod_identity,
    },
    cluster::Cluster,
};

/// Whose identity is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub cluster: &'a ClusterKey,
    pub identity: Identity,
    /// Karpenter's namespace.
    pub namespace: &'a str,
    /// The service account that its pods run as.
    pub account: &'a str,
    /// The cluster's issuer URL.
    pub issuer: &'a str,
    /// The controller's role.
    pub role_arn: &'a str,
}

/// What there is of an identity.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    /// The audiences of the issuer's IAM OIDC provider; none if there is no provider. Not asked with Pod Identity.
    pub audiences: Option<Vec<String>>,
    /// The role's trust policy; none if there is no role.
    pub trust: Option<Value>,
    /// The role that the service account names.
    pub annotation: Option<String>,
    /// The role that a Pod Identity association gives it.
    pub association: Option<String>,
}

/// Why an identity can never work; none if all is as it should be. What keeps EKS from giving pods their identity comes
/// last: STS can be asked without.
pub(crate) fn decide(subject: &Subject<'_>, observed: &Observed) -> Option<Flaw> {
    let role_arn = subject.role_arn;
    let Some(trust) = &observed.trust else { return Some(Flaw::NoRole { role_arn: role_arn.to_owned() }) };
    let provider_arn = iam::oidc_provider_arn(subject.cluster, subject.issuer);
    match subject.identity {
        Identity::Irsa => {
            let Some(audiences) = &observed.audiences else { return Some(Flaw::NoProvider { provider_arn }) };
            if !audiences.iter().any(|audience| audience == AUDIENCE) {
                return Some(Flaw::NoAudience { provider_arn });
            }
            let Subject { issuer, namespace, account, .. } = *subject;
            let identity = WebIdentity { provider_arn: &provider_arn, issuer, namespace, account };
            if let Some(why) = never_trusts(trust, &identity) {
                return Some(Flaw::Trust { why });
            }
            if observed.annotation.as_deref() != Some(role_arn) {
                return Some(Flaw::NotAnnotated { found: observed.annotation.clone() });
            }
            observed.association.clone().map(|found| Flaw::Overruled { found })
        }
        Identity::PodIdentity => {
            if let Some(why) = never_trusts_pods(trust) {
                return Some(Flaw::Trust { why });
            }
            let found = observed.association.clone();
            (found.as_deref() != Some(role_arn)).then_some(Flaw::NotAssociated { found })
        }
    }
}

/// Looks at provider, role, service account and association.
///
/// # Errors
/// What IAM, EKS or the API server refused.
pub(crate) async fn observe(cx: &Context, kubernetes: &Cluster, subject: &Subject<'_>) -> Result<Observed, StepError> {
    let audiences = match subject.identity {
        Identity::Irsa => audiences(cx, &iam::oidc_provider_arn(subject.cluster, subject.issuer)).await?,
        Identity::PodIdentity => None,
    };
    let role_name = subject.role_arn.rsplit('/').next().unwrap_or_default();
    let account = kubernetes.get(("v1", "ServiceAccount"), subject.namespace, subject.account).await?;
    let annotation = account.and_then(|account| {
        account["metadata"]["annotations"][ROLE_ANNOTATION].as_str().filter(|role| !role.is_empty()).map(str::to_owned)
    });
    let association = pod_identity::association(cx, subject.cluster, subject.namespace, subject.account).await?;
    Ok(Observed {
        audiences,
        trust: iam::trust(cx, role_name).await?,
        annotation,
        association: association.map(|association| association.role_arn),
    })
}

async fn audiences(cx: &Context, provider_arn: &str) -> Result<Option<Vec<String>>, StepError> {
    match cx.aws.iam().get_open_id_connect_provider().open_id_connect_provider_arn(provider_arn).send().await {
        Ok(provider) => Ok(Some(provider.client_id_list.unwrap_or_default())),
        Err(error) if matches!(code(&error), Some("NoSuchEntity" | "NoSuchEntityException")) => Ok(None),
        Err(error) => Err(refused("iam:GetOpenIDConnectProvider", &error)),
    }
}

#[cfg(test)]
mod tests {
    use slipway_karpenter::policy::{pod_identity_trust, web_identity_trust};

    use super::*;

    const ISSUER: &str = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC";
    const PROVIDER: &str = "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/ABC";
    const ROLE: &str = "arn:aws:iam::111122223333:role/controller";

    fn flaw(identity: Identity, observed: &Observed) -> Option<Flaw> {
        let cluster = ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() };
        let subject = Subject {
            cluster: &cluster,
            identity,
            namespace: "karpenter",
            account: "karpenter",
            issuer: ISSUER,
            role_arn: ROLE,
        };
        decide(&subject, observed)
    }

    fn irsa() -> Observed {
        Observed {
            audiences: Some(vec!["sts.amazonaws.com".into()]),
            trust: Some(web_identity_trust(PROVIDER, ISSUER, "karpenter")),
            annotation: Some(ROLE.into()),
            association: None,
        }
    }

    #[test]
    fn an_identity_as_it_should_be_has_no_flaw() {
        assert_eq!(flaw(Identity::Irsa, &irsa()), None);
        let associated = Observed {
            audiences: None,
            trust: Some(pod_identity_trust()),
            annotation: None,
            association: Some(ROLE.into()),
        };
        assert_eq!(flaw(Identity::PodIdentity, &associated), None);
    }

    #[test]
    fn each_thing_that_is_missing_is_its_own_flaw() {
        let provider_arn = PROVIDER.to_owned();
        let other = || Some("arn:other".to_owned());
        for (observed, expected) in [
            (Observed { audiences: None, ..irsa() }, Flaw::NoProvider { provider_arn: provider_arn.clone() }),
            (Observed { audiences: Some(vec!["vault".into()]), ..irsa() }, Flaw::NoAudience { provider_arn }),
            (Observed { trust: None, ..irsa() }, Flaw::NoRole { role_arn: ROLE.into() }),
            (Observed { annotation: None, ..irsa() }, Flaw::NotAnnotated { found: None }),
            (Observed { annotation: other(), ..irsa() }, Flaw::NotAnnotated { found: other() }),
            (Observed { association: other(), ..irsa() }, Flaw::Overruled { found: "arn:other".into() }),
        ] {
            assert_eq!(flaw(Identity::Irsa, &observed), Some(expected));
        }
        let elsewhere = Observed { trust: Some(web_identity_trust(PROVIDER, ISSUER, "elsewhere")), ..irsa() };
        assert!(matches!(flaw(Identity::Irsa, &elsewhere), Some(Flaw::Trust { why }) if why.contains("elsewhere")));
        assert!(matches!(flaw(Identity::PodIdentity, &irsa()), Some(Flaw::Trust { .. })));
        let alone = Observed { trust: Some(pod_identity_trust()), ..irsa() };
        assert_eq!(flaw(Identity::PodIdentity, &alone), Some(Flaw::NotAssociated { found: None }));
    }
}
