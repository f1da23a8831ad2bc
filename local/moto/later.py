"""What AWS does a while after a call, as much faster as the cloud is."""

from __future__ import annotations

import os
import threading
import traceback
from typing import Callable

_SPEED = float(os.environ.get("SLIPWAY_SPEED", "1"))


def after(seconds: float, act: Callable[[], None]) -> None:
    """Acts once AWS's `seconds` are over."""

    def run() -> None:
        try:
            act()
        except Exception:
            # Nobody waits for the answer; the log is where it is looked for.
            traceback.print_exc()

    timer = threading.Timer(seconds / _SPEED, run)
    timer.daemon = True
    timer.start()
