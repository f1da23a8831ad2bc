"""What the local cloud does not have is said in the protocol of the service, by name; and so is a failure of its own.

moto answers with a page of HTML and status 500, which clients retry and cannot read. An action that AWS does not have
either is refused as AWS does. Source: Amazon EC2 API Reference, "Error codes", InvalidAction.
"""

from __future__ import annotations

import traceback
from typing import Any

import refusals
from botocore.model import OperationNotFoundError
from moto.core.responses import BaseResponse
from werkzeug.exceptions import HTTPException


def apply() -> None:
    """Catches what escapes from moto's reading and doing."""
    dispatch = BaseResponse._dispatch

    def _dispatch(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return dispatch(self, *arguments, **named)
        except HTTPException:
            raise
        except OperationNotFoundError:
            message = f"The action {self._get_action()} is not valid for this web service."
            return refusals.refuse(self, refusals.Refusal(400, "InvalidAction", message))
        except NotImplementedError as missing:
            what = str(missing).split(" has not been implemented")[0]
            message = f"the local cloud's {self.boto3_service_name} lacks it: {what} (docs/local-cloud.md)"
            return refusals.refuse(self, refusals.Refusal(501, "NotImplemented", message))
        except Exception as failure:
            traceback.print_exc()
            message = f"the local cloud's {self.boto3_service_name} failed: {failure!r}; log/moto.log has the trace"
            return refusals.refuse(self, refusals.Refusal(500, "InternalError", message))

    BaseResponse._dispatch = _dispatch
