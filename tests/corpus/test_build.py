"""Whole builds from hand-made packages, and checks of the real data set where its packages are in the cache."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from geminid.config import DataConfig
from geminid.corpus.build import build
from geminid.corpus.fetch import default_cache
from geminid.corpus.packages import packages_for
from geminid.corpus.show import show
from geminid.corpus.store import open_dataset

COLOURS = {"dog": (255, 0, 0), "owl": (0, 255, 0), "key": (0, 0, 255), "star": (255, 255, 0), "rainbow": (0, 255, 255)}


def test_pictures_are_what_they_say(small_dataset, small_config):
    assert small_dataset.concepts == ("dog", "key", "owl", "star")
    assert small_dataset.extra_concepts == ("rainbow",)
    assert len(small_dataset.pictures) == 5 * len(small_config.styles) + 1  # and the photograph of a dog
    for i, meta in enumerate(small_dataset.pictures):
        picture = small_dataset.picture(i)
        assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
        assert tuple(picture[8, 8]) == COLOURS[meta.concept]
        assert meta.core == (meta.concept != "rainbow")
    pairs = Counter((meta.concept, meta.style) for meta in small_dataset.pictures)
    assert set(pairs.values()) == {1}


def test_splits_of_pictures(small_dataset):
    for concept in small_dataset.concepts:
        of = {meta.style: meta.split for meta in small_dataset.pictures if meta.concept == concept}
        assert of["twemoji"] == "style"
        assert Counter(of.values())["pair"] == 1
        assert of.get("photo", "train") == "train"
    assert {m.split for m in small_dataset.pictures if m.concept == "rainbow" and m.style != "twemoji"} == {"train"}


def test_words(small_dataset):
    assert small_dataset.names["fr"] == {"dog": "chien", "key": "clé", "owl": "hibou", "star": "étoile"}
    assert small_dataset.all_names["fr"]["rainbow"] == "arc-en-ciel"
    assert small_dataset.keywords["en"]["owl"] == ["owl word"]
    assert small_dataset.descriptions["sw"] == {"dog": ["Mbwa"]}


def test_animations(small_dataset):
    assert [meta.concept for meta in small_dataset.animations] == ["dog"]  # the key is a still
    assert small_dataset.animations[0].times_s == (0.0, 0.2, 0.4, 0.6)
    frames = small_dataset.animation(0)
    assert frames.shape == (4, 16, 16, 3)
    assert [tuple(frame[8, 8]) for frame in frames] == [(255, 0, 0), (0, 0, 255), (255, 0, 0), (0, 0, 255)]


def test_clips(small_dataset):
    real = [meta for meta in small_dataset.clips if meta.real]
    assert [(m.kind, m.concept, m.language, m.text) for m in real] == [("name", "dog", "fr", "Un chien")]
    assert small_dataset.report["skipped"]["too long"] == 1
    synthetic = {(m.concept, m.language) for m in small_dataset.clips if not m.real and m.kind == "name"}
    assert synthetic == {(concept, language) for concept in small_dataset.concepts for language in ("en", "fr")}
    for i, meta in enumerate(small_dataset.clips):
        clip = small_dataset.clip(i)
        assert clip.dtype == np.int16 and clip.shape == (meta.num_samples,)
        assert np.abs(clip.astype(int)).max() > 1000


def test_everything_said_has_its_pronunciation(small_dataset):
    said: dict[str, set[str]] = {}
    for meta in small_dataset.clips:
        said.setdefault(meta.language, set()).add(meta.text)
    assert "Un chien" in said["fr"]  # a recording
    assert {language: set(by_text) for language, by_text in small_dataset.phones.items()} == said
    assert small_dataset.phones["en"]["key"] == "kˈiː"
    assert small_dataset.phones["fr"]["Un chien"].endswith("ʃjˈɛ̃")
    assert all(ipa for by_text in small_dataset.phones.values() for ipa in by_text.values())


def test_manifest_and_counts(small_dataset):
    packages = {package["name"]: package for package in small_dataset.manifest["packages"]}
    assert packages["@iconify-json/noto"]["licence"] == "Apache-2.0"
    assert all(len(package["sha256"]) == 64 for package in packages.values())
    counts = json.loads(json.dumps(show(small_dataset)))
    assert counts["num_concepts"] == 4
    assert counts["num_pictures"] == sum(counts["pictures_by_style"].values()) == len(small_dataset.pictures)
    assert sum(counts["clips_by_kind"].values()) == counts["num_clips"] == len(small_dataset.clips)
    assert counts["licences"]["tuxpaint-stamps-default"] == "GPL-2.0-or-later"
    assert (small_dataset.path / "contact_sheet.png").is_file()


def test_same_bytes_every_time(small_dataset, small_config, small_cache):
    again = build(small_config, small_cache)
    names = sorted(path.name for path in again.iterdir())
    assert names == sorted(path.name for path in small_dataset.path.iterdir())
    for name in names:
        assert (again / name).read_bytes() == (small_dataset.path / name).read_bytes(), name


def test_built_once(small_config, small_cache):
    path = build(dataclasses.replace(small_config, synthetic_voices=0), small_cache)
    before = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    assert build(dataclasses.replace(small_config, synthetic_voices=0), small_cache) == path
    assert before == {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    other = build(dataclasses.replace(small_config, synthetic_voices=0, seed=1), small_cache)
    assert other != path


def test_what_a_killed_build_left_is_cleared(small_config, small_cache):
    stale = small_cache / "built" / "partial-abc" / "dataset"
    stale.mkdir(parents=True)
    (stale / "pictures.array_record").write_bytes(b"half")
    path = build(dataclasses.replace(small_config, synthetic_voices=0), small_cache)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_broken_animation_is_named_and_nothing_is_left(small_config, small_cache):
    (webp,) = small_cache.rglob("1f415.webp")
    webp.write_bytes(webp.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"animation .*1f415\.webp is missing or broken"):
        build(small_config, small_cache)
    assert list((small_cache / "built").iterdir()) == []


def test_a_broken_recording_is_named(small_config, small_cache):
    (wav,) = small_cache.rglob("dog_desc_fr.wav")
    wav.write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"recording .*dog_desc_fr\.wav is broken"):
        build(small_config, small_cache)


def test_without_debian(small_config, small_cache, monkeypatch):
    """No stamps: pictures, names, animations and synthetic speech are all there."""
    (small_cache / "packages" / "debian-tuxpaint-stamps-default.json").unlink()
    monkeypatch.setenv("PATH", "")
    dataset = open_dataset(build(small_config, small_cache))
    assert dataset.concepts == ("dog", "key", "owl", "star")
    assert {meta.style for meta in dataset.pictures} == set(small_config.styles)
    assert dataset.clips and not any(meta.real for meta in dataset.clips)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"held_out_style": "openmojo"}, "data.held_out_style is 'openmojo', which is not in data.styles"),
        ({"styles": ("twemoji",)}, "one is held out, so use at least 2"),
        ({"languages": ("fr",)}, "lacks 'en'"),
        ({"languages": ("en", "qq")}, "CLDR has no names in 'qq'; it has en, fr"),
        ({"picture_size": 0}, "data.picture_size is 0; use at least 8"),
        ({"frames": 0}, "data.frames is 0; use at least 1"),
        ({"num_concepts": 99}, "data.num_concepts is 99; use 2 to 4"),
    ],
)
def test_mistakes_in_the_config_are_one_line(small_config, small_cache, changes, line):
    with pytest.raises(ValueError, match=line) as error:
        build(dataclasses.replace(small_config, **changes), small_cache)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def real_dataset():
    config, cache = DataConfig(), default_cache()
    missing = [p for p in packages_for(config) if not (cache / "packages" / f"{p.directory}.json").is_file()]
    if missing:
        pytest.skip(f"{len(missing)} packages are not in {cache}: run `geminid data fetch`")
    return open_dataset(build(config, cache))


@pytest.mark.data
@pytest.mark.slow
def test_real_data(real_dataset):
    """The counts that the project's claims stand on."""
    counts = show(real_dataset)
    assert counts["num_concepts"] >= 170
    styles = {}
    for meta in real_dataset.pictures:
        if meta.core:
            styles.setdefault(meta.concept, Counter())[meta.style] += 1
    for concept in real_dataset.concepts:
        assert styles[concept]["twemoji"] == 1, concept
        assert len(styles[concept]) >= 5, concept
    assert all(n == 1 for found in styles.values() for style, n in found.items() if style != "photo")
    assert counts["core_pictures_by_split"]["style"] == counts["num_concepts"]
    for names in real_dataset.names.values():
        assert len(set(names.values())) == len(names) == counts["num_concepts"]
    assert counts["num_text_languages"] >= 100
    words = {meta.concept for meta in real_dataset.clips if meta.split == "word"}
    assert not words & {m.concept for m in real_dataset.clips if m.real and m.kind == "name" and m.split != "word"}
    assert counts["clips_by_kind"]["real digit, speaker"] == 50
    said = {(meta.language, meta.text) for meta in real_dataset.clips if meta.kind != "sound"}
    assert {(language, text) for language, found in real_dataset.phones.items() for text in found} == said
    assert all(ipa.strip() for found in real_dataset.phones.values() for ipa in found.values())
    assert counts["animations_by_split"]["unseen"] >= 20
