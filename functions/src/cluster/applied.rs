//! Whether an object is as a manifest says already, so that applying it again would change nothing.
//!
//! The API server notes in `managedFields` which fields our last apply set. Nothing would change when our manifest sets
//! exactly those fields and each has its value. Where this cannot be told (a quantity that the server writes another
//! way), the answer is no: the apply that follows is a no-op, which costs a request and nothing else.

use serde_json::{Map, Value};

use super::FIELD_MANAGER;

/// Whether applying `manifest` to `there` would change nothing.
pub(super) fn stands(manifest: &Value, there: &Value) -> bool {
    let entries = there["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = entries.iter().find(|entry| {
        entry["manager"] == FIELD_MANAGER && entry["operation"] == "Apply" && entry["subresource"].is_null()
    });
    let Some(own) = own.filter(|own| own["apiVersion"] == manifest["apiVersion"]) else { return false };
    let Some(fields) = own["fieldsV1"].as_object() else { return false };
    let manifest = stripped(manifest);
    // On its way out: what is applied now would go with it.
    there["metadata"]["deletionTimestamp"].is_null()
        && contains(there, &manifest)
        && owned(&manifest, fields)
        && set(fields, &manifest)
}

/// Whether two readings of an object are the same but for the API server's own book-keeping.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    let told = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            metadata.retain(|key, _| !["managedFields", "resourceVersion", "generation"].contains(&key.as_str()));
        }
        object
    };
    told(one) == told(other)
}

/// The manifest without what names an object, which nobody owns, without a status, which an apply of the object does not
/// set, and without nothings, which the server drops.
fn stripped(manifest: &Value) -> Value {
    let mut manifest = manifest.clone();
    if let Some(fields) = manifest.as_object_mut() {
        fields.retain(|key, _| !["apiVersion", "kind", "status"].contains(&key.as_str()));
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|key, _| key != "name" && key != "namespace");
        }
    }
    without_nulls(&manifest)
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        plain => plain.clone(),
    }
}

/// Whether `there` has every value of `wanted`; it may have more, which defaults and others set.
fn contains(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| contains(there.get(key).unwrap_or(&Value::Null), value))
        }
        // The server drops empty objects and lists of some fields.
        (Value::Null, Value::Object(wanted)) => wanted.is_empty(),
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(there, wanted)| contains(there, wanted))
        }
        (Value::Number(there), Value::Number(wanted)) => there.as_f64() == wanted.as_f64(),
        _ => there == wanted,
    }
}

/// Whether our last apply set every field of `value`: `fields` is the part of `fieldsV1` that is about it.
fn owned(value: &Value, fields: &Map<String, Value>) -> bool {
    let below = |key: &str| fields.get(key).and_then(Value::as_object);
    match value {
        // A list or object that is owned as one has nothing below it.
        _ if fields.keys().all(|key| key == ".") => true,
        Value::Object(members) => members
            .iter()
            .all(|(key, value)| below(&format!("f:{key}")).is_some_and(|fields| owned(value, fields)) || empty(value)),
        Value::Array(items) => {
            items.iter().all(|item| fields.iter().any(|(key, below)| is_item(key, item) && owned_below(item, below)))
        }
        _ => true,
    }
}

fn owned_below(value: &Value, fields: &Value) -> bool {
    fields.as_object().is_some_and(|fields| owned(value, fields))
}

fn empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// Whether `value` still sets every field that our last apply set.
fn set(fields: &Map<String, Value>, value: &Value) -> bool {
    fields.iter().filter(|(key, _)| *key != ".").all(|(key, below)| {
        let member = match key.strip_prefix("f:") {
            Some(name) => value.get(name),
            None => value.as_array().and_then(|items| items.iter().find(|item| is_item(key, item))),
        };
        member.is_some_and(|member| below.as_object().is_some_and(|below| set(below, member)))
    })
}

/// Whether a key of `fieldsV1` is about this item of a list: `k:` by some of its members, `v:` by its value.
fn is_item(key: &str, item: &Value) -> bool {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    if let Some(value) = key.strip_prefix("v:") {
        return parsed(value) == *item;
    }
    let Some(Value::Object(keys)) = key.strip_prefix("k:").map(parsed) else { return false };
    // A key that the manifest leaves to its default, as a port's protocol, is in the server's note alone.
    let same = |(name, value): (&String, &Value)| item.get(name).is_none_or(|own| own == value);
    keys.iter().all(same) && keys.keys().any(|name| item.get(name).is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "a", "namespace": "n", "labels": { "app": "a" }, "annotations": null },
            "spec": {
                "replicas": 2,
                "selector": { "matchLabels": { "app": "a" } },
                "template": { "spec": { "containers": [{
                    "name": "c", "image": "i:1", "args": ["--x"], "securityContext": {},
                    "ports": [{ "containerPort": 80, "name": "http" }],
                }] } },
            },
        })
    }

    fn there() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "a", "namespace": "n", "uid": "u", "labels": { "app": "a", "other": "x" }, "managedFields": [
                { "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "apps/v1", "subresource": "status" },
                { "manager": "slipway", "operation": "Apply", "apiVersion": "apps/v1", "fieldsV1": {
                    "f:metadata": { "f:labels": { "f:app": {} } },
                    "f:spec": {
                        "f:replicas": {},
                        "f:selector": {},
                        "f:template": { "f:spec": { "f:containers": { "k:{\"name\":\"c\"}": {
                            ".": {}, "f:name": {}, "f:image": {}, "f:args": {}, "f:securityContext": {},
                            "f:ports": { "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                                ".": {}, "f:containerPort": {}, "f:name": {},
                            } },
                        } } } },
                    },
                } },
            ] },
            "spec": {
                "replicas": 2, "revisionHistoryLimit": 10,
                "selector": { "matchLabels": { "app": "a" } },
                "template": { "spec": { "restartPolicy": "Always", "containers": [{
                    "name": "c", "image": "i:1", "args": ["--x"], "imagePullPolicy": "IfNotPresent",
                    "ports": [{ "containerPort": 80, "name": "http", "protocol": "TCP" }],
                }] } },
            },
            "status": { "replicas": 2 },
        })
    }

    #[test]
    fn what_was_applied_as_it_is_stands() {
        assert!(stands(&manifest(), &there()));
        // As generators of CustomResourceDefinitions leave it.
        let mut with_status = manifest();
        with_status["status"] = json!({ "replicas": 0, "conditions": null });
        assert!(stands(&with_status, &there()));
    }

    #[test]
    fn a_value_that_differs_does_not() {
        for (pointer, value) in [
            ("/spec/replicas", json!(3)),
            ("/metadata/labels/app", json!("b")),
            ("/spec/template/spec/containers/0/image", json!("i:2")),
            ("/spec/template/spec/containers/0/args", json!(["--x", "--y"])),
            ("/spec/template/spec/containers/0/ports/0/containerPort", json!(81)),
        ] {
            let mut wanted = manifest();
            *wanted.pointer_mut(pointer).unwrap_or(&mut Value::Null) = value.clone();
            assert!(!stands(&wanted, &there()), "the spec asks for another {pointer}");
            let mut drifted = there();
            *drifted.pointer_mut(pointer).unwrap_or(&mut Value::Null) = value;
            assert!(!stands(&manifest(), &drifted), "somebody changed {pointer}");
        }
    }

    #[test]
    fn a_field_that_is_no_longer_or_newly_ours_does_not() {
        let mut fewer = manifest();
        fewer["spec"].as_object_mut().map(|spec| spec.shift_remove("replicas"));
        assert!(!stands(&fewer, &there()), "replicas must be given up");
        let mut more = manifest();
        more["metadata"]["labels"]["other"] = json!("x");
        assert!(!stands(&more, &there()), "a label that is somebody else's becomes ours too");
    }

    #[test]
    fn nothing_stands_that_we_did_not_apply_or_that_is_going() {
        let mut foreign = there();
        foreign["metadata"]["managedFields"][1]["manager"] = json!("helm");
        assert!(!stands(&manifest(), &foreign));
        let mut older = there();
        older["metadata"]["managedFields"][1]["apiVersion"] = json!("apps/v1beta1");
        assert!(!stands(&manifest(), &older));
        let mut going = there();
        going["metadata"]["deletionTimestamp"] = json!("2026-11-22T20:00:00Z");
        assert!(!stands(&manifest(), &going));
    }
}
