//! ensure-interruption-queue: the queue on which Karpenter hears what EC2 is about to take away, and the five rules that
//! fill it.

use std::collections::BTreeMap;

use aws_sdk_eventbridge::types::{Tag, Target};
use aws_sdk_sqs::types::QueueAttributeName;
use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_karpenter::policy::{InterruptionRule, interruption_rules, queue_policy};
use slipway_statemachine::{ClusterKey, ErrorName, Run, Step, StepError, names, plan::Planned};

use crate::{
    Context,
    aws::{
        documents::same_document,
        error::{During as _, code, is_gone, refused},
        partition,
        tags::{self, missing, ours},
    },
};

/// Makes the interruption queue and its rules.
#[derive(Debug)]
pub struct EnsureInterruptionQueue;

/// For which cluster.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The run.
    pub run: Run,
    /// Which cluster.
    pub cluster: ClusterKey,
    /// The spec's tags.
    pub tags: BTreeMap<String, String>,
}

/// The queue.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// As Karpenter is told it.
    pub queue_name: String,
    /// As SQS is asked for it.
    pub queue_url: String,
    /// As policies name it.
    pub queue_arn: String,
}

impl Step for EnsureInterruptionQueue {
    const NAME: &'static str = "ensure-interruption-queue";
    const ERRORS: &'static [ErrorName] = &[ErrorName::NotOurs];
    type Input = Input;
    type Output = Output;
}

/// The only target of each rule.
const TARGET: &str = "queue";

/// A queue as it is.
#[derive(Debug, Clone, PartialEq)]
struct FoundQueue {
    url: String,
    attributes: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
}

/// What it takes to make the queue what it should be.
#[derive(Debug, Clone, PartialEq)]
enum QueueChange {
    Create,
    Set(BTreeMap<String, String>),
    Tag(BTreeMap<String, String>),
}

/// Five minutes of memory, since an interruption is two minutes away; encrypted; filled by EventBridge alone.
fn attributes(queue_arn: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("MessageRetentionPeriod".to_owned(), "300".to_owned()),
        ("SqsManagedSseEnabled".to_owned(), "true".to_owned()),
        ("Policy".to_owned(), queue_policy(queue_arn).to_string()),
    ])
}

fn decide(
    cluster: &ClusterKey,
    queue_arn: &str,
    tags: &BTreeMap<String, String>,
    found: Option<&FoundQueue>,
) -> Result<Vec<QueueChange>, StepError> {
    let Some(found) = found else { return Ok(vec![QueueChange::Create]) };
    ours(cluster, &found.tags, &format!("The queue {queue_arn}"))?;
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let mut wanted = attributes(queue_arn);
    wanted.retain(|name, value| match found.attributes.get(name) {
        Some(is) if name == "Policy" => !same_document(&json(is), &json(value)),
        is => is != Some(value),
    });
    let mut changes = Vec::new();
    if !wanted.is_empty() {
        changes.push(QueueChange::Set(wanted));
    }
    let tags = missing(tags, &found.tags);
    if !tags.is_empty() {
        changes.push(QueueChange::Tag(tags));
    }
    Ok(changes)
}

/// Makes what is missing, corrects what differs.
///
/// # Errors
/// `NotOurs` when a queue or rule of the name is there without our tag; `PropagationPending` for 60 s after a queue of
/// the name was deleted.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Input { run, cluster, tags } = input;
    let tags = names::tags(&cluster, &tags);
    let queue_name = names::queue(&cluster);
    let queue_arn = queue_arn(&cluster);

    let found = queue(cx, &queue_name).await?;
    let changes = decide(&cluster, &queue_arn, &tags, found.as_ref())?;
    if !changes.is_empty() {
        cx.state.hold(&run, &cluster).await?;
    }
    let mut queue_url = found.map(|queue| queue.url).unwrap_or_default();
    for change in changes {
        let sqs = cx.aws.sqs();
        match change {
            QueueChange::Create => {
                let mut call = sqs.create_queue().queue_name(&queue_name);
                for (name, value) in attributes(&queue_arn) {
                    call = call.attributes(QueueAttributeName::from(name.as_str()), value);
                }
                let answer = call.set_tags(Some(tags.clone().into_iter().collect())).send().await;
                queue_url = answer.during("sqs:CreateQueue")?.queue_url.unwrap_or_default();
            }
            QueueChange::Set(attributes) => {
                let mut call = sqs.set_queue_attributes().queue_url(&queue_url);
                for (name, value) in attributes {
                    call = call.attributes(QueueAttributeName::from(name.as_str()), value);
                }
                call.send().await.during("sqs:SetQueueAttributes")?;
            }
            QueueChange::Tag(tags) => {
                let call = sqs.tag_queue().queue_url(&queue_url).set_tags(Some(tags.into_iter().collect()));
                call.send().await.during("sqs:TagQueue")?;
            }
        }
    }
    let rules = interruption_rules();
    try_join_all(rules.iter().map(|rule| ensure_rule(cx, &run, &cluster, rule, &queue_arn, &tags))).await?;
    Ok(Output { queue_name, queue_url, queue_arn })
}

/// The queue's ARN, which its name decides.
pub(crate) fn queue_arn(cluster: &ClusterKey) -> String {
    let ClusterKey { account, region, .. } = cluster;
    format!("arn:{}:sqs:{region}:{account}:{}", partition(region), names::queue(cluster))
}

async fn queue(cx: &Context, name: &str) -> Result<Option<FoundQueue>, StepError> {
    let sqs = cx.aws.sqs();
    let url = match sqs.get_queue_url().queue_name(name).send().await {
        Ok(answer) => answer.queue_url.unwrap_or_default(),
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(None),
        Err(error) => return Err(refused("sqs:GetQueueUrl", &error)),
    };
    // A queue that was just deleted is known by its name for a while.
    let call = sqs.get_queue_attributes().queue_url(&url).attribute_names(QueueAttributeName::All);
    let attributes = match call.send().await {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(None),
        answer => answer.during("sqs:GetQueueAttributes")?.attributes.unwrap_or_default(),
    };
    let tags = match sqs.list_queue_tags().queue_url(&url).send().await {
        Err(error) if code(&error).is_some_and(is_gone) => return Ok(None),
        answer => answer.during("sqs:ListQueueTags")?.tags,
    };
    Ok(Some(FoundQueue {
        url,
        attributes: attributes.into_iter().map(|(name, value)| (name.as_str().to_owned(), value)).collect(),
        tags: tags.unwrap_or_default().into_iter().collect(),
    }))
}

/// A rule as it is.
#[derive(Debug, Clone, PartialEq)]
struct FoundRule {
    arn: String,
    pattern: Value,
    enabled: bool,
    tags: BTreeMap<String, String>,
    /// ARNs.
    targets: Vec<String>,
}

/// What it takes to make a rule what it should be.
#[derive(Debug, Clone, PartialEq)]
enum RuleChange {
    Put,
    Tag(BTreeMap<String, String>),
    Target,
}

fn decide_rule(
    cluster: &ClusterKey,
    pattern: &Value,
    queue_arn: &str,
    tags: &BTreeMap<String, String>,
    found: Option<&FoundRule>,
) -> Result<Vec<RuleChange>, StepError> {
    let Some(found) = found else { return Ok(vec![RuleChange::Put, RuleChange::Target]) };
    ours(cluster, &found.tags, &format!("The rule {}", found.arn))?;
    let mut changes = Vec::new();
    if !same_document(&found.pattern, pattern) || !found.enabled {
        changes.push(RuleChange::Put);
    }
    let lacking = missing(tags, &found.tags);
    if !lacking.is_empty() {
        changes.push(RuleChange::Tag(lacking));
    }
    if !found.targets.iter().any(|target| target == queue_arn) {
        changes.push(RuleChange::Target);
    }
    Ok(changes)
}

async fn rule(cx: &Context, name: &str) -> Result<Option<FoundRule>, StepError> {
    let events = cx.aws.events();
    let found = match events.describe_rule().name(name).send().await {
        Ok(answer) => answer,
        Err(error) if code(&error) == Some("ResourceNotFoundException") => return Ok(None),
        Err(error) => return Err(refused("events:DescribeRule", &error)),
    };
    let arn = found.arn().unwrap_or_default().to_owned();
    let tags = events.list_tags_for_resource().resource_arn(&arn).send().await;
    let tags = tags.during("events:ListTagsForResource")?.tags.unwrap_or_default();
    let targets = targets(events, name).await?;
    Ok(Some(FoundRule {
        arn,
        pattern: found.event_pattern().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null),
        enabled: found.state() == Some(&aws_sdk_eventbridge::types::RuleState::Enabled),
        tags: tags.into_iter().map(|tag| (tag.key, tag.value)).collect(),
        targets,
    }))
}

/// The ARNs of a rule's targets, from all pages; the SDK has no paginator for them.
async fn targets(events: &aws_sdk_eventbridge::Client, rule: &str) -> Result<Vec<String>, StepError> {
    let (mut arns, mut token) = (Vec::new(), None);
    loop {
        let call = events.list_targets_by_rule().rule(rule).set_next_token(token.take());
        let page = call.send().await.during("events:ListTargetsByRule")?;
        arns.extend(page.targets.unwrap_or_default().into_iter().map(|target| target.arn));
        token = page.next_token;
        if token.is_none() {
            return Ok(arns);
        }
    }
}

async fn ensure_rule(
    cx: &Context,
    run: &Run,
    cluster: &ClusterKey,
    wanted: &InterruptionRule,
    queue_arn: &str,
    tags: &BTreeMap<String, String>,
) -> Result<(), StepError> {
    let events = cx.aws.events();
    let name = names::rule(cluster, wanted.kind);
    let found = rule(cx, &name).await?;
    let changes = decide_rule(cluster, &wanted.pattern, queue_arn, tags, found.as_ref())?;
    if !changes.is_empty() {
        cx.state.hold(run, cluster).await?;
    }
    for change in changes {
        match change {
            RuleChange::Put => {
                let mut call = events.put_rule().name(&name).event_pattern(wanted.pattern.to_string());
                // On a rule that is there PutRule ignores tags.
                if found.is_none() {
                    call = call
                        .description("Tells Karpenter what EC2 is about to take away")
                        .set_tags(Some(as_tags(tags)?));
                }
                call.send().await.during("events:PutRule")?;
            }
            RuleChange::Tag(lacking) => {
                let arn = found.as_ref().map(|rule| rule.arn.clone());
                let call = events.tag_resource().set_resource_arn(arn).set_tags(Some(as_tags(&lacking)?));
                call.send().await.during("events:TagResource")?;
            }
            RuleChange::Target => {
                let target = Target::builder().id(TARGET).arn(queue_arn).build().map_err(unwritable)?;
                let answer =
                    events.put_targets().rule(&name).targets(target).send().await.during("events:PutTargets")?;
                if let Some(failed) = answer.failed_entries().first() {
                    let words = failed.error_message().unwrap_or("no message");
                    let cause = format!("The rule {name} took no target: {words}.");
                    return Err(StepError::new(ErrorName::AwsRefused, cause));
                }
            }
        }
    }
    Ok(())
}

/// What would become of the queue and its rules.
///
/// # Errors
/// `NotOurs` as in [`run`].
pub async fn plan(
    cx: &Context,
    cluster: &ClusterKey,
    tags: &BTreeMap<String, String>,
) -> Result<Vec<Planned>, StepError> {
    let tags = &names::tags(cluster, tags);
    let (name, queue_arn) = (names::queue(cluster), &queue_arn(cluster));
    let found = queue(cx, &name).await?;
    let changes = decide(cluster, queue_arn, tags, found.as_ref())?;
    let told: Vec<String> = changes
        .iter()
        .map(|change| match change {
            QueueChange::Create => "it is not there".to_owned(),
            QueueChange::Set(attributes) => {
                format!("it lacks its {}", attributes.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
            }
            QueueChange::Tag(lacking) => tags::told(lacking),
        })
        .collect();
    let mut planned = vec![Planned::of("SQS queue", &name, found.map(|_| told.as_slice()))];
    let rules = interruption_rules();
    let of_rules = rules.iter().map(|wanted| async move {
        let name = names::rule(cluster, wanted.kind);
        let found = rule(cx, &name).await?;
        let changes = decide_rule(cluster, &wanted.pattern, queue_arn, tags, found.as_ref())?;
        let told: Vec<String> = changes
            .iter()
            .map(|change| match change {
                RuleChange::Put => "its pattern or its state differs".to_owned(),
                RuleChange::Tag(lacking) => tags::told(lacking),
                RuleChange::Target => "it does not feed the queue".to_owned(),
            })
            .collect();
        Ok::<_, StepError>(Planned::of("EventBridge rule", &name, found.map(|_| told.as_slice())))
    });
    planned.extend(try_join_all(of_rules).await?);
    Ok(planned)
}

fn as_tags(tags: &BTreeMap<String, String>) -> Result<Vec<Tag>, StepError> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build().map_err(unwritable)).collect()
}

fn unwritable(error: impl std::fmt::Display) -> StepError {
    StepError::new(ErrorName::Internal, format!("A request could not be written: {error}."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:sqs:eu-west-1:111122223333:slipway-eks-demo";

    fn demo() -> ClusterKey {
        ClusterKey { account: "111122223333".into(), region: "eu-west-1".into(), name: "demo".into() }
    }

    fn tags() -> BTreeMap<String, String> {
        names::tags(&demo(), &BTreeMap::new())
    }

    fn found() -> FoundQueue {
        let mut attributes = attributes(ARN);
        attributes.insert("VisibilityTimeout".into(), "30".into());
        FoundQueue { url: "http://q".into(), attributes, tags: tags() }
    }

    #[test]
    fn a_rule_is_changed_only_where_it_differs() {
        let cluster = ClusterKey { account: "1".into(), region: "eu-west-1".into(), name: "demo".into() };
        let (tags, pattern) = (names::tags(&cluster, &BTreeMap::new()), serde_json::json!({"source": ["aws.ec2"]}));
        let decided = |found: Option<FoundRule>| decide_rule(&cluster, &pattern, "arn:q", &tags, found.as_ref());
        let right = FoundRule {
            arn: "arn:r".into(),
            pattern: pattern.clone(),
            enabled: true,
            tags: tags.clone(),
            targets: vec!["arn:q".into()],
        };
        assert_eq!(decided(None).unwrap(), [RuleChange::Put, RuleChange::Target]);
        assert_eq!(decided(Some(right.clone())).unwrap(), []);
        assert_eq!(decided(Some(FoundRule { enabled: false, ..right.clone() })).unwrap(), [RuleChange::Put]);
        assert_eq!(decided(Some(FoundRule { targets: vec![], ..right.clone() })).unwrap(), [RuleChange::Target]);
        let strangers = FoundRule { tags: BTreeMap::new(), ..right };
        assert_eq!(decided(Some(strangers)).unwrap_err().name, ErrorName::NotOurs);
    }

    #[test]
    fn a_queue_as_it_should_be_is_left_alone() {
        assert_eq!(decide(&demo(), ARN, &tags(), Some(&found())).unwrap(), []);
        assert_eq!(decide(&demo(), ARN, &tags(), None).unwrap(), [QueueChange::Create]);
    }

    #[test]
    fn only_what_differs_is_set() {
        let mut queue = found();
        queue.attributes.insert("MessageRetentionPeriod".into(), "345600".into());
        let set = BTreeMap::from([("MessageRetentionPeriod".to_owned(), "300".to_owned())]);
        assert_eq!(decide(&demo(), ARN, &tags(), Some(&queue)).unwrap(), [QueueChange::Set(set)]);
    }

    #[test]
    fn a_strangers_queue_is_refused() {
        let queue = FoundQueue { tags: BTreeMap::new(), ..found() };
        assert_eq!(decide(&demo(), ARN, &tags(), Some(&queue)).unwrap_err().name, ErrorName::NotOurs);
    }
}
