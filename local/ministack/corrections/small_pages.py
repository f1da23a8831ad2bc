"""Lists come in pages as small as the cloud asks for, so that tests see whether they are read to their end.

AWS may give fewer than asked for at any time. ListTargetsByRule, which MiniStack gives whole, has pages on AWS as well.
Sources: the paginators of the service models; Amazon EventBridge API Reference, ListTargetsByRule (Limit, NextToken).
"""

from __future__ import annotations

import json
from typing import Any

import door
from ministack.core.responses import json_response
from ministack.services import cloudwatch_logs, eventbridge, sqs


def apply() -> None:
    """Lowers the limit that a request asks for."""
    for module, name, limit in (
        (eventbridge, "_list_rules", "Limit"),
        (eventbridge, "_list_rule_names_by_target", "Limit"),
        (cloudwatch_logs, "_describe_log_groups", "limit"),
        (cloudwatch_logs, "_describe_log_streams", "limit"),
    ):
        setattr(module, name, _lowered(getattr(module, name), limit))
    eventbridge._list_targets_by_rule = _paged(eventbridge._list_targets_by_rule)
    sqs._HANDLERS["ListQueues"] = _lowered(sqs._HANDLERS["ListQueues"], "MaxResults")


def _lowered(act: Any, limit: str) -> Any:
    def lowered(request: dict[str, Any], *rest: Any) -> Any:
        small = door.PAGE_SIZE.get()
        if small:
            request = {**request, limit: min(int(request.get(limit) or small), small)}
        return act(request, *rest)

    return lowered


def _paged(act: Any) -> Any:
    def paged(request: dict[str, Any]) -> Any:
        status, headers, body = act(request)
        if status != 200:
            return status, headers, body
        targets = json.loads(body)["Targets"]
        size = min(int(request.get("Limit") or 100), door.PAGE_SIZE.get() or 100)
        start = eventbridge._opaque_offset_decode(request.get("NextToken", ""))
        page: dict[str, Any] = {"Targets": targets[start : start + size]}
        if start + size < len(targets):
            page["NextToken"] = eventbridge._opaque_offset_encode(start + size)
        return json_response(page)

    return paged
