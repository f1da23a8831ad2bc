//! SQS: MiniStack's, but for the minute during which a deleted queue's name stays taken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::HeaderValue;
use slipway_states::clock::ScaledClock;

use crate::gateway::call::{Answer, AwsError, Call, Service};
use crate::gateway::wire;

/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteQueue.html>
const NAME_STAYS_TAKEN: Duration = Duration::from_mins(1);

/// SQS over an emulator.
pub struct Sqs {
    emulator: Arc<dyn Service>,
    clock: ScaledClock,
    /// By account, region and name.
    deleted: Mutex<HashMap<(String, String, String), Instant>>,
}

impl Sqs {
    /// SQS over an emulator, whose names stay taken for a simulated minute.
    #[must_use]
    pub fn new(emulator: Arc<dyn Service>, clock: ScaledClock) -> Arc<Self> {
        Arc::new(Self { emulator, clock, deleted: Mutex::default() })
    }

    fn was_deleted_recently(&self, queue: &(String, String, String)) -> bool {
        let mut deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        deleted.retain(|_, at| at.elapsed() < self.clock.real(NAME_STAYS_TAKEN));
        deleted.contains_key(queue)
    }
}

#[async_trait]
impl Service for Sqs {
    async fn handle(&self, call: Call) -> Answer {
        let member = match call.action.as_str() {
            "CreateQueue" => "QueueName",
            "DeleteQueue" => "QueueUrl",
            _ => return self.emulator.handle(call).await,
        };
        // A queue's URL ends in its name.
        let named = named(&call, member);
        let name = named.rsplit('/').next().unwrap_or_default().to_owned();
        let queue = (call.account.clone(), call.region.clone(), name);
        if call.action == "CreateQueue" {
            return if self.was_deleted_recently(&queue) {
                deleted_recently(&call)
            } else {
                self.emulator.handle(call).await
            };
        }
        let answer = self.emulator.handle(call).await;
        if answer.status.is_success() {
            self.deleted.lock().unwrap_or_else(PoisonError::into_inner).insert(queue, Instant::now());
        }
        answer
    }
}

/// A member of a request by either protocol, empty if it is not there.
fn named(call: &Call, member: &str) -> String {
    match wire::Protocol::of(&call.service, &call.headers) {
        wire::Protocol::Json => {
            let body = wire::json_body(call).unwrap_or_default();
            body[member].as_str().unwrap_or_default().to_owned()
        }
        _ => wire::parameters(call).remove(member).unwrap_or_default(),
    }
}

fn deleted_recently(call: &Call) -> Answer {
    const OF_QUERY: &str = "AWS.SimpleQueueService.QueueDeletedRecently";
    let json = matches!(wire::Protocol::of(&call.service, &call.headers), wire::Protocol::Json);
    let code = if json { "QueueDeletedRecently" } else { OF_QUERY };
    let message = "You must wait 60 seconds after deleting a queue before you can create another with the same name.";
    let mut answer = wire::refuse(call, &AwsError::new(400, code, message));
    if json {
        // Clients of the JSON protocol go on knowing an error by its name in the older one.
        let value = HeaderValue::from_static("AWS.SimpleQueueService.QueueDeletedRecently;Sender");
        answer.headers.insert("x-amzn-query-error", value);
    }
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use http::{HeaderMap, Method, StatusCode};
    use serde_json::{Value, json};

    use super::*;
    use crate::gateway::call::Principal;

    struct Anything;

    #[async_trait]
    impl Service for Anything {
        async fn handle(&self, _call: Call) -> Answer {
            wire::rest_json_answer(StatusCode::OK, &json!({}))
        }
    }

    fn call(region: &str, action: &str, body: &Value, json: bool) -> Call {
        let mut headers = HeaderMap::new();
        let parameters: Vec<(String, String)> = body
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned()))
            .collect();
        let parameters: Vec<(&str, &str)> =
            parameters.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let body = if json {
            headers.insert("x-amz-target", format!("AmazonSQS.{action}").parse().unwrap());
            Bytes::from(body.to_string())
        } else {
            headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
            wire::form_body(action, "2012-11-05", &parameters)
        };
        Call {
            request_id: wire::request_id(),
            account: "111122223333".into(),
            region: region.into(),
            principal: Principal::service("x", "111122223333"),
            service: "sqs".into(),
            action: action.into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers,
            body,
        }
    }

    #[tokio::test]
    async fn a_deleted_queues_name_is_free_again_after_a_minute() {
        let sqs = Sqs::new(Arc::new(Anything), ScaledClock::new(200.0));
        let create = |region: &str, json: bool| call(region, "CreateQueue", &json!({"QueueName": "demo"}), json);
        assert!(sqs.handle(create("eu-west-1", true)).await.status.is_success());
        let url = "http://127.0.0.1:1/111122223333/demo";
        sqs.handle(call("eu-west-1", "DeleteQueue", &json!({"QueueUrl": url}), true)).await;
        let refused = sqs.handle(create("eu-west-1", true)).await;
        assert_eq!(wire::error_of(&refused).unwrap().code, "QueueDeletedRecently");
        assert_eq!(refused.headers["x-amzn-query-error"], "AWS.SimpleQueueService.QueueDeletedRecently;Sender");
        let refused = wire::error_of(&sqs.handle(create("eu-west-1", false)).await).unwrap();
        assert_eq!((refused.status, refused.code.as_str()), (400, "AWS.SimpleQueueService.QueueDeletedRecently"));
        assert!(sqs.handle(create("us-east-1", true)).await.status.is_success());
        let began = Instant::now();
        while !sqs.handle(create("eu-west-1", true)).await.status.is_success() {
            assert!(began.elapsed() < Duration::from_secs(10), "the name stays taken");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(began.elapsed() > Duration::from_millis(100), "the name was free at once");
    }
}
