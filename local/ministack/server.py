"""MiniStack (Lambda, DynamoDB, S3, SQS, EventBridge, …) on a loopback port, with the corrections of this folder."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import embedded  # noqa: E402


async def serve(listener: socket.socket, door_secret: str) -> None:
    """Serves MiniStack behind our door until the cloud is gone."""
    import door
    from hypercorn.asyncio import serve as hypercorn
    from hypercorn.config import Config
    from ministack.app import app

    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.keep_alive_timeout = 75
    config.loglevel = "WARNING"
    # Whoever calls before hypercorn accepts waits in the queue.
    listener.listen(1024)
    embedded.announce(listener.getsockname()[1])
    await hypercorn(door.guard(app, door_secret), config)


def main() -> None:
    """Takes a port first, since MiniStack reads its own from the environment when it is imported."""
    embedded.tether()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    os.environ["GATEWAY_PORT"] = str(listener.getsockname()[1])
    # Functions inherit our environment, and the secret is not theirs to know.
    secret = os.environ.pop("SLIPWAY_DOOR_SECRET")

    import gateway

    gateway.configure(os.environ["AWS_ENDPOINT_URL"], secret)
    embedded.correct(HERE / "corrections")
    asyncio.run(serve(listener, secret))


if __name__ == "__main__":
    main()
