"""IAM refuses names, paths and documents that are too long, too short or of other characters, and what is missing.

moto takes a role name of any length. Source: the constraints of each parameter in the IAM API Reference, which the service
model carries (a role's name: 64 characters of `\\w+=,.@-`); "Common Errors", ValidationError.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Iterator

import refusals
from moto.core.utils import get_service_model
from moto.iam.exceptions import ValidationError

_NAME = r"[\w+=,.@-]+"


def apply() -> None:
    """Compares each request with its model."""
    refusals.before_all("iam", _check)


def _check(response: Any, parameters: Any) -> None:
    shape = get_service_model("iam").operation_model(response._get_action()).input_shape
    violations = list(_violations(shape, parameters, "")) if shape else []
    if violations:
        noun = "error" if len(violations) == 1 else "errors"
        raise ValidationError(f"{len(violations)} validation {noun} detected: {'; '.join(violations)}")


def _violations(shape: Any, value: Any, at: str) -> Iterator[str]:
    if shape.type_name == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                yield f"Value null at '{_path(at, name)}' failed to satisfy constraint: Member must not be null"
        for name, member in shape.members.items():
            if value.get(name) is not None:
                yield from _violations(member, value[name], _path(at, name))
    elif shape.type_name == "list":
        for index, item in enumerate(value, 1):
            yield from _violations(shape.member, item, f"{at}.{index}.member")
    elif shape.type_name == "string":
        yield from _string(shape, str(value), at)
    elif shape.type_name == "integer":
        yield from _bounds(shape.metadata, int(value), value, at, "value")


def _string(shape: Any, value: str, at: str) -> Iterator[str]:
    yield from _bounds(shape.metadata, len(value), value, at, "length")
    pattern = shape.metadata.get("pattern")
    matcher = _compiled(pattern) if pattern else None
    if value and matcher and not matcher.fullmatch(value):
        constraint = f"Member must satisfy regular expression pattern: {pattern}"
        if pattern == _NAME:
            # The one constraint that IAM puts in words of its own.
            raise ValidationError(
                f"The specified value for {at} is invalid. It must contain only alphanumeric characters and/or the "
                "following: +=,.@_-"
            )
        yield f"Value '{value}' at '{at}' failed to satisfy constraint: {constraint}"


def _bounds(limits: Any, measured: int, value: Any, at: str, what: str) -> Iterator[str]:
    least, most = limits.get("min"), limits.get("max")
    failed = f"Value '{value}' at '{at}' failed to satisfy constraint: Member must have {what}"
    if least is not None and measured < least:
        yield f"{failed} greater than or equal to {least}"
    if most is not None and measured > most:
        yield f"{failed} less than or equal to {most}"


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    # Java's classes of characters, which Python's expressions don't have, are in tags' patterns only; moto knows those.
    return None if r"\p{" in pattern else re.compile(pattern)


def _path(at: str, name: str) -> str:
    member = name[0].lower() + name[1:]
    return f"{at}.{member}" if at else member
