//! delete-queue: the interruption queue and the rules that fill it.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_karpenter::policy::interruption_rules;
use slipway_statemachine::{ClusterKey, ErrorName, Run, Step, StepError, names};

use crate::{
    Context,
    aws::{
        error::{Deleted as _, During as _, code, is_gone, refused},
        partition,
    },
    ownership::owned_or_named,
};

/// Deletes the interruption queue and its rules.
#[derive(Debug)]
pub struct DeleteQueue;

/// Of which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The cluster may have been made by somebody else, who calls a queue otherwise.
    #[serde(default)]
    pub adopt: bool,
}

/// What was deleted by this call.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Output {
    /// URLs of queues.
    pub queues: Vec<String>,
    /// Names of rules.
    pub rules: Vec<String>,
}

impl Step for DeleteQueue {
    const NAME: &'static str = "delete-queue";
    const ERRORS: &'static [ErrorName] = &[];
    type Input = Input;
    type Output = Output;
}

/// What may be the cluster's queue: ours, and what Karpenter's guide and the Terraform module call theirs.
fn queue_names(cluster: &ClusterKey, adopt: bool) -> Vec<String> {
    let others = [cluster.name.clone(), format!("Karpenter-{}", cluster.name)];
    std::iter::once(names::queue(cluster)).chain(others.into_iter().filter(|_| adopt)).collect()
}

/// The names that Slipway gives to the cluster's rules.
fn rule_names(cluster: &ClusterKey) -> Vec<String> {
    interruption_rules().iter().map(|rule| names::rule(cluster, rule.kind)).collect()
}

/// Deletes the rules that are there, their targets first, then the queue.
///
/// # Errors
/// What SQS or EventBridge refuse.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Input { run, cluster, adopt } = &input;
    let mut deleted = Output::default();
    let mut rules: BTreeSet<String> = rule_names(cluster).into_iter().collect();
    let mut queues = Vec::new();
    for name in queue_names(cluster, *adopt) {
        let Some(url) = queue(cx, &name).await? else { continue };
        let tags = cx.aws.sqs().list_queue_tags().queue_url(&url).send().await.during("sqs:ListQueueTags")?;
        let tags: BTreeMap<String, String> = tags.tags.unwrap_or_default().into_iter().collect();
        if owned_or_named(cluster, &tags, &name, &[names::queue(cluster)]) {
            rules.extend(rules_of(cx, cluster, &name).await?);
            queues.push(url);
        }
    }
    for rule in rules {
        if let Some(tags) = rule_tags(cx, cluster, &rule).await?
            && owned_or_named(cluster, &tags, &rule, &rule_names(cluster))
        {
            cx.state.hold(run, cluster).await?;
            delete_rule(cx, &rule).await?;
            deleted.rules.push(rule);
        }
    }
    for url in queues {
        cx.state.hold(run, cluster).await?;
        if cx.aws.sqs().delete_queue().queue_url(&url).send().await.deleted("sqs:DeleteQueue")? {
            deleted.queues.push(url);
        }
    }
    Ok(deleted)
}

async fn queue(cx: &Context, name: &str) -> Result<Option<String>, StepError> {
    match cx.aws.sqs().get_queue_url().queue_name(name).send().await {
        Ok(answer) => Ok(answer.queue_url),
        Err(error) if code(&error).is_some_and(is_gone) => Ok(None),
        Err(error) => Err(refused("sqs:GetQueueUrl", &error)),
    }
}

/// The rules that fill a queue, whatever they are called.
async fn rules_of(cx: &Context, cluster: &ClusterKey, queue: &str) -> Result<Vec<String>, StepError> {
    let arn = format!("arn:{}:sqs:{}:{}:{queue}", partition(&cluster.region), cluster.region, cluster.account);
    let (mut found, mut next) = (Vec::new(), None);
    loop {
        let call = cx.aws.events().list_rule_names_by_target().target_arn(&arn).set_next_token(next.take());
        let page = call.send().await.during("events:ListRuleNamesByTarget")?;
        found.extend(page.rule_names.unwrap_or_default());
        next = page.next_token;
        if next.is_none() {
            return Ok(found);
        }
    }
}

/// A rule's tags; none where there is no such rule.
async fn rule_tags(
    cx: &Context,
    cluster: &ClusterKey,
    rule: &str,
) -> Result<Option<BTreeMap<String, String>>, StepError> {
    let arn = format!("arn:{}:events:{}:{}:rule/{rule}", partition(&cluster.region), cluster.region, cluster.account);
    match cx.aws.events().list_tags_for_resource().resource_arn(arn).send().await {
        Ok(answer) => Ok(Some(answer.tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect())),
        Err(error) if code(&error).is_some_and(is_gone) => Ok(None),
        Err(error) => Err(refused("events:ListTagsForResource", &error)),
    }
}

/// A rule goes only without targets.
async fn delete_rule(cx: &Context, rule: &str) -> Result<(), StepError> {
    let events = cx.aws.events();
    let mut next = None;
    loop {
        let page = match events.list_targets_by_rule().rule(rule).set_next_token(next.take()).send().await {
            Err(error) if code(&error).is_some_and(is_gone) => return Ok(()),
            page => page.during("events:ListTargetsByRule")?,
        };
        let ids: Vec<String> = page.targets.unwrap_or_default().into_iter().map(|target| target.id).collect();
        if !ids.is_empty() {
            events.remove_targets().rule(rule).set_ids(Some(ids)).send().await.deleted("events:RemoveTargets")?;
        }
        next = page.next_token;
        if next.is_none() {
            break;
        }
    }
    events.delete_rule().name(rule).send().await.deleted("events:DeleteRule")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() }
    }

    #[test]
    fn only_our_own_queue_is_looked_at_unless_the_cluster_is_anothers() {
        assert_eq!(queue_names(&demo(), false), ["slipway-eks-demo"]);
        assert_eq!(queue_names(&demo(), true), ["slipway-eks-demo", "demo", "Karpenter-demo"]);
    }

    #[test]
    fn the_five_rules_that_are_made_are_the_five_that_are_deleted() {
        let names = rule_names(&demo());
        assert_eq!(names.len(), 5);
        assert!(names.iter().all(|name| name.starts_with("slipway-eks-demo.")), "{names:?}");
    }
}
