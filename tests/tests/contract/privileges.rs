//! What a role allows is used by a tour of the machines, or has a reason in the template.

use std::collections::{BTreeMap, BTreeSet};

use slipway_tests::privileges::{self, Privilege};
use slipway_tests::repository;

/// Reasons in the template: `Metadata: { Unused: { <Sid>: why } }` beside whatever has the statement.
fn reasons(template: &serde_json::Value) -> BTreeMap<String, String> {
    let resources = template["Resources"].as_object().unwrap();
    let of = |(owner, resource): (&String, &serde_json::Value)| {
        let unused = resource["Metadata"]["Unused"].as_object().cloned().unwrap_or_default();
        let owner = owner.clone();
        unused
            .into_iter()
            .map(move |(what, why)| (format!("{owner} {what}"), why.as_str().unwrap_or_default().to_owned()))
    };
    resources.iter().flat_map(of).collect()
}

/// What the tours used, when they were last written down.
fn used() -> BTreeSet<String> {
    let files = std::fs::read_dir(repository::root().join("tests/privileges")).unwrap();
    let tours = files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    tours.flat_map(|tour| privileges::written(&tour).unwrap()).collect()
}

#[test]
fn what_a_role_allows_is_used_or_has_a_reason() {
    let template = privileges::template().unwrap();
    let (used, reasons) = (used(), reasons(&template));
    // A function that no written-down tour runs begins here with its first tour.
    let toured: BTreeSet<&str> = used.iter().filter_map(|line| line.split(' ').next()).collect();
    let allowed = privileges::allowed(&template);
    let statement = |privilege: &Privilege| format!("{} {}", privilege.owner, privilege.sid);
    let idle: Vec<&Privilege> = allowed.iter().filter(|privilege| !used.contains(&privilege.to_string())).collect();
    let unreasoned: Vec<String> = idle
        .iter()
        .filter(|privilege| toured.contains(privilege.owner.as_str()) && !reasons.contains_key(&statement(privilege)))
        .map(ToString::to_string)
        .collect();
    assert!(
        unreasoned.is_empty(),
        "no test used these: take them out of infra/template.yaml, or say why under Metadata: Unused: {unreasoned:#?}"
    );
    let excused: BTreeSet<String> = idle.iter().map(|privilege| statement(privilege)).collect();
    for (statement, why) in &reasons {
        assert!(excused.contains(statement), "{statement} has a reason, and all that it allows is used");
        assert!(why.len() > 20, "{statement}: {why:?} is no reason");
    }
}
