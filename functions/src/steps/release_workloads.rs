//! release-workloads: what workloads hold in AWS by way of Kubernetes: load balancers and volumes. Listed and refused,
//! or deleted while the controllers that clean up after them still run. What no controller takes away any more, or where no
//! API server can be asked, is looked for in AWS itself: it is refused here, before anything is deleted, or goes with the
//! remnants, when nobody is left who would make it again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError, teardown::Workloads,
};

use crate::{
    Context,
    aws::{
        error::During as _,
        inventory::{self, Place},
    },
    cluster::{self, Cluster, Kind},
    ownership::{RETAINED_TAG, Resource, belongs, is_of_claim},
};

/// Releases what workloads hold in AWS.
#[derive(Debug)]
pub struct ReleaseWorkloads;

/// Of which cluster, and whether at all.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// How one logs in; none where there is no API server, or it is out of reach.
    #[serde(default)]
    pub endpoint: Option<ClusterEndpoint>,
    /// What becomes of them.
    pub workloads: Workloads,
}

/// Nothing holds anything.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {}

impl Step for ReleaseWorkloads {
    const NAME: &'static str = "release-workloads";
    const ERRORS: &'static [ErrorName] =
        &[ErrorName::WorkloadsHoldResources, ErrorName::ClusterUnreachable, ErrorName::KubernetesRefused];
    type Input = Input;
    type Output = Progress<Output>;
}

const SERVICE: Kind<'static> = ("v1", "Service");
const INGRESS: Kind<'static> = ("networking.k8s.io/v1", "Ingress");
const CLAIM: Kind<'static> = ("v1", "PersistentVolumeClaim");
const VOLUME: Kind<'static> = ("v1", "PersistentVolume");
const POD: Kind<'static> = ("v1", "Pod");
const NAMESPACE: Kind<'static> = ("v1", "Namespace");

/// A load balancer goes in half a minute, a volume when its node has let go of it.
const ASK_AGAIN: u32 = 15;

/// An object that holds something in AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    kind: Kind<'static>,
    namespace: String,
    name: String,
    /// It has been asked to go.
    deleting: bool,
    /// What has to let go of it first: each is some controller's.
    finalizers: Vec<String>,
    /// What it holds, as far as its status says: a host name or a volume.
    holds: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name, deleting, finalizers, holds } = self;
        let place = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
        let waits = (*deleting && !finalizers.is_empty()).then(|| format!("waits for {}", finalizers.join(", ")));
        let more: Vec<String> =
            Some(holds.clone()).filter(|holds| !holds.is_empty()).into_iter().chain(waits).collect();
        let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join("; ")) };
        write!(f, "{} {place}{more}", kind.1)
    }
}

/// Which of them to delete now; or the refusal that lists them.
pub(crate) fn decide(holders: &[Holder], workloads: Workloads) -> Result<Vec<&Holder>, StepError> {
    // A volume that its claim left behind goes by itself.
    let held: Vec<&Holder> = holders.iter().filter(|holder| holder.kind != VOLUME && !holder.deleting).collect();
    if workloads == Workloads::Refuse && !held.is_empty() {
        let list: Vec<String> = held.iter().map(ToString::to_string).collect();
        let cause = format!("Workloads hold load balancers or volumes: {}.", list.join(", "));
        return Err(StepError::new(ErrorName::WorkloadsHoldResources, cause));
    }
    Ok(held)
}

/// The objects that hold something: Services of type LoadBalancer, Ingresses, and claims whose volume would go with
/// them, with the volumes that are on their way out.
pub(crate) fn holders(services: &[Value], ingresses: &[Value], claims: &[Value], volumes: &[Value]) -> Vec<Holder> {
    let balanced = |object: &Value| {
        let ingress = &object["status"]["loadBalancer"]["ingress"][0];
        ingress["hostname"].as_str().or_else(|| ingress["ip"].as_str()).unwrap_or_default().to_owned()
    };
    let deletable = |volume: &&Value| volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
    let bound = |claim: &Value| {
        let name = &claim["spec"]["volumeName"];
        volumes.iter().filter(deletable).find(|volume| !name.is_null() && volume["metadata"]["name"] == *name)
    };
    let services = services.iter().filter(|service| service["spec"]["type"] == "LoadBalancer");
    let claimed = claims.iter().filter_map(|claim| bound(claim).map(|volume| holder(CLAIM, claim, disk(volume))));
    let leaving = volumes.iter().filter(deletable).filter(|volume| {
        volume["status"]["phase"] == "Released" || volume["metadata"]["deletionTimestamp"].is_string()
    });
    services
        .map(|service| holder(SERVICE, service, balanced(service)))
        .chain(ingresses.iter().map(|ingress| holder(INGRESS, ingress, balanced(ingress))))
        .chain(claimed)
        .chain(leaving.map(|volume| holder(VOLUME, volume, disk(volume))))
        .collect()
}

/// `vol-…`
fn disk(volume: &Value) -> String {
    volume["spec"]["csi"]["volumeHandle"].as_str().unwrap_or_default().to_owned()
}

fn holder(kind: Kind<'static>, object: &Value, holds: String) -> Holder {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    Holder {
        kind,
        namespace: text("namespace"),
        name: text("name"),
        deleting: object["metadata"]["deletionTimestamp"].is_string(),
        finalizers: cluster::finalizers(object),
        holds,
    }
}

/// Why a namespace that was deleted is still there, in Kubernetes' own words; none where it is not one of these.
fn stuck(namespace: &Value, of: &[Holder]) -> Option<String> {
    let name = namespace["metadata"]["name"].as_str()?;
    let terminating = namespace["status"]["phase"] == "Terminating" && of.iter().any(|one| one.namespace == name);
    let conditions = namespace["status"]["conditions"].as_array().filter(|_| terminating)?;
    let said = conditions.iter().filter(|one| one["status"] == "True").filter_map(|one| one["message"].as_str());
    Some(format!("namespace {name} is Terminating: {}", said.collect::<Vec<_>>().join("; ")))
}

/// Deletes what holds something, and waits until its controller has cleaned up: only then the object is gone.
///
/// # Errors
/// `WorkloadsHoldResources` lists what holds something, unless it may be deleted.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let Some(endpoint) = &input.endpoint else { return look_in_aws(cx, &input).await };
    let cluster = cluster::connect(cx, &input.cluster, endpoint).await?;
    let Observed { holders, retained } = observe(&cluster).await?;
    let going = decide(&holders, input.workloads)?;
    if !going.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    // First: once the API server is gone, nobody can tell that a volume is to be kept.
    retain(cx, &input, &retained).await?;
    for holder in going {
        if holder.kind == CLAIM {
            stop_users(&cluster, holder).await?;
        }
        cluster.delete(holder.kind, &holder.namespace, &holder.name, None).await?;
    }
    if holders.is_empty() {
        return look_in_aws(cx, &input).await;
    }
    let namespaces = cluster.list(NAMESPACE, None, "").await?;
    let stuck = namespaces.iter().filter_map(|namespace| stuck(namespace, &holders));
    let list: Vec<String> = holders.iter().map(ToString::to_string).chain(stuck).collect();
    Ok(Progress::wait(ASK_AGAIN, format!("still there: {}", list.join(", "))))
}

/// What the cluster's API server knows of.
#[derive(Debug)]
pub(crate) struct Observed {
    holders: Vec<Holder>,
    /// Ids of volumes whose reclaim policy is to keep them.
    retained: Vec<String>,
}

/// What holds something in AWS, and what is to stay there.
pub(crate) async fn observe(cluster: &Cluster) -> Result<Observed, StepError> {
    let all = |kind| cluster.list(kind, None, "");
    let (services, ingresses) = (all(SERVICE).await?, all(INGRESS).await?);
    let (claims, volumes) = (all(CLAIM).await?, all(VOLUME).await?);
    let kept = volumes.iter().filter(|volume| volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain");
    let retained = kept.map(disk).filter(|id| id.starts_with("vol-")).collect();
    Ok(Observed { holders: holders(&services, &ingresses, &claims, &volumes), retained })
}

/// Marks the volumes that are to be kept, so that neither a teardown nor an audit takes them for leftovers.
async fn retain(cx: &Context, input: &Input, ids: &[String]) -> Result<(), StepError> {
    if ids.is_empty() {
        return Ok(());
    }
    let there = inventory::volumes(cx, Place::of(&input.cluster, false)).await?;
    let unmarked = there.iter().filter(|one| ids.contains(&one.name) && !one.tags.contains_key(RETAINED_TAG));
    let unmarked: Vec<String> = unmarked.map(|one| one.name.clone()).collect();
    if unmarked.is_empty() {
        return Ok(());
    }
    cx.state.hold(&input.run, &input.cluster).await?;
    let tag = aws_sdk_ec2::types::Tag::builder().key(RETAINED_TAG).value(&input.cluster.name).build();
    let call = cx.aws.ec2().create_tags().set_resources(Some(unmarked)).tags(tag);
    call.send().await.map(|_| ()).during("ec2:CreateTags")
}

/// What workloads left in AWS: load balancers, and volumes that were made for claims.
pub(crate) fn left_in_aws<'a>(cluster: &ClusterKey, found: &'a [Resource]) -> Vec<&'a Resource> {
    let holds = |one: &&Resource| {
        one.kind == slipway_statemachine::Kind::LoadBalancer || is_of_claim(one) && one.state != "deleting"
    };
    found.iter().filter(holds).filter(|one| belongs(cluster, false, one).is_some()).collect()
}

/// `load-balancer a0f1e`, `volume vol-1 (of shop/data)`
fn told(resource: &Resource) -> String {
    let tag = |name: &str| resource.tags.get(&format!("kubernetes.io/created-for/pvc/{name}"));
    let claim = tag("namespace").zip(tag("name")).map(|(namespace, name)| format!(" (of {namespace}/{name})"));
    format!("{} {}{}", resource.kind.as_str(), resource.name, claim.unwrap_or_default())
}

/// Refuses what is left in AWS, unless it may go: then it goes with the remnants.
async fn look_in_aws(cx: &Context, input: &Input) -> Result<Progress<Output>, StepError> {
    if input.workloads == Workloads::Refuse {
        let place = Place::of(&input.cluster, false);
        let (balancers, volumes) =
            futures::try_join!(inventory::load_balancers(cx, place), inventory::volumes(cx, place))?;
        let found = [balancers, volumes].concat();
        let left: Vec<String> = left_in_aws(&input.cluster, &found).into_iter().map(told).collect();
        if !left.is_empty() {
            let cause = format!("Workloads left load balancers or volumes in AWS: {}.", left.join(", "));
            return Err(StepError::new(ErrorName::WorkloadsHoldResources, cause));
        }
    }
    Ok(Progress::done(Output {}))
}

/// A claim goes only when no pod has it, and a pod that has a controller comes back: so it is the controller that goes.
async fn stop_users(cluster: &Cluster, claim: &Holder) -> Result<(), StepError> {
    let pods = cluster.list(POD, Some(&claim.namespace), "").await?;
    for pod in pods.iter().filter(|pod| mounts(pod, &claim.name)) {
        let mut object = pod.clone();
        // A pod's owner may be owned in turn: by a Deployment, a CronJob.
        while let Some((api_version, kind, name)) = controller(&object) {
            match cluster.get((&api_version, &kind), &claim.namespace, &name).await? {
                Some(owner) => object = owner,
                None => break,
            }
        }
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = ((text("/apiVersion"), text("/kind")), text("/metadata/name"));
        // Lists leave out what their items are.
        let kind = if kind.1.is_empty() { POD } else { kind };
        cluster.delete(kind, &claim.namespace, name, None).await?;
    }
    Ok(())
}

fn mounts(pod: &Value, claim: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    volumes.iter().any(|volume| volume["persistentVolumeClaim"]["claimName"] == claim)
}

/// apiVersion, kind and name of what controls an object.
fn controller(object: &Value) -> Option<(String, String, String)> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    let text = |field: &str| owner[field].as_str().map(str::to_owned);
    Some((text("apiVersion")?, text("kind")?, text("name")?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(name: &str) -> Value {
        json!({ "namespace": "shop", "name": name })
    }

    fn sample() -> Vec<Holder> {
        let services = [
            json!({ "metadata": named("web"), "spec": { "type": "LoadBalancer" },
                    "status": { "loadBalancer": { "ingress": [{ "hostname": "web-1.elb.eu-west-1.amazonaws.com" }] } } }),
            json!({ "metadata": named("inner"), "spec": { "type": "ClusterIP" } }),
        ];
        let claims = [
            json!({ "metadata": named("data"), "spec": { "volumeName": "pv-1" } }),
            json!({ "metadata": named("kept"), "spec": { "volumeName": "pv-2" } }),
            json!({ "metadata": named("pending"), "spec": {} }),
        ];
        let volume = |name: &str, policy: &str, phase: &str| {
            json!({ "metadata": { "name": name }, "status": { "phase": phase },
                    "spec": { "persistentVolumeReclaimPolicy": policy, "csi": { "volumeHandle": format!("vol-{name}") } } })
        };
        let volumes = [
            volume("pv-1", "Delete", "Bound"),
            volume("pv-2", "Retain", "Bound"),
            volume("pv-3", "Delete", "Released"),
            volume("pv-4", "Delete", "Available"),
        ];
        holders(&services, &[json!({ "metadata": named("shop") })], &claims, &volumes)
    }

    #[test]
    fn what_holds_something_is_found_and_what_is_to_be_kept_is_not() {
        let found: Vec<String> = sample().iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "Service shop/web (web-1.elb.eu-west-1.amazonaws.com)",
                "Ingress shop/shop",
                "PersistentVolumeClaim shop/data (vol-pv-1)",
                "PersistentVolume pv-3 (vol-pv-3)",
            ]
        );
    }

    #[test]
    fn what_does_not_go_is_told_with_what_it_waits_for() {
        let service = json!({
            "metadata": { "namespace": "shop", "name": "web", "deletionTimestamp": "2026-11-22T09:00:00Z",
                          "finalizers": ["service.k8s.aws/resources"] },
            "spec": { "type": "LoadBalancer" }, "status": { "loadBalancer": { "ingress": [{ "ip": "10.0.0.1" }] } },
        });
        let holders = holders(&[service], &[], &[], &[]);
        assert_eq!(holders[0].to_string(), "Service shop/web (10.0.0.1; waits for service.k8s.aws/resources)");
        let namespace = |name: &str| {
            json!({
                "metadata": { "name": name },
                "status": { "phase": "Terminating", "conditions": [
                    { "type": "NamespaceDeletionDiscoveryFailure", "status": "False", "message": "All resources discovered" },
                    { "type": "NamespaceFinalizersRemaining", "status": "True",
                      "message": "Some content in the namespace has finalizers remaining: service.k8s.aws/resources in 1 resource instances" },
                ] },
            })
        };
        let told = stuck(&namespace("shop"), &holders).unwrap();
        assert!(
            told.starts_with("namespace shop is Terminating: Some content") && !told.contains("discovered"),
            "{told}"
        );
        assert_eq!(stuck(&namespace("other"), &holders), None);
    }

    #[test]
    fn nothing_is_deleted_unless_the_request_says_so() {
        let error = decide(&sample(), Workloads::Refuse).unwrap_err();
        assert_eq!(error.name, ErrorName::WorkloadsHoldResources);
        assert!(error.cause.contains("Service shop/web") && error.cause.contains("vol-pv-1"), "{}", error.cause);
        assert!(!error.cause.contains("pv-3"), "it goes by itself: {}", error.cause);
        let names: Vec<String> =
            decide(&sample(), Workloads::Delete).unwrap().iter().map(|holder| holder.name.clone()).collect();
        assert_eq!(names, ["web", "shop", "data"]);
        assert!(decide(&[], Workloads::Refuse).unwrap().is_empty());
    }

    #[test]
    fn a_pod_that_has_a_claim_is_known_with_what_controls_it() {
        let pod = json!({
            "metadata": { "ownerReferences": [
                { "apiVersion": "v1", "kind": "ConfigMap", "name": "other" },
                { "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "controller": true },
            ] },
            "spec": { "volumes": [{ "persistentVolumeClaim": { "claimName": "data" } }] },
        });
        assert!(mounts(&pod, "data") && !mounts(&pod, "dat"));
        assert_eq!(controller(&pod).unwrap(), ("apps/v1".into(), "StatefulSet".into(), "db".into()));
        assert_eq!(controller(&json!({ "metadata": {} })), None);
    }

    #[test]
    fn what_workloads_left_in_aws_is_known_by_its_tags_and_told_with_its_claim() {
        use slipway_statemachine::Kind as What;
        let cluster = ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() };
        let thing = |kind, name: &str, tags: &[(&str, &str)]| {
            let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Resource::new(kind, name, name).tagged(tags)
        };
        let owned = ("kubernetes.io/cluster/demo", "owned");
        let claim =
            [("kubernetes.io/created-for/pvc/namespace", "shop"), ("kubernetes.io/created-for/pvc/name", "data")];
        let found = [
            thing(What::LoadBalancer, "a1", &[owned]),
            thing(What::LoadBalancer, "a2", &[("kubernetes.io/cluster/demo-2", "owned")]),
            thing(What::LoadBalancer, "a3", &[("elbv2.k8s.aws/cluster", "demo")]),
            thing(What::TargetGroup, "g1", &[owned]),
            thing(What::Volume, "vol-1", &[owned, claim[0], claim[1]]),
            thing(What::Volume, "vol-2", &[owned, claim[1], (RETAINED_TAG, "demo")]),
            thing(What::Volume, "vol-3", &[owned, ("karpenter.sh/nodepool", "x86")]),
        ];
        let left: Vec<String> = left_in_aws(&cluster, &found).into_iter().map(told).collect();
        assert_eq!(left, ["load-balancer a1", "load-balancer a3", "volume vol-1 (of shop/data)"]);
    }
}
