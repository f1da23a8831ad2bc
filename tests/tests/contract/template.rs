//! `infra/template.yaml`: it is valid, has a function for every step, and gives each no more than it must.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Map, Value};
use slipway_functions::steps;
use slipway_tests::{repository, samples};

/// The template with CloudFormation's tags gone: `!Ref Table` reads `"Table"`.
fn template() -> Value {
    serde_saphyr::from_str(&repository::read("infra/template.yaml").unwrap()).unwrap()
}

fn functions(template: &Value) -> Vec<(String, &Map<String, Value>)> {
    let resources = template["Resources"].as_object().unwrap();
    let functions = resources.iter().filter(|(_, resource)| resource["Type"] == "AWS::Serverless::Function");
    functions.map(|(id, resource)| (id.clone(), resource["Properties"].as_object().unwrap())).collect()
}

/// Every statement of every policy in the template, with the resource that has it.
fn statements(template: &Value) -> Vec<(String, Value)> {
    fn collect(id: &str, value: &Value, found: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(fields) => {
                if fields.contains_key("Effect") {
                    found.push((id.to_owned(), value.clone()));
                }
                fields.values().for_each(|field| collect(id, field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| collect(id, item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (id, resource) in template["Resources"].as_object().unwrap() {
        collect(id, resource, &mut found);
    }
    found
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

fn lint(tool: &str, arguments: &[&str]) {
    let output = Command::new(repository::tool(&format!("tools/bin/{tool}")).unwrap())
        .args(arguments)
        .current_dir(repository::root())
        .env("SAM_CLI_TELEMETRY", "0")
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{tool}: {said}");
}

#[test]
fn sam_validates_it() {
    // The template's path comes from samconfig.toml, so that is read too.
    lint("sam", &["validate", "--lint"]);
}

#[test]
fn cfn_lint_finds_nothing() {
    let networks = repository::root().join("infra/network.yaml").exists().then_some("infra/network.yaml");
    lint("cfn-lint", &[&["infra/template.yaml"], networks.as_slice()].concat());
}

#[test]
fn every_step_has_its_function_and_every_function_its_step() {
    let template = template();
    let functions = functions(&template);
    let steps: BTreeSet<&str> = steps::ALL.iter().map(|step| step.name).collect();
    let handled: BTreeSet<&str> = functions.iter().map(|(_, function)| function["Handler"].as_str().unwrap()).collect();
    assert_eq!(handled, steps);
    for (id, function) in &functions {
        let step = function["Handler"].as_str().unwrap();
        assert_eq!(samples::kebab(id.strip_suffix("Function").unwrap()), step);
        assert_eq!(function["FunctionName"], format!("slipway-{step}"));
        // CloudTrail names the function by it, whichever session it called in.
        assert_eq!(
            function["Environment"],
            serde_json::json!({"Variables": {"AWS_SDK_UA_APP_ID": function["FunctionName"]}})
        );
        for field in ["Role", "Timeout", "CodeUri", "AutoPublishAlias"] {
            assert!(!function.contains_key(field), "{id} has a {field} of its own");
        }
        assert!(template["Resources"][id]["Metadata"]["BuildMethod"] == "rust-cargolambda", "{id}");
    }
}

#[test]
fn a_function_ends_before_its_task_and_within_the_leases_grace() {
    let template = template();
    let timeout = template["Globals"]["Function"]["Timeout"].as_u64().unwrap();
    for machine in repository::machines().unwrap() {
        let definition = repository::definition(&machine).unwrap();
        for task in definition.split("\"TimeoutSeconds\": ").skip(2) {
            let seconds: u64 = task.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
            assert!(timeout + 10 <= seconds && seconds <= 120, "{machine}: {timeout} s, {seconds} s");
        }
    }
}

#[test]
fn each_machine_is_given_and_may_invoke_exactly_what_it_calls() {
    let template = template();
    for machine in repository::machines().unwrap() {
        let path = format!("statemachine/{machine}.asl.json");
        let definition = repository::read(&path).unwrap();
        let called: BTreeSet<String> =
            definition.split("\"${").skip(1).map(|rest| rest.split('}').next().unwrap().to_owned()).collect();
        let resources = template["Resources"].as_object().unwrap();
        let (id, resource) = resources
            .iter()
            .find(|(_, resource)| resource["Properties"]["DefinitionUri"] == format!("../{path}"))
            .unwrap_or_else(|| panic!("the template has no machine of {path}"));
        assert_eq!(resource["Properties"]["Name"], format!("slipway-{machine}"));
        let given = resource["Properties"]["DefinitionSubstitutions"].as_object().unwrap();
        assert_eq!(given.keys().cloned().collect::<BTreeSet<_>>(), called, "{machine}");
        for (name, arn) in given {
            assert_eq!(arn, &format!("{name}.Alias"), "{name}");
        }
        assert_eq!(resource["Properties"]["Role"], format!("{id}Role.Arn"));
        let role = format!("{id}Role");
        let own = |(owner, statement): &(String, Value)| *owner == role && statement["Sid"] == "InvokeSteps";
        let invoke = statements(&template).into_iter().find(own).unwrap().1;
        let invocable: BTreeSet<String> = texts(&invoke["Resource"]).into_iter().collect();
        assert_eq!(invocable, called.iter().map(|name| format!("{name}.Alias")).collect(), "{machine}");
        if !called.contains("CloseRunFunction") {
            continue;
        }
        let ends = &resources["ExecutionEnded"]["Properties"]["EventPattern"]["detail"]["stateMachineArn"];
        assert!(texts(ends).contains(id), "a run of {machine} that is cut off is never closed");
    }
}

#[test]
fn who_may_log_in_to_clusters_is_who_the_access_role_trusts() {
    let template = template();
    let with_login: BTreeSet<String> = functions(&template)
        .iter()
        .filter(|(_, function)| function["Policies"].as_array().unwrap().contains(&"ClusterLogin".into()))
        .map(|(id, _)| format!("{id}Role.Arn"))
        .collect();
    let trust = &template["Resources"]["ClusterAccess"]["Properties"]["AssumeRolePolicyDocument"]["Statement"][0];
    let trusted: BTreeSet<String> = texts(&trust["Principal"]["AWS"]).into_iter().collect();
    assert_eq!(trusted, with_login);
    assert!(trusted.len() >= 6, "{trusted:?}");
}

#[test]
fn no_statement_is_wide_without_a_reason() {
    let template = template();
    for (id, statement) in statements(&template) {
        for action in texts(&statement["Action"]) {
            assert!(action.contains(':') && !action.contains('*'), "{id} allows {action}");
            if action == "iam:PassRole" {
                assert!(
                    statement["Condition"]["StringEquals"]["iam:PassedToService"] != Value::Null,
                    "{id} passes roles to anyone"
                );
                assert!(
                    texts(&statement["Resource"]).iter().all(|arn| arn.contains(":role/slipway-")),
                    "{id} passes any role"
                );
            }
        }
        assert_eq!(statement["Effect"], "Allow", "{id}");
    }
    // In the text, because comments are where the reasons are.
    let text = repository::read("infra/template.yaml").unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let Some((indent, value)) = line.split_once("Resource:") else { continue };
        let listed = lines[number + 1..]
            .iter()
            .take_while(|next| next.trim_start().starts_with("- ") && next.find('-') > Some(indent.len()));
        let wide = value.contains('*') || value.trim().is_empty() && listed.into_iter().any(|next| next.contains('*'));
        let sid = lines[..number].iter().rev().find(|line| line.contains("Sid:")).unwrap();
        // A role to pass is bound by its suffix; an invocable function by its name.
        let reason = lines[number - 1].trim_start().starts_with('#') || sid.contains("Pass");
        assert!(!wide || reason, "line {}: {sid} has a wildcard and no comment that says why", number + 1);
    }
}

#[test]
fn what_must_survive_is_kept_and_what_must_end_ends() {
    let template = template();
    let table = &template["Resources"]["Table"];
    assert_eq!((&table["DeletionPolicy"], &table["UpdateReplacePolicy"]), (&"Retain".into(), &"Retain".into()));
    assert_eq!(table["Properties"]["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], true);
    for (id, resource) in template["Resources"].as_object().unwrap() {
        if resource["Type"] == "AWS::Logs::LogGroup" {
            assert_eq!(resource["Properties"]["RetentionInDays"], "LogRetentionDays", "{id}");
        }
    }
    let rule = &template["Resources"]["ExecutionEnded"]["Properties"];
    assert_eq!(rule["EventPattern"]["detail"]["status"], serde_json::json!(["FAILED", "TIMED_OUT", "ABORTED"]));
    assert_eq!(rule["Targets"][0]["Arn"], "CloseRunFunction.Alias");
}

#[test]
fn every_call_that_a_step_names_is_allowed_to_its_function() {
    // What needs no permission: anyone may ask who they are, and a web identity is its own credential.
    const FREE: &[&str] = &["sts:GetCallerIdentity", "sts:AssumeRoleWithWebIdentity"];
    let template = template();
    let statements = statements(&template);
    for (id, function) in functions(&template) {
        let attached: BTreeSet<String> = function["Policies"].as_array().unwrap().iter().flat_map(texts).collect();
        let allowed: BTreeSet<String> = statements
            .iter()
            .filter(|(owner, _)| *owner == id || attached.contains(owner))
            .flat_map(|(_, statement)| texts(&statement["Action"]))
            .collect();
        let step = function["Handler"].as_str().unwrap();
        let Ok(source) = repository::read(&format!("functions/src/steps/{}.rs", step.replace('-', "_"))) else {
            continue;
        };
        let calls = ["during(", "deleted(", "refused("].into_iter().flat_map(|way| source.split(way).skip(1));
        for call in calls.filter_map(|rest| rest.trim_start().strip_prefix('"')).filter(|call| call.contains(':')) {
            let action = call.split('"').next().unwrap();
            if action.contains(' ') {
                continue;
            }
            assert!(allowed.contains(action) || FREE.contains(&action), "{step} calls {action}, which {id} may not");
        }
    }
}
