//! probe-identity: asks STS, as the controller will, until it believes the controller's service account.
//!
//! A controller that starts before that exits, and its back-off costs minutes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_karpenter::policy::{AUDIENCE, SERVICE_ACCOUNT};
use slipway_karpenter::render::RELEASE_LABEL;
use slipway_karpenter::values::{RELEASE, ROLE_ANNOTATION};
use slipway_statemachine::spec::Identity;
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError};

use crate::{
    Context,
    aws::error::{code, refused},
    cluster::{self, Cluster, token},
};

/// Asks STS.
#[derive(Debug)]
pub struct ProbeIdentity;

/// Which identity, and where its service account lives.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run that asks.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// How the controller proves who it is.
    pub identity: Identity,
    /// Karpenter's namespace.
    pub namespace: String,
    /// The role that the service account is to get.
    pub controller_role_arn: String,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
}

/// How often STS said yes.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Each on a connection of its own, since STS answers per host; 0 where the identity is not STS's to confirm.
    pub confirmations: u32,
}

impl Step for ProbeIdentity {
    const NAME: &'static str = "probe-identity";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::ClusterUnreachable, ErrorName::KubernetesRefused, ErrorName::IdentityRefused];
    type Input = Input;
    type Output = Progress<Output>;
}

/// As many times in a row as make another refusal unlikely.
const CONFIRMATIONS: u32 = 3;

/// Seconds until it is worth asking again: trust is believed after 2 s to a minute.
const ASK_AGAIN: u32 = 5;

/// The namespace and the service account to make, as Helm would, so that Helm can adopt them; neither if it is there
/// and right already: install-karpenter owns more of its fields.
fn decide(input: &Input, namespace: Option<&Value>, account: Option<&Value>) -> Vec<Value> {
    let annotations = json!({
        "meta.helm.sh/release-name": RELEASE,
        "meta.helm.sh/release-namespace": input.namespace,
    });
    let labels = json!({ "app.kubernetes.io/managed-by": "Helm", RELEASE_LABEL: RELEASE });
    let mut wanted = Vec::new();
    if namespace.is_none() {
        wanted.push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": input.namespace } }));
    }
    let role = (input.identity == Identity::Irsa).then_some(input.controller_role_arn.as_str());
    let said = account.and_then(|account| account["metadata"]["annotations"][ROLE_ANNOTATION].as_str());
    if account.is_none() || said != role {
        let mut account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": SERVICE_ACCOUNT,
                "namespace": input.namespace,
                "labels": labels,
                "annotations": annotations,
            },
            "automountServiceAccountToken": false,
        });
        if let Some(role) = role {
            account["metadata"]["annotations"][ROLE_ANNOTATION] = json!(role);
        }
        wanted.push(account);
    }
    wanted
}

/// Whether a refusal of STS stays one; the others pass once STS has heard of role, trust and provider.
fn for_good(code: Option<&str>) -> bool {
    !matches!(code, None | Some("AccessDenied" | "InvalidIdentityToken" | "IDPCommunicationError"))
}

/// Makes the service account and asks STS with its token.
///
/// # Errors
/// `IdentityRefused` if STS refuses for a reason that does not pass; `ClusterUnreachable` and `KubernetesRefused` from
/// the API server. The token is in none of them.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    let namespace = cluster.get(("v1", "Namespace"), "", &input.namespace).await?;
    let account = cluster.get(("v1", "ServiceAccount"), &input.namespace, SERVICE_ACCOUNT).await?;
    let wanted = decide(&input, namespace.as_ref(), account.as_ref());
    if !wanted.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    for manifest in &wanted {
        cluster.apply(manifest).await?;
    }
    match input.identity {
        Identity::PodIdentity => Ok(Progress::done(Output { confirmations: 0 })),
        Identity::Irsa => ask(&cluster, &input).await,
    }
}

async fn ask(cluster: &Cluster, input: &Input) -> Result<Progress<Output>, StepError> {
    const ACTION: &str = "sts:AssumeRoleWithWebIdentity";
    let token = cluster.service_account_token(&input.namespace, SERVICE_ACCOUNT, AUDIENCE).await?;
    for said_yes in 0..CONFIRMATIONS {
        // A client of its own is a connection of its own.
        let answer = token::anonymous_sts(&input.cluster.region)
            .assume_role_with_web_identity()
            .role_arn(&input.controller_role_arn)
            .role_session_name("slipway-probe")
            .web_identity_token(&token)
            .duration_seconds(900)
            .send()
            .await;
        let Err(error) = answer else { continue };
        let failure = refused(ACTION, &error);
        if failure.name == ErrorName::AwsUnavailable || failure.name == ErrorName::Throttled {
            return Err(failure);
        }
        if for_good(code(&error)) {
            return Err(StepError::new(ErrorName::IdentityRefused, failure.cause));
        }
        let detail = format!("STS said yes {said_yes} of {CONFIRMATIONS} times, then: {}", failure.cause);
        return Ok(Progress::wait(ASK_AGAIN, detail));
    }
    Ok(Progress::done(Output { confirmations: CONFIRMATIONS }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn input(identity: &str) -> Input {
        serde_json::from_value(json!({
            "run": { "id": "01", "fence": 1 },
            "cluster": { "account": "111122223333", "region": "eu-west-1", "name": "demo" },
            "identity": identity,
            "namespace": "karpenter",
            "controllerRoleArn": "arn:aws:iam::111122223333:role/controller",
            "endpoint": { "url": "https://example.com", "certificateAuthority": "" },
        }))
        .unwrap()
    }

    #[test]
    fn a_new_cluster_gets_the_namespace_first_and_an_account_that_helm_can_adopt() {
        let wanted = decide(&input("irsa"), None, None);
        assert_eq!(
            wanted.iter().map(|one| one["kind"].as_str().unwrap()).collect::<Vec<_>>(),
            ["Namespace", "ServiceAccount"]
        );
        let metadata = &wanted[1]["metadata"];
        assert_eq!((&metadata["namespace"], &metadata["name"]), (&json!("karpenter"), &json!("karpenter")));
        assert_eq!(metadata["labels"]["app.kubernetes.io/managed-by"], "Helm");
        assert_eq!(metadata["annotations"]["meta.helm.sh/release-name"], "karpenter");
        assert_eq!(metadata["annotations"][ROLE_ANNOTATION], "arn:aws:iam::111122223333:role/controller");
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let account = json!({ "metadata": { "annotations": {
            ROLE_ANNOTATION: "arn:aws:iam::111122223333:role/controller", "more": "of the chart",
        } } });
        assert!(decide(&input("irsa"), Some(&json!({})), Some(&account)).is_empty());
        let other = json!({ "metadata": { "annotations": { ROLE_ANNOTATION: "arn:other" } } });
        assert_eq!(decide(&input("irsa"), Some(&json!({})), Some(&other)).len(), 1);
    }

    #[test]
    fn pod_identity_names_no_role() {
        let wanted = decide(&input("podIdentity"), Some(&json!({})), None);
        assert!(wanted[0]["metadata"]["annotations"].get(ROLE_ANNOTATION).is_none());
        assert!(decide(&input("podIdentity"), Some(&json!({})), Some(&wanted[0])).is_empty());
    }

    #[test]
    fn only_refusals_that_pass_are_waited_for() {
        assert!(!for_good(Some("AccessDenied")));
        assert!(!for_good(Some("InvalidIdentityToken")));
        assert!(for_good(Some("ExpiredTokenException")));
        assert!(for_good(Some("ValidationError")));
    }
}
