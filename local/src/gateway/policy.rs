//! What IAM policy documents say to a request. Conditions and wildcards are iam-rs's; principals are ours, because
//! a trust policy's principal may be an account, a role behind a session, a service or an identity provider.

use std::collections::BTreeMap;

use iam_rs::{
    Arn, Context, ContextValue, Decision as Verdict, EvaluationOptions, IAMPolicy, IAMRequest, PolicyEvaluator,
    Principal as Caller, PrincipalId,
};
use serde_json::{Map, Value, json};

/// The outcome of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Some statement allows, none denies.
    Allow,
    /// Some statement denies.
    Deny,
    /// No statement speaks of it, which is a refusal too.
    Silence,
}

/// What is asked of the documents.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// `ec2:CreateVpc`
    pub action: String,
    /// The ARN that is acted on; `None` where it is unknown, and then any resource matches.
    pub resource: Option<String>,
    /// Condition keys and their values; keys compare without case.
    pub context: BTreeMap<String, Vec<String>>,
    /// Whether conditions on keys that the context lacks are passed over rather than judged: an unknown one then
    /// holds in a statement that allows, and does not in one that denies.
    pub lenient: bool,
}

/// Evaluates identity policies.
#[must_use]
pub fn decide(documents: &[Value], question: &Question) -> Decision {
    judge(documents.iter().flat_map(statements), question)
}

/// Evaluates a trust policy (or another resource policy) for a caller who is all of `callers`: a session is itself,
/// its role, and its account.
#[must_use]
pub fn decide_trust(document: &Value, callers: &[Caller], question: &Question) -> Decision {
    let named = statements(document).into_iter().filter(|statement| names(&statement["Principal"], callers));
    judge(named, question)
}

fn statements(document: &Value) -> Vec<Value> {
    match &document["Statement"] {
        Value::Array(statements) => statements.clone(),
        Value::Object(statement) => vec![Value::Object(statement.clone())],
        _ => Vec::new(),
    }
}

fn judge(statements: impl IntoIterator<Item = Value>, question: &Question) -> Decision {
    let mut decision = Decision::Silence;
    for statement in statements {
        if !applies(statement.clone(), question) {
            continue;
        }
        if statement["Effect"] == "Deny" {
            return Decision::Deny;
        }
        decision = Decision::Allow;
    }
    decision
}

/// Whether a statement speaks of what is asked, leaving aside whether it allows or denies and to whom.
fn applies(mut statement: Value, question: &Question) -> bool {
    let denies = statement["Effect"] == "Deny";
    let Some(members) = statement.as_object_mut() else {
        return false;
    };
    members.remove("Principal");
    members.insert("Effect".to_owned(), json!("Allow"));
    if !members.contains_key("Resource") && !members.contains_key("NotResource") {
        members.insert("Resource".to_owned(), json!("*"));
    }
    let context: BTreeMap<String, &Vec<String>> =
        question.context.iter().map(|(key, values)| (key.to_lowercase(), values)).collect();
    if let Some(conditions) = members.remove("Condition") {
        let (known, all_known) = conditions_in_lower_case(&conditions, &context, question.lenient);
        if denies && !all_known {
            return false;
        }
        if !known.is_empty() {
            members.insert("Condition".to_owned(), Value::Object(known));
        }
    }
    let document = json!({"Version": "2012-10-17", "Statement": [statement]});
    let Ok(policy) = IAMPolicy::from_json(&document.to_string()) else {
        return false;
    };
    let anything = Arn {
        partition: "aws".into(),
        service: "iam".into(),
        region: String::new(),
        account_id: String::new(),
        resource: "any".into(),
    };
    let resource = question.resource.as_deref().and_then(|arn| Arn::parse(arn).ok());
    let options = EvaluationOptions { ignore_resource_constraints: resource.is_none(), ..EvaluationOptions::default() };
    let mut given = Context::new();
    for (key, values) in &context {
        let value = match values.as_slice() {
            [one] => ContextValue::String(one.clone()),
            many => ContextValue::StringList(many.to_vec()),
        };
        given.insert(key.clone(), value);
    }
    let request = IAMRequest::new_with_context(
        Caller::Aws(PrincipalId::String("arn:aws:iam::000000000000:root".to_owned())),
        question.action.clone(),
        resource.unwrap_or(anything),
        given,
    );
    let evaluator = PolicyEvaluator::with_policies(vec![policy]).with_options(options);
    evaluator.evaluate(&request).is_ok_and(|result| result.decision == Verdict::Allow)
}

/// Conditions with their keys in lower case; where lenient, without those whose key is not known, and whether that
/// left all of them.
fn conditions_in_lower_case(
    conditions: &Value,
    context: &BTreeMap<String, &Vec<String>>,
    lenient: bool,
) -> (Map<String, Value>, bool) {
    let mut kept = Map::new();
    let mut all_known = true;
    for (operator, keys) in conditions.as_object().into_iter().flatten() {
        let mut of_operator = Map::new();
        for (key, value) in keys.as_object().into_iter().flatten() {
            let key = key.to_lowercase();
            if lenient && !context.contains_key(&key) {
                all_known = false;
                continue;
            }
            of_operator.insert(key, value.clone());
        }
        if !of_operator.is_empty() {
            kept.insert(operator.clone(), Value::Object(of_operator));
        }
    }
    (kept, all_known)
}

/// Whether a statement's `Principal` names one of the callers.
fn names(principal: &Value, callers: &[Caller]) -> bool {
    if principal == "*" {
        return true;
    }
    let listed = |kind: &str| -> Vec<String> {
        match &principal[kind] {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    };
    callers.iter().any(|caller| {
        let (kind, id) = match caller {
            Caller::Aws(PrincipalId::String(id)) => ("AWS", id),
            Caller::Federated(PrincipalId::String(id)) => ("Federated", id),
            Caller::Service(PrincipalId::String(id)) => ("Service", id),
            _ => return false,
        };
        listed(kind).iter().any(|named| named == "*" || named == id)
    })
}

/// All that a caller with an ARN is to a trust policy: itself, the role behind its session, its account.
#[must_use]
pub fn callers(arn: &str, role_arn: Option<&str>, account: &str) -> Vec<Caller> {
    if !arn.starts_with("arn:") {
        return vec![Caller::Service(PrincipalId::String(arn.to_owned()))];
    }
    let own = [Some(arn.to_owned()), role_arn.map(str::to_owned)];
    let of_account = [Some(format!("arn:aws:iam::{account}:root")), Some(account.to_owned())];
    own.into_iter().chain(of_account).flatten().map(|id| Caller::Aws(PrincipalId::String(id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(action: &str, resource: Option<&str>, context: &[(&str, &str)]) -> Question {
        Question {
            action: action.to_owned(),
            resource: resource.map(str::to_owned),
            context: context.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect(),
            lenient: false,
        }
    }

    #[test]
    fn a_denial_beats_what_is_allowed_and_silence_is_no_consent() {
        let documents = [
            json!({"Statement": [{"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}]}),
            json!({"Statement": {"Effect": "Deny", "Action": ["ec2:DeleteVpc"], "Resource": "*"}}),
        ];
        assert_eq!(decide(&documents, &question("ec2:CreateVpc", None, &[])), Decision::Allow);
        assert_eq!(decide(&documents, &question("ec2:DeleteVpc", None, &[])), Decision::Deny);
        assert_eq!(decide(&documents, &question("iam:CreateRole", None, &[])), Decision::Silence);
    }

    #[test]
    fn resources_and_conditions_are_judged() {
        let documents = [json!({"Statement": [{
            "Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::*:role/slipway-*",
            "Condition": {"StringEquals": {"iam:PassedToService": "eks.amazonaws.com"}},
        }]})];
        let role = Some("arn:aws:iam::111122223333:role/slipway-a");
        let to_eks = [("iam:passedtoservice", "eks.amazonaws.com")];
        assert_eq!(decide(&documents, &question("iam:PassRole", role, &to_eks)), Decision::Allow);
        assert_eq!(decide(&documents, &question("iam:PassRole", role, &[])), Decision::Silence);
        let other = Some("arn:aws:iam::111122223333:role/other");
        assert_eq!(decide(&documents, &question("iam:PassRole", other, &to_eks)), Decision::Silence);
        let lenient = Question { lenient: true, ..question("iam:PassRole", role, &[]) };
        assert_eq!(decide(&documents, &lenient), Decision::Allow);
    }

    #[test]
    fn trust_names_sessions_by_role_and_by_account() {
        let of_role = json!({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": {"AWS": "arn:aws:iam::1:role/step"}}]});
        let of_account = json!({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": {"AWS": ["arn:aws:iam::1:root"]}}]});
        let of_service = json!({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": {"Service": "eks.amazonaws.com"}}]});
        let session = callers("arn:aws:sts::1:assumed-role/step/x", Some("arn:aws:iam::1:role/step"), "1");
        let service = callers("eks.amazonaws.com", None, "1");
        let asked = question("sts:AssumeRole", None, &[]);
        assert_eq!(decide_trust(&of_role, &session, &asked), Decision::Allow);
        assert_eq!(decide_trust(&of_account, &session, &asked), Decision::Allow);
        assert_eq!(decide_trust(&of_service, &session, &asked), Decision::Silence);
        assert_eq!(decide_trust(&of_service, &service, &asked), Decision::Allow);
        assert_eq!(decide_trust(&of_role, &service, &asked), Decision::Silence);
    }

    #[test]
    fn web_identity_is_bound_to_subject_and_audience() {
        let trust = json!({"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity",
            "Principal": {"Federated": "arn:aws:iam::1:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A"},
            "Condition": {"StringEquals": {
                "oidc.eks.eu-west-1.amazonaws.com/id/A:sub": "system:serviceaccount:karpenter:karpenter",
                "oidc.eks.eu-west-1.amazonaws.com/id/A:aud": "sts.amazonaws.com"}}}]});
        let provider = "arn:aws:iam::1:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A".to_owned();
        let callers = [Caller::Federated(PrincipalId::String(provider.clone()))];
        let ask = |subject: &str| {
            let context = [
                ("oidc.eks.eu-west-1.amazonaws.com/id/A:sub", subject),
                ("oidc.eks.eu-west-1.amazonaws.com/id/A:aud", "sts.amazonaws.com"),
            ];
            decide_trust(&trust, &callers, &question("sts:AssumeRoleWithWebIdentity", None, &context))
        };
        assert_eq!(ask("system:serviceaccount:karpenter:karpenter"), Decision::Allow);
        assert_eq!(ask("system:serviceaccount:karpenter:default"), Decision::Silence);
        let longer = [Caller::Federated(PrincipalId::String(format!("{provider}B")))];
        let asked = question("sts:AssumeRoleWithWebIdentity", None, &[]);
        assert_eq!(decide_trust(&trust, &longer, &asked), Decision::Silence);
    }
}
