"""What EC2 is out of: the file that a test writes says which types, zones and ways of paying."""

from __future__ import annotations

import json
import os
from pathlib import Path

_ANY = "*"


def lacks(instance_type: str, zone: str, capacity_type: str) -> bool:
    """Whether there is no capacity: `[{"instanceType", "zone", "capacityType"}]`, each a name or `*`."""
    path = os.environ.get("SLIPWAY_CAPACITY")
    try:
        lacking = json.loads(Path(path).read_text(encoding="utf-8")) if path else []
    except FileNotFoundError:
        return False
    asked = {"instanceType": instance_type, "zone": zone, "capacityType": capacity_type}
    return any(all(one.get(name, _ANY) in (_ANY, value) for name, value in asked.items()) for one in lacking)


def message(instance_type: str, zone: str, capacity_type: str) -> str:
    """EC2's words for it (code `InsufficientInstanceCapacity`)."""
    if capacity_type == "spot":
        return "There is no Spot capacity available that matches your request."
    return (
        f"We currently do not have sufficient {instance_type} capacity in the Availability Zone you requested ({zone}). "
        "Our system will be working on provisioning additional capacity."
    )
