"""The door through which the cloud, and nobody else, speaks to MiniStack beyond its AWS interface."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX = "/_slipway/"

PAGE_SIZE: ContextVar[int] = ContextVar("page size", default=0)
"""How many items a page of the request at hand may have at most; 0 for as many as AWS gives."""


def guard(application: Application, secret: str) -> Application:
    """Serves `/_slipway/…` to whoever knows the secret, and everything else by MiniStack."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", []))
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            PAGE_SIZE.set(int(headers.get(b"x-slipway-page-size", b"0")))
            await application(scope, receive, send)
            return
        given = headers.get(b"x-slipway-secret", b"")
        if not hmac.compare_digest(given, secret.encode()):
            await _answer(send, 403, {"message": "this door is the cloud's own"})
            return
        status, body = _open(scope["path"].removeprefix(PREFIX), await _body(receive))
        await _answer(send, status, body)

    return guarded


def _open(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    kind, _, name = path.partition("/")
    if kind == "sessions":
        return _session(name)
    if kind == "events":
        return _put_events(body)
    return 404, {"message": f"no {kind} behind this door"}


def _session(access_key: str) -> tuple[int, dict[str, Any]]:
    """Whose an access key is: a function's session of its role."""
    from ministack.services import sts

    session = sts._sessions.get(access_key)
    if session is None:
        return 404, {"message": "no such session"}
    wanted = ("Arn", "SecretAccessKey", "SessionToken", "Expiration")
    return 200, {name: session[name] for name in wanted if name in session}


def _put_events(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Puts events of AWS's own sources (`aws.states`) on a bus, which PutEvents refuses to everybody else."""
    from ministack.core import responses
    from ministack.services import eventbridge

    responses.set_request_account_id(body["account"])
    responses.set_request_region(body["region"])
    status, _, answer = eventbridge._put_events({"Entries": body["entries"]}, allow_aws_source=True)
    return status, json.loads(answer)


async def _body(receive: Receive) -> dict[str, Any]:
    chunks = b""
    while True:
        message = await receive()
        chunks += message.get("body", b"")
        if not message.get("more_body"):
            return json.loads(chunks) if chunks else {}


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
