//! What IAM policy documents say to a request. Conditions and wildcards are iam-rs's; principals are ours, because
//! a trust policy's principal may be an account, a role behind a session, a service or an identity provider.

use std::collections::{BTreeMap, BTreeSet};

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
    /// The ARN that is acted on; `None` for an action that knows no resources, which only a statement about `*` allows.
    pub resource: Option<String>,
    /// Condition keys and their values; keys compare without case. A key that is not here is absent from the request.
    pub context: BTreeMap<String, Vec<String>>,
}

/// Evaluates identity policies.
#[must_use]
pub fn decide(documents: &[Value], question: &Question) -> Decision {
    judge(documents.iter().flat_map(statements), question).0
}

/// The same, with the statements that allow it, as their places in `documents` and in the document.
#[must_use]
pub fn decide_by(documents: &[Value], question: &Question) -> (Decision, Vec<(usize, usize)>) {
    let numbered: Vec<(usize, usize)> = documents
        .iter()
        .enumerate()
        .flat_map(|(document, value)| (0..statements(value).len()).map(move |statement| (document, statement)))
        .collect();
    let (decision, by) = judge(documents.iter().flat_map(statements), question);
    (decision, by.into_iter().filter_map(|nth| numbered.get(nth).copied()).collect())
}

/// Evaluates a trust policy (or another resource policy) for a caller who is all of `callers`: a session is itself,
/// its role, and its account.
#[must_use]
pub fn decide_trust(document: &Value, callers: &[Caller], question: &Question) -> Decision {
    let named = statements(document).into_iter().filter(|statement| names(&statement["Principal"], callers));
    judge(named, question).0
}

/// Whether a statement that speaks of an action asks for a condition key that contains `part` (in lower case), or puts
/// it into a resource's name.
#[must_use]
pub fn asks_for(documents: &[Value], action: &str, part: &str) -> bool {
    documents.iter().flat_map(statements).filter(|statement| speaks_of(statement, action)).any(|statement| {
        let asked = format!("{}{}", statement["Condition"], statement["Resource"]);
        asked.to_lowercase().contains(part)
    })
}

/// The condition keys that statements about an action ask for, and that a question does not have.
#[must_use]
pub fn missing_keys(documents: &[Value], question: &Question) -> BTreeSet<String> {
    let speaking = documents.iter().flat_map(statements).filter(|statement| speaks_of(statement, &question.action));
    let asked = speaking.flat_map(|statement| {
        let operators = statement["Condition"].as_object().into_iter().flatten();
        operators
            .flat_map(|(_, keys)| keys.as_object().into_iter().flatten())
            .map(|(key, _)| key.clone())
            .collect::<Vec<_>>()
    });
    asked.filter(|key| !question.context.keys().any(|given| given.eq_ignore_ascii_case(key))).collect()
}

/// A document's statements, one or many.
#[must_use]
pub fn statements(document: &Value) -> Vec<Value> {
    match &document["Statement"] {
        Value::Array(statements) => statements.clone(),
        Value::Object(statement) => vec![Value::Object(statement.clone())],
        _ => Vec::new(),
    }
}

fn judge(statements: impl IntoIterator<Item = Value>, question: &Question) -> (Decision, Vec<usize>) {
    let mut by = Vec::new();
    for (nth, statement) in statements.into_iter().enumerate() {
        if !applies(&statement, question) {
            continue;
        }
        if statement["Effect"] == "Deny" {
            return (Decision::Deny, Vec::new());
        }
        by.push(nth);
    }
    (if by.is_empty() { Decision::Silence } else { Decision::Allow }, by)
}

/// Texts of a member that may be one or many.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    std::slice::from_ref(value).iter().chain(value.as_array().into_iter().flatten()).filter_map(Value::as_str)
}

/// Whether a statement's `Action` or `NotAction` covers an action. Names of actions compare without case.
fn speaks_of(statement: &Value, action: &str) -> bool {
    let action = action.to_lowercase();
    let covers =
        |patterns: &Value| texts(patterns).any(|pattern| Arn::wildcard_match(&action, &pattern.to_lowercase()));
    match statement.get("Action") {
        Some(actions) => covers(actions),
        None => statement.get("NotAction").is_some_and(|actions| !covers(actions)),
    }
}

/// Whether a statement speaks of what is asked, leaving aside whether it allows or denies and to whom.
fn applies(statement: &Value, question: &Question) -> bool {
    if !speaks_of(statement, &question.action) {
        return false;
    }
    let resource = question.resource.as_deref().and_then(|arn| Arn::parse(arn).ok());
    let mut document = json!({"Effect": "Allow", "Action": question.action});
    // A trust policy names no resource: it is the resource.
    let of_all = match (statement.get("Resource"), statement.get("NotResource")) {
        (Some(resources), _) => texts(resources).any(|pattern| pattern == "*"),
        (None, Some(others)) => !texts(others).any(|pattern| pattern == "*"),
        (None, None) => true,
    };
    if resource.is_none() && !of_all {
        return false;
    }
    match (statement.get("Resource"), statement.get("NotResource")) {
        (Some(resources), _) => document["Resource"] = resources.clone(),
        (None, Some(others)) => document["NotResource"] = others.clone(),
        (None, None) => document["Resource"] = json!("*"),
    }
    let mut given = Context::new();
    for (key, values) in &question.context {
        let value = match values.as_slice() {
            [one] => ContextValue::String(one.clone()),
            many => ContextValue::StringList(many.to_vec()),
        };
        // Conditions ask in lower case, `${…}` in a resource as it was written.
        given.insert(key.clone(), value.clone());
        given.insert(key.to_lowercase(), value);
    }
    if let Some(conditions) = statement.get("Condition") {
        document["Condition"] = conditions_in_lower_case(conditions, &mut given);
    }
    let document = json!({"Version": "2012-10-17", "Statement": [document]});
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
    let options = EvaluationOptions { ignore_resource_constraints: resource.is_none(), ..EvaluationOptions::default() };
    let request = IAMRequest::new_with_context(
        Caller::Aws(PrincipalId::String("arn:aws:iam::000000000000:root".to_owned())),
        question.action.clone(),
        resource.unwrap_or(anything),
        given,
    );
    let evaluator = PolicyEvaluator::with_policies(vec![policy]).with_options(options);
    evaluator.evaluate(&request).is_ok_and(|result| result.decision == Verdict::Allow)
}

/// Conditions with their keys in lower case. What is asked for a truth is given as one: the evaluator takes a text
/// for another kind of value.
fn conditions_in_lower_case(conditions: &Value, given: &mut Context) -> Value {
    let mut lower = Map::new();
    for (operator, keys) in conditions.as_object().into_iter().flatten() {
        let mut of_operator = Map::new();
        for (key, value) in keys.as_object().into_iter().flatten() {
            let key = key.to_lowercase();
            let truth = match given.get(&key) {
                Some(ContextValue::String(text)) if operator.contains("Bool") => text.parse().ok(),
                _ => None,
            };
            if let Some(truth) = truth {
                given.insert(key.clone(), ContextValue::Boolean(truth));
            }
            of_operator.insert(key, value.clone());
        }
        lower.insert(operator.clone(), Value::Object(of_operator));
    }
    Value::Object(lower)
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
    }

    #[test]
    fn an_action_without_resources_needs_a_statement_about_all() {
        let of_one =
            [json!({"Statement": {"Effect": "Allow", "Action": "ec2:Describe*", "Resource": "arn:aws:ec2:*:*:vpc/*"}})];
        let of_all = [json!({"Statement": {"Effect": "Allow", "Action": "EC2:describevpcs", "Resource": ["*"]}})];
        assert_eq!(decide(&of_one, &question("ec2:DescribeVpcs", None, &[])), Decision::Silence);
        assert_eq!(decide(&of_all, &question("ec2:DescribeVpcs", None, &[])), Decision::Allow);
    }

    #[test]
    fn a_key_that_the_request_lacks_is_absent_rather_than_passed_over() {
        let with = |operator: &str, value: &str| {
            [json!({"Statement": {"Effect": "Allow", "Action": "kms:CreateGrant", "Resource": "*",
                "Condition": {operator: {"kms:GrantIsForAWSResource": value}}}})]
        };
        let given = [("kms:GrantIsForAwsResource", "true")];
        for (operator, value, context, decision) in [
            ("Bool", "true", &given[..], Decision::Allow),
            ("Bool", "false", &given, Decision::Silence),
            ("Bool", "true", &[], Decision::Silence),
            ("BoolIfExists", "true", &[], Decision::Allow),
            ("Null", "true", &[], Decision::Allow),
            ("Null", "true", &given, Decision::Silence),
            ("StringNotEquals", "true", &[], Decision::Allow),
            ("StringLike", "*", &[], Decision::Silence),
            ("ForAllValues:StringEquals", "x", &[], Decision::Allow),
        ] {
            let asked = question("kms:CreateGrant", None, context);
            assert_eq!(decide(&with(operator, value), &asked), decision, "{operator} {value} {context:?}");
        }
    }

    #[test]
    fn every_of_several_values_is_compared() {
        let documents = [json!({"Statement": {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "*",
            "Condition": {"ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b"]}}}})];
        let with = |keys: &[&str]| Question {
            action: "ec2:CreateTags".into(),
            resource: Some("arn:aws:ec2:eu-west-1:111122223333:instance/i-1".into()),
            context: BTreeMap::from([("aws:TagKeys".into(), keys.iter().map(|key| (*key).to_owned()).collect())]),
        };
        assert_eq!(decide(&documents, &with(&["a", "b"])), Decision::Allow);
        assert_eq!(decide(&documents, &with(&["a", "c"])), Decision::Silence);
    }

    #[test]
    fn the_statements_that_allow_are_named() {
        let documents = [
            json!({"Statement": {"Effect": "Allow", "Action": "sqs:*", "Resource": "*"}}),
            json!({"Statement": [
                {"Effect": "Allow", "Action": "ec2:DescribeVpcs", "Resource": "*"},
                {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}]}),
        ];
        let (decision, by) = decide_by(&documents, &question("ec2:DescribeVpcs", None, &[]));
        assert_eq!((decision, by), (Decision::Allow, vec![(1, 0), (1, 1)]));
        assert!(!asks_for(&documents, "ec2:DescribeVpcs", "resourcetag/"));
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
