"""A rule that has targets can't be deleted, nor targets be taken from a rule that isn't there.

MiniStack deletes both at once. Source: Amazon EventBridge API Reference, DeleteRule ("Before you can delete the rule, you
must remove all targets, using RemoveTargets"), RemoveTargets (ResourceNotFoundException).
"""

from __future__ import annotations

from typing import Any

from ministack.core.responses import error_response_json
from ministack.services import eventbridge


def apply() -> None:
    """Looks at the rule first."""
    delete, remove, targets = eventbridge._delete_rule, eventbridge._remove_targets, eventbridge._list_targets_by_rule

    def delete_rule(request: dict[str, Any]) -> Any:
        if eventbridge._targets.get(_key(request, "Name")):
            message = "Rule can't be deleted since it has targets."
            return error_response_json("ValidationException", message, 400)
        return delete(request)

    def of_a_rule(act: Any) -> Any:
        def checked(request: dict[str, Any]) -> Any:
            if _key(request, "Rule") not in eventbridge._rules:
                message = f"Rule {request.get('Rule')} does not exist on EventBus {_bus(request)}."
                return error_response_json("ResourceNotFoundException", message, 400)
            return act(request)

        return checked

    eventbridge._delete_rule = delete_rule
    eventbridge._remove_targets = of_a_rule(remove)
    eventbridge._list_targets_by_rule = of_a_rule(targets)


def _key(request: dict[str, Any], member: str) -> str:
    return eventbridge._rule_key(request.get(member), _bus(request))


def _bus(request: dict[str, Any]) -> str:
    return request.get("EventBusName") or "default"
