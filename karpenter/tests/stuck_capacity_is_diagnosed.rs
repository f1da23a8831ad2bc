//! A pod that waits for a node: each way in which it may wait for ever, from what Kubernetes, Karpenter and AWS say.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};
use slipway_karpenter::diagnosis::capacity::{Kind, Machines, Observed, Report, diagnose};
use slipway_statemachine::ErrorName;

const MADE: &str = "2026-11-22T09:00:00Z";

fn pod() -> Value {
    let waits = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/2 nodes are \
                 available: 2 Preemption is not helpful for scheduling.";
    json!({
        "metadata": { "name": "verify-amd64", "namespace": "slipway-verify", "creationTimestamp": MADE },
        "spec": { "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "karpenter.sh/nodepool", "operator": "In", "values": ["x86"] },
            ] }],
        } } } },
        "status": { "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": waits },
        ] },
    })
}

/// A claim of which so many of Launched, Registered, Initialized hold; the next says why it does not.
fn claim(name: &str, reached: usize, reason: &str, message: &str) -> Value {
    let conditions: Vec<Value> = ["Launched", "Registered", "Initialized"]
        .into_iter()
        .enumerate()
        .map(|(number, kind)| match number {
            n if n < reached => json!({ "type": kind, "status": "True", "reason": kind, "message": "" }),
            n if n == reached => json!({ "type": kind, "status": "Unknown", "reason": reason, "message": message }),
            _ => json!({
                "type": kind, "status": "Unknown", "reason": "AwaitingReconciliation",
                "message": "object is awaiting reconciliation",
            }),
        })
        .collect();
    json!({
        "metadata": {
            "name": name, "creationTimestamp": "2026-11-22T09:00:02Z",
            "labels": {
                "karpenter.sh/nodepool": "x86", "node.kubernetes.io/instance-type": "c7i-flex.large",
                "karpenter.sh/capacity-type": "spot", "topology.kubernetes.io/zone": "eu-west-1a",
            },
        },
        "status": {
            "conditions": conditions, "providerID": "aws:///eu-west-1a/i-0a1b2c3d",
            "nodeName": if reached > 1 { "ip-10-20-1-5" } else { "" },
        },
    })
}

fn event(reason: &str, kind: &str, name: &str, at: &str, message: &str) -> Value {
    json!({
        "type": "Warning", "reason": reason, "message": message, "lastTimestamp": format!("2026-11-22T{at}Z"),
        "involvedObject": { "kind": kind, "name": name },
    })
}

fn seen(claims: Vec<Value>, events: Vec<Value>) -> Observed {
    Observed { pod: pod(), claims, events, ..Observed::default() }
}

fn kind(report: &Report) -> Kind {
    report.kind.clone().unwrap_or_else(|| panic!("nothing speaks against it: {report:?}"))
}

const SHORT: &str = "NodeClaim x86-7tq2w event: insufficient capacity, with fleet error(s), InsufficientInstanceCapacity: We \
                     currently do not have sufficient c7i-flex.large capacity in the Availability Zone you requested \
                     (eu-west-1a).";

#[test]
fn a_pod_that_was_just_made_is_on_its_way() {
    let report = diagnose(&seen(vec![], vec![]));
    assert_eq!((report.kind.clone(), report.name()), (None, ErrorName::CapacityNotVerified));
    assert!(
        report.detail.starts_with("pod verify-amd64 does not run yet: Unschedulable 0/2 nodes"),
        "{}",
        report.detail
    );
    let report = diagnose(&seen(vec![claim("x86-7tq2w", 0, "AwaitingReconciliation", "")], vec![]));
    assert_eq!(report.kind, None);
    let report = diagnose(&seen(vec![claim("x86-7tq2w", 3, "", "")], vec![]));
    assert_eq!(report.kind, None, "the scheduler binds it any moment");
}

#[test]
fn a_launch_that_ec2_has_no_room_for_is_told_from_a_quota_and_from_a_denial() {
    for (words, expected) in [
        (SHORT, Kind::NoCapacity),
        (
            "NodeClaim x86-a event: insufficient capacity, all requested instance types were unavailable during launch",
            Kind::NoCapacity,
        ),
        (
            "NodeClaim x86-a event: insufficient capacity, with fleet error(s), InsufficientFreeAddressesInSubnet: There are not enough free addresses in subnet 'subnet-1'",
            Kind::NoCapacity,
        ),
        (
            "NodeClaim x86-a event: insufficient capacity, with fleet error(s), VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU limit of 5 allows",
            Kind::Quota,
        ),
        (
            "NodeClaim x86-a event: insufficient capacity, with fleet error(s), MaxSpotInstanceCountExceeded: Max spot instance count exceeded; VcpuLimitExceeded: no",
            Kind::Quota,
        ),
        (
            "NodeClaim x86-a event: insufficient capacity, with fleet error(s), MaxSpotInstanceCountExceeded: no; InsufficientInstanceCapacity: no",
            Kind::NoCapacity,
        ),
        (
            "NodeClaim x86-a event: insufficient capacity, with fleet error(s), AuthFailure.ServiceLinkedRoleCreationNotPermitted: The provided credentials do not have permission to create the service-linked role for EC2 Spot Instances.",
            Kind::Denied { action: "iam:CreateServiceLinkedRole".into() },
        ),
    ] {
        let report = diagnose(&seen(
            vec![],
            vec![event("InsufficientCapacityError", "NodeClaim", "x86-7tq2w", "09:00:03", words)],
        ));
        assert_eq!(kind(&report), expected, "{words}");
        assert!(report.cause().contains(words), "{}", report.cause());
        assert!(report.cause().contains("0/2 nodes are available"), "the scheduler's words: {}", report.cause());
    }
    for (reason, message, expected) in [
        (
            "Unauthorized",
            "Error creating fleet request: User is not authorized to perform this operation because no identity-based policy allows it",
            Kind::Denied { action: "ec2:CreateFleet".into() },
        ),
        (
            "Unauthorized",
            "Error getting launch template configs: User is not authorized to perform this operation due to a service control policy",
            Kind::Denied { action: "ec2:CreateLaunchTemplate".into() },
        ),
        (
            "Unauthorized",
            "User is not authorized to perform this operation due to a permission boundary",
            Kind::Denied { action: "ec2:RunInstances".into() },
        ),
        (
            "SpotSLRCreationFailed",
            "User does not have sufficient permission to create the Spot ServiceLinkedRole to launch spot instances",
            Kind::Denied { action: "iam:CreateServiceLinkedRole".into() },
        ),
        ("VCPULimitExceeded", "An instance was requested that would exceed your VCPU quota", Kind::Quota),
        ("SecurityGroupSubnetVPCMismatch", "Security groups and subnets must be in the same VPC.", Kind::LaunchFails),
        ("LaunchFailed", "Instance launch failed", Kind::LaunchFails),
    ] {
        let report = diagnose(&seen(vec![claim("x86-7tq2w", 0, reason, message)], vec![]));
        assert_eq!(kind(&report), expected, "{message}");
        assert!(report.cause().contains(message), "{}", report.cause());
    }
}

#[test]
fn a_shortage_lasts_while_claims_come_and_go_and_ends_with_the_first_launch() {
    let short = || vec![event("InsufficientCapacityError", "NodeClaim", "x86-7tq2w", "09:00:03", SHORT)];
    let trying = claim("x86-b", 0, "AwaitingReconciliation", "object is awaiting reconciliation");
    assert_eq!(kind(&diagnose(&seen(vec![trying], short()))), Kind::NoCapacity);
    let launched = claim("x86-b", 1, "NodeNotFound", "Node not registered with cluster");
    assert!(matches!(kind(&diagnose(&seen(vec![launched], short()))), Kind::NeverJoins { .. }), "on demand, say");
}

#[test]
fn what_happened_before_the_pod_and_to_others_is_no_news() {
    let old = event("InsufficientCapacityError", "NodeClaim", "x86-old", "08:59:59", SHORT);
    let others = event("InsufficientCapacityError", "NodeClaim", "graviton-x", "09:00:05", SHORT);
    assert_eq!(diagnose(&seen(vec![], vec![old, others])).kind, None);
    let mut before = claim("x86-before", 0, "Unauthorized", "no");
    before["metadata"]["creationTimestamp"] = json!("2026-11-22T08:00:00Z");
    assert_eq!(diagnose(&seen(vec![before.clone()], vec![])).kind, None);
    let nominated =
        event("Nominated", "Pod", "verify-amd64", "09:00:01", "Pod should schedule on: nodeclaim/x86-before");
    assert!(
        diagnose(&seen(vec![before.clone()], vec![nominated.clone()])).kind.is_some(),
        "Karpenter says that it is ours"
    );
    before["metadata"]["deletionTimestamp"] = json!("2026-11-22T09:00:03Z");
    assert_eq!(diagnose(&seen(vec![before], vec![nominated])).kind, None, "on its way out");
}

#[test]
fn no_type_that_fits_is_karpenters_word_and_not_the_schedulers() {
    let limits = "Failed to schedule pod, all available instance types exceed limits for nodepool (NodePool=x86)";
    let fits = |message: &str| {
        diagnose(&seen(vec![], vec![event("FailedScheduling", "Pod", "verify-amd64", "09:00:03", message)]))
    };
    assert_eq!(kind(&fits(limits)), Kind::NothingFits);
    assert_eq!(fits(limits).name(), ErrorName::NoInstanceTypeFits);
    assert_eq!(fits("0/2 nodes are available: 2 node(s) didn't match").kind, None);
    let offering =
        "Failed to schedule pod, incompatible with nodepool \"x86\", no instance type has the required offering";
    let both = vec![
        event("InsufficientCapacityError", "NodeClaim", "x86-7tq2w", "09:00:03", SHORT),
        event("FailedScheduling", "Pod", "verify-amd64", "09:00:09", offering),
    ];
    assert_eq!(kind(&diagnose(&seen(vec![], both))), Kind::NoCapacity, "no offering, because EC2 had none");
}

#[test]
fn a_machine_that_does_not_join_is_looked_at_with_aws() {
    let mut observed = seen(vec![claim("x86-7tq2w", 1, "NodeNotFound", "Node not registered with cluster")], vec![]);
    let report = diagnose(&observed);
    assert_eq!(kind(&report), Kind::NeverJoins { no_entry: false });
    assert!(report.asks_machines());
    assert_eq!(
        report.detail,
        "instance i-0a1b2c3d (c7i-flex.large, spot, eu-west-1a) of node claim x86-7tq2w has not joined the cluster yet"
    );
    observed.machines = Some(Machines { may_join: false, ..Machines::default() });
    let report = diagnose(&observed);
    assert_eq!((kind(&report), kind(&report).patience()), (Kind::NeverJoins { no_entry: true }, 0));
    assert!(
        !report.asks_machines() && report.cause().contains("has no access entry of type EC2_LINUX"),
        "{}",
        report.cause()
    );
    assert!(report.cause().contains("EC2 does not know it"), "{}", report.cause());
    let states = [(
        "i-0a1b2c3d".to_owned(),
        "terminated, Client.InvalidKMSKey.InvalidState: the KMS key is disabled".to_owned(),
    )];
    observed.machines = Some(Machines { may_join: true, states: states.into() });
    let report = diagnose(&observed);
    assert_eq!((kind(&report), report.name()), (Kind::NeverJoins { no_entry: false }, ErrorName::NodesNeverJoin));
    assert!(report.cause().contains("terminated, Client.InvalidKMSKey.InvalidState"), "{}", report.cause());
}

#[test]
fn a_node_that_is_not_ready_says_what_its_kubelet_says() {
    let mut observed = seen(vec![claim("x86-7tq2w", 2, "NodeNotReady", "Node status is NotReady")], vec![]);
    observed.nodes = vec![json!({ "metadata": { "name": "ip-10-20-1-5" }, "status": { "conditions": [{
        "type": "Ready", "status": "False", "reason": "KubeletNotReady",
        "message": "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized",
    }] } })];
    let report = diagnose(&observed);
    assert_eq!((kind(&report), report.name()), (Kind::NodeNotReady, ErrorName::CapacityNotVerified));
    assert!(
        report.detail.contains("NodeNotReady") && report.detail.contains("cni plugin not initialized"),
        "{}",
        report.detail
    );
}

#[test]
fn a_pod_on_its_node_says_what_its_image_says() {
    let on_node = |reason: &str| {
        let mut pod = pod();
        pod["status"]["containerStatuses"] =
            json!([{ "state": { "waiting": { "reason": reason, "message": "not found" } } }]);
        diagnose(&Observed { pod, ..Observed::default() })
    };
    assert_eq!(kind(&on_node("ErrImagePull")), Kind::ImagePull { hopeless: false });
    assert_eq!(kind(&on_node("InvalidImageName")).patience(), 0);
    assert_eq!(on_node("ContainerCreating").kind, None);
    assert!(on_node("ErrImagePull").cause().contains("ErrImagePull not found"));
}

#[test]
fn evidence_is_without_secrets_and_bounded() {
    let secret = format!("{SHORT} eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln {}", "x".repeat(10_000));
    let report =
        diagnose(&seen(vec![], vec![event("InsufficientCapacityError", "NodeClaim", "x86-a", "09:00:03", &secret)]));
    assert!(!report.cause().contains("eyJ") && !report.detail.contains("eyJ"), "{}", report.cause());
    assert!(report.cause().chars().count() < 7_000);
}

/// Objects with the fields that are looked at, of whatever type.
fn any_object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        prop::sample::select(vec![
            "True",
            "Launched",
            "Registered",
            "Pod",
            "NodeClaim",
            "InsufficientCapacityError",
            MADE,
            SHORT
        ])
        .prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "metadata",
        "name",
        "creationTimestamp",
        "status",
        "conditions",
        "type",
        "reason",
        "message",
        "providerID",
        "containerStatuses",
        "state",
        "waiting",
        "involvedObject",
        "kind",
        "lastTimestamp",
        "labels",
        "nodeName",
    ]);
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_is_observed_there_is_a_cause(
        pod in any_object(),
        claims in prop::collection::vec(any_object(), 0..3),
        nodes in prop::collection::vec(any_object(), 0..2),
        events in prop::collection::vec(any_object(), 0..3),
        asked in any::<bool>(),
    ) {
        let machines = asked.then(Machines::default);
        let report = diagnose(&Observed { pod, claims, nodes, events, machines });
        prop_assert!(!report.cause().is_empty());
        prop_assert!(!(asked && report.asks_machines()));
    }
}
