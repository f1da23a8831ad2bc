//! What makes a controller's identity impossible, however long one waits: the opposite of a race.

use serde_json::Value;
use slipway_statemachine::ErrorName;

use crate::policy::{AUDIENCE, SERVICE_ACCOUNT};

/// The principal that EKS's Pod Identity agent acts as.
pub const POD_IDENTITY_SERVICE: &str = "pods.eks.amazonaws.com";

/// What the agent does with a role: the second carries the cluster's and the pod's names as session tags.
pub const POD_IDENTITY_ACTIONS: [&str; 2] = ["sts:AssumeRole", "sts:TagSession"];

/// A web identity, as STS will find it in the controller's token.
#[derive(Debug, Clone, Copy)]
pub struct WebIdentity<'a> {
    /// The IAM OIDC provider's ARN.
    pub provider_arn: &'a str,
    /// The cluster's issuer URL, with or without `https://`.
    pub issuer: &'a str,
    /// Karpenter's namespace.
    pub namespace: &'a str,
    /// The service account that its pods run as.
    pub account: &'a str,
}

impl WebIdentity<'_> {
    /// The token's `sub`.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.account)
    }
}

/// Why an identity can never work as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// IAM has no OIDC provider of the cluster's issuer.
    NoProvider {
        /// The ARN that it would have.
        provider_arn: String,
    },
    /// The provider does not take tokens for `sts.amazonaws.com`.
    NoAudience {
        /// The provider.
        provider_arn: String,
    },
    /// The role does not exist.
    NoRole {
        /// The role's ARN.
        role_arn: String,
    },
    /// The role's trust policy can never match.
    Trust {
        /// A clause that says what it lacks: `no statement allows …`.
        why: String,
    },
    /// The service account does not name the role, so that EKS gives new pods no identity.
    NotAnnotated {
        /// What it names instead.
        found: Option<String>,
    },
    /// No Pod Identity association of the service account leads to the role.
    NotAssociated {
        /// The role that it leads to instead.
        found: Option<String>,
    },
    /// A Pod Identity association takes precedence over the role that the service account names.
    Overruled {
        /// The role that pods get instead.
        found: String,
    },
}

impl Flaw {
    /// The error under which a run that meets it ends.
    #[must_use]
    pub const fn name(&self) -> ErrorName {
        match self {
            Self::NoProvider { .. } => ErrorName::OidcProviderMissing,
            Self::NoAudience { .. } | Self::NoRole { .. } | Self::Trust { .. } => ErrorName::IdentityRefused,
            Self::NotAnnotated { .. } | Self::NotAssociated { .. } | Self::Overruled { .. } => {
                ErrorName::IdentityNotInjected
            }
        }
    }

    /// What is wrong, a whole sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::NoProvider { provider_arn } => {
                format!("IAM has no OIDC provider for the cluster's issuer: {provider_arn} does not exist.")
            }
            Self::NoAudience { provider_arn } => {
                format!("The IAM OIDC provider {provider_arn} does not list the audience {AUDIENCE}.")
            }
            Self::NoRole { role_arn } => format!("The controller's role {role_arn} does not exist."),
            Self::Trust { why } => format!("The trust policy of the controller's role can never match: {why}."),
            Self::NotAnnotated { found: None } => format!(
                "The service account {SERVICE_ACCOUNT} has no annotation {}, so EKS gives its pods no identity.",
                crate::values::ROLE_ANNOTATION
            ),
            Self::NotAnnotated { found: Some(found) } => {
                format!("The service account {SERVICE_ACCOUNT} names {found}, which is not the controller's role.")
            }
            Self::NotAssociated { found: None } => {
                format!("No Pod Identity association gives the service account {SERVICE_ACCOUNT} a role.")
            }
            Self::NotAssociated { found: Some(found) } => format!(
                "The Pod Identity association of the service account {SERVICE_ACCOUNT} leads to {found}, which is not \
                 the controller's role."
            ),
            Self::Overruled { found } => format!(
                "A Pod Identity association gives the service account {SERVICE_ACCOUNT} the role {found}, which goes \
                 before the role that its annotation names."
            ),
        }
    }
}

/// Why a trust policy can never let a web identity in; none if it can, or if it has conditions that only STS can judge.
#[must_use]
pub fn never_trusts(trust: &Value, identity: &WebIdentity<'_>) -> Option<String> {
    const ACTION: &str = "sts:AssumeRoleWithWebIdentity";
    let names_provider = |statement: &Value| {
        texts(&statement["Principal"]["Federated"]).any(|arn| arn == identity.provider_arn) || any_principal(statement)
    };
    let concerns =
        |statement: &&Value| names_provider(statement) && texts(&statement["Action"]).any(|a| covers(a, ACTION));
    let (allowing, denying): (Vec<_>, Vec<_>) =
        statements(trust).filter(concerns).partition(|statement| statement["Effect"] == "Allow");
    let mismatch = |statement: &Value| mismatch(&statement["Condition"], identity);
    if denying.iter().any(|statement| statement["Condition"].is_null()) {
        return Some(format!("a statement denies {ACTION} to {}", identity.provider_arn));
    }
    let mut reasons = Vec::new();
    for statement in allowing {
        reasons.push(mismatch(statement)?);
    }
    Some(
        reasons
            .into_iter()
            .next()
            .unwrap_or_else(|| format!("no statement allows {ACTION} to {}", identity.provider_arn)),
    )
}

/// Why a trust policy can never let the Pod Identity agent in; none if it can.
#[must_use]
pub fn never_trusts_pods(trust: &Value) -> Option<String> {
    let allowed = |action: &str| {
        statements(trust).any(|statement| {
            let named = texts(&statement["Principal"]["Service"]).any(|service| service == POD_IDENTITY_SERVICE);
            statement["Effect"] == "Allow"
                && (named || any_principal(statement))
                && texts(&statement["Action"]).any(|pattern| covers(pattern, action))
        })
    };
    let missing: Vec<_> = POD_IDENTITY_ACTIONS.into_iter().filter(|action| !allowed(action)).collect();
    (!missing.is_empty()).then(|| format!("no statement allows {} to {POD_IDENTITY_SERVICE}", missing.join(" and ")))
}

fn statements(document: &Value) -> impl Iterator<Item = &Value> {
    let statement = &document["Statement"];
    statement.as_array().map_or_else(|| std::slice::from_ref(statement), Vec::as_slice).iter()
}

/// A member that IAM takes as one text or a list of them.
fn texts(member: &Value) -> impl Iterator<Item = &str> {
    member.as_array().map_or_else(|| std::slice::from_ref(member), Vec::as_slice).iter().filter_map(Value::as_str)
}

fn any_principal(statement: &Value) -> bool {
    statement["Principal"] == "*"
}

/// Whether an action's pattern covers an action; IAM does not tell capitals apart here.
fn covers(pattern: &str, action: &str) -> bool {
    like(&pattern.to_lowercase(), &action.to_lowercase())
}

/// IAM's wildcards: `*` for anything, `?` for one character.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == '?' || *c == text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// The first condition that a token of this identity can never meet. What depends on more than the token (the caller's
/// address, the session's name) or is unknown here gets the benefit of the doubt.
fn mismatch(conditions: &Value, identity: &WebIdentity<'_>) -> Option<String> {
    let issuer = identity.issuer.trim_start_matches("https://").to_lowercase();
    let subject = identity.subject();
    for (operator, keys) in conditions.as_object()? {
        let bare = operator.rsplit(':').next().unwrap_or(operator);
        let (bare, if_exists) = bare.strip_suffix("IfExists").map_or((bare, false), |bare| (bare, true));
        for (key, wanted) in keys.as_object()? {
            let lower = key.to_lowercase();
            let says = match lower.strip_prefix(&issuer) {
                Some(":sub") => Some(subject.as_str()),
                Some(":aud") => Some(AUDIENCE),
                _ => None,
            };
            let Some(says) = says else {
                // A claim of another issuer is in no token of this one.
                if (lower.ends_with(":sub") || lower.ends_with(":aud")) && bare.starts_with("String") && !if_exists {
                    return Some(format!("it asks for {key}, but the cluster's issuer is {issuer}"));
                }
                continue;
            };
            let holds = match bare {
                "StringEquals" => texts(wanted).any(|text| text == says),
                "StringEqualsIgnoreCase" => texts(wanted).any(|text| text.eq_ignore_ascii_case(says)),
                "StringLike" => texts(wanted).any(|pattern| like(pattern, says)),
                "StringNotEquals" => texts(wanted).all(|text| text != says),
                "StringNotLike" => texts(wanted).all(|pattern| !like(pattern, says)),
                _ => true,
            };
            if !holds {
                let wanted = texts(wanted).collect::<Vec<_>>().join(" or ");
                return Some(format!("{operator} wants {key} to be {wanted}, but the token says {says}"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::policy::{pod_identity_trust, web_identity_trust};

    const ISSUER: &str = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC";
    const PROVIDER: &str = "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/ABC";

    fn identity() -> WebIdentity<'static> {
        WebIdentity { provider_arn: PROVIDER, issuer: ISSUER, namespace: "karpenter", account: SERVICE_ACCOUNT }
    }

    fn condition(condition: &Value) -> Option<String> {
        let mut trust = web_identity_trust(PROVIDER, ISSUER, "karpenter");
        trust["Statement"][0]["Condition"] = condition.clone();
        never_trusts(&trust, &identity())
    }

    #[test]
    fn the_reference_trust_can_match() {
        assert_eq!(never_trusts(&web_identity_trust(PROVIDER, ISSUER, "karpenter"), &identity()), None);
        assert_eq!(never_trusts_pods(&pod_identity_trust()), None);
    }

    #[test]
    fn a_condition_that_no_token_meets_is_named() {
        let host = ISSUER.trim_start_matches("https://");
        for (wrong, says) in [
            (
                json!({ "StringEquals": { format!("{host}:sub"): "system:serviceaccount:kube-system:karpenter" } }),
                "kube-system",
            ),
            (json!({ "StringEquals": { format!("{host}:aud"): ["vault", "x"] } }), "vault or x"),
            (json!({ "StringLike": { format!("{host}:sub"): "system:serviceaccount:other:*" } }), "other:*"),
            (json!({ "StringEquals": { "oidc.eks.eu-west-1.amazonaws.com/id/OLD:sub": "x" } }), "id/OLD:sub"),
            (json!({ "ForAnyValue:StringEquals": { format!("{host}:aud"): "vault" } }), "vault"),
        ] {
            let why = condition(&wrong).unwrap();
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn what_only_sts_can_judge_may_match() {
        let host = ISSUER.trim_start_matches("https://");
        for open in [
            Value::Null,
            json!({ "StringLike": { format!("{host}:sub"): "system:serviceaccount:*:karpent?r" } }),
            json!({ "IpAddress": { "aws:SourceIp": "10.0.0.0/8" } }),
            json!({ "StringEqualsIfExists": { "other/id:sub": "x" } }),
            json!({ "NumericLessThan": { format!("{host}:aud"): "7" } }),
        ] {
            assert_eq!(condition(&open), None, "{open}");
        }
    }

    #[test]
    fn another_provider_action_or_a_denial_never_matches() {
        let mut trust = web_identity_trust("arn:aws:iam::1:oidc-provider/other", ISSUER, "karpenter");
        assert!(never_trusts(&trust, &identity()).unwrap().starts_with("no statement allows"));
        trust = web_identity_trust(PROVIDER, ISSUER, "karpenter");
        trust["Statement"][0]["Action"] = json!("sts:AssumeRole");
        assert!(never_trusts(&trust, &identity()).is_some());
        trust["Statement"][0]["Action"] = json!(["sts:assumerolewith*"]);
        assert_eq!(never_trusts(&trust, &identity()), None);
        let denial = json!({ "Effect": "Deny", "Principal": "*", "Action": "sts:*" });
        trust["Statement"].as_array_mut().unwrap().push(denial);
        assert!(never_trusts(&trust, &identity()).unwrap().contains("denies"));
        assert!(never_trusts(&Value::Null, &identity()).is_some());
    }

    #[test]
    fn one_way_in_is_enough() {
        let mut trust = web_identity_trust(PROVIDER, ISSUER, "elsewhere");
        let right = web_identity_trust(PROVIDER, ISSUER, "karpenter")["Statement"][0].clone();
        trust["Statement"].as_array_mut().unwrap().push(right);
        assert_eq!(never_trusts(&trust, &identity()), None);
    }

    #[test]
    fn the_agent_needs_both_actions() {
        let mut trust = pod_identity_trust();
        trust["Statement"][0]["Action"] = json!("sts:AssumeRole");
        assert_eq!(never_trusts_pods(&trust).unwrap(), "no statement allows sts:TagSession to pods.eks.amazonaws.com");
        trust["Statement"][0]["Principal"] = json!({ "Service": "ec2.amazonaws.com" });
        assert!(never_trusts_pods(&trust).unwrap().contains("sts:AssumeRole and sts:TagSession"));
    }
}
