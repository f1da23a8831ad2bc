"""State machines run in the cloud's own engine: what is stored or started inside MiniStack is handed to it."""

from __future__ import annotations

import json
from typing import Any

import gateway
from ministack.core.responses import error_response_json, get_account_id, get_region, json_response
from ministack.services import stepfunctions
from ministack.services.cloudformation import provisioners


def apply() -> None:
    """Replaces the template's resource and the starts that rules and schedules make."""
    stepfunctions._start_execution = _start_execution
    provisioners._RESOURCE_HANDLERS["AWS::StepFunctions::StateMachine"] |= {
        "create": _create(provisioners._sfn_state_machine_create),
        "update": _update(provisioners._sfn_state_machine_update),
        "delete": _delete(provisioners._sfn_state_machine_delete),
    }


def _start_execution(request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    try:
        return json_response(_states("events.amazonaws.com", "StartExecution", request))
    except gateway.Refused as refusal:
        return error_response_json(*_reason(refusal), 400)


def _reason(refusal: gateway.Refused) -> tuple[str, str]:
    answer = json.loads(str(refusal))
    return answer["__type"], answer["message"]


def _create(original: Any) -> Any:
    def create(logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
        arn, attributes = original(logical_id, properties, stack)
        machine = stepfunctions._state_machines[arn]
        _from_template("CreateStateMachine", {
            "name": machine["name"],
            "type": machine["type"],
            "definition": machine["definition"],
            "roleArn": machine["roleArn"],
        })
        return arn, attributes

    return create


def _update(original: Any) -> Any:
    def update(arn: str, old: dict[str, Any], new: dict[str, Any], stack: str, logical_id: str | None = None) -> Any:
        answer = original(arn, old, new, stack, logical_id)
        # A machine that was renamed is another one now, and MiniStack made it without asking our `create`.
        now = answer[0] if isinstance(answer, tuple) else arn
        machine = stepfunctions._state_machines[now]
        definition = {"definition": machine["definition"], "roleArn": machine["roleArn"]}
        if now == arn:
            _from_template("UpdateStateMachine", {"stateMachineArn": arn, **definition})
        else:
            _from_template("CreateStateMachine", {"name": machine["name"], "type": machine["type"], **definition})
            _from_template("DeleteStateMachine", {"stateMachineArn": arn})
        return answer

    return update


def _delete(original: Any) -> Any:
    def delete(arn: str, properties: dict[str, Any]) -> Any:
        answer = original(arn, properties)
        _from_template("DeleteStateMachine", {"stateMachineArn": arn})
        return answer

    return delete


def _from_template(action: str, body: dict[str, Any]) -> None:
    try:
        _states("cloudformation.amazonaws.com", action, body)
    except gateway.Refused as refusal:
        raise ValueError(f"Resource handler returned message: {_reason(refusal)[1]}") from refusal


def _states(principal: str, action: str, body: dict[str, Any]) -> dict[str, Any]:
    return gateway.states(principal, action, body, get_account_id(), get_region())
