//! Node objects: registered, kept alive by their leases, silent when their machine is gone.

use std::collections::HashSet;

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::super::machines::Machine;
use super::is_status;

/// The kubelet's default: it renews every quarter of it.
pub(super) const LEASE_SECONDS: i32 = 40;

/// The kubelet's words before the network plugin runs.
const NO_NETWORK: &str = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                          message:Network plugin returns error: cni plugin not initialized";

/// Creates the machine's node, if it isn't there. It has no network yet, so it isn't ready.
pub(super) async fn register(
    client: &kube::Client,
    machine: &Machine,
    kubelet_port: u16,
    version: &str,
) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.create(&PostParams::default(), &node(machine)).await {
        Err(error) if is_status(&error, 409) => {}
        outcome => {
            outcome.context("cannot create the node")?;
        }
    }
    report(client, machine, false, kubelet_port, version).await?;
    renew(client, &machine.node).await
}

fn node(machine: &Machine) -> Node {
    let mut labels = machine.labels.clone();
    for (key, value) in [
        ("kubernetes.io/arch", machine.kind.architecture),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/hostname", machine.node.as_str()),
        ("node.kubernetes.io/instance-type", machine.kind.name.as_str()),
        ("topology.kubernetes.io/region", machine.region.as_str()),
        ("topology.kubernetes.io/zone", machine.zone.as_str()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    Node {
        metadata: ObjectMeta { name: Some(machine.node.clone()), labels: Some(labels), ..ObjectMeta::default() },
        spec: Some(NodeSpec {
            provider_id: Some(format!("aws:///{}/{}", machine.zone, machine.instance)),
            taints: Some(machine.taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

/// Says what the node has, and that it is ready if it has a network.
pub(super) async fn report(
    client: &kube::Client,
    machine: &Machine,
    network: bool,
    kubelet_port: u16,
    version: &str,
) -> anyhow::Result<()> {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    let status = json!({ "status": {
        "capacity": machine.capacity(),
        "allocatable": machine.allocatable(),
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            if network {
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status")
            } else {
                condition("Ready", "False", "KubeletNotReady", NO_NETWORK)
            },
        ],
        "addresses": [
            { "type": "InternalIP", "address": machine.private_ip },
            { "type": "InternalDNS", "address": machine.node },
            { "type": "Hostname", "address": machine.node },
            // Where the API server finds the kubelet: see `--kubelet-preferred-address-types`.
            { "type": "ExternalDNS", "address": "localhost" },
        ],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": kubelet_port } },
        "nodeInfo": {
            "architecture": machine.kind.architecture,
            "bootID": machine.instance,
            "containerRuntimeVersion": "slipway://1",
            "kernelVersion": "none",
            "kubeProxyVersion": "",
            "kubeletVersion": version,
            "machineID": machine.instance,
            "operatingSystem": "linux",
            "osImage": "Slipway local machine",
            "systemUUID": machine.instance,
        },
    } });
    let nodes: Api<Node> = Api::all(client.clone());
    nodes
        .patch_status(&machine.node, &PatchParams::default(), &Patch::Strategic(status))
        .await
        .context("cannot report the node's status")?;
    Ok(())
}

/// Renews a node's lease. A node that was deleted has none, and its kubelet doesn't register again.
pub(super) async fn renew(client: &kube::Client, node: &str) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let spec = LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    let patch = Patch::Merge(json!({ "spec": spec }));
    match leases.patch(node, &PatchParams::default(), &patch).await {
        Err(error) if is_status(&error, 404) => {}
        outcome => return outcome.map(|_| ()).context("cannot renew the node's lease"),
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(owner) = nodes.get_opt(node).await? else { return Ok(()) };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: owner.uid().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    };
    leases.create(&PostParams::default(), &lease).await.context("cannot create the node's lease")?;
    Ok(())
}

/// Removes nodes that are not ready and have no machine any more, as the cloud controller manager of EKS does.
pub(super) async fn remove_silent(client: &kube::Client, silent: &mut HashSet<String>) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    for name in silent.clone() {
        let node = nodes.get_opt(&name).await?;
        let conditions =
            node.as_ref().and_then(|node| node.status.as_ref()).and_then(|status| status.conditions.as_ref());
        let ready = conditions
            .is_some_and(|list| list.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"));
        if ready {
            continue;
        }
        if node.is_some() {
            match nodes.delete(&name, &DeleteParams::default()).await {
                Err(error) if !is_status(&error, 404) => return Err(error.into()),
                _ => tracing::info!(node = name, "a node without a machine is removed"),
            }
        }
        silent.remove(&name);
    }
    Ok(())
}
