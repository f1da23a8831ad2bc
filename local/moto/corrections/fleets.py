"""CreateFleet launches what the launch template says, at the best offer that there is capacity for, or says why not.

moto takes the first override, forgets the template's security groups and instance profile (Karpenter then sees drift
and replaces every node for ever), minds neither an unknown image nor one of another architecture, never lacks capacity,
names machines as us-east-1 does, and leaves EC2's own tags out. Source: Amazon EC2 API Reference, CreateFleet
(CreateFleetError of an instant fleet, with HTTP status 200), FleetLaunchTemplateOverrides (Priority), "Error codes".
"""

from __future__ import annotations

import math
from typing import Any

import capacity
from moto.core.responses import ActionResult
from moto.ec2.models.fleets import Fleet, FleetsBackend
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.ec2.responses.fleets import Fleets


def apply() -> None:
    """Chooses the offer, completes the machines, and adds the errors to the answer."""
    create, answer = FleetsBackend.create_fleet, Fleets.create_fleet
    spot, on_demand = Fleet.create_spot_requests, Fleet.create_on_demand_requests

    def create_spot_requests(self: Any, weight_to_add: float) -> Any:
        self._paid = "spot"
        return spot(self, weight_to_add)

    def create_on_demand_requests(self: Any, weight_to_add: float) -> None:
        self._paid = "on-demand"
        on_demand(self, weight_to_add)

    def create_fleet(self: Any, *args: Any, **kwargs: Any) -> Any:
        fleet = create(self, *args, **kwargs)
        for request in fleet.spot_requests:
            _finish(self, fleet, request.instance, request.launch_spec)
        for item in fleet.on_demand_instances:
            _finish(self, fleet, item["instance"], item["launch_spec"])
        return fleet

    def answer_with_errors(self: Any) -> ActionResult:
        result = answer(self)
        fleet = self.ec2_backend.fleets[result.result["FleetId"]]
        result.result["Errors"] = getattr(fleet, "_errors", [])
        return result

    Fleet.create_spot_requests = create_spot_requests
    Fleet.create_on_demand_requests = create_on_demand_requests
    Fleet.get_launch_spec_counts = _choose
    FleetsBackend.create_fleet = create_fleet
    Fleets.create_fleet = answer_with_errors


def _choose(self: Any, weight_to_add: float) -> tuple[dict[Any, int], float]:
    """The cheapest offer that can be launched, by priority where the strategy goes by it; nothing where none can."""
    options = (self.spot_options if self._paid == "spot" else self.on_demand_options) or {}
    by_priority = "prioritized" in str(options.get("AllocationStrategy", "")).lower()

    def rank(spec: Any) -> tuple[float, float]:
        priority = float((spec.overrides or {}).get("Priority", 0)) if by_priority else 0.0
        return priority, _price(self.ec2_backend, spec)

    self._errors = getattr(self, "_errors", [])
    for spec in sorted(self.launch_specs, key=rank):
        refusal = _refusal(self.ec2_backend, spec, self._paid)
        if refusal is None:
            count = math.ceil(weight_to_add / spec.weighted_capacity)
            return {spec: count}, count * spec.weighted_capacity
        self._errors.append(_error(spec, self._paid, *refusal))
    return {}, 0.0


def _refusal(backend: Any, spec: Any, paid: str) -> tuple[str, str] | None:
    """The code and text with which an offer is not launched."""
    image = backend.amis.get(spec.image_id)
    shape = INSTANCE_TYPES.get(spec.instance_type)
    if image is None:
        return "InvalidAMIID.NotFound", f"The image id '[{spec.image_id}]' does not exist"
    if shape is None:
        return "InvalidParameterValue", f"Invalid value '{spec.instance_type}' for InstanceType."
    supported = shape["ProcessorInfo"]["SupportedArchitectures"]
    if image.architecture not in supported:
        return (
            "InvalidParameterValue",
            f"The architecture '{','.join(supported)}' of the specified instance type does not match the architecture "
            f"'{image.architecture}' of the specified AMI.",
        )
    zone = _zone(backend, spec)
    if capacity.lacks(spec.instance_type, zone, paid):
        return "InsufficientInstanceCapacity", capacity.message(spec.instance_type, zone, paid)
    return None


def _error(spec: Any, paid: str, code: str, message: str) -> dict[str, Any]:
    tried = {"LaunchTemplateSpecification": spec.launch_template_spec}
    if spec.overrides:
        tried["Overrides"] = spec.overrides
    return {"LaunchTemplateAndOverrides": tried, "Lifecycle": paid, "ErrorCode": code, "ErrorMessage": message}


def _zone(backend: Any, spec: Any) -> str:
    return backend.get_subnet(spec.subnet_id).availability_zone if spec.subnet_id else ""


def _price(backend: Any, spec: Any) -> float:
    """The Spot price, which is in proportion to the one on demand."""
    filters = {"availability-zone": [_zone(backend, spec)]} if spec.subnet_id else {}
    prices = backend.describe_spot_price_history([spec.instance_type], filters)
    return min((float(price["SpotPrice"]) for price in prices), default=float("inf"))


def _finish(backend: Any, fleet: Any, instance: Any, spec: Any) -> None:
    chosen = spec.launch_template_spec
    template = backend.get_launch_template(chosen["LaunchTemplateId"])
    version = template.get_version(chosen.get("Version", "$Default"))
    data = version.data
    # Part of the private DNS name, which becomes the node's name.
    instance.region_name = backend.region_name
    interfaces = data.get("NetworkInterfaces") or [{}]
    groups = interfaces[0].get("Groups") or data.get("SecurityGroupIds")
    if groups:
        backend.modify_instance_security_groups(instance.id, groups)
        for interface in instance.nics.values():
            # The VPC's default group, which moto adds where none is named.
            interface._group_set = list(instance.security_groups)
    profile = data.get("IamInstanceProfile") or {}
    if profile:
        backend.associate_iam_instance_profile(
            instance.id,
            iam_instance_profile_name=profile.get("Name"),
            iam_instance_profile_arn=profile.get("Arn"),
        )
    instance.add_tags(
        {
            "aws:ec2:fleet-id": fleet.id,
            "aws:ec2launchtemplate:id": template.id,
            "aws:ec2launchtemplate:version": str(version.number),
        }
    )
