"""What nobody made is not there: placement groups and capacity reservations are empty lists.

moto has neither, and Karpenter asks for both. Source: Amazon EC2 API Reference, DescribePlacementGroups,
DescribeCapacityReservations.
"""

from __future__ import annotations

from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.responses import EC2Response


def apply() -> None:
    """Answers without asking moto; there is no way to make one here."""
    EC2Response.describe_placement_groups = lambda self: _nothing("PlacementGroups")
    EC2Response.describe_capacity_reservations = lambda self: _nothing("CapacityReservations")


def _nothing(member: str) -> ActionResult:
    empty: dict[str, list[Any]] = {member: []}
    return ActionResult(empty)
