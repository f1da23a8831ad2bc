"""A policy that is attached, is a boundary, or has other versions can't be deleted; attaching it again changes nothing.

moto deletes it, and counts a second attachment that no detaching ends. Source: IAM API Reference, DeletePolicy ("Before
you can delete a managed policy, you must first detach the policy from all users, groups, and roles … In addition, you must
delete all the policy's versions"; DeleteConflict), AttachRolePolicy.
"""

from __future__ import annotations

from typing import Any, Iterator

import refusals
from moto.iam.exceptions import DeleteConflictException
from moto.iam.models import ManagedPolicy


def apply() -> None:
    """Looks at who has it first."""
    refusals.before("iam", "DeletePolicy", _check)
    attach = ManagedPolicy.attach_to

    def attach_to(self: Any, entity: Any) -> None:
        if self.arn not in entity.managed_policies:
            attach(self, entity)

    ManagedPolicy.attach_to = attach_to


def _check(response: Any, parameters: Any) -> None:
    backend, arn = response.backend, parameters["PolicyArn"]
    if arn in set(_attached(backend)):
        raise DeleteConflictException("Cannot delete a policy attached to entities.")
    policy = backend.managed_policies.get(arn)
    if policy and len(policy.versions) > 1:
        raise DeleteConflictException(
            "This policy has more than one version. Before you delete a policy, you must delete the policy's versions. "
            "The default version is deleted with the policy."
        )


def _attached(backend: Any) -> Iterator[str]:
    for entities in (backend.roles, backend.users, backend.groups):
        for entity in entities.copy().values():
            yield from entity.managed_policies
    for role in backend.roles.copy().values():
        yield role.permissions_boundary_arn
