"""DescribeLaunchTemplates answers page by page and says that there is more.

moto cuts the list at 15 without a NextToken, so whoever cleans up after a cluster leaves the rest behind. AWS's page
has 200 at most.
"""

from __future__ import annotations

from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses.launch_templates import LaunchTemplates

_PAGE = 200


def apply() -> None:
    original = LaunchTemplates.describe_launch_templates

    def describe_launch_templates(self: Any) -> Any:
        size = min(int(self._get_param("MaxResults") or _PAGE), _PAGE)
        token = self._get_param("NextToken") or "0"
        if not token.isdigit():
            raise EC2ClientError("InvalidNextToken", f"Invalid value '{token}' for NextToken.")
        start = int(token)
        # moto takes the first MaxResults: ask for one more than the page, and cut what came before it.
        self._get_int_param = lambda name, default=None: start + size + 1 if name == "MaxResults" else default
        answer = original(self)
        found = answer.result["LaunchTemplates"]
        answer.result["LaunchTemplates"] = found[start : start + size]
        if len(found) > start + size:
            answer.result["NextToken"] = str(start + size)
        return answer

    LaunchTemplates.describe_launch_templates = describe_launch_templates
