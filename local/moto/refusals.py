"""Looks at a request before moto does, and answers with AWS's refusal where AWS would refuse."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Callable

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, BaseResponse

Check = Callable[[Any, Any], None]

_ALL, _LAST = "*", "."
_checks: dict[tuple[str, str], list[Check]] = defaultdict(list)


def before(service: str, action: str, check: Check) -> None:
    """Has `check(response, parameters)` look at each request for an action first; what it raises is the answer."""
    _checks[(service, action)].append(check)


def before_all(service: str, check: Check) -> None:
    """The same for every action of a service, before what is checked for one."""
    _checks[(service, _ALL)].append(check)


def after_checks(service: str, prepare: Check) -> None:
    """The same once nothing refuses a request: what it changes of the parameters, no check sees."""
    _checks[(service, _LAST)].append(prepare)


def listen() -> None:
    """Puts the checks between moto's reading of a request and its doing."""
    act, write = BaseResponse.call_action, BaseResponse.serialized

    def call_action(self: Any) -> Any:
        service = self.boto3_service_name
        try:
            for action in (_ALL, self._get_action(), _LAST):
                for check in _checks.get((service, action), []):
                    check(self, self.params)
        except ServiceException as refusal:
            return refuse(self, refusal)
        return act(self)

    def serialized(self: Any, result: ActionResult) -> Any:
        status, headers, body = write(self, result)
        return getattr(result.result, "http_status", status), headers, body

    BaseResponse.call_action = call_action
    BaseResponse.serialized = serialized


def refuse(response: Any, refusal: ServiceException) -> Any:
    """An error as the service's protocol writes it: status, headers, body."""
    status, headers, body = response.serialized(ActionResult(refusal))
    headers["status"] = str(status)
    headers, body = response._enrich_response(headers, body)
    return status, headers, body


class Refusal(ServiceException):
    """An error of AWS's with a status that its model does not tell."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(code, message)
        self.http_status = status
