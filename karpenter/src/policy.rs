//! IAM and queue policies of a Karpenter controller, the trust in its service account, and the events it listens to.
//!
//! The statements carry the Sids of Karpenter's own reference, so that an audit can lay one beside the other; they are
//! split by purpose because one managed policy may not exceed [`MANAGED_POLICY_CHARACTERS`].

use serde_json::{Value, json};

/// IAM's limit on a managed policy, white space not counted (IAM and STS quotas).
pub const MANAGED_POLICY_CHARACTERS: usize = 6_144;

/// The service account of the controller, the one that its role trusts.
pub const SERVICE_ACCOUNT: &str = "karpenter";

/// The audience of every token that STS takes from an EKS cluster.
pub const AUDIENCE: &str = "sts.amazonaws.com";

/// What the controller's policies are bound to.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Twelve digits.
    pub account: &'a str,
    /// For example `eu-west-1`.
    pub region: &'a str,
    /// The EKS cluster's name.
    pub cluster: &'a str,
    /// The EKS cluster's ARN; its partition is used for every other ARN.
    pub cluster_arn: &'a str,
    /// The interruption queue's ARN.
    pub queue_arn: &'a str,
    /// The role that the controller hands to the nodes it launches.
    pub node_role_arn: &'a str,
}

/// One managed policy of the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerPolicy {
    /// Kebab-case purpose; part of the policy's name.
    pub part: &'static str,
    /// The policy document.
    pub document: Value,
}

/// A rule that puts one kind of event on the interruption queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterruptionRule {
    /// Kebab-case kind; part of the rule's name.
    pub kind: &'static str,
    /// EventBridge event pattern.
    pub pattern: Value,
}

/// The six managed policies of a controller, each within [`MANAGED_POLICY_CHARACTERS`].
#[must_use]
pub fn controller_policies(scope: &Scope<'_>) -> Vec<ControllerPolicy> {
    [
        ("node-lifecycle", node_lifecycle(scope)),
        ("iam-integration", iam_integration(scope)),
        ("eks-integration", eks_integration(scope)),
        ("interruption", interruption(scope)),
        ("zonal-shift", zonal_shift(scope)),
        ("resource-discovery", resource_discovery(scope)),
    ]
    .map(|(part, statements)| ControllerPolicy { part, document: document(&statements) })
    .into()
}

/// The characters of a policy as IAM counts them: the compact document.
#[must_use]
pub fn characters(document: &Value) -> usize {
    document.to_string().chars().count()
}

/// The trust document of a controller's role: exactly one service account of exactly one cluster.
///
/// `issuer` is the cluster's issuer URL, with or without `https://`.
#[must_use]
pub fn web_identity_trust(provider_arn: &str, issuer: &str, namespace: &str) -> Value {
    let issuer = issuer.trim_start_matches("https://");
    document(&json!([{
        "Sid": "AllowKarpenterServiceAccount",
        "Effect": "Allow",
        "Principal": { "Federated": provider_arn },
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": { "StringEquals": {
            format!("{issuer}:aud"): AUDIENCE,
            format!("{issuer}:sub"): format!("system:serviceaccount:{namespace}:{SERVICE_ACCOUNT}"),
        } },
    }]))
}

/// The trust document of a controller's role with EKS Pod Identity: the agent alone, which an association binds to one
/// service account of one cluster.
#[must_use]
pub fn pod_identity_trust() -> Value {
    document(&json!([{
        "Sid": "AllowPodIdentityAgent",
        "Effect": "Allow",
        "Principal": { "Service": crate::identity::POD_IDENTITY_SERVICE },
        "Action": crate::identity::POD_IDENTITY_ACTIONS,
    }]))
}

/// The interruption queue's policy: EventBridge and SQS itself may send; nobody may speak to it in the clear.
#[must_use]
pub fn queue_policy(queue_arn: &str) -> Value {
    document(&json!([
        {
            "Sid": "EC2InterruptionPolicy",
            "Effect": "Allow",
            "Principal": { "Service": ["events.amazonaws.com", "sqs.amazonaws.com"] },
            "Action": "sqs:SendMessage",
            "Resource": queue_arn,
        },
        {
            "Sid": "DenyHTTP",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "sqs:*",
            "Resource": queue_arn,
            "Condition": { "Bool": { "aws:SecureTransport": "false" } },
        },
    ]))
}

/// The five kinds of event that make Karpenter replace a node before it goes away.
#[must_use]
pub fn interruption_rules() -> [InterruptionRule; 5] {
    [
        ("scheduled-change", "aws.health", "AWS Health Event"),
        ("spot-interruption", "aws.ec2", "EC2 Spot Instance Interruption Warning"),
        ("rebalance", "aws.ec2", "EC2 Instance Rebalance Recommendation"),
        ("state-change", "aws.ec2", "EC2 Instance State-change Notification"),
        ("capacity-reservation", "aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning"),
    ]
    .map(|(kind, source, detail_type)| InterruptionRule {
        kind,
        pattern: json!({ "source": [source], "detail-type": [detail_type] }),
    })
}

fn document(statements: &Value) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}

impl Scope<'_> {
    fn partition(&self) -> &str {
        self.cluster_arn.split(':').nth(1).unwrap_or("aws")
    }

    /// ARNs of EC2 resource types in any account, since shared subnets and images belong to others.
    fn ec2(&self, types: &[&str]) -> Value {
        let prefix = format!("arn:{}:ec2:{}", self.partition(), self.region);
        types.iter().map(|kind| Value::String(format!("{prefix}:*:{kind}/*"))).collect()
    }

    fn instance_profiles(&self) -> String {
        format!("arn:{}:iam::{}:instance-profile/*", self.partition(), self.account)
    }

    fn owned(&self, tag: &str) -> String {
        format!("aws:{tag}/kubernetes.io/cluster/{}", self.cluster)
    }
}

fn node_lifecycle(scope: &Scope<'_>) -> Value {
    let own_resource = json!({
        "StringEquals": { scope.owned("ResourceTag"): "owned" },
        "StringLike": { "aws:ResourceTag/karpenter.sh/nodepool": "*" },
    });
    let launched = ["fleet", "instance", "volume", "network-interface", "launch-template", "spot-instances-request"];
    let mut given = scope.ec2(&["security-group", "subnet", "capacity-reservation", "placement-group"]);
    if let Some(list) = given.as_array_mut() {
        for kind in ["image", "snapshot"] {
            list.push(json!(format!("arn:{}:ec2:{}::{kind}/*", scope.partition(), scope.region)));
        }
    }
    json!([
        {
            "Sid": "AllowScopedEC2InstanceAccessActions",
            "Effect": "Allow",
            "Action": ["ec2:RunInstances", "ec2:CreateFleet"],
            "Resource": given,
        },
        {
            "Sid": "AllowScopedEC2LaunchTemplateAccessActions",
            "Effect": "Allow",
            "Action": ["ec2:RunInstances", "ec2:CreateFleet"],
            "Resource": scope.ec2(&["launch-template"]),
            "Condition": own_resource,
        },
        {
            "Sid": "AllowScopedEC2InstanceActionsWithTags",
            "Effect": "Allow",
            "Action": ["ec2:RunInstances", "ec2:CreateFleet", "ec2:CreateLaunchTemplate"],
            "Resource": scope.ec2(&launched),
            "Condition": {
                "StringEquals": {
                    scope.owned("RequestTag"): "owned",
                    "aws:RequestTag/eks:eks-cluster-name": scope.cluster,
                },
                "StringLike": { "aws:RequestTag/karpenter.sh/nodepool": "*" },
            },
        },
        {
            "Sid": "AllowScopedResourceCreationTagging",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": scope.ec2(&launched),
            "Condition": {
                "StringEquals": {
                    scope.owned("RequestTag"): "owned",
                    "aws:RequestTag/eks:eks-cluster-name": scope.cluster,
                    "ec2:CreateAction": ["RunInstances", "CreateFleet", "CreateLaunchTemplate"],
                },
                "StringLike": { "aws:RequestTag/karpenter.sh/nodepool": "*" },
            },
        },
        {
            "Sid": "AllowScopedResourceTagging",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": scope.ec2(&["instance"]),
            "Condition": {
                "StringEquals": { scope.owned("ResourceTag"): "owned" },
                "StringLike": { "aws:ResourceTag/karpenter.sh/nodepool": "*" },
                "StringEqualsIfExists": { "aws:RequestTag/eks:eks-cluster-name": scope.cluster },
                "ForAllValues:StringEquals": {
                    "aws:TagKeys": ["eks:eks-cluster-name", "karpenter.sh/nodeclaim", "Name"],
                },
            },
        },
        {
            "Sid": "AllowScopedDeletion",
            "Effect": "Allow",
            "Action": ["ec2:TerminateInstances", "ec2:DeleteLaunchTemplate"],
            "Resource": scope.ec2(&["instance", "launch-template"]),
            "Condition": own_resource,
        },
    ])
}

fn iam_integration(scope: &Scope<'_>) -> Value {
    json!([
        {
            "Sid": "AllowPassingInstanceRole",
            "Effect": "Allow",
            "Action": "iam:PassRole",
            "Resource": scope.node_role_arn,
            "Condition": {
                "StringEquals": { "iam:PassedToService": ["ec2.amazonaws.com", "ec2.amazonaws.com.cn"] },
            },
        },
        {
            "Sid": "AllowScopedInstanceProfileCreationActions",
            "Effect": "Allow",
            "Action": "iam:CreateInstanceProfile",
            "Resource": scope.instance_profiles(),
            "Condition": {
                "StringEquals": {
                    scope.owned("RequestTag"): "owned",
                    "aws:RequestTag/eks:eks-cluster-name": scope.cluster,
                    "aws:RequestTag/topology.kubernetes.io/region": scope.region,
                },
                "StringLike": { "aws:RequestTag/karpenter.k8s.aws/ec2nodeclass": "*" },
            },
        },
        {
            "Sid": "AllowScopedInstanceProfileTagActions",
            "Effect": "Allow",
            "Action": "iam:TagInstanceProfile",
            "Resource": scope.instance_profiles(),
            "Condition": {
                "StringEquals": {
                    scope.owned("ResourceTag"): "owned",
                    "aws:ResourceTag/topology.kubernetes.io/region": scope.region,
                    scope.owned("RequestTag"): "owned",
                    "aws:RequestTag/eks:eks-cluster-name": scope.cluster,
                    "aws:RequestTag/topology.kubernetes.io/region": scope.region,
                },
                "StringLike": {
                    "aws:ResourceTag/karpenter.k8s.aws/ec2nodeclass": "*",
                    "aws:RequestTag/karpenter.k8s.aws/ec2nodeclass": "*",
                },
            },
        },
        {
            "Sid": "AllowScopedInstanceProfileActions",
            "Effect": "Allow",
            "Action": [
                "iam:AddRoleToInstanceProfile",
                "iam:RemoveRoleFromInstanceProfile",
                "iam:DeleteInstanceProfile",
            ],
            "Resource": scope.instance_profiles(),
            "Condition": {
                "StringEquals": {
                    scope.owned("ResourceTag"): "owned",
                    "aws:ResourceTag/topology.kubernetes.io/region": scope.region,
                },
                "StringLike": { "aws:ResourceTag/karpenter.k8s.aws/ec2nodeclass": "*" },
            },
        },
    ])
}

fn eks_integration(scope: &Scope<'_>) -> Value {
    json!([{
        "Sid": "AllowAPIServerEndpointDiscovery",
        "Effect": "Allow",
        "Action": "eks:DescribeCluster",
        "Resource": scope.cluster_arn,
    }])
}

fn interruption(scope: &Scope<'_>) -> Value {
    json!([{
        "Sid": "AllowInterruptionQueueActions",
        "Effect": "Allow",
        "Action": ["sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage"],
        "Resource": scope.queue_arn,
    }])
}

fn zonal_shift(scope: &Scope<'_>) -> Value {
    json!([{
        "Sid": "AllowZonalShiftStatusReadOnly",
        "Effect": "Allow",
        "Action": "arc-zonal-shift:GetManagedResource",
        "Resource": "*",
        "Condition": { "StringEquals": { "arc-zonal-shift:ResourceIdentifier": scope.cluster_arn } },
    }])
}

fn resource_discovery(scope: &Scope<'_>) -> Value {
    json!([
        {
            "Sid": "AllowRegionalReadActions",
            "Effect": "Allow",
            "Action": [
                "ec2:DescribeCapacityReservations",
                "ec2:DescribeImages",
                "ec2:DescribeInstances",
                "ec2:DescribeInstanceStatus",
                "ec2:DescribeInstanceTypeOfferings",
                "ec2:DescribeInstanceTypes",
                "ec2:DescribeLaunchTemplates",
                "ec2:DescribePlacementGroups",
                "ec2:DescribeSecurityGroups",
                "ec2:DescribeSpotPriceHistory",
                "ec2:DescribeSubnets",
            ],
            "Resource": "*",
            "Condition": { "StringEquals": { "aws:RequestedRegion": scope.region } },
        },
        {
            "Sid": "AllowSSMReadActions",
            "Effect": "Allow",
            "Action": "ssm:GetParameter",
            "Resource": format!("arn:{}:ssm:{}::parameter/aws/service/*", scope.partition(), scope.region),
        },
        {
            "Sid": "AllowPricingReadActions",
            "Effect": "Allow",
            "Action": "pricing:GetProducts",
            "Resource": "*",
        },
        {
            "Sid": "AllowUnscopedInstanceProfileListAction",
            "Effect": "Allow",
            "Action": "iam:ListInstanceProfiles",
            "Resource": "*",
        },
        {
            "Sid": "AllowInstanceProfileReadActions",
            "Effect": "Allow",
            "Action": "iam:GetInstanceProfile",
            "Resource": scope.instance_profiles(),
        },
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn policies(cluster: &str, region: &str) -> Vec<ControllerPolicy> {
        controller_policies(&Scope {
            account: "111122223333",
            region,
            cluster,
            cluster_arn: &format!("arn:aws:eks:{region}:111122223333:cluster/{cluster}"),
            queue_arn: &format!("arn:aws:sqs:{region}:111122223333:slipway-eks-{cluster}"),
            node_role_arn: "arn:aws:iam::111122223333:role/slipway-eks-demo-eu-west-1-node",
        })
    }

    fn sids(policy: &ControllerPolicy) -> Vec<&str> {
        policy.document["Statement"].as_array().unwrap().iter().map(|s| s["Sid"].as_str().unwrap()).collect()
    }

    #[test]
    fn every_part_fits_a_managed_policy_even_for_the_longest_name_and_region() {
        for policy in policies(&"n".repeat(100), "ap-southeast-10") {
            let characters = characters(&policy.document);
            assert!(characters < MANAGED_POLICY_CHARACTERS, "{} has {characters}", policy.part);
        }
    }

    #[test]
    fn six_parts_carry_the_reference_sids_each_once() {
        let policies = policies("demo", "eu-west-1");
        let parts: Vec<_> = policies.iter().map(|policy| (policy.part, sids(policy).len())).collect();
        assert_eq!(
            parts,
            [
                ("node-lifecycle", 6),
                ("iam-integration", 4),
                ("eks-integration", 1),
                ("interruption", 1),
                ("zonal-shift", 1),
                ("resource-discovery", 5),
            ]
        );
        let mut all: Vec<_> = policies.iter().flat_map(sids).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 18);
    }

    #[test]
    fn whatever_changes_something_is_bound_to_the_cluster() {
        for policy in policies("demo", "eu-west-1") {
            for statement in policy.document["Statement"].as_array().unwrap() {
                let actions = statement["Action"].to_string();
                let reads = ["Describe", "Get", "List", "Receive"].iter().any(|verb| actions.contains(verb));
                // What RunInstances is given (images, subnets, groups) has other owners and no tag of ours.
                let given = statement["Sid"] == "AllowScopedEC2InstanceAccessActions";
                assert!(
                    reads || given || statement.to_string().contains("demo"),
                    "{} is not bound to the cluster",
                    statement["Sid"]
                );
            }
        }
    }

    #[test]
    fn arns_follow_the_partition_of_the_cluster() {
        let policies = controller_policies(&Scope {
            account: "111122223333",
            region: "cn-north-1",
            cluster: "demo",
            cluster_arn: "arn:aws-cn:eks:cn-north-1:111122223333:cluster/demo",
            queue_arn: "arn:aws-cn:sqs:cn-north-1:111122223333:demo",
            node_role_arn: "arn:aws-cn:iam::111122223333:role/node",
        });
        for policy in policies {
            assert!(!policy.document.to_string().contains("arn:aws:"), "{}", policy.part);
        }
    }

    #[test]
    fn trust_names_one_service_account_and_the_audience() {
        let provider = "arn:aws:iam::111122223333:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/ABC";
        let trust = web_identity_trust(provider, "https://oidc.eks.eu-west-1.amazonaws.com/id/ABC", "karpenter");
        assert_eq!(trust["Statement"][0]["Principal"], json!({ "Federated": provider }));
        assert_eq!(
            trust["Statement"][0]["Condition"],
            json!({ "StringEquals": {
                "oidc.eks.eu-west-1.amazonaws.com/id/ABC:aud": "sts.amazonaws.com",
                "oidc.eks.eu-west-1.amazonaws.com/id/ABC:sub": "system:serviceaccount:karpenter:karpenter",
            } })
        );
        assert!(characters(&trust) < 2_048, "the limit of a trust policy");
    }

    #[test]
    fn queue_refuses_plain_http_and_takes_events() {
        let policy = queue_policy("arn:aws:sqs:eu-west-1:111122223333:slipway-eks-demo");
        assert_eq!(
            policy["Statement"][0]["Principal"]["Service"],
            json!(["events.amazonaws.com", "sqs.amazonaws.com"])
        );
        assert_eq!(policy["Statement"][1]["Effect"], "Deny");
        assert_eq!(policy["Statement"][1]["Condition"]["Bool"]["aws:SecureTransport"], "false");
    }

    /// EventBridge's matching for the patterns used here: every key's list holds the event's value.
    fn matches(pattern: &Value, event: &Value) -> bool {
        pattern.as_object().unwrap().iter().all(|(key, wanted)| wanted.as_array().unwrap().contains(&event[key]))
    }

    fn event(source: &str, detail_type: &str, detail: &Value) -> Value {
        json!({
            "version": "0", "id": "12345678-1234-1234-1234-123456789012", "detail-type": detail_type,
            "source": source, "account": "111122223333", "time": "2026-11-22T09:00:00Z", "region": "eu-west-1",
            "resources": ["arn:aws:ec2:eu-west-1:111122223333:instance/i-0b662ef9931388ba0"], "detail": detail,
        })
    }

    #[test]
    fn each_event_that_ends_an_instance_is_caught_by_exactly_one_rule() {
        // Bodies as in the EC2 and AWS Health user guides.
        let instance = json!({ "instance-id": "i-0b662ef9931388ba0" });
        let events = [
            (
                "scheduled-change",
                event(
                    "aws.health",
                    "AWS Health Event",
                    &json!({
                        "service": "EC2", "eventTypeCategory": "scheduledChange",
                        "eventTypeCode": "AWS_EC2_PERSISTENT_INSTANCE_RETIREMENT_SCHEDULED",
                        "affectedEntities": [{ "entityValue": "i-0b662ef9931388ba0" }],
                    }),
                ),
            ),
            (
                "spot-interruption",
                event(
                    "aws.ec2",
                    "EC2 Spot Instance Interruption Warning",
                    &json!({ "instance-id": "i-0b662ef9931388ba0", "instance-action": "terminate" }),
                ),
            ),
            ("rebalance", event("aws.ec2", "EC2 Instance Rebalance Recommendation", &instance)),
            (
                "state-change",
                event(
                    "aws.ec2",
                    "EC2 Instance State-change Notification",
                    &json!({ "instance-id": "i-0b662ef9931388ba0", "state": "stopping" }),
                ),
            ),
            (
                "capacity-reservation",
                event("aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning", &instance),
            ),
        ];
        let rules = interruption_rules();
        for (kind, event) in &events {
            let caught: Vec<_> =
                rules.iter().filter(|rule| matches(&rule.pattern, event)).map(|rule| rule.kind).collect();
            assert_eq!(caught, [*kind]);
        }
        let unrelated = event("aws.ec2", "EBS Volume Notification", &json!({}));
        assert!(!rules.iter().any(|rule| matches(&rule.pattern, &unrelated)));
    }
}
