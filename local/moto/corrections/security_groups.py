"""A security group that an interface or another group's rule uses can't be deleted; nor can a VPC's default group.

moto deletes it and leaves the others pointing at nothing. Source: Amazon EC2 API Reference, DeleteSecurityGroup ("If you
attempt to delete a security group that is associated with an instance or network interface, is referenced by another
security group in the same VPC, …, the operation fails with DependencyViolation") and "Error codes", CannotDelete.
"""

from __future__ import annotations

from typing import Any, Iterator

import refusals
from moto.ec2.exceptions import DependencyViolationError, EC2ClientError


def apply() -> None:
    """Looks for users before the group goes."""
    refusals.before("ec2", "DeleteSecurityGroup", _check)


def _check(response: Any, parameters: Any) -> None:
    backend = response.ec2_backend
    named = parameters.get("GroupId") or parameters.get("GroupName")
    group = backend.get_security_group_by_name_or_id(named) if named else None
    if group is None:
        return
    if group.is_default:
        message = f'the specified group: "{group.id}" name: "{group.name}" cannot be deleted by a user'
        raise EC2ClientError("CannotDelete", message)
    interfaces = backend.enis.copy().values()
    if any(group.id in {used.id for used in interface.group_set} for interface in interfaces):
        raise DependencyViolationError(f"resource {group.id} has a dependent object")
    if any(group.id == referenced for referenced in _referenced(backend, group.id)):
        raise DependencyViolationError(f"resource {group.id} has a dependent object")


def _referenced(backend: Any, but_by: str) -> Iterator[str]:
    """The groups that rules of other groups name."""
    for groups in backend.groups.copy().values():
        for group in groups.copy().values():
            if group.id != but_by:
                for rule in [*group.ingress_rules, *group.egress_rules]:
                    if rule.source_group:
                        yield rule.source_group.get("GroupId", "")
