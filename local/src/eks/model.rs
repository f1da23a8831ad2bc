//! EKS's own service model, as botocore ships it: which request asks for which operation, what it must carry, and
//! what an answer may carry.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use http::{Method, Uri};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::gateway::call::AwsError;
use crate::gateway::wire;

/// A regular expression as the model writes it, and the same in code.
type Pattern = (&'static str, fn(&str) -> bool);

/// The patterns in the model (version 2017-11-01), each with what it means. EKS matches the whole of a text.
const PATTERNS: [Pattern; 2] =
    [(r"^[0-9A-Za-z][A-Za-z0-9\-_]*", is_name), (r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", is_label)];

/// The operations and shapes of EKS.
#[derive(Debug)]
pub(super) struct Model {
    operations: Vec<Operation>,
    shapes: BTreeMap<String, Shape>,
}

/// One operation: how it is asked for, what it takes and gives.
#[derive(Debug)]
pub(super) struct Operation {
    /// `CreateCluster`
    pub(super) name: String,
    method: Method,
    /// `clusters`, `{name}`, …
    path: Vec<String>,
    input: String,
    output: String,
    errors: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Shape {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    members: BTreeMap<String, Member>,
    member: Option<Member>,
    key: Option<Member>,
    value: Option<Member>,
    min: Option<i64>,
    max: Option<i64>,
    pattern: Option<String>,
    #[serde(rename = "enum")]
    values: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Member {
    shape: String,
    location: Option<String>,
    #[serde(rename = "locationName")]
    location_name: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    operations: BTreeMap<String, OperationDocument>,
    shapes: BTreeMap<String, Shape>,
}

#[derive(Deserialize)]
struct OperationDocument {
    http: HttpDocument,
    input: ShapeName,
    output: ShapeName,
    #[serde(default)]
    errors: Vec<ShapeName>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpDocument {
    method: String,
    request_uri: String,
}

#[derive(Deserialize)]
struct ShapeName {
    shape: String,
}

impl Model {
    /// Reads the model out of the Python environment `cloud` of the cache.
    ///
    /// # Errors
    /// The environment is not there, or its model has something that this reader does not know.
    pub(super) fn read(cache: &Path) -> anyhow::Result<Self> {
        let lib = cache.join("cloud/lib");
        let file = std::fs::read_dir(&lib)
            .with_context(|| format!("{} is missing: run python3 local/setup.py", lib.display()))?
            .filter_map(Result::ok)
            .map(|python| python.path().join("site-packages/botocore/data/eks/2017-11-01/service-2.json.gz"))
            .find(|path| path.exists())
            .with_context(|| format!("botocore is missing under {}: run python3 local/setup.py", lib.display()))?;
        let mut text = String::new();
        flate2::read::GzDecoder::new(std::fs::File::open(&file)?)
            .read_to_string(&mut text)
            .with_context(|| format!("{} is not a gzipped service model", file.display()))?;
        Self::parse(&text).with_context(|| format!("reading {}", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let document: Document = serde_json::from_str(text)?;
        for (name, shape) in &document.shapes {
            let known = |pattern: &&str| PATTERNS.iter().any(|(known, _)| known == pattern);
            if let Some(pattern) = shape.pattern.as_deref().filter(|pattern| !known(pattern)) {
                bail!("shape {name} has the pattern {pattern}, which local/src/eks/model.rs cannot check yet");
            }
        }
        let operations = document
            .operations
            .into_iter()
            .map(|(name, operation)| {
                Ok(Operation {
                    name,
                    method: operation.http.method.parse()?,
                    path: operation
                        .http
                        .request_uri
                        .split('/')
                        .filter(|segment| !segment.is_empty())
                        .map(str::to_owned)
                        .collect(),
                    input: operation.input.shape,
                    output: operation.output.shape,
                    errors: operation.errors.into_iter().map(|error| error.shape).collect(),
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { operations, shapes: document.shapes })
    }

    /// The operation that a request asks for.
    pub(super) fn operation(&self, method: &Method, uri: &Uri) -> Option<&Operation> {
        let segments = wire::path_segments(uri);
        self.operations.iter().find(|operation| {
            operation.method == *method
                && operation.path.len() == segments.len()
                && operation
                    .path
                    .iter()
                    .zip(&segments)
                    .all(|(wanted, found)| wanted.starts_with('{') || wanted == found)
        })
    }

    /// The members of a request, wherever they came from (path, query, body), checked. Members that EKS does not
    /// know are dropped, as EKS does.
    ///
    /// # Errors
    /// The operation's own error for bad parameters, naming the first member that is wrong.
    pub(super) fn input(&self, operation: &Operation, uri: &Uri, body: &Value) -> Result<Value, AwsError> {
        let refuse = |reason: String| AwsError::new(400, operation.bad_parameter(), reason);
        let segments = wire::path_segments(uri);
        let query: Vec<(String, String)> =
            url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()).into_owned().collect();
        let mut input = Map::new();
        let Some(shape) = self.shapes.get(&operation.input) else { return Ok(Value::Object(input)) };
        for (name, member) in &shape.members {
            let wire_name = member.location_name.as_deref().unwrap_or(name);
            let value = match member.location.as_deref() {
                Some("uri") => {
                    let holder = format!("{{{wire_name}}}");
                    let at = operation.path.iter().position(|segment| *segment == holder);
                    at.and_then(|at| segments.get(at)).map(|segment| json!(segment))
                }
                Some("querystring") => self.query_value(&member.shape, wire_name, &query),
                _ => body.get(wire_name).filter(|value| !value.is_null()).cloned(),
            };
            if let Some(value) = value {
                input.insert(name.clone(), value);
            }
        }
        let input = Value::Object(input);
        self.check(&operation.input, &input, "", false).map_err(refuse)?;
        Ok(input)
    }

    /// Whether an answer has only what the model knows, with the types that it says.
    ///
    /// # Errors
    /// What is wrong and where.
    pub(super) fn check_answer(&self, operation: &Operation, answer: &Value) -> Result<(), String> {
        self.check(&operation.output, answer, "", true)
    }

    /// A query string has only text; numbers, booleans and lists are read as their shape says.
    fn query_value(&self, shape: &str, name: &str, query: &[(String, String)]) -> Option<Value> {
        let mut values = query.iter().filter(|(found, _)| found == name).map(|(_, value)| value);
        match self.shapes.get(shape).map(|shape| shape.kind.as_str()) {
            Some("list") => {
                let values: Vec<_> = values.collect();
                (!values.is_empty()).then(|| json!(values))
            }
            Some("integer") => values.next().map(|text| text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n))),
            Some("boolean") => {
                values.next().map(|text| text.parse::<bool>().map_or_else(|_| json!(text), |b| json!(b)))
            }
            _ => values.next().map(|text| json!(text)),
        }
    }

    fn check(&self, name: &str, value: &Value, path: &str, strict: bool) -> Result<(), String> {
        let Some(shape) = self.shapes.get(name) else { return Ok(()) };
        let at = if path.is_empty() { "the request" } else { path };
        let wrong = |rule: String| Err(format!("Value {value} at '{at}' failed to satisfy constraint: {rule}"));
        let within = |size: i64| shape.min.is_none_or(|min| size >= min) && shape.max.is_none_or(|max| size <= max);
        let bounds =
            || format!("{} to {}", shape.min.unwrap_or(0), shape.max.map_or("any".to_owned(), |m| m.to_string()));
        let length = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let inside = |member: &str| if path.is_empty() { member.to_owned() } else { format!("{path}.{member}") };
        match (shape.kind.as_str(), value) {
            ("structure", Value::Object(members)) => {
                if let Some(missing) = shape.required.iter().find(|required| !members.contains_key(*required)) {
                    return wrong(format!("Member '{}' must not be null", inside(missing)));
                }
                for (member, value) in members {
                    match shape.members.get(member) {
                        Some(known) => self.check(&known.shape, value, &inside(member), strict)?,
                        None if strict => return wrong(format!("Member '{}' is not in {name}", inside(member))),
                        None => {}
                    }
                }
                Ok(())
            }
            ("map", Value::Object(entries)) => {
                // An empty map in an answer is an absent one in AWS's Java services.
                if !strict && !within(length(entries.len())) {
                    return wrong(format!("Member must have {} entries", bounds()));
                }
                for (key, value) in entries {
                    if let Some(shape) = &shape.key {
                        self.check(&shape.shape, &json!(key), &inside(key), strict)?;
                    }
                    if let Some(shape) = &shape.value {
                        self.check(&shape.shape, value, &inside(key), strict)?;
                    }
                }
                Ok(())
            }
            ("list", Value::Array(items)) => {
                if !within(length(items.len())) {
                    return wrong(format!("Member must have length {}", bounds()));
                }
                let Some(member) = &shape.member else { return Ok(()) };
                items
                    .iter()
                    .enumerate()
                    .try_for_each(|(index, item)| self.check(&member.shape, item, &format!("{at}.{index}"), strict))
            }
            ("string", Value::String(text)) => {
                if shape.values.as_ref().is_some_and(|values| !values.contains(text)) {
                    let values = shape.values.as_deref().unwrap_or_default().join(", ");
                    return wrong(format!("Member must satisfy enum value set: [{values}]"));
                }
                if !within(length(text.chars().count())) {
                    return wrong(format!("Member must have length {}", bounds()));
                }
                let pattern = PATTERNS.iter().find(|(pattern, _)| shape.pattern.as_deref() == Some(pattern));
                if let Some((pattern, matches)) = pattern
                    && !matches(text)
                {
                    return wrong(format!("Member must satisfy regular expression pattern: {pattern}"));
                }
                Ok(())
            }
            ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => {
                if within(number.as_i64().unwrap_or(i64::MAX)) {
                    Ok(())
                } else {
                    wrong(format!("Member must be {}", bounds()))
                }
            }
            ("boolean", Value::Bool(_)) | ("timestamp", Value::Number(_)) => Ok(()),
            (kind, _) => wrong(format!("Member must be of type {kind}")),
        }
    }
}

impl Operation {
    /// The error that this operation has for bad parameters.
    fn bad_parameter(&self) -> &'static str {
        ["InvalidParameterException", "InvalidRequestException", "BadRequestException"]
            .into_iter()
            .find(|name| self.errors.iter().any(|error| error == name))
            .unwrap_or("InvalidParameterException")
    }
}

/// A cluster's name.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// A DNS label.
fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(plain) && text.ends_with(plain) && text.chars().all(|c| plain(c) || c == '-')
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::path::PathBuf;

    use super::*;

    /// The cache that `python3 local/setup.py` fills.
    pub(in crate::eks) fn cache() -> PathBuf {
        std::env::var_os("SLIPWAY_CACHE").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/slipway"),
            PathBuf::from,
        )
    }

    fn model() -> Model {
        Model::read(&cache()).unwrap()
    }

    fn input(method: &Method, uri: &str, body: &Value) -> Result<Value, AwsError> {
        let (model, uri) = (model(), uri.parse().unwrap());
        let operation = model.operation(method, &uri).expect("an operation");
        model.input(operation, &uri, body)
    }

    #[test]
    fn requests_are_told_by_method_and_path() {
        let model = model();
        for (method, uri, name) in [
            (Method::POST, "/clusters", "CreateCluster"),
            (Method::GET, "/clusters", "ListClusters"),
            (Method::GET, "/clusters/demo", "DescribeCluster"),
            (Method::GET, "/clusters/demo/access-entries/arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fx", "DescribeAccessEntry"),
            (Method::GET, "/addons/supported-versions?addonName=coredns", "DescribeAddonVersions"),
            (Method::POST, "/tags/arn%3Aaws%3Aeks%3Aeu-west-1%3A1%3Acluster%2Fdemo", "TagResource"),
        ] {
            assert_eq!(model.operation(&method, &uri.parse().unwrap()).unwrap().name, name, "{uri}");
        }
        assert!(model.operation(&Method::GET, &"/nothing".parse().unwrap()).is_none());
    }

    #[test]
    fn members_come_from_path_query_and_body() {
        let made = input(
            &Method::POST,
            "/clusters/demo/addons",
            &json!({"addonName": "coredns", "resolveConflicts": "OVERWRITE", "unheardOf": 1}),
        );
        assert_eq!(
            made.unwrap(),
            json!({"addonName": "coredns", "clusterName": "demo", "resolveConflicts": "OVERWRITE"})
        );
        let versions = input(&Method::GET, "/cluster-versions?defaultOnly=true&maxResults=3", &json!({})).unwrap();
        assert_eq!(versions, json!({"defaultOnly": true, "maxResults": 3}));
        let untag = input(&Method::DELETE, "/tags/arn%3Ax?tagKeys=a&tagKeys=b", &json!({})).unwrap();
        assert_eq!(untag["tagKeys"], json!(["a", "b"]));
    }

    #[test]
    fn what_the_model_forbids_is_refused_by_name() {
        let refused = |body: &Value| input(&Method::POST, "/clusters", body).unwrap_err().to_string();
        let role = "arn:aws:iam::111122223333:role/x";
        let missing = refused(&json!({"name": "demo", "roleArn": role}));
        assert!(missing.contains("'resourcesVpcConfig' must not be null"), "{missing}");
        let pattern = refused(&json!({"name": "de.mo", "roleArn": role, "resourcesVpcConfig": {}}));
        assert!(pattern.starts_with("InvalidParameterException: ") && pattern.contains("pattern"), "{pattern}");
        let length = refused(&json!({"name": "x".repeat(101), "roleArn": role, "resourcesVpcConfig": {}}));
        assert!(length.contains("length 1 to 100"), "{length}");
        let mode = refused(&json!({"name": "demo", "roleArn": role, "resourcesVpcConfig": {},
            "accessConfig": {"authenticationMode": "api"}}));
        assert!(mode.contains("'accessConfig.authenticationMode'") && mode.contains("API_AND_CONFIG_MAP"), "{mode}");
        let kind = refused(&json!({"name": "demo", "roleArn": role, "resourcesVpcConfig": {"subnetIds": "subnet-1"}}));
        assert!(kind.contains("type list"), "{kind}");
    }

    #[test]
    fn answers_have_only_known_members() {
        let (model, uri) = (model(), "/clusters/demo".parse().unwrap());
        let describe = model.operation(&Method::GET, &uri).unwrap();
        assert_eq!(model.check_answer(describe, &json!({"cluster": {"name": "demo", "status": "ACTIVE"}})), Ok(()));
        assert!(model.check_answer(describe, &json!({"cluster": {"colour": "red"}})).is_err());
        assert!(model.check_answer(describe, &json!({"cluster": {"status": "READY"}})).is_err());
    }
}
