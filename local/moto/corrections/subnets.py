"""A subnet with an interface in it can't be deleted, and one that is deleted leaves its route table and network ACL.

moto deletes it under whatever is in it, and its route table then counts as in use for ever. Source: Amazon EC2 API
Reference, DeleteSubnet ("You must terminate all running instances in the subnet before you can delete the subnet") and
"Error codes", DependencyViolation.
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models.subnets import SubnetBackend


def apply() -> None:
    """Looks for interfaces first, and ends the associations after."""
    refusals.before("ec2", "DeleteSubnet", _check)
    delete = SubnetBackend.delete_subnet

    def delete_subnet(self: Any, subnet_id: str) -> Any:
        subnet = delete(self, subnet_id)
        for table in self.route_tables.copy().values():
            for association, target in list(table._associations.items()):
                if target == subnet_id:
                    del table._associations[association]
        for acl in self.network_acls.copy().values():
            for association, one in list(acl._associations.items()):
                if one.subnet_id == subnet_id:
                    del acl._associations[association]
        return subnet

    SubnetBackend.delete_subnet = delete_subnet


def _check(response: Any, parameters: Any) -> None:
    subnet = parameters.get("SubnetId")
    interfaces = response.ec2_backend.enis.copy().values()
    if any(interface.subnet.id == subnet for interface in interfaces):
        raise DependencyViolationError(f"The subnet '{subnet}' has dependencies and cannot be deleted.")

