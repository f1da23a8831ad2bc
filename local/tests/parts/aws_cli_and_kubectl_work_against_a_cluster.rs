//! A cluster made by the ordinary AWS CLI, logged in to by the ordinary kubectl: nodes, add-ons, identities.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_local::cloud::{Cloud, CloudConfig, Kubernetes};
use slipway_local::paths::Paths;
use tokio::process::Command;

struct Person {
    aws: PathBuf,
    kubectl: PathBuf,
    home: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Person {
    fn of(cloud: &Cloud, paths: &Paths) -> Self {
        Self {
            aws: paths.tool("aws").unwrap(),
            kubectl: paths.program("kubectl").unwrap(),
            home: tempfile::tempdir().unwrap(),
            environment: cloud.env(),
        }
    }

    async fn run(&self, program: &PathBuf, arguments: &[&str]) -> Result<Value, String> {
        let folder = self.aws.parent().unwrap().display();
        let output = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().cloned())
            // kubectl calls `aws eks get-token`.
            .env("PATH", format!("{folder}:/usr/bin:/bin"))
            .env("HOME", self.home.path())
            .output()
            .await
            .unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| json!(String::from_utf8_lossy(&output.stdout).trim())))
    }

    /// `aws <words> --output json`
    async fn aws(&self, words: &str) -> Value {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.run(&self.aws, &words).await.unwrap_or_else(|error| panic!("aws {}: {error}", words.join(" ")))
    }

    async fn kubectl(&self, words: &str) -> Result<Value, String> {
        self.run(&self.kubectl, &words.split_whitespace().collect::<Vec<_>>()).await
    }

    async fn role(&self, name: &str, service: &str) -> String {
        let trust = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": service}}
        ]});
        let made = self.aws(&format!("iam create-role --role-name {name} --assume-role-policy-document {trust}")).await;
        made["Role"]["Arn"].as_str().unwrap().to_owned()
    }

    async fn subnet(&self, vpc: &str, cidr: &str, zone: &str) -> String {
        let asked = format!("ec2 create-subnet --vpc-id {vpc} --cidr-block {cidr} --availability-zone {zone}");
        self.aws(&asked).await["Subnet"]["SubnetId"].as_str().unwrap().to_owned()
    }

    /// Asks until a member of the answer has a value.
    async fn until(&self, words: &str, pointer: &str, wanted: &str) -> Value {
        let mut answer = Value::Null;
        for _ in 0..120 {
            answer = self.aws(words).await;
            if answer.pointer(pointer).is_some_and(|found| found == wanted) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("aws {words} never said {wanted}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_makes_and_uses_a_cluster() {
    let config = CloudConfig::new(Kubernetes::Real).unwrap();
    let paths = Paths::new(config.cache.clone());
    let cloud = Cloud::start(config).await.unwrap();
    let person = Person::of(&cloud, &paths);

    let vpc = person.aws("ec2 create-vpc --cidr-block 10.20.0.0/16").await;
    let vpc = vpc["Vpc"]["VpcId"].as_str().unwrap();
    let (one, two) = tokio::join!(
        person.subnet(vpc, "10.20.0.0/20", "eu-west-1a"),
        person.subnet(vpc, "10.20.16.0/20", "eu-west-1b")
    );
    let (control, node) =
        tokio::join!(person.role("control", "eks.amazonaws.com"), person.role("node", "ec2.amazonaws.com"));

    person
        .aws(&format!(
            "eks create-cluster --name demo --role-arn {control} --resources-vpc-config subnetIds={one},{two} \
             --access-config authenticationMode=API"
        ))
        .await;
    person.until("eks describe-cluster --name demo", "/cluster/status", "ACTIVE").await;
    person.aws("eks update-kubeconfig --name demo").await;
    let mut login = Err(String::new());
    for _ in 0..50 {
        login = person.kubectl("auth whoami -o json").await;
        if login.is_ok() {
            break;
        }
        // ACTIVE comes before the endpoint answers.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let who = &login.unwrap()["status"]["userInfo"];
    assert_eq!(who["username"], "arn:aws:iam::111122223333:user/admin");
    assert_eq!(person.kubectl("auth can-i * *").await, Ok(json!("yes")));

    person
        .aws(&format!(
            "eks create-nodegroup --cluster-name demo --nodegroup-name core --node-role {node} --subnets {one} {two} \
             --instance-types t4g.medium --ami-type AL2023_ARM_64_STANDARD --labels team=shop \
             --scaling-config minSize=2,maxSize=2,desiredSize=2"
        ))
        .await;
    person.aws("eks create-addon --cluster-name demo --addon-name coredns").await;
    let group = "eks describe-nodegroup --cluster-name demo --nodegroup-name core";
    person.until(group, "/nodegroup/status", "ACTIVE").await;
    let nodes = person.kubectl("get nodes -l team=shop,eks.amazonaws.com/nodegroup=core -o json").await.unwrap();
    let zones: Vec<&str> = nodes["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str().unwrap())
        .collect();
    assert!(zones.len() == 2 && zones.contains(&"eu-west-1a") && zones.contains(&"eu-west-1b"), "{zones:?}");
    person.until("eks describe-addon --cluster-name demo --addon-name coredns", "/addon/status", "ACTIVE").await;

    person.kubectl("create serviceaccount till").await.unwrap();
    let role = "eks.amazonaws.com/role-arn=arn:aws:iam::111122223333:role/till";
    person.kubectl(&format!("annotate serviceaccount till {role}")).await.unwrap();
    let overrides = r#"--overrides={"spec":{"serviceAccountName":"till"}}"#;
    person.kubectl(&format!("run till --image=busybox {overrides}")).await.unwrap();
    let pod = person.kubectl("get pod till -o json").await.unwrap();
    let container = &pod["spec"]["containers"][0];
    let names: Vec<&Value> = container["env"].as_array().unwrap().iter().map(|variable| &variable["name"]).collect();
    assert!(names.contains(&&json!("AWS_ROLE_ARN")), "{container}");
    assert!(container["volumeMounts"].to_string().contains("eks.amazonaws.com/serviceaccount"), "{container}");

    cloud.stop().await;
}
