//! DynamoDB's attribute values from JSON, and back.

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Map, Number, Value};

use super::Row;

/// JSON as an attribute.
pub(super) fn attribute(json: &Value) -> AttributeValue {
    match json {
        Value::Null => AttributeValue::Null(true),
        Value::Bool(flag) => AttributeValue::Bool(*flag),
        Value::Number(number) => AttributeValue::N(number.to_string()),
        Value::String(text) => AttributeValue::S(text.clone()),
        Value::Array(items) => AttributeValue::L(items.iter().map(attribute).collect()),
        Value::Object(fields) => {
            AttributeValue::M(fields.iter().map(|(name, value)| (name.clone(), attribute(value))).collect())
        }
    }
}

/// An attribute as JSON. Sets and binaries, which we never write, are null.
pub(super) fn json(attribute: &AttributeValue) -> Value {
    match attribute {
        AttributeValue::Bool(flag) => Value::Bool(*flag),
        AttributeValue::N(number) => number
            .parse::<i64>()
            .map(Value::from)
            .ok()
            .or_else(|| number.parse().ok().and_then(Number::from_f64).map(Value::Number))
            .unwrap_or_default(),
        AttributeValue::S(text) => Value::String(text.clone()),
        AttributeValue::L(items) => Value::Array(items.iter().map(json).collect()),
        AttributeValue::M(fields) => {
            // A map has no order in DynamoDB; the alphabet makes answers equal that are equal.
            let mut names: Vec<_> = fields.keys().collect();
            names.sort();
            Value::Object(names.into_iter().map(|name| (name.clone(), json(&fields[name]))).collect::<Map<_, _>>())
        }
        _ => Value::Null,
    }
}

/// A row's text.
pub(super) fn text(row: &Row, name: &str) -> Option<String> {
    row.get(name).and_then(|value| value.as_s().ok()).cloned()
}

/// A row's whole number.
pub(super) fn number(row: &Row, name: &str) -> Option<u64> {
    row.get(name).and_then(|value| value.as_n().ok()).and_then(|digits| digits.parse().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json as j;

    use super::*;

    #[test]
    fn json_survives_the_table() {
        let spec = j!({"core": {"size": 2}, "values": {"ratio": 0.5, "none": null}, "zones": ["a", "b"], "empty": "", "on": true});
        assert_eq!(json(&attribute(&spec)), spec);
    }
}
