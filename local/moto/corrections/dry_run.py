"""DryRun asks for permission alone: nothing is made, and the answer is DryRunOperation, status 412.

moto obeys it in some actions and makes the thing in others (CreateVpc, CreateNatGateway, DeleteSubnet). Source: Amazon
EC2 API Reference, "Error codes", DryRunOperation, and each action's DryRun parameter.
"""

from __future__ import annotations

from typing import Any

import refusals


def apply() -> None:
    """Answers before any action does anything."""
    refusals.before_all("ec2", _check)


def _check(_response: Any, parameters: Any) -> None:
    if parameters.get("DryRun"):
        message = "Request would have succeeded, but DryRun flag is set."
        raise refusals.Refusal(412, "DryRunOperation", message)
