"""Service-linked roles are called what their services call them, and a second one is refused in IAM's words.

moto makes a name of the service's host (`AWSServiceRoleForeks-nodegroup`), so whoever looks for the real name before
creating it never finds it. Names: "Using service-linked roles" of Amazon EKS, EC2 Auto Scaling and EC2 Spot.
"""

from __future__ import annotations

from moto.iam import models
from moto.iam.exceptions import EntityAlreadyExists, InvalidInput

_NAMES = {
    "eks": "AmazonEKS",
    "eks-nodegroup": "AmazonEKSNodegroup",
    "spot": "EC2Spot",
}


def apply() -> None:
    """Gives the services that a cluster needs their names."""
    models.SERVICE_NAME_CONVERSION.update(_NAMES)
    original = models.IAMBackend.create_service_linked_role

    def create_service_linked_role(
        self: models.IAMBackend, service_name: str, description: str, suffix: str
    ) -> models.Role:
        path = f"/aws-service-role/{service_name}/"
        for role in list(self.roles.values()):
            if role.path == path and not suffix:
                raise _taken(role.name)
        try:
            return original(self, service_name, description, suffix)
        except EntityAlreadyExists as refusal:
            # Somebody was quicker, between the look and the making.
            raise _taken(f"of {service_name}") from refusal

    models.IAMBackend.create_service_linked_role = create_service_linked_role


def _taken(name: str) -> InvalidInput:
    return InvalidInput(f"Service role name {name} has been taken in this account, please try a different suffix.")
