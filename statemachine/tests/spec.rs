//! A spec is read as it was written, or refused with path, value and rule of everything that is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use serde_json::{Value, json};
use slipway_statemachine::spec::{Architecture, Nat, NetworkSpec};
use slipway_statemachine::{ClusterSpec, ErrorName, StepError};

fn example() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/innovate-dev.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The example with one value put at a JSON pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = example();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match spec.pointer_mut(parent).expect(pointer) {
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        parent => parent[key] = value,
    }
    spec
}

/// The only violation's path, value, rule and name.
fn only(spec: &Value) -> (String, Value, String, ErrorName) {
    let mut found = ClusterSpec::parse(spec).expect_err("must be refused");
    assert_eq!(found.len(), 1, "{found:?}");
    let one = found.remove(0);
    (one.path, one.value, one.rule, one.name)
}

#[test]
fn only_the_name_is_needed() {
    let spec = ClusterSpec::parse(&json!({ "name": "demo" })).unwrap();
    assert_eq!((spec.region, spec.version), (None, None));
    assert!(matches!(spec.network, NetworkSpec::Create(ref create) if create.zones == 2 && create.nat == Nat::Single));
    let architectures: Vec<_> = spec.node_pools.iter().map(|pool| pool.architecture).collect();
    assert_eq!(architectures, [Architecture::Amd64, Architecture::Arm64]);
}

#[test]
fn the_example_is_accepted_and_survives_being_written() {
    let spec = ClusterSpec::parse(&example()).unwrap();
    let written = serde_json::to_value(&spec).unwrap();
    assert_eq!(ClusterSpec::parse(&written).unwrap(), spec);
}

#[test]
fn shape_errors_name_the_place_in_json_words() {
    for (pointer, value, path, rule) in [
        ("/name", json!(7), "$.name", "must be a string"),
        ("/core/size", json!("two"), "$.core.size", "must be a whole number"),
        ("/core/size", json!(-1), "$.core.size", "must be a whole number"),
        ("/network/create/zones", json!(300), "$.network.create.zones", "must be a whole number"),
        ("/network/create/nat", json!("both"), "$.network.create.nat", "must be one of `single` or `perZone`"),
        ("/network", json!({ "make": {} }), "$.network", "must be one of `create` or `existing`"),
        ("/network", json!({}), "$.network", "must be an object with a single key"),
        ("/network", json!("new"), "$.network", "must be one of `create` or `existing`"),
        ("/network/create", json!("10.0.0.0/16"), "$.network.create", "must be an object"),
        ("/karpenter", json!("1.14.1"), "$.karpenter", "must be an object"),
        ("/karpenter", json!(["1.14.1"]), "$.karpenter", "must be an object"),
        ("/karpenter/verison", json!("1.14.1"), "$.karpenter.verison", "is no field; fields are `version`"),
        ("/nodePools/1/architecture", json!("x86"), "$.nodePools[1].architecture", "must be one of `amd64` or `arm64`"),
        ("/nodePools/1/zones", json!(2), "$.nodePools[1].zones", "is no field; fields are `name`"),
        ("/nodePools", json!({}), "$.nodePools", "must be a list"),
        ("/nodePools/0", json!({ "name": "x" }), "$.nodePools[0].architecture", "is required"),
        ("/nodepools", json!([]), "$.nodepools", "is no field; fields are `name`"),
        ("/access/endpoint", json!({ "public": "yes" }), "$.access.endpoint.public", "must be a boolean"),
        ("/tags/team", json!(1), "$.tags.team", "must be a string"),
    ] {
        let found = only(&with(pointer, value.clone()));
        assert_eq!((found.0.as_str(), found.3), (path, ErrorName::InvalidInput), "{pointer} {value}");
        assert!(found.2.starts_with(rule), "{pointer}: {}", found.2);
        assert!(!found.2.contains("struct") && !found.2.contains("Spec"), "names a Rust type: {}", found.2);
    }
    for whole in [json!("demo"), json!(null), json!(["demo"]), json!(3)] {
        assert_eq!(ClusterSpec::parse(&whole).unwrap_err()[0].path.get(..1), Some("$"), "{whole}");
    }
    assert_eq!(only(&json!({})).0, "$.name");
}

#[test]
fn a_list_is_not_taken_for_an_object() {
    let found = only(&with("/network/create", json!(["10.20.0.0/16", 2, "single", false])));
    assert_eq!((found.0.as_str(), found.2.as_str()), ("$.network.create", "must be an object"));
}

#[test]
fn values_are_held_against_the_rules_of_aws() {
    let key = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    for (pointer, bad, good) in [
        ("/name", json!("-demo"), json!("demo_1")),
        ("/name", json!("de.mo"), json!("D")),
        ("/name", json!(""), json!("x".repeat(100))),
        ("/name", json!("x".repeat(101)), json!("9lives")),
        ("/region", json!("eu-west"), json!("ap-southeast-2")),
        ("/region", json!("Frankfurt"), json!("ap-southeast-2")),
        ("/account", json!("12345"), json!("012345678901")),
        ("/version", json!("v1.36"), json!("1.35")),
        ("/version", json!("1.36.1"), json!("1.36")),
        ("/network/create/cidr", json!("10.20.0.0/15"), json!("10.20.0.0/16")),
        ("/network/create/cidr", json!("10.20.0.0/21"), json!("10.20.16.0/20")),
        ("/network/create/cidr", json!("10.20.0.1/16"), json!("172.16.0.0/18")),
        ("/network/create/cidr", json!("fd00::/16"), json!("192.168.0.0/16")),
        ("/network/create/zones", json!(1), json!(3)),
        ("/network/create/zones", json!(4), json!(2)),
        ("/access/admins/0", json!("arn:aws:iam::111122223333:root"), json!("arn:aws:iam::111122223333:role/path/X")),
        ("/access/admins/0", json!("PlatformAdmin"), json!("arn:aws:iam::111122223333:user/x")),
        (
            "/access/admins/0",
            json!("arn:aws:sts::111122223333:assumed-role/X/y"),
            json!("arn:aws:iam::111122223333:role/X"),
        ),
        ("/core/size", json!(1), json!(3)),
        ("/core/instanceTypes", json!([]), json!(["m7g.large", "u-6tb1.metal"])),
        ("/core/instanceTypes/0", json!("t4g"), json!("t4g.small")),
        ("/karpenter/version", json!("v1.14.1"), json!("1.15.0-rc.1")),
        ("/karpenter/version", json!("1.14"), json!("1.14.0")),
        ("/karpenter/chart", json!("https://x/y"), json!("oci://registry.example:5000/karpenter")),
        ("/karpenter/chart", json!("oci://x/y:1.14.1"), json!("oci://x/y")),
        ("/karpenter/namespace", json!("Karpenter"), json!("kube-system")),
        ("/karpenter/maxHeals", json!(21), json!(0)),
        ("/nodePools", json!([]), json!([{ "name": "x86", "architecture": "amd64" }])),
        ("/nodePools/0/name", json!("x_86"), json!("x-86")),
        ("/nodePools/0/name", json!("graviton"), json!("general")),
        ("/nodePools/0/capacity", json!([]), json!(["on-demand"])),
        ("/nodePools/0/capacity", json!(["spot", "spot"]), json!(["on-demand", "spot"])),
        ("/addons", json!({ "a b": {} }), json!({ "aws-ebs-csi-driver": { "version": "v1.50.0-eksbuild.1" } })),
        ("/addons", json!({ "a": { "configuration": 3 } }), json!({ "a": { "configuration": { "replicas": 1 } } })),
        (
            "/addons",
            json!({ "a": { "identity": { "roleArn": "r" } } }),
            json!({ "a": { "identity": { "policyArns": [] } } }),
        ),
        (
            "/addons",
            json!({ "a": { "identity": { "policyArns": ["arn:aws:iam::aws:role/x"] } } }),
            json!({ "a": { "identity": { "roleArn": "arn:aws:iam::111122223333:role/slipway-addon-x" } } }),
        ),
        ("/adopt", json!("yes"), json!(true)),
        ("/access/endpoint", json!({ "public": false, "private": false }), json!({ "public": false })),
        ("/logging", json!(["api", "kubelet"]), json!(["api", "controllerManager"])),
        ("/logging", json!(["api", "api"]), json!([])),
        ("/encryptionKeyArn", json!("alias/x"), json!(key)),
        ("/verify", json!({ "image": "busy box" }), json!({ "image": "busybox", "when": "always" })),
        ("/tags/team", json!("a*b"), json!("a b/c")),
        ("/tags/aws:x", json!("y"), json!(null)),
        ("/tags/AWS:x", json!("y"), json!(null)),
        ("/tags/slipway:cluster", json!("y"), json!(null)),
        ("/tags/karpenter.sh~1discovery", json!("y"), json!(null)),
        ("/tags/Team", json!("y"), json!(null)),
    ] {
        let pointer = pointer.replace("~1", "/");
        let bad = if let Some(key) = pointer.strip_prefix("/tags/") {
            let mut spec = example();
            spec["tags"][key] = bad;
            spec
        } else {
            with(&pointer, bad)
        };
        let found = only(&bad);
        assert_eq!(found.3, ErrorName::InvalidInput, "{pointer}");
        assert!(
            found.0.starts_with(&format!("$.{}", pointer[1..].split('/').next().unwrap())),
            "{pointer}: {}",
            found.0
        );
        if !good.is_null() {
            let accepted = with(&pointer, good.clone());
            assert!(ClusterSpec::parse(&accepted).is_ok(), "{pointer} {good}: {:?}", ClusterSpec::parse(&accepted));
        }
    }
}

#[test]
fn an_existing_network_needs_two_subnets() {
    let network = |subnets: Value| {
        with("/network", json!({ "existing": { "vpcId": "vpc-0123456789abcdef0", "subnetIds": subnets } }))
    };
    assert!(ClusterSpec::parse(&network(json!(["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]))).is_ok());
    assert_eq!(only(&network(json!(["subnet-0123456789abcdef0"]))).0, "$.network.existing.subnetIds");
    assert_eq!(only(&network(json!(["subnet-01234567", "eni-1"]))).0, "$.network.existing.subnetIds[1]");
}

#[test]
fn what_is_not_acted_on_yet_is_refused_by_its_own_name() {
    for (pointer, value, path) in [
        ("/ttl", json!("8h"), "$.ttl"),
        ("/awake", json!({ "hours": "Mon-Fri 07:00-20:00" }), "$.awake"),
        ("/drift", json!("repair"), "$.drift"),
    ] {
        let found = only(&with(pointer, value));
        assert_eq!((found.0.as_str(), found.3), (path, ErrorName::NotYetSupported));
    }
    assert!(ClusterSpec::parse(&with("/mode", json!("plan"))).is_ok());
    assert_eq!(only(&with("/mode", json!("pln"))).3, ErrorName::InvalidInput);
    let nowhere = only(&with("/access/endpoint", json!({ "public": false, "private": false })));
    assert_eq!((nowhere.0.as_str(), nowhere.3), ("$.access.endpoint", ErrorName::InvalidInput));
}

#[test]
fn everything_is_reported_at_once_in_one_error() {
    let mut spec = with("/name", json!("a b"));
    spec["ttl"] = json!("8h");
    spec["core"]["size"] = json!(1);
    let violations = ClusterSpec::parse(&spec).unwrap_err();
    assert_eq!(violations.len(), 3);
    let error = StepError::from(violations);
    assert_eq!(error.name, ErrorName::InvalidInput);
    for part in ["$.name", "\"a b\"", "$.ttl", "not supported yet", "$.core.size", "not 1"] {
        assert!(error.cause.contains(part), "{part} is missing in: {}", error.cause);
    }
    let later = StepError::from(ClusterSpec::parse(&with("/ttl", json!("8h"))).unwrap_err());
    assert_eq!(later.name, ErrorName::NotYetSupported);
}

proptest! {
    /// Whatever is put at whatever place, the answer is a spec that survives being written, or violations that
    /// lead to the place.
    #[test]
    fn any_value_anywhere_is_read_or_refused_at_its_place(
        pointer in proptest::sample::select(vec![
            "/name", "/region", "/account", "/version", "/network", "/network/create", "/network/create/cidr", "/network/create/zones",
            "/access", "/access/admins", "/access/endpoint", "/core", "/core/size", "/core/instanceTypes", "/karpenter",
            "/karpenter/version", "/karpenter/values", "/nodePools", "/nodePools/0", "/nodePools/0/capacity", "/addons", "/tags", "/other",
        ]),
        value in json_value(),
    ) {
        match ClusterSpec::parse(&with(pointer, value)) {
            Ok(spec) => prop_assert_eq!(ClusterSpec::parse(&serde_json::to_value(&spec).unwrap()).unwrap(), spec),
            Err(violations) => {
                prop_assert!(!violations.is_empty());
                let top = pointer.split('/').nth(1).unwrap();
                for violation in violations {
                    prop_assert!(violation.path.starts_with(&format!("$.{top}")), "{} is not in {pointer}", violation.path);
                    prop_assert!(!violation.rule.is_empty() && !violation.rule.contains("struct"), "{}", violation.rule);
                }
            }
        }
    }

    #[test]
    fn blocks_of_16_to_20_are_taken(a in 1u8..224, b: u8, prefix in 8u8..29) {
        let cidr = format!("{a}.{b}.0.0/{prefix}");
        // Blocks of hosts themselves and of links, which EC2 gives to no VPC.
        prop_assume!(a != 127 && (a, b) != (169, 254));
        let aligned = prefix >= 16;
        let accepted = ClusterSpec::parse(&with("/network/create/cidr", json!(cidr))).is_ok();
        prop_assert_eq!(accepted, aligned && prefix <= 20);
    }
}

/// A spec that uses every field, to be mutated.
fn whole() -> Value {
    json!({
        "name": "demo", "region": "eu-west-1", "account": "111122223333", "version": "1.36",
        "network": { "create": { "cidr": "10.20.0.0/16", "zones": 2, "nat": "single", "flowLogs": false } },
        "access": {
            "admins": ["arn:aws:iam::111122223333:role/PlatformAdmin"],
            "endpoint": { "public": true, "private": true, "cidrs": ["0.0.0.0/0"] },
        },
        "core": { "instanceTypes": ["t4g.medium"], "size": 2 },
        "karpenter": {
            "version": "1.14.1", "chart": "oci://public.ecr.aws/karpenter/karpenter", "namespace": "karpenter",
            "identity": "irsa", "maxHeals": 5, "values": { "replicas": 2 },
        },
        "nodePools": [{ "name": "x86", "architecture": "amd64", "capacity": ["spot", "on-demand"] }],
        "addons": { "aws-ebs-csi-driver": {
            "version": "v1.55.0-eksbuild.1", "configuration": { "controller": {} }, "identity": { "policyArns": [] },
        } },
        "logging": ["api"], "encryptionKeyArn": "arn:aws:kms:eu-west-1:111122223333:key/1",
        "upgradePolicy": "STANDARD", "zonalShift": false, "deletionProtection": false,
        "verify": { "image": "busybox", "when": "changed" }, "adopt": false, "tags": { "team": "a" },
    })
}

/// The pointers to everything in a value, itself excepted.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    let mut visit = |key: String, value: &Value| {
        let pointer = format!("{at}/{key}");
        pointers(value, &pointer, all);
        all.push(pointer);
    };
    match value {
        Value::Object(members) => members.iter().for_each(|(key, value)| visit(key.clone(), value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| visit(index.to_string(), value)),
        _ => {}
    }
}

/// What can go wrong with a value when people and programs write it.
#[derive(Debug, Clone)]
enum Slip {
    Remove,
    Put(Value),
    Wrap,
    Twice,
    Misspell,
    AsText,
    Stretch(usize),
}

fn slip() -> impl Strategy<Value = Slip> {
    prop_oneof![
        Just(Slip::Remove),
        json_value().prop_map(Slip::Put),
        prop_oneof!["\\PC{0,8}", "[a-z]{1,4}-[é☃-]{0,3}"].prop_map(|text| Slip::Put(Value::from(text))),
        Just(Slip::Wrap),
        Just(Slip::Twice),
        Just(Slip::Misspell),
        Just(Slip::AsText),
        (1usize..600).prop_map(Slip::Stretch),
    ]
}

/// A spec with one more thing wrong with it, or right in another way.
fn slipped(mut spec: Value, place: usize, slip: &Slip) -> Value {
    let mut all = Vec::new();
    pointers(&spec, "", &mut all);
    let Some(pointer) = all.get(place % all.len().max(1)) else { return spec };
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let old = spec.pointer(pointer).cloned().unwrap_or_default();
    let new = match slip {
        Slip::Put(value) => Some((key.to_owned(), value.clone())),
        Slip::Wrap => Some((key.to_owned(), json!([old]))),
        Slip::AsText => Some((key.to_owned(), json!(old.to_string()))),
        Slip::Misspell => Some((format!("{key}s"), old)),
        Slip::Stretch(times) => {
            Some((key.to_owned(), old.as_str().map_or_else(|| old.clone(), |text| text.repeat(*times).into())))
        }
        Slip::Remove | Slip::Twice => None,
    };
    match spec.pointer_mut(parent).unwrap() {
        Value::Object(members) => match new {
            Some((name, value)) => {
                members.shift_remove(key);
                members.insert(name, value);
            }
            None => drop(members.shift_remove(key)),
        },
        Value::Array(items) => {
            let index: usize = key.parse().unwrap();
            match (new, slip) {
                (Some((_, value)), _) => items[index] = value,
                (None, Slip::Twice) => items.push(items[index].clone()),
                (None, _) => drop(items.remove(index)),
            }
        }
        _ => {}
    }
    spec
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// However a whole spec is mutilated, it is read, or refused with path, value and rule, in a cause that fits.
    #[test]
    fn a_mutated_spec_is_accepted_or_refused_with_path_value_and_rule(
        slips in prop::collection::vec((any::<prop::sample::Index>(), slip()), 1..5),
    ) {
        let spec = slips.iter().fold(whole(), |spec, (place, slip)| slipped(spec, place.index(1000), slip));
        match ClusterSpec::parse(&spec) {
            Ok(read) => prop_assert_eq!(ClusterSpec::parse(&json!(read)).unwrap(), read),
            Err(violations) => {
                prop_assert!(!violations.is_empty());
                for violation in &violations {
                    prop_assert!(violation.path.starts_with('$'), "{violation}");
                    prop_assert!(!violation.rule.is_empty(), "{}", violation.path);
                    for leak in ["struct", "Spec", "enum", "variant"] {
                        prop_assert!(!violation.rule.contains(leak), "{violation}");
                    }
                }
                let error = StepError::from(violations);
                prop_assert!(ErrorName::ALL.contains(&error.name) && error.cause.chars().count() < 32_000);
            }
        }
    }
}

#[test]
fn the_whole_spec_is_accepted() {
    assert_eq!(ClusterSpec::parse(&whole()).map(drop), Ok(()));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u32..5).prop_map(Value::from),
        "[a-z0-9.:/-]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,8}|name|version|size|cidr", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}
