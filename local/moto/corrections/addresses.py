"""An Elastic IP address that is associated can't be released.

moto disassociates it on its own. Source: Amazon EC2 API Reference, ReleaseAddress ("[Nondefault VPC] You must disassociate
the Elastic IP address before you can release it. Otherwise, Amazon EC2 returns an error (InvalidIPAddress.InUse)").
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.ec2.exceptions import EC2ClientError


def apply() -> None:
    """Looks for an association first."""
    refusals.before("ec2", "ReleaseAddress", _check)


def _check(response: Any, parameters: Any) -> None:
    allocation, public = parameters.get("AllocationId"), parameters.get("PublicIp")
    for address in response.ec2_backend.addresses.copy():
        if address.association_id and (address.allocation_id == allocation or address.public_ip == public):
            raise EC2ClientError("InvalidIPAddress.InUse", f"Address {address.public_ip} is in use.")
