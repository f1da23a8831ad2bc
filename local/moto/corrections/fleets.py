"""CreateFleet launches what the launch template says, at the best offer.

moto takes the first override, forgets the template's security groups and instance profile (Karpenter then sees drift
and replaces every node for ever), does not mind an image of another architecture, names machines as us-east-1 does, and
leaves EC2's own tags out.
"""

from __future__ import annotations

from typing import Any

from moto.ec2.models.fleets import Fleet, FleetsBackend
from moto.ec2.models.instance_types import INSTANCE_TYPES


def apply() -> None:
    counts = Fleet.get_launch_spec_counts
    create = FleetsBackend.create_fleet

    def get_launch_spec_counts(self: Any, weight_to_add: float) -> Any:
        if self.launch_specs:
            self.launch_specs = [_best(self)]
        return counts(self, weight_to_add)

    def create_fleet(self: Any, *args: Any, **kwargs: Any) -> Any:
        fleet = create(self, *args, **kwargs)
        for request in fleet.spot_requests:
            _finish(self, fleet, request.instance, request.launch_spec)
        for item in fleet.on_demand_instances:
            _finish(self, fleet, item["instance"], item["launch_spec"])
        return fleet

    Fleet.get_launch_spec_counts = get_launch_spec_counts
    FleetsBackend.create_fleet = create_fleet


def _best(fleet: Any) -> Any:
    """The cheapest offer whose architecture fits its image; by priority where the strategy goes by it."""
    fitting = [spec for spec in fleet.launch_specs if _fits(fleet.ec2_backend, spec)] or fleet.launch_specs
    options = (fleet.spot_options or {}) | (fleet.on_demand_options or {})
    by_priority = "prioritized" in str(options.get("AllocationStrategy", "")).lower()

    def rank(spec: Any) -> tuple[float, float]:
        priority = float((spec.overrides or {}).get("Priority", 0)) if by_priority else 0.0
        return priority, _price(fleet.ec2_backend, spec)

    return min(fitting, key=rank)


def _fits(backend: Any, spec: Any) -> bool:
    image = backend.amis.get(spec.image_id)
    shape = INSTANCE_TYPES.get(spec.instance_type)
    return not image or not shape or image.architecture in shape["ProcessorInfo"]["SupportedArchitectures"]


def _price(backend: Any, spec: Any) -> float:
    """The Spot price, which is in proportion to the one on demand."""
    filters = {}
    if spec.subnet_id:
        filters["availability-zone"] = [backend.get_subnet(spec.subnet_id).availability_zone]
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
