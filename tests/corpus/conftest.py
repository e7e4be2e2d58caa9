"""Hand-made packages in the layout of the real ones: five styles, four core concepts and an extra, one animation."""

import dataclasses
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geminid.config import DataConfig
from geminid.corpus import stamps
from geminid.corpus.build import build
from geminid.corpus.packages import PackageRecord, packages_for
from geminid.corpus.store import Dataset, open_dataset

CONFIG = DataConfig(
    styles=("noto", "twemoji", "emojione", "openmoji", "noto-v1"),
    languages=("en", "fr"),
    picture_size=16,
    synthetic_voices=1,
    digit_languages=(),
    frames=4,
)
# concept: (emoji, colour, French name)
CORE = {
    "dog": ("\U0001f415", "#ff0000", "chien"),
    "owl": ("\U0001f989", "#00ff00", "hibou"),
    "key": ("\U0001f511", "#0000ff", "clé"),
    "star": ("\u2b50", "#ffff00", "étoile"),
}
EXTRA = {"rainbow": ("\U0001f308", "#00ffff", "arc-en-ciel")}
ALL = CORE | EXTRA


def svg_body(colour: str) -> str:
    return f'<rect width="8" height="8" fill="{colour}"/>'


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_webp(path: Path, colours: list[str], duration_ms: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (Image.new("RGB", (20, 20), colour) for colour in colours)
    first.save(path, save_all=bool(rest), append_images=rest, duration=duration_ms, lossless=True)


def write_wav(path: Path, seconds: float, hertz: float = 440.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(16_000 * seconds)) / 16_000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((8_000 * np.sin(2 * np.pi * hertz * time_s)).astype("<i2").tobytes())


def _icon_set(root: Path, with_code_points: bool) -> None:
    icons = {name: {"body": svg_body(colour)} for name, (_, colour, _) in ALL.items()}
    chars = {f"{ord(emoji):x}": name for name, (emoji, _, _) in ALL.items()}
    write_json(root / "icons.json", {"prefix": "x", "icons": icons, "width": 8, "height": 8})
    write_json(root / "chars.json", chars if with_code_points else {})


def _names(roots: dict[str, Path]) -> None:
    for language in ("en", "fr"):
        entries = {
            emoji: {"tts": [english if language == "en" else french], "default": [f"{english} word"]}
            for english, (emoji, _, french) in ALL.items()
        }
        annotations = {"annotations": {"annotations": entries}}
        write_json(roots["cldr-annotations-full"] / "annotations" / language / "annotations.json", annotations)
    (roots["cldr-annotations-derived-full"] / "annotationsDerived").mkdir(parents=True)


def _stamps(root: Path) -> None:
    folder = root / "usr" / "share" / "tuxpaint" / "stamps"
    (folder / "symbols" / "math").mkdir(parents=True)
    for match in stamps.read_matches():
        if match.concept in CORE:
            (folder / match.stamp).parent.mkdir(parents=True, exist_ok=True)
    dog = folder / "animals" / "mammals" / "dogs" / "dog"
    Image.new("RGBA", (40, 20), "#ff0000").save(dog.with_suffix(".png"))
    dog.with_suffix(".txt").write_text("A dog.\nfr.utf8=Un chien.\nsw.utf8=Mbwa.\n", encoding="utf-8")
    write_wav(dog.with_name("dog_desc_fr.wav"), 0.5)
    write_wav(dog.with_name("dog_desc.wav"), 9.0)  # longer than any limit


def write_cache(cache: Path, config: DataConfig = CONFIG) -> dict[str, Path]:
    """Fills an empty cache directory; returns package -> folder."""
    roots: dict[str, Path] = {}
    for package in packages_for(config):
        directory = f"packages/{package.directory}"
        record = PackageRecord(
            package.name, package.registry, package.version, package.licence, package.sha256, 1, directory
        )
        write_json(cache / f"{directory}.json", dataclasses.asdict(record))
        roots[package.name] = cache / directory
    for style in config.styles:
        _icon_set(roots[f"@iconify-json/{style}"], with_code_points=style not in ("emojione", "noto-v1"))
    _names(roots)
    _stamps(roots["tuxpaint-stamps-default"])
    for package in config.animation_packages:
        assets = roots[package] / "assets"
        write_webp(assets / "1f415.webp", ["red", "lime", "blue", "white", "red", "lime", "blue", "black"], 100)
        write_webp(assets / "1f511.webp", ["red"], 0)  # a still
    return roots


@pytest.fixture
def small_config() -> DataConfig:
    return CONFIG


@pytest.fixture
def small_cache(tmp_path: Path) -> Path:
    """A cache directory that holds the packages and nothing else."""
    write_cache(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The data set that the packages make. Not to be changed."""
    cache = tmp_path_factory.mktemp("cache")
    write_cache(cache)
    return open_dataset(build(CONFIG, cache))
