"""RunInstances minds its token, its image and its type; a terminated machine is shutting down, then terminated, then gone,
and takes no volume.

moto runs anything, again at every retry, and terminates at once and for ever. Source: Amazon EC2 API Reference,
RunInstances; "Ensuring idempotency" (IdempotentParameterMismatch); "Error codes" (InvalidAMIID.NotFound,
InvalidParameterValue, Unsupported, InsufficientInstanceCapacity, IncorrectState); InstanceState (shutting-down,
terminated); EC2 User Guide, "Terminate Amazon EC2 instances" (a terminated instance remains visible for a while, here for
what was long an hour).
"""

from __future__ import annotations

import copy
import json
import threading
from typing import Any

import capacity
import later
import refusals
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.models.instances import Instance, InstanceState
from moto.ec2.responses.instances import InstanceResponse

_SHUTS_DOWN = 20
_DESCRIBED = 3600

_tokens: dict[tuple[str, str, str], tuple[str, Any]] = {}
_lock = threading.Lock()


def apply() -> None:
    """Replaces how machines are launched twice, and how they end."""
    refusals.before("ec2", "RunInstances", _check)
    refusals.before("ec2", "AttachVolume", _check_stays)
    run, terminate = InstanceResponse.run_instances, Instance.terminate

    def run_instances(self: Any) -> Any:
        token = self._get_param("ClientToken")
        if not token:
            return run(self)
        asked = json.dumps(self.params, sort_keys=True, default=str)
        key = (self.current_account, self.region, token)
        # One at a time: a retry may arrive while its first attempt is still at work.
        with _lock:
            before, answer = _tokens.get(key, (None, None))
            if before is not None and before != asked:
                message = "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
                raise EC2ClientError("IdempotentParameterMismatch", message)
            if before is None:
                answer = run(self)
                _tokens[key] = (asked, answer)
        return answer

    def shut_down(self: Any) -> Any:
        previous = copy.copy(self._state)
        if self.state not in ("shutting-down", "terminated"):
            self._state = InstanceState("shutting-down", 32)
            later.after(_SHUTS_DOWN, lambda: _terminated(self))
        return previous

    def _terminated(instance: Any) -> None:
        backend = instance.ec2_backend
        # What somebody detached and deleted meanwhile is not there to be deleted again.
        instance.nics = {at: nic for at, nic in instance.nics.items() if nic.id in backend.enis} or instance.nics
        for nic in instance.nics.values():
            nic.delete_on_termination = nic.delete_on_termination and nic.id in backend.enis
        terminate(instance)
        later.after(_DESCRIBED, lambda: _gone(instance))

    InstanceResponse.run_instances = run_instances
    Instance.terminate = shut_down


def _gone(instance: Any) -> None:
    backend = instance.ec2_backend
    for identity, reservation in list(backend.reservations.items()):
        if instance in reservation.instances:
            reservation.instances.remove(instance)
            if not reservation.instances:
                del backend.reservations[identity]
    backend.tags.pop(instance.id, None)


def _check(response: Any, parameters: Any) -> None:
    backend = response.ec2_backend
    template = parameters.get("LaunchTemplate")
    given = dict(backend._get_template_from_args(template).data) if template else {}
    image_id = parameters.get("ImageId") or given.get("ImageId")
    name = parameters.get("InstanceType") or given.get("InstanceType") or "m1.small"
    image = _image(backend, image_id)
    if name not in INSTANCE_TYPES:
        raise EC2ClientError("InvalidParameterValue", f"Invalid value '{name}' for InstanceType.")
    _check_architecture(image, name)
    subnet = parameters.get("SubnetId") or next(
        (one["SubnetId"] for one in parameters.get("NetworkInterfaces") or [] if "SubnetId" in one), None
    )
    if subnet:
        zone = backend.get_subnet(subnet).availability_zone
        _check_offered(backend.region_name, name, zone)
        market = parameters.get("InstanceMarketOptions") or {}
        paid = "spot" if market.get("MarketType") == "spot" else "on-demand"
        if capacity.lacks(name, zone, paid):
            raise refusals.Refusal(500, "InsufficientInstanceCapacity", capacity.message(name, zone, paid))


def _check_stays(response: Any, parameters: Any) -> None:
    """What attaches a volume to a machine that goes would hold it for ever."""
    instance = response.ec2_backend.get_instance(parameters["InstanceId"])
    if instance.state in ("shutting-down", "terminated"):
        raise EC2ClientError("IncorrectState", f"Instance '{instance.id}' is not 'running'.")


def _image(backend: Any, image_id: str | None) -> Any:
    if not image_id:
        raise EC2ClientError("MissingParameter", "The request must contain the parameter ImageId")
    image = backend.amis.get(image_id)
    if image is None:
        raise EC2ClientError("InvalidAMIID.NotFound", f"The image id '[{image_id}]' does not exist")
    return image


def _check_architecture(image: Any, name: str) -> None:
    supported = INSTANCE_TYPES[name]["ProcessorInfo"]["SupportedArchitectures"]
    if image.architecture not in supported:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"The architecture '{','.join(supported)}' of the specified instance type does not match the architecture "
            f"'{image.architecture}' of the specified AMI. Specify an instance type and an AMI that have matching "
            "architectures, and try again.",
        )


def _check_offered(region: str, name: str, zone: str) -> None:
    offers = INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, [])
    zones = sorted(offer["Location"] for offer in offers if offer["InstanceType"] == name)
    if zones and zone not in zones:
        raise EC2ClientError(
            "Unsupported",
            f"Your requested instance type ({name}) is not supported in your requested Availability Zone ({zone}). "
            f"Please retry your request by not specifying an Availability Zone or choosing {', '.join(zones)}.",
        )
