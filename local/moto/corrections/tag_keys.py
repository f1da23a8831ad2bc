"""A filter by several tag keys fits what has any of them.

moto asks that a resource has all of them, or none beside them ("Filter your Amazon EC2 resources": the values of one
filter are joined with OR).
"""

from __future__ import annotations

from typing import Any

from moto.ec2 import utils


def apply() -> None:
    """Lets any value of a tag-key filter do."""
    original = utils.is_filter_matching

    def is_filter_matching(obj: Any, name: str, values: Any) -> bool:
        if name == "tag-key" and isinstance(values, list):
            return any(original(obj, name, [value]) for value in values)
        return original(obj, name, values)

    utils.is_filter_matching = is_filter_matching
