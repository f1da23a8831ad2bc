//! Service account tokens (JWT, RS256), as whoever is shown one reads and verifies them.

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

/// Why a token's signature is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It is no token.
    #[error("the token cannot be read")]
    Malformed,
    /// The issuer's key that it names cannot be had.
    #[error("the issuer's key cannot be had")]
    NoKey,
    /// Another key signed it, or another issuer.
    #[error("the token is not signed by its issuer")]
    Forged,
}

/// The claims of a token, before anything is known about its signature; `None` if it is no token.
#[must_use]
pub fn unverified_claims(token: &str) -> Option<Value> {
    jsonwebtoken::dangerous::insecure_decode::<Value>(token).map(|token| token.claims).ok()
}

/// Verifies signature and issuer, and neither expiry nor audience, which every service judges in its own words. `keys`
/// is the issuer's key set (RFC 7517), if it is served.
///
/// # Errors
/// What is wrong with the token.
pub fn verify(token: &str, issuer: &str, keys: Option<Value>) -> Result<(), Distrust> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| Distrust::Malformed)?;
    let keys: JwkSet = keys.and_then(|keys| serde_json::from_value(keys).ok()).ok_or(Distrust::NoKey)?;
    let key = match &header.kid {
        Some(id) => keys.find(id),
        None => keys.keys.first(),
    };
    let key = key.and_then(|key| DecodingKey::from_jwk(key).ok()).ok_or(Distrust::NoKey)?;
    let mut validation = Validation::new(Algorithm::RS256);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    validation.set_issuer(&[issuer]);
    jsonwebtoken::decode::<Value>(token, &key, &validation).map(|_| ()).map_err(|_| Distrust::Forged)
}

/// The audiences of a token, of which there may be one or a list.
#[must_use]
pub fn audiences(claims: &Value) -> Vec<String> {
    texts(&claims["aud"])
}

/// One text, or a list of them.
pub(crate) fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use base64::Engine;
    use jsonwebtoken::jwk::Jwk;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;

    /// An issuer with one key.
    pub(crate) struct Issuer {
        private: EncodingKey,
        url: String,
    }

    impl Issuer {
        pub(crate) fn new(url: &str) -> Self {
            let der = KeyPair::generate(KeySize::Rsa2048).unwrap().as_der().unwrap();
            let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
            Self { private: EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(), url: url.to_owned() }
        }

        /// Its key set.
        pub(crate) fn keys(&self) -> Value {
            json!({"keys": [Jwk::from_encoding_key(&self.private, Algorithm::RS256).unwrap()]})
        }

        /// A token for ten minutes with these claims; `null` takes one away.
        pub(crate) fn token(&self, claims: &Value) -> String {
            let expires = OffsetDateTime::now_utc().unix_timestamp() + 600;
            let mut all = json!({"iss": self.url, "exp": expires});
            for (claim, value) in claims.as_object().into_iter().flatten() {
                all[claim] = value.clone();
            }
            all.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            jsonwebtoken::encode(&Header::new(Algorithm::RS256), &all, &self.private).unwrap()
        }
    }

    #[test]
    fn only_the_issuers_own_signature_counts() {
        let url = "https://issuer.example.com";
        let (issuer, other) = (Issuer::new(url), Issuer::new(url));
        let token = issuer.token(&json!({"sub": "x"}));
        assert_eq!(verify(&token, url, Some(issuer.keys())), Ok(()));
        assert_eq!(verify(&token, url, Some(other.keys())), Err(Distrust::Forged));
        assert_eq!(verify(&token, "https://other.example.com", Some(issuer.keys())), Err(Distrust::Forged));
        assert_eq!(verify(&token, url, None), Err(Distrust::NoKey));
        assert_eq!(verify("a.b.c", url, Some(issuer.keys())), Err(Distrust::Malformed));
    }
}
