//! CloudFormation: our own engine has the stacks whose resource types it knows, MiniStack those of SAM templates.

use std::sync::Arc;

use async_trait::async_trait;

use super::backend::MiniStack;
use crate::cloudformation::CloudFormation;
use crate::gateway::call::{Answer, Call, Service};

/// Both engines as one service.
pub struct Stacks {
    own: Arc<CloudFormation>,
    ministack: MiniStack,
}

impl Stacks {
    /// `own` has what it takes, MiniStack the rest, listings of all stacks among it.
    #[must_use]
    pub fn new(own: Arc<CloudFormation>, ministack: MiniStack) -> Self {
        Self { own, ministack }
    }
}

#[async_trait]
impl Service for Stacks {
    async fn handle(&self, call: Call) -> Answer {
        if self.own.takes(&call) { self.own.handle(call).await } else { self.ministack.handle(call).await }
    }
}
