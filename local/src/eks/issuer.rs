//! The issuer of a cluster's service account tokens: its discovery document and its keys.

use std::time::Instant;

use serde_json::{Value, json};

use super::Eks;

impl Eks {
    /// A document of an issuer by host and path without scheme, for example
    /// `oidc.eks.eu-west-1.amazonaws.com/id/<id>/.well-known/openid-configuration` or `…/keys`. `None` where there is
    /// none, or not yet: the documents are served as late as the endpoint.
    #[must_use]
    pub fn issuer_document(&self, host_path: &str) -> Option<Value> {
        let url = format!("https://{host_path}");
        let discovery = url.strip_suffix("/.well-known/openid-configuration");
        let issuer = discovery.or_else(|| url.strip_suffix("/keys"))?;
        let state = self.state();
        let cluster = state.clusters.values().find(|cluster| cluster.issuer == issuer)?;
        let keys = &cluster.plane.as_ref()?.jwks;
        if cluster.usable_from.is_none_or(|from| Instant::now() < from) {
            return None;
        }
        Some(if discovery.is_none() {
            keys.clone()
        } else {
            json!({
                "issuer": issuer,
                "jwks_uri": format!("{issuer}/keys"),
                "authorization_endpoint": "urn:kubernetes:programmatic_authorization",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "claims_supported": ["sub", "iss"],
                "id_token_signing_alg_values_supported": ["RS256"],
            })
        })
    }

    /// The key set (RFC 7517) of an issuer, `https://oidc.eks.<region>.amazonaws.com/id/<id>`, while it is served.
    #[must_use]
    pub fn issuer_keys(&self, issuer: &str) -> Option<Value> {
        self.issuer_document(&format!("{}/keys", issuer.strip_prefix("https://")?))
    }
}
