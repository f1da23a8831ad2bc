//! EKS: its API with its states and times, how one logs in to its clusters, and what it injects into pods.
//!
//! Read in this order: [`model`] checks what is asked, [`clusters`], [`nodegroups`], [`addons`], [`access`] and
//! [`pod_identity`] answer it and keep [`state`]; `webhooks` is what the clusters' API servers call: [`login`] turns
//! an IAM token into a Kubernetes user, [`injection`] gives pods their identity. [`amazon`] asks EC2, IAM, SSM and
//! STS, always through the gateway; [`objects`] speaks to the clusters as their admin.

mod access;
mod addons;
mod amazon;
pub mod auth;
mod clusters;
mod endpoint;
mod fargate;
mod injection;
mod issuer;
mod login;
mod model;
mod nodegroups;
mod objects;
mod pod_identity;
mod state;
mod tags;
mod updates;
pub(crate) mod versions;
mod webhooks;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::Context;
use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use slipway_states::clock::ScaledClock;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::gateway::call::{Answer, Aws, AwsError, Call, Principal, Service};
use crate::gateway::wire;
use crate::kubernetes::ControlPlanes;
use crate::propagation::Changes;

use model::Model;
use state::{ClusterId, State};
use webhooks::Webhooks;

/// What EKS works with.
#[derive(Clone)]
pub struct EksConfig {
    /// The gateway; account, region and principal are set anew for each call.
    pub aws: Aws,
    /// How fast EKS's own waits pass.
    pub clock: ScaledClock,
    /// The folder that `local/setup.py` filled: EKS's service model is in its Python environment `cloud`.
    pub cache: PathBuf,
    /// Who starts the clusters' control planes.
    pub control_planes: Arc<dyn ControlPlanes>,
    /// What was changed in IAM, of which EKS hears later.
    pub changes: Arc<Changes>,
    /// How many items a page of a list has at most; `None` for EKS's own size.
    pub page_size: Option<u32>,
}

/// The EKS of one local cloud: all accounts and regions.
pub struct Eks {
    config: EksConfig,
    model: Model,
    state: Mutex<State>,
    webhooks: Webhooks,
    ending: CancellationToken,
    _ends_with_it: DropGuard,
    this: Weak<Self>,
}

/// One checked request.
#[derive(Debug)]
struct Request {
    account: String,
    region: String,
    principal: Principal,
    /// The operation's input shape: members of path, query and body together.
    input: Value,
    /// How many items a page may have at most.
    page_size: usize,
}

impl Eks {
    /// Reads the service model and opens the webhooks' ports, on loopback. Needs a tokio runtime.
    ///
    /// # Errors
    /// The cache is not filled, or no port can be had.
    pub fn new(config: EksConfig) -> anyhow::Result<Arc<Self>> {
        let model = Model::read(&config.cache)?;
        let (webhooks, listeners) = webhooks::bind().context("opening the ports of EKS's webhooks")?;
        let ending = CancellationToken::new();
        let eks = Arc::new_cyclic(|this| Self {
            config,
            model,
            state: Mutex::default(),
            webhooks,
            ending: ending.clone(),
            _ends_with_it: ending.drop_guard(),
            this: this.clone(),
        });
        listeners.serve(&eks);
        Ok(eks)
    }

    /// Ends everything that goes on and stops all control planes.
    pub async fn stop(&self) {
        self.ending.cancel();
        let clusters: Vec<ClusterId> = self.state().clusters.drain().map(|(id, _)| id).collect();
        let stops = clusters.iter().map(|id| self.config.control_planes.stop(&id.account, &id.region, &id.name));
        futures::future::join_all(stops).await;
    }

    /// Never held across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client of EKS's own in an account and region.
    fn aws(&self, account: &str, region: &str) -> Aws {
        Aws {
            gateway: self.config.aws.gateway.clone(),
            account: account.to_owned(),
            region: region.to_owned(),
            principal: Principal::service("eks.amazonaws.com", account),
        }
    }

    /// A role as EKS knows it; `None` where there is none, or none that EKS has heard of.
    async fn role(&self, id: &ClusterId, arn: &str) -> Result<Option<amazon::Role>, AwsError> {
        let Some(role) = amazon::role(&self.aws(&id.account, &id.region), arn).await? else { return Ok(None) };
        let trust = self.config.changes.seen(arn, "eks", role.trust);
        Ok(trust.map(|trust| amazon::Role { arn: role.arn, id: role.id, trust }))
    }

    /// Goes on with `work` after the answer, until it is done or the cloud stops. The work holds EKS only weakly
    /// while it waits for time to pass, so that a dropped cloud goes away.
    fn go_on(&self, work: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ending.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn answer(&self, call: &Call) -> Result<Value, AwsError> {
        let Some(operation) = self.model.operation(&call.method, &call.uri) else {
            let asked = format!("{} {}", call.method, call.uri.path());
            return Err(AwsError::new(404, "UnknownOperationException", format!("EKS has no operation {asked}")));
        };
        let input = self.model.input(operation, &call.uri, &wire::json_body(call)?)?;
        tags::check(&operation.name, &input)?;
        let request = Request {
            account: call.account.clone(),
            region: call.region.clone(),
            principal: call.principal.clone(),
            input,
            page_size: self.config.page_size.and_then(|size| usize::try_from(size).ok()).unwrap_or(100),
        };
        let answer = self.perform(&operation.name, request).await?;
        match self.model.check_answer(operation, &answer) {
            Ok(()) => Ok(answer),
            Err(wrong) => Err(AwsError::new(500, "ServerException", format!("local EKS answered wrongly: {wrong}"))),
        }
    }

    async fn perform(&self, operation: &str, request: Request) -> Result<Value, AwsError> {
        match operation {
            "CreateCluster" => self.create_cluster(&request).await,
            "DescribeCluster" => self.describe_cluster(&request),
            "ListClusters" => self.list_clusters(&request),
            "UpdateClusterConfig" => self.update_cluster_config(&request),
            "AssociateEncryptionConfig" => self.associate_encryption_config(&request),
            "DeleteCluster" => self.delete_cluster(&request),
            "DescribeClusterVersions" => versions::describe_cluster_versions(&request),
            "DescribeUpdate" => self.describe_update(&request),
            "ListUpdates" => self.list_updates(&request),
            "CreateNodegroup" => self.create_nodegroup(&request).await,
            "DescribeNodegroup" => self.describe_nodegroup(&request),
            "ListNodegroups" => self.list_nodegroups(&request),
            "CreateFargateProfile" => self.create_fargate_profile(&request).await,
            "DescribeFargateProfile" => self.describe_fargate_profile(&request),
            "DeleteFargateProfile" => self.delete_fargate_profile(&request),
            "ListFargateProfiles" => self.list_fargate_profiles(&request),
            "UpdateNodegroupConfig" => self.update_nodegroup_config(&request),
            "DeleteNodegroup" => self.delete_nodegroup(&request),
            "CreateAddon" => self.create_addon(&request).await,
            "DescribeAddon" => self.describe_addon(&request).await,
            "ListAddons" => self.list_addons(&request),
            "UpdateAddon" => self.update_addon(&request).await,
            "DeleteAddon" => self.delete_addon(&request),
            "DescribeAddonConfiguration" => versions::describe_addon_configuration(&request),
            "DescribeAddonVersions" => versions::describe_addon_versions(&request),
            "CreateAccessEntry" => self.create_access_entry(&request).await,
            "DescribeAccessEntry" => self.describe_access_entry(&request),
            "ListAccessEntries" => self.list_access_entries(&request),
            "UpdateAccessEntry" => self.update_access_entry(&request),
            "DeleteAccessEntry" => self.delete_access_entry(&request),
            "AssociateAccessPolicy" => self.associate_access_policy(&request),
            "ListAssociatedAccessPolicies" => self.list_associated_access_policies(&request),
            "DisassociateAccessPolicy" => self.disassociate_access_policy(&request),
            "ListAccessPolicies" => access::list_access_policies(&request),
            "CreatePodIdentityAssociation" => self.create_pod_identity_association(&request).await,
            "UpdatePodIdentityAssociation" => self.update_pod_identity_association(&request).await,
            "DescribePodIdentityAssociation" => self.describe_pod_identity_association(&request),
            "ListPodIdentityAssociations" => self.list_pod_identity_associations(&request),
            "DeletePodIdentityAssociation" => self.delete_pod_identity_association(&request),
            "TagResource" => self.tag_resource(&request),
            "UntagResource" => self.untag_resource(&request),
            "ListTagsForResource" => self.list_tags(&request),
            other => Err(AwsError::new(
                400,
                "InvalidRequestException",
                format!("The local cloud's EKS does not know {other}: see docs/local-cloud.md."),
            )),
        }
    }
}

#[async_trait]
impl Service for Eks {
    fn action(&self, method: &Method, uri: &Uri) -> Option<String> {
        self.model.operation(method, uri).map(|operation| operation.name.clone())
    }

    async fn handle(&self, call: Call) -> Answer {
        match self.answer(&call).await {
            Ok(body) => wire::rest_json_answer(StatusCode::OK, &body),
            Err(refusal) => wire::refuse(&call, &refusal),
        }
    }
}

impl Request {
    /// A text member; empty where it is absent.
    fn text(&self, member: &str) -> &str {
        self.input[member].as_str().unwrap_or_default()
    }

    /// The cluster that the request is about: `name` in the operations of clusters, `clusterName` in the others.
    fn cluster(&self) -> ClusterId {
        let name = if self.input["clusterName"].is_string() { "clusterName" } else { "name" };
        ClusterId { account: self.account.clone(), region: self.region.clone(), name: self.text(name).to_owned() }
    }

    /// The tags asked for; an empty map where there are none.
    fn tags(&self) -> Value {
        self.input.get("tags").cloned().unwrap_or_else(|| json!({}))
    }

    /// One page of a list, under the name that the answer gives it.
    fn page(&self, name: &str, items: &[Value]) -> Result<Value, AwsError> {
        let from = match self.input["nextToken"].as_str().filter(|token| !token.is_empty()) {
            None => 0,
            Some(token) => begin(token, items).ok_or_else(|| invalid("The nextToken parameter is not valid."))?,
        };
        let asked = self.input["maxResults"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(100);
        let to = (from + asked.min(self.page_size)).min(items.len());
        let mut page = json!({name: items[from..to]});
        if to < items.len() {
            page["nextToken"] = json!(match items[to - 1].as_str() {
                Some(last) => format!("after-{}", BASE64_URL_SAFE_NO_PAD.encode(last)),
                None => format!("page-{to}"),
            });
        }
        Ok(page)
    }
}

/// Where the page of a token begins. Names go on after the last one that was given, whatever was deleted meanwhile.
fn begin(token: &str, items: &[Value]) -> Option<usize> {
    if let Some(number) = token.strip_prefix("page-") {
        return number.parse().ok().filter(|from| *from < items.len());
    }
    let last = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token.strip_prefix("after-")?).ok()?).ok()?;
    let itself = items.iter().position(|item| *item == last.as_str()).map(|at| at + 1);
    let next = || items.iter().position(|item| item.as_str().is_some_and(|name| *name > *last));
    Some(itself.or_else(next).unwrap_or(items.len()))
}

fn invalid(message: impl Into<String>) -> AwsError {
    AwsError::new(400, "InvalidParameterException", message)
}

fn invalid_request(message: impl Into<String>) -> AwsError {
    AwsError::new(400, "InvalidRequestException", message)
}

fn in_use(message: impl Into<String>) -> AwsError {
    AwsError::new(409, "ResourceInUseException", message)
}

fn not_found(message: impl Into<String>) -> AwsError {
    AwsError::new(404, "ResourceNotFoundException", message)
}

/// A second request for something that is there: the first answer again where it carries the first one's token,
/// else refused.
fn again(first: &Value, second: &Value, answer: Value, refusal: AwsError) -> Result<Value, AwsError> {
    let token = second["clientRequestToken"].as_str();
    if token.is_none() || first["clientRequestToken"].as_str() != token {
        Err(refusal)
    } else if first == second {
        Ok(answer)
    } else {
        Err(invalid("The request token was used before with different parameters."))
    }
}

/// Seconds since 1970, as EKS's JSON has them.
fn now() -> Value {
    let milliseconds = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit 53 bits")]
    let seconds = milliseconds as f64 / 1000.0;
    json!(seconds)
}

/// A UUID's shape, as EKS ends its ARNs.
fn uuid() -> String {
    wire::request_id()
}
