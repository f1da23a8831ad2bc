"""ListInstanceProfiles keeps to the path prefix that it was given.

moto answers every profile whatever the prefix. Karpenter lists the profiles below its own path and deletes those that no
node class uses: without the prefix it takes EKS's own away.
"""

from __future__ import annotations

from typing import Any

from moto.core.responses import ActionResult
from moto.iam.responses import IamResponse


def apply() -> None:
    """Filters by `PathPrefix`, `/` by default."""

    def list_instance_profiles(self: Any) -> ActionResult:
        prefix = self._get_param("PathPrefix") or "/"
        profiles = [profile for profile in self.backend.get_instance_profiles() if profile.path.startswith(prefix)]
        return ActionResult({"InstanceProfiles": profiles})

    IamResponse.list_instance_profiles = list_instance_profiles
