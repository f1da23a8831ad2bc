"""What both emulators' wrappers need: a tether to the cloud, corrections, and a way to say that they are ready."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path


def tether() -> None:
    """Ends this process and all that it started when the cloud that holds our standard input is gone.

    The cloud starts us as the leader of a process group of our own, so the group is ours to kill.
    """

    def watch() -> None:
        while os.read(0, 4096):
            pass
        for child in _descendants(os.getpid()):
            _kill(child)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="tether", daemon=True).start()


def correct(folder: Path) -> None:
    """Applies each correction of a folder, in the order of their names: `apply()` of every `*.py`."""
    for path in sorted(folder.glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(f"corrections.{path.stem}", path)
        if spec is None or spec.loader is None:
            sys.exit(f"{path} is no Python module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.apply()


def announce(port: int) -> None:
    """Tells the cloud that we answer on a port, by the file that it named in SLIPWAY_ANNOUNCE."""
    # What is loaded by now stays: no collection needs to look through it again.
    gc.freeze()
    path = Path(os.environ["SLIPWAY_ANNOUNCE"])
    unready = path.with_suffix(".unready")
    unready.write_text(str(port), encoding="ascii")
    unready.rename(path)


def _descendants(of: int) -> list[int]:
    """All processes below one, found in /proc, since functions may lead groups of their own."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The second field is the name in brackets and may contain anything; the parent follows the state.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found = []
    below = [of]
    while below:
        children = parents.get(below.pop(), [])
        found += children
        below += children
    return found


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
