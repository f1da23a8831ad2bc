//! A cluster for tests: a real control plane whose EC2 and IAM are a few canned answers.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{Api, PostParams};
use serde_json::json;
use slipway_local::gateway::call::{Answer, Call, Dispatch};
use slipway_local::kubernetes::{
    ControlPlane, ControlPlanes as _, NewControlPlane, NodeAuthority, RealControlPlanes, RealControlPlanesConfig,
};
use slipway_states::clock::ScaledClock;

/// EC2 and IAM, as far as machines ask them.
pub struct Cloud {
    /// Number, instance profile.
    pub instances: Mutex<Vec<(u8, &'static str)>>,
}

impl Cloud {
    fn instance(number: u8, profile: &str) -> String {
        format!(
            "<item><instanceId>i-{number}</instanceId><instanceType>t4g.medium</instanceType>\
             <privateDnsName>ip-10-20-0-{number}.eu-west-1.compute.internal</privateDnsName>\
             <privateIpAddress>10.20.0.{number}</privateIpAddress>\
             <placement><availabilityZone>eu-west-1a</availabilityZone></placement>\
             <iamInstanceProfile><arn>arn:aws:iam::111122223333:instance-profile/{profile}</arn></iamInstanceProfile>\
             <tagSet><item><key>eks:cluster-name</key><value>demo</value></item>\
             <item><key>eks:nodegroup-name</key><value>core</value></item></tagSet></item>"
        )
    }
}

#[async_trait]
impl Dispatch for Cloud {
    async fn dispatch(&self, call: Call) -> Answer {
        let body = String::from_utf8_lossy(&call.body).into_owned();
        let answer = match call.action.as_str() {
            "DescribeInstances" => {
                let instances = self.instances.lock().unwrap();
                let items: String = instances.iter().map(|(number, profile)| Self::instance(*number, profile)).collect();
                format!("<r><reservationSet><item><instancesSet>{items}</instancesSet></item></reservationSet></r>")
            }
            "DescribeInstanceTypes" => "<r><instanceTypeSet><item><instanceType>t4g.medium</instanceType>\
                 <processorInfo><supportedArchitectures><item>arm64</item></supportedArchitectures></processorInfo>\
                 <vCpuInfo><defaultVCpus>2</defaultVCpus></vCpuInfo><memoryInfo><sizeInMiB>4096</sizeInMiB></memoryInfo>\
                 <networkInfo><maximumNetworkInterfaces>3</maximumNetworkInterfaces>\
                 <ipv4AddressesPerInterface>6</ipv4AddressesPerInterface></networkInfo></item></instanceTypeSet></r>"
                .to_owned(),
            "GetInstanceProfile" => {
                let name = if body.contains("stranger") { "stranger" } else { "core" };
                format!("<r><Roles><member><Arn>arn:aws:iam::111122223333:role/{name}</Arn></member></Roles></r>")
            }
            "DescribeInstanceAttribute" => "<r><userData/></r>".to_owned(),
            other => panic!("nobody expected {other}"),
        };
        Answer { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::from(answer), error_code: None }
    }
}

#[async_trait]
impl NodeAuthority for Cloud {
    async fn may_join(&self, _account: &str, _region: &str, _cluster: &str, role_arn: &str) -> bool {
        role_arn.ends_with("role/core")
    }
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/slipway");
    let cache = std::env::var_os("SLIPWAY_CACHE").map_or_else(home, PathBuf::from);
    assert!(cache.join("bin/kube-apiserver").exists(), "no control plane in {}: run make setup", cache.display());
    cache
}

/// Asks until there is something, for at most two minutes: seconds on an idle machine.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let found = tokio::time::timeout(Duration::from_mins(2), async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Processes whose arguments name the folder.
pub fn processes_of(dir: &Path) -> Vec<String> {
    let needle = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(&needle)).collect()
}

/// A running cluster `demo` with two machines, and a third whose role may not join.
pub struct Cluster {
    pub cloud: Arc<Cloud>,
    pub planes: Arc<RealControlPlanes>,
    pub plane: ControlPlane,
}

impl Cluster {
    /// Starts it with its files in `dir`; its processes get `aws_endpoint`.
    pub async fn start(dir: &Path, aws_endpoint: &str) -> Self {
        let cloud = Arc::new(Cloud { instances: Mutex::new(vec![(5, "core"), (6, "core"), (7, "stranger")]) });
        let planes = RealControlPlanes::new(RealControlPlanesConfig {
            cache: cache(),
            dir: dir.to_owned(),
            clock: ScaledClock::new(60.0),
            gateway: cloud.clone(),
            aws_endpoint: aws_endpoint.to_owned(),
        });
        let authority: Arc<dyn NodeAuthority> = cloud.clone();
        planes.set_authority(Arc::downgrade(&authority));
        let plane = planes
            .start(NewControlPlane {
                account: "111122223333".to_owned(),
                region: "eu-west-1".to_owned(),
                name: "demo".to_owned(),
                id: "ABC".to_owned(),
                version: "1.36".to_owned(),
                service_cidr: "172.20.0.0/16".to_owned(),
                issuer: "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC".to_owned(),
                token_webhook_url: "http://127.0.0.1:9/".to_owned(),
            })
            .await
            .unwrap();
        Self { cloud, planes, plane }
    }

    /// What EKS's add-on `vpc-cni` brings: without it no node is ready.
    pub async fn install_network_plugin(&self) {
        let plugins: Api<DaemonSet> = Api::namespaced(self.plane.admin.clone(), "kube-system");
        plugins.create(&PostParams::default(), &network_plugin()).await.unwrap();
    }

    /// Stops it, as EKS would.
    pub async fn stop(&self) {
        self.planes.stop("111122223333", "eu-west-1", "demo").await;
    }
}

fn network_plugin() -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": { "name": "aws-node" },
        "spec": {
            "selector": { "matchLabels": { "k8s-app": "aws-node" } },
            "template": {
                "metadata": { "labels": { "k8s-app": "aws-node" } },
                "spec": {
                    "hostNetwork": true,
                    "tolerations": [{ "operator": "Exists" }],
                    "initContainers": [{ "name": "init", "image": "amazon-k8s-cni-init" }],
                    "containers": [{ "name": "aws-node", "image": "amazon-k8s-cni" }],
                },
            },
        },
    }))
    .unwrap()
}
