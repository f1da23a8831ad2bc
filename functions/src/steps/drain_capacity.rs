//! drain-capacity: the nodes that Karpenter launched, drained, then forced, until EC2 has none of them; then the node
//! classes, whose end takes their instance profiles and launch templates along.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use slipway_statemachine::{ClusterEndpoint, ClusterKey, ErrorName, Progress, Run, Step, StepError};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::terminate_instances;
use crate::{
    Context,
    aws::error::Deleted as _,
    cluster::{self, Cluster, Kind},
    ownership::Resource,
};

/// Drains what Karpenter launched.
#[derive(Debug)]
pub struct DrainCapacity;

/// Of which cluster, and how patiently.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// How one logs in.
    pub endpoint: ClusterEndpoint,
    /// Seconds that pods have to leave, before disruption budgets are overruled.
    pub drain_seconds: u32,
    /// Seconds that this run has waited for it.
    #[serde(default)]
    pub waited: u32,
}

/// Nothing of Karpenter's runs.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {}

impl Step for DrainCapacity {
    const NAME: &'static str = "drain-capacity";
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::ClusterUnreachable,
        ErrorName::KubernetesRefused,
        ErrorName::CrdNotServed,
        ErrorName::DeletionBlocked,
    ];
    type Input = Input;
    type Output = Progress<Output>;
}

const API: &str = "karpenter.sh/v1";
const NODE_POOL: Kind<'static> = (API, "NodePool");
const NODE_CLAIM: Kind<'static> = (API, "NodeClaim");
const NODE_CLASS: Kind<'static> = ("karpenter.k8s.aws/v1", "EC2NodeClass");
/// Past this time Karpenter drains without regard to disruption budgets.
const TERMINATION_TIME: &str = "karpenter.sh/nodeclaim-termination-timestamp";
/// What Karpenter puts on the instances that it launches.
const POOL_TAG: &str = "karpenter.sh/nodepool";

/// Karpenter gives pods five seconds and looks again after five.
const ASK_AGAIN: u32 = 20;

/// An object of Karpenter's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Object {
    name: String,
    /// It has been asked to go.
    deleting: bool,
    /// The instance of a claim, `i-…`, once it has one.
    instance: Option<String>,
    /// Disruption budgets were overruled already.
    forced: bool,
    /// What has to let go of it first.
    finalizers: Vec<String>,
}

/// What there is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Observed {
    pools: Vec<Object>,
    claims: Vec<Object>,
    classes: Vec<Object>,
    /// A controller is ready, and works the finalizers off.
    controller: bool,
    /// Instances that Karpenter launched and EC2 has not terminated.
    instances: Vec<Resource>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask an object to go.
    Delete(Kind<'static>, String),
    /// Overrule what keeps the pods of a claim.
    Force(String),
    /// Do the missing controller's work: take the finalizers off an object.
    Release(Kind<'static>, String),
    /// Do the missing controller's work: end an instance.
    Terminate(String),
}

/// What to change now. Pools go together with their claims, since a pool alone is waited for, and a claim alone comes
/// back. An instance whose claim nobody works off is terminated here, and what is gone in EC2 is let go in Kubernetes.
pub(crate) fn decide(observed: &Observed, waited: u32, drain_seconds: u32) -> Vec<Action> {
    let Observed { pools, claims, classes, controller, instances } = observed;
    let forced = waited >= drain_seconds;
    // Nobody is at work on the finalizers, or whoever is does not get on.
    let abandoned = waited >= drain_seconds.saturating_mul(2) || (!controller && waited >= drain_seconds / 3);
    let mut actions = Vec::new();
    for (kind, objects) in [(NODE_POOL, pools), (NODE_CLAIM, claims)] {
        let fresh = objects.iter().filter(|object| !object.deleting);
        actions.extend(fresh.map(|object| Action::Delete(kind, object.name.clone())));
    }
    for claim in claims.iter().filter(|claim| claim.deleting) {
        let alive = claim.instance.as_ref().filter(|id| instances.iter().any(|one| one.name == **id));
        match alive {
            Some(id) if abandoned => actions.push(Action::Terminate(id.clone())),
            None if abandoned => actions.push(Action::Release(NODE_CLAIM, claim.name.clone())),
            _ if forced && !claim.forced => actions.push(Action::Force(claim.name.clone())),
            _ => {}
        }
    }
    if abandoned {
        let stuck = pools.iter().filter(|pool| pool.deleting);
        actions.extend(stuck.map(|pool| Action::Release(NODE_POOL, pool.name.clone())));
    }
    if pools.is_empty() && claims.is_empty() {
        // Karpenter was stopped between launching and writing it down.
        let leaked = instances.iter().filter(|one| one.state != "shutting-down");
        actions.extend(leaked.map(|one| Action::Terminate(one.name.clone())));
        if instances.is_empty() {
            let (stuck, fresh): (Vec<_>, Vec<_>) = classes.iter().partition(|class| class.deleting);
            actions.extend(fresh.into_iter().map(|class| Action::Delete(NODE_CLASS, class.name.clone())));
            let stuck = stuck.into_iter().filter(|_| abandoned);
            actions.extend(stuck.map(|class| Action::Release(NODE_CLASS, class.name.clone())));
        }
    }
    actions
}

/// What is still there, for a person; none when all is gone.
fn left(observed: &Observed) -> Option<String> {
    let Observed { pools, claims, classes, controller, instances } = observed;
    let waits = |object: &Object| match object.finalizers.as_slice() {
        [] => String::new(),
        _ if !object.deleting => String::new(),
        finalizers => format!(", waits for {}", finalizers.join(", ")),
    };
    let claim = |claim: &Object| {
        let instance = match &claim.instance {
            None => "no instance".to_owned(),
            Some(id) if instances.iter().any(|one| one.name == *id) => id.clone(),
            Some(id) => format!("its instance {id} is gone"),
        };
        format!("NodeClaim {} ({instance}{})", claim.name, waits(claim))
    };
    let object = |kind: &str, object: &Object| format!("{kind} {}{}", object.name, waits(object));
    let parts: Vec<String> = claims
        .iter()
        .map(claim)
        .chain(pools.iter().map(|pool| object("NodePool", pool)))
        .chain(instances.iter().map(|one| format!("instance {} ({})", one.name, one.state)))
        .chain(classes.iter().map(|class| object("EC2NodeClass", class)))
        .collect();
    let whom = if *controller { "" } else { "; no Karpenter controller is ready" };
    (!parts.is_empty()).then(|| format!("still there: {}{whom}", parts.join(", ")))
}

/// Asks everything to go, and sees to it that it does.
///
/// # Errors
/// `ClusterUnreachable`, on which the machine goes on with what is in EC2.
pub async fn run(cx: &Context, input: Input) -> Result<Progress<Output>, StepError> {
    let cluster = cluster::connect(cx, &input.cluster, &input.endpoint).await?;
    if !cluster.api_versions().await?.contains(API) {
        return Ok(Progress::done(Output {}));
    }
    let observed = observe(cx, &input.cluster, &cluster).await?;
    let actions = decide(&observed, input.waited, input.drain_seconds);
    if !actions.is_empty() {
        cx.state.hold(&input.run, &input.cluster).await?;
    }
    for action in &actions {
        act(cx, &cluster, action).await?;
    }
    Ok(match left(&observed) {
        None => Progress::done(Output {}),
        Some(detail) => Progress::wait(ASK_AGAIN, detail),
    })
}

async fn act(cx: &Context, cluster: &Cluster, action: &Action) -> Result<(), StepError> {
    match action {
        Action::Delete(kind, name) => {
            cluster.delete(*kind, "", name, None).await?;
        }
        Action::Force(name) => {
            let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let patch = json!({ "metadata": { "annotations": { TERMINATION_TIME: now.format(&Rfc3339).unwrap_or_default() } } });
            cluster.merge(NODE_CLAIM, "", name, &patch).await?;
        }
        Action::Release(kind, name) => {
            cluster.merge(*kind, "", name, &json!({ "metadata": { "finalizers": null } })).await?;
        }
        Action::Terminate(id) => {
            let call = cx.aws.ec2().terminate_instances().instance_ids(id);
            call.send().await.deleted("ec2:TerminateInstances")?;
        }
    }
    Ok(())
}

/// What there is of Karpenter's, in Kubernetes and in EC2.
pub(crate) async fn observe(cx: &Context, key: &ClusterKey, cluster: &Cluster) -> Result<Observed, StepError> {
    let objects = |kind| async move {
        Ok::<_, StepError>(cluster.list(kind, None, "").await?.iter().map(object).collect::<Vec<_>>())
    };
    let controllers = cluster.list(("apps/v1", "Deployment"), None, "app.kubernetes.io/name=karpenter").await?;
    let mut instances = terminate_instances::observe(cx, key).await?;
    instances.retain(|one| one.tags.contains_key(POOL_TAG));
    Ok(Observed {
        pools: objects(NODE_POOL).await?,
        claims: objects(NODE_CLAIM).await?,
        classes: objects(NODE_CLASS).await?,
        controller: controllers
            .iter()
            .any(|one| one["status"]["readyReplicas"].as_u64().is_some_and(|ready| ready > 0)),
        instances,
    })
}

fn object(json: &Value) -> Object {
    let metadata = &json["metadata"];
    // `aws:///eu-west-1a/i-0123`
    let provider = json["status"]["providerID"].as_str().and_then(|id| id.rsplit('/').next());
    Object {
        name: metadata["name"].as_str().unwrap_or_default().to_owned(),
        deleting: metadata["deletionTimestamp"].is_string(),
        instance: provider.filter(|id| !id.is_empty()).map(str::to_owned),
        forced: metadata["annotations"][TERMINATION_TIME].is_string(),
        finalizers: cluster::finalizers(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(name: &str, deleting: bool, instance: Option<&str>) -> Object {
        Object { name: name.into(), deleting, instance: instance.map(str::to_owned), ..Object::default() }
    }

    fn instance(id: &str, state: &str) -> Resource {
        Resource::new(slipway_statemachine::Kind::Instance, id, id).in_state(state)
    }

    fn busy(controller: bool) -> Observed {
        Observed {
            pools: vec![],
            claims: vec![claim("a", true, Some("i-a"))],
            classes: vec![claim("default", false, None)],
            controller,
            instances: vec![instance("i-a", "running")],
        }
    }

    #[test]
    fn pools_and_claims_are_asked_to_go_together_and_classes_wait() {
        let observed = Observed {
            pools: vec![claim("x86", false, None)],
            claims: vec![claim("a", false, Some("i-a")), claim("b", true, Some("i-b"))],
            instances: vec![instance("i-a", "running"), instance("i-b", "running")],
            ..busy(true)
        };
        let actions = decide(&observed, 0, 900);
        assert_eq!(actions, [Action::Delete(NODE_POOL, "x86".into()), Action::Delete(NODE_CLAIM, "a".into())]);
    }

    #[test]
    fn a_drain_has_its_time_and_is_then_forced_once() {
        assert_eq!(decide(&busy(true), 899, 900), []);
        assert_eq!(decide(&busy(true), 900, 900), [Action::Force("a".into())]);
        let mut forced = busy(true);
        forced.claims[0].forced = true;
        assert_eq!(decide(&forced, 920, 900), []);
        assert_eq!(decide(&forced, 1800, 900), [Action::Terminate("i-a".into())], "it does not get on");
    }

    #[test]
    fn without_a_controller_its_work_is_done_here() {
        assert_eq!(decide(&busy(false), 280, 900), []);
        assert_eq!(decide(&busy(false), 300, 900), [Action::Terminate("i-a".into())]);
        let mut gone = busy(false);
        gone.instances.clear();
        assert_eq!(decide(&gone, 300, 900), [Action::Release(NODE_CLAIM, "a".into())]);
        gone.claims[0].instance = None;
        assert_eq!(decide(&gone, 300, 900), [Action::Release(NODE_CLAIM, "a".into())], "a claim that never launched");
    }

    #[test]
    fn an_instance_without_a_claim_goes_and_only_then_the_classes() {
        let mut observed = Observed { claims: vec![], ..busy(true) };
        assert_eq!(decide(&observed, 0, 900), [Action::Terminate("i-a".into())]);
        observed.instances[0].state = "shutting-down".into();
        assert_eq!(decide(&observed, 20, 900), []);
        observed.instances.clear();
        assert_eq!(decide(&observed, 40, 900), [Action::Delete(NODE_CLASS, "default".into())]);
        observed.classes[0].deleting = true;
        assert_eq!(decide(&observed, 60, 900), []);
        observed.controller = false;
        assert_eq!(decide(&observed, 300, 900), [Action::Release(NODE_CLASS, "default".into())]);
    }

    #[test]
    fn whoever_watches_hears_what_is_left_and_who_is_missing() {
        let left = left(&busy(false)).unwrap_or_default();
        assert!(left.contains("NodeClaim a (i-a)") && left.contains("no Karpenter controller"), "{left}");
        let mut stuck = busy(false);
        stuck.instances.clear();
        stuck.claims[0].finalizers = vec!["karpenter.sh/termination".to_owned()];
        let left = super::left(&stuck).unwrap_or_default();
        assert!(left.contains("NodeClaim a (its instance i-a is gone, waits for karpenter.sh/termination)"), "{left}");
        assert_eq!(super::left(&Observed::default()), None);
    }

    #[test]
    fn a_claim_is_read_with_its_instance() {
        let read = object(&json!({
            "metadata": { "name": "a", "deletionTimestamp": "2026-11-22T09:00:00Z", "annotations": { TERMINATION_TIME: "x" } },
            "status": { "providerID": "aws:///eu-west-1a/i-0123" },
        }));
        assert_eq!(
            read,
            Object {
                name: "a".into(),
                deleting: true,
                instance: Some("i-0123".into()),
                forced: true,
                ..Object::default()
            }
        );
    }
}
