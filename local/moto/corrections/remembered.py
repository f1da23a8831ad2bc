"""What moto works out anew for each request, though it never changes, is worked out once.

Which services there are (it lists its own folder), which methods a service has, under which names a member of an answer
may stand in an object: together more than a third of what its answers cost. Nor does it log each request, which the
gateway records.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

from moto import backends
from moto.core import responses
from moto.core.serialize import XFormedAttributePicker


def apply() -> None:
    names = tuple(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: names
    responses.method_names_from_class = cache(responses.method_names_from_class)
    XFormedAttributePicker.get_possible_keys = _remember(XFormedAttributePicker.get_possible_keys)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)


def _remember(find: Any) -> Any:
    known: dict[Any, tuple[str, ...]] = {}

    def get_possible_keys(self: Any, context: Any) -> Iterator[str]:
        shape = context.shape
        # All that the names depend on: shapes are as many as the models have, and live as long as we do.
        asked = (type(self), type(context.obj), shape, getattr(shape, "parent", None), context.key)
        found = known.get(asked)
        if found is None:
            found = known[asked] = tuple(find(self, context))
        return iter(found)

    return get_possible_keys
