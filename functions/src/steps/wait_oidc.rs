//! wait-oidc: past ACTIVE until usable; then makes or adopts the IAM OIDC provider of the cluster's issuer.

use std::collections::BTreeMap;

use aws_sdk_iam::types::Tag;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError, names, plan::Planned,
};

use crate::{
    Context,
    aws::{
        error::{During as _, code, refused},
        iam::oidc_provider_arn,
        tags::{self, missing},
    },
    cluster::reach,
};

/// ACTIVE comes 30 seconds to 3 minutes before the endpoint is usable.
const POLL_SECONDS: u32 = 10;
/// Whom the tokens are for.
const AUDIENCE: &str = "sts.amazonaws.com";

/// Waits until the cluster can be used, and lets IAM trust its issuer.
#[derive(Debug)]
pub struct WaitOidc;

/// Which issuer, and where the API server is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// `https://oidc.eks.<region>.amazonaws.com/id/<id>`
    pub issuer: String,
    /// The API server.
    pub endpoint: ClusterEndpoint,
    /// The spec's tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The IAM OIDC provider's ARN.
    pub provider_arn: String,
}

impl Step for WaitOidc {
    const NAME: &'static str = "wait-oidc";
    const ERRORS: &'static [ErrorName] = &[];
    type Input = Input;
    type Output = Progress<Output>;
}

/// A provider as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    audiences: Vec<String>,
    tags: BTreeMap<String, String>,
}

/// One change to it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Create,
    Audience,
    Tags(BTreeMap<String, String>),
}

/// An issuer belongs to one cluster for ever, so whoever made a provider for ours made it for this cluster: it is
/// adopted without asking for our tag.
fn decide(tags: &BTreeMap<String, String>, found: Option<&Found>) -> Vec<Change> {
    let Some(found) = found else { return vec![Change::Create] };
    let mut changes = Vec::new();
    if !found.audiences.iter().any(|audience| audience == AUDIENCE) {
        changes.push(Change::Audience);
    }
    let lacking = missing(tags, &found.tags);
    if !lacking.is_empty() {
        changes.push(Change::Tags(lacking));
    }
    changes
}

/// Looks whether the endpoint and the issuer answer; when they do, sees to the provider.
///
/// # Errors
/// `QuotaExceeded` where the account has 100 providers already.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    if let Err(reason) = reach::endpoint(&input.endpoint).await {
        return Ok(Progress::wait(POLL_SECONDS, format!("the API server does not answer yet: {reason}")));
    }
    if let Err(reason) = reach::issuer(&input.issuer).await {
        return Ok(Progress::wait(POLL_SECONDS, format!("the issuer is not served yet: {reason}")));
    }
    let arn = oidc_provider_arn(&input.cluster, &input.issuer);
    let tags = names::tags(&input.cluster, &input.tags);
    let changes = decide(&tags, observe(cx, &arn).await?.as_ref());
    if !changes.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    for change in changes {
        act(cx, &input, &arn, &tags, change).await?;
    }
    Ok(Progress::done(Output { provider_arn: arn }))
}

async fn observe(cx: &Context, arn: &str) -> Result<Option<Found>, StepError> {
    match cx.aws.iam().get_open_id_connect_provider().open_id_connect_provider_arn(arn).send().await {
        Ok(provider) => Ok(Some(Found {
            audiences: provider.client_id_list.unwrap_or_default(),
            tags: provider.tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect(),
        })),
        Err(error) if matches!(code(&error), Some("NoSuchEntity" | "NoSuchEntityException")) => Ok(None),
        Err(error) => Err(refused("iam:GetOpenIDConnectProvider", &error)),
    }
}

/// What would become of the provider; `issuer` is none while there is no cluster.
///
/// # Errors
/// What IAM refused.
pub async fn plan(
    cx: &Context,
    cluster: &ClusterKey,
    issuer: Option<&str>,
    tags: &BTreeMap<String, String>,
) -> Result<Planned, StepError> {
    let kind = "IAM OIDC provider";
    let Some(issuer) = issuer else { return Ok(Planned::of(kind, "of the cluster's issuer", None)) };
    let found = observe(cx, &oidc_provider_arn(cluster, issuer)).await?;
    let changes = decide(&names::tags(cluster, tags), found.as_ref());
    let told: Vec<String> = changes
        .iter()
        .map(|change| match change {
            Change::Create => "it is not there".to_owned(),
            Change::Audience => format!("it lacks the audience {AUDIENCE}"),
            Change::Tags(lacking) => tags::told(lacking),
        })
        .collect();
    Ok(Planned::of(kind, issuer, found.map(|_| told.as_slice())))
}

async fn act(
    cx: &Context,
    input: &Input,
    arn: &str,
    tags: &BTreeMap<String, String>,
    change: Change,
) -> Result<(), StepError> {
    let iam = cx.aws.iam();
    match change {
        // No thumbprint: IAM trusts the public authority that signed EKS's issuers, and a pinned one would break with it.
        Change::Create => iam
            .create_open_id_connect_provider()
            .url(&input.issuer)
            .client_id_list(AUDIENCE)
            .set_tags(Some(as_tags(tags)?))
            .send()
            .await
            .map(|_| ())
            .during("iam:CreateOpenIDConnectProvider"),
        Change::Audience => iam
            .add_client_id_to_open_id_connect_provider()
            .open_id_connect_provider_arn(arn)
            .client_id(AUDIENCE)
            .send()
            .await
            .map(|_| ())
            .during("iam:AddClientIDToOpenIDConnectProvider"),
        Change::Tags(lacking) => iam
            .tag_open_id_connect_provider()
            .open_id_connect_provider_arn(arn)
            .set_tags(Some(as_tags(&lacking)?))
            .send()
            .await
            .map(|_| ())
            .during("iam:TagOpenIDConnectProvider"),
    }
}

fn as_tags(tags: &BTreeMap<String, String>) -> Result<Vec<Tag>, StepError> {
    tags.iter()
        .map(|(key, value)| Tag::builder().key(key).value(value).build())
        .collect::<Result<_, _>>()
        .map_err(|error| StepError::new(ErrorName::Internal, format!("A tag could not be written: {error}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(region: &str) -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: region.into(), name: "demo".into() }
    }

    #[test]
    fn a_provider_is_made_completed_and_then_left_alone() {
        let tags = names::tags(&cluster("eu-west-1"), &BTreeMap::new());
        assert_eq!(decide(&tags, None), [Change::Create]);
        let bare = Found { audiences: vec!["other".into()], tags: BTreeMap::new() };
        assert_eq!(decide(&tags, Some(&bare)), [Change::Audience, Change::Tags(tags.clone())]);
        let whole = Found { audiences: vec![AUDIENCE.into()], tags: tags.clone() };
        assert_eq!(decide(&tags, Some(&whole)), []);
    }

    #[test]
    fn a_provider_is_named_after_its_issuer() {
        let issuer = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC";
        assert_eq!(
            oidc_provider_arn(&cluster("eu-west-1"), issuer),
            "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/ABC"
        );
        assert!(oidc_provider_arn(&cluster("cn-north-1"), issuer).starts_with("arn:aws-cn:iam::"));
    }
}
