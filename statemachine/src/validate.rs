//! From JSON as people write it to a [`ClusterSpec`], or to everything that is wrong with it: path, value, rule.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::Ipv4Net;
use serde::Serialize;
use serde_json::Value;

use crate::names::partition;
use crate::spec::{
    AccessSpec, AddonIdentity, AddonSpec, ClusterSpec, CoreSpec, KarpenterSpec, NetworkCreate, NetworkExisting,
    NetworkSpec, NodePoolSpec,
};
use crate::{ErrorName, StepError};

/// One thing that is wrong with a spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// JSON path from the spec's root, `$.nodePools[0].name`.
    pub path: String,
    /// What stands there; null if nothing does.
    pub value: Value,
    /// What should stand there: a phrase that follows the path, `must be 2 or 3`.
    pub rule: String,
    /// [`ErrorName::InvalidInput`]; [`ErrorName::NotYetSupported`] for what a later release will act on;
    /// [`ErrorName::ImmutableChange`] for what the cluster that is there cannot become.
    pub name: ErrorName,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A cause has 32 KiB for all violations; a whole object adds nothing to its path.
        let value = self.value.to_string();
        match value.char_indices().nth(120) {
            _ if self.value.is_null() => write!(f, "{} {}", self.path, self.rule),
            Some((cut, _)) => write!(f, "{} {}, not {}…", self.path, self.rule, &value[..cut]),
            None => write!(f, "{} {}, not {value}", self.path, self.rule),
        }
    }
}

impl From<Vec<Violation>> for StepError {
    /// One error for all violations: `InvalidInput` if any is that, else `ImmutableChange`, else `NotYetSupported`.
    fn from(violations: Vec<Violation>) -> Self {
        let name = [ErrorName::InvalidInput, ErrorName::ImmutableChange]
            .into_iter()
            .find(|name| violations.iter().any(|violation| violation.name == *name))
            .unwrap_or(ErrorName::NotYetSupported);
        let list: Vec<String> = violations.iter().map(ToString::to_string).collect();
        Self::new(name, format!("The ClusterSpec is refused: {}.", list.join("; ")))
    }
}

/// Fields that the design has and this release does not act on, with what stands in for them today.
const LATER: &[(&str, &str)] = &[
    ("awake", "clusters are not put to sleep"),
    ("drift", "a cluster is repaired when its run is started again"),
    ("ttl", "clusters are not torn down by themselves"),
];

/// Namespaces of tags that belong to others than the person who writes the spec.
const RESERVED_TAGS: &[&str] = &["aws:", "eks:", "karpenter.sh", "karpenter.k8s.aws", "kubernetes.io", "slipway:"];

/// Blocks that EC2 gives to no VPC (VPC user guide, "VPC CIDR blocks").
const NO_VPC: &[&str] = &["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"];

const LOG_TYPES: &[&str] = &["api", "audit", "authenticator", "controllerManager", "scheduler"];

impl ClusterSpec {
    /// Reads and checks a spec.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the fields. What is wrong with the shape of the JSON hides
    /// what may be wrong with values.
    pub fn parse(raw: &Value) -> Result<Self, Vec<Violation>> {
        let mut found = Findings::default();
        let mut current = raw.clone();
        found.later_fields(&mut current);
        let spec: Self = match serde_path_to_error::deserialize(&current) {
            Ok(spec) => spec,
            Err(error) => {
                found.violations.push(shape_violation(&error, &current));
                return Err(found.violations);
            }
        };
        if let Ok(written) = serde_json::to_value(&spec) {
            found.lists_for_objects("$", &current, &written);
        }
        found.spec(&spec);
        if found.violations.is_empty() { Ok(spec) } else { Err(found.violations) }
    }
}

/// Turns serde's error into path, value and rule, in words that name no Rust type.
fn shape_violation(error: &serde_path_to_error::Error<serde_json::Error>, raw: &Value) -> Violation {
    let message = error.inner().to_string();
    let at = match error.path().to_string() {
        root if root == "." => "$".to_owned(),
        path => format!("$.{path}"),
    };
    let quoted = |text: &str| text.split('`').nth(1).unwrap_or_default().to_owned();
    let (path, rule) = if message.starts_with("missing field") {
        (format!("{at}.{}", quoted(&message)), "is required".to_owned())
    } else if message.starts_with("unknown field") {
        let field = quoted(&message);
        let path = if at.ends_with(&format!(".{field}")) { at } else { format!("{at}.{field}") };
        let known = message.split_once("expected ").map_or("", |(_, known)| known.trim_start_matches("one of "));
        (path, if known.is_empty() { "is no field".to_owned() } else { format!("is no field; fields are {known}") })
    } else if message.starts_with("unknown variant") {
        let known = message.split_once("expected ").map_or("", |(_, known)| known.trim_start_matches("one of "));
        (at, format!("must be one of {known}"))
    } else {
        let expected = message.rsplit_once("expected ").map_or(message.as_str(), |(_, expected)| expected);
        let rule = format!("must be {}", in_json_words(expected, &at));
        (at, rule)
    };
    Violation { value: lookup(raw, &path), path, rule, name: ErrorName::InvalidInput }
}

fn in_json_words<'a>(expected: &'a str, at: &str) -> &'a str {
    match expected {
        "a sequence" => "a list",
        "u8" | "u16" | "u32" | "u64" => "a whole number, zero or more, within its range",
        text if text == "map with a single key" || text.starts_with("enum ") => {
            if at.ends_with(".identity") {
                "an object with a single key: `policyArns` or `roleArn`"
            } else {
                "an object with a single key: `create` or `existing`"
            }
        }
        text if text.starts_with("struct ") || text == "a map" => "an object",
        text => text,
    }
}

/// The value at a path that [`shape_violation`] wrote; null if there is none.
fn lookup(raw: &Value, path: &str) -> Value {
    let pointer = path.trim_start_matches('$').replace('[', ".").replace(']', "").replace('.', "/");
    raw.pointer(&pointer).cloned().unwrap_or_default()
}

#[derive(Default)]
struct Findings {
    violations: Vec<Violation>,
}

impl Findings {
    fn invalid(&mut self, path: &str, value: impl Serialize, rule: impl Into<String>) {
        let value = serde_json::to_value(value).unwrap_or_default();
        self.violations.push(Violation {
            path: path.to_owned(),
            value,
            rule: rule.into(),
            name: ErrorName::InvalidInput,
        });
    }

    fn later(&mut self, path: &str, value: impl Serialize, instead: &str) {
        let value = serde_json::to_value(value).unwrap_or_default();
        let rule = format!("is not supported yet ({instead})");
        self.violations.push(Violation { path: path.to_owned(), value, rule, name: ErrorName::NotYetSupported });
    }

    fn must(&mut self, holds: bool, path: &str, value: impl Serialize, rule: &str) {
        if !holds {
            self.invalid(path, value, rule);
        }
    }

    /// A list without doubles, whose items hold.
    fn each<T: Serialize + PartialEq>(&mut self, path: &str, items: &[T], rule: &str, holds: impl Fn(&T) -> bool) {
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.must(holds(item), &path, item, rule);
            self.must(!items[..index].contains(item), &path, item, "must be listed once");
        }
    }

    /// Takes out what a later release will act on.
    fn later_fields(&mut self, raw: &mut Value) {
        let Some(fields) = raw.as_object_mut() else { return };
        for (field, instead) in LATER {
            if let Some(value) = fields.remove(*field) {
                self.later(&format!("$.{field}"), value, instead);
            }
        }
    }

    /// serde reads a list as an object's fields in order; nobody means that.
    fn lists_for_objects(&mut self, path: &str, raw: &Value, written: &Value) {
        match (raw, written) {
            (Value::Array(_), Value::Object(_)) => self.invalid(path, raw, "must be an object"),
            (Value::Object(raw), Value::Object(written)) => {
                for (key, value) in raw {
                    self.lists_for_objects(&format!("{path}.{key}"), value, written.get(key).unwrap_or(value));
                }
            }
            (Value::Array(raw), Value::Array(written)) => {
                for (index, (value, written)) in raw.iter().zip(written).enumerate() {
                    self.lists_for_objects(&format!("{path}[{index}]"), value, written);
                }
            }
            _ => {}
        }
    }

    fn spec(&mut self, spec: &ClusterSpec) {
        let name_rule = "must be 1 to 100 letters, digits, - or _, and start with a letter or digit";
        self.must(is_name(&spec.name, 100), "$.name", &spec.name, name_rule);
        if let Some(region) = &spec.region {
            self.must(is_region(region), "$.region", region, "must be a region such as eu-west-1");
        }
        if let Some(account) = &spec.account {
            self.must(is_account(account), "$.account", account, "must be twelve digits, as a string");
        }
        if let Some(version) = &spec.version {
            self.must(is_minor(version), "$.version", version, "must be a Kubernetes minor such as 1.36, as a string");
        }
        match &spec.network {
            NetworkSpec::Create(create) => self.network_create(create),
            NetworkSpec::Existing(existing) => self.network_existing(existing),
        }
        self.access(&spec.access);
        self.place(spec);
        self.core(&spec.core);
        self.karpenter(&spec.karpenter);
        self.node_pools(&spec.node_pools);
        for (name, addon) in &spec.addons {
            self.addon(name, addon);
        }
        let rule = format!("must be one of {}", LOG_TYPES.join(", "));
        self.each("$.logging", &spec.logging, &rule, |kind| LOG_TYPES.contains(&kind.as_str()));
        if let Some(arn) = &spec.encryption_key_arn {
            let holds = Arn::of(arn).is_some_and(|arn| arn.service == "kms" && arn.rest.starts_with("key/"));
            self.must(holds, "$.encryptionKeyArn", arn, "must be the ARN of a KMS key, arn:aws:kms:…:key/…");
        }
        let image = &spec.verify.image;
        let holds = !image.is_empty() && image.len() <= 255 && !image.contains(|c: char| c.is_whitespace());
        self.must(holds, "$.verify.image", image, "must be an image reference such as public.ecr.aws/name:tag");
        self.tags(spec);
    }

    fn network_create(&mut self, network: &NetworkCreate) {
        let block = network.cidr.parse::<Ipv4Net>().ok();
        let holds = block.is_some_and(|block| block.trunc() == block && (16..=20).contains(&block.prefix_len()));
        // Eight subnets of equal size fit any of these: a /20 leaves 512 addresses each, enough for pods by prefix.
        let rule = "must be an IPv4 block of /16 to /20 whose host bits are zero, such as 10.20.0.0/16";
        self.must(holds, "$.network.create.cidr", &network.cidr, rule);
        if let Some(taken) = block.and_then(|block| NO_VPC.iter().find(|taken| overlap(block, taken))) {
            let rule = format!("must not overlap {taken}, which no VPC can have");
            self.invalid("$.network.create.cidr", &network.cidr, rule);
        }
        self.must((2..=3).contains(&network.zones), "$.network.create.zones", network.zones, "must be 2 or 3");
    }

    fn network_existing(&mut self, network: &NetworkExisting) {
        let path = "$.network.existing";
        let rule = "must be the id of a VPC, vpc-…";
        self.must(is_id(&network.vpc_id, "vpc-"), &format!("{path}.vpcId"), &network.vpc_id, rule);
        let path = format!("{path}.subnetIds");
        // None listed: they are found by tag.
        let rule = "must list subnets of at least two zones, or be left out";
        self.must(network.subnet_ids.len() != 1, &path, &network.subnet_ids, rule);
        self.each(&path, &network.subnet_ids, "must be the id of a subnet, subnet-…", |id| is_id(id, "subnet-"));
    }

    fn access(&mut self, access: &AccessSpec) {
        let rule = "must be the ARN of an IAM role or user, arn:aws:iam::111122223333:role/Name";
        self.each("$.access.admins", &access.admins, rule, |arn| is_principal(arn));
        let endpoint = &access.endpoint;
        let holds = endpoint.public || endpoint.private;
        self.must(holds, "$.access.endpoint", endpoint, "must be public, private or both");
        let path = "$.access.endpoint.cidrs";
        let holds = !endpoint.public || !endpoint.cidrs.is_empty();
        self.must(holds, path, &endpoint.cidrs, "must list who may reach the public endpoint");
        self.must(endpoint.cidrs.len() <= 40, path, endpoint.cidrs.len(), "must list at most 40 blocks");
        let rule = "must be an IPv4 block whose host bits are zero";
        self.each(path, &endpoint.cidrs, rule, |cidr| {
            cidr.parse::<Ipv4Net>().is_ok_and(|block| block.trunc() == block)
        });
    }

    /// What depends on where the cluster is; a spec without a region is read again once it has one.
    fn place(&mut self, spec: &ClusterSpec) {
        let Some(region) = &spec.region else { return };
        let partition = partition(region);
        let rule = format!("must be of the partition {partition}, since the cluster is in {region}");
        let here = |arn: &str| Arn::of(arn).is_none_or(|arn| arn.partition == partition);
        for (index, arn) in spec.access.admins.iter().enumerate() {
            self.must(here(arn), &format!("$.access.admins[{index}]"), arn, &rule);
        }
        if let Some(arn) = &spec.encryption_key_arn {
            let there = Arn::of(arn).is_none_or(|arn| arn.partition == partition && arn.region == region);
            let rule = format!("must be a key of {region}: EKS takes no other");
            self.must(there, "$.encryptionKeyArn", arn, &rule);
        }
        for (name, addon) in &spec.addons {
            let path = format!("$.addons.{name}.identity");
            match &addon.identity {
                Some(AddonIdentity::RoleArn(arn)) => self.must(here(arn), &format!("{path}.roleArn"), arn, &rule),
                Some(AddonIdentity::PolicyArns(arns)) => {
                    for (index, arn) in arns.iter().enumerate() {
                        self.must(here(arn), &format!("{path}.policyArns[{index}]"), arn, &rule);
                    }
                }
                None => {}
            }
        }
    }

    fn core(&mut self, core: &CoreSpec) {
        let path = "$.core.instanceTypes";
        let holds = (1..=20).contains(&core.instance_types.len());
        self.must(holds, path, &core.instance_types, "must list 1 to 20 instance types");
        self.each(path, &core.instance_types, "must be an instance type such as t4g.medium", |kind| {
            let word = |text: &str| !text.is_empty() && text.chars().all(|c| is_lower(c) || c == '-');
            kind.split_once('.').is_some_and(|(family, size)| word(family) && word(size))
        });
        let rule = "must be 2 to 450: Karpenter's two replicas refuse to share a node";
        self.must((2..=450).contains(&core.size), "$.core.size", core.size, rule);
    }

    fn karpenter(&mut self, karpenter: &KarpenterSpec) {
        let rule = "must be a semantic version without v, such as 1.14.1";
        let holds = semver::Version::parse(&karpenter.version).is_ok();
        self.must(holds, "$.karpenter.version", &karpenter.version, rule);
        let chart = &karpenter.chart;
        let holds = chart.strip_prefix("oci://").is_some_and(|rest| {
            let (host, path) = rest.split_once('/').unwrap_or_default();
            let word =
                |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
            // A port is fine; a tag or digest is not, since `version` says which.
            word(&host.replacen(':', ".", 1)) && word(path)
        });
        self.must(holds, "$.karpenter.chart", chart, "must be oci://host/path without tag or digest");
        let namespace = &karpenter.namespace;
        self.must(is_dns_label(namespace), "$.karpenter.namespace", namespace, "must be a DNS label");
        let heals = karpenter.max_heals;
        self.must(heals <= 20, "$.karpenter.maxHeals", heals, "must be at most 20");
    }

    fn node_pools(&mut self, pools: &[NodePoolSpec]) {
        self.must(!pools.is_empty(), "$.nodePools", pools, "must list at least one pool");
        for (index, pool) in pools.iter().enumerate() {
            let path = format!("$.nodePools[{index}]");
            let name = format!("{path}.name");
            self.must(is_dns_label(&pool.name), &name, &pool.name, "must be a DNS label");
            let double = pools[..index].iter().any(|other| other.name == pool.name);
            self.must(!double, &name, &pool.name, "must be a name of its own");
            let path = format!("{path}.capacity");
            self.must(!pool.capacity.is_empty(), &path, &pool.capacity, "must list spot, on-demand or both");
            self.each(&path, &pool.capacity, "", |_| true);
        }
    }

    fn addon(&mut self, name: &str, addon: &AddonSpec) {
        let path = format!("$.addons.{name}");
        self.must(is_name(name, 100), &path, name, "must be an add-on's name: letters, digits, - or _");
        if let Some(version) = &addon.version {
            let holds = !version.is_empty() && version.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c));
            let rule = "must be an add-on's version such as v1.20.0-eksbuild.1";
            self.must(holds, &format!("{path}.version"), version, rule);
        }
        if let Some(configuration) = &addon.configuration {
            let rule = "must be an object";
            self.must(configuration.is_object(), &format!("{path}.configuration"), configuration, rule);
        }
        match &addon.identity {
            Some(AddonIdentity::PolicyArns(arns)) => {
                let path = format!("{path}.identity.policyArns");
                self.must(arns.len() <= 10, &path, arns.len(), "must be at most 10, as IAM demands of a role");
                let rule = "must be the ARN of a managed policy, arn:aws:iam::aws:policy/Name";
                self.each(&path, arns, rule, |arn| is_iam(arn, "policy/"));
            }
            Some(AddonIdentity::RoleArn(arn)) => {
                // infra/template.yaml lets the functions hand on no other roles.
                let rule = "must be the ARN of an IAM role whose name begins with slipway-addon-";
                self.must(is_iam(arn, "role/slipway-addon-"), &format!("{path}.identity.roleArn"), arn, rule);
            }
            None => {}
        }
    }

    fn tags(&mut self, spec: &ClusterSpec) {
        // AWS takes 50; ours, Karpenter's and CloudFormation's own come on top.
        self.must(spec.tags.len() <= 40, "$.tags", spec.tags.len(), "must be at most 40");
        let word = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c));
        let mut seen = BTreeSet::new();
        for (key, value) in &spec.tags {
            let path = format!("$.tags.{key}");
            let lower = key.to_lowercase();
            let reserved = RESERVED_TAGS.iter().find(|reserved| lower.starts_with(*reserved));
            if let Some(reserved) = reserved {
                self.invalid(&path, value, format!("must not begin with the reserved {reserved}"));
            }
            let length = key.chars().count();
            let rule = "must have a key of 1 to 128 letters, digits, spaces or _.:/=+-@";
            self.must((1..=128).contains(&length) && word(key), &path, value, rule);
            let rule = "must be at most 256 letters, digits, spaces or _.:/=+-@";
            self.must(value.chars().count() <= 256 && word(value), &path, value, rule);
            self.must(
                seen.insert(lower),
                &path,
                value,
                "must differ from other keys by more than case, as IAM demands",
            );
        }
    }
}

fn is_name(text: &str, limit: usize) -> bool {
    text.len() <= limit
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn is_lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.chars().all(|c| is_lower(c) || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let letters = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase());
    match parts.as_slice() {
        [area, middle @ .., number] => {
            area.len() == 2 && letters(area) && !middle.is_empty() && middle.iter().all(letters) && is_digits(number, 1)
        }
        _ => false,
    }
}

fn is_digits(text: &str, length: usize) -> bool {
    text.len() == length && text.chars().all(|c| c.is_ascii_digit())
}

fn is_account(text: &str) -> bool {
    is_digits(text, 12)
}

fn is_minor(text: &str) -> bool {
    text.strip_prefix("1.").is_some_and(|minor| is_digits(minor, 2))
}

fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|id| {
        matches!(id.len(), 8 | 17) && id.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    })
}

/// An ARN's parts.
struct Arn<'a> {
    partition: &'a str,
    service: &'a str,
    region: &'a str,
    /// Twelve digits, or `aws` for what AWS gives to all.
    account: &'a str,
    rest: &'a str,
}

impl<'a> Arn<'a> {
    fn of(arn: &'a str) -> Option<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        match parts.as_slice() {
            ["arn", partition, service, region, account, rest]
                if partition.starts_with("aws")
                    && (is_account(account) || *account == "aws")
                    && !arn.contains(char::is_whitespace) =>
            {
                Some(Self { partition, service, region, account, rest })
            }
            _ => None,
        }
    }
}

fn is_iam(arn: &str, kind: &str) -> bool {
    Arn::of(arn).is_some_and(|arn| {
        let name = arn.rest.strip_prefix(kind);
        let account = is_account(arn.account) || kind == "policy/";
        arn.service == "iam" && account && name.is_some_and(|name| !name.is_empty() && !name.ends_with('/'))
    })
}

fn is_principal(arn: &str) -> bool {
    is_iam(arn, "role/") || is_iam(arn, "user/")
}

fn overlap(block: Ipv4Net, other: &str) -> bool {
    other.parse::<Ipv4Net>().is_ok_and(|other| block.contains(&other.network()) || other.contains(&block.network()))
}
