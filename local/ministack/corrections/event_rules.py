"""EventBridge's calls about a rule are authorized on that rule's ARN; MiniStack gets it wrong on the default bus."""

from __future__ import annotations

import json
from typing import Any

from ministack.core import iam_actions


def apply() -> None:
    """Wraps how MiniStack finds the resource that a call acts on."""
    original = iam_actions.extract_resource_arn

    def extract(
        service: str,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        query_params: dict[str, Any],
        region: str,
        account_id: str,
    ) -> str:
        found = original(service, method, path, headers, body, query_params, region, account_id)
        rule = _rule_arn(body, region, account_id) if service == "events" else None
        return rule or found

    iam_actions.extract_resource_arn = extract


def _rule_arn(body: bytes, region: str, account_id: str) -> str | None:
    """The rule that a request names: `Name`, or `Rule` where it is about targets, or `ResourceARN` for tags."""
    try:
        request = json.loads(body or b"{}")
    except ValueError:
        return None
    if not isinstance(request, dict):
        return None
    if tagged := request.get("ResourceARN"):
        return str(tagged)
    name = request.get("Name") or request.get("Rule")
    if not name:
        return None
    bus = str(request.get("EventBusName") or "default").rpartition("/")[2]
    # Rules of the default bus are named without it.
    path = name if bus == "default" else f"{bus}/{name}"
    return f"arn:aws:events:{region}:{account_id}:rule/{path}"
