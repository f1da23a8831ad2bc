//! STS: who one is, and how one becomes a role, believing nobody without a signature, a provider and a trust policy.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use iam_rs::{Principal as Caller, PrincipalId};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::iam::{Role, Roles};
use crate::eks::Eks;
use crate::gateway::call::{Answer, AwsError, Call, Principal, Service};
use crate::gateway::identify::{Identities, Session};
use crate::gateway::policy::{Decision, Question, callers, decide, decide_trust};
use crate::gateway::wire;

/// Where the keys of identity providers are. EKS has those of its clusters.
pub trait IssuerKeys: Send + Sync {
    /// The JWKS of an issuer (`https://oidc.eks.<region>.amazonaws.com/id/<id>`), while it is served.
    fn jwks(&self, issuer: &str) -> Option<Value>;
}

impl IssuerKeys for Eks {
    fn jwks(&self, issuer: &str) -> Option<Value> {
        self.issuer_keys(issuer)
    }
}

/// STS of the local cloud.
pub struct Sts {
    identities: Arc<Identities>,
    iam: Arc<dyn Roles>,
    issuers: OnceLock<Arc<dyn IssuerKeys>>,
}

impl Sts {
    /// STS that hands its sessions to `identities` and looks roles and providers up in `iam`.
    #[must_use]
    pub fn new(identities: Arc<Identities>, iam: Arc<dyn Roles>) -> Arc<Self> {
        Arc::new(Self { identities, iam, issuers: OnceLock::new() })
    }

    /// Where issuers' keys are, once there are issuers.
    pub fn trust_issuers(&self, issuers: Arc<dyn IssuerKeys>) {
        // The cloud has one EKS; a second is ignored.
        let _ = self.issuers.set(issuers);
    }

    async fn caller_identity(&self, call: &Call) -> String {
        let principal = &call.principal;
        let id = match &principal.role_arn {
            Some(role) => {
                let role = self.iam.role(role).await.map_or_else(|| "AROAUNKNOWN".to_owned(), |role| role.id);
                format!("{role}:{}", principal.arn.rsplit('/').next().unwrap_or_default())
            }
            None => "AIDASLIPWAYADMIN00001".to_owned(),
        };
        format!(
            "{}{}{}",
            wire::element("Arn", &principal.arn),
            wire::element("UserId", &id),
            wire::element("Account", &principal.account)
        )
    }

    async fn assume_role(&self, call: &Call) -> Result<String, AwsError> {
        let parameters = wire::parameters(call);
        let role_arn = required(&parameters, "RoleArn")?;
        let session_name = session_name(&parameters)?;
        let refused = || {
            let message = format!(
                "User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
                call.principal.arn
            );
            AwsError::new(403, "AccessDenied", message)
        };
        let role = self.iam.role(role_arn).await.ok_or_else(refused)?;
        let mut context = BTreeMap::from([
            ("sts:RoleSessionName".to_owned(), vec![session_name.to_owned()]),
            ("aws:PrincipalArn".to_owned(), vec![principal_arn(&call.principal)]),
            ("aws:PrincipalAccount".to_owned(), vec![call.principal.account.clone()]),
            ("aws:SourceAccount".to_owned(), vec![call.account.clone()]),
        ]);
        if let Some(id) = parameters.get("ExternalId") {
            context.insert("sts:ExternalId".to_owned(), vec![id.clone()]);
        }
        let question = Question { action: "sts:AssumeRole".to_owned(), context, ..Question::default() };
        if !self.trusts(&role, &call.principal, &question, role_arn).await {
            return Err(refused());
        }
        // A role that assumes a role keeps its session no longer than an hour.
        let longest = if call.principal.role_arn.is_some() { 3600 } else { 43_200 };
        let given = self.hand_out(role_arn, session_name, duration(&parameters, longest)?, &role);
        Ok(given)
    }

    /// A trust policy that names the caller or its role suffices within the account; one that names only its
    /// account leaves the choice to the caller's own policies.
    async fn trusts(&self, role: &Role, principal: &Principal, question: &Question, role_arn: &str) -> bool {
        let all = callers(&principal.arn, principal.role_arn.as_deref(), &principal.account);
        if decide_trust(&role.trust, &all, question) != Decision::Allow {
            return false;
        }
        let Some(own_role) = &principal.role_arn else {
            return true;
        };
        let named: Vec<Caller> = all.into_iter().take(2).collect();
        let same_account = role_arn.split(':').nth(4) == Some(&principal.account);
        if same_account && decide_trust(&role.trust, &named, question) == Decision::Allow {
            return true;
        }
        let policies = self.iam.policies(own_role).await.unwrap_or_default();
        let own = Question { resource: Some(role_arn.to_owned()), ..question.clone() };
        decide(&policies, &own) == Decision::Allow
    }

    async fn assume_role_with_web_identity(&self, call: &Call) -> Result<String, AwsError> {
        let parameters = wire::parameters(call);
        let role_arn = required(&parameters, "RoleArn")?;
        let session_name = session_name(&parameters)?;
        let token = required(&parameters, "WebIdentityToken")?;
        let claims = unverified_claims(token)?;
        let issuer = claims["iss"].as_str().ok_or_else(|| invalid_token("The ID Token provided is not a valid JWT"))?;
        let host_and_path = issuer.trim_start_matches("https://");
        let account = role_arn.split(':').nth(4).unwrap_or_default();
        let provider_arn = format!("arn:aws:iam::{account}:oidc-provider/{host_and_path}");
        let Some(client_ids) = self.iam.client_ids(&provider_arn).await else {
            return Err(invalid_token(format!("No OpenIDConnect provider found in your account for {issuer}")));
        };
        self.verify(token, issuer)?;
        let expires = claims["exp"].as_i64().unwrap_or(0);
        let now = OffsetDateTime::now_utc();
        if expires <= now.unix_timestamp() {
            let message = format!(
                "Token expired: current date/time {} must be before the expiration date/time{expires}",
                now.unix_timestamp()
            );
            return Err(AwsError::new(400, "ExpiredTokenException", message));
        }
        let audiences = audiences(&claims);
        if !audiences.iter().any(|audience| client_ids.contains(audience)) {
            return Err(invalid_token("Incorrect token audience"));
        }
        let not_authorized =
            || AwsError::new(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
        let role = self.iam.role(role_arn).await.ok_or_else(not_authorized)?;
        let subject = claims["sub"].as_str().unwrap_or_default().to_owned();
        let context = BTreeMap::from([
            (format!("{host_and_path}:sub"), vec![subject.clone()]),
            (format!("{host_and_path}:aud"), audiences.clone()),
            ("sts:RoleSessionName".to_owned(), vec![session_name.to_owned()]),
        ]);
        let question = Question { action: "sts:AssumeRoleWithWebIdentity".to_owned(), context, ..Question::default() };
        let provider = [Caller::Federated(PrincipalId::String(provider_arn.clone()))];
        if decide_trust(&role.trust, &provider, &question) != Decision::Allow {
            return Err(not_authorized());
        }
        let mut result = self.hand_out(role_arn, session_name, duration(&parameters, 43_200)?, &role);
        result.push_str(&wire::element("SubjectFromWebIdentityToken", &subject));
        result.push_str(&wire::element("Audience", audiences.first().map_or("", String::as_str)));
        result.push_str(&wire::element("Provider", &provider_arn));
        Ok(result)
    }

    fn verify(&self, token: &str, issuer: &str) -> Result<(), AwsError> {
        let no_key = || {
            invalid_token(
                "Couldn't retrieve verification key from your identity provider,  please reference \
                 AssumeRoleWithWebIdentity documentation for requirements",
            )
        };
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| invalid_token("The ID Token provided is not a valid JWT"))?;
        let keys = self.issuers.get().and_then(|issuers| issuers.jwks(issuer)).ok_or_else(no_key)?;
        let keys: JwkSet = serde_json::from_value(keys).map_err(|_| no_key())?;
        let key = match &header.kid {
            Some(id) => keys.find(id),
            None => keys.keys.first(),
        };
        let key = key.and_then(|key| DecodingKey::from_jwk(key).ok()).ok_or_else(no_key)?;
        let mut validation = Validation::new(Algorithm::RS256);
        // Expiry and audience are judged with STS's own words, after the signature.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        validation.set_issuer(&[issuer]);
        jsonwebtoken::decode::<Value>(token, &key, &validation)
            .map_err(|_| invalid_token("The web identity token's signature could not be verified"))?;
        Ok(())
    }

    /// Makes a session and answers its `Credentials` and `AssumedRoleUser`.
    fn hand_out(&self, role_arn: &str, session_name: &str, seconds: i64, role: &Role) -> String {
        let account = role_arn.split(':').nth(4).unwrap_or_default();
        let role_name = role_arn.rsplit('/').next().unwrap_or_default();
        let arn = format!("arn:aws:sts::{account}:assumed-role/{role_name}/{session_name}");
        let access_key = format!("ASIA{}", &random_text(16));
        let secret = random_text(40);
        let token = random_text(240);
        let expires = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        let expires = expires.replace_nanosecond(0).unwrap_or(expires);
        self.identities.add(
            &access_key,
            Session {
                principal: Principal {
                    arn: arn.clone(),
                    account: account.to_owned(),
                    role_arn: Some(role_arn.to_owned()),
                    function: None,
                },
                secret: secret.clone(),
                token: Some(token.clone()),
                expires: Some(expires),
            },
        );
        let mut result = String::new();
        let id = wire::element("AssumedRoleId", &format!("{}:{session_name}", role.id));
        let _ = write!(result, "<AssumedRoleUser>{id}{}</AssumedRoleUser>", wire::element("Arn", &arn));
        let _ = write!(
            result,
            "<Credentials>{}{}{}{}</Credentials>",
            wire::element("AccessKeyId", &access_key),
            wire::element("SecretAccessKey", &secret),
            wire::element("SessionToken", &token),
            wire::element("Expiration", &expires.format(&Rfc3339).unwrap_or_default())
        );
        result
    }
}

#[async_trait]
impl Service for Sts {
    async fn handle(&self, call: Call) -> Answer {
        let result = match call.action.as_str() {
            "GetCallerIdentity" => Ok(self.caller_identity(&call).await),
            "AssumeRole" => self.assume_role(&call).await,
            "AssumeRoleWithWebIdentity" => self.assume_role_with_web_identity(&call).await,
            action => {
                let message = format!("Could not find operation {action} for version 2011-06-15");
                Err(AwsError::new(400, "InvalidAction", message))
            }
        };
        match result {
            Ok(result) => wire::query_answer(&call, &result),
            Err(refusal) => wire::refuse(&call, &refusal),
        }
    }
}

/// What `aws:PrincipalArn` is: a session's role rather than the session.
fn principal_arn(principal: &Principal) -> String {
    principal.role_arn.clone().unwrap_or_else(|| principal.arn.clone())
}

fn required<'a>(parameters: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str, AwsError> {
    parameters.get(name).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| {
        let member = format!("{}{}", name[..1].to_lowercase(), &name[1..]);
        let message = format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
        );
        AwsError::new(400, "ValidationError", message)
    })
}

fn session_name(parameters: &BTreeMap<String, String>) -> Result<&str, AwsError> {
    let name = required(parameters, "RoleSessionName")?;
    let allowed = |character: char| character.is_ascii_alphanumeric() || "_+=,.@-".contains(character);
    if (2..=64).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(name);
    }
    let message = format!(
        "1 validation error detected: Value '{name}' at 'roleSessionName' failed to satisfy constraint: Member must \
         satisfy regular expression pattern: [\\w+=,.@-]*"
    );
    Err(AwsError::new(400, "ValidationError", message))
}

fn duration(parameters: &BTreeMap<String, String>, longest: i64) -> Result<i64, AwsError> {
    let Some(text) = parameters.get("DurationSeconds") else {
        return Ok(3600);
    };
    match text.parse() {
        Ok(seconds) if (900..=longest).contains(&seconds) => Ok(seconds),
        _ => {
            let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.".to_owned();
            Err(AwsError::new(400, "ValidationError", message))
        }
    }
}

fn invalid_token(message: impl Into<String>) -> AwsError {
    AwsError::new(400, "InvalidIdentityToken", message)
}

/// The claims of a token, before anything is known about its signature.
fn unverified_claims(token: &str) -> Result<Value, AwsError> {
    jsonwebtoken::dangerous::insecure_decode::<Value>(token).map(|token| token.claims).map_err(|_| {
        invalid_token("The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
    })
}

fn audiences(claims: &Value) -> Vec<String> {
    match &claims["aud"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Unguessable enough for loopback: letters and digits, as AWS's keys are.
fn random_text(length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        // The time in front of a ULID says nothing; its random part is the last 16 characters.
        text.push_str(&ulid::Ulid::generate().to_string()[10..]);
    }
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use base64::Engine;
    use bytes::Bytes;
    use http::Method;
    use jsonwebtoken::jwk::Jwk;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    use super::*;
    use crate::gateway::authorize::RolePolicies;

    const ISSUER: &str = "https://oidc.eks.eu-west-1.amazonaws.com/id/A";
    const CONTROLLER: &str = "arn:aws:iam::111122223333:role/controller";
    const ACCESS: &str = "arn:aws:iam::111122223333:role/access";

    /// Two roles, and the identity provider if there is one.
    struct Account {
        provider: bool,
        policies: Vec<Value>,
    }

    #[async_trait]
    impl RolePolicies for Account {
        async fn policies(&self, _role_arn: &str) -> Option<Vec<Value>> {
            Some(self.policies.clone())
        }

        async fn arn(&self, _account: &str, _kind: &str, _name: &str) -> Option<String> {
            None
        }
    }

    #[async_trait]
    impl Roles for Account {
        async fn role(&self, role_arn: &str) -> Option<Role> {
            let host = ISSUER.trim_start_matches("https://");
            let trust = match role_arn {
                CONTROLLER => json!({"Statement": [{
                    "Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity",
                    "Principal": {"Federated": format!("arn:aws:iam::111122223333:oidc-provider/{host}")},
                    "Condition": {"StringEquals": {
                        format!("{host}:sub"): "system:serviceaccount:karpenter:karpenter",
                        format!("{host}:aud"): "sts.amazonaws.com"}}}]}),
                ACCESS => json!({"Statement": [{
                    "Effect": "Allow", "Action": "sts:AssumeRole",
                    "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
                    "Condition": {"StringEquals": {"sts:ExternalId": "x"}}}]}),
                _ => return None,
            };
            Some(Role { id: "AROAEXAMPLE".to_owned(), trust })
        }

        async fn client_ids(&self, _provider_arn: &str) -> Option<Vec<String>> {
            self.provider.then(|| vec!["sts.amazonaws.com".to_owned()])
        }
    }

    /// An issuer with one key.
    struct Issuer {
        private: EncodingKey,
    }

    impl Issuer {
        fn new() -> Self {
            let der = KeyPair::generate(KeySize::Rsa2048).unwrap().as_der().unwrap();
            let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
            Self { private: EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap() }
        }

        fn token(&self, subject: &str, audience: &str, seconds: i64) -> String {
            let expires = OffsetDateTime::now_utc().unix_timestamp() + seconds;
            let claims = json!({"iss": ISSUER, "sub": subject, "aud": [audience], "exp": expires});
            jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.private).unwrap()
        }
    }

    impl IssuerKeys for Issuer {
        fn jwks(&self, issuer: &str) -> Option<Value> {
            let key = Jwk::from_encoding_key(&self.private, Algorithm::RS256).unwrap();
            (issuer == ISSUER).then(|| json!({"keys": [key]}))
        }
    }

    fn sts(provider: bool, policies: Vec<Value>, issuer: Issuer) -> Arc<Sts> {
        let sts = Sts::new(Identities::new("111122223333", "eu-west-1", "s"), Arc::new(Account { provider, policies }));
        sts.trust_issuers(Arc::new(issuer));
        sts
    }

    async fn ask(
        sts: &Sts,
        principal: Principal,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Result<String, AwsError> {
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
        let call = Call {
            request_id: wire::request_id(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal,
            service: "sts".into(),
            action: action.into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers,
            body: wire::form_body(action, "2011-06-15", parameters),
        };
        let answer = sts.handle(call).await;
        let body: Bytes = answer.body.clone();
        wire::error_of(&answer).map_or_else(|| Ok(String::from_utf8(body.to_vec()).unwrap()), Err)
    }

    async fn with_token(sts: &Sts, token: &str) -> Result<String, AwsError> {
        let parameters = [("RoleArn", CONTROLLER), ("RoleSessionName", "karpenter"), ("WebIdentityToken", token)];
        ask(sts, Principal::service("anonymous", "111122223333"), "AssumeRoleWithWebIdentity", &parameters).await
    }

    const SUBJECT: &str = "system:serviceaccount:karpenter:karpenter";

    #[tokio::test]
    async fn a_token_is_believed_only_with_signature_provider_audience_time_and_trust() {
        let issuer = Issuer::new();
        let good = issuer.token(SUBJECT, "sts.amazonaws.com", 600);
        let forged = Issuer::new().token(SUBJECT, "sts.amazonaws.com", 600);
        let late = issuer.token(SUBJECT, "sts.amazonaws.com", -600);
        let elsewhere = issuer.token(SUBJECT, "vault", 600);
        let other = issuer.token("system:serviceaccount:default:default", "sts.amazonaws.com", 600);
        let cloud = sts(true, Vec::new(), issuer);
        let given = with_token(&cloud, &good).await.unwrap();
        assert!(given.contains("assumed-role/controller/karpenter"), "{given}");
        for (token, status, code) in [
            (forged, 400, "InvalidIdentityToken"),
            (late, 400, "ExpiredTokenException"),
            (elsewhere, 400, "InvalidIdentityToken"),
            (other, 403, "AccessDenied"),
        ] {
            let refusal = with_token(&cloud, &token).await.unwrap_err();
            assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{refusal}");
        }
        let refusal = with_token(&sts(false, Vec::new(), Issuer::new()), &good).await.unwrap_err();
        assert_eq!(refusal.message, format!("No OpenIDConnect provider found in your account for {ISSUER}"));
    }

    #[tokio::test]
    async fn an_account_in_a_trust_policy_leaves_it_to_the_callers_own() {
        let caller = Principal {
            arn: "arn:aws:sts::111122223333:assumed-role/step/step".into(),
            account: "111122223333".into(),
            role_arn: Some("arn:aws:iam::111122223333:role/step".into()),
            function: Some("step".into()),
        };
        let allowed = json!({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": ACCESS}]});
        let parameters = [("RoleArn", ACCESS), ("RoleSessionName", "step"), ("ExternalId", "x")];
        let may = sts(true, vec![allowed], Issuer::new());
        assert!(ask(&may, caller.clone(), "AssumeRole", &parameters).await.is_ok());
        assert_eq!(ask(&may, caller.clone(), "AssumeRole", &parameters[..2]).await.unwrap_err().code, "AccessDenied");
        let may_not = sts(true, Vec::new(), Issuer::new());
        assert_eq!(ask(&may_not, caller, "AssumeRole", &parameters).await.unwrap_err().code, "AccessDenied");
    }
}
