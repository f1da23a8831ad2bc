//! Policy documents as IAM and SQS give them back.

use serde_json::Value;

/// Whether two policy documents say the same: IAM may turn a list of one into its member and reorder lists.
#[must_use]
pub fn same_document(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(items), single) | (single, Value::Array(items)) if !single.is_array() => {
            items.len() == 1 && same_document(&items[0], single)
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().all(|item| right.iter().any(|that| same_document(item, that)))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, value)| right.get(key).is_some_and(|that| same_document(value, that)))
        }
        _ => one == other,
    }
}

/// A document as IAM's read operations give it: JSON, percent-encoded (RFC 3986).
#[must_use]
pub fn document(encoded: &str) -> Value {
    let text: String = url::form_urlencoded::parse(encoded.replace('+', "%2B").as_bytes())
        .map(|(key, value)| if value.is_empty() { key.into_owned() } else { format!("{key}={value}") })
        .collect::<Vec<_>>()
        .join("&");
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_compared_by_what_they_say() {
        let one = json!({"Statement": [{"Action": ["a", "b"], "Resource": "*"}]});
        assert!(same_document(&one, &json!({"Statement": {"Resource": ["*"], "Action": ["b", "a"]}})));
        assert!(!same_document(&one, &json!({"Statement": {"Resource": ["*"], "Action": ["b"]}})));
        assert!(!same_document(&json!(["a", "a"]), &json!(["a", "b", "c"])));
    }

    #[test]
    fn documents_are_read_as_iam_encodes_them() {
        let encoded = "%7B%22a%22%3A%20%22x%26y%3D1%2B1%22%7D";
        assert_eq!(document(encoded), json!({"a": "x&y=1+1"}));
        assert_eq!(document("{\"plain\": \"a+b\"}"), json!({"plain": "a+b"}));
    }
}
