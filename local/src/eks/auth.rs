//! EKS Auth: what the Pod Identity agent asks for a pod's credentials. It has one operation.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Eks;
use super::state::ClusterId;
use crate::gateway::call::{Answer, Aws, AwsError, Call, Principal, Service};
use crate::gateway::wire;
use crate::services::web_token;

/// Whose tokens the Pod Identity agent takes, and who assumes the roles.
const PODS: &str = "pods.eks.amazonaws.com";

/// EKS Auth of one local cloud.
pub struct EksAuth {
    eks: Arc<Eks>,
}

/// A pod that asks, as its token says.
#[derive(Debug)]
struct Pod {
    namespace: String,
    service_account: String,
    name: String,
    uid: String,
}

/// A pod's association, as far as credentials depend on it.
struct Associated {
    id: String,
    arn: String,
    role_arn: String,
    tagged: bool,
}

impl EksAuth {
    /// EKS Auth that knows the clusters of `eks`.
    #[must_use]
    pub fn new(eks: Arc<Eks>) -> Arc<Self> {
        Arc::new(Self { eks })
    }

    async fn answer(&self, call: &Call) -> Result<Value, AwsError> {
        let name = cluster(&call.method, &call.uri).ok_or_else(|| {
            let asked = format!("{} {}", call.method, call.uri.path());
            AwsError::new(404, "UnknownOperationException", format!("EKS Auth has no operation {asked}"))
        })?;
        let id = ClusterId { account: call.account.clone(), region: call.region.clone(), name };
        let body = wire::json_body(call)?;
        let token =
            body["token"].as_str().ok_or_else(|| error(400, "InvalidParameterException", "token is required"))?;
        let pod = self.pod(&id, token)?;
        let association = self.association(&id, &pod)?;
        let credentials = self.assume(&id, &pod, &association).await?;
        Ok(json!({
            "subject": {"namespace": pod.namespace, "serviceAccount": pod.service_account},
            "audience": PODS,
            "podIdentityAssociation": {"associationArn": association.arn, "associationId": association.id},
            "assumedRoleUser": credentials["assumedRoleUser"],
            "credentials": credentials["credentials"],
        }))
    }

    /// Who a token is, if the cluster's issuer signed it for us.
    fn pod(&self, id: &ClusterId, token: &str) -> Result<Pod, AwsError> {
        let (issuer, keys) = {
            let mut state = self.eks.state();
            let cluster = state.cluster(id)?;
            (cluster.issuer.clone(), cluster.plane.as_ref().map(|plane| plane.jwks.clone()))
        };
        let invalid = |message: &str| error(400, "InvalidTokenException", message);
        let claims = web_token::unverified_claims(token).ok_or_else(|| invalid("The token cannot be parsed."))?;
        web_token::verify(token, &issuer, keys).map_err(|distrust| invalid(&format!("{distrust}.")))?;
        if claims["exp"].as_i64().is_none_or(|expires| expires <= OffsetDateTime::now_utc().unix_timestamp()) {
            return Err(error(400, "ExpiredTokenException", "The token has expired."));
        }
        if !web_token::audiences(&claims).iter().any(|audience| audience == PODS) {
            return Err(invalid(&format!("The token's audience is not {PODS}.")));
        }
        let bound = &claims["kubernetes.io"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let pod = || {
            Some(Pod {
                namespace: text(&bound["namespace"])?,
                service_account: text(&bound["serviceaccount"]["name"])?,
                name: text(&bound["pod"]["name"])?,
                uid: text(&bound["pod"]["uid"])?,
            })
        };
        pod().ok_or_else(|| invalid("The token is not bound to a pod."))
    }

    /// The association of a pod's service account, once EKS Auth has heard of it.
    fn association(&self, id: &ClusterId, pod: &Pod) -> Result<Associated, AwsError> {
        let found = self.eks.association("eks-auth", id, &pod.namespace, &pod.service_account)?;
        let view = found.ok_or_else(|| {
            let account = format!("{}/{}", pod.namespace, pod.service_account);
            error(404, "ResourceNotFoundException", &format!("No association found for service account {account}."))
        })?;
        let text = |member: &str| view[member].as_str().unwrap_or_default().to_owned();
        Ok(Associated {
            id: text("associationId"),
            arn: text("associationArn"),
            role_arn: text("roleArn"),
            tagged: view["disableSessionTags"] != true,
        })
    }

    /// Assumes the association's role for the pod: by STS, which judges the role's trust policy.
    async fn assume(&self, id: &ClusterId, pod: &Pod, association: &Associated) -> Result<Value, AwsError> {
        let aws = Aws { principal: Principal::service(PODS, &id.account), ..self.eks.aws(&id.account, &id.region) };
        let session = session_name(&id.name, &pod.name);
        let tags = if association.tagged { session_tags(id, pod) } else { BTreeMap::new() };
        let mut parameters =
            vec![("RoleArn".to_owned(), association.role_arn.clone()), ("RoleSessionName".to_owned(), session)];
        for (number, (key, value)) in (1..).zip(tags) {
            parameters.push((format!("Tags.member.{number}.Key"), key.to_owned()));
            parameters.push((format!("Tags.member.{number}.Value"), value));
        }
        let parameters: Vec<(&str, &str)> =
            parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let xml = aws.query("sts", "AssumeRole", &parameters).await.map_err(|refusal| match refusal.code.as_str() {
            "AccessDenied" => {
                let message = "Unauthorized Exception! EKS does not have permissions to assume the associated role.";
                error(400, "AccessDeniedException", message)
            }
            _ => error(500, "InternalServerException", &refusal.to_string()),
        })?;
        read_session(&xml).ok_or_else(|| error(500, "InternalServerException", "STS answered without credentials"))
    }
}

#[async_trait]
impl Service for EksAuth {
    fn action(&self, method: &Method, uri: &Uri) -> Option<String> {
        cluster(method, uri).map(|_| "AssumeRoleForPodIdentity".to_owned())
    }

    async fn handle(&self, call: Call) -> Answer {
        match self.answer(&call).await {
            Ok(body) => wire::rest_json_answer(StatusCode::OK, &body),
            Err(refusal) => wire::refuse(&call, &refusal),
        }
    }
}

/// The cluster in the path of the one operation.
fn cluster(method: &Method, uri: &Uri) -> Option<String> {
    let path = wire::path_segments(uri);
    let ["clusters", name, "assume-role-for-pod-identity"] = path.iter().map(String::as_str).collect::<Vec<_>>()[..]
    else {
        return None;
    };
    (method == Method::POST).then(|| name.to_owned())
}

fn error(status: u16, code: &str, message: &str) -> AwsError {
    AwsError::new(status, code, message)
}

/// `eks-<cluster>-<pod>-<uuid>`, of which STS takes 64 characters: what is too long loses the end of cluster and pod.
fn session_name(cluster: &str, pod: &str) -> String {
    let uuid = wire::request_id();
    let names: String = format!("eks-{cluster}-{pod}").chars().take(63 - uuid.len()).collect();
    format!("{names}-{uuid}")
}

/// What EKS tells IAM of the pod: <https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html>.
fn session_tags(id: &ClusterId, pod: &Pod) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("eks-cluster-arn", format!("arn:aws:eks:{}:{}:cluster/{}", id.region, id.account, id.name)),
        ("eks-cluster-name", id.name.clone()),
        ("kubernetes-namespace", pod.namespace.clone()),
        ("kubernetes-service-account", pod.service_account.clone()),
        ("kubernetes-pod-name", pod.name.clone()),
        ("kubernetes-pod-uid", pod.uid.clone()),
    ])
}

/// STS's session in EKS Auth's shapes.
fn read_session(xml: &str) -> Option<Value> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let text = |name: &str| document.descendants().find(|node| node.tag_name().name() == name)?.text();
    let expires = OffsetDateTime::parse(text("Expiration")?, &Rfc3339).ok()?;
    Some(json!({
        "assumedRoleUser": {"arn": text("Arn")?, "assumeRoleId": text("AssumedRoleId")?},
        "credentials": {
            "accessKeyId": text("AccessKeyId")?,
            "secretAccessKey": text("SecretAccessKey")?,
            "sessionToken": text("SessionToken")?,
            "expiration": expires.unix_timestamp(),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_after_cluster_and_pod_within_64_characters() {
        assert!(session_name("demo", "karpenter-7c9").starts_with("eks-demo-karpenter-7c9-"));
        assert_eq!(session_name(&"c".repeat(100), "karpenter-7c9").len(), 64);
    }
}
