//! IAM's policy simulator: the judge of calls, asked what it would say. As on AWS it looks nothing up: of the request it
//! knows the condition keys that it is told, and what an organization's policies ask beyond them it takes for absent
//! without saying so. Source: IAM API Reference, SimulatePrincipalPolicy and EvaluationResult, as of August 2026.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::authorize::{Authorizer, Role};
use super::call::{AwsError, Call};
use super::policy::{Decision, Question, decide, missing_keys};
use super::wire;

/// What a page has where nobody asks for less.
const PAGE: usize = 100;

/// Whether the simulator is asked.
pub(super) fn is_asked(call: &Call) -> bool {
    call.service == "iam" && call.action == "SimulatePrincipalPolicy"
}

/// What would become of one action on one resource.
struct Verdict {
    decision: &'static str,
    organization: Option<bool>,
    boundary: Option<bool>,
    missing: BTreeSet<String>,
}

impl Authorizer {
    /// The members of the result.
    ///
    /// # Errors
    /// IAM's refusal of the question.
    pub(super) async fn simulate(&self, call: &Call) -> Result<String, AwsError> {
        let parameters = wire::parameters(call);
        let invalid = |message: String| AwsError::new(400, "InvalidInput", message);
        let role_arn = parameters.get("PolicySourceArn").filter(|arn| arn.contains(":role/"));
        let role_arn = role_arn.ok_or_else(|| invalid("the local cloud simulates for roles alone".to_owned()))?;
        let actions = wire::list(&parameters, "ActionNames.member");
        if let Some(bad) = actions.iter().find(|action| !action.contains(':')) {
            return Err(invalid(format!("Action {bad} must have a service prefix")));
        }
        let role = self.role(role_arn).await;
        if !role.there {
            let name = role_arn.rsplit('/').next().unwrap_or_default();
            return Err(AwsError::new(404, "NoSuchEntity", format!("The role with name {name} cannot be found.")));
        }
        let mut resources = wire::list(&parameters, "ResourceArns.member");
        if resources.is_empty() {
            resources.push("*".to_owned());
        }
        let context = context(&parameters);
        let from = parameters.get("Marker").and_then(|marker| marker.parse::<usize>().ok()).unwrap_or_default();
        let size = parameters.get("MaxItems").and_then(|size| size.parse().ok()).unwrap_or(PAGE);
        let page: Vec<&String> = actions.iter().skip(from).take(size).collect();
        let next = from + page.len();
        let control = self.controlling();
        let results: String =
            page.into_iter().map(|action| result(&role, &control, action, &resources, &context)).collect();
        let more = if next < actions.len() {
            format!("<IsTruncated>true</IsTruncated>{}", wire::element("Marker", &next.to_string()))
        } else {
            "<IsTruncated>false</IsTruncated>".to_owned()
        };
        Ok(format!("{more}<EvaluationResults>{results}</EvaluationResults>"))
    }
}

/// The condition keys that the question comes with.
fn context(parameters: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let entry = |n: usize| {
        let key = parameters.get(&format!("ContextEntries.member.{n}.ContextKeyName"))?;
        Some((key.clone(), wire::list(parameters, &format!("ContextEntries.member.{n}.ContextKeyValues.member"))))
    };
    (1..).map_while(entry).collect()
}

/// One action on all resources: the whole, and each.
fn result(
    role: &Role,
    control: &[Value],
    action: &str,
    resources: &[String],
    context: &BTreeMap<String, Vec<String>>,
) -> String {
    let verdicts: Vec<(&String, Verdict)> = resources
        .iter()
        .map(|arn| {
            let resource = (arn != "*").then(|| arn.clone());
            let question = Question { action: action.to_owned(), resource, context: context.clone() };
            (arn, judge(role, control, &question))
        })
        .collect();
    let worst = ["explicitDeny", "implicitDeny", "allowed"];
    let whole = worst.into_iter().find(|decision| verdicts.iter().any(|(_, verdict)| verdict.decision == *decision));
    let all = |of: &dyn Fn(&Verdict) -> Option<bool>| verdicts.iter().map(|(_, verdict)| of(verdict)).min().flatten();
    let missing: BTreeSet<&String> = verdicts.iter().flat_map(|(_, verdict)| &verdict.missing).collect();
    let mut each = String::new();
    for (arn, verdict) in &verdicts {
        each += "<member>";
        each += &wire::element("EvalResourceName", arn);
        each += &wire::element("EvalResourceDecision", verdict.decision);
        each += &keys(verdict.missing.iter());
        each += &boundary(verdict.boundary);
        each += "</member>";
    }
    let organization = all(&|verdict| verdict.organization).map_or_else(String::new, |allowed| {
        let allowed = wire::element("AllowedByOrganizations", &allowed.to_string());
        format!("<OrganizationsDecisionDetail>{allowed}</OrganizationsDecisionDetail>")
    });
    format!(
        "<member>{}<EvalResourceName>*</EvalResourceName>{}{}{organization}{}\
         <ResourceSpecificResults>{each}</ResourceSpecificResults></member>",
        wire::element("EvalActionName", action),
        wire::element("EvalDecision", whole.unwrap_or("implicitDeny")),
        keys(missing.into_iter()),
        boundary(all(&|verdict| verdict.boundary)),
    )
}

fn keys<'a>(missing: impl Iterator<Item = &'a String>) -> String {
    let keys: String = missing.map(|key| wire::element("member", key)).collect();
    format!("<MissingContextValues>{keys}</MissingContextValues>")
}

fn boundary(allowed: Option<bool>) -> String {
    allowed.map_or_else(String::new, |allowed| {
        let allowed = wire::element("AllowedByPermissionsBoundary", &allowed.to_string());
        format!("<PermissionsBoundaryDecisionDetail>{allowed}</PermissionsBoundaryDecisionDetail>")
    })
}

fn judge(role: &Role, control: &[Value], question: &Question) -> Verdict {
    let organization = (!control.is_empty()).then(|| decide(control, question) != Decision::Deny);
    let by_boundary = role.boundary.as_ref().map(|boundary| decide(std::slice::from_ref(boundary), question));
    let boundary = by_boundary.map(|decision| decision == Decision::Allow);
    let own = decide(&role.policies, question);
    let decision = match (own, by_boundary, organization) {
        (Decision::Deny, ..) | (_, Some(Decision::Deny), _) | (_, _, Some(false)) => "explicitDeny",
        (Decision::Allow, None | Some(Decision::Allow), _) => "allowed",
        _ => "implicitDeny",
    };
    Verdict { decision, organization, boundary, missing: missing_keys(&role.policies, question) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn role(policy: Value, boundary: Option<Value>) -> Role {
        Role { there: true, policies: vec![policy], boundary, tags: BTreeMap::new() }
    }

    fn statement(effect: &str, action: &str, condition: &Value) -> Value {
        json!({"Statement": [{"Effect": effect, "Action": action, "Resource": "*", "Condition": condition}]})
    }

    fn asked(role: &Role, control: &[Value], action: &str, context: &[(&str, &str)]) -> Verdict {
        let context = context.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect();
        judge(role, control, &Question { action: action.to_owned(), resource: None, context })
    }

    #[test]
    fn who_is_in_the_way_is_told() {
        let ec2 = role(statement("Allow", "ec2:*", &json!({})), None);
        let free = asked(&ec2, &[], "ec2:CreateVpc", &[]);
        assert_eq!((free.decision, free.organization, free.boundary), ("allowed", None, None));
        assert_eq!(asked(&ec2, &[], "eks:CreateCluster", &[]).decision, "implicitDeny");
        let control = [statement("Deny", "ec2:CreateVpc", &json!({}))];
        let forbidden = asked(&ec2, &control, "ec2:CreateVpc", &[]);
        assert_eq!((forbidden.decision, forbidden.organization), ("explicitDeny", Some(false)));
        assert_eq!(asked(&ec2, &control, "ec2:CreateSubnet", &[]).organization, Some(true));
        let bound = role(statement("Allow", "*", &json!({})), Some(statement("Allow", "ec2:*", &json!({}))));
        let bounded = asked(&bound, &[], "iam:CreateRole", &[]);
        assert_eq!((bounded.decision, bounded.boundary), ("implicitDeny", Some(false)));
    }

    #[test]
    fn a_key_that_is_not_told_is_missing_and_an_organizations_policy_takes_it_for_absent() {
        let pass =
            role(statement("Allow", "iam:PassRole", &json!({"StringEquals": {"iam:PassedToService": "x"}})), None);
        let verdict = asked(&pass, &[], "iam:PassRole", &[]);
        assert_eq!(verdict.decision, "implicitDeny");
        assert_eq!(verdict.missing, BTreeSet::from(["iam:PassedToService".to_owned()]));
        let told = asked(&pass, &[], "iam:PassRole", &[("iam:passedtoservice", "x")]);
        assert!(told.decision == "allowed" && told.missing.is_empty());
        let all = role(statement("Allow", "*", &json!({})), None);
        let locked = [statement("Deny", "*", &json!({"StringNotEquals": {"aws:RequestedRegion": "eu-west-1"}}))];
        let unsaid = asked(&all, &locked, "ec2:CreateVpc", &[]);
        assert!(unsaid.organization == Some(false) && unsaid.missing.is_empty());
        let said = asked(&all, &locked, "ec2:CreateVpc", &[("aws:RequestedRegion", "eu-west-1")]);
        assert_eq!(said.organization, Some(true));
    }

    #[test]
    fn the_worst_of_all_resources_is_the_answer_and_each_has_its_own() {
        let policy =
            json!({"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "arn:aws:iam::111122223333:role/a"}]});
        let arns = ["arn:aws:iam::111122223333:role/a".to_owned(), "arn:aws:iam::111122223333:role/b".to_owned()];
        let xml = result(&role(policy, None), &[], "iam:CreateRole", &arns, &BTreeMap::new());
        assert!(xml.contains("<EvalDecision>implicitDeny</EvalDecision>"), "{xml}");
        let each = xml.split_once("<ResourceSpecificResults>").unwrap().1;
        assert!(each.contains("role/a</EvalResourceName><EvalResourceDecision>allowed"), "{xml}");
        assert!(each.contains("role/b</EvalResourceName><EvalResourceDecision>implicitDeny"), "{xml}");
    }
}
