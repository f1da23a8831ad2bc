//! Load balancers of Services, as the cloud controller manager makes them: a classic one with a security group of its
//! own, which the cluster's group lets in; a network load balancer with a target group where the annotation says `nlb`.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::{Controllers, texts};

/// Keeps a Service until its load balancer is gone.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// `nlb`, or nothing.
const TYPE: &str = "service.beta.kubernetes.io/aws-load-balancer-type";
const ELB: &str = "elasticloadbalancing";

/// Where load balancers are put.
struct Place {
    vpc: String,
    /// Public, one a zone.
    subnets: Vec<String>,
    /// The security group that EKS made for the cluster.
    group: String,
}

/// Makes what is missing, and takes away what nobody wants any more.
pub(super) async fn look(controllers: &Controllers) -> anyhow::Result<()> {
    let services: Api<Service> = Api::all(controllers.client.clone());
    let mut first_error = Ok(());
    for service in services.list(&ListParams::default()).await?.items {
        let outcome = reconcile(controllers, &service).await;
        let place = format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any());
        first_error = first_error.and(outcome.with_context(|| format!("service {place}")));
    }
    first_error
}

async fn reconcile(controllers: &Controllers, service: &Service) -> anyhow::Result<()> {
    let spec = service.spec.clone().unwrap_or_default();
    // A Service with a class is for whoever serves that class.
    let balanced = spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none();
    let wanted = balanced && service.metadata.deletion_timestamp.is_none();
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let made = status.is_some_and(|status| status.ingress.as_ref().is_some_and(|ingress| !ingress.is_empty()));
    let services: Api<Service> = Api::namespaced(controllers.client.clone(), &service.namespace().unwrap_or_default());
    let (name, patching) = (service.name_any(), PatchParams::default());
    if wanted && !made {
        let finalizers = json!({ "metadata": { "finalizers": [FINALIZER] } });
        services.patch(&name, &patching, &Patch::Merge(finalizers)).await?;
        let host = make(controllers, service, &spec.ports.unwrap_or_default()).await?;
        let status = json!({ "status": { "loadBalancer": { "ingress": [{ "hostname": host }] } } });
        services.patch_status(&name, &patching, &Patch::Merge(status)).await?;
    } else if !wanted && service.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        unmake(controllers, service).await?;
        let others: Vec<_> = service.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let status = json!({ "status": { "loadBalancer": null } });
        services.patch_status(&name, &patching, &Patch::Merge(status)).await?;
        services.patch(&name, &patching, &Patch::Merge(json!({ "metadata": { "finalizers": others } }))).await?;
    }
    Ok(())
}

/// The name that the controller gives: `a` and the Service's uid without hyphens, of 32 characters.
fn balancer_name(service: &Service) -> String {
    let uid = service.uid().unwrap_or_default().replace('-', "");
    format!("a{uid}").chars().take(32).collect()
}

fn is_network(service: &Service) -> bool {
    service.annotations().get(TYPE).is_some_and(|kind| kind == "nlb")
}

fn target_group_name(service: &Service) -> String {
    let uid: String = service.uid().unwrap_or_default().chars().take(8).collect();
    let short = |text: String| text.chars().take(8).collect::<String>();
    format!("k8s-{}-{}-{uid}", short(service.namespace().unwrap_or_default()), short(service.name_any()))
}

/// Makes a load balancer, or what of it is missing; answers its DNS name.
async fn make(controllers: &Controllers, service: &Service, ports: &[ServicePort]) -> anyhow::Result<String> {
    let place = place(controllers).await?;
    let port = ports.first().context("a Service has a port")?;
    let name = balancer_name(service);
    let (owned, whose) =
        (controllers.owned(), format!("{}/{}", service.namespace().unwrap_or_default(), service.name_any()));
    let tags = [
        ("Tags.member.1.Key", owned.as_str()),
        ("Tags.member.1.Value", "owned"),
        ("Tags.member.2.Key", "kubernetes.io/service-name"),
        ("Tags.member.2.Value", whose.as_str()),
    ];
    let subnets: Vec<(String, &str)> =
        (1..).map(|n| format!("Subnets.member.{n}")).zip(place.subnets.iter().map(String::as_str)).collect();
    let mut params: Vec<(&str, &str)> =
        subnets.iter().map(|(member, subnet)| (member.as_str(), *subnet)).chain(tags).collect();
    let (outside, inside) = (port.port.to_string(), port.node_port.unwrap_or(port.port).to_string());
    let answer = if is_network(service) {
        params.extend([("Name", name.as_str()), ("Type", "network")]);
        let answer = create(controllers, service, &params).await?;
        let arn = texts(&answer, "LoadBalancerArn")?.into_iter().next().context("a load balancer has an ARN")?;
        listen(controllers, service, &arn, (&place.vpc, &outside, &inside), &tags).await?;
        answer
    } else {
        let group = let_in(controllers, &name, &whose, &place, &outside).await?;
        params.extend([
            ("LoadBalancerName", name.as_str()),
            ("Listeners.member.1.Protocol", "TCP"),
            ("Listeners.member.1.LoadBalancerPort", outside.as_str()),
            ("Listeners.member.1.InstancePort", inside.as_str()),
            ("SecurityGroups.member.1", group.as_str()),
        ]);
        create(controllers, service, &params).await?
    };
    texts(&answer, "DNSName")?.into_iter().next().context("a load balancer has a DNS name")
}

/// Makes a load balancer of either kind, or finds the one that was made before its Service could be told.
async fn create(controllers: &Controllers, service: &Service, params: &[(&str, &str)]) -> anyhow::Result<String> {
    match controllers.query(ELB, "CreateLoadBalancer", params, &["DuplicateLoadBalancerName"]).await? {
        Some(made) => Ok(made),
        None => described(controllers, service).await?.context("a load balancer of that name is there"),
    }
}

/// Where the cluster is: its group's VPC and the public subnets there, as the network's tags have them.
async fn place(controllers: &Controllers) -> anyhow::Result<Place> {
    // By the tag as well: the name alone may be that of a neighbour, `demo-2` beside `demo`.
    let (prefix, owned) = (format!("eks-cluster-sg-{}-*", controllers.cluster), format!("tag:{}", controllers.owned()));
    let params = [
        ("Filter.1.Name", "group-name"),
        ("Filter.1.Value.1", prefix.as_str()),
        ("Filter.2.Name", owned.as_str()),
        ("Filter.2.Value.1", "owned"),
    ];
    let groups = controllers.aws.query("ec2", "DescribeSecurityGroups", &params).await?;
    let group = texts(&groups, "groupId")?.into_iter().next().context("the cluster has no security group")?;
    let vpc = texts(&groups, "vpcId")?.into_iter().next().context("a security group has a VPC")?;
    let mut subnets = Vec::new();
    let mut token = String::new();
    loop {
        let mut params = vec![
            ("Filter.1.Name", "vpc-id"),
            ("Filter.1.Value.1", vpc.as_str()),
            ("Filter.2.Name", "tag-key"),
            ("Filter.2.Value.1", "kubernetes.io/role/elb"),
        ];
        if !token.is_empty() {
            params.push(("NextToken", token.as_str()));
        }
        let page = controllers.aws.query("ec2", "DescribeSubnets", &params).await?;
        subnets.extend(texts(&page, "subnetId")?);
        token = texts(&page, "nextToken")?.pop().unwrap_or_default();
        if token.is_empty() {
            break;
        }
    }
    anyhow::ensure!(!subnets.is_empty(), "could not find any suitable subnets for creating the ELB");
    Ok(Place { vpc, subnets, group })
}

/// The security group of a classic load balancer: open to the world, and let in by the cluster's own.
async fn let_in(
    controllers: &Controllers,
    name: &str,
    whose: &str,
    place: &Place,
    port: &str,
) -> anyhow::Result<String> {
    let (group_name, owned) = (format!("k8s-elb-{name}"), controllers.owned());
    let description = format!("Security group for Kubernetes ELB {name} ({whose})");
    let params = [
        ("GroupName", group_name.as_str()),
        ("GroupDescription", description.as_str()),
        ("VpcId", place.vpc.as_str()),
        ("TagSpecification.1.ResourceType", "security-group"),
        ("TagSpecification.1.Tag.1.Key", owned.as_str()),
        ("TagSpecification.1.Tag.1.Value", "owned"),
    ];
    let group = match controllers.query("ec2", "CreateSecurityGroup", &params, &["InvalidGroup.Duplicate"]).await? {
        Some(made) => texts(&made, "groupId")?.into_iter().next(),
        None => balancer_group(controllers, name).await?,
    };
    let group = group.context("a security group has an id")?;
    let twice = ["InvalidPermission.Duplicate"];
    let world = rule(&group, "tcp", port, ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0"));
    controllers.query("ec2", "AuthorizeSecurityGroupIngress", &world, &twice).await?;
    let nodes = rule(&place.group, "-1", "-1", ("IpPermissions.1.Groups.1.GroupId", &group));
    controllers.query("ec2", "AuthorizeSecurityGroupIngress", &nodes, &twice).await?;
    Ok(group)
}

fn rule<'a>(group: &'a str, protocol: &'a str, port: &'a str, from: (&'a str, &'a str)) -> [(&'a str, &'a str); 5] {
    [
        ("GroupId", group),
        ("IpPermissions.1.IpProtocol", protocol),
        ("IpPermissions.1.FromPort", port),
        ("IpPermissions.1.ToPort", port),
        from,
    ]
}

async fn balancer_group(controllers: &Controllers, name: &str) -> anyhow::Result<Option<String>> {
    let group_name = format!("k8s-elb-{name}");
    let params = [("Filter.1.Name", "group-name"), ("Filter.1.Value.1", group_name.as_str())];
    let groups = controllers.aws.query("ec2", "DescribeSecurityGroups", &params).await?;
    // Its rules name groups, too: those of other ids come after its own.
    Ok(texts(&groups, "groupId")?.into_iter().next())
}

/// A target group and a listener for a network load balancer.
async fn listen(
    controllers: &Controllers,
    service: &Service,
    arn: &str,
    (vpc, outside, inside): (&str, &str, &str),
    tags: &[(&str, &str)],
) -> anyhow::Result<()> {
    let name = target_group_name(service);
    let params =
        [("Name", name.as_str()), ("Protocol", "TCP"), ("Port", inside), ("VpcId", vpc), ("TargetType", "instance")];
    let params: Vec<(&str, &str)> = params.into_iter().chain(tags.iter().copied()).collect();
    let answer = match controllers.query(ELB, "CreateTargetGroup", &params, &["DuplicateTargetGroupName"]).await? {
        Some(answer) => answer,
        None => controllers.aws.query(ELB, "DescribeTargetGroups", &[("Names.member.1", &name)]).await?,
    };
    let target = texts(&answer, "TargetGroupArn")?.into_iter().next().context("a target group has an ARN")?;
    let params = [
        ("LoadBalancerArn", arn),
        ("Protocol", "TCP"),
        ("Port", outside),
        ("DefaultActions.member.1.Type", "forward"),
        ("DefaultActions.member.1.TargetGroupArn", target.as_str()),
    ];
    controllers.query(ELB, "CreateListener", &params, &["DuplicateListener"]).await?;
    Ok(())
}

/// The load balancer of a Service, if there is one.
async fn described(controllers: &Controllers, service: &Service) -> anyhow::Result<Option<String>> {
    let (name, network) = (balancer_name(service), is_network(service));
    let member = if network { "Names.member.1" } else { "LoadBalancerNames.member.1" };
    controllers.query(ELB, "DescribeLoadBalancers", &[(member, &name)], &["LoadBalancerNotFound"]).await
}

/// Takes a load balancer away with what was made for it. Its security group goes once its interfaces are gone.
async fn unmake(controllers: &Controllers, service: &Service) -> anyhow::Result<()> {
    let name = balancer_name(service);
    if is_network(service) {
        if let Some(balancer) = described(controllers, service).await? {
            let arn = texts(&balancer, "LoadBalancerArn")?.into_iter().next().context("a load balancer has an ARN")?;
            controllers.aws.query(ELB, "DeleteLoadBalancer", &[("LoadBalancerArn", &arn)]).await?;
        }
        let group = target_group_name(service);
        let params = [("Names.member.1", group.as_str())];
        let targets = controllers.query(ELB, "DescribeTargetGroups", &params, &["TargetGroupNotFound"]).await?;
        for arn in targets.map(|answer| texts(&answer, "TargetGroupArn")).transpose()?.unwrap_or_default() {
            controllers.aws.query(ELB, "DeleteTargetGroup", &[("TargetGroupArn", &arn)]).await?;
        }
        return Ok(());
    }
    controllers.aws.query(ELB, "DeleteLoadBalancer", &[("LoadBalancerName", &name)]).await?;
    if let Some(group) = balancer_group(controllers, &name).await? {
        let place = place(controllers).await?;
        let nodes = rule(&place.group, "-1", "-1", ("IpPermissions.1.Groups.1.GroupId", &group));
        let gone = ["InvalidPermission.NotFound", "InvalidGroup.NotFound"];
        controllers.query("ec2", "RevokeSecurityGroupIngress", &nodes, &gone).await?;
        controllers.query("ec2", "DeleteSecurityGroup", &[("GroupId", &group)], &["InvalidGroup.NotFound"]).await?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_controller() {
        let service: Service = serde_json::from_value(json!({
            "metadata": { "namespace": "shopping", "name": "web", "uid": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0" },
        }))
        .unwrap();
        assert_eq!(balancer_name(&service), "a0f1e2d3c4b5a69788796a5b4c3d2e1f");
        assert_eq!(target_group_name(&service), "k8s-shopping-web-0f1e2d3c");
        assert!(!is_network(&service));
    }
}
