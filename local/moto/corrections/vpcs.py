"""A VPC goes last: with a subnet, a gateway, an endpoint, or a group, table or ACL that isn't its own, it can't be deleted.

moto looks at subnets, tables and VPN gateways alone. Source: Amazon EC2 API Reference, DeleteVpc ("You must detach or
delete all gateways and resources that are associated with the VPC before you can delete it"), DependencyViolation.
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.ec2.exceptions import DependencyViolationError


def apply() -> None:
    """Looks for what is in it first."""
    refusals.before("ec2", "DeleteVpc", _check)


def _check(response: Any, parameters: Any) -> None:
    backend, vpc = response.ec2_backend, parameters.get("VpcId")
    if _internet_gateways(backend, vpc) or any(holds(backend, vpc) for holds in (_endpoints, _groups, _acls, _subnets)):
        raise DependencyViolationError(f"The vpc '{vpc}' has dependencies and cannot be deleted.")


def _internet_gateways(backend: Any, vpc: str) -> bool:
    gateways = backend.internet_gateways.copy().values()
    egress_only = backend.egress_only_internet_gateways.copy().values()
    return any(gateway.vpc and gateway.vpc.id == vpc for gateway in gateways) or any(
        gateway.vpc_id == vpc for gateway in egress_only
    )


def _endpoints(backend: Any, vpc: str) -> bool:
    return any(endpoint.vpc_id == vpc for endpoint in backend.vpc_end_points.copy().values())


def _groups(backend: Any, vpc: str) -> bool:
    return any(not group.is_default for group in backend.groups.get(vpc, {}).copy().values())


def _acls(backend: Any, vpc: str) -> bool:
    acls = backend.network_acls.copy().values()
    return any(acl.vpc_id == vpc and not acl.default for acl in acls)


def _subnets(backend: Any, vpc: str) -> bool:
    return any(subnet.vpc_id == vpc for zone in backend.subnets.copy().values() for subnet in zone.copy().values())
