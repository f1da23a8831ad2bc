//! A CloudFormation template: read from YAML or JSON, checked as CloudFormation checks it before it makes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use serde_saphyr::Tagged;

use super::kinds::Kind;
use super::validation_error;
use crate::gateway::call::AwsError;

/// A template with every short form (`!Ref`) in its long one (`{"Ref": …}`).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Template {
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) parameters: BTreeMap<String, Parameter>,
    #[serde(default)]
    pub(super) mappings: Value,
    #[serde(default)]
    pub(super) conditions: BTreeMap<String, Value>,
    #[serde(default)]
    pub(super) resources: BTreeMap<String, Resource>,
    #[serde(default)]
    pub(super) outputs: BTreeMap<String, Output>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Parameter {
    #[serde(rename = "Type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) default: Option<Value>,
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) no_echo: bool,
    #[serde(default)]
    pub(super) allowed_values: Vec<Value>,
    #[serde(default)]
    pub(super) allowed_pattern: Option<String>,
    #[serde(default)]
    pub(super) min_length: Option<usize>,
    #[serde(default)]
    pub(super) max_length: Option<usize>,
    #[serde(default)]
    pub(super) min_value: Option<f64>,
    #[serde(default)]
    pub(super) max_value: Option<f64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Resource {
    #[serde(rename = "Type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) properties: Map<String, Value>,
    #[serde(default)]
    pub(super) condition: Option<String>,
    #[serde(default)]
    pub(super) depends_on: Value,
    #[serde(default)]
    pub(super) deletion_policy: Option<String>,
    #[serde(default)]
    pub(super) update_replace_policy: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Output {
    pub(super) value: Value,
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) condition: Option<String>,
    #[serde(default)]
    pub(super) export: Option<Value>,
}

/// Everything that a template can name without a resource behind it.
const PSEUDO_PARAMETERS: [&str; 8] = [
    "AWS::AccountId",
    "AWS::NoValue",
    "AWS::NotificationARNs",
    "AWS::Partition",
    "AWS::Region",
    "AWS::StackId",
    "AWS::StackName",
    "AWS::URLSuffix",
];

impl Template {
    /// Reads YAML or JSON.
    pub(super) fn parse(body: &str) -> Result<Self, AwsError> {
        let document = document(body)?;
        if document.get("Transform").is_some() {
            return Err(validation_error("Template format error: transforms are not supported by this engine"));
        }
        serde_json::from_value(document).map_err(|error| validation_error(format!("Template format error: {error}")))
    }

    /// The names that resources and outputs may refer to must exist, and not in a circle.
    pub(super) fn check(&self) -> Result<(), AwsError> {
        if self.resources.is_empty() {
            return Err(validation_error("Template format error: At least one Resources member must be defined."));
        }
        let unknown: BTreeSet<&str> = self
            .resources
            .values()
            .map(|resource| resource.kind.as_str())
            .filter(|kind| Kind::of(kind).is_none())
            .collect();
        if !unknown.is_empty() {
            let unknown = unknown.into_iter().collect::<Vec<_>>().join(", ");
            return Err(validation_error(format!("Template format error: Unrecognized resource types: [{unknown}]")));
        }
        let mut missing = BTreeSet::new();
        for resource in self.resources.values() {
            missing.extend(names_in(resource).into_iter().filter(|name| !self.names_something(name)));
        }
        report_unresolved(&missing, "Resources")?;
        for output in self.outputs.values() {
            missing.extend(references(&output.value).into_keys().filter(|name| !self.names_something(name)));
        }
        report_unresolved(&missing, "Outputs")?;
        self.check_conditions()?;
        self.check_circles()
    }

    /// The other resources that a resource needs, each with the attributes that it reads of them.
    pub(super) fn dependencies(&self, resource: &Resource) -> BTreeSet<String> {
        names_in(resource).into_iter().filter(|name| self.resources.contains_key(name)).collect()
    }

    /// The attributes of `logical_id` that anything in the template reads by `Fn::GetAtt`.
    pub(super) fn attributes_read(&self, logical_id: &str) -> BTreeSet<String> {
        let properties = self.resources.values().map(|resource| references_in_map(&resource.properties));
        let outputs = self.outputs.values().map(|output| references(&output.value));
        properties.chain(outputs).filter_map(|mut found| found.remove(logical_id)).flatten().collect()
    }

    /// `CAPABILITY_IAM`, or `CAPABILITY_NAMED_IAM` where a resource is given a name of its own.
    pub(super) fn capability(&self) -> Option<&'static str> {
        let iam: Vec<&Resource> =
            self.resources.values().filter(|resource| resource.kind.starts_with("AWS::IAM::")).collect();
        let named = iam.iter().any(|resource| {
            resource.properties.contains_key("RoleName") || resource.properties.contains_key("ManagedPolicyName")
        });
        match (iam.is_empty(), named) {
            (true, _) => None,
            (false, true) => Some("CAPABILITY_NAMED_IAM"),
            (false, false) => Some("CAPABILITY_IAM"),
        }
    }

    fn names_something(&self, name: &str) -> bool {
        PSEUDO_PARAMETERS.contains(&name) || self.parameters.contains_key(name) || self.resources.contains_key(name)
    }

    fn check_conditions(&self) -> Result<(), AwsError> {
        let mut named: BTreeSet<String> = BTreeSet::new();
        for resource in self.resources.values() {
            named.extend(resource.condition.clone());
            resource.properties.values().for_each(|value| conditions_in(value, &mut named));
        }
        for output in self.outputs.values() {
            named.extend(output.condition.clone());
            conditions_in(&output.value, &mut named);
        }
        self.conditions.values().for_each(|value| conditions_in(value, &mut named));
        match named.into_iter().find(|name| !self.conditions.contains_key(name)) {
            None => Ok(()),
            Some(name) => Err(validation_error(format!(
                "Template format error: Unresolved condition dependency {name} in the Conditions block of the template"
            ))),
        }
    }

    fn check_circles(&self) -> Result<(), AwsError> {
        let mut open: BTreeMap<&String, BTreeSet<String>> =
            self.resources.iter().map(|(name, resource)| (name, self.dependencies(resource))).collect();
        loop {
            let free: Vec<&String> = open
                .iter()
                .filter(|(_, needs)| !needs.iter().any(|need| open.contains_key(need)))
                .map(|(name, _)| *name)
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            if free.is_empty() {
                let circle = open.keys().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(validation_error(format!("Circular dependency between resources: [{circle}]")));
            }
            for name in free {
                open.remove(name);
            }
        }
    }
}

/// Every name that a resource needs: by reference or by DependsOn.
fn names_in(resource: &Resource) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = references_in_map(&resource.properties).into_keys().collect();
    match &resource.depends_on {
        Value::String(name) => {
            names.insert(name.clone());
        }
        Value::Array(list) => names.extend(list.iter().filter_map(Value::as_str).map(str::to_owned)),
        _ => {}
    }
    names
}

fn report_unresolved(missing: &BTreeSet<String>, block: &str) -> Result<(), AwsError> {
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Err(validation_error(format!(
        "Template format error: Unresolved resource dependencies [{missing}] in the {block} block of the template"
    )))
}

/// The names that a value refers to, with the attributes that `Fn::GetAtt` reads (none for `Ref`).
fn references(value: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    collect_references(value, &mut found);
    found
}

fn references_in_map(properties: &Map<String, Value>) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    properties.values().for_each(|value| collect_references(value, &mut found));
    found
}

fn collect_references(value: &Value, found: &mut BTreeMap<String, BTreeSet<String>>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
        Value::Object(map) => {
            for (key, inner) in map {
                match (key.as_str(), inner) {
                    ("Ref", Value::String(name)) => {
                        found.entry(name.clone()).or_default();
                    }
                    ("Fn::GetAtt", inner) => {
                        if let Some((name, attribute)) = get_att(inner) {
                            found.entry(name).or_default().insert(attribute);
                        }
                    }
                    ("Fn::Sub", inner) => references_of_sub(inner, found),
                    _ => collect_references(inner, found),
                }
            }
        }
        _ => {}
    }
}

fn references_of_sub(inner: &Value, found: &mut BTreeMap<String, BTreeSet<String>>) {
    let (text, own) = match inner {
        Value::String(text) => (text.as_str(), None),
        Value::Array(pair) => {
            (pair.first().and_then(Value::as_str).unwrap_or(""), pair.get(1).and_then(Value::as_object))
        }
        _ => return,
    };
    if let Some(own) = own {
        own.values().for_each(|value| collect_references(value, found));
    }
    for piece in sub_pieces(text) {
        if let SubPiece::Name(name) = piece
            && own.is_none_or(|own| !own.contains_key(name))
        {
            match name.split_once('.') {
                Some((resource, attribute)) => {
                    found.entry(resource.to_owned()).or_default().insert(attribute.to_owned());
                }
                None => {
                    found.entry(name.to_owned()).or_default();
                }
            }
        }
    }
}

fn conditions_in(value: &Value, named: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| conditions_in(item, named)),
        Value::Object(map) => {
            for (key, inner) in map {
                match (key.as_str(), inner) {
                    ("Condition", Value::String(name)) if map.len() == 1 => {
                        named.insert(name.clone());
                    }
                    ("Fn::If", Value::Array(parts)) => {
                        named.extend(parts.first().and_then(Value::as_str).map(str::to_owned));
                        parts.iter().skip(1).for_each(|part| conditions_in(part, named));
                    }
                    _ => conditions_in(inner, named),
                }
            }
        }
        _ => {}
    }
}

/// `["Vpc", "CidrBlock"]` or `"Vpc.CidrBlock"`.
pub(super) fn get_att(value: &Value) -> Option<(String, String)> {
    match value {
        Value::String(text) => text.split_once('.').map(|(name, attribute)| (name.to_owned(), attribute.to_owned())),
        Value::Array(parts) => Some((parts.first()?.as_str()?.to_owned(), parts.get(1)?.as_str()?.to_owned())),
        _ => None,
    }
}

/// A piece of `Fn::Sub`'s text.
pub(super) enum SubPiece<'a> {
    /// As it stands.
    Text(&'a str),
    /// `${Name}` or `${Name.Attribute}`.
    Name(&'a str),
}

/// Takes `Fn::Sub`'s text apart; `${!Literal}` stands for `${Literal}`.
pub(super) fn sub_pieces(text: &str) -> Vec<SubPiece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        pieces.push(SubPiece::Text(before));
        let Some((name, tail)) = after.split_once('}') else {
            pieces.push(SubPiece::Text(&rest[before.len()..]));
            return pieces;
        };
        if let Some(literal) = name.strip_prefix('!') {
            pieces.extend([SubPiece::Text("${"), SubPiece::Text(literal), SubPiece::Text("}")]);
        } else {
            pieces.push(SubPiece::Name(name.trim()));
        }
        rest = tail;
    }
    pieces.push(SubPiece::Text(rest));
    pieces
}

/// The types of a template's resources, without any other check; none where it can't be read.
pub(super) fn resource_types(body: &str) -> Vec<String> {
    let Ok(document) = document(body) else { return Vec::new() };
    if document.get("Transform").is_some() {
        return Vec::new();
    }
    let Some(resources) = document["Resources"].as_object() else { return Vec::new() };
    resources.values().map(|resource| resource["Type"].as_str().unwrap_or("").to_owned()).collect()
}

fn document(body: &str) -> Result<Value, AwsError> {
    if body.trim_start().starts_with('{') {
        return serde_json::from_str(body)
            .map_err(|error| validation_error(format!("Template format error: JSON not well-formed. {error}")));
    }
    let tree: Tagged<Node> = serde_saphyr::from_str(body)
        .map_err(|error| validation_error(format!("Template format error: YAML not well-formed. {error}")))?;
    Ok(long_form(tree))
}

/// YAML with the tags kept on their nodes.
enum Node {
    Scalar(Value),
    List(Vec<Tagged<Node>>),
    Map(Vec<(String, Tagged<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a YAML node")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

fn long_form(node: Tagged<Node>) -> Value {
    let Tagged(node, tag) = node;
    let value = match node {
        Node::Scalar(value) => value,
        Node::List(items) => items.into_iter().map(long_form).collect(),
        Node::Map(entries) => entries.into_iter().map(|(key, value)| (key, long_form(value))).collect(),
    };
    match tag.as_deref().and_then(|tag| tag.strip_prefix('!')) {
        None => value,
        Some(name @ ("Ref" | "Condition")) => json!({name: value}),
        Some(name) => json!({format!("Fn::{name}"): value}),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn short_forms_become_long_ones() {
        let document = document(
            "A: !Ref B\nC: !Sub 'x-${B.Arn}'\nD: !If [E, !GetAtt F.G, !Ref AWS::NoValue]\nH: !Select [0, !Cidr [!GetAtt V.CidrBlock, 6, 12]]\nI: !Equals [!Ref Zones, 3]\nJ: !Sub\n  - '${K}'\n  - K: !Ref B\nL: !Condition M\nN: 2012-10-17\n",
        )
        .unwrap();
        assert_eq!(
            document,
            json!({
                "A": {"Ref": "B"}, "C": {"Fn::Sub": "x-${B.Arn}"},
                "D": {"Fn::If": ["E", {"Fn::GetAtt": "F.G"}, {"Ref": "AWS::NoValue"}]},
                "H": {"Fn::Select": [0, {"Fn::Cidr": [{"Fn::GetAtt": "V.CidrBlock"}, 6, 12]}]},
                "I": {"Fn::Equals": [{"Ref": "Zones"}, 3]}, "J": {"Fn::Sub": ["${K}", {"K": {"Ref": "B"}}]},
                "L": {"Condition": "M"}, "N": "2012-10-17"
            })
        );
    }

    fn refusal(body: &str) -> String {
        Template::parse(body).and_then(|template| template.check()).unwrap_err().message
    }

    #[test]
    fn what_cannot_be_made_is_refused_before_anything_is_made() {
        assert_eq!(
            refusal("Resources:\n  A: {Type: AWS::EC2::Subnet, Properties: {VpcId: !Ref Vpc}}\n"),
            "Template format error: Unresolved resource dependencies [Vpc] in the Resources block of the template"
        );
        assert_eq!(
            refusal("Resources:\n  A: {Type: AWS::EC2::Nothing}\n"),
            "Template format error: Unrecognized resource types: [AWS::EC2::Nothing]"
        );
        assert_eq!(
            refusal(
                "Resources:\n  A: {Type: AWS::EC2::VPC, DependsOn: B}\n  B: {Type: AWS::EC2::VPC, DependsOn: [A]}\n"
            ),
            "Circular dependency between resources: [A, B]"
        );
        assert!(
            refusal("Resources:\n  A: {Type: AWS::EC2::VPC, Condition: Never}\n")
                .contains("condition dependency Never")
        );
    }

    #[test]
    fn attributes_are_found_in_substitutions_too() {
        let template = Template::parse(
            "Resources:\n  A: {Type: AWS::EC2::VPC}\nOutputs:\n  O: {Value: !Sub 'x/${A.CidrBlock}/${A}/${!Kept}'}\n",
        )
        .unwrap();
        template.check().unwrap();
        assert_eq!(template.attributes_read("A").into_iter().collect::<Vec<_>>(), ["CidrBlock"]);
    }
}
