//! How a resource is changed where it stands: what the handlers of the registry call for each property.

use serde_json::{Map, Value, json};

use super::intrinsics::{Made, text};
use super::kinds::Kind;
use super::resource::{ATTACHMENTS, Form, Order, all, first, is_absent, property, strings};
use super::validation_error;
use crate::gateway::call::AwsError;

/// A resource as it was made or changed last.
pub(super) struct Before<'a> {
    /// Evaluated.
    pub(super) properties: &'a Map<String, Value>,
    /// Its own, the stack's and CloudFormation's.
    pub(super) tags: &'a [(String, String)],
}

impl Order<'_> {
    /// Changes what differs. `made` may get a new id, where a change of EC2's is one (associations).
    pub(super) async fn update(&self, before: &Before<'_>, made: &mut Made) -> Result<(), AwsError> {
        self.kind.check(self.logical_id, self.properties)?;
        let changed = |name: &str| before.properties.get(name) != self.properties.get(name);
        match self.kind {
            Kind::Vpc => self.update_vpc(&changed, made).await?,
            Kind::Subnet if changed("MapPublicIpOnLaunch") => {
                let public = self.properties.get("MapPublicIpOnLaunch").map_or_else(|| "false".to_owned(), text);
                let form = Form::new().with("SubnetId", &made.physical_id).with("MapPublicIpOnLaunch.Value", public);
                form.send(self.aws, "ec2", "ModifySubnetAttribute").await?;
            }
            Kind::VpcGatewayAttachment => {
                let names = ["InternetGatewayId", "VpcId"];
                let detach = Form::new().properties(before.properties, &names);
                detach.send(self.aws, "ec2", "DetachInternetGateway").await?;
                Form::new().properties(self.properties, &names).send(self.aws, "ec2", "AttachInternetGateway").await?;
            }
            Kind::Route => {
                let names =
                    ["RouteTableId", "DestinationCidrBlock", "DestinationIpv6CidrBlock", "GatewayId", "NatGatewayId"];
                Form::new().properties(self.properties, &names).send(self.aws, "ec2", "ReplaceRoute").await?;
            }
            Kind::SubnetRouteTableAssociation => {
                let form = Form::new()
                    .with("AssociationId", &made.physical_id)
                    .with("RouteTableId", property(self.properties, "RouteTableId")?);
                let answer = form.send(self.aws, "ec2", "ReplaceRouteTableAssociation").await?;
                made.physical_id = first(&answer, "newAssociationId")?;
            }
            Kind::NetworkAclEntry => {
                self.acl_entry().send(self.aws, "ec2", "ReplaceNetworkAclEntry").await?;
            }
            Kind::VpcEndpoint => self.update_endpoint(before, &changed, made).await?,
            Kind::LogGroup => self.update_log_group(&changed, made).await?,
            Kind::Role => self.update_role(before, &changed, made).await?,
            Kind::ManagedPolicy => self.update_policy(before, &changed, made).await?,
            _ => {}
        }
        self.update_tags(before, made).await
    }

    async fn update_vpc(&self, changed: &(dyn Fn(&str) -> bool + Sync), made: &Made) -> Result<(), AwsError> {
        for (name, default) in [("EnableDnsSupport", "true"), ("EnableDnsHostnames", "false")] {
            if changed(name) {
                let value = self.properties.get(name).map_or_else(|| default.to_owned(), text);
                let form = Form::new().with("VpcId", &made.physical_id).with(&format!("{name}.Value"), value);
                form.send(self.aws, "ec2", "ModifyVpcAttribute").await?;
            }
        }
        Ok(())
    }

    async fn update_endpoint(
        &self,
        before: &Before<'_>,
        changed: &(dyn Fn(&str) -> bool + Sync),
        made: &Made,
    ) -> Result<(), AwsError> {
        let mut form = Form::new().with("VpcEndpointId", &made.physical_id);
        for name in ["PolicyDocument", "PrivateDnsEnabled"] {
            if changed(name) {
                form = form.properties(self.properties, &[name]);
            }
        }
        let lists =
            [("RouteTableIds", "RouteTableId"), ("SubnetIds", "SubnetId"), ("SecurityGroupIds", "SecurityGroupId")];
        for (list, member) in lists {
            let (old, new) = (strings(before.properties.get(list)), strings(self.properties.get(list)));
            let without = |of: &[String], other: &[String]| -> Value {
                of.iter().filter(|id| !other.contains(id)).map(|id| Value::from(id.clone())).collect()
            };
            form = form
                .list(&format!("Add{member}"), Some(&without(&new, &old)))
                .list(&format!("Remove{member}"), Some(&without(&old, &new)));
        }
        form.send(self.aws, "ec2", "ModifyVpcEndpoint").await.map(drop)
    }

    async fn update_log_group(&self, changed: &(dyn Fn(&str) -> bool + Sync), made: &Made) -> Result<(), AwsError> {
        let name = &made.physical_id;
        if changed("RetentionInDays") {
            if let Some(days) = self.properties.get("RetentionInDays") {
                let days: u32 =
                    text(days).parse().map_err(|_| validation_error("RetentionInDays must be a whole number"))?;
                let body = json!({"logGroupName": name, "retentionInDays": days});
                self.aws.json("logs", "Logs_20140328.PutRetentionPolicy", &body).await?;
            } else {
                let body = json!({"logGroupName": name});
                self.aws.json("logs", "Logs_20140328.DeleteRetentionPolicy", &body).await?;
            }
        }
        if changed("KmsKeyId") {
            let (action, body) = match self.properties.get("KmsKeyId") {
                Some(key) => ("AssociateKmsKey", json!({"logGroupName": name, "kmsKeyId": key})),
                None => ("DisassociateKmsKey", json!({"logGroupName": name})),
            };
            self.aws.json("logs", &format!("Logs_20140328.{action}"), &body).await?;
        }
        Ok(())
    }

    async fn update_role(
        &self,
        before: &Before<'_>,
        changed: &(dyn Fn(&str) -> bool + Sync),
        made: &Made,
    ) -> Result<(), AwsError> {
        let role = || Form::new().with("RoleName", &made.physical_id);
        if changed("AssumeRolePolicyDocument") {
            let document = self.properties.get("AssumeRolePolicyDocument").map(Value::to_string).unwrap_or_default();
            role().with("PolicyDocument", document).send(self.aws, "iam", "UpdateAssumeRolePolicy").await?;
        }
        if changed("Description") || changed("MaxSessionDuration") {
            let form = role().properties(self.properties, &["Description", "MaxSessionDuration"]);
            form.send(self.aws, "iam", "UpdateRole").await?;
        }
        if changed("PermissionsBoundary") {
            let form = role().properties(self.properties, &["PermissionsBoundary"]);
            let verb = if self.properties.contains_key("PermissionsBoundary") { "Put" } else { "Delete" };
            form.send(self.aws, "iam", &format!("{verb}RolePermissionsBoundary")).await?;
        }
        let arns = "ManagedPolicyArns";
        let (old, new) = (strings(before.properties.get(arns)), strings(self.properties.get(arns)));
        for arn in new.iter().filter(|arn| !old.contains(arn)) {
            role().with("PolicyArn", arn).send(self.aws, "iam", "AttachRolePolicy").await?;
        }
        for arn in old.iter().filter(|arn| !new.contains(arn)) {
            role().with("PolicyArn", arn).send(self.aws, "iam", "DetachRolePolicy").await?;
        }
        let (old, new) = (inline(before.properties), inline(self.properties));
        for policy in &new {
            if !old.contains(policy) {
                let form = role().properties(policy, &["PolicyName", "PolicyDocument"]);
                form.send(self.aws, "iam", "PutRolePolicy").await?;
            }
        }
        for policy in old {
            if !new.iter().any(|kept| kept.get("PolicyName") == policy.get("PolicyName")) {
                role().properties(policy, &["PolicyName"]).send(self.aws, "iam", "DeleteRolePolicy").await?;
            }
        }
        Ok(())
    }

    async fn update_policy(
        &self,
        before: &Before<'_>,
        changed: &(dyn Fn(&str) -> bool + Sync),
        made: &Made,
    ) -> Result<(), AwsError> {
        let arn = &made.physical_id;
        if changed("PolicyDocument") {
            // A policy keeps five versions; the handler keeps one.
            let versions = Form::new().with("PolicyArn", arn).send(self.aws, "iam", "ListPolicyVersions").await?;
            let form = Form::new().with("PolicyArn", arn).with("SetAsDefault", "true");
            let form = form.properties(self.properties, &["PolicyDocument"]);
            form.send(self.aws, "iam", "CreatePolicyVersion").await?;
            for version in all(&versions, "VersionId") {
                let form = Form::new().with("PolicyArn", arn).with("VersionId", version);
                form.send(self.aws, "iam", "DeletePolicyVersion").await?;
            }
        }
        for (list, action, parameter) in ATTACHMENTS {
            let (old, new) = (strings(before.properties.get(list)), strings(self.properties.get(list)));
            for name in new.iter().filter(|name| !old.contains(name)) {
                let form = Form::new().with(parameter, name).with("PolicyArn", arn);
                form.send(self.aws, "iam", &format!("Attach{action}")).await?;
            }
            for name in old.iter().filter(|name| !new.contains(name)) {
                let form = Form::new().with(parameter, name).with("PolicyArn", arn);
                match form.send(self.aws, "iam", &format!("Detach{action}")).await {
                    Err(error) if !is_absent(&error.code) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    async fn update_tags(&self, before: &Before<'_>, made: &Made) -> Result<(), AwsError> {
        let set: Vec<(String, String)> = self.tags.iter().filter(|tag| !before.tags.contains(tag)).cloned().collect();
        let there = |key: &str| self.tags.iter().any(|(kept, _)| kept == key);
        let lost: Vec<&str> = before.tags.iter().map(|(key, _)| key.as_str()).filter(|key| !there(key)).collect();
        let keys: Value = lost.iter().map(|key| Value::from(*key)).collect();
        match self.kind {
            Kind::Role => {
                let role = || Form::new().with("RoleName", &made.physical_id);
                if !set.is_empty() {
                    role().tags("Tags.member", &set).send(self.aws, "iam", "TagRole").await?;
                }
                if !lost.is_empty() {
                    role().list("TagKeys.member", Some(&keys)).send(self.aws, "iam", "UntagRole").await?;
                }
            }
            Kind::LogGroup => {
                let arn = made.attributes.get("Arn").map_or("", |arn| arn.trim_end_matches(":*"));
                if !set.is_empty() {
                    let tags: Map<String, Value> = set.into_iter().map(|(key, value)| (key, value.into())).collect();
                    let body = json!({"resourceArn": arn, "tags": tags});
                    self.aws.json("logs", "Logs_20140328.TagResource", &body).await?;
                }
                if !lost.is_empty() {
                    let body = json!({"resourceArn": arn, "tagKeys": keys});
                    self.aws.json("logs", "Logs_20140328.UntagResource", &body).await?;
                }
            }
            _ if self.kind.taggable() => {
                let id = match self.kind {
                    Kind::Eip => made.attributes.get("AllocationId").map_or("", String::as_str),
                    _ => made.physical_id.as_str(),
                };
                let of = || Form::new().with("ResourceId.1", id);
                if !set.is_empty() {
                    of().tags("Tag", &set).send(self.aws, "ec2", "CreateTags").await?;
                }
                if !lost.is_empty() {
                    let form =
                        lost.iter().zip(1..).fold(of(), |form, (key, n)| form.with(&format!("Tag.{n}.Key"), *key));
                    form.send(self.aws, "ec2", "DeleteTags").await?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn inline(properties: &Map<String, Value>) -> Vec<&Map<String, Value>> {
    let policies = properties.get("Policies").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    policies.iter().filter_map(Value::as_object).collect()
}
