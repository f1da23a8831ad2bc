//! What the teardown machine is asked for: which cluster, and what may go with it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{ClusterSpec, ErrorName, Violation};

/// Which cluster to take away, and what goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Teardown {
    /// The cluster; of a bare name everything else is default and means nothing.
    pub spec: ClusterSpec,
    /// What goes with it.
    pub options: Options,
}

/// What goes with a cluster, and by what force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    /// The stack of the cluster's VPC; one that is kept makes the next cluster of the name faster.
    pub network: Fate,
    /// What workloads hold in AWS: load balancers and volumes.
    pub workloads: Workloads,
    /// The log group of the control plane.
    pub log_group: Fate,
    /// Take a cluster away although it is protected from deletion.
    pub lift_deletion_protection: bool,
    /// Take away a cluster that Slipway did not make.
    pub adopt: bool,
    /// Seconds that pods have to leave their nodes, before disruption budgets are overruled.
    #[schemars(range(max = 86400))]
    pub drain_seconds: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            network: Fate::Keep,
            workloads: Workloads::Refuse,
            log_group: Fate::Keep,
            lift_deletion_protection: false,
            adopt: false,
            drain_seconds: 900,
        }
    }
}

/// Whether something stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It stays.
    Keep,
    /// It goes.
    Delete,
}

/// What becomes of workloads that hold something in AWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Workloads {
    /// The teardown ends with a list of them, and nothing is deleted.
    Refuse,
    /// They are deleted, and what they hold with them.
    Delete,
}

/// The fields of [`Options`]; `network` is one of them only where it is a word, since a ClusterSpec has an object there.
const OPTIONS: [&str; 6] = ["network", "workloads", "logGroup", "liftDeletionProtection", "adopt", "drainSeconds"];

impl Teardown {
    /// Reads `{"name": …}`, `{"cluster": {"name": …, …}}`, `{"spec": {…}}` or a whole ClusterSpec, each with the
    /// options beside it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(raw: &Value) -> Result<Self, Vec<Violation>> {
        let Some(fields) = raw.as_object() else {
            return Err(vec![violation("$", raw, "must be an object with the cluster's name")]);
        };
        let is_option = |name: &str, value: &Value| OPTIONS.contains(&name) && (name != "network" || value.is_string());
        let (options, mut rest): (Map<_, _>, Map<_, _>) =
            fields.clone().into_iter().partition(|(name, value)| is_option(name, value));
        let options: Options = read(Value::Object(options))?;
        if options.drain_seconds > 86_400 {
            return Err(vec![violation("$.drainSeconds", &options.drain_seconds.into(), "must be at most 86400")]);
        }
        let nested = ["cluster", "spec"].into_iter().find_map(|name| rest.remove(name).map(|inner| (name, inner)));
        let spec = match nested {
            None => Value::Object(rest),
            Some((_, spec)) if rest.is_empty() => spec,
            Some((name, _)) => {
                let extra = rest.keys().next().cloned().unwrap_or_default();
                let rule = format!("is no option of a teardown; what describes the cluster belongs into `{name}`");
                return Err(vec![violation(&format!("$.{extra}"), &Value::Null, &rule)]);
            }
        };
        ClusterSpec::parse(&spec).map(|spec| Self { spec, options })
    }
}

fn read<T: DeserializeOwned>(json: Value) -> Result<T, Vec<Violation>> {
    serde_path_to_error::deserialize(json).map_err(|error| {
        let rule = format!("is wrong: {}", error.inner().to_string().replace('`', "\""));
        vec![violation(&format!("$.{}", error.path()), &Value::Null, &rule)]
    })
}

fn violation(path: &str, value: &Value, rule: &str) -> Violation {
    Violation { path: path.to_owned(), value: value.clone(), rule: rule.to_owned(), name: ErrorName::InvalidInput }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cluster_is_named_in_four_ways() {
        for raw in [
            json!({"name": "demo", "region": "eu-west-1"}),
            json!({"cluster": {"name": "demo", "region": "eu-west-1"}}),
            json!({"spec": {"name": "demo", "region": "eu-west-1", "core": {"size": 2}}}),
            json!({"name": "demo", "region": "eu-west-1", "network": {"create": {"zones": 3}}}),
        ] {
            let asked = Teardown::parse(&raw).unwrap();
            assert_eq!((asked.spec.name.as_str(), asked.spec.region.as_deref()), ("demo", Some("eu-west-1")), "{raw}");
            assert_eq!(asked.options, Options::default(), "{raw}");
        }
    }

    #[test]
    fn options_stand_beside_any_of_them() {
        let options = json!({"network": "delete", "workloads": "delete", "logGroup": "delete", "drainSeconds": 0});
        for mut raw in
            [json!({"name": "demo"}), json!({"cluster": {"name": "demo"}}), json!({"spec": {"name": "demo"}})]
        {
            raw.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
            let asked = Teardown::parse(&raw).unwrap().options;
            assert_eq!((asked.network, asked.workloads), (Fate::Delete, Workloads::Delete));
            assert_eq!((asked.log_group, asked.drain_seconds, asked.adopt), (Fate::Delete, 0, false));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (raw, path) in [
            (json!("demo"), "$"),
            (json!({}), "$.name"),
            (json!({"name": "demo", "network": "destroy"}), "$.network"),
            (json!({"name": "demo", "workload": "delete"}), "$.workload"),
            (json!({"name": "demo", "drainSeconds": 100_000}), "$.drainSeconds"),
            (json!({"cluster": {"name": "demo"}, "name": "demo"}), "$.name"),
            (json!({"cluster": {"name": "de mo"}}), "$.name"),
        ] {
            let violations = Teardown::parse(&raw).unwrap_err();
            assert_eq!(violations[0].path, path, "{raw}: {violations:?}");
        }
    }
}
