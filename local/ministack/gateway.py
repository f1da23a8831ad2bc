"""How MiniStack calls the cloud's gateway, in the name of the AWS service that it plays."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

_endpoint = ""
_secret = ""


class Refused(Exception):
    """The gateway's answer was an error; its text is AWS's."""


def configure(endpoint: str, secret: str) -> None:
    """Where the gateway is, and the secret by which it knows us."""
    global _endpoint, _secret
    _endpoint, _secret = endpoint, secret


def states(principal: str, action: str, body: dict[str, Any], account: str, region: str) -> dict[str, Any]:
    """Calls Step Functions as a service (`events.amazonaws.com`), in an account and region."""
    request = urllib.request.Request(
        _endpoint,
        data=json.dumps(body).encode(),
        headers={
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AWSStepFunctions.{action}",
            "x-slipway-secret": _secret,
            "x-slipway-principal": principal,
            "x-slipway-scope": f"{account}/{region}/states",
        },
    )
    # The functions' proxy is not for us.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise Refused(error.read().decode(errors="replace")) from error
