"""Interfaces of instances go with them, and one in use can't be deleted; addresses are not given out again at once.

moto keeps the first interface of every terminated instance, deletes those that are attached, makes the security group
that a new one names, and hands a freed address to the next machine, which then bears a dead machine's name. Source: Amazon
EC2 API Reference, DeleteNetworkInterface ("You must detach the network interface before you can delete it");
RunInstances, DeleteOnTermination; CreateNetworkInterface.
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import Instance
from moto.ec2.models.subnets import Subnet


def apply() -> None:
    """Has new interfaces deleted on termination unless the request says otherwise."""
    refusals.before("ec2", "DeleteNetworkInterface", _check_use)
    refusals.before("ec2", "CreateNetworkInterface", _check_groups)
    prepare = Instance.prep_nics

    def prep_nics(self: Any, nic_spec: list[dict[str, Any]], *args: Any, **kwargs: Any) -> None:
        brought = {spec.get("NetworkInterfaceId") for spec in nic_spec}
        kept = {int(spec["DeviceIndex"]) for spec in nic_spec if spec.get("DeleteOnTermination") is False}
        prepare(self, nic_spec, *args, **kwargs)
        for index, interface in self.nics.items():
            if interface.id not in brought and index not in kept:
                interface.delete_on_termination = True

    def del_subnet_ip(self: Any, address: str) -> None:
        self._subnet_ips.pop(address, None)

    Instance.prep_nics = prep_nics
    Subnet.del_subnet_ip = del_subnet_ip


def _check_use(response: Any, parameters: Any) -> None:
    identity = parameters.get("NetworkInterfaceId")
    interface = response.ec2_backend.enis.get(identity)
    if interface and interface.status == "in-use":
        raise EC2ClientError("InvalidParameterValue", f"Network interface '{identity}' is currently in use.")


def _check_groups(response: Any, parameters: Any) -> None:
    for group in parameters.get("Groups") or []:
        if not response.ec2_backend.get_security_group_from_id(group):
            message = f"The securityGroup ID '{group}' does not exist"
            raise EC2ClientError("InvalidSecurityGroupID.NotFound", message)
