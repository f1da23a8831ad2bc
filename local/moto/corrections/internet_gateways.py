"""An internet gateway stays attached while public addresses are mapped in its VPC, and is deleted only when detached.

moto detaches it under them. Source: Amazon EC2 API Reference, DetachInternetGateway ("The VPC must not contain any
running instances with Elastic IP addresses or public IPv4 addresses") and DeleteInternetGateway; DependencyViolation.
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.ec2.exceptions import DependencyViolationError


def apply() -> None:
    """Looks at the VPC's interfaces before the gateway is detached."""
    refusals.before("ec2", "DetachInternetGateway", _check_detach)
    refusals.before("ec2", "DeleteInternetGateway", _check_delete)


def _check_detach(response: Any, parameters: Any) -> None:
    vpc = parameters.get("VpcId")
    interfaces = response.ec2_backend.enis.copy().values()
    if any(interface.public_ip and interface.vpc_id == vpc for interface in interfaces):
        message = f"Network {vpc} has some mapped public address(es). Please unmap those public address(es) before "
        raise DependencyViolationError(message + "detaching the gateway.")


def _check_delete(response: Any, parameters: Any) -> None:
    identity = parameters.get("InternetGatewayId")
    gateway = response.ec2_backend.internet_gateways.get(identity)
    if gateway and gateway.vpc:
        raise DependencyViolationError(f"The internetGateway '{identity}' has dependencies and cannot be deleted.")
