//! SSM's public parameters for node images; every other parameter is the emulator's.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use super::images::{self, Family, Image};
use crate::gateway::call::{Answer, AwsError, Call, Service};
use crate::gateway::wire;

/// Public parameters in front of an emulator.
pub struct Ssm {
    rest: Arc<dyn Service>,
    parameters: Vec<(String, String)>,
}

const OURS: [&str; 2] = ["/aws/service/eks/optimized-ami/", "/aws/service/bottlerocket/"];

impl Ssm {
    /// Public parameters in front of `rest`.
    #[must_use]
    pub fn new(rest: Arc<dyn Service>) -> Arc<Self> {
        let parameters = images::all().iter().flat_map(parameters).collect();
        Arc::new(Self { rest, parameters })
    }

    fn find(&self, region: &str, name: &str) -> Option<Value> {
        let (name, value) = self.parameters.iter().find(|(known, _)| known == name)?;
        Some(parameter(region, name, value))
    }

    /// Ours are answered here, the others' answer is added.
    async fn get_parameters(&self, call: Call, body: &Value) -> Answer {
        let names: Vec<&str> = body["Names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let (ours, others): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|name| is_ours(name));
        let mut answer = json!({"Parameters": [], "InvalidParameters": []});
        if !others.is_empty() {
            let mut rest = call.clone();
            let mut asked = body.clone();
            asked["Names"] = json!(others);
            rest.body = Bytes::from(asked.to_string());
            let answered = self.rest.handle(rest).await;
            if wire::error_of(&answered).is_some() {
                return answered;
            }
            answer = serde_json::from_slice(&answered.body).unwrap_or(answer);
        }
        for name in ours {
            let (list, value) = match self.find(&call.region, name) {
                Some(found) => ("Parameters", found),
                None => ("InvalidParameters", name.into()),
            };
            if let Some(list) = answer[list].as_array_mut() {
                list.push(value);
            }
        }
        wire::json_answer(&call, &answer)
    }

    /// Those below a path, ten to a page as on AWS.
    fn by_path(&self, region: &str, body: &Value) -> Value {
        let path = format!("{}/", body["Path"].as_str().unwrap_or("").trim_end_matches('/'));
        let recursive = body["Recursive"].as_bool().unwrap_or(false);
        let below = self
            .parameters
            .iter()
            .filter(|(name, _)| name.strip_prefix(&path).is_some_and(|rest| recursive || !rest.contains('/')));
        let size = usize::try_from(body["MaxResults"].as_u64().unwrap_or(10)).unwrap_or(10).clamp(1, 10);
        let from: usize = body["NextToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
        let below: Vec<Value> = below.map(|(name, value)| parameter(region, name, value)).collect();
        let page: Vec<&Value> = below.iter().skip(from).take(size).collect();
        let mut answer = json!({"Parameters": page});
        if from + size < below.len() {
            answer["NextToken"] = json!((from + size).to_string());
        }
        answer
    }
}

#[async_trait]
impl Service for Ssm {
    async fn handle(&self, call: Call) -> Answer {
        let body = match wire::json_body(&call) {
            Ok(body) => body,
            Err(refusal) => return wire::refuse(&call, &refusal),
        };
        let named = |name: &str| body[name].as_str().is_some_and(is_ours);
        match call.action.as_str() {
            "GetParameter" if named("Name") => match self.find(&call.region, body["Name"].as_str().unwrap_or("")) {
                Some(found) => wire::json_answer(&call, &json!({"Parameter": found})),
                None => wire::refuse(&call, &AwsError::new(400, "ParameterNotFound", "")),
            },
            "GetParameters" => self.get_parameters(call, &body).await,
            "GetParametersByPath" if named("Path") => wire::json_answer(&call, &self.by_path(&call.region, &body)),
            _ => self.rest.handle(call).await,
        }
    }
}

fn is_ours(name: &str) -> bool {
    OURS.iter().any(|prefix| name.starts_with(prefix))
}

fn parameter(region: &str, name: &str, value: &str) -> Value {
    json!({
        "ARN": format!("arn:aws:ssm:{region}::parameter{name}"),
        "DataType": "text",
        "LastModifiedDate": 1_794_334_867.0,
        "Name": name,
        "Type": "String",
        "Value": value,
        "Version": 1,
    })
}

/// The parameters of an image, under `recommended` / `latest` and under its own version.
fn parameters(image: &Image) -> Vec<(String, String)> {
    let Image { id, architecture, kubernetes, name, release, .. } = image;
    let mut parameters = Vec::new();
    match image.family {
        Family::Al2023 => {
            let base = format!("/aws/service/eks/optimized-ami/{kubernetes}/amazon-linux-2023/{architecture}/standard");
            for version in ["recommended", name] {
                let base = format!("{base}/{version}");
                let whole =
                    json!({"schema_version": "2", "image_id": id, "image_name": name, "release_version": release});
                parameters.push((format!("{base}/image_id"), id.clone()));
                parameters.push((format!("{base}/image_name"), name.clone()));
                parameters.push((format!("{base}/release_version"), release.clone()));
                parameters.push((base, whole.to_string()));
            }
        }
        Family::Bottlerocket => {
            for version in ["latest", release] {
                let base = format!("/aws/service/bottlerocket/aws-k8s-{kubernetes}/{architecture}/{version}");
                parameters.push((format!("{base}/image_id"), id.clone()));
                parameters.push((format!("{base}/image_version"), release.clone()));
            }
        }
    }
    parameters
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::gateway::call::Principal;

    struct Rest;

    #[async_trait]
    impl Service for Rest {
        async fn handle(&self, call: Call) -> Answer {
            let body = wire::json_body(&call).unwrap();
            wire::json_answer(&call, &json!({"Parameters": [], "InvalidParameters": body["Names"]}))
        }
    }

    async fn ask(action: &str, body: &Value) -> Result<Value, AwsError> {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-target", HeaderValue::from_str(&format!("AmazonSSM.{action}")).unwrap());
        let call = Call {
            request_id: wire::request_id(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal: Principal::service("eks.amazonaws.com", "111122223333"),
            service: "ssm".into(),
            action: action.into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers,
            body: body.to_string().into(),
        };
        let answer = Ssm::new(Arc::new(Rest)).handle(call).await;
        match wire::error_of(&answer) {
            Some(error) => Err(error),
            None => Ok(serde_json::from_slice(&answer.body).unwrap()),
        }
    }

    const ARM: &str = "/aws/service/eks/optimized-ami/1.36/amazon-linux-2023/arm64/standard/recommended/image_id";

    #[tokio::test]
    async fn an_image_is_found_by_version_and_architecture() {
        let found = ask("GetParameter", &json!({"Name": ARM})).await.unwrap();
        let image = images::all()
            .into_iter()
            .find(|image| (image.family, image.architecture, image.kubernetes) == (Family::Al2023, "arm64", "1.36"));
        assert_eq!(found["Parameter"]["Value"], image.unwrap().id);
        let bottlerocket = "/aws/service/bottlerocket/aws-k8s-1.36/x86_64/latest/image_version";
        assert_eq!(ask("GetParameter", &json!({"Name": bottlerocket})).await.unwrap()["Parameter"]["Value"], "1.50.0");
        let unknown = ask("GetParameter", &json!({"Name": ARM.replace("1.36", "1.20")})).await.unwrap_err();
        assert_eq!(unknown.code, "ParameterNotFound");
    }

    #[tokio::test]
    async fn ours_and_others_are_answered_together() {
        let answer =
            ask("GetParameters", &json!({"Names": ["/mine", ARM, "/aws/service/bottlerocket/x"]})).await.unwrap();
        assert_eq!(answer["Parameters"][0]["Name"], ARM);
        assert_eq!(answer["InvalidParameters"], json!(["/mine", "/aws/service/bottlerocket/x"]));
    }

    #[tokio::test]
    async fn a_path_is_paged() {
        let path = json!({"Path": "/aws/service/eks/optimized-ami/1.36", "Recursive": true});
        let first = ask("GetParametersByPath", &path).await.unwrap();
        assert_eq!(first["Parameters"].as_array().unwrap().len(), 10);
        let mut next = path;
        next["NextToken"] = first["NextToken"].clone();
        let second = ask("GetParametersByPath", &next).await.unwrap();
        assert_eq!(second["Parameters"].as_array().unwrap().len(), 6);
        assert_eq!(second.get("NextToken"), None);
    }
}
