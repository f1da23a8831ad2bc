//! Service Quotas: the limits that a new cluster meets, at AWS's defaults.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::gateway::call::{Answer, AwsError, Call, Service};
use crate::gateway::wire;

/// The service.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quotas;

/// One quota. Values are counts; vCPUs for the two instance quotas.
struct Quota {
    service: &'static str,
    code: &'static str,
    name: &'static str,
    default: f64,
    /// What this account has been given. `None`, as for most quotas in most accounts, makes GetServiceQuota say
    /// that there is no such resource.
    applied: Option<f64>,
}

const fn quota(service: &'static str, code: &'static str, name: &'static str, default: f64) -> Quota {
    Quota { service, code, name, default, applied: None }
}

const fn applied(mut quota: Quota, value: f64) -> Quota {
    quota.applied = Some(value);
    quota
}

const QUOTAS: [Quota; 20] = [
    quota("vpc", "L-F678F1CE", "VPCs per Region", 5.0),
    quota("vpc", "L-A4707A72", "Internet gateways per Region", 5.0),
    quota("vpc", "L-FE5A380F", "NAT gateways per Availability Zone", 5.0),
    quota("vpc", "L-407747CB", "Subnets per VPC", 200.0),
    quota("vpc", "L-589F43AA", "Route tables per VPC", 200.0),
    quota("vpc", "L-B4A6D682", "Network ACLs per VPC", 200.0),
    quota("vpc", "L-E79EC296", "VPC security groups per Region", 2500.0),
    quota("vpc", "L-1B52E74A", "Gateway VPC endpoints per Region", 20.0),
    quota("ec2", "L-0263D0A3", "EC2-VPC Elastic IPs", 5.0),
    applied(quota("ec2", "L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 5.0), 640.0),
    applied(quota("ec2", "L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 5.0), 640.0),
    quota("eks", "L-1194D53C", "Clusters", 100.0),
    quota("eks", "L-6D54EA21", "Managed node groups per cluster", 30.0),
    quota("eks", "L-BD136A63", "Nodes per managed node group", 450.0),
    quota("events", "L-244521F2", "Number of rules", 300.0),
    quota("iam", "L-FE177D64", "Roles per account", 1000.0),
    quota("iam", "L-E95E4862", "Customer managed policies per account", 1500.0),
    quota("iam", "L-0DA4ABF3", "Managed policies per role", 10.0),
    quota("iam", "L-6E65F664", "Instance profiles per account", 1000.0),
    quota("iam", "L-858F3967", "OpenId connect providers per account", 100.0),
];

#[async_trait]
impl Service for Quotas {
    async fn handle(&self, call: Call) -> Answer {
        let answered = wire::json_body(&call).and_then(|body| answer(&call, &body));
        match answered {
            Ok(body) => wire::json_answer(&call, &body),
            Err(refusal) => wire::refuse(&call, &refusal),
        }
    }
}

fn answer(call: &Call, body: &Value) -> Result<Value, AwsError> {
    let service = body["ServiceCode"].as_str().unwrap_or("");
    let known: Vec<&Quota> =
        QUOTAS.iter().filter(|quota| quota.service == service && is_in(quota, &call.region)).collect();
    if known.is_empty() {
        return Err(no_such("The request failed because the specified service does not exist."));
    }
    let find = || {
        let code = body["QuotaCode"].as_str().unwrap_or("");
        let found = known.iter().find(|quota| quota.code == code);
        found.ok_or_else(|| no_such("The request failed because the specified quota does not exist."))
    };
    match call.action.as_str() {
        "ListServiceQuotas" => Ok(list(call, &known, body, |quota| quota.applied.unwrap_or(quota.default))),
        "ListAWSDefaultServiceQuotas" => Ok(list(call, &known, body, |quota| quota.default)),
        "GetServiceQuota" => {
            let quota = find()?;
            let value =
                quota.applied.ok_or_else(|| no_such("The request failed because the quota has no applied value."))?;
            Ok(json!({"Quota": described(call, quota, value)}))
        }
        "GetAWSDefaultServiceQuota" => {
            let quota = find()?;
            Ok(json!({"Quota": described(call, quota, quota.default)}))
        }
        action => Err(AwsError::new(
            400,
            "UnknownOperationException",
            format!("The local cloud's Service Quotas has no {action}."),
        )),
    }
}

/// IAM is global: its quotas exist in us-east-1 only.
fn is_in(quota: &Quota, region: &str) -> bool {
    quota.service != "iam" || region == "us-east-1"
}

fn no_such(message: &str) -> AwsError {
    AwsError::new(400, "NoSuchResourceException", message)
}

fn list(call: &Call, known: &[&Quota], body: &Value, value: impl Fn(&Quota) -> f64) -> Value {
    let size = usize::try_from(body["MaxResults"].as_u64().unwrap_or(100)).unwrap_or(100).clamp(1, 100);
    let from: usize = body["NextToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
    let page: Vec<Value> =
        known.iter().skip(from).take(size).map(|quota| described(call, quota, value(quota))).collect();
    let mut answer = json!({"Quotas": page});
    if from + size < known.len() {
        answer["NextToken"] = json!((from + size).to_string());
    }
    answer
}

fn described(call: &Call, quota: &Quota, value: f64) -> Value {
    let Quota { service, code, name, .. } = quota;
    let global = *service == "iam";
    let region = if global { "" } else { &call.region };
    json!({
        "ServiceCode": service,
        "ServiceName": service_name(service),
        "QuotaArn": format!("arn:aws:servicequotas:{region}:{}:{service}/{code}", call.account),
        "QuotaCode": code,
        "QuotaName": name,
        "Value": value,
        "Unit": "None",
        "Adjustable": true,
        "GlobalQuota": global,
    })
}

fn service_name(service: &str) -> &'static str {
    match service {
        "vpc" => "Amazon Virtual Private Cloud (Amazon VPC)",
        "ec2" => "Amazon Elastic Compute Cloud (Amazon EC2)",
        "eks" => "Amazon Elastic Kubernetes Service (Amazon EKS)",
        "events" => "Amazon EventBridge (CloudWatch Events)",
        _ => "AWS Identity and Access Management (IAM)",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderMap, Method};

    use super::*;
    use crate::gateway::call::Principal;

    fn ask(region: &str, action: &str, body: &Value) -> Result<Value, AwsError> {
        let call = Call {
            request_id: wire::request_id(),
            account: "111122223333".into(),
            region: region.into(),
            principal: Principal::service("slipway", "111122223333"),
            service: "servicequotas".into(),
            action: action.into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers: HeaderMap::new(),
            body: bytes::Bytes::new(),
        };
        answer(&call, body)
    }

    #[test]
    fn a_quota_without_an_applied_value_is_no_resource() {
        let vpcs = json!({"ServiceCode": "vpc", "QuotaCode": "L-F678F1CE"});
        assert_eq!(ask("eu-west-1", "GetServiceQuota", &vpcs).unwrap_err().code, "NoSuchResourceException");
        let default = ask("eu-west-1", "GetAWSDefaultServiceQuota", &vpcs).unwrap();
        assert_eq!(default["Quota"]["Value"], 5.0);
        let vcpus = json!({"ServiceCode": "ec2", "QuotaCode": "L-1216C47A"});
        assert_eq!(ask("eu-west-1", "GetServiceQuota", &vcpus).unwrap()["Quota"]["Value"], 640.0);
    }

    #[test]
    fn iams_quotas_are_in_one_region() {
        let iam = json!({"ServiceCode": "iam"});
        assert_eq!(ask("eu-west-1", "ListServiceQuotas", &iam).unwrap_err().code, "NoSuchResourceException");
        assert_eq!(ask("us-east-1", "ListServiceQuotas", &iam).unwrap()["Quotas"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn lists_are_paged() {
        let first = ask("eu-west-1", "ListServiceQuotas", &json!({"ServiceCode": "vpc", "MaxResults": 5})).unwrap();
        assert_eq!(first["Quotas"].as_array().unwrap().len(), 5);
        let next = json!({"ServiceCode": "vpc", "MaxResults": 5, "NextToken": first["NextToken"]});
        let second = ask("eu-west-1", "ListServiceQuotas", &next).unwrap();
        assert_eq!((second["Quotas"].as_array().unwrap().len(), second.get("NextToken")), (3, None));
    }
}
