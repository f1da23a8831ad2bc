//! Whether a new cluster can be used already: its endpoint answers, its issuer is served, its admins are let in.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};
use reqwest::{Certificate, Client, ClientBuilder};
use serde_json::Value;
use slipway_statemachine::{ClusterEndpoint, StepError};

use super::Cluster;

/// Long enough for an endpoint that is there; one that is not is asked again by the machine.
const ANSWER: Duration = Duration::from_secs(5);

/// Asks the endpoint anything, trusting the cluster's own authority alone and through no proxy. Whatever it answers
/// over that TLS, even a refusal, it answers.
///
/// # Errors
/// Why there was no answer, as part of a sentence.
pub async fn endpoint(endpoint: &ClusterEndpoint) -> Result<(), String> {
    let unreadable = "its certificate authority cannot be read";
    let authority = STANDARD.decode(&endpoint.certificate_authority).map_err(|_| unreadable)?;
    let authority = Certificate::from_pem_bundle(&authority).map_err(|_| unreadable)?;
    let client = builder().no_proxy().tls_certs_only(authority).build().map_err(|error| innermost(&error))?;
    let answer = client.get(format!("{}/livez", endpoint.url)).send().await.map_err(|error| innermost(&error))?;
    if answer.status().is_server_error() { Err(format!("it answers {}", answer.status())) } else { Ok(()) }
}

/// Fetches the issuer's discovery document and its keys as STS does: from its public name. A proxy of the environment
/// and SSL_CERT_FILE are honoured.
///
/// # Errors
/// What is not served yet, as part of a sentence.
pub async fn issuer(issuer: &str) -> Result<(), String> {
    let client = builder().build().map_err(|error| innermost(&error))?;
    let discovery = fetch(&client, &format!("{issuer}/.well-known/openid-configuration")).await?;
    let keys = fetch(&client, keys_url(issuer, &discovery)?).await?;
    if keys["keys"].as_array().is_some_and(|keys| !keys.is_empty()) {
        Ok(())
    } else {
        Err("its key set is empty".to_owned())
    }
}

fn keys_url<'a>(issuer: &str, discovery: &'a Value) -> Result<&'a str, String> {
    if discovery["issuer"] != issuer {
        return Err(format!("its discovery document names the issuer {}", discovery["issuer"]));
    }
    discovery["jwks_uri"].as_str().ok_or_else(|| "its discovery document names no keys".to_owned())
}

async fn fetch(client: &Client, url: &str) -> Result<Value, String> {
    let answer = client.get(url).send().await.map_err(|error| format!("{url}: {}", innermost(&error)))?;
    if !answer.status().is_success() {
        return Err(format!("{url} answers {}", answer.status()));
    }
    answer.json().await.map_err(|_| format!("{url} is no JSON"))
}

fn builder() -> ClientBuilder {
    Client::builder().connect_timeout(ANSWER).timeout(ANSWER)
}

fn innermost(error: &reqwest::Error) -> String {
    let mut reason: &dyn std::error::Error = error;
    while let Some(deeper) = reason.source() {
        reason = deeper;
    }
    reason.to_string()
}

impl Cluster {
    /// Whether who is logged in may do everything to everything.
    ///
    /// # Errors
    /// `ClusterUnreachable` where it is not even let in, and what else [`Self::refused`] names.
    pub async fn is_admin(&self) -> Result<bool, StepError> {
        let all = || Some("*".to_owned());
        let question = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: all(),
                    resource: all(),
                    verb: all(),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client());
        let answer = api
            .create(&PostParams::default(), &question)
            .await
            .map_err(|error| self.refused("Asking what the cluster-access role may do", &error))?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_discovery_document_must_name_its_issuer_and_keys() {
        let issuer = "https://oidc.eks.eu-west-1.amazonaws.com/id/A";
        let keys = format!("{issuer}/keys");
        assert_eq!(keys_url(issuer, &json!({"issuer": issuer, "jwks_uri": keys})).unwrap(), keys);
        assert!(keys_url(issuer, &json!({"issuer": issuer})).unwrap_err().contains("no keys"));
        assert!(keys_url(issuer, &json!({"issuer": "https://other"})).unwrap_err().contains("https://other"));
    }

    #[tokio::test]
    async fn nobody_there_is_said_in_words() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let authority = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
        let there = ClusterEndpoint {
            url: format!("https://127.0.0.1:{port}"),
            certificate_authority: STANDARD.encode(authority),
        };
        assert!(!endpoint(&there).await.unwrap_err().is_empty());
        let broken = ClusterEndpoint { certificate_authority: "%".to_owned(), ..there };
        assert!(endpoint(&broken).await.unwrap_err().contains("cannot be read"));
    }
}
