"""Builds the data set of a config: fetch, render, decode, split, write."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from geminid.config import DataConfig, canonical_json
from geminid.corpus import animations, cldr, emoji, recordings, speech, splits, stamps
from geminid.corpus.concepts import core_concepts, extra_concepts, unique_names
from geminid.corpus.fetch import cache_lock, fetch_locked
from geminid.corpus.packages import CLDR_PACKAGES, DIGITS, ICONIFY, STAMPS, PackageRecord
from geminid.corpus.show import CONTACT_SHEET, write_contact_sheet
from geminid.corpus.store import (
    INDEX,
    MANIFEST,
    TEXTS,
    AnimationMeta,
    ClipMeta,
    PictureMeta,
    RecordWriter,
    open_dataset,
    rows_of,
    write_json,
)

BUILD_VERSION = 6  # raise it when the same config and packages would give other bytes
PHOTO = "photo"  # style of the stamps' pictures
_MAX_WORKERS = 4
_SLOW_STYLE = "fluent-emoji"  # 3D drawings, 20 times slower than the others: core concepts only
_MIN_NAMES = 0.5  # of the concepts: a language with fewer names is left out of the texts
_SPACE_BYTES = 1_500_000_000  # a default data set and what is under way, with room to spare


@dataclass(frozen=True)
class _Sources:
    """What a build reads: unpacked packages, concepts and their words."""

    roots: dict[str, Path]  # package -> folder
    sets: dict[str, emoji.IconSet]
    icons: dict[str, dict[str, str]]  # concept -> style -> icon
    films: dict[str, Path]  # core concept -> animation
    points: dict[str, str]  # concept -> code points
    core: list[str]
    extra: list[str]
    matches: list[stamps.StampMatch]  # of the core concepts
    stamps_root: Path | None  # None: the machine has no Debian packages
    descriptions: dict[str, dict[str, list[str]]]  # language -> concept -> phrases


def build(config: DataConfig, cache: Path) -> Path:
    """Fetches what the config needs, builds its data set and returns the data set's directory.

    Returns at once if it is there. A build that is interrupted leaves nothing behind that another would trip over.
    Raises, one line each: ValueError for a config that cannot be built or a broken file; OSError for a full disk; and
    what `geminid.corpus.fetch.fetch` raises.
    """
    _check(config)
    cache = Path(cache)
    with cache_lock(cache):
        records = fetch_locked(config, cache)
        path = cache / "built" / fingerprint(config, records)
        if path.is_dir():  # it was renamed to this name when it was whole
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < _SPACE_BYTES:
            raise OSError(
                f"{cache} has {free / 1e6:.0f} MB free, a data set needs up to {_SPACE_BYTES / 1e6:.0f} MB: "
                "free some space or set GEMINID_CACHE to a larger disk"
            )
        for stale in path.parent.glob("partial-*"):  # the lock is ours: its builder is dead
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="partial-") as temporary:
            folder = Path(temporary) / "dataset"
            folder.mkdir()
            _build_into(folder, config, records, cache)
            os.replace(folder, path)
        return path


def fingerprint(config: DataConfig, records: list[PackageRecord]) -> str:
    """16 hex digits that change with the config, the packages' versions and the way of building."""
    packages = sorted((record.name, record.version, record.sha256) for record in records)
    text = f"{canonical_json(config)}{packages}{stamps.read_matches()}{BUILD_VERSION}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(config: DataConfig) -> None:
    if config.held_out_style not in config.styles:
        raise ValueError(
            f"data.held_out_style is {config.held_out_style!r}, which is not in data.styles {list(config.styles)}"
        )
    if len(config.styles) < 2:
        raise ValueError(f"data.styles has {len(config.styles)} style: one is held out, so use at least 2")
    if "en" not in config.languages:
        raise ValueError(f"data.languages {list(config.languages)} lacks 'en', in which concepts are named")
    for field, least in (("picture_size", 8), ("frames", 1), ("synthetic_voices", 0)):
        if getattr(config, field) < least:
            raise ValueError(f"data.{field} is {getattr(config, field)}; use at least {least}")


def _build_into(folder: Path, config: DataConfig, records: list[PackageRecord], cache: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    skipped: Counter[str] = Counter()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        sources = _read_sources(config, records, cache)
        names, texts = _words(config, sources, progress)
        pictures = _write(folder, "pictures", _pictures(config, sources, progress, skipped))
        films = _write(folder, "animations", _animations(config, sources, progress))
        clips = _write(folder, "clips", _clips(config, sources, names, progress, skipped))
    index = {
        "picture_size": config.picture_size,
        "frames": config.frames,
        "concepts": sources.core,
        "extra_concepts": sources.extra,
        "names": names,
        "phones": _phones(clips),
        "pictures": rows_of(pictures),
        "clips": rows_of(clips),
        "animations": rows_of(films),
        "report": {"skipped": dict(sorted(skipped.items()))},
    }
    write_json(folder / TEXTS, texts)
    manifest = {"config": dataclasses.asdict(config), "build_version": BUILD_VERSION}
    write_json(folder / MANIFEST, {**manifest, "packages": [dataclasses.asdict(record) for record in records]})
    write_json(folder / INDEX, index)
    write_contact_sheet(open_dataset(folder), folder / CONTACT_SHEET)


def _phones(clips: Iterable[ClipMeta]) -> dict[str, dict[str, str]]:
    """Language -> what is said -> its pronunciation."""
    synthesiser = speech.Synthesiser()
    spoken: dict[str, set[str]] = {}
    for meta in clips:
        if meta.kind != "sound":
            spoken.setdefault(meta.language, set()).add(meta.text)
    return {
        language: dict(zip(sorted(texts), synthesiser.phones(sorted(texts), language), strict=True))
        for language, texts in sorted(spoken.items())
    }


def _write(folder: Path, name: str, items: Iterable[tuple[Any, np.ndarray]]) -> list[Any]:
    writer = RecordWriter(folder / f"{name}.array_record")
    metas = []
    try:
        for meta, array in items:
            writer.write(array)
            metas.append(meta)
    finally:
        writer.close()
    return metas


def _read_sources(config: DataConfig, records: list[PackageRecord], cache: Path) -> _Sources:
    roots = {record.name: cache / record.directory for record in records}
    sets = {style: emoji.read_icon_set(style, roots[ICONIFY + style]) for style in config.styles}
    concepts = cldr.concept_ids(cldr.annotations(roots, "en"))
    icons = emoji.icons_of_concepts(list(sets.values()), concepts)
    table = stamps.read_matches()
    films: dict[str, Path] = {}
    for package in config.animation_packages:
        for points, path in animations.find(roots[package]).items():
            films.setdefault(concepts.get(points, points), path)
    core = core_concepts(config, icons, {match.concept for match in table}, set(films))
    matches = [match for match in table if match.concept in core]
    stamps_root = stamps.stamps_root(roots[STAMPS]) if STAMPS in roots else None
    return _Sources(
        roots=roots,
        sets=sets,
        icons=icons,
        films={concept: films[concept] for concept in core if concept in films},
        points={concept: points for points, concept in concepts.items()},
        core=core,
        extra=extra_concepts(config, icons, core),
        matches=matches,
        stamps_root=stamps_root,
        descriptions=stamps.descriptions(stamps_root, matches) if stamps_root else {},
    )


def _words(config: DataConfig, sources: _Sources, progress: Progress) -> tuple[dict, dict]:
    """Names of the core concepts in the config's languages, and the words of every concept in every language."""
    known = cldr.languages({name: sources.roots[name] for name in CLDR_PACKAGES})
    unknown = sorted(set(config.languages) - set(known))
    if unknown:
        raise ValueError(f"data.languages: CLDR has no names in {unknown[0]!r}; it has {', '.join(known)}")
    all_names: dict[str, dict[str, str]] = {}
    keywords: dict[str, dict[str, list[str]]] = {}
    names: dict[str, dict[str, str]] = {}
    wanted = [*sources.core, *sources.extra]
    for language in progress.track(known, description="names"):
        annotations = cldr.annotations(sources.roots, language)
        found = {c: annotations[sources.points[c]] for c in wanted if sources.points[c] in annotations}
        if len(found) < _MIN_NAMES * len(wanted) and language not in config.languages:
            continue
        spelled = cldr.spell({concept: entry.name for concept, entry in found.items() if entry.name})
        all_names[language] = spelled
        if language in config.languages:
            keywords[language] = {concept: list(entry.keywords) for concept, entry in found.items()}
            phrases = sources.descriptions.get(language, {})
            names[language] = unique_names(sources.core, spelled, phrases, keywords[language])
            spelled.update(names[language])
    return names, {"names": all_names, "keywords": keywords, "descriptions": sources.descriptions}


def _pictures(
    config: DataConfig, sources: _Sources, progress: Progress, skipped: Counter[str]
) -> Iterator[tuple[PictureMeta, np.ndarray]]:
    metas = [*_drawings(config, sources)]
    svgs = [sources.sets[meta.style].svg(sources.icons[meta.concept][meta.style]) for meta in metas]
    num_workers = min(_MAX_WORKERS, os.cpu_count() or 1)
    rendered = emoji.render_all(svgs, config.picture_size, num_workers)
    for meta, picture in progress.track(zip(metas, rendered, strict=True), total=len(metas), description="pictures"):
        if isinstance(picture, str):
            skipped[f"{meta.style}: drawing that resvg cannot draw"] += 1
        else:
            yield meta, picture
    if sources.stamps_root is None:
        return
    for match in progress.track([m for m in sources.matches if m.shows], description="photographs"):
        try:
            picture = stamps.picture(sources.stamps_root, match.stamp, config.picture_size)
        except emoji.UndrawableError:
            skipped["stamp that cannot be drawn"] += 1
            continue
        if picture is not None:
            yield PictureMeta(match.concept, core=True, style=PHOTO, split="train"), picture


def _drawings(config: DataConfig, sources: _Sources) -> Iterator[PictureMeta]:
    """Every emoji picture of the data set with its split."""
    for concept in sources.core:
        styles = sources.icons[concept]
        pair = splits.held_out_pair(concept, set(styles) - {config.held_out_style}, config.seed)
        for style in styles:
            split = "style" if style == config.held_out_style else "pair" if style == pair else "train"
            yield PictureMeta(concept, core=True, style=style, split=split)
    for concept in sources.extra:
        for style in sources.icons[concept]:
            if style != _SLOW_STYLE:
                split = "style" if style == config.held_out_style else "train"
                yield PictureMeta(concept, core=False, style=style, split=split)


def _animations(
    config: DataConfig, sources: _Sources, progress: Progress
) -> Iterator[tuple[AnimationMeta, np.ndarray]]:
    for concept, path in progress.track(sources.films.items(), description="animations"):
        frames, times_s = animations.read_frames(path, config.frames, config.picture_size)
        yield AnimationMeta(concept, splits.animation_split(concept, config.seed), times_s), frames


def _clips(
    config: DataConfig,
    sources: _Sources,
    names: dict[str, dict[str, str]],
    progress: Progress,
    skipped: Counter[str],
) -> Iterator[tuple[ClipMeta, np.ndarray]]:
    streams: dict[str, Iterator[tuple[ClipMeta, np.ndarray]]] = {}
    if sources.stamps_root:
        spoken = {match.stamp: match.concept for match in sources.matches if match.says}
        studio = {
            language: sources.roots[f"{DIGITS}{language}-wav"]
            for language in config.digit_languages
            if f"{DIGITS}{language}-wav" in sources.roots
        }
        streams["recordings"] = recordings.stamp_clips(sources.stamps_root, spoken, config, skipped)
        streams["spoken digits"] = recordings.digit_clips(sources.stamps_root, studio, config, skipped)
    streams["synthetic speech"] = speech.synthetic_clips(names, config, sources.descriptions, skipped)
    streams["synthetic digits"] = speech.synthetic_digits(config, skipped)
    for description, stream in streams.items():
        task = progress.add_task(description, total=None)
        num_clips = 0
        for num_clips, clip in enumerate(stream, start=1):
            progress.update(task, completed=num_clips)
            yield clip
        progress.update(task, total=num_clips)
