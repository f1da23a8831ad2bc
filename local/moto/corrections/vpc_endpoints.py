"""A VPC endpoint is deleting for a while, with its interfaces, and is then gone; unknown ones are named as unsuccessful.

moto keeps it for ever as deleted and passes over what it doesn't know; its interfaces belong to no group. Source: Amazon
EC2 API Reference, DeleteVpcEndpoints (Unsuccessful), VpcEndpoint (State); "Error codes", InvalidVpcEndpointId.NotFound.
"""

from __future__ import annotations

from typing import Any

import later
from moto.core.responses import ActionResult
from moto.ec2.models.vpcs import VPCBackend
from moto.ec2.responses.vpcs import VPCs

_DELETES = 30


def apply() -> None:
    """Replaces how endpoints go, and completes their interfaces."""
    create, delete = VPCBackend.create_vpc_endpoint, VPCBackend.delete_vpc_endpoints

    def create_vpc_endpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        endpoint = create(self, *args, **kwargs)
        groups = [self.get_security_group_from_id(group) for group in endpoint.security_group_ids]
        for identity in endpoint.network_interface_ids:
            interface = self.enis[identity]
            interface.status, interface.requester_managed = "in-use", True
            interface.interface_type, interface.description = "vpc_endpoint", f"VPC Endpoint Interface {endpoint.id}"
            interface._group_set = [group for group in groups if group] or interface._group_set
        return endpoint

    def delete_vpc_endpoints(self: Any) -> ActionResult:
        backend, unsuccessful = self.ec2_backend, []
        for identity in self._get_param("VpcEndpointIds", []):
            endpoint = backend.vpc_end_points.get(identity)
            if endpoint is None:
                message = f"The Vpc Endpoint Id '{identity}' does not exist"
                error = {"Code": "InvalidVpcEndpointId.NotFound", "Message": message}
                unsuccessful.append({"ResourceId": identity, "Error": error})
            elif endpoint.state != "deleting":
                endpoint.state = "deleting"
                later.after(_DELETES, lambda identity=identity: _gone(backend, identity))
        return ActionResult({"Unsuccessful": unsuccessful})

    def _gone(backend: Any, identity: str) -> None:
        delete(backend, [identity])
        backend.vpc_end_points.pop(identity, None)

    VPCBackend.create_vpc_endpoint = create_vpc_endpoint
    VPCs.delete_vpc_endpoints = delete_vpc_endpoints
