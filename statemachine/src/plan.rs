//! What a provision would do, told before it does it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What would become of one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// What would be done.
    pub verb: Verb,
    /// What it is, as its service's console calls it: `IAM role`, `EKS add-on`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Why, a phrase: what is missing, what differs.
    pub reason: String,
    /// US dollars a month at list prices, for as long as it is there; none where the price is not known, or where it
    /// costs nothing by being there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly_cost_usd: Option<f64>,
}

/// What would be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// It is made.
    Create,
    /// It is changed in place.
    Change,
    /// It goes.
    Delete,
    /// It is as the spec asks.
    Keep,
}

impl Planned {
    /// From what a step would change of a thing: `None` where it is not there, nothing where it is as it should be.
    #[must_use]
    pub fn of(kind: &str, name: &str, changes: Option<&[String]>) -> Self {
        let (verb, reason) = match changes {
            None => (Verb::Create, "it is not there".to_owned()),
            Some([]) => (Verb::Keep, "it is as the spec asks".to_owned()),
            Some(changes) => (Verb::Change, changes.join(", ")),
        };
        Self { verb, kind: kind.to_owned(), name: name.to_owned(), reason, monthly_cost_usd: None }
    }

    /// Of what the spec no longer asks for.
    #[must_use]
    pub fn delete(kind: &str, name: &str, reason: &str) -> Self {
        let (kind, name, reason) = (kind.to_owned(), name.to_owned(), reason.to_owned());
        Self { verb: Verb::Delete, kind, name, reason, monthly_cost_usd: None }
    }

    /// The same with what it costs a month.
    #[must_use]
    pub fn costing(mut self, monthly_usd: Option<f64>) -> Self {
        self.monthly_cost_usd = monthly_usd;
        self
    }
}

/// What all that is planned to be there costs a month, in US dollars, as far as prices are known.
#[must_use]
pub fn monthly_cost_usd(planned: &[Planned]) -> f64 {
    planned.iter().filter(|thing| thing.verb != Verb::Delete).filter_map(|thing| thing.monthly_cost_usd).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_created_and_what_is_right_is_kept() {
        assert_eq!(Planned::of("IAM role", "r", None).verb, Verb::Create);
        assert_eq!(Planned::of("IAM role", "r", Some(&[])).verb, Verb::Keep);
        let changed = Planned::of("IAM role", "r", Some(&["its trust".to_owned(), "a tag".to_owned()]));
        assert_eq!((changed.verb, changed.reason.as_str()), (Verb::Change, "its trust, a tag"));
    }

    #[test]
    fn what_goes_costs_nothing() {
        let gone = Planned::delete("NAT gateway", "n", "a single one is asked for").costing(Some(35.0));
        let kept = Planned::of("EKS cluster", "demo", Some(&[])).costing(Some(73.0));
        assert!((monthly_cost_usd(&[gone, kept]) - 73.0).abs() < f64::EPSILON);
    }
}
