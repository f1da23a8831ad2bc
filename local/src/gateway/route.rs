//! Which service answers a call.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::call::{Answer, AwsError, Call, Service};
use super::{operations, wire};

/// Services by the name in the signature's scope.
#[derive(Default)]
pub struct Routes {
    services: RwLock<HashMap<String, Arc<dyn Service>>>,
}

impl Routes {
    /// Sends a service's calls somewhere.
    pub fn add(&self, service: &str, to: Arc<dyn Service>) {
        self.services.write().unwrap_or_else(PoisonError::into_inner).insert(service.to_owned(), to);
    }

    /// Forgets all services: they know the gateway and the gateway them, and one side has to let go.
    pub fn clear(&self) {
        self.services.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The operation of a REST call: the service's own word for it, or ours for the emulators behind us.
    pub(super) fn action(&self, call: &Call) -> String {
        self.find(&call.service)
            .and_then(|service| service.action(&call.method, &call.uri))
            .or_else(|| operations::name(&call.service, &call.method, &call.uri))
            .unwrap_or_else(|| format!("{} {}", call.method, call.uri.path()))
    }

    pub(super) async fn send(&self, call: Call) -> Answer {
        if let Some(service) = self.find(&call.service) {
            return service.handle(call).await;
        }
        let message = format!("the local cloud has no {}: docs/local-cloud.md names what it has", call.service);
        wire::refuse(&call, &AwsError::new(501, "NotImplemented", message))
    }

    fn find(&self, service: &str) -> Option<Arc<dyn Service>> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }
}
