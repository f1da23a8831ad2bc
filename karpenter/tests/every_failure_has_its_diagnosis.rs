//! From states of pods, logs and events, recorded on the local cloud or written as documented, to what is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use serde_json::{Value, json};
use slipway_karpenter::diagnosis::{
    Diagnosis, Expected, Identity, Kind, Observed, Pod, Queue, Scarcity, diagnose, interruption_queue,
};
use slipway_karpenter::identity::Flaw;
use slipway_statemachine::ErrorName;

const ROLE: &str = "arn:aws:iam::111122223333:role/slipway-eks-demo-eu-west-1-controller";
const ISSUER: &str = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC";

fn deployment(updated: u64, available: u64, total: u64) -> Value {
    json!({
        "metadata": { "generation": 3 },
        "spec": { "replicas": 2 },
        "status": {
            "observedGeneration": 3, "updatedReplicas": updated, "availableReplicas": available,
            "readyReplicas": available, "replicas": total,
        },
    })
}

fn environment(identity: &str) -> Value {
    match identity {
        "irsa" => json!([{ "name": "AWS_ROLE_ARN", "value": ROLE }, { "name": "AWS_REGION", "value": "eu-west-1" }]),
        "podIdentity" => json!([{
            "name": "AWS_CONTAINER_CREDENTIALS_FULL_URI", "value": "http://169.254.170.23/v1/credentials",
        }]),
        "" => json!([{ "name": "CLUSTER_NAME", "value": "demo" }]),
        role => json!([{ "name": "AWS_ROLE_ARN", "value": role }]),
    }
}

fn pod(name: &str, identity: &str, status: &Value, log: &str) -> Pod {
    let object = json!({
        "metadata": { "name": name, "uid": format!("uid-{name}") },
        "spec": { "nodeName": "ip-10-20-1-10", "containers": [{ "name": "controller", "env": environment(identity) }] },
        "status": status,
    });
    Pod { object, log: log.to_owned(), previous_log: String::new() }
}

/// A pod in kubelet's back-off after its container exited.
fn crashed(exit_code: i64, log: &str) -> Pod {
    crashed_as("irsa", exit_code, log)
}

fn crashed_as(identity: &str, exit_code: i64, log: &str) -> Pod {
    let status = json!({ "containerStatuses": [{
        "ready": false, "restartCount": 2,
        "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 20s restarting" } },
        "lastState": { "terminated": { "exitCode": exit_code, "reason": "Error" } },
    }] });
    pod("karpenter-a", identity, &status, log)
}

fn running(ready: bool, log: &str) -> Pod {
    let status = json!({ "containerStatuses": [{ "ready": ready, "state": { "running": {} } }] });
    pod("karpenter-a", "irsa", &status, log)
}

fn irsa(flaw: Option<Flaw>) -> Identity {
    Identity { expected: Expected::WebIdentity { role_arn: ROLE.to_owned() }, flaw: Some(flaw) }
}

fn failing(pod: Pod) -> Observed {
    Observed {
        deployment: Some(deployment(2, 0, 2)),
        pods: vec![pod],
        identity: Some(irsa(None)),
        ..Observed::default()
    }
}

fn kind(observed: &Observed) -> Kind {
    match diagnose(observed).diagnosis {
        Diagnosis::Fatal(kind) => kind,
        other => panic!("{other}: {observed:?}"),
    }
}

/// A real Karpenter 1.14.1 whose identity STS does not believe yet.
const REFUSED: &str = concat!(
    r#"{"level":"INFO","time":"2026-11-22T20:53:32.203Z","message":"Unable to read vcs.revision from binary"}"#,
    "\n",
    r#"{"level":"ERROR","time":"2026-11-22T20:53:32.403Z","logger":"controller","message":"ec2 api connectivity check failed","#,
    r#""error":"operation error EC2: DescribeInstanceTypes, get identity: get credentials: failed to refresh cached credentials, "#,
    r#"failed to retrieve credentials, operation error STS: AssumeRoleWithWebIdentity, https response error StatusCode: 403, "#,
    r#"RequestID: 0b5c, api error AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity"}"#,
    "\n"
);

/// The same for an issuer that STS has not heard of.
const NO_PROVIDER: &str = concat!(
    r#"{"level":"ERROR","message":"ec2 api connectivity check failed","error":"operation error EC2: DescribeInstanceTypes, "#,
    r#"exceeded maximum number of attempts, 3, get identity: get credentials: failed to refresh cached credentials, operation "#,
    r#"error STS: AssumeRoleWithWebIdentity, https response error StatusCode: 400, RequestID: 1, InvalidIdentityToken: No "#,
    r#"OpenIDConnect provider found in your account for https://oidc.eks.eu-west-1.amazonaws.com/id/ABC"}"#,
);

/// SDK v1, as Karpenter up to 0.3x says it on its console.
const V1: &str = "2024-01-04T20:42:05.150Z\tFATAL\tcontroller\tChecking EC2 API connectivity, WebIdentityErr: failed to retrieve \
                  credentials\ncaused by: AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity\n\tstatus code: \
                  403, request id: 97ec51e8";

/// Nothing injected, and no region: Go's panic.
const NO_REGION: &str = "panic: unable to determine region from IMDS: operation error ec2imds: GetRegion, request canceled\n\n\
                         goroutine 1 [running]:\ngithub.com/samber/lo.must({0x1, 0x2})\n";

#[test]
fn all_replicas_available_and_current_is_ready() {
    let observed = Observed { deployment: Some(deployment(2, 2, 2)), ..Observed::default() };
    let report = diagnose(&observed);
    assert_eq!((report.diagnosis, report.detail.as_str()), (Diagnosis::Ready, "2 of 2 replicas are ready"));
    assert_eq!((report.evidence.as_str(), report.failing_pods.len()), ("", 0));
}

#[test]
fn old_replicas_an_unseen_change_or_none_at_all_are_not_ready() {
    let mut unseen = deployment(2, 2, 2);
    unseen["metadata"]["generation"] = json!(4);
    let mut nobody = deployment(0, 0, 0);
    nobody["spec"]["replicas"] = json!(0);
    for deployment in [deployment(2, 2, 3), deployment(1, 2, 2), deployment(2, 1, 2), unseen, nobody] {
        let observed = Observed { deployment: Some(deployment), ..Observed::default() };
        assert_eq!(diagnose(&observed).diagnosis, Diagnosis::Progressing);
    }
    let report = diagnose(&Observed::default());
    assert_eq!((report.diagnosis.name(), report.failing_pods.len()), (ErrorName::KarpenterNotReady, 0));
}

#[test]
fn a_refusal_is_a_race_unless_iam_says_that_it_never_passes() {
    for log in [REFUSED, NO_PROVIDER, V1] {
        let report = diagnose(&failing(crashed(1, log)));
        assert_eq!(report.diagnosis, Diagnosis::IdentityRace, "{log}");
        assert!(report.asks_identity() && report.healable());
        assert_eq!(report.failing_pods[0].uid, "uid-karpenter-a");
        assert!(report.failing_pods[0].reason.contains("AssumeRoleWithWebIdentity") || log == V1, "{report:?}");
    }
    let provider_arn = "arn:p".to_owned();
    let trust = Flaw::Trust { why: "it asks for another subject".to_owned() };
    for (flaw, name, words) in [
        (
            Flaw::NoProvider { provider_arn: provider_arn.clone() },
            ErrorName::OidcProviderMissing,
            "arn:p does not exist",
        ),
        (Flaw::NoAudience { provider_arn }, ErrorName::IdentityRefused, "does not list the audience sts.amazonaws.com"),
        (Flaw::NoRole { role_arn: ROLE.to_owned() }, ErrorName::IdentityRefused, "controller does not exist"),
        (trust, ErrorName::IdentityRefused, "it asks for another subject"),
        (Flaw::NotAnnotated { found: None }, ErrorName::IdentityNotInjected, "has no annotation"),
    ] {
        let observed = Observed { identity: Some(irsa(Some(flaw))), ..failing(crashed(1, REFUSED)) };
        let report = diagnose(&observed);
        assert_eq!(report.diagnosis.name(), name, "{report:?}");
        assert!(report.cause().contains(words) && report.cause().contains("exited with 1"), "{}", report.cause());
        assert!(!report.healable());
    }
}

#[test]
fn the_message_that_the_kubelet_kept_counts_like_a_log() {
    let mut pod = crashed(1, "");
    pod.object["status"]["containerStatuses"][0]["lastState"]["terminated"]["message"] = json!(REFUSED);
    assert_eq!(diagnose(&failing(pod)).diagnosis, Diagnosis::IdentityRace);
    let mut pod = crashed(1, "");
    pod.previous_log = REFUSED.to_owned();
    assert_eq!(diagnose(&failing(pod)).diagnosis, Diagnosis::IdentityRace);
}

#[test]
fn a_pod_without_the_identity_that_was_meant_for_it_was_not_injected() {
    let imds = r#"{"level":"ERROR","message":"ec2 api connectivity check failed","error":"operation error EC2: DescribeInstanceTypes, get identity: get credentials: failed to refresh cached credentials, no EC2 IMDS role found, operation error ec2imds"}"#;
    for pod in [crashed_as("", 2, NO_REGION), crashed_as("", 1, imds), crashed_as("arn:old", 1, REFUSED)] {
        let report = diagnose(&failing(pod.clone()));
        assert_eq!(report.diagnosis, Diagnosis::Fatal(Kind::NotInjected(None)));
        assert!(report.healable(), "a pod made anew would be injected");
        let flaw = Flaw::NotAnnotated { found: None };
        let report = diagnose(&Observed { identity: Some(irsa(Some(flaw.clone()))), ..failing(pod) });
        assert_eq!(report.diagnosis, Diagnosis::Fatal(Kind::NotInjected(Some(flaw))));
        assert!(!report.healable(), "and one without annotation would not");
    }
}

#[test]
fn pod_identity_has_the_same_two_outcomes() {
    let refused = r#"{"level":"ERROR","message":"ec2 api connectivity check failed","error":"operation error EC2: DescribeInstanceTypes, get identity: get credentials: failed to refresh cached credentials, failed to load credentials, : AccessDeniedException: no association"}"#;
    let identity = |flaw| Some(Identity { expected: Expected::PodIdentity, flaw: Some(flaw) });
    let observed = |pod, flaw| Observed { identity: identity(flaw), ..failing(pod) };
    let report = diagnose(&observed(crashed_as("podIdentity", 1, refused), None));
    assert_eq!(report.diagnosis, Diagnosis::IdentityRace);
    let report = diagnose(&observed(crashed_as("irsa", 1, REFUSED), None));
    assert_eq!(report.diagnosis, Diagnosis::Fatal(Kind::NotInjected(None)), "made before the association");
    let report = diagnose(&observed(crashed_as("podIdentity", 1, refused), Some(Flaw::NotAssociated { found: None })));
    assert_eq!(report.diagnosis.name(), ErrorName::IdentityNotInjected);
}

#[test]
fn each_failure_of_a_controller_has_its_kind() {
    let json = |message: &str, error: &str| json!({ "level": "ERROR", "message": message, "error": error }).to_string();
    let ec2 = "ec2 api connectivity check failed";
    let denied = "operation error EC2: DescribeInstanceTypes, https response error StatusCode: 403, RequestID: 1, api error \
                  UnauthorizedOperation: You are not authorized to perform this operation. User: arn:aws:sts::1:assumed-role/x/y \
                  is not authorized to perform: ec2:DescribeInstanceTypes because no identity-based policy allows it";
    let dns = "operation error STS: AssumeRoleWithWebIdentity, exceeded maximum number of attempts, 3, request send failed, Post \
               \"https://sts.eu-west-1.amazonaws.com/\": dial tcp: lookup sts.eu-west-1.amazonaws.com: i/o timeout";
    let agent = "failed to load credentials, exceeded maximum number of attempts, 3, request send failed, Get \
                 \"http://169.254.170.23/v1/credentials\": dial tcp 169.254.170.23:80: connect: connection refused";
    let endpoint = "failed to resolve cluster endpoint, operation error EKS: DescribeCluster, https response error StatusCode: 404, \
                    RequestID: 1, ResourceNotFoundException: No cluster found for name: wrong.";
    for (exit_code, log, kind_of) in [
        (1, json(ec2, denied), Kind::Denied { action: "ec2:DescribeInstanceTypes".to_owned() }),
        (1, json(ec2, dns), Kind::StsUnreachable),
        (1, json(ec2, agent), Kind::StsUnreachable),
        (1, "2022-02-10T10:33:35Z\tERROR\tcontroller\tWebIdentityErr: failed to retrieve credentials caused by: RequestError: send request failed caused by: Post \"https://sts.eu-west-1.amazonaws.com/\": dial tcp: i/o timeout".to_owned(), Kind::StsUnreachable),
        (2, "panic: operation error SQS: GetQueueUrl, https response error StatusCode: 400, RequestID: 1, AWS.SimpleQueueService.NonExistentQueue: The specified queue does not exist.".to_owned(), Kind::QueueMissing),
        (2, "panic: Unable to find Cluster  in Zonal Shift. Please check that the cluster is enabled for Zonal Shift and roles have appropriate permissions cluster not registered to Zonal Shift operation error ARC - Zonal Shift: GetManagedResource, AccessDeniedException".to_owned(), Kind::ZonalShift),
        (1, json("failed detecting cluster endpoint", endpoint), Kind::ClusterEndpoint),
        (2, "panic: failed to setup manager, Get \"https://172.20.0.1:443/api\": dial tcp 172.20.0.1:443: i/o timeout".to_owned(), Kind::ClusterEndpoint),
        (1, json("failed to setup nodeclaim provider id indexer", "no matches for kind \"NodeClaim\" in version \"karpenter.sh/v1\""), Kind::CrdMissing),
        (1, "E0623 05:08:32.044105       1 leaderelection.go:329] error initially creating leader election record: leases.coordination.k8s.io is forbidden: User \"system:serviceaccount:karpenter:karpenter\" cannot create resource \"leases\"".to_owned(), Kind::LeaderElection),
        (139, "something that nobody has seen before\n".to_owned(), Kind::Unknown),
    ] {
        let observed = failing(crashed(exit_code, &log));
        assert_eq!(kind(&observed), kind_of, "{log}");
        assert!(diagnose(&observed).cause().contains(&format!("exited with {exit_code}")), "{log}");
    }
}

#[test]
fn what_the_kubelet_the_api_server_and_the_scheduler_refuse_has_its_kind() {
    let blocked = |reason: &str, message: &str| {
        let state = json!({ "waiting": { "reason": reason, "message": message } });
        let status = json!({ "containerStatuses": [{ "ready": false, "restartCount": 0, "state": state }] });
        failing(pod("karpenter-a", "irsa", &status, ""))
    };
    assert_eq!(kind(&blocked("ImagePullBackOff", "not found")), Kind::ImagePull { hopeless: false });
    assert_eq!(kind(&blocked("InvalidImageName", "couldn't parse")), Kind::ImagePull { hopeless: true });
    assert_eq!(kind(&blocked("CreateContainerConfigError", "secret \"x\" not found")), Kind::Unknown);

    let refused = |message: &str| {
        let condition =
            json!({ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message });
        let set = json!({ "status": { "conditions": [condition] } });
        Observed { deployment: Some(deployment(0, 0, 0)), replica_sets: vec![set], ..Observed::default() }
    };
    for (message, kind_of) in [
        (
            "pods \"karpenter-7d-x\" is forbidden: exceeded quota: tiny, requested: pods=1, used: pods=0, limited: pods=0",
            Kind::Quota,
        ),
        (
            "pods \"karpenter-7d-x\" is forbidden: maximum memory usage per Container is 64Mi, but limit is 1Gi",
            Kind::Quota,
        ),
        ("admission webhook \"validate.kyverno.svc\" denied the request: no", Kind::AdmissionRefused),
        ("Internal error occurred: failed calling webhook \"x\": connection refused", Kind::AdmissionRefused),
        ("pods \"karpenter-7d-x\" is forbidden: violates PodSecurity \"restricted:latest\"", Kind::AdmissionRefused),
    ] {
        assert_eq!(kind(&refused(message)), kind_of, "{message}");
        assert!(diagnose(&refused(message)).cause().contains(message));
    }

    let mut since = refused("pods \"karpenter-7d-x\" is forbidden: exceeded quota: tiny");
    since.events = [("09:00:00", "exceeded quota: tiny"), ("09:01:00", "failed calling webhook \"x\"")]
        .map(|(at, message)| {
            json!({
                "reason": "FailedCreate", "message": message, "lastTimestamp": format!("2026-11-22T{at}Z"),
                "involvedObject": { "kind": "ReplicaSet" },
            })
        })
        .to_vec();
    assert_eq!(kind(&since), Kind::AdmissionRefused, "the condition keeps its first message, the events go on");

    let waits = "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.";
    let status = json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "message": waits }] });
    let observed =
        Observed { deployment: Some(deployment(2, 1, 2)), ..failing(pod("karpenter-a", "irsa", &status, "")) };
    assert_eq!(kind(&observed), Kind::Unschedulable(Scarcity::TooFewNodes));
    assert!(diagnose(&observed).detail.starts_with("1 of 2 replicas are ready; pod karpenter-a waits for a node: 0/1"));
}

#[test]
fn controllers_that_run_and_do_not_work_are_told() {
    let leases = r#"{"level":"ERROR","message":"error retrieving resource lock karpenter/karpenter-leader-election: leases.coordination.k8s.io \"karpenter-leader-election\" is forbidden: User \"system:serviceaccount:karpenter:karpenter\" cannot get resource \"leases\""}"#;
    let queue = r#"{"level":"ERROR","message":"Reconciler error","controller":"interruption","error":"creating sqs provider, operation error SQS: GetQueueUrl, https response error StatusCode: 400, AWS.SimpleQueueService.NonExistentQueue: The specified queue does not exist."}"#;
    let crd = r#"{"level":"ERROR","message":"if kind is a CRD, it should be installed before calling Start","error":"no matches for kind \"NodePool\" in version \"karpenter.sh/v1\""}"#;
    for (log, kind_of) in [(leases, Kind::LeaderElection), (queue, Kind::QueueMissing)] {
        let ready = Observed { deployment: Some(deployment(2, 2, 2)), ..failing(running(true, log)) };
        assert_eq!(kind(&ready), kind_of);
    }
    let denied = r#"{"level":"ERROR","message":"Reconciler error","controller":"interruption","error":"creating sqs provider, operation error SQS: GetQueueUrl, https response error StatusCode: 403, api error AccessDenied: User: arn:aws:sts::1:assumed-role/x/y is not authorized to perform: sqs:getqueueurl on resource: arn:aws:sqs:eu-west-1:1:theirs because no identity-based policy allows it"}"#;
    let prices = denied.replace("sqs:getqueueurl", "pricing:GetProducts");
    let ready = |log: &str| Observed { deployment: Some(deployment(2, 2, 2)), ..failing(running(true, log)) };
    assert!(matches!(kind(&ready(denied)), Kind::Denied { action } if action == "sqs:getqueueurl"));
    assert_eq!(diagnose(&ready(&prices)).diagnosis, Diagnosis::Ready, "it has prices of its own");
    assert_eq!(kind(&failing(running(false, crd))), Kind::CrdMissing);
    let other = Observed { deployment: Some(deployment(2, 2, 2)), ..failing(running(true, crd)) };
    assert_eq!(diagnose(&other).diagnosis, Diagnosis::Ready, "an old complaint of a controller that is ready");
}

#[test]
fn a_controller_is_ready_without_its_queue_so_the_queue_is_looked_at() {
    let mut told = deployment(2, 2, 2);
    assert_eq!(interruption_queue(&told), None);
    told["spec"]["template"]["spec"]["containers"] =
        json!([{ "env": [{ "name": "A" }, { "name": "INTERRUPTION_QUEUE", "value": "wrong" }] }]);
    assert_eq!(interruption_queue(&told), Some("wrong"));
    let denied = r#"{"level":"ERROR","message":"Reconciler error","error":"operation error SQS: GetQueueUrl, api error AccessDenied: User: x is not authorized to perform: sqs:getqueueurl on resource: arn:aws:sqs:eu-west-1:1:wrong"}"#;
    let with = |exists: bool| Observed {
        deployment: Some(told.clone()),
        queue: Some(Queue { name: "wrong".into(), exists }),
        ..failing(running(true, ""))
    };
    let asked = |log: &str| diagnose(&Observed { deployment: Some(told.clone()), ..failing(running(true, log)) });
    assert!(asked("").asks_queue() && asked(denied).asks_queue(), "SQS denies before it says that there is none");
    assert!(!diagnose(&failing(crashed(1, REFUSED))).asks_queue());
    assert_eq!(diagnose(&with(true)).diagnosis, Diagnosis::Ready);
    assert_eq!(kind(&with(false)), Kind::QueueMissing);
    assert!(diagnose(&with(false)).cause().contains("SQS knows no queue wrong"));
}

#[test]
fn a_container_that_runs_again_gets_its_chance_and_one_on_its_way_out_is_nobodys_failure() {
    let mut again = crashed(1, REFUSED);
    again.object["status"]["containerStatuses"][0]["state"] = json!({ "running": {} });
    let report = diagnose(&failing(again));
    assert_eq!((report.diagnosis, report.failing_pods.len()), (Diagnosis::IdentityRace, 0));
    let mut leaving = crashed(1, REFUSED);
    leaving.object["metadata"]["deletionTimestamp"] = json!("2026-11-22T09:00:00Z");
    assert_eq!(diagnose(&failing(leaving)).diagnosis, Diagnosis::Progressing);
}

#[test]
fn what_an_earlier_revision_does_is_no_news() {
    let set = |uid: &str, revision: &str| json!({ "metadata": { "uid": uid, "annotations": { "deployment.kubernetes.io/revision": revision } } });
    let owned = |mut pod: Pod, by: &str| {
        pod.object["metadata"]["ownerReferences"] = json!([{ "kind": "ReplicaSet", "uid": by }]);
        pod
    };
    let mut observed = failing(owned(crashed(1, REFUSED), "old"));
    observed.replica_sets = vec![set("old", "9"), set("new", "10")];
    let report = diagnose(&observed);
    assert_eq!((report.diagnosis, report.failing_pods.len()), (Diagnosis::Progressing, 0));
    observed.pods.push(owned(crashed_as("", 2, NO_REGION), "new"));
    assert_eq!(kind(&observed), Kind::NotInjected(None));
}

#[test]
fn a_healthy_replica_is_not_among_the_failing() {
    let mut healthy = running(true, "");
    healthy.object["metadata"]["name"] = json!("karpenter-b");
    let mut observed = failing(crashed(1, REFUSED));
    observed.pods.push(healthy);
    let names: Vec<_> = diagnose(&observed).failing_pods.into_iter().map(|pod| pod.name).collect();
    assert_eq!(names, ["karpenter-a"]);
}

#[test]
fn an_unknown_failure_shows_its_last_lines_without_secrets_and_the_warnings() {
    let log = "panic: request eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl of ASIAQWERTYUIOPASDFGH?X-Amz-Security-Token=secret\n";
    let event = json!({
        "type": "Warning", "reason": "BackOff", "message": "back-off 10s", "involvedObject": { "name": "karpenter-a" },
        "lastTimestamp": "2026-11-22T09:00:00Z",
    });
    let observed = Observed { events: vec![event], ..failing(crashed(2, log)) };
    let report = diagnose(&observed);
    assert_eq!(report.diagnosis.name(), ErrorName::KarpenterNotReady);
    for said in ["panic: request [redacted] of [redacted]", "event BackOff of karpenter-a: back-off 10s", "2 restarts"]
    {
        assert!(report.evidence.contains(said), "{said} in {}", report.evidence);
    }
    for said in [report.cause(), report.detail, report.failing_pods[0].reason.clone()] {
        assert!(!said.contains("eyJ") && !said.contains("ASIA") && !said.contains("secret"), "{said}");
    }
}

#[test]
fn every_kind_has_a_name_of_its_own_and_only_configuration_is_final_at_once() {
    let flaw = Flaw::NoProvider { provider_arn: ISSUER.to_owned() };
    let kinds = [
        Kind::NoOidcProvider(flaw.clone()),
        Kind::TrustRefused(flaw),
        Kind::NotInjected(None),
        Kind::StsUnreachable,
        Kind::Denied { action: "ec2:x".to_owned() },
        Kind::QueueMissing,
        Kind::ImagePull { hopeless: false },
        Kind::Unschedulable(Scarcity::OneZone),
        Kind::CrdMissing,
        Kind::AdmissionRefused,
        Kind::Quota,
        Kind::ZonalShift,
        Kind::ClusterEndpoint,
        Kind::LeaderElection,
        Kind::Unknown,
    ];
    let names: std::collections::BTreeSet<_> = kinds.iter().map(|kind| kind.name().as_str()).collect();
    assert_eq!(names.len(), kinds.len());
    let at_once: Vec<_> = kinds.iter().filter(|kind| kind.patience() == 0).map(|kind| kind.name().as_str()).collect();
    assert_eq!(at_once, ["OidcProviderMissing", "IdentityRefused", "IdentityNotInjected", "ZonalShiftNotRegistered"]);
}

/// Any JSON, with the names that a diagnosis looks for among its keys and words.
fn json_like() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "True",
        "False",
        "PodScheduled",
        "ReplicaFailure",
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "Warning",
        "AWS_ROLE_ARN",
        "0/2 nodes are available: 1 x",
        "exceeded quota",
        "panic: AssumeRoleWithWebIdentity",
        REFUSED,
        "eyJ",
        "ü…",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0u64..4).prop_map(Value::from),
        words.prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "conditions",
        "containerStatuses",
        "state",
        "lastState",
        "terminated",
        "waiting",
        "running",
        "exitCode",
        "reason",
        "message",
        "type",
        "ready",
        "replicas",
        "updatedReplicas",
        "availableReplicas",
        "generation",
        "observedGeneration",
        "containers",
        "env",
        "name",
        "value",
        "deletionTimestamp",
        "restartCount",
    ]);
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

fn any_deployment() -> impl Strategy<Value = Value> {
    let counts = (0u64..4, 0u64..4, 0u64..4, 0u64..4, 0u64..4, 0u64..4);
    let shaped = counts.prop_map(|(wanted, updated, available, total, generation, seen)| {
        json!({
            "metadata": { "generation": generation },
            "spec": { "replicas": wanted },
            "status": {
                "observedGeneration": seen, "updatedReplicas": updated, "availableReplicas": available, "replicas": total,
            },
        })
    });
    prop_oneof![3 => shaped, 1 => json_like()]
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let log = prop_oneof![Just(String::new()), Just(REFUSED.to_owned()), Just(NO_REGION.to_owned()), "(?s).*"];
    let states = prop_oneof![
        Just(crashed(1, REFUSED).object),
        Just(crashed_as("", 2, NO_REGION).object),
        Just(running(true, "").object),
        json_like()
    ];
    (states, log.clone(), log).prop_map(|(object, log, previous_log)| Pod { object, log, previous_log })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn whatever_is_observed_there_is_a_diagnosis_and_ready_means_available(
        deployment in prop::option::of(any_deployment()),
        replica_sets in prop::collection::vec(json_like(), 0..2),
        pods in prop::collection::vec(any_pod(), 0..3),
        events in prop::collection::vec(json_like(), 0..2),
        known in any::<bool>(),
    ) {
        let identity = known.then(|| irsa(None));
        let observed = Observed { deployment, replica_sets, pods, events, identity, queue: None };
        let report = diagnose(&observed);
        if report.diagnosis == Diagnosis::Ready {
            let number = |at: &str| observed.deployment.as_ref().unwrap().pointer(at).and_then(Value::as_u64);
            let wanted = number("/spec/replicas").unwrap_or(1);
            prop_assert!(wanted > 0);
            prop_assert!(number("/status/availableReplicas") >= Some(wanted));
            prop_assert!(number("/status/observedGeneration") >= number("/metadata/generation").filter(|g| *g > 0));
        }
        prop_assert!(!report.cause().is_empty());
    }
}
