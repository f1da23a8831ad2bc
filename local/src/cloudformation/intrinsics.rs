//! CloudFormation's functions: a property as written, and as it is once parameters and other resources are known.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::template::{SubPiece, Template, get_att, sub_pieces};
use super::validation_error;
use crate::gateway::call::AwsError;

/// A resource that is there: what `Ref` and `Fn::GetAtt` answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Made {
    /// What `Ref` answers.
    pub(super) physical_id: String,
    /// What `Fn::GetAtt` answers.
    pub(super) attributes: BTreeMap<String, String>,
}

impl Made {
    /// A resource that a change set would make: its id and attributes are not known yet.
    pub(super) fn unknown() -> Self {
        Self { physical_id: UNKNOWN.to_owned(), attributes: BTreeMap::new() }
    }
}

/// What a change set shows in the place of a value that only its execution will give.
pub(super) const UNKNOWN: &str = "{{changeSet:KNOWN_AFTER_APPLY}}";

/// Where values are looked up.
#[derive(Debug, Clone)]
pub(super) struct Scope<'a> {
    pub(super) template: &'a Template,
    /// Parameters and pseudo parameters, lists already split.
    pub(super) parameters: &'a BTreeMap<String, Value>,
    pub(super) made: &'a BTreeMap<String, Made>,
}

impl Scope<'_> {
    /// The value, with everything in it looked up; `None` for `AWS::NoValue`.
    pub(super) fn evaluate(&self, value: &Value) -> Result<Option<Value>, AwsError> {
        match value {
            Value::Object(map) => {
                if let Some((name, argument)) = function(map) {
                    return self.call(name, argument);
                }
                self.evaluate_map(map).map(|map| Some(Value::Object(map)))
            }
            Value::Array(items) => {
                let items: Result<Vec<_>, _> = items.iter().map(|item| self.evaluate(item)).collect();
                Ok(Some(items?.into_iter().flatten().collect()))
            }
            scalar => Ok(Some(scalar.clone())),
        }
    }

    /// Properties, with everything in them looked up and `AWS::NoValue` left out.
    pub(super) fn evaluate_map(&self, map: &Map<String, Value>) -> Result<Map<String, Value>, AwsError> {
        let mut evaluated = Map::new();
        for (key, inner) in map {
            if let Some(inner) = self.evaluate(inner)? {
                evaluated.insert(key.clone(), inner);
            }
        }
        Ok(evaluated)
    }

    /// Whether a named condition holds.
    pub(super) fn condition(&self, name: &str) -> Result<bool, AwsError> {
        let condition = self
            .template
            .conditions
            .get(name)
            .ok_or_else(|| validation_error(format!("Template error: unresolved condition {name}")))?;
        self.truth(condition)
    }

    fn truth(&self, value: &Value) -> Result<bool, AwsError> {
        match self.evaluate(value)? {
            Some(Value::Bool(truth)) => Ok(truth),
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
            _ => Err(validation_error("Template error: a condition must be a boolean")),
        }
    }

    fn call(&self, name: &str, argument: &Value) -> Result<Option<Value>, AwsError> {
        let parts = argument.as_array().map_or(&[][..], Vec::as_slice);
        let value = match (name, parts) {
            ("Ref", _) => return self.reference(argument.as_str().unwrap_or("")),
            ("Condition", _) => Value::Bool(self.condition(argument.as_str().unwrap_or(""))?),
            ("Fn::GetAtt", _) => self.attribute(argument)?,
            ("Fn::Sub", _) => self.substitute(argument)?,
            ("Fn::If", [condition, then, otherwise]) => {
                let holds = self.condition(condition.as_str().unwrap_or(""))?;
                return self.evaluate(if holds { then } else { otherwise });
            }
            ("Fn::Equals", [left, right]) => Value::Bool(
                self.evaluate(left)?.map(|value| text(&value)) == self.evaluate(right)?.map(|value| text(&value)),
            ),
            ("Fn::Not", [condition]) => Value::Bool(!self.truth(condition)?),
            ("Fn::And", conditions) if (2..=10).contains(&conditions.len()) => {
                Value::Bool(self.truths(conditions)?.into_iter().all(|truth| truth))
            }
            ("Fn::Or", conditions) if (2..=10).contains(&conditions.len()) => {
                Value::Bool(self.truths(conditions)?.into_iter().any(|truth| truth))
            }
            ("Fn::Join", [delimiter, list]) => {
                self.list(list)?.iter().map(text).collect::<Vec<_>>().join(delimiter.as_str().unwrap_or("")).into()
            }
            ("Fn::Split", [delimiter, source]) => {
                let source = self.evaluate(source)?.map(|value| text(&value)).unwrap_or_default();
                source.split(delimiter.as_str().unwrap_or(",")).map(Value::from).collect()
            }
            ("Fn::Select", [index, list]) => {
                let index = self.number(index, "Fn::Select")?;
                let list = self.list(list)?;
                let chosen = usize::try_from(index).ok().and_then(|index| list.get(index));
                chosen.cloned().ok_or_else(|| {
                    validation_error(format!(
                        "Template error: Fn::Select cannot select nonexistent value at index {index}"
                    ))
                })?
            }
            ("Fn::Cidr", [block, count, rest @ ..]) => {
                let block = self.evaluate(block)?.map(|value| text(&value)).unwrap_or_default();
                let count = self.number(count, "Fn::Cidr")?;
                let bits = rest.first().map(|bits| self.number(bits, "Fn::Cidr")).transpose()?;
                cidrs(&block, count, bits)?.into_iter().map(Value::from).collect()
            }
            ("Fn::FindInMap", [map, first, second]) => self.find_in_map(map, first, second)?,
            _ => {
                return Err(validation_error(format!(
                    "Template error: {name} is not supported, or its arguments are wrong"
                )));
            }
        };
        Ok(Some(value))
    }

    fn truths(&self, conditions: &[Value]) -> Result<Vec<bool>, AwsError> {
        conditions.iter().map(|condition| self.truth(condition)).collect()
    }

    fn reference(&self, name: &str) -> Result<Option<Value>, AwsError> {
        if name == "AWS::NoValue" {
            return Ok(None);
        }
        if let Some(value) = self.parameters.get(name) {
            return Ok(Some(value.clone()));
        }
        match self.made.get(name) {
            Some(made) => Ok(Some(made.physical_id.clone().into())),
            None => Err(unresolved(name)),
        }
    }

    fn attribute(&self, argument: &Value) -> Result<Value, AwsError> {
        let (name, attribute) = get_att(argument)
            .ok_or_else(|| validation_error("Template error: Fn::GetAtt needs a resource and an attribute"))?;
        let made = self.made.get(&name).ok_or_else(|| unresolved(&name))?;
        if made.physical_id == UNKNOWN {
            return Ok(UNKNOWN.into());
        }
        made.attributes.get(&attribute).map(|value| value.clone().into()).ok_or_else(|| {
            validation_error(format!(
                "Template error: resource {name} does not support attribute type {attribute} in Fn::GetAtt"
            ))
        })
    }

    fn substitute(&self, argument: &Value) -> Result<Value, AwsError> {
        let (template, own) = match argument {
            Value::Array(pair) => (pair.first().and_then(Value::as_str), pair.get(1).and_then(Value::as_object)),
            other => (other.as_str(), None),
        };
        let template = template.ok_or_else(|| validation_error("Template error: Fn::Sub needs a text"))?;
        let mut filled = String::new();
        for piece in sub_pieces(template) {
            match piece {
                SubPiece::Text(piece) => filled.push_str(piece),
                SubPiece::Name(name) => {
                    let value = match (own.and_then(|own| own.get(name)), name.contains('.')) {
                        (Some(value), _) => self.evaluate(value)?,
                        (None, true) => Some(self.attribute(&Value::from(name))?),
                        (None, false) => self.reference(name)?,
                    };
                    filled.push_str(&value.map(|value| text(&value)).unwrap_or_default());
                }
            }
        }
        Ok(filled.into())
    }

    fn find_in_map(&self, map: &Value, first: &Value, second: &Value) -> Result<Value, AwsError> {
        let key = |value: &Value| Ok(self.evaluate(value)?.map(|value| text(&value)).unwrap_or_default());
        let (map, first, second) = (key(map)?, key(first)?, key(second)?);
        self.template
            .mappings
            .get(&map)
            .and_then(|map| map.get(&first))
            .and_then(|map| map.get(&second))
            .cloned()
            .ok_or_else(|| {
                validation_error(format!("Template error: Unable to get mapping for {map}::{first}::{second}"))
            })
    }

    fn list(&self, value: &Value) -> Result<Vec<Value>, AwsError> {
        match self.evaluate(value)? {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(validation_error("Template error: a list is expected")),
        }
    }

    fn number(&self, value: &Value, function: &str) -> Result<u32, AwsError> {
        self.evaluate(value)?
            .and_then(|value| text(&value).parse().ok())
            .ok_or_else(|| validation_error(format!("Template error: {function} needs a whole number")))
    }
}

fn unresolved(name: &str) -> AwsError {
    validation_error(format!("Template error: {name} was not made, since its condition is false or it failed"))
}

/// The function that a map of one entry calls.
fn function(map: &Map<String, Value>) -> Option<(&str, &Value)> {
    let (name, argument) = map.iter().next().filter(|_| map.len() == 1)?;
    let is_condition = name == "Condition" && argument.is_string();
    (name == "Ref" || is_condition || name.starts_with("Fn::")).then_some((name, argument))
}

/// A scalar as CloudFormation writes it in a text.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// The first `count` blocks with `host_bits` host bits (default 8 for IPv4, 64 for IPv6) in a block.
fn cidrs(block: &str, count: u32, host_bits: Option<u32>) -> Result<Vec<String>, AwsError> {
    let refuse = |why: &str| validation_error(format!("Template error: Fn::Cidr of {block}: {why}"));
    let network: IpNet = block.parse().map_err(|_| refuse("not a CIDR block"))?;
    let width: u32 = if network.addr().is_ipv4() { 32 } else { 128 };
    let host_bits = host_bits.unwrap_or(if width == 32 { 8 } else { 64 });
    let prefix = width.checked_sub(host_bits).filter(|prefix| *prefix >= u32::from(network.prefix_len()));
    let prefix = prefix.ok_or_else(|| refuse("the parts are larger than the block"))?;
    let room = 1_u64.checked_shl(prefix - u32::from(network.prefix_len())).unwrap_or(u64::MAX);
    if !(1..=256).contains(&count) || u64::from(count) > room {
        return Err(refuse("it does not hold that many parts"));
    }
    let part = |index: u32| match network.network() {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + (index << host_bits))),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() + (u128::from(index) << host_bits))),
    };
    Ok((0..count).map(|index| format!("{}/{prefix}", part(index))).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn evaluate(value: &Value) -> Result<Option<Value>, AwsError> {
        let template = Template::parse(
            "Conditions:\n  Three: !Equals [!Ref Zones, 3]\n  Two: !Not [!Condition Three]\nMappings:\n  M: {a: {b: c}}\n",
        )?;
        let parameters = BTreeMap::from([
            ("Zones".to_owned(), json!("3")),
            ("Names".to_owned(), json!(["a", "b"])),
            ("AWS::Region".to_owned(), json!("eu-west-1")),
        ]);
        let made = BTreeMap::from([(
            "Vpc".to_owned(),
            Made {
                physical_id: "vpc-1".to_owned(),
                attributes: BTreeMap::from([("CidrBlock".to_owned(), "10.20.0.0/16".to_owned())]),
            },
        )]);
        Scope { template: &template, parameters: &parameters, made: &made }.evaluate(value)
    }

    #[test]
    fn functions_nest() {
        let value = json!({"Fn::Select": ["5", {"Fn::Cidr": [{"Fn::GetAtt": ["Vpc", "CidrBlock"]}, 6, 12]}]});
        assert_eq!(evaluate(&value).unwrap(), Some(json!("10.20.80.0/20")));
        let value = json!({"Fn::Sub": ["${AWS::Region}-${Vpc}-${Vpc.CidrBlock}-${X}-${!Y}", {"X": {"Fn::Join": ["+", {"Ref": "Names"}]}}]});
        assert_eq!(evaluate(&value).unwrap(), Some(json!("eu-west-1-vpc-1-10.20.0.0/16-a+b-${Y}")));
        assert_eq!(evaluate(&json!({"Fn::Split": ["|", "a|b"]})).unwrap(), Some(json!(["a", "b"])));
        assert_eq!(evaluate(&json!({"Fn::FindInMap": ["M", "a", "b"]})).unwrap(), Some(json!("c")));
    }

    #[test]
    fn no_value_leaves_no_trace() {
        let value = json!({"a": [{"Fn::If": ["Three", 1, 2]}, {"Ref": "AWS::NoValue"}], "b": {"Fn::If": ["Two", 1, {"Ref": "AWS::NoValue"}]}});
        assert_eq!(evaluate(&value).unwrap(), Some(json!({"a": [1]})));
    }

    #[test]
    fn blocks_that_do_not_fit_are_refused() {
        assert!(cidrs("10.0.0.0/24", 3, Some(7)).unwrap_err().message.contains("that many"));
        assert!(cidrs("10.0.0.0/24", 1, Some(9)).unwrap_err().message.contains("larger"));
        assert_eq!(cidrs("fd00::/56", 2, None).unwrap(), ["fd00::/64", "fd00:0:0:1::/64"]);
    }

    #[test]
    fn a_condition_key_in_a_policy_is_no_function() {
        let statement = json!({"Condition": {"StringEquals": {"aws:RequestedRegion": {"Ref": "AWS::Region"}}}});
        assert_eq!(
            evaluate(&statement).unwrap(),
            Some(json!({"Condition": {"StringEquals": {"aws:RequestedRegion": "eu-west-1"}}}))
        );
    }
}
