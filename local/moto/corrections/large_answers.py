"""DescribeInstanceTypes, -TypeOfferings and DescribeSpotPriceHistory answer page by page, and obey DryRun.

moto answers everything at once, through a serializer that takes 6 to 9 seconds for all instance types; Karpenter asks
for them when it starts, once as a DryRun. The XML is made here instead, from the same service model, each item once.
Page sizes: the API reference of each action (MaxResults).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Callable
from uuid import uuid4
from xml.sax.saxutils import escape

from moto.core.utils import get_service_model
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses.instances import InstanceResponse
from moto.ec2.responses.spot_instances import SpotInstances

Writer = Callable[[str, Any], str]


def apply() -> None:
    InstanceResponse.describe_instance_types = _instance_types
    InstanceResponse.describe_instance_type_offerings = _offerings
    SpotInstances.describe_spot_price_history = _spot_prices


_FOUND: dict[str, list[Any]] = {}


def _instance_types(self: Any) -> str:
    self.error_on_dryrun()
    names, filters = self._get_param("InstanceTypes", []), self._filters_from_querystring()
    # Types never change, and each page would filter them all again.
    asked = repr((self.region, names, filters))
    if asked not in _FOUND:
        _FOUND[asked] = self.ec2_backend.describe_instance_types(names, filters)
    found = _FOUND[asked]
    return _page(self, "DescribeInstanceTypes", "InstanceTypes", found, 100, lambda item: item["InstanceType"])


def _offerings(self: Any) -> str:
    self.error_on_dryrun()
    found = self.ec2_backend.describe_instance_type_offerings(
        self._get_param("LocationType"), self._filters_from_querystring()
    )
    key = lambda item: (item["LocationType"], item["Location"], item["InstanceType"])  # noqa: E731
    return _page(self, "DescribeInstanceTypeOfferings", "InstanceTypeOfferings", found, 1000, key)


def _spot_prices(self: Any) -> str:
    self.error_on_dryrun()
    found = self.ec2_backend.describe_spot_price_history(
        self._get_param("InstanceTypes", []), self._filters_from_querystring()
    )
    key = lambda item: (item["AvailabilityZone"], item["InstanceType"])  # noqa: E731
    return _page(self, "DescribeSpotPriceHistory", "SpotPriceHistory", found, 1000, key)


def _page(
    response: Any, action: str, member: str, found: list[Any], size: int, key: Callable[[Any], Any]
) -> str:
    token = response._get_param("NextToken") or "0"
    if not token.isdigit() or int(token) > len(found):
        raise EC2ClientError("InvalidNextToken", f"Invalid value '{token}' for NextToken.")
    start = int(token)
    size = min(int(response._get_param("MaxResults") or size), size)
    shape = _operation(action).output_shape.members[member]
    items = "".join(_item(action, member, key(item), item) for item in found[start : start + size])
    more = f"<nextToken>{start + size}</nextToken>" if start + size < len(found) else ""
    name = shape.serialization["name"]
    return (
        f'<{action}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>{uuid4()}</requestId>'
        f"<{name}>{items}</{name}>{more}</{action}Response>"
    )


_ITEMS: dict[Any, str] = {}


def _item(action: str, member: str, key: Any, item: Any) -> str:
    found = _ITEMS.get((action, key))
    if found is None:
        write = _writer(_operation(action).output_shape.members[member].member)
        found = _ITEMS[(action, key)] = write("item", item)
    return found


@cache
def _operation(action: str) -> Any:
    return get_service_model("ec2").operation_model(action)


def _writer(shape: Any) -> Writer:
    """Writes values of a shape as an element; compiled once, since the model is slow to ask."""
    known = _WRITERS.get(shape.name)
    if known is None:
        known = _WRITERS[shape.name] = _compile(shape)
    return known


_WRITERS: dict[str, Writer] = {}


def _compile(shape: Any) -> Writer:
    if shape.type_name == "structure":
        members = [
            (name, member.serialization.get("name", name), _writer(member)) for name, member in shape.members.items()
        ]

        def structure(element: str, value: Any) -> str:
            inner = "".join(write(tag, value[name]) for name, tag, write in members if value.get(name) is not None)
            return f"<{element}>{inner}</{element}>"

        return structure
    if shape.type_name == "list":
        write = _writer(shape.member)
        return lambda element, value: f"<{element}>{''.join(write('item', one) for one in value)}</{element}>"
    if shape.type_name == "boolean":
        return lambda element, value: f"<{element}>{str(bool(value)).lower()}</{element}>"
    return lambda element, value: f"<{element}>{escape(str(value))}</{element}>"
