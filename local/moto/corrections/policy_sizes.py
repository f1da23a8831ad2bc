"""Policies have a size, and roles a number of them; white space does not count.

moto takes any. Source: IAM User Guide, "IAM and AWS STS quotas" (managed policies 6,144 characters, inline policies of a
role 10,240 in all, of a user 2,048, a role's trust policy 2,048, ten managed policies on a role); code LimitExceeded.
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.iam.exceptions import LimitExceededException

_MANAGED = 6144
_TRUST = 2048
_INLINE = {"role": 10240, "user": 2048}
_ATTACHED = 10


def apply() -> None:
    """Counts before anything is stored."""
    for action in ("CreatePolicy", "CreatePolicyVersion"):
        refusals.before("iam", action, _check_managed)
    refusals.before("iam", "CreateRole", lambda _, parameters: _check_trust(parameters["AssumeRolePolicyDocument"]))
    refusals.before("iam", "UpdateAssumeRolePolicy", lambda _, parameters: _check_trust(parameters["PolicyDocument"]))
    refusals.before("iam", "PutRolePolicy", _check_inline_of_role)
    refusals.before("iam", "PutUserPolicy", _check_inline_of_user)
    refusals.before("iam", "AttachRolePolicy", _check_attached)


def _size(document: str) -> int:
    return sum(1 for character in document if not character.isspace())


def _check_managed(_response: Any, parameters: Any) -> None:
    if _size(parameters["PolicyDocument"]) > _MANAGED:
        raise LimitExceededException(f"Cannot exceed quota for PolicySize: {_MANAGED}")


def _check_trust(document: str) -> None:
    if _size(document) > _TRUST:
        raise LimitExceededException(f"Cannot exceed quota for ACLSizePerRole: {_TRUST}")


def _check_inline_of_role(response: Any, parameters: Any) -> None:
    role = next((role for role in response.backend.get_roles() if role.name == parameters["RoleName"]), None)
    _check_inline("role", parameters["RoleName"], role, parameters)


def _check_inline_of_user(response: Any, parameters: Any) -> None:
    _check_inline("user", parameters["UserName"], response.backend.users.get(parameters["UserName"]), parameters)


def _check_inline(kind: str, name: str, entity: Any, parameters: Any) -> None:
    stored = dict(entity.policies) if entity else {}
    stored[parameters["PolicyName"]] = parameters["PolicyDocument"]
    if sum(_size(document) for document in stored.values()) > _INLINE[kind]:
        raise LimitExceededException(f"Maximum policy size of {_INLINE[kind]} bytes exceeded for {kind} {name}")


def _check_attached(response: Any, parameters: Any) -> None:
    for role in response.backend.get_roles():
        if role.name == parameters["RoleName"] and parameters["PolicyArn"] not in role.managed_policies:
            if len(role.managed_policies) >= _ATTACHED:
                raise LimitExceededException(f"Cannot exceed quota for PoliciesPerRole: {_ATTACHED}")
