//! A container's environment: literal values, the downward API, resource fields, and keys of config maps and secrets.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, ResourceFieldSelector, Secret};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{Api, ResourceExt as _};

use super::super::machines::Machine;

/// What a pod's downward API can say beyond what its object holds.
pub(super) struct Place<'a> {
    pub(super) pod: &'a Pod,
    pub(super) ip: &'a str,
    pub(super) machine: &'a Machine,
}

/// The container's variables, in no order.
///
/// # Errors
/// A field, config map or secret that isn't there.
pub(super) async fn variables(
    client: &kube::Client,
    place: &Place<'_>,
    container: &Container,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let value = value(client, place, container, variable)
            .await
            .with_context(|| format!("environment variable {}", variable.name))?;
        if let Some(value) = value {
            variables.insert(variable.name.clone(), value);
        }
    }
    Ok(variables)
}

async fn value(
    client: &kube::Client,
    place: &Place<'_>,
    container: &Container,
    variable: &EnvVar,
) -> anyhow::Result<Option<String>> {
    let Some(source) = &variable.value_from else { return Ok(Some(variable.value.clone().unwrap_or_default())) };
    let namespace = place.pod.namespace().unwrap_or_default();
    if let Some(selector) = &source.field_ref {
        return field(place, &selector.field_path).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return resource(place.machine, container, selector).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let map: Option<ConfigMap> = Api::namespaced(client.clone(), &namespace).get_opt(&key.name).await?;
        let value = map.and_then(|map| map.data).and_then(|mut data| data.remove(&key.key));
        return required(value, key.optional, || format!("config map {} has no {}", key.name, key.key));
    }
    if let Some(key) = &source.secret_key_ref {
        let secret: Option<Secret> = Api::namespaced(client.clone(), &namespace).get_opt(&key.name).await?;
        let value = secret.and_then(|secret| secret.data).and_then(|mut data| data.remove(&key.key));
        let value = value.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        return required(value, key.optional, || format!("secret {} has no {}", key.name, key.key));
    }
    Err(anyhow!("its source is not one that the node agent knows"))
}

fn required(
    value: Option<String>,
    optional: Option<bool>,
    missing: impl FnOnce() -> String,
) -> anyhow::Result<Option<String>> {
    if value.is_none() && optional != Some(true) {
        return Err(anyhow!(missing()));
    }
    Ok(value)
}

/// A field of the downward API, as variables and as files have it.
///
/// # Errors
/// A path that the downward API does not offer.
pub(super) fn field(place: &Place<'_>, path: &str) -> anyhow::Result<String> {
    let pod = place.pod;
    let keyed = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        return match map {
            "metadata.labels" => Ok(keyed(pod.labels(), key)),
            "metadata.annotations" => Ok(keyed(pod.annotations(), key)),
            _ => Err(anyhow!("the downward API has no {path}")),
        };
    }
    let spec = pod.spec.as_ref();
    match path {
        "metadata.name" => Ok(pod.name_any()),
        "metadata.namespace" => Ok(pod.namespace().unwrap_or_default()),
        "metadata.uid" => Ok(pod.uid().unwrap_or_default()),
        "spec.nodeName" => Ok(place.machine.node.clone()),
        "spec.serviceAccountName" => Ok(spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()),
        "status.hostIP" | "status.hostIPs" => Ok(place.machine.private_ip.clone()),
        "status.podIP" | "status.podIPs" => Ok(place.ip.to_owned()),
        _ => Err(anyhow!("the downward API has no {path}")),
    }
}

/// A limit or request divided by the divisor and rounded up; without a limit, what the node offers.
fn resource(machine: &Machine, container: &Container, selector: &ResourceFieldSelector) -> anyhow::Result<String> {
    let (kind, name) = selector.resource.split_once('.').ok_or_else(|| anyhow!("no such resource"))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref()).and_then(|limits| limits.get(name));
    let requests = resources.and_then(|resources| resources.requests.as_ref()).and_then(|requests| requests.get(name));
    let quantity = match kind {
        "limits" => limits.cloned().or_else(|| machine.allocatable().remove(name)),
        "requests" => requests.or(limits).cloned(),
        _ => return Err(anyhow!("{} is neither a limit nor a request", selector.resource)),
    };
    let divisor = selector.divisor.as_ref().and_then(amount).filter(|divisor| *divisor > 0.0).unwrap_or(1.0);
    let amount = quantity.map_or(Some(0.0), |quantity| amount(&quantity));
    let amount = amount.ok_or_else(|| anyhow!("{} is not a quantity", selector.resource))?;
    Ok(format!("{:.0}", (amount / divisor).ceil()))
}

/// A quantity as a number: `1500m` is 1.5, `2Ki` is 2048.
fn amount(quantity: &Quantity) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let text = quantity.0.as_str();
    let suffix = SUFFIXES.iter().find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|number| (number, factor)));
    let (number, factor) = suffix.unwrap_or((text, &1.0));
    number.parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_decimal_and_binary_suffixes() {
        for (text, expected) in [("1500m", 1.5), ("1Gi", 1_073_741_824.0), ("2", 2.0), ("1e3", 1000.0), ("5k", 5000.0)]
        {
            assert_eq!(amount(&Quantity(text.to_owned())), Some(expected), "{text}");
        }
        assert_eq!(amount(&Quantity("many".to_owned())), None);
    }
}
