"""Fetches the public packages through the ordinary clients (npm, apt-get) into the user's cache directory.

Layout: `<cache>/packages/<registry>-<name>/` is one unpacked package, `<cache>/packages/<registry>-<name>.json` its
record. The record is written last, so what has one is whole; everything else is fetched again from the beginning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from geminid.config import DataConfig
from geminid.corpus.clients import Apt, npm_pack, run
from geminid.corpus.packages import Package, PackageRecord, packages_for
from geminid.corpus.store import write_json

_CONSOLE = Console(stderr=True, highlight=False)


def default_cache() -> Path:
    """The user's cache directory: $GEMINID_CACHE, else $XDG_CACHE_HOME/geminid, else ~/.cache/geminid."""
    if os.environ.get("GEMINID_CACHE"):
        return Path(os.environ["GEMINID_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "geminid"


@contextlib.contextmanager
def cache_lock(cache: Path) -> Iterator[None]:
    """Holds the cache for one process at a time; waits, and says so, while another process holds it.

    Raises ValueError if the directory cannot be used.
    """
    with contextlib.ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((cache / ".lock").open("w"))
        except OSError as error:
            raise ValueError(
                f"cannot use the cache directory {cache} ({error.strerror}): set GEMINID_CACHE to another"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _CONSOLE.print(f"waiting for another geminid process that uses {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(config: DataConfig, cache: Path) -> list[PackageRecord]:
    """Makes sure that every package of the config is in the cache and returns their records.

    What is there already is not downloaded again. Debian packages that the machine cannot get (no apt-get, not in its
    release) are left out, with one line.

    Raises ValueError for a config that names unknown packages, ConnectionError if a download fails, and OSError if the
    disk is too full or an archive is not the pinned one: one line each.
    """
    with cache_lock(cache):
        return fetch_locked(config, cache)


def fetch_locked(config: DataConfig, cache: Path) -> list[PackageRecord]:
    """`fetch` for a caller that holds the cache's lock."""
    packages = packages_for(config)
    records = {package.name: _read_record(package, cache) for package in packages}
    missing = _without_debian_where_impossible([p for p in packages if records[p.name] is None])
    if missing:
        partial = cache / "partial"
        shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left
        partial.mkdir()
        _check_space(missing, cache)
        for record in _download_all(missing, cache):
            records[record.name] = record
        shutil.rmtree(partial, ignore_errors=True)
    return [record for record in records.values() if record is not None]


def install(package: Package, archive: Path, version: str, cache: Path) -> PackageRecord:
    """Checks one downloaded archive, unpacks it into the cache and records it.

    `version` is what the archive holds: the pinned one, or whatever one Debian release has.
    Raises OSError, one line, if the archive is not the pinned one or cannot be unpacked.
    """
    sha256 = _sha256(archive)
    if version == package.version and sha256 != package.sha256:
        raise OSError(
            f"{package.name} {version} has SHA-256 {sha256[:16]}..., expected {package.sha256[:16]}...: "
            "the download is damaged or was altered; run the command again"
        )
    target = cache / "packages" / package.directory
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
        unpacked = _unpack(package, archive, Path(temporary))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unpacked, target)
    record = PackageRecord(
        name=package.name,
        registry=package.registry,
        version=version,
        licence=package.licence,
        sha256=sha256,
        num_bytes=archive.stat().st_size,
        directory=f"packages/{package.directory}",
    )
    write_json(_record_path(package, cache), dataclasses.asdict(record))
    return record


def _record_path(package: Package, cache: Path) -> Path:
    return cache / "packages" / f"{package.directory}.json"


def _read_record(package: Package, cache: Path) -> PackageRecord | None:
    try:
        record = PackageRecord(**json.loads(_record_path(package, cache).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    wanted = package.registry == "debian" or record.version == package.version  # apt has one version per release
    return record if wanted and (cache / record.directory).is_dir() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(package: Package, archive: Path, folder: Path) -> Path:
    """Unpacks the archive somewhere under `folder` -> the package's root."""
    if package.registry == "debian":
        run(["dpkg-deb", "-x", str(archive), str(folder / "root")], f"cannot unpack {package.name}", OSError)
        return folder / "root"
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise OSError(f"cannot unpack {package.name} {package.version} ({error}): run the command again") from None
    return folder / "package"  # npm's archives hold one folder of this name


def _check_space(packages: list[Package], cache: Path) -> None:
    # npm keeps a copy of its own while it downloads
    needed = sum(p.unpacked_bytes for p in packages) + 2 * max(p.num_bytes for p in packages)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise OSError(
            f"{cache} has {free / 1e6:.0f} MB free, the packages need {needed / 1e6:.0f} MB: "
            "free some space or set GEMINID_CACHE to a larger disk"
        )


def _without_debian_where_impossible(packages: list[Package]) -> list[Package]:
    lacking = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    others = [package for package in packages if package.registry != "debian"]
    if lacking and len(others) < len(packages):
        _CONSOLE.print(f"no {lacking[0]} here: going on without the Debian packages (photographs, recordings)")
        return others
    return packages


def _download_all(packages: list[Package], cache: Path) -> Iterator[PackageRecord]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_CONSOLE) as progress:
        task = progress.add_task("fetching", total=sum(package.num_bytes for package in packages))
        apt: Apt | None = None
        for package in packages:
            progress.update(task, description=f"fetching {package.name}")
            with tempfile.TemporaryDirectory(dir=cache / "partial") as temporary:
                if package.registry == "npm":
                    archive = npm_pack(package.name, package.version, Path(temporary), cache)
                    yield install(package, archive, package.version, cache)
                else:
                    apt = apt or Apt(cache / "partial" / "apt")
                    if apt.knows(package.name):
                        archive, version = apt.download(package.name, Path(temporary))
                        yield install(package, archive, version, cache)
                    else:
                        _CONSOLE.print(f"apt-get does not know {package.name}: going on without it")
            progress.advance(task, package.num_bytes)
        progress.update(task, description="fetched")
