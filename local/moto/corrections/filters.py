"""A filter that an action does not have is refused: InvalidParameterValue, "The filter '…' is invalid".

moto ignores some, matching everything, and fails with an HTML page at others. Source: the list of filters in each
action's description, which the service model carries; Amazon EC2 API Reference, "Error codes", InvalidParameterValue.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import refusals
from moto.core.utils import get_service_model
from moto.ec2.exceptions import EC2ClientError


def apply() -> None:
    """Compares the names before the filters are used."""
    refusals.before_all("ec2", _check)


def _check(response: Any, parameters: Any) -> None:
    filters = parameters.get("Filters") or parameters.get("Filter") or []
    if not filters:
        return
    known = _filters(response._get_action())
    for one in filters:
        name = str(one.get("Name"))
        described = "tag" if name.startswith("tag:") else name
        if known and described not in known:
            raise EC2ClientError("InvalidParameterValue", f"The filter '{name}' is invalid")


@cache
def _filters(action: str) -> frozenset[str]:
    """Every word that the description sets as code: the names, and their older spellings."""
    members = get_service_model("ec2").operation_model(action).input_shape.members
    shape = members.get("Filters") or members.get("Filter")
    words = re.findall(r"<code>([^<]+)</code>", shape.documentation if shape else "")
    return frozenset(word.split(":")[0] for word in words)
