"""A VPC's main route table can't be deleted: it goes with its VPC.

moto deletes it. Source: Amazon EC2 API Reference, DeleteRouteTable ("You can't delete the main route table"). That a
table with associations can't be, moto knows.
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.ec2.exceptions import DependencyViolationError


def apply() -> None:
    """Looks at whether it is the main one first."""
    refusals.before("ec2", "DeleteRouteTable", _check)


def _check(response: Any, parameters: Any) -> None:
    identity = parameters.get("RouteTableId")
    table = response.ec2_backend.route_tables.get(identity)
    if table and table.main_association_id:
        raise DependencyViolationError(f"The routeTable '{identity}' has dependencies and cannot be deleted.")
