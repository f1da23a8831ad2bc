//! The Price List service, for the instance types whose prices are known here.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::gateway::call::{Answer, AwsError, Call, Service};
use crate::gateway::wire;

/// The service. It knows one region's Linux on-demand prices and answers them for every region.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pricing;

/// US dollars an hour of the family's `large`, Linux on demand in eu-west-1, and the sizes that the family has.
/// Within a family prices grow with the size.
const FAMILIES: [(&str, f64, &[&str]); 11] = [
    ("t3", 0.0912, BURSTABLE),
    ("t3a", 0.0816, BURSTABLE),
    ("t4g", 0.0736, BURSTABLE),
    ("m5", 0.107, INTEL),
    ("m6i", 0.107, INTEL_6),
    ("m6g", 0.086, GRAVITON),
    ("c5", 0.096, &["large", "xlarge", "2xlarge", "4xlarge", "9xlarge", "12xlarge", "18xlarge", "24xlarge", "metal"]),
    ("c6g", 0.073, GRAVITON),
    ("r5", 0.141, INTEL),
    ("r6i", 0.141, INTEL_6),
    ("r6g", 0.113, GRAVITON),
];

const BURSTABLE: &[&str] = &["nano", "micro", "small", "medium", "large", "xlarge", "2xlarge"];
const INTEL: &[&str] =
    &["large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge", "metal"];
const INTEL_6: &[&str] =
    &["large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge", "32xlarge", "metal"];
const GRAVITON: &[&str] =
    &["medium", "large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "metal"];

/// How many `large` a size is; `metal` is as large as its family's largest.
fn larges(size: &str, sizes: &[&str]) -> f64 {
    match size {
        "nano" => 0.0625,
        "micro" => 0.125,
        "small" => 0.25,
        "medium" => 0.5,
        "large" => 1.0,
        "xlarge" => 2.0,
        "metal" => sizes.iter().rev().find(|size| **size != "metal").map_or(1.0, |size| larges(size, sizes)),
        many => many.strip_suffix("xlarge").and_then(|many| many.parse::<f64>().ok()).map_or(1.0, |many| many * 2.0),
    }
}

/// What an instance type costs an hour on demand, in US dollars, where that is known here.
#[must_use]
pub fn on_demand_hourly_usd(instance_type: &str) -> Option<f64> {
    let (family, size) = instance_type.split_once('.')?;
    let (_, large, sizes) = FAMILIES.iter().find(|(known, ..)| *known == family)?;
    sizes.contains(&size).then(|| large * larges(size, sizes))
}

#[async_trait]
impl Service for Pricing {
    async fn handle(&self, call: Call) -> Answer {
        let body = match wire::json_body(&call) {
            Ok(body) => body,
            Err(refusal) => return wire::refuse(&call, &refusal),
        };
        match (call.action.as_str(), body["ServiceCode"].as_str()) {
            ("GetProducts", Some("AmazonEC2")) => {
                wire::json_answer(&call, &json!({"FormatVersion": "aws_v1", "PriceList": products(&body)}))
            }
            ("GetProducts", service) => {
                let message = format!("The local cloud has no prices of {}.", service.unwrap_or("an unnamed service"));
                wire::refuse(&call, &AwsError::new(400, "NotFoundException", message))
            }
            (action, _) => {
                let message = format!("The local cloud's Pricing has no {action}.");
                wire::refuse(&call, &AwsError::new(400, "UnknownOperationException", message))
            }
        }
    }
}

/// The products that satisfy every filter, each as a JSON text of its own, as the service answers them.
fn products(body: &Value) -> Vec<String> {
    let filters: Vec<(&str, &str)> = body["Filters"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|filter| Some((filter["Field"].as_str()?, filter["Value"].as_str()?)))
        .collect();
    let region = filters.iter().find(|(field, _)| *field == "regionCode").map_or("eu-west-1", |(_, region)| *region);
    let mut found = Vec::new();
    for (family, _, sizes) in FAMILIES {
        for size in sizes {
            let product = product(&format!("{family}.{size}"), region);
            let fits = |(field, value): &(&str, &str)| {
                let attribute = if *field == "productFamily" {
                    product["product"]["productFamily"].as_str()
                } else {
                    product["product"]["attributes"][*field].as_str()
                };
                // A field that is not known here cannot rule anything out.
                attribute.is_none_or(|attribute| attribute.eq_ignore_ascii_case(value))
            };
            if filters.iter().all(fits) {
                found.push(product.to_string());
            }
        }
    }
    found
}

fn product(instance_type: &str, region: &str) -> Value {
    let metal = instance_type.split_once('.').is_some_and(|(_, size)| size == "metal");
    let price = on_demand_hourly_usd(instance_type).unwrap_or_default();
    let sku = instance_type.replace('.', "").to_uppercase();
    let (offer, rate) = (format!("{sku}.JRTCKXETXF"), format!("{sku}.JRTCKXETXF.6YS6EN2CT7"));
    json!({
        "product": {
            "productFamily": if metal { "Compute Instance (bare metal)" } else { "Compute Instance" },
            "sku": sku,
            "attributes": {
                "capacitystatus": "Used",
                "instanceType": instance_type,
                "marketoption": "OnDemand",
                "operatingSystem": "Linux",
                "preInstalledSw": "NA",
                "regionCode": region,
                "servicecode": "AmazonEC2",
                // As Karpenter asks for it: bare metal is priced by the machine.
                "tenancy": if metal { "Dedicated" } else { "Shared" },
            },
        },
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {&offer: {
            "effectiveDate": "2026-11-01T00:00:00Z",
            "offerTermCode": "JRTCKXETXF",
            "priceDimensions": {&rate: {
                "beginRange": "0",
                "description": format!("${price:.4} per On Demand Linux {instance_type} Instance Hour"),
                "endRange": "Inf",
                "pricePerUnit": {"USD": format!("{price:.10}")},
                "rateCode": rate,
                "unit": "Hrs",
            }},
            "sku": sku,
        }}},
        "version": "20261101000000",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_prices_come_out() {
        let known = [("t4g.medium", 0.0368), ("m5.xlarge", 0.214), ("m6g.metal", 2.752), ("m5.metal", 5.136)];
        for (instance_type, usd) in known {
            let price = on_demand_hourly_usd(instance_type).unwrap_or_default();
            assert!((price - usd).abs() < 1e-9, "{instance_type}: {price}");
        }
        assert_eq!(on_demand_hourly_usd("t4g.metal"), None);
    }

    /// Karpenter 1.14 asks twice, for ordinary and for bare metal instances, and takes an empty answer for a failure.
    #[test]
    fn both_of_karpenters_queries_find_something() {
        let filter = |field: &str, value: &str| json!({"Field": field, "Type": "TERM_MATCH", "Value": value});
        let queries = [("Compute Instance", "Shared", false), ("Compute Instance (bare metal)", "Dedicated", true)];
        for (family, tenancy, metal) in queries {
            let body = json!({"Filters": [
                filter("tenancy", tenancy), filter("productFamily", family), filter("regionCode", "eu-west-1"),
                filter("serviceCode", "AmazonEC2"), filter("preInstalledSw", "NA"), filter("operatingSystem", "Linux"),
                filter("capacitystatus", "Used"), filter("marketoption", "OnDemand"),
            ]});
            let found = products(&body);
            assert!(!found.is_empty());
            assert!(found.iter().all(|product| product.contains(".metal\"") == metal));
        }
    }
}
