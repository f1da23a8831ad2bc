//! STS: who one is, and how one becomes a role, believing nobody without a signature, a provider and a trust policy.
//!
//! It answers from several front ends, each of which hears of changes in IAM at its own time: after a yes of one, the
//! next may still say no.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use iam_rs::{Principal as Caller, PrincipalId};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::iam::{Role, Roles};
use super::web_token::{self, Distrust};
use crate::eks::Eks;
use crate::gateway::CONNECTION_HEADER;
use crate::gateway::call::{Answer, AwsError, Call, Principal, Service};
use crate::gateway::identify::{Identities, Session};
use crate::gateway::policy::{Decision, Question, callers, decide, decide_trust};
use crate::gateway::wire;
use crate::propagation::Changes;

/// How many front ends STS has in a region here; enough to differ.
const FRONT_ENDS: u32 = 3;

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
    changes: Arc<Changes>,
    issuers: OnceLock<Arc<dyn IssuerKeys>>,
    /// The number of each connection, in the order in which they were first seen.
    connections: Mutex<HashMap<String, u64>>,
}

impl Sts {
    /// STS that hands its sessions to `identities`, looks roles and providers up in `iam`, and hears of `changes`.
    #[must_use]
    pub fn new(identities: Arc<Identities>, iam: Arc<dyn Roles>, changes: Arc<Changes>) -> Arc<Self> {
        Arc::new(Self { identities, iam, changes, issuers: OnceLock::new(), connections: Mutex::default() })
    }

    /// Where issuers' keys are, once there are issuers.
    pub fn trust_issuers(&self, issuers: Arc<dyn IssuerKeys>) {
        // The cloud has one EKS; a second is ignored.
        let _ = self.issuers.set(issuers);
    }

    /// Which front end a call reaches: the same one for all calls of a connection.
    fn front_end(&self, call: &Call) -> String {
        let connection = call.headers.get(CONNECTION_HEADER).and_then(|value| value.to_str().ok());
        // A part of the cloud comes without one: each of its calls is a connection of its own.
        let connection = connection.unwrap_or(&call.request_id);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u64::try_from(connections.len()).unwrap_or_default();
        let number = *connections.entry(connection.to_owned()).or_insert(next);
        format!("sts-{}", self.changes.host(number, FRONT_ENDS))
    }

    /// A role as a front end knows it.
    async fn role(&self, role_arn: &str, front_end: &str) -> Option<Role> {
        let role = self.iam.role(role_arn).await?;
        let trust = self.changes.seen(role_arn, front_end, role.trust)?;
        Some(Role { trust, ..role })
    }

    /// The client ids of an identity provider as a front end knows them.
    async fn client_ids(&self, provider_arn: &str, front_end: &str) -> Option<Vec<String>> {
        let client_ids = self.iam.client_ids(provider_arn).await?;
        let seen = self.changes.seen(provider_arn, front_end, json!(client_ids))?;
        Some(web_token::texts(&seen))
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
        let role = self.role(role_arn, &self.front_end(call)).await.ok_or_else(refused)?;
        let mut context = BTreeMap::from([
            ("sts:RoleSessionName".to_owned(), vec![session_name.to_owned()]),
            ("aws:PrincipalArn".to_owned(), vec![principal_arn(&call.principal)]),
            ("aws:PrincipalAccount".to_owned(), vec![call.principal.account.clone()]),
            ("aws:SourceAccount".to_owned(), vec![call.account.clone()]),
        ]);
        if let Some(id) = parameters.get("ExternalId") {
            context.insert("sts:ExternalId".to_owned(), vec![id.clone()]);
        }
        let tags = session_tags(&parameters);
        for (key, value) in &tags {
            context.insert(format!("aws:RequestTag/{key}"), vec![value.clone()]);
        }
        // A session with tags has to be allowed twice: to be had, and to be tagged.
        let actions = ["sts:AssumeRole", "sts:TagSession"];
        for action in &actions[..=usize::from(!tags.is_empty())] {
            let question = Question { action: (*action).to_owned(), context: context.clone(), ..Question::default() };
            if !self.trusts(&role, &call.principal, &question, role_arn).await {
                return Err(refused());
            }
        }
        // A role that assumes a role keeps its session no longer than an hour.
        let longest = if call.principal.role_arn.is_some() { 3600 } else { role.longest_session };
        let seconds = duration(&parameters, longest)?;
        let policies = self.session_policies(&parameters, role_arn).await?;
        Ok(self.hand_out(role_arn, session_name, seconds, &role, policies))
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
        let front_end = self.front_end(call);
        let claims = web_token::unverified_claims(token).ok_or_else(|| invalid_token(NO_TOKEN))?;
        let issuer = claims["iss"].as_str().ok_or_else(|| missing_claim("iss"))?;
        let host_and_path = issuer.trim_start_matches("https://");
        let account = role_arn.split(':').nth(4).unwrap_or_default();
        let provider_arn = format!("arn:aws:iam::{account}:oidc-provider/{host_and_path}");
        let Some(client_ids) = self.client_ids(&provider_arn, &front_end).await else {
            return Err(invalid_token(format!("No OpenIDConnect provider found in your account for {issuer}")));
        };
        self.verify(token, issuer)?;
        in_force(&claims)?;
        let audiences = web_token::audiences(&claims);
        if audiences.is_empty() {
            return Err(missing_claim("aud"));
        }
        if !audiences.iter().any(|audience| client_ids.contains(audience)) {
            return Err(invalid_token("Incorrect token audience"));
        }
        let not_authorized =
            || AwsError::new(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
        let role = self.role(role_arn, &front_end).await.ok_or_else(not_authorized)?;
        let subject = claims["sub"].as_str().ok_or_else(|| missing_claim("sub"))?.to_owned();
        let context = BTreeMap::from([
            (format!("{host_and_path}:sub"), vec![subject.clone()]),
            (format!("{host_and_path}:aud"), audiences.clone()),
            ("aws:FederatedProvider".to_owned(), vec![provider_arn.clone()]),
            ("sts:RoleSessionName".to_owned(), vec![session_name.to_owned()]),
        ]);
        let question = Question { action: "sts:AssumeRoleWithWebIdentity".to_owned(), context, ..Question::default() };
        let provider = [Caller::Federated(PrincipalId::String(provider_arn.clone()))];
        if decide_trust(&role.trust, &provider, &question) != Decision::Allow {
            return Err(not_authorized());
        }
        let seconds = duration(&parameters, role.longest_session)?;
        let policies = self.session_policies(&parameters, role_arn).await?;
        let mut result = self.hand_out(role_arn, session_name, seconds, &role, policies);
        result.push_str(&wire::element("SubjectFromWebIdentityToken", &subject));
        result.push_str(&wire::element("Audience", audiences.first().map_or("", String::as_str)));
        result.push_str(&wire::element("Provider", &provider_arn));
        Ok(result)
    }

    fn verify(&self, token: &str, issuer: &str) -> Result<(), AwsError> {
        let keys = self.issuers.get().and_then(|issuers| issuers.jwks(issuer));
        web_token::verify(token, issuer, keys).map_err(|distrust| {
            invalid_token(match distrust {
                Distrust::Malformed => NO_TOKEN,
                Distrust::NoKey => {
                    "Couldn't retrieve verification key from your identity provider,  please reference \
                     AssumeRoleWithWebIdentity documentation for requirements"
                }
                Distrust::Forged => "The web identity token's signature could not be verified",
            })
        })
    }

    /// The policies that a session is asked to keep to, written out (`Policy`) or managed ones (`PolicyArns`).
    async fn session_policies(
        &self,
        parameters: &BTreeMap<String, String>,
        role_arn: &str,
    ) -> Result<Option<Arc<Vec<Value>>>, AwsError> {
        let mut policies = Vec::new();
        if let Some(text) = parameters.get("Policy") {
            let malformed = |_| AwsError::new(400, "MalformedPolicyDocument", "This policy contains invalid Json");
            policies.push(serde_json::from_str(text).map_err(malformed)?);
        }
        for arn in (1..).map_while(|n| parameters.get(&format!("PolicyArns.member.{n}.arn"))) {
            let missing = || AwsError::new(400, "ValidationError", format!("Policy {arn} does not exist."));
            policies.push(self.iam.managed(role_arn, arn).await.ok_or_else(missing)?);
        }
        Ok((!policies.is_empty()).then(|| Arc::new(policies)))
    }

    /// Makes a session and answers its `Credentials` and `AssumedRoleUser`.
    fn hand_out(
        &self,
        role_arn: &str,
        session_name: &str,
        seconds: i64,
        role: &Role,
        session_policies: Option<Arc<Vec<Value>>>,
    ) -> String {
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
                    session_policies,
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
    let message = match text.parse() {
        Ok(seconds) if (900..=longest).contains(&seconds) => return Ok(seconds),
        Ok(900..) => "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.".to_owned(),
        _ => format!(
            "1 validation error detected: Value '{text}' at 'durationSeconds' failed to satisfy constraint: Member \
             must have value greater than or equal to 900"
        ),
    };
    Err(AwsError::new(400, "ValidationError", message))
}

/// The session tags of a request, by key.
fn session_tags(parameters: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let tag = |number: u32, part: &str| parameters.get(&format!("Tags.member.{number}.{part}")).cloned();
    (1..).map_while(|number| Some((tag(number, "Key")?, tag(number, "Value").unwrap_or_default()))).collect()
}

/// STS's words for what is no token.
const NO_TOKEN: &str = "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)";

fn invalid_token(message: impl Into<String>) -> AwsError {
    AwsError::new(400, "InvalidIdentityToken", message)
}

fn missing_claim(name: &str) -> AwsError {
    invalid_token(format!("Missing a required claim: {name}"))
}

/// Refuses a token whose time is over.
fn in_force(claims: &Value) -> Result<(), AwsError> {
    let expires = claims["exp"].as_i64().ok_or_else(|| missing_claim("exp"))?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    if expires > now {
        return Ok(());
    }
    let message = format!("Token expired: current date/time {now} must be before the expiration date/time {expires}");
    Err(AwsError::new(400, "ExpiredTokenException", message))
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
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use bytes::Bytes;
    use http::Method;
    use slipway_states::clock::ScaledClock;

    use super::*;
    use crate::gateway::authorize::RolePolicies;
    use crate::propagation::Propagation;

    const HOST: &str = "oidc.eks.eu-west-1.amazonaws.com/id/A";
    const PROVIDER: &str = "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A";
    const CONTROLLER: &str = "arn:aws:iam::111122223333:role/controller";
    const ACCESS: &str = "arn:aws:iam::111122223333:role/access";
    const POD: &str = "arn:aws:iam::111122223333:role/pod";
    const SUBJECT: &str = "system:serviceaccount:karpenter:karpenter";
    const AUDIENCE: &str = "sts.amazonaws.com";

    fn issuer() -> String {
        format!("https://{HOST}")
    }

    /// The trust policy of a controller: principal and conditions vary.
    fn trust(provider: &Value, conditions: &Value) -> Value {
        json!({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity",
            "Principal": {"Federated": provider}, "Condition": conditions}]})
    }

    /// The conditions that bind a role to one service account.
    fn bound() -> Value {
        json!({"StringEquals": {format!("{HOST}:sub"): SUBJECT, format!("{HOST}:aud"): AUDIENCE}})
    }

    /// Some roles, and the identity provider if there is one.
    struct Account {
        clients: Option<Vec<String>>,
        trust: Value,
        policies: Vec<Value>,
    }

    impl Account {
        fn good() -> Self {
            let clients = Some(vec![AUDIENCE.to_owned()]);
            Self { clients, trust: trust(&json!(PROVIDER), &bound()), policies: Vec::new() }
        }
    }

    #[async_trait]
    impl RolePolicies for Account {
        async fn policies(&self, _role_arn: &str) -> Option<Vec<Value>> {
            Some(self.policies.clone())
        }
    }

    #[async_trait]
    impl Roles for Account {
        async fn role(&self, role_arn: &str) -> Option<Role> {
            let trust = match role_arn {
                CONTROLLER => self.trust.clone(),
                ACCESS => json!({"Statement": [{
                    "Effect": "Allow", "Action": "sts:AssumeRole",
                    "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
                    "Condition": {"StringEquals": {"sts:ExternalId": "x"}}}]}),
                POD => json!({"Statement": [{
                    "Effect": "Allow", "Action": ["sts:AssumeRole", "sts:TagSession"],
                    "Principal": {"Service": "pods.eks.amazonaws.com"},
                    "Condition": {"StringEquals": {"aws:RequestTag/kubernetes-namespace": "karpenter"}}}]}),
                _ => return None,
            };
            Some(Role { id: "AROAEXAMPLE".to_owned(), trust, longest_session: 3600 })
        }

        async fn client_ids(&self, provider_arn: &str) -> Option<Vec<String>> {
            self.clients.clone().filter(|_| provider_arn == PROVIDER)
        }
    }

    /// The issuer, whose documents may not be served yet.
    struct Issuer {
        keys: web_token::tests::Issuer,
        serving: bool,
    }

    impl Issuer {
        fn new() -> Self {
            Self { keys: web_token::tests::Issuer::new(&issuer()), serving: true }
        }

        /// A good token, but for the claims given; `null` takes one away.
        fn token(&self, other: &Value) -> String {
            let mut claims = json!({"sub": SUBJECT, "aud": [AUDIENCE]});
            for (claim, value) in other.as_object().into_iter().flatten() {
                claims[claim] = value.clone();
            }
            self.keys.token(&claims)
        }
    }

    impl IssuerKeys for Issuer {
        fn jwks(&self, asked: &str) -> Option<Value> {
            (self.serving && asked == issuer()).then(|| self.keys.keys())
        }
    }

    /// STS of an account; what `propagation` delays passes as fast as on AWS.
    fn sts(account: Account, issuer: Issuer, propagation: Propagation) -> (Arc<Sts>, Arc<Changes>) {
        let changes = Arc::new(Changes::new(propagation, ScaledClock::new(1.0)));
        let identities = Identities::new("111122223333", "eu-west-1", "s");
        let sts = Sts::new(identities, Arc::new(account), Arc::clone(&changes));
        sts.trust_issuers(Arc::new(issuer));
        (sts, changes)
    }

    async fn ask(
        sts: &Sts,
        principal: Principal,
        action: &str,
        parameters: &[(&str, &str)],
        connection: &str,
    ) -> Result<String, AwsError> {
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
        headers.insert(CONNECTION_HEADER, connection.parse().unwrap());
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

    async fn with_token(sts: &Sts, token: &str, role: &str, connection: &str) -> Result<String, AwsError> {
        let parameters = [("RoleArn", role), ("RoleSessionName", "karpenter"), ("WebIdentityToken", token)];
        let nobody = Principal::service("anonymous", "111122223333");
        ask(sts, nobody, "AssumeRoleWithWebIdentity", &parameters, connection).await
    }

    #[tokio::test]
    async fn a_token_is_believed_with_both_forms_of_the_principal_and_both_kinds_of_condition() {
        let list = json!(["arn:aws:iam::111122223333:oidc-provider/other.example.com", PROVIDER]);
        let like = json!({"StringLike": {format!("{HOST}:sub"): "system:serviceaccount:karp*:karpenter",
            format!("{HOST}:aud"): "sts.*.com"}});
        for trust in [trust(&json!(PROVIDER), &bound()), trust(&list, &bound()), trust(&json!([PROVIDER]), &like)] {
            let issuer = Issuer::new();
            let token = issuer.token(&json!({}));
            let (sts, _) = sts(Account { trust, ..Account::good() }, issuer, Propagation::none());
            let given = with_token(&sts, &token, CONTROLLER, "a").await.unwrap();
            assert!(given.contains("assumed-role/controller/karpenter"), "{given}");
            assert!(given.contains(&format!("<SubjectFromWebIdentityToken>{SUBJECT}<")), "{given}");
        }
    }

    /// What is wrong with a request, and how STS refuses it.
    struct Case {
        what: &'static str,
        account: Account,
        claims: Value,
        serving: bool,
        role: &'static str,
        refusal: (u16, &'static str, String),
    }

    fn case(what: &'static str, status: u16, code: &'static str, words: &str) -> Case {
        let refusal = (status, code, words.to_owned());
        Case { what, account: Account::good(), claims: json!({}), serving: true, role: CONTROLLER, refusal }
    }

    fn invalid(what: &'static str, words: &str) -> Case {
        case(what, 400, "InvalidIdentityToken", words)
    }

    fn denied(what: &'static str) -> Case {
        case(what, 403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
    }

    /// Status, code and words: STS's own, see <https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>
    /// and what is quoted in reports about it.
    #[tokio::test]
    async fn each_refusal_has_its_status_code_and_words() {
        let trusting = |trust: Value| Account { trust, ..Account::good() };
        let no_provider = format!("No OpenIDConnect provider found in your account for {}", issuer());
        let elsewhere = "No OpenIDConnect provider found in your account for https://accounts.example.com";
        let no_key = "Couldn't retrieve verification key from your identity provider,  please reference \
                      AssumeRoleWithWebIdentity documentation for requirements";
        let subject = |name: &str| json!({"StringEquals": {format!("{HOST}:sub"): name}});
        let deny = {
            let mut both = trust(&json!(PROVIDER), &bound());
            let statement = json!({"Effect": "Deny", "Principal": "*", "Action": "sts:*"});
            both["Statement"].as_array_mut().unwrap().push(statement);
            both
        };
        let cases = [
            Case { account: Account { clients: None, ..Account::good() }, ..invalid("no provider", &no_provider) },
            Case { claims: json!({"iss": "https://accounts.example.com"}), ..invalid("another issuer", elsewhere) },
            Case { claims: json!({"iss": null}), ..invalid("no issuer", "Missing a required claim: iss") },
            Case { claims: json!({"aud": null}), ..invalid("no audience", "Missing a required claim: aud") },
            Case { claims: json!({"sub": null}), ..invalid("no subject", "Missing a required claim: sub") },
            Case { claims: json!({"exp": null}), ..invalid("no expiry", "Missing a required claim: exp") },
            Case { serving: false, ..invalid("the issuer does not answer yet", no_key) },
            Case { claims: json!({"aud": ["vault"]}), ..invalid("an audience not for us", "Incorrect token audience") },
            Case {
                account: Account { clients: Some(vec!["vault".to_owned()]), ..Account::good() },
                ..invalid("a provider without the audience", "Incorrect token audience")
            },
            Case {
                claims: json!({"exp": 1_700_000_000}),
                ..case(
                    "an old token",
                    400,
                    "ExpiredTokenException",
                    "must be before the expiration date/time 1700000000",
                )
            },
            Case { role: "arn:aws:iam::111122223333:role/absent", ..denied("no role") },
            Case { claims: json!({"sub": "system:serviceaccount:default:karpenter"}), ..denied("another subject") },
            Case {
                account: trusting(trust(&json!(PROVIDER), &subject("system:serviceaccount:karpenter:*"))),
                ..denied("a pattern where equality is asked")
            },
            Case {
                account: trusting(trust(&json!(PROVIDER), &json!({"StringEquals": {format!("{HOST}:aud"): "vault"}}))),
                ..denied("trust in another audience")
            },
            Case {
                account: trusting(trust(&json!([format!("{PROVIDER}B")]), &bound())),
                ..denied("trust in another provider")
            },
            Case { account: trusting(deny), ..denied("a statement that denies") },
        ];
        for case in cases {
            let issuer = Issuer { serving: case.serving, ..Issuer::new() };
            let token = issuer.token(&case.claims);
            let (sts, _) = sts(case.account, issuer, Propagation::none());
            let refusal = with_token(&sts, &token, case.role, "a").await.expect_err(case.what);
            let (status, code, words) = case.refusal;
            assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{}: {refusal}", case.what);
            assert!(refusal.message.ends_with(&words), "{}: {refusal}", case.what);
        }
    }

    #[tokio::test]
    async fn what_is_no_token_or_signed_by_nobody_known_is_refused() {
        let (sts, _) = sts(Account::good(), Issuer::new(), Propagation::none());
        let forged = Issuer::new().token(&json!({}));
        for token in [forged.as_str(), "abc", "a.b.c"] {
            let refusal = with_token(&sts, token, CONTROLLER, "a").await.unwrap_err();
            assert_eq!((refusal.status, refusal.code.as_str()), (400, "InvalidIdentityToken"), "{refusal}");
        }
        let parameters = [("RoleArn", CONTROLLER), ("RoleSessionName", "k")];
        let nobody = Principal::service("anonymous", "111122223333");
        let refusal = ask(&sts, nobody, "AssumeRoleWithWebIdentity", &parameters, "a").await.unwrap_err();
        assert_eq!((refusal.status, refusal.code.as_str()), (400, "ValidationError"), "{refusal}");
    }

    #[tokio::test]
    async fn a_session_is_not_longer_than_its_role_allows() {
        let issuer = Issuer::new();
        let token = issuer.token(&json!({}));
        let (sts, _) = sts(Account::good(), issuer, Propagation::none());
        for (seconds, words) in [("3601", "exceeds the MaxSessionDuration"), ("899", "greater than or equal to 900")] {
            let parameters = [
                ("RoleArn", CONTROLLER),
                ("RoleSessionName", "karpenter"),
                ("WebIdentityToken", &token),
                ("DurationSeconds", seconds),
            ];
            let nobody = Principal::service("anonymous", "111122223333");
            let refusal = ask(&sts, nobody, "AssumeRoleWithWebIdentity", &parameters, "a").await.unwrap_err();
            assert_eq!((refusal.status, refusal.code.as_str()), (400, "ValidationError"));
            assert!(refusal.message.contains(words), "{refusal}");
        }
    }

    /// Longer than a test runs.
    const NEVER: Propagation =
        Propagation { seed: 7, shortest: Duration::from_hours(1), longest: Duration::from_hours(1) };

    #[tokio::test]
    async fn what_is_fresh_is_refused_as_if_it_were_not_there() {
        let issuer = Issuer::new();
        let token = issuer.token(&json!({}));
        let (sts, changes) = sts(Account::good(), issuer, NEVER);
        assert!(with_token(&sts, &token, CONTROLLER, "a").await.is_ok());
        // The audience was added just now.
        changes.record(PROVIDER, Some(json!(["vault"])));
        assert_eq!(with_token(&sts, &token, CONTROLLER, "a").await.unwrap_err().message, "Incorrect token audience");
        let (fresh, token) = sts_of_fresh(PROVIDER);
        let refusal = with_token(&fresh, &token, CONTROLLER, "a").await.unwrap_err();
        assert!(refusal.message.starts_with("No OpenIDConnect provider found"), "{refusal}");
        let (fresh, token) = sts_of_fresh(CONTROLLER);
        assert_eq!(with_token(&fresh, &token, CONTROLLER, "a").await.unwrap_err().code, "AccessDenied");
        let (fresh, _) = sts_of_fresh(ACCESS);
        let admin =
            Principal { arn: "arn:aws:iam::111122223333:user/admin".into(), ..Principal::service("", "111122223333") };
        let parameters = [("RoleArn", ACCESS), ("RoleSessionName", "me"), ("ExternalId", "x")];
        let refusal = ask(&fresh, admin, "AssumeRole", &parameters, "a").await.unwrap_err();
        assert_eq!((refusal.status, refusal.code.as_str()), (403, "AccessDenied"));
    }

    /// STS of an account in which one thing was made just now, and a good token.
    fn sts_of_fresh(thing: &str) -> (Arc<Sts>, String) {
        let issuer = Issuer::new();
        let token = issuer.token(&json!({}));
        let (sts, changes) = sts(Account::good(), issuer, NEVER);
        changes.record(thing, None);
        (sts, token)
    }

    #[tokio::test]
    async fn an_old_trust_policy_is_believed_until_the_new_one_is() {
        let issuer = Issuer::new();
        let token = issuer.token(&json!({}));
        let no_more = Account { trust: json!({"Statement": []}), ..Account::good() };
        let (sts, changes) = sts(no_more, issuer, NEVER);
        changes.record(CONTROLLER, Some(Account::good().trust));
        assert!(with_token(&sts, &token, CONTROLLER, "a").await.is_ok());
    }

    #[tokio::test]
    async fn one_front_end_says_yes_while_another_says_no_and_a_connection_stays_with_its_own() {
        let issuer = Issuer::new();
        let token = issuer.token(&json!({}));
        // A long spread, and the moment in it when the quickest front end knows and the slowest does not.
        let spread = Propagation { seed: 11, shortest: Duration::ZERO, longest: Duration::from_millis(900) };
        let (sts, changes) = sts(Account::good(), issuer, spread);
        changes.record(CONTROLLER, None);
        let connections: Vec<String> = (0..12).map(|port| format!("127.0.0.1:{port}")).collect();
        let mut flapped = false;
        let began = std::time::Instant::now();
        loop {
            let mut yes = Vec::new();
            for connection in &connections {
                yes.push(with_token(&sts, &token, CONTROLLER, connection).await.is_ok());
            }
            if yes.iter().all(|yes| *yes) {
                break;
            }
            flapped |= yes.contains(&true);
            assert!(began.elapsed() < Duration::from_secs(20), "never believed");
        }
        assert!(flapped, "all front ends heard of it at once");
    }

    #[tokio::test]
    async fn a_tagged_session_must_be_allowed_its_tags() {
        let (sts, _) = sts(Account::good(), Issuer::new(), Propagation::none());
        let pods = || Principal::service("pods.eks.amazonaws.com", "111122223333");
        let tagged = |namespace: &'static str| {
            [
                ("RoleArn", POD),
                ("RoleSessionName", "eks-demo"),
                ("Tags.member.1.Key", "kubernetes-namespace"),
                ("Tags.member.1.Value", namespace),
            ]
        };
        assert!(ask(&sts, pods(), "AssumeRole", &tagged("karpenter"), "a").await.is_ok());
        assert_eq!(ask(&sts, pods(), "AssumeRole", &tagged("default"), "a").await.unwrap_err().code, "AccessDenied");
        let other = Principal::service("ec2.amazonaws.com", "111122223333");
        assert!(ask(&sts, other, "AssumeRole", &tagged("karpenter"), "a").await.is_err());
    }

    #[tokio::test]
    async fn an_account_in_a_trust_policy_leaves_it_to_the_callers_own() {
        let caller = Principal {
            arn: "arn:aws:sts::111122223333:assumed-role/step/step".into(),
            account: "111122223333".into(),
            role_arn: Some("arn:aws:iam::111122223333:role/step".into()),
            function: Some("step".into()),
            session_policies: None,
        };
        let allowed = json!({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": ACCESS}]});
        let parameters = [("RoleArn", ACCESS), ("RoleSessionName", "step"), ("ExternalId", "x")];
        let account = Account { policies: vec![allowed], ..Account::good() };
        let (may, _) = sts(account, Issuer::new(), Propagation::none());
        assert!(ask(&may, caller.clone(), "AssumeRole", &parameters, "a").await.is_ok());
        assert_eq!(
            ask(&may, caller.clone(), "AssumeRole", &parameters[..2], "a").await.unwrap_err().code,
            "AccessDenied"
        );
        let (may_not, _) = sts(Account::good(), Issuer::new(), Propagation::none());
        assert_eq!(ask(&may_not, caller, "AssumeRole", &parameters, "a").await.unwrap_err().code, "AccessDenied");
    }
}
