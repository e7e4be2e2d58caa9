"""The public packages that hold the data, and which of them a config needs.

`packages.tsv` is the pinned table: version, SPDX licence, size and SHA-256 of the archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from geminid.config import DataConfig


@dataclass(frozen=True)
class Package:
    """One pinned package; `sha256` and `num_bytes` are those of the archive that its registry's client downloads."""

    name: str
    registry: str  # "npm" | "debian"
    version: str
    licence: str  # SPDX identifier
    sha256: str
    num_bytes: int
    unpacked_bytes: int  # on disk, rounded up

    @property
    def directory(self) -> str:
        """Name of the folder that the package is unpacked to."""
        return f"{self.registry}-{self.name.lstrip('@').replace('/', '-')}"


@dataclass(frozen=True)
class PackageRecord:
    """One package as it was fetched: what the manifest of a data set lists."""

    name: str
    registry: str
    version: str
    licence: str
    sha256: str
    num_bytes: int
    directory: str  # relative to the cache directory


ICONIFY = "@iconify-json/"
DIGITS = "asterisk-core-sounds-"  # + language: transcripts; + "-wav": recordings
STAMPS = "tuxpaint-stamps-default"
CLDR_PACKAGES = ("cldr-annotations-full", "cldr-annotations-derived-full")


def _read_table() -> dict[str, Package]:
    text = resources.files("geminid.corpus").joinpath("packages.tsv").read_text(encoding="utf-8")
    packages: dict[str, Package] = {}
    for line in text.splitlines()[1:]:
        name, registry, version, licence, num_bytes, unpacked_bytes, sha256 = line.split("\t")
        packages[name] = Package(name, registry, version, licence, sha256, int(num_bytes), int(unpacked_bytes))
    return packages


PACKAGES: dict[str, Package] = _read_table()


def _known(names: list[str], field: str, prefix: str) -> list[Package]:
    unknown = [name for name in names if name not in PACKAGES]
    if unknown:
        known = ", ".join(sorted(name.removeprefix(prefix) for name in PACKAGES if name.startswith(prefix)))
        raise ValueError(f"{field}: unknown {unknown[0].removeprefix(prefix)!r}; known: {known}")
    return [PACKAGES[name] for name in names]


def packages_for(config: DataConfig) -> list[Package]:
    """Every package that the config reads, in a fixed order.

    Raises ValueError for a style, an animation package or a digit language that is not in the table.
    """
    emoji = _known([ICONIFY + style for style in config.styles], "data.styles", ICONIFY)
    animations = _known(list(config.animation_packages), "data.animation_packages", "@lobehub/")
    digits = _known(
        [DIGITS + language + suffix for language in config.digit_languages for suffix in ("", "-wav")],
        "data.digit_languages",
        DIGITS,
    )
    names = [PACKAGES[name] for name in CLDR_PACKAGES]
    chosen = [*emoji, *names, *animations, PACKAGES[STAMPS], *digits]
    return list(dict.fromkeys(chosen))
