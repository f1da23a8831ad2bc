"""A NAT gateway takes its time to go, keeps its address and interface until then, and its tags can be filtered by.

moto calls it deleted at once, leaves address and interface to it for ever, matches everything by a tag filter, and fails
at an unknown id. Source: Amazon EC2 API Reference, DeleteNatGateway ("disassociates its Elastic IP address, but does not
release the address from your account"), NatGateway (states deleting, deleted), DescribeNatGateways; "Error codes",
NatGatewayNotFound. It is there at once, since nothing here measures how long AWS takes to make one.
"""

from __future__ import annotations

from typing import Any

import later
import refusals
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.nat_gateways import NatGateway, NatGatewayBackend
from moto.ec2.utils import generic_filter

# AWS's usual time, and for how long a deleted one is still described (VPC User Guide, "Work with NAT gateways").
_DELETES = 40
_DESCRIBED = 3600


def apply() -> None:
    """Replaces how gateways are found and how they go."""
    refusals.before("ec2", "DescribeNatGateways", _check_described)
    refusals.before("ec2", "DeleteNatGateway", _check_deleted)
    NatGatewayBackend.describe_nat_gateways = _describe
    NatGatewayBackend.delete_nat_gateway = _delete
    create = NatGatewayBackend.create_nat_gateway

    def create_nat_gateway(self: Any, *args: Any, **kwargs: Any) -> Any:
        gateway = create(self, *args, **kwargs)
        interface = gateway._eni
        interface.status, interface.requester_managed = "in-use", True
        interface.interface_type, interface.description = "nat_gateway", f"Interface for NAT Gateway {gateway.id}"
        return gateway

    NatGatewayBackend.create_nat_gateway = create_nat_gateway
    get_filter_value = NatGateway.get_filter_value

    def value(self: Any, name: str, method: str | None = None) -> Any:
        return self.id if name == "nat-gateway-id" else get_filter_value(self, name, method)

    NatGateway.get_filter_value = value


def _check_described(response: Any, parameters: Any) -> None:
    for identity in parameters.get("NatGatewayIds") or []:
        _find(response.ec2_backend, identity)


def _check_deleted(response: Any, parameters: Any) -> None:
    _find(response.ec2_backend, parameters.get("NatGatewayId"))


def _find(backend: Any, identity: str) -> None:
    if identity not in backend.nat_gateways:
        raise EC2ClientError("NatGatewayNotFound", f"NAT gateway {identity} was not found")


def _describe(self: Any, filters: Any, nat_gateway_ids: list[str] | None) -> list[Any]:
    found = list(self.nat_gateways.copy().values())
    wanted = [gateway for gateway in found if not nat_gateway_ids or gateway.id in nat_gateway_ids]
    return generic_filter(filters, wanted)


def _delete(self: Any, nat_gateway_id: str) -> Any:
    gateway = self.nat_gateways[nat_gateway_id]
    if gateway.state not in ("deleting", "deleted"):
        gateway.state = "deleting"
        later.after(_DELETES, lambda: _gone(self, gateway))
    return gateway


def _gone(backend: Any, gateway: Any) -> None:
    for address in backend.addresses.copy():
        if address.eni is gateway._eni:
            backend.disassociate_address(association_id=address.association_id)
    backend.enis.pop(gateway._eni.id, None)
    gateway.state = "deleted"
    later.after(_DESCRIBED, lambda: backend.nat_gateways.pop(gateway.id, None) and None)
