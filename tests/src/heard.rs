//! What the bus says, heard as any customer would: a rule that puts events on a queue.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use aws_config::SdkConfig;
use aws_sdk_eventbridge::types::Target;
use serde_json::{Value, json};

/// A queue that hears everything of source `slipway`.
pub struct Listener {
    sqs: aws_sdk_sqs::Client,
    url: String,
}

impl Listener {
    /// Listens from now on.
    ///
    /// # Errors
    /// What SQS or EventBridge refused.
    pub async fn start(config: &SdkConfig) -> anyhow::Result<Self> {
        let sqs = aws_sdk_sqs::Client::new(config);
        let events = aws_sdk_eventbridge::Client::new(config);
        let url =
            sqs.create_queue().queue_name("test-listener").send().await?.queue_url.context("a queue has a URL")?;
        let attributes = sqs.get_queue_attributes().queue_url(&url).attribute_names("QueueArn".into()).send().await?;
        let arn = attributes.attributes().and_then(|all| all.get(&"QueueArn".into())).context("a queue has an ARN")?;
        let pattern = json!({"source": ["slipway"]}).to_string();
        events.put_rule().name("test-listener").event_bus_name("slipway").event_pattern(pattern).send().await?;
        let target = Target::builder().id("queue").arn(arn).build()?;
        events.put_targets().rule("test-listener").event_bus_name("slipway").targets(target).send().await?;
        Ok(Self { sqs, url })
    }

    /// The next event of a detail-type, within ten seconds.
    ///
    /// # Errors
    /// When none comes.
    pub async fn next(&self, detail_type: &str) -> anyhow::Result<Value> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            let heard = self.sqs.receive_message().queue_url(&self.url).wait_time_seconds(1).send().await?;
            for message in heard.messages() {
                let event: Value = serde_json::from_str(message.body().unwrap_or_default())?;
                if event["detail-type"] == detail_type {
                    return Ok(event);
                }
            }
        }
        bail!("no event {detail_type:?} was heard")
    }
}
