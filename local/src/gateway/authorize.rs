//! Whether a caller may: each permission that a call needs, judged by the organization's service control policies and by
//! the role's policies, boundary and session.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::call::{AwsError, Call};
use super::denial::{Reason, refusal};
use super::lookup::Lookup;
use super::permissions::{self, Permission};
use super::policy::{Decision, Question, asks_for, decide, decide_by, statements};
use super::route::Routes;
use super::{operations, wire};

/// Where the identity policies of a role are.
#[async_trait]
pub trait RolePolicies: Send + Sync {
    /// The documents attached to a role and written into it; `None` if nobody has the role.
    async fn policies(&self, role_arn: &str) -> Option<Vec<Value>>;

    /// The document of a role's permissions boundary; `None` for a role without one.
    async fn boundary(&self, _role_arn: &str) -> Option<Value> {
        None
    }

    /// The document of a managed policy, as seen from a role's account; `None` if there is no such policy.
    async fn managed(&self, _role_arn: &str, _policy_arn: &str) -> Option<Value> {
        None
    }

    /// The tags of a role.
    async fn tags(&self, _role_arn: &str) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// A statement that let a role do something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The role.
    pub role: String,
    /// `ec2:CreateVpc`
    pub action: String,
    /// The statement's Sid, or `#` and its number in its document.
    pub statement: String,
}

/// The judge of calls by roles.
pub struct Authorizer {
    roles: Arc<dyn RolePolicies>,
    /// The organization's service control policies beside `FullAWSAccess`; none: the account is in no organization.
    control: RwLock<Vec<Value>>,
    known: Mutex<Known>,
    used: Mutex<BTreeSet<Use>>,
}

/// What was asked for; another generation begins when IAM changed.
#[derive(Default)]
struct Known {
    generation: u64,
    roles: HashMap<String, (Instant, Arc<Role>)>,
}

/// What a role may.
pub(super) struct Role {
    /// Whether anybody has the role.
    pub(super) there: bool,
    pub(super) policies: Vec<Value>,
    pub(super) boundary: Option<Value>,
    pub(super) tags: BTreeMap<String, String>,
}

/// Roles also change behind the gateway (stacks of the emulator make them); this old, they are asked for again.
const STALE: Duration = Duration::from_secs(10);

impl Authorizer {
    /// A judge who asks `roles`.
    #[must_use]
    pub fn new(roles: Arc<dyn RolePolicies>) -> Self {
        Self { roles, control: RwLock::default(), known: Mutex::default(), used: Mutex::default() }
    }

    /// What let roles do what they did so far.
    #[must_use]
    pub fn used(&self) -> BTreeSet<Use> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on, the account is in an organization with these service control policies beside `FullAWSAccess`.
    pub(super) fn control(&self, policies: Vec<Value>) {
        *self.control.write().unwrap_or_else(PoisonError::into_inner) = policies;
    }

    /// The service control policies.
    pub(super) fn controlling(&self) -> Vec<Value> {
        self.control.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Judges one call. Services act for themselves and administrators may everything; who has a role may what that,
    /// its boundary and its session allow.
    pub(super) async fn check(&self, call: &Call, routes: &Routes) -> Result<(), AwsError> {
        let Some(role_arn) = &call.principal.role_arn else {
            return Ok(());
        };
        let role = self.role(role_arn).await;
        let lookup = Lookup::new(routes, call);
        for permission in permissions::of(&lookup).await {
            self.permit(call, role_arn, &role, &permission, &lookup).await?;
        }
        Ok(())
    }

    /// After a call that may have changed what roles may.
    pub(super) fn changed(&self, call: &Call) {
        if matches!(call.service.as_str(), "iam" | "cloudformation") && operations::mutating(&call.action) {
            let mut known = self.known();
            known.generation += 1;
            known.roles.clear();
        }
    }

    async fn permit(
        &self,
        call: &Call,
        role_arn: &str,
        role: &Role,
        permission: &Permission,
        lookup: &Lookup<'_>,
    ) -> Result<(), AwsError> {
        let session = call.principal.session_policies.iter().flat_map(|policies| policies.iter().cloned());
        let control = self.controlling();
        let own = role.policies.iter().chain(&role.boundary).chain(&control).cloned();
        let all: Vec<Value> = own.chain(session).collect();
        let mut question = Question {
            action: permission.action.clone(),
            resource: permission.resource.clone(),
            context: context(call, role_arn),
        };
        question.context.extend(permission.context.clone());
        if asks_for(&all, &question.action, "principaltag/") {
            for (key, value) in &role.tags {
                question.context.insert(format!("aws:PrincipalTag/{key}"), vec![value.clone()]);
            }
        }
        let mut missing = false;
        if asks_for(&all, &question.action, "resourcetag/") {
            let tags = match (&permission.made_with, &permission.resource) {
                (Some(tags), _) => Some(tags.clone()),
                (None, Some(arn)) => lookup.tags(arn).await,
                (None, None) => None,
            };
            missing = tags.is_none() && permission.action.starts_with("ec2:");
            let prefix = permission.action.split(':').next().unwrap_or_default();
            for (key, value) in tags.into_iter().flatten() {
                question.context.insert(format!("{prefix}:ResourceTag/{key}"), vec![value.clone()]);
                question.context.insert(format!("aws:ResourceTag/{key}"), vec![value]);
            }
        }
        let (decision, by) = decide_by(&role.policies, &question);
        let reason = match decision {
            _ if decide(&control, &question) == Decision::Deny => Some(Reason::Organization),
            Decision::Deny => Some(Reason::ExplicitDeny),
            // STS knows whether the other role trusts this one by name, which is enough within an account. EC2 looks
            // for a thing before it looks at its tags: of what is not there it says so.
            Decision::Silence if permission.action == "sts:AssumeRole" || missing => return Ok(()),
            Decision::Silence => Some(Reason::Identity),
            Decision::Allow => {
                let bounded = role.boundary.as_ref().map(|boundary| decide(std::slice::from_ref(boundary), &question));
                let in_session = call.principal.session_policies.as_ref().map(|all| decide(all, &question));
                match (bounded, in_session) {
                    (Some(Decision::Deny), _) | (_, Some(Decision::Deny)) => Some(Reason::ExplicitDeny),
                    (Some(Decision::Silence), _) => Some(Reason::Boundary),
                    (_, Some(Decision::Silence)) => Some(Reason::Session),
                    _ => None,
                }
            }
        };
        if let Some(reason) = reason {
            return Err(refusal(call, permission, reason));
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        for (document, nth) in by {
            let statement = role.policies.get(document).map(statements).unwrap_or_default().into_iter().nth(nth);
            let sid = statement.and_then(|statement| statement["Sid"].as_str().map(str::to_owned));
            used.insert(Use {
                role: role_arn.to_owned(),
                action: permission.action.clone(),
                statement: sid.unwrap_or_else(|| format!("#{nth}")),
            });
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a role may; a role that nobody has may nothing.
    pub(super) async fn role(&self, role_arn: &str) -> Arc<Role> {
        let generation = {
            let known = self.known();
            if let Some((asked, role)) = known.roles.get(role_arn)
                && asked.elapsed() < STALE
            {
                return Arc::clone(role);
            }
            known.generation
        };
        let policies = self.roles.policies(role_arn).await;
        let role = Arc::new(Role {
            there: policies.is_some(),
            policies: policies.unwrap_or_default(),
            boundary: self.roles.boundary(role_arn).await,
            tags: self.roles.tags(role_arn).await,
        });
        let mut known = self.known();
        if known.generation == generation {
            known.roles.insert(role_arn.to_owned(), (Instant::now(), Arc::clone(&role)));
        }
        role
    }
}

/// Whether EC2 is asked only whether it would.
pub(super) fn is_dry_run(call: &Call) -> bool {
    call.service == "ec2" && wire::parameters(call).get("DryRun").is_some_and(|value| value == "true")
}

/// What every request tells of itself.
fn context(call: &Call, role_arn: &str) -> BTreeMap<String, Vec<String>> {
    let now = OffsetDateTime::now_utc();
    [
        ("aws:RequestedRegion", call.region.clone()),
        ("aws:PrincipalAccount", call.principal.account.clone()),
        ("aws:PrincipalArn", role_arn.to_owned()),
        ("aws:PrincipalType", "AssumedRole".to_owned()),
        // Loopback counts as TLS: what is asked here by HTTP is asked of AWS by HTTPS.
        ("aws:SecureTransport", "true".to_owned()),
        ("aws:CurrentTime", now.format(&Rfc3339).unwrap_or_default()),
        ("aws:EpochTime", now.unix_timestamp().to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), vec![value]))
    .into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gateway::call::{Answer, Principal, Service};
    use bytes::Bytes;
    use http::{HeaderMap, Method, StatusCode};
    use serde_json::json;

    struct OneRole {
        policy: Value,
        boundary: Option<Value>,
    }

    #[async_trait]
    impl RolePolicies for OneRole {
        async fn policies(&self, _role_arn: &str) -> Option<Vec<Value>> {
            Some(vec![self.policy.clone()])
        }

        async fn boundary(&self, _role_arn: &str) -> Option<Value> {
            self.boundary.clone()
        }
    }

    #[tokio::test]
    async fn what_an_organization_denies_no_role_may_not_even_by_a_dry_run() {
        let all = json!([{"Effect": "Allow", "Action": "*", "Resource": "*"}]);
        let (authorizer, routes) = (allowing(&all), Routes::default());
        authorizer.control(vec![json!({"Statement": [
            {"Effect": "Deny", "Action": "ec2:CreateVpc", "Resource": "*"},
            {"Effect": "Deny", "NotAction": "iam:*", "Resource": "*",
                "Condition": {"StringNotEquals": {"aws:RequestedRegion": ["eu-west-1", "eu-central-1"]}}},
        ]})]);
        let refusal = refused(&authorizer, &call("ec2", "CreateVpc", "DryRun=true"), &routes).await.unwrap();
        assert_eq!((refusal.status, refusal.code.as_str()), (403, "UnauthorizedOperation"));
        assert!(refusal.message.ends_with("with an explicit deny in a service control policy."), "{refusal}");
        let mut look = call("ec2", "DescribeVpcs", "");
        assert_eq!(refused(&authorizer, &look, &routes).await, None);
        "us-east-1".clone_into(&mut look.region);
        assert!(refused(&authorizer, &look, &routes).await.is_some());
        // Services' own roles are outside of an organization's reach.
        look.principal = Principal::service("eks.amazonaws.com", "111122223333");
        assert_eq!(refused(&authorizer, &look, &routes).await, None);
    }

    /// A service that answers one text to everything.
    struct Says(&'static str);

    #[async_trait]
    impl Service for Says {
        async fn handle(&self, _call: Call) -> Answer {
            let body = Bytes::from_static(self.0.as_bytes());
            Answer { status: StatusCode::OK, headers: HeaderMap::new(), body, error_code: None }
        }
    }

    fn allowing(policy: &Value) -> Authorizer {
        Authorizer::new(Arc::new(OneRole { policy: json!({"Statement": policy}), boundary: None }))
    }

    fn call(service: &str, action: &str, form: &str) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
        Call {
            request_id: "r".into(),
            account: "111122223333".into(),
            region: "eu-west-1".into(),
            principal: Principal {
                arn: "arn:aws:sts::111122223333:assumed-role/step/step".into(),
                account: "111122223333".into(),
                role_arn: Some("arn:aws:iam::111122223333:role/step".into()),
                function: Some("step".into()),
                session_policies: None,
            },
            service: service.into(),
            action: action.into(),
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers,
            body: Bytes::from(format!("Action={action}&{form}")),
        }
    }

    async fn refused(authorizer: &Authorizer, call: &Call, routes: &Routes) -> Option<AwsError> {
        authorizer.check(call, routes).await.err()
    }

    #[tokio::test]
    async fn what_the_role_lacks_is_refused_in_ec2s_words_and_what_it_uses_is_remembered() {
        let policy = json!([{"Sid": "Look", "Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*"}]);
        let (authorizer, routes) = (allowing(&policy), Routes::default());
        assert_eq!(refused(&authorizer, &call("ec2", "DescribeVpcs", ""), &routes).await, None);
        assert_eq!(refused(&authorizer, &call("sts", "GetCallerIdentity", ""), &routes).await, None);
        let refusal = refused(&authorizer, &call("ec2", "CreateVpc", ""), &routes).await.unwrap();
        assert_eq!((refusal.status, refusal.code.as_str()), (403, "UnauthorizedOperation"));
        assert_eq!(
            refusal.message,
            "You are not authorized to perform this operation. User: arn:aws:sts::111122223333:assumed-role/step/step \
             is not authorized to perform: ec2:CreateVpc on resource: arn:aws:ec2:eu-west-1:111122223333:vpc/* because \
             no identity-based policy allows the ec2:CreateVpc action."
        );
        let used: Vec<_> = authorizer.used().into_iter().map(|used| (used.action, used.statement)).collect();
        assert_eq!(used, [("ec2:DescribeVpcs".to_owned(), "Look".to_owned())]);
    }

    #[tokio::test]
    async fn a_boundary_and_a_session_narrow_what_the_role_allows() {
        let statement =
            |actions: Value| json!({"Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]});
        let boundary = Some(statement(json!("ec2:Describe*")));
        let all = statement(json!("*"));
        let bounded = Authorizer::new(Arc::new(OneRole { policy: all.clone(), boundary }));
        let free = Authorizer::new(Arc::new(OneRole { policy: all, boundary: None }));
        let routes = Routes::default();
        let refusal = refused(&bounded, &call("ec2", "CreateVpc", ""), &routes).await.unwrap();
        assert!(refusal.message.contains("because no permissions boundary allows the ec2:CreateVpc"), "{refusal}");
        let mut in_session = call("iam", "ListRoles", "");
        in_session.principal.session_policies = Some(Arc::new(vec![statement(json!(["ec2:*"]))]));
        let refusal = refused(&free, &in_session, &routes).await.unwrap();
        assert_eq!((refusal.status, refusal.code.as_str()), (403, "AccessDenied"));
        assert!(refusal.message.contains("because no session policy allows the iam:ListRoles"), "{refusal}");
        assert_eq!(refused(&bounded, &call("ec2", "DescribeVpcs", ""), &routes).await, None);
    }

    #[tokio::test]
    async fn things_are_judged_by_their_tags_and_ec2_says_of_what_is_not_there_that_it_is_not() {
        let own = json!([{"Effect": "Allow", "Action": "ec2:DeleteVpc", "Resource": "*",
            "Condition": {"StringEquals": {"aws:ResourceTag/slipway:cluster": "demo"}}}]);
        let authorizer = allowing(&own);
        let delete = call("ec2", "DeleteVpc", "VpcId=vpc-1a");
        for (answer, allowed) in [
            ("<R><item><key>slipway:cluster</key><value>demo</value></item></R>", true),
            ("<R><item><key>slipway:cluster</key><value>demo-2</value></item></R>", false),
            // Untagged, but there.
            ("<R><item><vpcId>vpc-1a</vpcId></item></R>", false),
            ("<R/>", true),
        ] {
            let routes = Routes::default();
            routes.add("ec2", Arc::new(Says(answer)));
            assert_eq!(refused(&authorizer, &delete, &routes).await.is_none(), allowed, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_thing_with_a_path_is_judged_by_its_whole_arn_and_a_role_is_passed() {
        let profile = json!({"Sid": "Profile", "Effect": "Allow", "Action": "iam:*InstanceProfile",
            "Resource": "arn:aws:iam::111122223333:instance-profile/karpenter/*"});
        let pass = json!({"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::111122223333:role/r",
            "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}});
        let routes = Routes::default();
        let arn = "<R><Arn>arn:aws:iam::111122223333:instance-profile/karpenter/p</Arn></R>";
        routes.add("iam", Arc::new(Says(arn)));
        let add = call("iam", "AddRoleToInstanceProfile", "InstanceProfileName=p&RoleName=r");
        assert_eq!(refused(&allowing(&json!([profile, pass])), &add, &routes).await, None);
        let refusal = refused(&allowing(&json!([profile])), &add, &routes).await.unwrap();
        assert!(refusal.message.contains("iam:PassRole on resource: arn:aws:iam::111122223333:role/r"), "{refusal}");
    }

    #[tokio::test]
    async fn services_act_for_themselves_and_a_role_that_nobody_has_may_nothing() {
        struct Nobody;
        #[async_trait]
        impl RolePolicies for Nobody {
            async fn policies(&self, _role_arn: &str) -> Option<Vec<Value>> {
                None
            }
        }
        let (authorizer, routes) = (Authorizer::new(Arc::new(Nobody)), Routes::default());
        let mut own = call("ec2", "CreateVpc", "");
        assert!(refused(&authorizer, &own, &routes).await.is_some());
        own.principal = Principal::service("eks.amazonaws.com", "111122223333");
        assert_eq!(refused(&authorizer, &own, &routes).await, None);
    }
}
