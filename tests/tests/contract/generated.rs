//! Generated files are what the code generates, and the sample events are what the steps take.

use std::collections::BTreeSet;
use std::path::Path;

use slipway_functions::steps;
use slipway_statemachine::ClusterSpec;
use slipway_tests::{generated, repository};

const AGAIN: &str = "run `cargo run -p slipway-tests --bin schemas` and commit what it writes";

#[test]
fn generated_files_are_up_to_date() {
    let files = generated::files().unwrap();
    for (path, text) in &files {
        assert_eq!(repository::read(path).unwrap_or_default(), *text, "{path} is stale: {AGAIN}");
    }
    for folder in ["statemachine/schemas", "functions/events"] {
        for entry in std::fs::read_dir(repository::root().join(folder)).unwrap() {
            let path = format!("{folder}/{}", entry.unwrap().file_name().to_string_lossy());
            assert!(files.contains_key(&path), "{path} is generated no more: delete it");
        }
    }
}

#[test]
fn every_step_has_a_sample_event_that_it_takes() {
    for step in steps::ALL {
        let event = repository::read_json(&format!("functions/events/{}.json", step.name)).unwrap();
        let schema = jsonschema::validator_for(&(step.input)().to_value()).unwrap();
        let errors: Vec<String> = schema.iter_errors(&event).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", step.name);
    }
}

#[test]
fn the_schema_of_a_spec_takes_the_examples_and_refuses_unknown_fields() {
    let schema =
        jsonschema::validator_for(&repository::read_json("statemachine/schemas/cluster-spec.json").unwrap()).unwrap();
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(repository::root().join("examples")).unwrap() {
        let path = format!("examples/{}", entry.unwrap().file_name().to_string_lossy());
        if Path::new(&path).extension().is_some_and(|extension| extension == "json") {
            let mut example = repository::read_json(&path).unwrap();
            assert!(schema.is_valid(&example), "{path}");
            let spec = ClusterSpec::parse(&example).unwrap_or_else(|violations| panic!("{path}: {violations:?}"));
            assert!(names.insert(spec.name), "{path}: its name is another example's");
            example["verison"] = "1.36".into();
            assert!(!schema.is_valid(&example), "{path}");
        }
    }
    assert!(!names.is_empty());
}
