"""A second OIDC provider of the same issuer is refused by the issuer's name.

moto says "Unknown". Source: IAM API Reference, CreateOpenIDConnectProvider (EntityAlreadyExists).
"""

from __future__ import annotations

from typing import Any

import refusals
from moto.iam.exceptions import EntityAlreadyExists


def apply() -> None:
    """Looks for the issuer first."""
    refusals.before("iam", "CreateOpenIDConnectProvider", _check)


def _check(response: Any, parameters: Any) -> None:
    host = parameters["Url"].removeprefix("https://")
    if any(arn.endswith(f":oidc-provider/{host}") for arn in response.backend.open_id_providers):
        raise EntityAlreadyExists(f"Provider with url {parameters['Url']} already exists.")
