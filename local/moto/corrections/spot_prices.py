"""Spot prices differ by size and zone, and are lower than on demand.

moto gives every type the same price, so Karpenter and a fleet cannot tell a nano from a metal. These are made up: a
third of a rough on-demand price by vCPU and memory, a little more or less in each zone, the same on every run.
"""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from functools import cache
from typing import Any

from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.models.spot_requests import SpotRequestBackend

_SINCE = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
_PRODUCT = "Linux/UNIX"
_FILTERS = {
    "availability-zone": "AvailabilityZone",
    "instance-type": "InstanceType",
    "product-description": "ProductDescription",
    "spot-price": "SpotPrice",
}


def apply() -> None:
    SpotRequestBackend.describe_spot_price_history = _describe_spot_price_history


def _describe_spot_price_history(
    self: Any, instance_types: list[str] | None = None, filters: dict[str, list[str]] | None = None
) -> list[dict[str, str]]:
    wanted = set(instance_types or [])
    checks = [(_FILTERS.get(name, ""), set(values)) for name, values in (filters or {}).items()]
    return [
        price
        for price in _prices(self.region_name)
        if (not wanted or price["InstanceType"] in wanted)
        and all(price.get(member) in values for member, values in checks)
    ]


@cache
def _prices(region: str) -> list[dict[str, str]]:
    offered = INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, [])
    # Some old types do without Spot.
    spot = (o for o in offered if "spot" in INSTANCE_TYPES.get(o["InstanceType"], {}).get("SupportedUsageClasses", []))
    return [
        {
            "AvailabilityZone": offering["Location"],
            "InstanceType": offering["InstanceType"],
            "ProductDescription": _PRODUCT,
            "SpotPrice": f"{_price(offering['InstanceType'], offering['Location']):.6f}",
            "Timestamp": _SINCE,
        }
        for offering in spot
    ]


def _price(instance_type: str, zone: str) -> float:
    shape = INSTANCE_TYPES[instance_type]
    memory = shape["MemoryInfo"]["SizeInMiB"] / 1024
    if shape.get("BurstablePerformanceSupported"):
        # Their vCPUs are a share of one. Priced like others, every Spot offer would be dearer than the smallest of
        # them on demand, and Karpenter leaves such offers out.
        on_demand = 0.0114 * memory
    else:
        on_demand = 0.025 * shape["VCpuInfo"]["DefaultVCpus"] + 0.0055 * memory
    if "arm64" in shape["ProcessorInfo"]["SupportedArchitectures"]:
        on_demand *= 0.8
    if shape.get("GpuInfo") or shape.get("InferenceAcceleratorInfo") or shape.get("NeuronInfo"):
        on_demand *= 4
    between = zlib.crc32(f"{instance_type} {zone}".encode()) % 1000 / 1000
    return on_demand * (0.3 + 0.08 * between)
