"""A service-linked role is not ours to change, and a role that a profile doesn't have can't be taken from it.

moto deletes the former and fails at the latter. Source: IAM API Reference, DeleteRole (UnmodifiableEntity) and
RemoveRoleFromInstanceProfile (NoSuchEntity). That a role with policies or in a profile can't be deleted, moto knows.
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.iam.exceptions import NoSuchEntity

_CHANGES = ("DeleteRole", "AttachRolePolicy", "DetachRolePolicy", "PutRolePolicy", "UpdateAssumeRolePolicy", "TagRole")


def apply() -> None:
    """Looks at the role first."""
    for action in _CHANGES:
        refusals.before("iam", action, _check_owner)
    refusals.before("iam", "RemoveRoleFromInstanceProfile", _check_profile)


def _check_owner(response: Any, parameters: Any) -> None:
    name = parameters["RoleName"]
    for role in response.backend.get_roles():
        if role.name == name and role.path.startswith("/aws-service-role/"):
            message = f"Cannot perform the operation on the protected role '{name}' - this role is only modifiable by AWS"
            raise refusals.Refusal(400, "UnmodifiableEntity", message)


def _check_profile(response: Any, parameters: Any) -> None:
    profile = response.backend.instance_profiles.get(parameters["InstanceProfileName"])
    name = parameters["RoleName"]
    if profile and not any(role.name == name for role in profile.roles):
        raise NoSuchEntity(f"Role {name} is not in instance profile {profile.name}.")
