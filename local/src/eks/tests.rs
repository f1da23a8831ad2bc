//! EKS against an EC2, IAM and API server of a few lines each: its states, errors, logins and injections.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use slipway_states::clock::ScaledClock;

use super::auth::EksAuth;
use super::model::tests::cache;
use super::state::ClusterId;
use super::{Eks, EksConfig};
use crate::gateway::call::{Answer, Aws, AwsError, Call, Dispatch, Principal, Service};
use crate::gateway::wire;
use crate::kubernetes::{ControlPlane, ControlPlanes, NewControlPlane, NodeAuthority};
use crate::propagation::{Changes, Propagation};
use crate::services::web_token::tests::Issuer;

const ACCOUNT: &str = "111122223333";
const REGION: &str = "eu-west-1";
const ADMIN: &str = "arn:aws:iam::111122223333:role/people/PlatformAdmin";

type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

/// EC2, IAM, SSM and STS, as little as EKS asks of them. Instances become Ready nodes at once.
#[derive(Clone, Default)]
struct Neighbours {
    objects: Objects,
    calls: Arc<Mutex<Vec<(String, String)>>>,
    /// What RunInstances answers instead of instances.
    capacity: Arc<Mutex<Option<AwsError>>>,
    /// Made anew, a role has another id.
    role_generation: Arc<Mutex<u32>>,
}

impl Neighbours {
    fn count(&self, action: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|(_, found)| found == action).count()
    }

    fn role(&self, name: &str) -> Result<String, AwsError> {
        let (path, service) = match name {
            "cluster" => ("", "eks.amazonaws.com"),
            "node" => ("", "ec2.amazonaws.com"),
            "fargate" => ("", "eks-fargate-pods.amazonaws.com"),
            "pod" | "untagged" => ("", "pods.eks.amazonaws.com"),
            "PlatformAdmin" => ("people/", "ec2.amazonaws.com"),
            _ => return Err(AwsError::new(404, "NoSuchEntity", format!("The role with name {name} cannot be found."))),
        };
        let trust = json!({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": {"Service": service}}]});
        let encoded: String = url::form_urlencoded::byte_serialize(trust.to_string().as_bytes()).collect();
        let generation = *self.role_generation.lock().unwrap();
        Ok(format!(
            "<Role><Arn>arn:aws:iam::{ACCOUNT}:role/{path}{name}</Arn><RoleId>AROA{name}{generation}</RoleId>\
             <AssumeRolePolicyDocument>{encoded}</AssumeRolePolicyDocument></Role>"
        ))
    }

    fn subnets(asked: &BTreeMap<String, String>) -> Result<String, AwsError> {
        let items: Result<Vec<String>, AwsError> = wire::list(asked, "SubnetId")
            .iter()
            .map(|id| {
                let (vpc, zone) = match id.as_str() {
                    "subnet-a" | "subnet-a2" => ("vpc-1", "a"),
                    "subnet-b" => ("vpc-1", "b"),
                    "subnet-far" => ("vpc-2", "c"),
                    _ => {
                        let message = format!("The subnet ID '{id}' does not exist");
                        return Err(AwsError::new(400, "InvalidSubnetID.NotFound", message));
                    }
                };
                Ok(format!(
                    "<item><subnetId>{id}</subnetId><vpcId>{vpc}</vpcId>\
                     <availabilityZone>{REGION}{zone}</availabilityZone>\
                     <availabilityZoneId>euw1-az{zone}</availabilityZoneId></item>"
                ))
            })
            .collect();
        Ok(format!("<subnetSet>{}</subnetSet>", items?.concat()))
    }

    fn run_instances(&self, asked: &BTreeMap<String, String>) -> Result<String, AwsError> {
        if let Some(refusal) = self.capacity.lock().unwrap().clone() {
            return Err(refusal);
        }
        let mut objects = self.objects.lock().unwrap();
        let tag = |key: &str| {
            (1..9).find_map(|n| {
                let found = asked.get(&format!("TagSpecification.1.Tag.{n}.Key"))? == key;
                found.then(|| asked.get(&format!("TagSpecification.1.Tag.{n}.Value")).cloned())?
            })
        };
        assert_eq!(tag("kubernetes.io/cluster/demo").as_deref(), Some("owned"));
        let count: usize = asked["MaxCount"].parse().unwrap();
        let ids: Vec<String> = (0..count)
            .map(|_| {
                let id = format!("i-{}", objects.len());
                objects.insert(format!("instance/{id}"), json!({"subnet": asked["SubnetId"]}));
                let node = json!({
                    "metadata": {"name": id, "labels": {"eks.amazonaws.com/nodegroup": tag("eks:nodegroup-name")}},
                    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
                });
                objects.insert(format!("/api/v1/nodes/{id}"), node);
                format!("<item><instanceId>{id}</instanceId></item>")
            })
            .collect();
        Ok(format!("<instancesSet>{}</instancesSet>", ids.concat()))
    }

    fn instances(&self) -> String {
        let objects = self.objects.lock().unwrap();
        let instances = objects.iter().filter_map(|(key, value)| Some((key.strip_prefix("instance/")?, value)));
        let items: Vec<String> = instances
            .map(|(id, value)| {
                let subnet = value["subnet"].as_str().unwrap();
                format!("<item><instanceId>{id}</instanceId><subnetId>{subnet}</subnetId></item>")
            })
            .collect();
        format!("<reservationSet><item><instancesSet>{}</instancesSet></item></reservationSet>", items.concat())
    }

    fn answer(&self, call: &Call) -> Result<Answer, AwsError> {
        let asked = wire::parameters(call);
        let xml = match call.action.as_str() {
            "GetRole" => self.role(&asked["RoleName"])?,
            "DescribeSubnets" => Self::subnets(&asked)?,
            "DescribeVpcs" => "<vpcSet><item><cidrBlock>10.20.0.0/16</cidrBlock></item></vpcSet>".to_owned(),
            "CreateSecurityGroup" => "<groupId>sg-1</groupId>".to_owned(),
            "DescribeInstanceTypes" => {
                let types = wire::list(&asked, "InstanceType");
                let items = types.iter().map(|kind| {
                    let architecture = if kind.starts_with("t4g") { "arm64" } else { "x86_64" };
                    format!(
                        "<item><instanceType>{kind}</instanceType><processorInfo><supportedArchitectures>\
                         <item>{architecture}</item></supportedArchitectures></processorInfo></item>"
                    )
                });
                format!("<instanceTypeSet>{}</instanceTypeSet>", items.collect::<String>())
            }
            "GetParameter" => {
                return Ok(wire::json_answer(call, &json!({"Parameter": {"Value": "ami-1"}})));
            }
            "RunInstances" => self.run_instances(&asked)?,
            "DescribeInstances" => self.instances(),
            "TerminateInstances" => {
                for id in wire::list(&asked, "InstanceId") {
                    self.objects.lock().unwrap().remove(&format!("instance/{id}"));
                    self.objects.lock().unwrap().remove(&format!("/api/v1/nodes/{id}"));
                }
                String::new()
            }
            "AssumeRole" => {
                assert_eq!(call.principal.arn, "pods.eks.amazonaws.com");
                assert!(asked.values().any(|value| value == "kubernetes-pod-uid"), "{asked:?}");
                if !asked["RoleArn"].ends_with("role/pod") {
                    return Err(AwsError::new(403, "AccessDenied", "not authorized to perform: sts:AssumeRole"));
                }
                format!(
                    "<AssumedRoleUser><Arn>arn:aws:sts::{ACCOUNT}:assumed-role/pod/{}</Arn>\
                     <AssumedRoleId>AROApod:x</AssumedRoleId></AssumedRoleUser><Credentials>\
                     <AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
                     <SessionToken>t</SessionToken><Expiration>2027-01-15T08:00:00Z</Expiration></Credentials>",
                    asked["RoleSessionName"]
                )
            }
            "GetCallerIdentity" => {
                assert_eq!(call.headers["x-k8s-aws-id"], "demo");
                assert!(call.uri.query().unwrap().contains("X-Amz-Signature"));
                format!(
                    "<Arn>arn:aws:sts::{ACCOUNT}:assumed-role/PlatformAdmin/ann</Arn><UserId>AROA1:ann</UserId>\
                     <Account>{ACCOUNT}</Account>"
                )
            }
            _ => String::new(),
        };
        Ok(wire::query_answer(call, &xml))
    }
}

#[async_trait::async_trait]
impl Dispatch for Neighbours {
    async fn dispatch(&self, call: Call) -> Answer {
        self.calls.lock().unwrap().push((call.service.clone(), call.action.clone()));
        self.answer(&call).unwrap_or_else(|refusal| wire::refuse(&call, &refusal))
    }
}

/// Control planes that are only an API server that stores what it gets and rolls it out at once.
#[async_trait::async_trait]
impl ControlPlanes for Neighbours {
    async fn start(&self, cluster: NewControlPlane) -> anyhow::Result<ControlPlane> {
        anyhow::ensure!(cluster.name != "broken", "etcd ended with exit code 1");
        let objects = self.objects.clone();
        objects.lock().unwrap().insert("token webhook".to_owned(), json!(cluster.token_webhook_url));
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let objects = objects.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (status, answer) = serve(&objects, &parts.method, parts.uri.path(), &body);
                let answer = http::Response::builder().status(status).body(Full::new(Bytes::from(answer.to_string())));
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        Ok(ControlPlane {
            url: "https://127.0.0.1:1".to_owned(),
            certificate_authority_pem: "PEM".to_owned(),
            jwks: json!({"keys": []}),
            admin: kube::Client::new(service, "default"),
            dir: "/nowhere".into(),
        })
    }

    async fn stop(&self, _account: &str, _region: &str, _name: &str) {
        self.objects.lock().unwrap().clear();
    }
}

fn serve(objects: &Objects, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
    let mut objects = objects.lock().unwrap();
    match *method {
        Method::PATCH => {
            let mut object: Value = serde_json::from_slice(body).unwrap();
            object["metadata"]["generation"] = json!(1);
            let replicas = object["spec"]["replicas"].clone();
            object["status"] = json!({"observedGeneration": 1, "readyReplicas": replicas,
                "desiredNumberScheduled": 2, "numberReady": 2});
            objects.insert(path.to_owned(), object.clone());
            (StatusCode::OK, object)
        }
        Method::GET if path == "/api/v1/nodes" => {
            let nodes = objects.iter().filter(|(path, _)| path.starts_with("/api/v1/nodes/")).map(|(_, node)| node);
            (StatusCode::OK, json!({"items": nodes.collect::<Vec<_>>()}))
        }
        Method::GET if objects.contains_key(path) => (StatusCode::OK, objects[path].clone()),
        _ => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
                "message": "not found", "code": 404, "metadata": {}});
            (StatusCode::NOT_FOUND, status)
        }
    }
}

/// A cloud of nothing but EKS and its neighbours. 9 simulated minutes pass in 54 ms.
struct Cloud {
    eks: Arc<Eks>,
    neighbours: Neighbours,
    changes: Arc<Changes>,
}

impl Cloud {
    fn new() -> Self {
        Self::hearing(Propagation::none())
    }

    /// Where what is written down as changed is not heard of while a test runs.
    fn deaf() -> Self {
        Self::hearing(Propagation { seed: 1, shortest: Duration::from_hours(1), longest: Duration::from_hours(1) })
    }

    fn hearing(propagation: Propagation) -> Self {
        let neighbours = Neighbours::default();
        let aws = Aws {
            gateway: Arc::new(neighbours.clone()),
            account: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
            principal: Principal::service("eks.amazonaws.com", ACCOUNT),
        };
        let changes = Arc::new(Changes::new(propagation, ScaledClock::new(1.0)));
        let config = EksConfig {
            aws,
            clock: ScaledClock::new(10_000.0),
            cache: cache(),
            control_planes: Arc::new(neighbours.clone()),
            changes: Arc::clone(&changes),
            page_size: None,
        };
        Self { eks: Eks::new(config).unwrap(), neighbours, changes }
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value, AwsError> {
        let uri = path.parse().unwrap();
        let call = Call {
            request_id: "r".to_owned(),
            account: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
            principal: Principal {
                arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/PlatformAdmin/ann"),
                account: ACCOUNT.to_owned(),
                role_arn: Some(ADMIN.to_owned()),
                function: None,
                session_policies: None,
            },
            service: "eks".to_owned(),
            action: self.eks.action(&method, &uri).expect("an operation of EKS"),
            method,
            uri,
            headers: HeaderMap::new(),
            body: Bytes::from(body.to_string()),
        };
        let answer = self.eks.handle(call).await;
        wire::error_of(&answer).map_or_else(|| Ok(serde_json::from_slice(&answer.body).unwrap()), Err)
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, &Value::Null).await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        self.call(Method::POST, path, body).await.unwrap()
    }

    async fn refused(&self, method: Method, path: &str, body: &Value) -> AwsError {
        self.call(method, path, body).await.unwrap_err()
    }

    /// Asks until a status is there.
    async fn until(&self, path: &str, shape: &str, status: &str) -> Value {
        for _ in 0..200 {
            let view = self.get(path).await[shape].take();
            if view["status"] == status {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{path} never became {status}: {}", self.get(path).await);
    }

    async fn demo(&self) -> Value {
        self.post("/clusters", &demo()).await;
        self.until("/clusters/demo", "cluster", "ACTIVE").await
    }

    /// What the API server's webhook gets for a token.
    async fn login(&self) -> Value {
        let now = time::UtcDateTime::now();
        let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
        let url = format!(
            "https://sts.{REGION}.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=A\
             &X-Amz-Credential=AKIA%2F1&X-Amz-Date={}&X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id\
             &X-Amz-Signature=0",
            now.format(format).unwrap()
        );
        let token = format!("k8s-aws-v1.{}", URL_SAFE_NO_PAD.encode(url));
        let webhook = self.neighbours.objects.lock().unwrap()["token webhook"].as_str().unwrap().to_owned();
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer = reqwest::Client::builder().no_proxy().build().unwrap().post(webhook).json(&review).send().await;
        answer.unwrap().json::<Value>().await.unwrap()["status"].take()
    }
}

fn demo() -> Value {
    json!({
        "name": "demo",
        "roleArn": format!("arn:aws:iam::{ACCOUNT}:role/cluster"),
        "resourcesVpcConfig": {"subnetIds": ["subnet-a", "subnet-b"], "endpointPrivateAccess": true},
        "accessConfig": {"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": false},
        "bootstrapSelfManagedAddons": false,
        "logging": {"clusterLogging": [{"types": ["api", "audit"], "enabled": true}]},
        "clientRequestToken": "once",
        "tags": {"slipway:cluster": "demo"},
    })
}

fn core() -> Value {
    json!({
        "nodegroupName": "core", "nodeRole": format!("arn:aws:iam::{ACCOUNT}:role/node"),
        "subnets": ["subnet-a", "subnet-b"], "instanceTypes": ["t4g.medium"], "amiType": "AL2023_ARM_64_STANDARD",
        "scalingConfig": {"minSize": 2, "maxSize": 2, "desiredSize": 2}, "clientRequestToken": "once",
    })
}

#[tokio::test]
async fn a_cluster_comes_up_with_what_a_client_needs() {
    let cloud = Cloud::new();
    let made = cloud.post("/clusters", &demo()).await["cluster"].take();
    assert_eq!((made["status"].as_str(), made.get("endpoint")), (Some("CREATING"), None));
    let cluster = cloud.until("/clusters/demo", "cluster", "ACTIVE").await;
    assert_eq!(cluster["version"], "1.36");
    assert_eq!(cluster["kubernetesNetworkConfig"]["serviceIpv4Cidr"], "172.20.0.0/16");
    assert_eq!(cluster["resourcesVpcConfig"]["clusterSecurityGroupId"], "sg-1");
    assert_eq!(cluster["certificateAuthority"]["data"], STANDARD.encode("PEM"));
    assert!(cluster["endpoint"].as_str().unwrap().starts_with("https://127.0.0.1:"));
    let issuer = cluster["identity"]["oidc"]["issuer"].as_str().unwrap();
    let id = issuer.strip_prefix("https://oidc.eks.eu-west-1.amazonaws.com/id/").unwrap();
    assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase()), "{issuer}");
    assert_eq!(cloud.get("/clusters").await, json!({"clusters": ["demo"]}));
    let objects = cloud.neighbours.objects.lock().unwrap().clone();
    let webhook = &objects["/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/pod-identity-webhook"];
    assert!(webhook["webhooks"][0]["clientConfig"]["url"].as_str().unwrap().ends_with("/111122223333/eu-west-1/demo"));
}

#[tokio::test]
async fn the_issuer_is_served_a_while_after_active() {
    let cloud = Cloud::new();
    let cluster = cloud.demo().await;
    let issuer = cluster["identity"]["oidc"]["issuer"].as_str().unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let discovery = format!("{}/.well-known/openid-configuration", issuer.trim_start_matches("https://"));
    assert_eq!(cloud.eks.issuer_document(&discovery).unwrap()["jwks_uri"], format!("{issuer}/keys"));
    assert_eq!(cloud.eks.issuer_keys(issuer), Some(json!({"keys": []})));
    assert_eq!(cloud.eks.issuer_keys("https://oidc.eks.eu-west-1.amazonaws.com/id/OTHER"), None);
}

#[tokio::test]
async fn making_a_cluster_again_needs_the_same_token_and_wish() {
    let cloud = Cloud::new();
    let first = cloud.post("/clusters", &demo()).await;
    assert_eq!(cloud.post("/clusters", &demo()).await["cluster"]["arn"], first["cluster"]["arn"]);
    let mut other = demo();
    other["clientRequestToken"] = json!("twice");
    let taken = cloud.refused(Method::POST, "/clusters", &other).await;
    assert_eq!((taken.status, taken.code.as_str()), (409, "ResourceInUseException"));
    let mut changed = demo();
    changed["version"] = json!("1.35");
    assert_eq!(cloud.refused(Method::POST, "/clusters", &changed).await.code, "InvalidParameterException");
    assert_eq!(cloud.neighbours.count("CreateSecurityGroup"), 1);
}

#[tokio::test]
async fn what_a_cluster_stands_on_is_checked() {
    let cloud = Cloud::new();
    for (member, value, why) in [
        ("roleArn", json!("arn:aws:iam::111122223333:role/nobody"), "could not be assumed"),
        ("roleArn", json!("arn:aws:iam::111122223333:role/node"), "trusted entity is not correct"),
        ("resourcesVpcConfig", json!({"subnetIds": ["subnet-a", "subnet-a2"]}), "at least two different AZs"),
        ("resourcesVpcConfig", json!({"subnetIds": ["subnet-a", "subnet-far"]}), "same VPC"),
        ("resourcesVpcConfig", json!({"subnetIds": ["subnet-a", "subnet-x"]}), "'subnet-x' does not exist"),
        ("version", json!("1.20"), "unsupported Kubernetes version"),
    ] {
        let mut wish = demo();
        wish[member] = value;
        let refused = cloud.refused(Method::POST, "/clusters", &wish).await;
        assert!(refused.code == "InvalidParameterException" && refused.message.contains(why), "{refused}");
    }
    assert_eq!(cloud.refused(Method::GET, "/clusters/demo", &Value::Null).await.code, "ResourceNotFoundException");
}

#[tokio::test]
async fn a_control_plane_that_does_not_start_is_a_failed_cluster() {
    let cloud = Cloud::new();
    let mut wish = demo();
    wish["name"] = json!("broken");
    cloud.post("/clusters", &wish).await;
    let failed = cloud.until("/clusters/broken", "cluster", "FAILED").await;
    assert!(failed["health"]["issues"][0]["message"].as_str().unwrap().contains("etcd ended"));
}

#[tokio::test]
async fn a_cluster_is_updated_one_thing_at_a_time() {
    let cloud = Cloud::new();
    cloud.demo().await;
    let path = "/clusters/demo/update-config";
    let both = json!({"deletionProtection": true, "upgradePolicy": {"supportType": "STANDARD"}});
    assert!(cloud.refused(Method::POST, path, &both).await.message.contains("Only one type"));
    let back = json!({"accessConfig": {"authenticationMode": "CONFIG_MAP"}});
    assert!(cloud.refused(Method::POST, path, &back).await.message.contains("from API to CONFIG_MAP"));
    let same = json!({"logging": {"clusterLogging": [{"types": ["api"], "enabled": true}]}});
    assert!(cloud.refused(Method::POST, path, &same).await.message.contains("No changes needed"));

    let update = cloud.post(path, &json!({"deletionProtection": true})).await["update"].take();
    let id = update["id"].as_str().unwrap();
    let busy = cloud.refused(Method::POST, path, &json!({"deletionProtection": false})).await;
    assert_eq!(busy.code, "ResourceInUseException");
    let ended = cloud.until(&format!("/clusters/demo/updates/{id}"), "update", "Successful").await;
    assert_eq!(ended["type"], "DeletionProtectionUpdate");
    assert_eq!(cloud.get("/clusters/demo/updates").await, json!({"updateIds": [id]}));
    let cluster = cloud.until("/clusters/demo", "cluster", "ACTIVE").await;
    assert_eq!(cluster["deletionProtection"], true);
    let kept = cloud.refused(Method::DELETE, "/clusters/demo", &Value::Null).await;
    assert!(kept.message.contains("deletion protection"), "{kept}");
}

#[tokio::test]
async fn a_node_group_runs_instances_until_their_nodes_are_ready() {
    let cloud = Cloud::new();
    cloud.demo().await;
    let made = cloud.post("/clusters/demo/node-groups", &core()).await;
    assert_eq!(made["nodegroup"]["status"], "CREATING");
    let group = cloud.until("/clusters/demo/node-groups/core", "nodegroup", "ACTIVE").await;
    assert_eq!(group["scalingConfig"]["desiredSize"], 2);
    assert_eq!(cloud.neighbours.count("RunInstances"), 2, "one call a subnet");
    let entry = "/clusters/demo/access-entries/arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Fnode";
    assert_eq!(cloud.get(entry).await["accessEntry"]["type"], "EC2_LINUX");
    let node = format!("arn:aws:iam::{ACCOUNT}:role/node");
    assert!(cloud.eks.may_join(ACCOUNT, REGION, "demo", &node).await);
    assert!(!cloud.eks.may_join(ACCOUNT, REGION, "demo", ADMIN).await);
    let own = json!({"principalArn": node, "type": "EC2_LINUX"});
    let taken = cloud.refused(Method::POST, "/clusters/demo/access-entries", &own).await;
    assert_eq!(taken.code, "ResourceInUseException");

    assert_eq!(cloud.post("/clusters/demo/node-groups", &core()).await["nodegroup"]["status"], "ACTIVE");
    let smaller = json!({"scalingConfig": {"minSize": 1, "desiredSize": 1}});
    cloud.post("/clusters/demo/node-groups/core/update-config", &smaller).await;
    let group = cloud.until("/clusters/demo/node-groups/core", "nodegroup", "ACTIVE").await;
    assert_eq!((&group["scalingConfig"]["desiredSize"], cloud.neighbours.count("TerminateInstances")), (&json!(1), 1));

    assert_eq!(cloud.refused(Method::DELETE, "/clusters/demo", &Value::Null).await.code, "ResourceInUseException");
    cloud.call(Method::DELETE, "/clusters/demo/node-groups/core", &Value::Null).await.unwrap();
    while cloud.get("/clusters/demo/node-groups").await != json!({"nodegroups": []}) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cloud.neighbours.count("DeleteInstanceProfile"), 1);
    cloud.call(Method::DELETE, "/clusters/demo", &Value::Null).await.unwrap();
    while cloud.get("/clusters").await != json!({"clusters": []}) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cloud.neighbours.count("DeleteSecurityGroup"), 1);
}

#[tokio::test]
async fn a_node_group_without_capacity_says_so() {
    let cloud = Cloud::new();
    cloud.demo().await;
    let refusal = AwsError::new(500, "InsufficientInstanceCapacity", "no t4g.medium in eu-west-1a");
    *cloud.neighbours.capacity.lock().unwrap() = Some(refusal);
    cloud.post("/clusters/demo/node-groups", &core()).await;
    let group = cloud.until("/clusters/demo/node-groups/core", "nodegroup", "CREATE_FAILED").await;
    let issue = &group["health"]["issues"][0];
    assert_eq!(issue["code"], "AsgInstanceLaunchFailures");
    assert!(issue["message"].as_str().unwrap().contains("no t4g.medium"), "{issue}");
}

#[tokio::test]
async fn what_a_node_group_stands_on_is_checked() {
    let cloud = Cloud::new();
    cloud.demo().await;
    for (member, value, why) in [
        ("amiType", json!("AL2023_x86_64_STANDARD"), "not a valid instance type"),
        ("nodeRole", json!(format!("arn:aws:iam::{ACCOUNT}:role/cluster")), "[ec2.amazonaws.com] were not found"),
        ("nodeRole", json!(format!("arn:aws:iam::{ACCOUNT}:role/nobody")), "NoSuchEntity"),
        ("subnets", json!(["subnet-far"]), "not in the cluster's VPC"),
        ("scalingConfig", json!({"minSize": 3, "maxSize": 2, "desiredSize": 2}), "can't be greater"),
    ] {
        let mut wish = core();
        wish[member] = value;
        let refused = cloud.refused(Method::POST, "/clusters/demo/node-groups", &wish).await;
        assert!(refused.code == "InvalidParameterException" && refused.message.contains(why), "{refused}");
    }
}

#[tokio::test]
async fn a_role_that_is_seconds_old_is_refused_in_the_words_of_each_operation() {
    let cloud = Cloud::deaf();
    cloud.demo().await;
    let role = |name: &str| format!("arn:aws:iam::{ACCOUNT}:role/{name}");
    let mut second = demo();
    second["name"] = json!("second");
    let association = json!({"namespace": "shop", "serviceAccount": "till", "roleArn": role("pod")});
    let addon = json!({"addonName": "coredns", "serviceAccountRoleArn": role("pod")});
    let asked = [
        ("/clusters", second, "could not be assumed because it does not exist or the trusted entity is not correct"),
        (
            "/clusters/demo/node-groups",
            core(),
            "The role with name node cannot be found. (Service: AmazonIdentityManagement",
        ),
        ("/clusters/demo/access-entries", json!({"principalArn": role("node")}), "invalid principal."),
        ("/clusters/demo/pod-identity-associations", association, "Role provided in the request does not exist."),
        ("/clusters/demo/addons", addon, "Role provided in the request does not exist."),
    ];
    for fresh in ["cluster", "node", "pod"] {
        cloud.changes.record(&role(fresh), None);
    }
    for (path, wish, words) in &asked {
        let refused = cloud.refused(Method::POST, path, wish).await;
        assert_eq!((refused.status, refused.code.as_str()), (400, "InvalidParameterException"), "{refused}");
        assert!(refused.message.contains(words), "{refused}");
    }
}

#[tokio::test]
async fn a_trust_policy_that_was_put_right_just_now_is_still_the_wrong_one() {
    let cloud = Cloud::deaf();
    cloud.demo().await;
    let pod = format!("arn:aws:iam::{ACCOUNT}:role/pod");
    cloud.changes.record(&pod, Some(json!({"Statement": []})));
    let wish = json!({"namespace": "shop", "serviceAccount": "till", "roleArn": pod});
    let refused = cloud.refused(Method::POST, "/clusters/demo/pod-identity-associations", &wish).await;
    assert!(refused.message.starts_with("Trust policy of the role provided is invalid."), "{refused}");
}

#[tokio::test]
async fn addons_are_what_their_roll_out_is() {
    let cloud = Cloud::new();
    cloud.demo().await;
    let versions = cloud.get("/addons/supported-versions?addonName=coredns&kubernetesVersion=1.36").await;
    let default = &versions["addons"][0]["addonVersions"][0];
    assert_eq!(default["compatibilities"][0]["defaultVersion"], true);
    let path = "/clusters/demo/addons";
    let made = cloud.post(path, &json!({"addonName": "coredns"})).await["addon"].take();
    assert_eq!((made["status"].as_str(), &made["addonVersion"]), (Some("CREATING"), &default["addonVersion"]));
    cloud.until("/clusters/demo/addons/coredns", "addon", "ACTIVE").await;
    let deployment = "/apis/apps/v1/namespaces/kube-system/deployments/coredns";
    cloud.neighbours.objects.lock().unwrap().get_mut(deployment).unwrap()["status"]["readyReplicas"] = json!(0);
    let sick = cloud.until("/clusters/demo/addons/coredns", "addon", "DEGRADED").await;
    assert_eq!(sick["health"]["issues"][0]["code"], "InsufficientNumberOfReplicas");

    let other = json!({"addonVersion": "v1.12.4-eksbuild.1"});
    let update = cloud.post("/clusters/demo/addons/coredns/update", &other).await["update"].take();
    let healthy = cloud.until("/clusters/demo/addons/coredns", "addon", "ACTIVE").await;
    assert_eq!(healthy["addonVersion"], "v1.12.4-eksbuild.1");
    let asked = format!("/clusters/demo/updates/{}?addonName=coredns", update["id"].as_str().unwrap());
    assert_eq!(cloud.get(&asked).await["update"]["status"], "Successful");

    let unknown = cloud.refused(Method::POST, path, &json!({"addonName": "coredns2"})).await;
    assert_eq!(unknown.code, "InvalidParameterException");
    let version = json!({"addonName": "kube-proxy", "addonVersion": "v1.20.0-eksbuild.1"});
    assert!(cloud.refused(Method::POST, path, &version).await.message.contains("not supported"));
    assert_eq!(
        cloud.refused(Method::POST, path, &json!({"addonName": "coredns"})).await.code,
        "ResourceInUseException"
    );
}

#[tokio::test]
async fn fargate_profiles_go_one_at_a_time_and_before_their_cluster() {
    let cloud = Cloud::new();
    cloud.demo().await;
    let path = "/clusters/demo/fargate-profiles";
    let role = format!("arn:aws:iam::{ACCOUNT}:role/fargate");
    let wish =
        |name: &str, role: &str| json!({"fargateProfileName": name, "podExecutionRoleArn": role, "selectors": []});
    let pods = format!("arn:aws:iam::{ACCOUNT}:role/pod");
    assert!(cloud.refused(Method::POST, path, &wish("one", &pods)).await.message.contains("eks-fargate-pods"));
    let made = cloud.post(path, &wish("one", &role)).await["fargateProfile"].take();
    assert_eq!((made["status"].as_str(), made["subnets"].as_array().map(Vec::len)), (Some("CREATING"), Some(2)));
    let second = cloud.refused(Method::POST, path, &wish("two", &role)).await;
    assert!(second.message.ends_with("currently has Fargate profile one in status CREATING"), "{second}");
    cloud.until(&format!("{path}/one"), "fargateProfile", "ACTIVE").await;
    cloud.post(path, &wish("two", &role)).await;
    cloud.until(&format!("{path}/two"), "fargateProfile", "ACTIVE").await;
    assert_eq!(cloud.get(path).await["fargateProfileNames"], json!(["one", "two"]));

    let held = cloud.refused(Method::DELETE, "/clusters/demo", &Value::Null).await;
    assert_eq!((held.code.as_str(), held.message.contains("Fargate Profiles")), ("ResourceInUseException", true));
    let going = cloud.call(Method::DELETE, &format!("{path}/one"), &Value::Null).await.unwrap();
    assert_eq!(going["fargateProfile"]["status"], "DELETING");
    let busy = cloud.refused(Method::DELETE, &format!("{path}/two"), &Value::Null).await;
    assert!(busy.message.ends_with("currently has Fargate profile one in status DELETING"), "{busy}");
}

#[tokio::test]
async fn logins_are_what_access_entries_say() {
    let cloud = Cloud::new();
    cloud.demo().await;
    assert!(cloud.login().await["error"].as_str().unwrap().contains("no access entry"));

    let entry = "/clusters/demo/access-entries/arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Fpeople%2FPlatformAdmin";
    cloud.post("/clusters/demo/access-entries", &json!({"principalArn": ADMIN, "kubernetesGroups": ["ops"]})).await;
    let policy = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy";
    let wish = json!({"policyArn": policy, "accessScope": {"type": "cluster"}});
    cloud.post(&format!("{entry}/access-policies"), &wish).await;
    let status = cloud.login().await;
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["user"]["username"], "arn:aws:sts::111122223333:assumed-role/PlatformAdmin/ann");
    assert_eq!(status["user"]["groups"], json!(["ops", "system:masters"]));
    let listed = cloud.get(&format!("{entry}/access-policies")).await;
    assert_eq!(listed["associatedAccessPolicies"][0]["policyArn"], policy);

    *cloud.neighbours.role_generation.lock().unwrap() = 1;
    let dead = cloud.login().await;
    assert!(dead["error"].as_str().unwrap().contains("older than the principal"), "{dead}");

    let nobody = json!({"principalArn": "arn:aws:iam::111122223333:role/nobody"});
    let refused = cloud.refused(Method::POST, "/clusters/demo/access-entries", &nobody).await;
    assert!(refused.message.contains("invalid principal"), "{refused}");
    cloud.call(Method::DELETE, entry, &Value::Null).await.unwrap();
    assert_eq!(cloud.login().await["authenticated"], false);
}

#[tokio::test]
async fn a_creator_becomes_admin_where_nobody_says_no() {
    let cloud = Cloud::new();
    let mut wish = demo();
    wish["accessConfig"] = json!({"authenticationMode": "API"});
    cloud.post("/clusters", &wish).await;
    cloud.until("/clusters/demo", "cluster", "ACTIVE").await;
    assert_eq!(cloud.get("/clusters/demo/access-entries").await, json!({"accessEntries": [ADMIN]}));
    assert_eq!(cloud.login().await["user"]["groups"], json!(["system:masters"]));
}

#[tokio::test]
async fn pods_get_the_identity_of_their_service_account() {
    let cloud = Cloud::new();
    cloud.demo().await;
    let account = json!({"metadata": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}}});
    let path = "/api/v1/namespaces/shop/serviceaccounts/till";
    cloud.neighbours.objects.lock().unwrap().insert(path.to_owned(), account);
    let admitted = async |account: &str| {
        let review = json!({"request": {"uid": "u", "namespace": "shop",
            "object": {"spec": {"serviceAccountName": account, "containers": [{"name": "c"}]}}}});
        let configuration = cloud.neighbours.objects.lock().unwrap()
            ["/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/pod-identity-webhook"]["webhooks"][0]
            ["clientConfig"]
            .clone();
        let authority = STANDARD.decode(configuration["caBundle"].as_str().unwrap()).unwrap();
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_pem(&authority).unwrap()])
            .build()
            .unwrap();
        let answer = client.post(configuration["url"].as_str().unwrap()).json(&review).send().await.unwrap();
        let response = answer.json::<Value>().await.unwrap()["response"].take();
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u"), &json!(true)));
        response["patch"].as_str().map(|patch| String::from_utf8(STANDARD.decode(patch).unwrap()).unwrap())
    };
    assert!(admitted("till").await.unwrap().contains("AWS_WEB_IDENTITY_TOKEN_FILE"));
    assert_eq!(admitted("default").await, None);

    let wish = json!({"namespace": "shop", "serviceAccount": "till",
        "roleArn": format!("arn:aws:iam::{ACCOUNT}:role/pod")});
    let made = cloud.post("/clusters/demo/pod-identity-associations", &wish).await["association"].take();
    assert!(admitted("till").await.unwrap().contains("AWS_CONTAINER_CREDENTIALS_FULL_URI"));
    let id = made["associationId"].as_str().unwrap();
    let listed = cloud.get("/clusters/demo/pod-identity-associations?namespace=shop").await;
    assert_eq!(listed["associations"][0]["associationId"], id);
    let path = format!("/clusters/demo/pod-identity-associations/{id}");
    cloud.call(Method::DELETE, &path, &Value::Null).await.unwrap();
    assert!(admitted("till").await.unwrap().contains("AWS_WEB_IDENTITY_TOKEN_FILE"));
}

/// What EKS Auth answers to the agent, for a pod of `shop/till` with these claims of its own.
async fn credentials(cloud: &Cloud, issuer: &Issuer, claims: &Value) -> Result<Value, AwsError> {
    let mut all = json!({
        "aud": ["pods.eks.amazonaws.com"],
        "kubernetes.io": {"namespace": "shop", "pod": {"name": "till-1", "uid": "u-1"}, "serviceaccount": {"name": "till"}},
    });
    for (claim, value) in claims.as_object().into_iter().flatten() {
        all[claim] = value.clone();
    }
    let auth = EksAuth::new(Arc::clone(&cloud.eks));
    let uri = "/clusters/demo/assume-role-for-pod-identity".parse().unwrap();
    let call = Call {
        request_id: "r".to_owned(),
        account: ACCOUNT.to_owned(),
        region: REGION.to_owned(),
        principal: Principal::service("x", ACCOUNT),
        service: "eks-auth".to_owned(),
        action: auth.action(&Method::POST, &uri).expect("the operation of EKS Auth"),
        method: Method::POST,
        uri,
        headers: HeaderMap::new(),
        body: Bytes::from(json!({"token": issuer.token(&all)}).to_string()),
    };
    let answer = auth.handle(call).await;
    wire::error_of(&answer).map_or_else(|| Ok(serde_json::from_slice(&answer.body).unwrap()), Err)
}

/// The issuer of a cluster's tokens, with its keys published.
async fn issuer_of(cloud: &Cloud) -> Issuer {
    let cluster = cloud.demo().await;
    let issuer = Issuer::new(cluster["identity"]["oidc"]["issuer"].as_str().unwrap());
    for cluster in cloud.eks.state().clusters.values_mut() {
        cluster.plane.as_mut().unwrap().jwks = issuer.keys();
    }
    issuer
}

fn associate(role: &str) -> Value {
    json!({"namespace": "shop", "serviceAccount": "till", "roleArn": format!("arn:aws:iam::{ACCOUNT}:role/{role}")})
}

#[tokio::test]
async fn an_associated_pod_gets_credentials_for_its_own_token_only() {
    let cloud = Cloud::new();
    let issuer = issuer_of(&cloud).await;
    let none = credentials(&cloud, &issuer, &json!({})).await.unwrap_err();
    assert_eq!((none.status, none.code.as_str()), (404, "ResourceNotFoundException"), "{none}");
    let path = "/clusters/demo/pod-identity-associations";
    let made = cloud.post(path, &associate("pod")).await["association"].take();

    let given = credentials(&cloud, &issuer, &json!({})).await.unwrap();
    assert_eq!(given["podIdentityAssociation"]["associationId"], made["associationId"]);
    assert_eq!(given["subject"], json!({"namespace": "shop", "serviceAccount": "till"}));
    assert_eq!(given["credentials"]["expiration"], 1_800_000_000);
    let session = given["assumedRoleUser"]["arn"].as_str().unwrap();
    assert!(session.starts_with(&format!("arn:aws:sts::{ACCOUNT}:assumed-role/pod/eks-demo-till-1-")), "{session}");

    let other = json!({"namespace": "shop", "pod": {"name": "p", "uid": "u"}, "serviceaccount": {"name": "other"}});
    let unbound = json!({"namespace": "shop", "serviceaccount": {"name": "till"}});
    for (claims, status, code) in [
        (json!({"aud": ["sts.amazonaws.com"]}), 400, "InvalidTokenException"),
        (json!({"exp": 1_700_000_000}), 400, "ExpiredTokenException"),
        (json!({"iss": "https://issuer.example.com"}), 400, "InvalidTokenException"),
        (json!({"kubernetes.io": unbound}), 400, "InvalidTokenException"),
        (json!({"kubernetes.io": other}), 404, "ResourceNotFoundException"),
    ] {
        let refused = credentials(&cloud, &issuer, &claims).await.unwrap_err();
        assert_eq!((refused.status, refused.code.as_str()), (status, code), "{claims}: {refused}");
    }
    let forger = Issuer::new(&format!("https://oidc.eks.{REGION}.amazonaws.com/id/A"));
    assert_eq!(credentials(&cloud, &forger, &json!({})).await.unwrap_err().code, "InvalidTokenException");
}

#[tokio::test]
async fn a_role_whose_trust_lacks_the_pods_gives_them_nothing() {
    let cloud = Cloud::new();
    let issuer = issuer_of(&cloud).await;
    cloud.post("/clusters/demo/pod-identity-associations", &associate("untagged")).await;
    let refused = credentials(&cloud, &issuer, &json!({})).await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (400, "AccessDeniedException"));
    assert_eq!(refused.message, "Unauthorized Exception! EKS does not have permissions to assume the associated role.");
}

#[tokio::test]
async fn a_fresh_association_is_not_known_to_webhook_and_agent() {
    let cloud = Cloud::deaf();
    let issuer = issuer_of(&cloud).await;
    cloud.post("/clusters/demo/pod-identity-associations", &associate("pod")).await;
    assert_eq!(credentials(&cloud, &issuer, &json!({})).await.unwrap_err().code, "ResourceNotFoundException");
    let id = ClusterId { account: ACCOUNT.into(), region: REGION.into(), name: "demo".into() };
    let review = json!({"request": {"uid": "u", "namespace": "shop",
        "object": {"spec": {"serviceAccountName": "till", "containers": [{"name": "c"}]}}}});
    assert!(cloud.eks.admit_pod(&id, &review).await["response"].get("patch").is_none());
}

#[tokio::test]
async fn lists_come_in_pages_and_tags_by_arn() {
    let cloud = Cloud::new();
    let cluster = cloud.demo().await;
    for name in ["vpc-cni", "kube-proxy", "coredns"] {
        cloud.post("/clusters/demo/addons", &json!({"addonName": name})).await;
    }
    let first = cloud.get("/clusters/demo/addons?maxResults=2").await;
    assert_eq!(first["addons"], json!(["coredns", "kube-proxy"]));
    let token = first["nextToken"].as_str().unwrap();
    let second = cloud.get(&format!("/clusters/demo/addons?maxResults=2&nextToken={token}")).await;
    assert_eq!(second, json!({"addons": ["vpc-cni"]}));
    let bogus = cloud.refused(Method::GET, "/clusters/demo/addons?nextToken=x", &Value::Null).await;
    assert_eq!(bogus.code, "InvalidParameterException");
    // What goes between two pages moves nothing.
    for (going, left) in [("coredns", json!(["vpc-cni"])), ("vpc-cni", json!([]))] {
        let path = format!("/clusters/demo/addons/{going}");
        cloud.call(Method::DELETE, &path, &Value::Null).await.unwrap();
        while cloud.call(Method::GET, &path, &Value::Null).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rest = cloud.get(&format!("/clusters/demo/addons?maxResults=2&nextToken={token}")).await;
        assert_eq!(rest, json!({"addons": left}), "without {going}");
    }

    let arn = cluster["arn"].as_str().unwrap().replace(':', "%3A").replace('/', "%2F");
    let tags = format!("/tags/{arn}");
    cloud.post(&tags, &json!({"tags": {"team": "shop"}})).await;
    assert_eq!(cloud.get(&tags).await["tags"], json!({"slipway:cluster": "demo", "team": "shop"}));
    cloud.call(Method::DELETE, &format!("{tags}?tagKeys=team"), &Value::Null).await.unwrap();
    assert_eq!(cloud.get("/clusters/demo").await["cluster"]["tags"], json!({"slipway:cluster": "demo"}));
    let none = cloud.refused(Method::GET, "/tags/arn%3Aaws%3Aeks%3Aeu-west-1%3A1%3Acluster%2Fx", &Value::Null).await;
    assert_eq!(none.code, "NotFoundException");
}

#[tokio::test]
async fn tags_of_awss_own_are_refused_wherever_they_are_asked_for() {
    let cloud = Cloud::new();
    let mut wish = demo();
    wish["tags"] = json!({"aws:owner": "me"});
    let refused = cloud.refused(Method::POST, "/clusters", &wish).await;
    assert_eq!((refused.code.as_str(), refused.status), ("InvalidParameterException", 400), "{refused}");
    let arn = "/tags/arn%3Aaws%3Aeks%3Aeu-west-1%3A111122223333%3Acluster%2Fdemo";
    let refused = cloud.refused(Method::POST, arn, &json!({"tags": {"AWS:x": "1"}})).await;
    assert_eq!(refused.code, "BadRequestException", "{refused}");
    assert!(refused.message.contains("aws: prefixed tag key names"), "{refused}");
}

#[tokio::test]
async fn one_version_is_the_default() {
    let cloud = Cloud::new();
    let all = cloud.get("/cluster-versions").await["clusterVersions"].take();
    assert_eq!(all.as_array().unwrap().len(), 4);
    let default = cloud.get("/cluster-versions?defaultOnly=true").await["clusterVersions"].take();
    assert_eq!(default[0]["clusterVersion"], "1.36");
    assert_eq!(default.as_array().unwrap().len(), 1);
}
