"""What is deleted is still listed for some seconds, while by its own id it is gone.

moto forgets at once. Source: IAM User Guide, "Changes that I make are not always immediately visible" (distributed, cached,
eventually consistent); Amazon EC2 API Reference, "Eventual consistency" (a resource may be described after it was deleted).
A list that is asked for again in the same way shows what it showed before, for one to four seconds: which, the id decides.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from typing import Any

from moto.core.responses import ActionResult, BaseResponse

# What deletes; what lists the same, under which member, and how a thing is known there.
_DELETIONS = {
    ("iam", "DeleteRole"): ("RoleName", "ListRoles", "Roles", "name"),
    ("iam", "DeletePolicy"): ("PolicyArn", "ListPolicies", "Policies", "arn"),
    ("iam", "DeleteInstanceProfile"): ("InstanceProfileName", "ListInstanceProfiles", "InstanceProfiles", "name"),
    ("ec2", "DeleteSecurityGroup"): ("GroupId", "DescribeSecurityGroups", "SecurityGroups", "id"),
    ("ec2", "DeleteLaunchTemplate"): (
        "LaunchTemplateId",
        "DescribeLaunchTemplates",
        "LaunchTemplates",
        "LaunchTemplateId",
    ),
    ("ec2", "DeleteNetworkInterface"): (
        "NetworkInterfaceId",
        "DescribeNetworkInterfaces",
        "NetworkInterfaces",
        "id",
    ),
}
_LISTS = {(service, names[1]): names for (service, _), names in _DELETIONS.items()}
_PAGING = ("MaxResults", "MaxItems", "NextToken", "Marker")
_KEPT = 512

_SPEED = float(os.environ.get("SLIPWAY_SPEED", "1"))
_SHORTEST, _LONGEST = 1, 4

_shown: OrderedDict[Any, list[Any]] = OrderedDict()
_until: dict[Any, float] = {}
_lock = threading.Lock()


def apply() -> None:
    """Looks at lists before they are cut into pages."""
    write = BaseResponse.serialized

    def serialized(self: Any, result: ActionResult) -> Any:
        if not isinstance(result.result, Exception):
            service, action = self.boto3_service_name, self._get_action()
            if deletion := _DELETIONS.get((service, action)):
                _mark(self, deletion)
            elif (names := _LISTS.get((service, action))) and isinstance(result.result, dict):
                _show(self, names, result.result)
        return write(self, result)

    BaseResponse.serialized = serialized


def _delay(identity: str) -> float:
    share = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") / 2**32
    return (_SHORTEST + (_LONGEST - _SHORTEST) * share) / _SPEED


def _identity(one: Any, known_by: str) -> Any:
    return one[known_by] if isinstance(one, dict) else getattr(one, known_by)


def _place(response: Any) -> Any:
    return response.current_account, response.region


def _mark(response: Any, names: Any) -> None:
    if identity := response.params.get(names[0]):
        with _lock:
            _until[(*_place(response), names[1], identity)] = time.monotonic() + _delay(identity)


def _show(response: Any, names: Any, result: dict[str, Any]) -> None:
    _, action, member, known_by = names
    asked = sorted((key, str(value)) for key, value in response.params.items() if key not in _PAGING)
    key = (*_place(response), action, tuple(asked))
    found = list(result.get(member) or [])
    there = {_identity(one, known_by) for one in found}
    with _lock:
        now = time.monotonic()
        for one in _shown.get(key, []):
            identity = _identity(one, known_by)
            if identity not in there and _until.get((*_place(response), action, identity), 0) > now:
                found.append(one)
        _shown[key] = found
        while len(_shown) > _KEPT:
            _shown.popitem(last=False)
    result[member] = found
