//! Pod Identity from the association to an AWS call: a real process, the agent of its node, EKS Auth, STS, EC2.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use http::Method;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, LogParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use slipway_local::cloud::{ACCOUNT, Cloud, CloudConfig, Kubernetes, REGION};
use slipway_local::gateway::call::{Aws, AwsError};
use slipway_local::gateway::wire;

use crate::common::eventually;

/// The administrator of a cloud with one cluster.
struct Admin {
    cloud: Cloud,
    aws: Aws,
}

impl Admin {
    async fn start() -> Self {
        let config = CloudConfig { speed: 240.0, ..CloudConfig::new(Kubernetes::Real).unwrap() };
        let cloud = Cloud::start(config).await.unwrap();
        let mut aws = cloud.gateway().client("x", ACCOUNT, REGION);
        aws.principal.arn = format!("arn:aws:iam::{ACCOUNT}:user/admin");
        Self { cloud, aws }
    }

    async fn eks(&self, action: &str, method: Method, path: &str, body: Value) -> Result<Value, AwsError> {
        wire::send_rest_json(&self.aws, "eks", action, method, path, &body).await
    }

    /// Asks again for as long as EKS has not heard of a role.
    async fn create(&self, action: &str, path: &str, body: &Value) -> Value {
        eventually(action, || async {
            match self.eks(action, Method::POST, path, body.clone()).await {
                Ok(made) => Some(made),
                Err(refusal) => {
                    assert_eq!(refusal.code, "InvalidParameterException", "{refusal}");
                    None
                }
            }
        })
        .await
    }

    async fn until_active(&self, path: &str, shape: &str) -> Value {
        eventually(path, || async {
            let view = self.eks("Describe", Method::GET, path, Value::Null).await.unwrap()[shape].take();
            assert!(!view["status"].as_str().unwrap().ends_with("FAILED"), "{view}");
            (view["status"] == "ACTIVE").then_some(view)
        })
        .await
    }

    async fn query(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> String {
        self.aws.query(service, action, parameters).await.unwrap()
    }

    async fn role(&self, name: &str, service: &str, actions: &Value, policies: &[&str]) -> String {
        let trust = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions,
            "Principal": {"Service": service}}]});
        let named = [("RoleName", name), ("AssumeRolePolicyDocument", &trust.to_string())];
        self.query("iam", "CreateRole", &named).await;
        for policy in policies {
            let arn = format!("arn:aws:iam::aws:policy/{policy}");
            self.query("iam", "AttachRolePolicy", &[("RoleName", name), ("PolicyArn", &arn)]).await;
        }
        format!("arn:aws:iam::{ACCOUNT}:role/{name}")
    }

    /// A cluster `demo` with a node group, the VPC's plugin and the Pod Identity agent.
    async fn cluster(&self) -> kube::Client {
        let assume = json!("sts:AssumeRole");
        let cluster = self.role("cluster", "eks.amazonaws.com", &assume, &["AmazonEKSClusterPolicy"]).await;
        let node = self.role("node", "ec2.amazonaws.com", &assume, &["AmazonEKSWorkerNodePolicy"]).await;
        let vpc = text(&self.query("ec2", "CreateVpc", &[("CidrBlock", "10.20.0.0/16")]).await, "vpcId");
        let mut subnets = Vec::new();
        for (zone, cidr) in [("eu-west-1a", "10.20.0.0/20"), ("eu-west-1b", "10.20.16.0/20")] {
            let parameters = [("VpcId", vpc.as_str()), ("CidrBlock", cidr), ("AvailabilityZone", zone)];
            subnets.push(text(&self.query("ec2", "CreateSubnet", &parameters).await, "subnetId"));
        }
        let wish = json!({
            "name": "demo", "roleArn": cluster, "resourcesVpcConfig": {"subnetIds": subnets},
            "accessConfig": {"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": false},
            "bootstrapSelfManagedAddons": false,
        });
        self.create("CreateCluster", "/clusters", &wish).await;
        self.until_active("/clusters/demo", "cluster").await;
        for addon in ["vpc-cni", "eks-pod-identity-agent"] {
            self.create("CreateAddon", "/clusters/demo/addons", &json!({"addonName": addon})).await;
        }
        let group = json!({
            "nodegroupName": "core", "nodeRole": node, "subnets": subnets, "instanceTypes": ["t4g.medium"],
            "scalingConfig": {"minSize": 1, "maxSize": 1, "desiredSize": 1},
        });
        self.create("CreateNodegroup", "/clusters/demo/node-groups", &group).await;
        self.until_active("/clusters/demo/node-groups/core", "nodegroup").await;
        self.until_active("/clusters/demo/addons/eks-pod-identity-agent", "addon").await;
        let kubeconfig = self.cloud.dir().join(format!("clusters/{ACCOUNT}/{REGION}/demo/admin.kubeconfig"));
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }
}

fn text(xml: &str, name: &str) -> String {
    let document = roxmltree::Document::parse(xml).unwrap();
    document.descendants().find(|node| node.tag_name().name() == name).unwrap().text().unwrap().to_owned()
}

/// A pod that runs the real controller, which begins with a call to EC2.
fn controller(name: &str, account: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": account,
            "restartPolicy": "Never",
            "containers": [{
                "name": "controller", "image": "public.ecr.aws/karpenter/controller:1.14.1",
                "env": [{"name": "CLUSTER_NAME", "value": "demo"}, {"name": "AWS_REGION", "value": REGION}],
            }],
        },
    }))
    .unwrap()
}

fn environment(pod: &Pod, name: &str) -> Option<String> {
    let container = &pod.spec.as_ref()?.containers[0];
    container.env.iter().flatten().find(|variable| variable.name == name)?.value.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_associated_pod_calls_aws_as_its_role_and_no_other_does() {
    const ADDRESS: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    let admin = Admin::start().await;
    let client = admin.cluster().await;
    let (pods, accounts): (Api<Pod>, Api<ServiceAccount>) =
        (Api::default_namespaced(client.clone()), Api::default_namespaced(client));
    let mut ids = Vec::new();
    for (account, actions) in [("till", json!(["sts:AssumeRole", "sts:TagSession"])), ("lame", json!("sts:AssumeRole"))]
    {
        let role = admin.role(account, "pods.eks.amazonaws.com", &actions, &["AmazonEC2ReadOnlyAccess"]).await;
        let object = serde_json::from_value(json!({"metadata": {"name": account}})).unwrap();
        accounts.create(&PostParams::default(), &object).await.unwrap();
        let wish = json!({"namespace": "default", "serviceAccount": account, "roleArn": role});
        let made =
            admin.create("CreatePodIdentityAssociation", "/clusters/demo/pod-identity-associations", &wish).await;
        ids.push(made["association"]["associationId"].as_str().unwrap().to_owned());
    }

    // The webhook learns of an association a while later: a pod of before never gets its environment.
    let mut number = 0;
    let pod = eventually("the webhook", || {
        number += 1;
        let name = format!("till-{number}");
        let pods = &pods;
        async move {
            let pod = pods.create(&PostParams::default(), &controller(&name, "till")).await.unwrap();
            environment(&pod, ADDRESS).is_some().then_some(name)
        }
    })
    .await;
    let session = format!("arn:aws:sts::{ACCOUNT}:assumed-role/till/eks-demo-{pod}-");
    eventually("a call by the pod's role", || async {
        let calls = admin.cloud.gateway().record().entries();
        calls.into_iter().find(|call| call.service == "ec2" && call.principal.starts_with(&session))
    })
    .await;
    let asked = admin.cloud.gateway().record().entries();
    let asked = asked.iter().find(|call| call.action == "AssumeRoleForPodIdentity").unwrap();
    assert!(asked.principal.starts_with(&format!("arn:aws:sts::{ACCOUNT}:assumed-role/node/i-")), "{asked:?}");

    // Trust without tags, and an association that is gone by the time the pod asks.
    let path = format!("/clusters/demo/pod-identity-associations/{}", ids[0]);
    for (name, account, words) in [
        ("lame", "lame", "(AccessDeniedException): Unauthorized Exception! EKS does not have permissions"),
        ("late", "till", "(ResourceNotFoundException): No association found"),
    ] {
        let mut wish = controller(name, account);
        if name == "late" {
            // As the webhook would have made it before the association went.
            admin.eks("DeletePodIdentityAssociation", Method::DELETE, &path, Value::Null).await.unwrap();
            let before = pods.get(&pod).await.unwrap().spec.unwrap();
            let spec = wish.spec.as_mut().unwrap();
            let token = |volume: &&k8s_openapi::api::core::v1::Volume| volume.name == "eks-pod-identity-token";
            spec.volumes = Some(before.volumes.iter().flatten().filter(token).cloned().collect());
            spec.containers[0].env.clone_from(&before.containers[0].env);
            let mounts = before.containers[0].volume_mounts.iter().flatten();
            let mounts = mounts.filter(|mount| mount.name == "eks-pod-identity-token").cloned();
            spec.containers[0].volume_mounts = Some(mounts.collect());
        }
        pods.create(&PostParams::default(), &wish).await.unwrap();
        let log = eventually(name, || async {
            let log = pods.logs(name, &LogParams::default()).await.unwrap_or_default();
            log.contains("fault: client").then_some(log)
        })
        .await;
        assert!(log.contains(words), "{log}");
    }
    admin.cloud.stop().await;
}
