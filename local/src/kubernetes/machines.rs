//! Machines: what EC2 runs for a cluster becomes a node of it, and what EC2 ends goes silent.
//!
//! An instance belongs to a cluster by its tags (`kubernetes.io/cluster/<name>=owned` or `eks:cluster-name=<name>`),
//! boots for a while, and joins if EKS lets its role in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use roxmltree::{Document, Node};
use serde::Deserialize;
use slipway_states::clock::ScaledClock;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::NodeAuthority;
use super::agent::Agent;
use crate::gateway::call::Aws;

/// How often EC2 is asked, real time.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// From launch to the kubelet's registration, simulated time.
const BOOT: Duration = Duration::from_secs(30);

/// How soon a machine that may not join asks again, real time.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A machine that may become a node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    /// Its node's name: the private DNS name that EC2 gave it.
    pub(crate) node: String,
    pub(crate) instance: String,
    /// The role in its instance profile.
    pub(crate) role_arn: String,
    pub(crate) private_ip: String,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) kind: Arc<InstanceType>,
    /// What the kubelet was told to register with, beside what it knows by itself.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
}

/// An instance type, as far as a kubelet notices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InstanceType {
    pub(crate) name: String,
    /// `amd64` or `arm64`.
    pub(crate) architecture: &'static str,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) interfaces: u32,
    pub(crate) addresses_per_interface: u32,
}

impl Machine {
    /// All that the machine has.
    pub(crate) fn capacity(&self) -> BTreeMap<String, Quantity> {
        resources(u64::from(self.kind.vcpus) * 1000, self.kind.usable_memory_mib(), self.kind.max_pods())
    }

    /// What is left for pods. The reservations are those of the EKS AMI (awslabs/amazon-eks-ami, `nodeadm`): memory
    /// 255 MiB + 11 MiB a pod and 100 MiB before eviction; of the cores 6 %, 1 %, twice 0.5 %, 0.25 % of the rest.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let (vcpus, pods) = (u64::from(self.kind.vcpus), self.kind.max_pods());
        let reserved_hundredths: u64 = (0..vcpus)
            .map(|core| match core {
                0 => 6000,
                1 => 1000,
                2 | 3 => 500,
                _ => 250,
            })
            .sum();
        let reserved_mib = 255 + 11 * u64::from(pods) + 100;
        resources(
            vcpus * 1000 - reserved_hundredths / 100,
            self.kind.usable_memory_mib().saturating_sub(reserved_mib),
            pods,
        )
    }
}

fn resources(millicores: u64, memory_mib: u64, pods: u32) -> BTreeMap<String, Quantity> {
    [
        ("cpu", format!("{millicores}m")),
        ("memory", format!("{memory_mib}Mi")),
        ("pods", pods.to_string()),
        ("ephemeral-storage", "20Gi".to_owned()),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .into()
}

impl InstanceType {
    /// The hypervisor and the kernel keep some 7 %; Karpenter reckons with 7.5 % unless told otherwise.
    fn usable_memory_mib(&self) -> u64 {
        self.memory_mib * 93 / 100
    }

    /// What the VPC's addresses allow: every interface's first address is its own; two pods use the host's network.
    fn max_pods(&self) -> u32 {
        self.interfaces * self.addresses_per_interface.saturating_sub(1) + 2
    }
}

/// Instance types, asked for once: one answer of EC2's takes seconds here.
#[derive(Debug, Default)]
pub(crate) struct InstanceTypes {
    known: Mutex<HashMap<String, Arc<InstanceType>>>,
}

impl InstanceTypes {
    async fn get(&self, aws: &Aws, name: &str) -> anyhow::Result<Arc<InstanceType>> {
        let mut known = self.known.lock().await;
        if let Some(kind) = known.get(name) {
            return Ok(kind.clone());
        }
        let answer = aws.query("ec2", "DescribeInstanceTypes", &[("InstanceType.1", name)]).await?;
        let kind = Arc::new(instance_type(&answer, name).with_context(|| format!("instance type {name}"))?);
        known.insert(name.to_owned(), kind.clone());
        Ok(kind)
    }
}

/// The machines of one cluster.
pub(crate) struct Machines {
    pub(crate) aws: Aws,
    pub(crate) cluster: String,
    pub(crate) clock: ScaledClock,
    pub(crate) types: Arc<InstanceTypes>,
    pub(crate) authority: Weak<dyn NodeAuthority>,
    pub(crate) agent: Agent,
}

/// What is known of an instance that was seen.
#[derive(Debug)]
enum Stage {
    Booting {
        until: Instant,
    },
    /// Its role has no access entry, which was logged. A kubelet goes on asking.
    Refused {
        ask_again: Instant,
    },
    Joined {
        node: String,
    },
}

impl Machines {
    /// Looks at EC2 for as long as it is polled.
    pub(crate) async fn run(self) {
        let mut stages: HashMap<String, Stage> = HashMap::new();
        let mut silent: HashSet<String> = HashSet::new();
        let mut last_error = String::new();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.look(&mut stages, &mut silent).await {
                Ok(()) => last_error.clear(),
                // Once, not twice a second.
                Err(error) if format!("{error:#}") == last_error => {}
                Err(error) => {
                    last_error = format!("{error:#}");
                    tracing::warn!(cluster = self.cluster, error = last_error, "cannot see the cluster's machines");
                }
            }
        }
    }

    async fn look(&self, stages: &mut HashMap<String, Stage>, silent: &mut HashSet<String>) -> anyhow::Result<()> {
        let running = self.running().await?;
        let gone: Vec<String> = stages.keys().filter(|id| !running.contains_key(*id)).cloned().collect();
        for id in gone {
            if let Some(Stage::Joined { node }) = stages.remove(&id) {
                tracing::info!(cluster = self.cluster, instance = id, node, "a machine is gone");
                self.agent.leave(&node);
                silent.insert(node);
            }
        }
        for (id, instance) in running {
            let stage = stages
                .entry(id.clone())
                .or_insert_with(|| Stage::Booting { until: Instant::now() + self.clock.real(BOOT) });
            match stage {
                Stage::Joined { .. } => continue,
                Stage::Booting { until: time } | Stage::Refused { ask_again: time } if Instant::now() < *time => {
                    continue;
                }
                Stage::Booting { .. } | Stage::Refused { .. } => {}
            }
            let role = match self.may_join(&instance).await? {
                Ok(role) => role,
                Err(reason) => {
                    if !matches!(stage, Stage::Refused { .. }) {
                        tracing::warn!(cluster = self.cluster, instance = id, reason, "a machine may not join");
                    }
                    *stage = Stage::Refused { ask_again: Instant::now() + ASK_AGAIN };
                    continue;
                }
            };
            let kind = self.types.get(&self.aws, &instance.kind).await?;
            let machine = instance.into_machine(&self.aws.region, kind, role, self.user_data(&id).await?.as_deref());
            let node = machine.node.clone();
            self.agent.join(machine).await.with_context(|| format!("node {node}"))?;
            tracing::info!(cluster = self.cluster, instance = id, node, "a machine has joined");
            silent.remove(&node);
            *stage = Stage::Joined { node };
        }
        self.agent.remove_nodes_without_machine(silent).await
    }

    /// The cluster's instances that exist and are not on their way out, by id.
    async fn running(&self) -> anyhow::Result<BTreeMap<String, Instance>> {
        let owned = format!("kubernetes.io/cluster/{}", self.cluster);
        let mut instances = BTreeMap::new();
        let mut token = String::new();
        loop {
            let mut params = vec![
                ("MaxResults", "200"),
                ("Filter.1.Name", "tag-key"),
                ("Filter.1.Value.1", owned.as_str()),
                ("Filter.1.Value.2", "eks:cluster-name"),
                ("Filter.2.Name", "instance-state-name"),
                ("Filter.2.Value.1", "running"),
            ];
            if !token.is_empty() {
                params.push(("NextToken", token.as_str()));
            }
            let answer = self.aws.query("ec2", "DescribeInstances", &params).await?;
            let document = Document::parse(&answer)?;
            for item in items(document.root_element(), "instancesSet") {
                let instance = Instance::read(item).ok_or_else(|| anyhow!("an instance lacks what EC2 always says"))?;
                if instance.belongs_to(&self.cluster) {
                    instances.insert(instance.id.clone(), instance);
                }
            }
            token = text(document.root_element(), "nextToken").unwrap_or_default();
            if token.is_empty() {
                return Ok(instances);
            }
        }
    }

    /// The instance's role, if EKS lets it in, or why not.
    async fn may_join(&self, instance: &Instance) -> anyhow::Result<Result<String, String>> {
        let Some(profile) = &instance.profile else { return Ok(Err("it has no instance profile".to_owned())) };
        let name = profile.rsplit('/').next().unwrap_or(profile);
        let answer = self.aws.query("iam", "GetInstanceProfile", &[("InstanceProfileName", name)]).await;
        let answer = match answer {
            Err(error) if error.code == "NoSuchEntity" => return Ok(Err(format!("instance profile {name} is gone"))),
            answer => answer?,
        };
        let document = Document::parse(&answer)?;
        let role = items(document.root_element(), "Roles").next().and_then(|role| text(role, "Arn"));
        let Some(role) = role else { return Ok(Err(format!("instance profile {name} has no role"))) };
        let Some(authority) = self.authority.upgrade() else { return Ok(Err("EKS is not there".to_owned())) };
        let (account, region) = (&self.aws.account, &self.aws.region);
        if authority.may_join(account, region, &self.cluster, &role).await {
            Ok(Ok(role))
        } else {
            Ok(Err(format!("{role} has no access entry of type EC2_LINUX")))
        }
    }

    async fn user_data(&self, instance: &str) -> anyhow::Result<Option<String>> {
        let params = [("InstanceId", instance), ("Attribute", "userData")];
        let answer = self.aws.query("ec2", "DescribeInstanceAttribute", &params).await?;
        let document = Document::parse(&answer)?;
        let data = document.descendants().find(|node| node.tag_name().name() == "userData");
        Ok(data.and_then(|data| text(data, "value")))
    }
}

/// An instance as EC2 describes it.
#[derive(Debug)]
struct Instance {
    id: String,
    kind: String,
    zone: String,
    private_dns: String,
    private_ip: String,
    profile: Option<String>,
    tags: BTreeMap<String, String>,
}

impl Instance {
    fn read(item: Node<'_, '_>) -> Option<Self> {
        let id = text(item, "instanceId")?;
        let placement = child(item, "placement")?;
        let tags = child(item, "tagSet").into_iter().flat_map(|tags| tags.children());
        Some(Self {
            kind: text(item, "instanceType")?,
            zone: text(placement, "availabilityZone")?,
            private_dns: text(item, "privateDnsName")?,
            private_ip: text(item, "privateIpAddress")?,
            profile: child(item, "iamInstanceProfile").and_then(|profile| text(profile, "arn")),
            tags: tags.filter_map(|tag| Some((text(tag, "key")?, text(tag, "value").unwrap_or_default()))).collect(),
            id,
        })
    }

    fn belongs_to(&self, cluster: &str) -> bool {
        let tag = |key: &str| self.tags.get(key).map(String::as_str);
        tag(&format!("kubernetes.io/cluster/{cluster}")) == Some("owned") || tag("eks:cluster-name") == Some(cluster)
    }

    fn into_machine(self, region: &str, kind: Arc<InstanceType>, role_arn: String, user_data: Option<&str>) -> Machine {
        let (labels, taints) = kubelet_registration(&self.tags, user_data);
        Machine {
            node: self.private_dns,
            instance: self.id,
            role_arn,
            private_ip: self.private_ip,
            region: region.to_owned(),
            zone: self.zone,
            kind,
            labels,
            taints,
        }
    }
}

/// The labels and taints that a kubelet is told to register with: by the `NodeConfig` in the user data (nodeadm's
/// form, which Karpenter and managed node groups write for AL2023), and by the tags for user data of other forms.
fn kubelet_registration(
    tags: &BTreeMap<String, String>,
    user_data: Option<&str>,
) -> (BTreeMap<String, String>, Vec<Taint>) {
    let (mut labels, mut taints): (BTreeMap<String, String>, Vec<Taint>) =
        user_data.and_then(node_config).map_or_else(Default::default, |kubelet| {
            let flags = kubelet.flags.iter().filter_map(|flag| flag.strip_prefix("--node-labels="));
            let pairs =
                flags.flat_map(|list| list.trim_matches('"').split(',')).filter_map(|pair| pair.split_once('='));
            let labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            (labels, kubelet.config.register_with_taints)
        });
    let mut label = |key: &str, value: &str| {
        labels.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    };
    if let Some(group) = tags.get("eks:nodegroup-name") {
        label("eks.amazonaws.com/nodegroup", group);
        label("eks.amazonaws.com/capacityType", "ON_DEMAND");
    }
    if let Some(pool) = tags.get("karpenter.sh/nodepool") {
        label("karpenter.sh/nodepool", pool);
        if !taints.iter().any(|taint| taint.key == "karpenter.sh/unregistered") {
            taints.push(Taint {
                key: "karpenter.sh/unregistered".to_owned(),
                effect: "NoExecute".to_owned(),
                ..Taint::default()
            });
        }
    }
    (labels, taints)
}

#[derive(Debug, Default, Deserialize)]
struct NodeConfig {
    spec: NodeConfigSpec,
}

#[derive(Debug, Default, Deserialize)]
struct NodeConfigSpec {
    #[serde(default)]
    kubelet: KubeletOptions,
}

#[derive(Debug, Default, Deserialize)]
struct KubeletOptions {
    #[serde(default)]
    config: KubeletConfiguration,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KubeletConfiguration {
    #[serde(default)]
    register_with_taints: Vec<Taint>,
}

/// The kubelet's part of a `NodeConfig` in base64, bare or as one part of a MIME message.
fn node_config(user_data: &str) -> Option<KubeletOptions> {
    let decoded = BASE64_STANDARD.decode(user_data.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let parts = text.split("\n--").filter(|part| part.contains("kind: NodeConfig"));
    let mut configs = parts.filter_map(|part| {
        let start = part.find("apiVersion: node.eks.aws/")?;
        serde_saphyr::from_str::<NodeConfig>(&part[start..]).ok()
    });
    configs.next().map(|config| config.spec.kubelet)
}

fn instance_type(answer: &str, name: &str) -> anyhow::Result<InstanceType> {
    let document = Document::parse(answer)?;
    let mut found = items(document.root_element(), "instanceTypeSet");
    let item = found.next().ok_or_else(|| anyhow!("EC2 does not know it"))?;
    let number = |parent: &str, field: &str| -> anyhow::Result<u64> {
        let value = child(item, parent).and_then(|parent| text(parent, field));
        let value = value.ok_or_else(|| anyhow!("EC2's description has no {field}"))?;
        Ok(value.parse()?)
    };
    let arm = child(item, "processorInfo")
        .and_then(|processor| child(processor, "supportedArchitectures"))
        .is_some_and(|list| list.children().any(|one| one.text() == Some("arm64")));
    Ok(InstanceType {
        name: name.to_owned(),
        architecture: if arm { "arm64" } else { "amd64" },
        vcpus: number("vCpuInfo", "defaultVCpus")?.try_into()?,
        memory_mib: number("memoryInfo", "sizeInMiB")?,
        interfaces: number("networkInfo", "maximumNetworkInterfaces")?.try_into()?,
        addresses_per_interface: number("networkInfo", "ipv4AddressesPerInterface")?.try_into()?,
    })
}

/// The members of every list with this name.
fn items<'a, 'input>(root: Node<'a, 'input>, list: &'static str) -> impl Iterator<Item = Node<'a, 'input>> {
    let lists = root.descendants().filter(move |node| node.tag_name().name() == list);
    lists.flat_map(|list| list.children().filter(|node| matches!(node.tag_name().name(), "item" | "member")))
}

fn child<'a, 'input>(parent: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    parent.children().find(|node| node.tag_name().name() == name)
}

fn text(parent: Node<'_, '_>, name: &str) -> Option<String> {
    child(parent, name).and_then(|node| node.text()).map(str::to_owned).filter(|text| !text.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn t4g_medium() -> Arc<InstanceType> {
        Arc::new(InstanceType {
            name: "t4g.medium".to_owned(),
            architecture: "arm64",
            vcpus: 2,
            memory_mib: 4096,
            interfaces: 3,
            addresses_per_interface: 6,
        })
    }

    #[test]
    fn a_node_offers_what_its_instance_type_leaves_to_pods() {
        let machine = Instance::read(Document::parse(INSTANCE).unwrap().root_element()).unwrap().into_machine(
            "eu-west-1",
            t4g_medium(),
            "arn:aws:iam::111122223333:role/core".to_owned(),
            None,
        );
        assert_eq!(machine.capacity()["pods"].0, "17");
        assert_eq!(machine.allocatable()["cpu"].0, "1930m");
        assert_eq!(machine.allocatable()["memory"].0, "3267Mi");
    }

    #[test]
    fn user_data_of_karpenter_says_labels_and_taints() {
        let user_data = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"//\"\n\n--//\n\
            Content-Type: application/node.eks.aws\n\n# Karpenter Generated NodeConfig\n\
            apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nmetadata: {}\nspec:\n  kubelet:\n    config:\n      \
            maxPods: 58\n      registerWithTaints:\n      - effect: NoExecute\n        \
            key: karpenter.sh/unregistered\n    flags:\n    - --node-labels=\"a/b=c,karpenter.sh/nodepool=x86\"\n--//--\n";
        let tags = [("karpenter.sh/nodepool".to_owned(), "x86".to_owned())].into();
        let (labels, taints) = kubelet_registration(&tags, Some(&BASE64_STANDARD.encode(user_data)));
        assert_eq!(labels["a/b"], "c");
        assert_eq!(labels["karpenter.sh/nodepool"], "x86");
        assert_eq!(taints.len(), 1);
        let (_, without) = kubelet_registration(&tags, None);
        assert_eq!(without, taints);
    }

    #[test]
    fn an_instance_belongs_to_the_cluster_that_its_tags_name() {
        let document = Document::parse(INSTANCE).unwrap();
        let instance = Instance::read(document.root_element()).unwrap();
        assert!(instance.belongs_to("demo"));
        assert!(!instance.belongs_to("other"));
        assert_eq!(kubelet_registration(&instance.tags, None).0["eks.amazonaws.com/nodegroup"], "core");
    }

    const INSTANCE: &str = "<item><instanceId>i-1</instanceId><instanceType>t4g.medium</instanceType>\
        <placement><availabilityZone>eu-west-1a</availabilityZone></placement>\
        <privateDnsName>ip-10-20-0-5.eu-west-1.compute.internal</privateDnsName>\
        <privateIpAddress>10.20.0.5</privateIpAddress>\
        <iamInstanceProfile><arn>arn:aws:iam::111122223333:instance-profile/eks-core</arn></iamInstanceProfile>\
        <tagSet><item><key>eks:cluster-name</key><value>demo</value></item>\
        <item><key>eks:nodegroup-name</key><value>core</value></item></tagSet></item>";
}
