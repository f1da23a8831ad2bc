//! Volumes of claims, as the EBS driver makes them: in the zone of the node that the scheduler chose, attached to the
//! machine whose pod has them, deleted with the claim where the class says so.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Controllers, texts};

const DRIVER: &str = "ebs.csi.aws.com";
/// Keeps a PersistentVolume until its disk is gone.
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// Where the scheduler tells the driver which node it chose.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Makes, attaches, detaches and deletes volumes, if the driver is installed.
pub(super) async fn look(controllers: &Controllers) -> anyhow::Result<()> {
    let client = &controllers.client;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
    if deployments.get_opt("ebs-csi-controller").await?.is_none() {
        return Ok(());
    }
    let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
    for claim in claims.list(&ListParams::default()).await?.items {
        let place = format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
        provision(controllers, &claim).await.with_context(|| format!("claim {place}"))?;
    }
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let ours = |volume: &PersistentVolume| disk(volume).is_some();
    let volumes: Vec<_> = volumes.list(&ListParams::default()).await?.items.into_iter().filter(ours).collect();
    if volumes.is_empty() {
        return Ok(());
    }
    let users = users(client).await?;
    for volume in volumes {
        follow(controllers, &volume, &users).await.with_context(|| format!("volume {}", volume.name_any()))?;
    }
    Ok(())
}

/// `vol-…` of a volume that the driver made.
fn disk(volume: &PersistentVolume) -> Option<&str> {
    let source = volume.spec.as_ref()?.csi.as_ref()?;
    (source.driver == DRIVER).then_some(source.volume_handle.as_str())
}

/// Makes the volume of a claim that waits for one.
async fn provision(controllers: &Controllers, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
    let spec = claim.spec.clone().unwrap_or_default();
    let (Some(class), None, None) = (spec.storage_class_name, spec.volume_name, &claim.metadata.deletion_timestamp)
    else {
        return Ok(());
    };
    let classes: Api<StorageClass> = Api::all(controllers.client.clone());
    let Some(class) = classes.get_opt(&class).await?.filter(|class| class.provisioner == DRIVER) else { return Ok(()) };
    // Both classes that there are wait for the first pod; so a claim without one is left alone.
    let Some(node) = claim.annotations().get(SELECTED_NODE) else { return Ok(()) };
    let volumes: Api<PersistentVolume> = Api::all(controllers.client.clone());
    let name = format!("pvc-{}", claim.uid().unwrap_or_default());
    if volumes.get_opt(&name).await?.is_some() {
        return Ok(());
    }
    let nodes: Api<Node> = Api::all(controllers.client.clone());
    let Some(node) = nodes.get_opt(node).await? else { return Ok(()) };
    let zone = node.labels().get(ZONE).context("a node has a zone")?;
    let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    let size = requests.get("storage").map(|quantity| quantity.0.as_str()).context("a claim has a size")?;
    let id = create(controllers, claim, &name, zone, gibibytes(size)?).await?;
    let volume = json!({
        "metadata": {
            "name": name,
            "annotations": { "pv.kubernetes.io/provisioned-by": DRIVER },
            "finalizers": [FINALIZER],
        },
        "spec": {
            "accessModes": spec.access_modes,
            "capacity": { "storage": size },
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(),
                "name": claim.name_any(), "uid": claim.uid(),
            },
            "csi": { "driver": DRIVER, "volumeHandle": id, "fsType": "ext4" },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": ZONE, "operator": "In", "values": [zone] }] },
            ] } },
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.name_any(),
        },
    });
    volumes.create(&PostParams::default(), &serde_json::from_value(volume)?).await?;
    Ok(())
}

async fn create(
    controllers: &Controllers,
    claim: &PersistentVolumeClaim,
    name: &str,
    zone: &str,
    gibibytes: u64,
) -> anyhow::Result<String> {
    let (owned, size, namespace) = (controllers.owned(), gibibytes.to_string(), claim.namespace().unwrap_or_default());
    let claim = claim.name_any();
    let params = [
        ("AvailabilityZone", zone),
        ("Size", &size),
        ("VolumeType", "gp3"),
        ("ClientToken", name),
        ("TagSpecification.1.ResourceType", "volume"),
        ("TagSpecification.1.Tag.1.Key", "CSIVolumeName"),
        ("TagSpecification.1.Tag.1.Value", name),
        ("TagSpecification.1.Tag.2.Key", "ebs.csi.aws.com/cluster"),
        ("TagSpecification.1.Tag.2.Value", "true"),
        ("TagSpecification.1.Tag.3.Key", "kubernetes.io/created-for/pvc/name"),
        ("TagSpecification.1.Tag.3.Value", &claim),
        ("TagSpecification.1.Tag.4.Key", "kubernetes.io/created-for/pvc/namespace"),
        ("TagSpecification.1.Tag.4.Value", &namespace),
        ("TagSpecification.1.Tag.5.Key", &owned),
        ("TagSpecification.1.Tag.5.Value", "owned"),
    ];
    let answer = controllers.aws.query("ec2", "CreateVolume", &params).await?;
    texts(&answer, "volumeId")?.into_iter().next().context("a volume has an id")
}

/// `4Gi`: EBS counts whole gibibytes.
fn gibibytes(size: &str) -> anyhow::Result<u64> {
    match size.strip_suffix("Gi").map(str::parse) {
        Some(Ok(number)) => Ok(number),
        _ => bail!("a size of {size:?} is not understood here: say it in Gi"),
    }
}

/// The instance whose pod has a claim, by namespace and name of the claim.
async fn users(client: &kube::Client) -> anyhow::Result<BTreeMap<(String, String), String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let instances: BTreeMap<String, String> = nodes
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .filter_map(|node| {
            let provider = node.spec.as_ref()?.provider_id.as_ref()?;
            Some((node.name_any(), provider.rsplit('/').next()?.to_owned()))
        })
        .collect();
    let pods: Api<Pod> = Api::all(client.clone());
    let mut users = BTreeMap::new();
    for pod in pods.list(&ListParams::default()).await?.items {
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        let namespace = pod.namespace().unwrap_or_default();
        let Some(spec) = pod.spec.filter(|_| !matches!(phase.as_str(), "Succeeded" | "Failed")) else { continue };
        let Some(instance) = spec.node_name.and_then(|node| instances.get(&node)) else { continue };
        for claim in spec.volumes.iter().flatten().filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
            users.insert((namespace.clone(), claim.claim_name.clone()), instance.clone());
        }
    }
    Ok(users)
}

/// Attaches a disk to the machine of its user, detaches it from any other, deletes it when its claim is gone.
async fn follow(
    controllers: &Controllers,
    volume: &PersistentVolume,
    users: &BTreeMap<(String, String), String>,
) -> anyhow::Result<()> {
    let id = disk(volume).unwrap_or_default();
    let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
    let user = users.get(&(claim.namespace.unwrap_or_default(), claim.name.unwrap_or_default()));
    let absent = ["InvalidVolume.NotFound"];
    let described = controllers.query("ec2", "DescribeVolumes", &[("VolumeId.1", id)], &absent).await?;
    let attached = described.as_deref().map(|answer| texts(answer, "instanceId")).transpose()?.unwrap_or_default();
    for instance in attached.iter().filter(|instance| Some(*instance) != user) {
        let params = [("VolumeId", id), ("InstanceId", instance.as_str())];
        controllers.query("ec2", "DetachVolume", &params, &["IncorrectState", "InvalidAttachment.NotFound"]).await?;
    }
    if let Some(instance) = user
        && described.is_some()
        && attached.is_empty()
    {
        let params = [("VolumeId", id), ("InstanceId", instance.as_str()), ("Device", "/dev/xvdaa")];
        // A machine that is on its way out takes no volume; its pod is on its way out, too.
        controllers.query("ec2", "AttachVolume", &params, &["IncorrectState", "InvalidInstanceID.NotFound"]).await?;
    }
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let over = phase == Some("Released") || volume.metadata.deletion_timestamp.is_some();
    if over && policy == Some("Delete") {
        controllers.query("ec2", "DeleteVolume", &[("VolumeId", id)], &absent).await?;
        let volumes: Api<PersistentVolume> = Api::all(controllers.client.clone());
        let name = volume.name_any();
        volumes.delete(&name, &DeleteParams::default()).await?;
        let others: Vec<_> = volume.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let released = json!({ "metadata": { "finalizers": others } });
        volumes.patch(&name, &PatchParams::default(), &Patch::Merge(released)).await?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_whole_gibibytes_or_an_error() {
        assert_eq!(gibibytes("4Gi").unwrap(), 4);
        assert!(gibibytes("4000Mi").unwrap_err().to_string().contains("say it in Gi"));
    }

    #[test]
    fn only_the_drivers_volumes_are_followed() {
        let volume = |driver: &str| -> PersistentVolume {
            serde_json::from_value(json!({ "spec": { "csi": { "driver": driver, "volumeHandle": "vol-1" } } })).unwrap()
        };
        assert_eq!(disk(&volume(DRIVER)), Some("vol-1"));
        assert_eq!(disk(&volume("efs.csi.aws.com")), None);
    }
}
