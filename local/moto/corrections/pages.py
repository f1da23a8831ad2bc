"""Every list that AWS gives in pages comes in pages, of the size asked for, and a token that AWS did not give is refused.

moto answers some lists whole whatever MaxResults says, cuts others without a token, and takes any token. A list is taken
once and its pages are cut from it, so what is deleted between two pages moves nothing. Sources: the paginators of the
service models; Amazon EC2 API Reference, "Pagination" and "Error codes" (InvalidNextToken, InvalidParameterValue,
InvalidParameterCombination); IAM API Reference, the Marker and MaxItems of each list.

The cloud may ask for small pages by a header, so that tests see whether lists are read to their end. As on EC2, what is
asked for by id comes in one page. DescribeInstanceTypes, -TypeOfferings and DescribeSpotPriceHistory page for themselves.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cache
from typing import Any
from uuid import uuid4

import refusals
from moto.core.responses import ActionResult, BaseResponse
from moto.core.utils import get_pagination_model, get_service_model

_OWN = {"DescribeInstanceTypes", "DescribeInstanceTypeOfferings", "DescribeSpotPriceHistory"}
_SIZE = {"ec2": 1000, "iam": 100, "elbv2": 400, "elb": 400, "autoscaling": 50}
_WHOLE = 1_000_000
_KEPT = 4096

_rests: OrderedDict[str, tuple[Any, list[Any]]] = OrderedDict()
_lock = threading.Lock()


def apply() -> None:
    """Lets moto answer the whole list, and cuts the page from it before it is written."""
    write = BaseResponse.serialized
    for service in _SIZE:
        refusals.after_checks(service, _prepare)
    refusals.after_checks("resourcegroupstaggingapi", _shorten)

    def serialized(self: Any, result: ActionResult) -> Any:
        page = self.__dict__.pop("_page", None)
        if page and isinstance(result.result, dict):
            _cut(page, result.result)
        return write(self, result)

    BaseResponse.serialized = serialized


def _prepare(response: Any, parameters: Any) -> None:
    service, action = response.boto3_service_name, response._get_action()
    config = _config(service, action)
    if not config:
        return
    limit, token = config["limit_key"], config["input_token"]
    asked, by_id = parameters.get(limit), any(parameters.get(name) for name in _ids(service, action))
    if asked is not None:
        _check_limit(service, action, limit, int(asked), parameters)
    size = int(asked or _SIZE[service])
    small = response.headers.get("x-slipway-page-size")
    if small and not (by_id and asked is None):
        size = min(size, int(small))
    marker = parameters.get(token)
    listed = (response.current_account, response.region, action)
    rest = None
    if marker:
        with _lock:
            whose, rest = _rests.get(marker, (None, None))
        if whose != listed:
            raise _bogus(service, marker)
        del parameters[token]
    parameters[limit] = _WHOLE
    response._page = (config, listed, rest, size)


def _cut(page: Any, result: dict[str, Any]) -> None:
    config, listed, rest, size = page
    key, output = config["result_key"], config["output_token"]
    found = rest if rest is not None else list(result.get(key) or [])
    result[key] = found[:size]
    result.pop(output, None)
    if more := config.get("more_results"):
        result[more] = len(found) > size
    if len(found) > size:
        result[output] = token = uuid4().hex
        with _lock:
            _rests[token] = (listed, found[size:])
            while len(_rests) > _KEPT:
                _rests.popitem(last=False)


def _check_limit(service: str, action: str, limit: str, asked: int, parameters: Any) -> None:
    shape = get_service_model(service).operation_model(action).input_shape.members[limit]
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if service == "iam":
        return
    member = limit[0].lower() + limit[1:]
    invalid = f"Value ( {asked} ) for parameter {member} is invalid."
    if least is not None and asked < least:
        raise refusals.Refusal(400, "InvalidParameterValue", f"{invalid} Expecting a value greater than {least}.")
    if most is not None and asked > most:
        raise refusals.Refusal(400, "InvalidParameterValue", f"{invalid} Expecting a value less than {most}.")
    if "in the same" in shape.documentation:
        for name in _ids(service, action):
            if parameters.get(name):
                message = f"The parameter {name[0].lower() + name[1:]} cannot be used with the parameter {member}"
                raise refusals.Refusal(400, "InvalidParameterCombination", message)


def _bogus(service: str, token: str) -> refusals.Refusal:
    if service == "ec2":
        return refusals.Refusal(400, "InvalidNextToken", f"The token '{token}' is invalid.")
    return refusals.Refusal(400, "ValidationError", f"Invalid Marker: {token}")


def _shorten(response: Any, parameters: Any) -> None:
    """The tagging API's own paging is as AWS's, but for the size that a test asks for."""
    small = response.headers.get("x-slipway-page-size")
    if small and response._get_action() == "GetResources":
        parameters["ResourcesPerPage"] = min(int(parameters.get("ResourcesPerPage") or 50), int(small))


@cache
def _config(service: str, action: str) -> Any:
    config = get_pagination_model(service).get(action)
    usable = config and action not in _OWN and "limit_key" in config and isinstance(config["result_key"], str)
    return config if usable else None


@cache
def _ids(service: str, action: str) -> tuple[str, ...]:
    """The parameters that name things one by one."""
    members = get_service_model(service).operation_model(action).input_shape.members
    lists = (name for name, shape in members.items() if shape.type_name == "list")
    return tuple(name for name in lists if name.endswith(("Ids", "Names", "Arns")))
