//! release-workloads: what workloads hold in AWS by way of Kubernetes: load balancers and volumes. Listed and refused,
//! or deleted while the controllers that clean up after them still run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError, teardown::Workloads,
};

use crate::{
    Context,
    cluster::{self, Cluster, Kind},
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
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
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
    /// What it holds, as far as its status says: a host name or a volume.
    holds: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name, holds, .. } = self;
        let place = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
        write!(f, "{} {place}{}", kind.1, if holds.is_empty() { String::new() } else { format!(" ({holds})") })
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
        holds,
    }
}

/// Deletes what holds something, and waits until its controller has cleaned up: only then the object is gone.
///
/// # Errors
/// `WorkloadsHoldResources` lists what holds something, unless it may be deleted.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    let holders = observe(&cluster).await?;
    let going = decide(&holders, input.workloads)?;
    if !going.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    for holder in going {
        if holder.kind == CLAIM {
            stop_users(&cluster, holder).await?;
        }
        cluster.delete(holder.kind, &holder.namespace, &holder.name, None).await?;
    }
    if holders.is_empty() {
        return Ok(Progress::done(Output {}));
    }
    let list: Vec<String> = holders.iter().map(ToString::to_string).collect();
    Ok(Progress::wait(ASK_AGAIN, format!("still there: {}", list.join(", "))))
}

/// What holds something in AWS.
pub(crate) async fn observe(cluster: &Cluster) -> Result<Vec<Holder>, StepError> {
    let all = |kind| cluster.list(kind, None, "");
    let (services, ingresses) = (all(SERVICE).await?, all(INGRESS).await?);
    let (claims, volumes) = (all(CLAIM).await?, all(VOLUME).await?);
    Ok(holders(&services, &ingresses, &claims, &volumes))
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
}
