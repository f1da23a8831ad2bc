//! plan: what a provision would create, change, delete and keep, and what that costs a month. It changes nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_statemachine::{
    ClusterEndpoint, ClusterKey, ClusterSpec, ErrorName, Run, Step, StepError, names,
    plan::{Planned, monthly_cost_usd},
    prices::{HOURS_A_MONTH, Prices},
    spec::{Nat, NetworkSpec},
};

use super::{
    apply_node_pools, associate_access_policy, bind_identity, create_cluster, ensure_addons, ensure_cluster_roles,
    ensure_interruption_queue, ensure_network, ensure_node_group, install_karpenter,
    open_run::{self, Completed},
    preflight::{self, Finding, Severity},
    wait_oidc,
};
use crate::{
    Context,
    aws::{iam, partition},
    cluster,
};

/// Tells what a provision would do.
#[derive(Debug)]
pub struct Plan;

/// What the machine was started with.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Input {
    /// The ClusterSpec as a person wrote it.
    pub spec: Value,
}

/// What a provision would do.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Which cluster.
    pub cluster: ClusterKey,
    /// What speaks against it, errors and warnings. With an error a provision would end in preflight, and nothing more is
    /// planned.
    pub findings: Vec<Finding>,
    /// Everything that a provision sees to, in its order.
    pub planned: Vec<Planned>,
    /// US dollars a month of what has a price by being there, without what Karpenter adds.
    pub monthly_cost_usd: f64,
}

impl Step for Plan {
    const NAME: &'static str = "plan";
    const ERRORS: &'static [ErrorName] = &[
        ErrorName::NotYetSupported,
        ErrorName::NotOurs,
        ErrorName::ImmutableChange,
        ErrorName::ClusterFailed,
        ErrorName::ClusterUnreachable,
        ErrorName::NodeGroupFailed,
        ErrorName::AddonFailed,
        ErrorName::NetworkFailed,
        ErrorName::NetworkDrifted,
        ErrorName::NetworkStuck,
        ErrorName::NetworkUnsuitable,
        ErrorName::KubernetesRefused,
        ErrorName::ChartNotFound,
        ErrorName::ChartInvalid,
    ];
    type Input = Input;
    type Output = Output;
}

/// A plan takes no lease and opens no run, so it may be asked for while a provision works.
fn no_run() -> Run {
    Run { id: "plan".to_owned(), fence: 0 }
}

/// Looks at everything that a provision sees to, and tells what each step would do about it.
///
/// # Errors
/// What a provision would end with before it changes anything: a bad spec, a foreign resource, a failed one.
pub async fn run(cx: &Context, input: Input) -> Result<Output, StepError> {
    let Completed { cluster, spec, .. } = open_run::complete(cx, &input.spec).await?;
    let (zones, findings) = preflight::look(cx, &cluster, &spec).await?;
    let asked = Asked { cluster: &cluster, spec: &spec };
    // A provision would end here, and what it would do if these were mended depends on how.
    if findings.0.iter().any(|finding| finding.severity == Severity::Error) {
        return Ok(Output { cluster, findings: findings.0, planned: Vec::new(), monthly_cost_usd: 0.0 });
    }
    let (network, there) = ensure_network::foresee(cx, &asked.network(zones)).await?;
    let existing = there.filter(|_| matches!(spec.network, NetworkSpec::Existing(_)));
    let subnet_ids = existing.map(|network| network.private_subnet_ids).unwrap_or_default();
    let (roles, queue, on_cluster) = futures::try_join!(
        ensure_cluster_roles::plan(cx, &cluster, &spec.tags),
        ensure_interruption_queue::plan(cx, &cluster, &spec.tags),
        on_cluster(cx, &asked, subnet_ids),
    )?;
    let planned = [vec![network], roles, queue, on_cluster].concat().into_iter();
    let prices = Prices::published().map_err(|error| StepError::new(ErrorName::Internal, error))?;
    let planned: Vec<Planned> = planned.map(|planned| priced(planned, &spec, &prices)).collect();
    let monthly_cost_usd = monthly_cost_usd(&planned);
    Ok(Output { cluster, findings: findings.0, planned, monthly_cost_usd })
}

/// The control plane and everything that belongs to it; `subnet_ids` are those of an existing network.
async fn on_cluster(cx: &Context, asked: &Asked<'_>, subnet_ids: Vec<String>) -> Result<Vec<Planned>, StepError> {
    let Asked { cluster, spec } = asked;
    let (control_plane, there) = create_cluster::plan(cx, &asked.control_plane()).await?;
    let is_there = there.is_some();
    let issuer = there.as_ref().map(|there| there.issuer.as_str());
    let facts = Facts::of(asked, there.as_ref());
    let kubernetes = async {
        let login = match &there {
            Some(there) => Some(cluster::connect(cx, cluster, &there.endpoint).await?),
            None => None,
        };
        let (karpenter, pools) = (asked.karpenter(&facts), asked.node_pools(&facts, subnet_ids));
        let (karpenter, pools) = futures::try_join!(
            install_karpenter::plan(login.as_ref(), &karpenter),
            apply_node_pools::plan(login.as_ref(), &pools),
        )?;
        Ok::<_, StepError>([karpenter, pools].concat())
    };
    let (access, addons, group) = (asked.access(&facts), |phase| asked.addons(&facts, phase), asked.core());
    let identity = asked.identity(&facts);
    let (provider, access, addons, group, identity, kubernetes) = futures::try_join!(
        wait_oidc::plan(cx, cluster, issuer, &spec.tags),
        associate_access_policy::plan(cx, &access, is_there),
        ensure_addons::plan(cx, addons, is_there),
        ensure_node_group::plan(cx, &group),
        bind_identity::plan(cx, &identity, is_there),
        kubernetes,
    )?;
    Ok([vec![control_plane, provider], access, addons, vec![group], identity, kubernetes].concat())
}

/// What is asked for, in the words of each step.
struct Asked<'a> {
    cluster: &'a ClusterKey,
    spec: &'a ClusterSpec,
}

/// What comes with the cluster; as it will be called, where there is none yet.
struct Facts {
    arn: String,
    issuer: String,
    endpoint: ClusterEndpoint,
    security_group_id: String,
}

impl Facts {
    fn of(asked: &Asked<'_>, there: Option<&create_cluster::Output>) -> Self {
        there.map_or_else(
            || Self {
                arn: cluster_arn(asked.cluster),
                issuer: String::new(),
                endpoint: ClusterEndpoint { url: String::new(), certificate_authority: String::new() },
                security_group_id: String::new(),
            },
            |there| Self {
                arn: there.arn.clone(),
                issuer: there.issuer.clone(),
                endpoint: there.endpoint.clone(),
                security_group_id: there.security_group_id.clone(),
            },
        )
    }
}

impl Asked<'_> {
    fn role_arn(&self, suffix: &str) -> String {
        iam::role_arn(self.cluster, &names::role(self.cluster, suffix))
    }

    fn network(&self, zones: Vec<String>) -> ensure_network::Input {
        ensure_network::Input {
            run: no_run(),
            cluster: self.cluster.clone(),
            network: self.spec.network.clone(),
            zones,
            tags: self.spec.tags.clone(),
            deletion_protection: self.spec.deletion_protection,
        }
    }

    /// Subnets play a part only when the cluster is made.
    fn control_plane(&self) -> create_cluster::Input {
        create_cluster::Input {
            run: no_run(),
            cluster: self.cluster.clone(),
            spec: self.spec.clone(),
            subnet_ids: Vec::new(),
            cluster_role_arn: self.role_arn("cluster"),
        }
    }

    fn access(&self, facts: &Facts) -> associate_access_policy::Input {
        associate_access_policy::Input {
            run: no_run(),
            cluster: self.cluster.clone(),
            admins: self.spec.access.admins.clone(),
            karpenter_node_role_arn: self.role_arn("node"),
            endpoint: facts.endpoint.clone(),
            tags: self.spec.tags.clone(),
        }
    }

    fn addons(&self, facts: &Facts, phase: ensure_addons::Phase) -> ensure_addons::Input {
        ensure_addons::Input {
            run: no_run(),
            cluster: self.cluster.clone(),
            phase,
            addons: self.spec.addons.clone(),
            version: self.spec.version.clone().unwrap_or_default(),
            tags: self.spec.tags.clone(),
            adopt: self.spec.adopt,
            endpoint: Some(facts.endpoint.clone()),
            waited: 0,
        }
    }

    fn core(&self) -> ensure_node_group::Input {
        ensure_node_group::Input {
            run: no_run(),
            cluster: self.cluster.clone(),
            core: self.spec.core.clone(),
            version: self.spec.version.clone().unwrap_or_default(),
            subnet_ids: Vec::new(),
            core_node_role_arn: self.role_arn("core"),
            tags: self.spec.tags.clone(),
            adopt: self.spec.adopt,
            waited: 0,
        }
    }

    fn identity(&self, facts: &Facts) -> bind_identity::Input {
        bind_identity::Input {
            run: no_run(),
            cluster: self.cluster.clone(),
            phase: bind_identity::Phase::Settle,
            identity: self.spec.karpenter.identity,
            namespace: self.spec.karpenter.namespace.clone(),
            issuer: facts.issuer.clone(),
            provider_arn: iam::oidc_provider_arn(self.cluster, &facts.issuer),
            queue_arn: ensure_interruption_queue::queue_arn(self.cluster),
            karpenter_node_role_arn: self.role_arn("node"),
            cluster_arn: facts.arn.clone(),
            tags: self.spec.tags.clone(),
        }
    }

    fn karpenter(&self, facts: &Facts) -> install_karpenter::Input {
        install_karpenter::Input {
            run: no_run(),
            cluster: self.cluster.clone(),
            karpenter: self.spec.karpenter.clone(),
            controller_role_arn: self.role_arn("controller"),
            queue_name: names::queue(self.cluster),
            endpoint: facts.endpoint.clone(),
            version: self.spec.version.clone().unwrap_or_default(),
            zonal_shift: self.spec.zonal_shift,
        }
    }

    fn node_pools(&self, facts: &Facts, subnet_ids: Vec<String>) -> apply_node_pools::Input {
        apply_node_pools::Input {
            run: no_run(),
            cluster: self.cluster.clone(),
            node_pools: self.spec.node_pools.clone(),
            karpenter_node_role_name: names::role(self.cluster, "node"),
            subnet_ids,
            security_group_id: facts.security_group_id.clone(),
            tags: self.spec.tags.clone(),
            endpoint: facts.endpoint.clone(),
            waited: 0,
        }
    }
}

fn cluster_arn(cluster: &ClusterKey) -> String {
    let ClusterKey { account, region, name } = cluster;
    format!("arn:{}:eks:{region}:{account}:cluster/{name}", partition(region))
}

/// With what it costs a month by being there.
fn priced(planned: Planned, spec: &ClusterSpec, prices: &Prices) -> Planned {
    let region = spec.region.as_ref().and_then(|region| prices.regions.get(region));
    let hourly = match (planned.kind.as_str(), &spec.network) {
        ("EKS cluster", _) => Some(prices.eks_hour),
        ("EKS node group", _) => {
            let kind = spec.core.instance_types.first();
            let each = region.zip(kind).and_then(|(region, kind)| region.instances.get(kind));
            each.map(|each| each * f64::from(spec.core.size))
        }
        ("CloudFormation stack", NetworkSpec::Create(create)) => {
            let gateways = match create.nat {
                Nat::Single => 1,
                Nat::PerZone => create.zones,
            };
            // Each NAT gateway has a public address.
            region.map(|region| (region.nat_gateway + prices.address_hour) * f64::from(gateways))
        }
        _ => None,
    };
    planned.costing(hourly.map(|hourly| (hourly * HOURS_A_MONTH * 100.0).round() / 100.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_costs_by_being_there_has_its_price_and_nothing_else_has_one() {
        let spec = json!({"name": "demo", "region": "eu-west-1", "network": {"create": {"nat": "perZone"}}});
        let (spec, prices) = (ClusterSpec::parse(&spec).unwrap(), Prices::published().unwrap());
        let cost = |kind: &str| priced(Planned::of(kind, "x", None), &spec, &prices).monthly_cost_usd;
        assert_eq!(cost("EKS cluster"), Some(73.0));
        assert_eq!(cost("EKS node group"), Some(53.73));
        assert_eq!(cost("CloudFormation stack"), Some(77.38));
        assert_eq!(cost("IAM role"), None);
    }
}
