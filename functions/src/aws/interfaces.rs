//! Network interfaces, for a person who wonders what holds a security group, a subnet or a VPC.

use aws_sdk_ec2::types::{Filter, NetworkInterface};

use super::error::During as _;
use crate::Context;
use slipway_statemachine::StepError;

/// What fits a filter, each as `eni-1 ("Amazon EKS demo", in-use, of i-1)`.
///
/// # Errors
/// What EC2 refused.
pub async fn described(cx: &Context, filter: Filter) -> Result<Vec<String>, StepError> {
    let call = cx.aws.ec2().describe_network_interfaces().filters(filter);
    let found: Result<Vec<NetworkInterface>, _> = call.into_paginator().items().send().collect().await;
    Ok(found.during("ec2:DescribeNetworkInterfaces")?.iter().map(describe).collect())
}

fn describe(interface: &NetworkInterface) -> String {
    let attachment = interface.attachment();
    let owner = attachment
        .and_then(|attachment| attachment.instance_id())
        .or_else(|| interface.requester_id())
        .or_else(|| attachment.and_then(|attachment| attachment.instance_owner_id()))
        .or_else(|| interface.owner_id())
        .unwrap_or("nobody known");
    format!(
        "{} (\"{}\", {}, of {owner})",
        interface.network_interface_id().unwrap_or_default(),
        interface.description().unwrap_or_default(),
        interface.status().map_or("", |status| status.as_str()),
    )
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{NetworkInterfaceAttachment, NetworkInterfaceStatus};

    use super::*;

    #[test]
    fn an_interface_says_whose_it_is() {
        let interface = NetworkInterface::builder()
            .network_interface_id("eni-1")
            .description("ELB net/web/1")
            .status(NetworkInterfaceStatus::InUse)
            .requester_id("amazon-elb")
            .owner_id("111122223333");
        assert_eq!(describe(&interface.clone().build()), "eni-1 (\"ELB net/web/1\", in-use, of amazon-elb)");
        let attached = NetworkInterfaceAttachment::builder().instance_id("i-1").build();
        assert!(describe(&interface.attachment(attached).build()).ends_with("of i-1)"));
    }
}
