"""moto (EC2, IAM, SSM) on a loopback port of its own, with the corrections of this folder."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import embedded  # noqa: E402


def main() -> None:
    """Serves until the cloud is gone."""
    embedded.tether()
    import refusals
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    refusals.listen()
    embedded.correct(HERE / "corrections")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    embedded.announce(server.get_host_and_port()[1])
    threading.Event().wait()


if __name__ == "__main__":
    main()
