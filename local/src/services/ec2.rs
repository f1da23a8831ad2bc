//! EC2: moto's, which believes any instance profile; EC2 refuses one that it has not heard of.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, Method, header};

use super::iam::Iam;
use crate::gateway::call::{Answer, AwsError, Call, Principal, Service};
use crate::gateway::wire;
use crate::propagation::Changes;

/// Whoever knows instance profiles.
#[async_trait]
pub trait Profiles: Send + Sync {
    /// The ARN of an account's instance profile; `None` if there is no such profile.
    async fn profile_arn(&self, account: &str, name: &str) -> Option<String>;
}

#[async_trait]
impl Profiles for Iam {
    async fn profile_arn(&self, account: &str, name: &str) -> Option<String> {
        self.arn(account, "instance-profile", name).await
    }
}

/// EC2 over an emulator.
pub struct Ec2 {
    emulator: Arc<dyn Service>,
    iam: Arc<dyn Profiles>,
    changes: Arc<Changes>,
}

/// An instance profile as a request names it.
#[derive(Debug, PartialEq, Eq)]
enum Profile {
    Name(String),
    Arn(String),
}

impl Ec2 {
    /// EC2 over an emulator, which looks profiles up in `iam` and hears of `changes`.
    #[must_use]
    pub fn new(emulator: Arc<dyn Service>, iam: Arc<dyn Profiles>, changes: Arc<Changes>) -> Arc<Self> {
        Arc::new(Self { emulator, iam, changes })
    }

    /// EC2's refusal of instances with a profile that it does not know.
    async fn unknown_profile(&self, call: &Call) -> Option<AwsError> {
        let parameters = wire::parameters(call);
        let profile = match asked(&parameters, "IamInstanceProfile") {
            Some(profile) => profile,
            None => self.of_template(call, &parameters).await?,
        };
        let (member, given, word) = match &profile {
            Profile::Name(name) => ("iamInstanceProfile.name", name, "name"),
            Profile::Arn(arn) => ("iamInstanceProfile.arn", arn, "ARN"),
        };
        let name = given.rsplit('/').next().unwrap_or(given);
        let found = self.iam.profile_arn(&call.account, name).await;
        let arn = found.filter(|arn| matches!(profile, Profile::Name(_)) || arn == given);
        if arn.is_some_and(|arn| self.changes.believed(&arn, "ec2")) {
            return None;
        }
        let message = format!("Value ({given}) for parameter {member} is invalid. Invalid IAM Instance Profile {word}");
        Some(AwsError::new(400, "InvalidParameterValue", message))
    }

    /// The profile of the launch template that instances are to be made from.
    async fn of_template(&self, call: &Call, parameters: &BTreeMap<String, String>) -> Option<Profile> {
        let template = |member: &str| parameters.get(&format!("LaunchTemplate.{member}")).map(String::as_str);
        let (member, value) = match (template("LaunchTemplateId"), template("LaunchTemplateName")) {
            (Some(id), _) => ("LaunchTemplateId", id),
            (None, name) => ("LaunchTemplateName", name?),
        };
        let version = template("Version").unwrap_or("$Default");
        let action = "DescribeLaunchTemplateVersions";
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        // The question is EC2's own: it is not recorded.
        let question = Call {
            request_id: wire::request_id(),
            account: call.account.clone(),
            region: call.region.clone(),
            principal: Principal::service("ec2.amazonaws.com", &call.account),
            service: "ec2".to_owned(),
            action: action.to_owned(),
            method: Method::POST,
            uri: http::Uri::from_static("/"),
            headers,
            body: wire::form_body(action, "2016-11-15", &[(member, value), ("LaunchTemplateVersion.1", version)]),
        };
        let answer = self.emulator.handle(question).await;
        profile_of(&String::from_utf8_lossy(&answer.body))
    }
}

#[async_trait]
impl Service for Ec2 {
    async fn handle(&self, call: Call) -> Answer {
        if call.action == "RunInstances"
            && let Some(refusal) = self.unknown_profile(&call).await
        {
            return wire::refuse(&call, &refusal);
        }
        self.emulator.handle(call).await
    }
}

fn asked(parameters: &BTreeMap<String, String>, member: &str) -> Option<Profile> {
    let part = |part: &str| parameters.get(&format!("{member}.{part}")).filter(|text| !text.is_empty()).cloned();
    part("Name").map(Profile::Name).or_else(|| part("Arn").map(Profile::Arn))
}

/// The profile in a description of a launch template's version.
fn profile_of(xml: &str) -> Option<Profile> {
    let document = roxmltree::Document::parse(xml).ok()?;
    let profile = document.descendants().find(|node| node.tag_name().name() == "iamInstanceProfile")?;
    let part = |name: &str| {
        let node = profile.children().find(|node| node.tag_name().name() == name)?;
        node.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    part("name").map(Profile::Name).or_else(|| part("arn").map(Profile::Arn))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use slipway_states::clock::ScaledClock;

    use super::*;
    use crate::propagation::Propagation;

    const ARN: &str = "arn:aws:iam::111122223333:instance-profile/core";

    /// EC2 that runs anything, and a launch template with a profile.
    struct Anything;

    #[async_trait]
    impl Service for Anything {
        async fn handle(&self, call: Call) -> Answer {
            let members = if call.action == "DescribeLaunchTemplateVersions" {
                "<launchTemplateVersionSet><item><launchTemplateData><iamInstanceProfile><name>core</name>\
                 </iamInstanceProfile></launchTemplateData></item></launchTemplateVersionSet>"
            } else {
                "<instancesSet/>"
            };
            wire::ec2_answer(&call, members)
        }
    }

    #[async_trait]
    impl Profiles for Anything {
        async fn profile_arn(&self, _account: &str, name: &str) -> Option<String> {
            (name == "core").then(|| ARN.to_owned())
        }
    }

    async fn run(changes: &Arc<Changes>, parameters: &[(&str, &str)]) -> Option<AwsError> {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
        let call = Call {
            request_id: wire::request_id(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal: Principal::service("x", "111122223333"),
            service: "ec2".into(),
            action: "RunInstances".into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers,
            body: wire::form_body("RunInstances", "2016-11-15", parameters),
        };
        wire::error_of(&Ec2::new(Arc::new(Anything), Arc::new(Anything), Arc::clone(changes)).handle(call).await)
    }

    #[tokio::test]
    async fn a_fresh_profile_is_refused_however_it_is_named() {
        let never = Propagation { seed: 1, shortest: Duration::from_hours(1), longest: Duration::from_hours(1) };
        let changes = Arc::new(Changes::new(never, ScaledClock::new(1.0)));
        let named = [("IamInstanceProfile.Name", "core")];
        let by_arn = [("IamInstanceProfile.Arn", ARN)];
        let by_template = [("LaunchTemplate.LaunchTemplateName", "karpenter"), ("LaunchTemplate.Version", "$Latest")];
        let ways: [&[(&str, &str)]; 4] = [&named, &by_arn, &by_template, &[]];
        for way in ways {
            assert_eq!(run(&changes, way).await, None);
        }
        changes.record(ARN, None);
        for way in &ways[..3] {
            let refused = run(&changes, way).await.unwrap();
            assert_eq!((refused.status, refused.code.as_str()), (400, "InvalidParameterValue"));
            assert!(refused.message.contains("is invalid. Invalid IAM Instance Profile "), "{refused}");
        }
        assert_eq!(run(&changes, &[]).await, None);
        assert!(run(&changes, &[("IamInstanceProfile.Name", "absent")]).await.is_some());
    }
}
