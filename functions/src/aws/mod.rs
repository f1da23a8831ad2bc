//! AWS's APIs: one configuration, a client a service, made when first asked for.

pub mod documents;
pub mod ec2;
pub mod error;
pub mod health;
pub mod iam;
pub mod interfaces;
pub mod inventory;
pub mod logs;
pub mod networks;
pub mod pod_identity;
pub mod removal;
pub mod stacks;
pub mod tags;

use std::{sync::OnceLock, time::Duration};

use aws_config::{AppName, BehaviorVersion, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
pub use slipway_statemachine::names::partition;

macro_rules! clients {
    ($($(#[$doc:meta])* $service:ident: $sdk:ident,)*) => {
        /// One client a service, all from one configuration.
        #[derive(Debug)]
        pub struct Clients {
            config: SdkConfig,
            $($service: OnceLock<$sdk::Client>,)*
        }

        impl Clients {
            /// Clients of one configuration.
            #[must_use]
            pub fn new(config: SdkConfig) -> Self {
                Self { config, $($service: OnceLock::new(),)* }
            }

            $($(#[$doc])*
            pub fn $service(&self) -> &$sdk::Client {
                self.$service.get_or_init(|| $sdk::Client::new(&self.config))
            })*
        }
    };
}

clients! {
    /// Networks, instance types, launch templates.
    ec2: aws_sdk_ec2,
    /// Roles, policies, OIDC providers.
    iam: aws_sdk_iam,
    /// Clusters, node groups, add-ons, access entries.
    eks: aws_sdk_eks,
    /// The interruption queue.
    sqs: aws_sdk_sqs,
    /// Rules, and the bus.
    events: aws_sdk_eventbridge,
    /// The network's stack.
    cloudformation: aws_sdk_cloudformation,
    /// Load balancers of the first generation.
    elb: aws_sdk_elasticloadbalancing,
    /// Network, application and gateway load balancers.
    elbv2: aws_sdk_elasticloadbalancingv2,
    /// What bears a tag, of most services.
    tagging: aws_sdk_resourcegroupstagging,
    /// Who we are.
    sts: aws_sdk_sts,
    /// Limits of the account.
    quotas: aws_sdk_servicequotas,
    /// The state table.
    dynamodb: aws_sdk_dynamodb,
    /// Executions of the state machines.
    states: aws_sdk_sfn,
}

impl Clients {
    /// Clients of the environment's credentials and region. A call is given up after 30 s and an attempt after 10 s,
    /// so that a function of 60 s answers with a typed error before Lambda ends it without one.
    pub async fn load() -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(2))
                    .operation_attempt_timeout(Duration::from_secs(10))
                    .operation_timeout(Duration::from_secs(30))
                    .build(),
            )
            // Standard mode: exponential, with full jitter.
            .retry_config(RetryConfig::standard().with_max_attempts(4).with_max_backoff(Duration::from_secs(4)));
        if let Ok(name) = AppName::new("slipway") {
            loader = loader.app_name(name);
        }
        Self::new(loader.load().await)
    }

    /// The configuration, for what signs on its own.
    #[must_use]
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// The region that the control plane runs in.
    #[must_use]
    pub fn region(&self) -> &str {
        self.config.region().map_or("", AsRef::as_ref)
    }
}
