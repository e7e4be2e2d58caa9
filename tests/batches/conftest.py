"""A tiny data set in which every array says where it is from, and a small tokenizer.

Ink is 255 minus the pixel. The angle of a picture's green and blue ink tells its concept, and is kept when the picture
is scaled, turned, moved or faded. Only what is held out of training has red ink.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from geminid import recipes
from geminid.batches.memory import Memory
from geminid.batches.mixture import Mixture
from geminid.config import Recipe, TextConfig
from geminid.corpus import store
from geminid.corpus.store import AnimationMeta, ClipMeta, Dataset, PictureMeta
from geminid.document import Document
from geminid.tokens.ids import IdSpace
from geminid.tokens.text import train_tokenizer

SIZE = 16  # pixels
FRAMES = 8
RATE = 16_000
LANGUAGES = ("en", "fr", "ru", "el")
STYLES = ("noto", "openmoji", "emojione", "twemoji")
HELD_OUT_STYLE = "twemoji"
NAMES = {  # concept and English name: French, Russian, Greek
    "dog": ("chien", "собака", "σκύλος"),
    "owl": ("hibou", "сова", "κουκουβάγια"),
    "key": ("clé", "ключ", "κλειδί"),
    "star": ("étoile", "звезда", "αστέρι"),
    "bee": ("abeille", "пчела", "μέλισσα"),
    "tree": ("arbre", "дерево", "δέντρο"),
    "fish": ("poisson", "рыба", "ψάρι"),
    "train": ("train", "поезд", "τρένο"),
    "apple": ("pomme", "яблоко", "μήλο"),
    "moon": ("lune", "луна", "φεγγάρι"),
    "hot air balloon": ("montgolfière", "воздушный шар", "αερόστατο"),
    "shoe": ("chaussure", "ботинок", "παπούτσι"),
}
EXTRA_NAMES = {
    "rainbow": {"en": "rainbow", "fr": "arc-en-ciel"},
    "sled": {"fr": "luge", "el": "έλκηθρο"},
    "violin": {"en": "violin"},
    "lotus": {"ru": "лотос"},
}
CONCEPTS = (*sorted(NAMES), *sorted(EXTRA_NAMES))
MOVING = {"dog": "train", "bee": "train", "train": "train", "owl": "unseen", "fish": "unseen", "moon": "unseen"}
PHONES = "abdefiklmnoprstuvzŋɔəɛɡɪʃʒ"
WORD_CONCEPTS = ("owl", "tree", "apple", "moon")  # no real recording of these is heard in training


def ink_angle(concept: str) -> float:
    """In radians; the concepts are 5 degrees apart."""
    return np.radians(7.5 + 5 * CONCEPTS.index(concept))


def concept_of(pixels: np.ndarray) -> str:
    """The concept whose ink a picture or some frames have most of. pixels uint8 [... 3] on white."""
    _, green, blue = (255.0 - pixels.reshape(-1, 3)).sum(0)
    angle = np.arctan2(blue, green)
    return min(CONCEPTS, key=lambda concept: abs(ink_angle(concept) - angle))


def draw(rng: np.random.Generator, concept: str, held_out: bool) -> np.ndarray:
    """A picture like no other: random strokes in the concept's ink with a white border of 2 pixels."""
    strength = np.zeros((SIZE, SIZE, 1))
    strength[2:-2, 2:-2] = rng.uniform(80, 255, (SIZE - 4, SIZE - 4, 1))
    angle = ink_angle(concept)
    ink = strength * np.array([0.9 * held_out, np.cos(angle), np.sin(angle)])
    return (255 - ink).round().astype(np.uint8)


def names() -> dict[str, dict[str, str]]:
    rows = {concept: (concept, *others) for concept, others in NAMES.items()}
    return {language: {c: row[k] for c, row in rows.items()} for k, language in enumerate(LANGUAGES)}


def all_names() -> dict[str, dict[str, str]]:
    found = {language: dict(by_concept) for language, by_concept in names().items()}
    for concept, by_language in EXTRA_NAMES.items():
        for language, name in by_language.items():
            found[language][concept] = name
    return {**found, "sw": {"dog": "mbwa", "violin": "fidla"}}


def pictures() -> Iterator[tuple[PictureMeta, np.ndarray]]:
    rng = np.random.default_rng(1)
    for k, concept in enumerate(CONCEPTS):
        core = concept in NAMES
        pair = STYLES[k % 3] if core else None
        for style in (*STYLES, *["photo"] * (core * k % 3)):  # some concepts have two photographs
            split = "style" if style == HELD_OUT_STYLE else "pair" if style == pair else "train"
            yield PictureMeta(concept, core, style, split), draw(rng, concept, split != "train")


def animations() -> Iterator[tuple[AnimationMeta, np.ndarray]]:
    rng = np.random.default_rng(2)
    for concept, split in MOVING.items():
        times_s = tuple(round(0.3 * k, 3) for k in range(FRAMES))
        yield AnimationMeta(concept, split, times_s), np.stack([draw(rng, concept, split != "train")] * FRAMES)


def clip_metas() -> Iterator[ClipMeta]:
    def meta(kind: str, concept: str | None, language: str, voice: str, real: bool, split: str = "train", **more):
        text = names().get(language, {}).get(concept or "", str(more.get("digit")))
        return ClipMeta(kind, concept, more.get("digit"), language, text, voice, real, split, 0)

    for concept in NAMES:
        for language in LANGUAGES:
            for voice in ("a", "b"):
                yield meta("name", concept, language, voice, False)
            split = "word" if concept in WORD_CONCEPTS else "normal" if concept == "bee" else "train"
            yield meta("name", concept, language, "real", True, split)
    for digit in range(10):
        yield meta("digit", None, "en", "a", False, digit=digit)
        yield meta("digit", None, "nb", "real", True, digit=digit)
        yield meta("digit", None, "fr", "studio", True, "speaker", digit=digit)
    for concept in ("dog", "bee", "train"):
        yield meta("sound", concept, "und", "sound", True)


def clips() -> Iterator[tuple[ClipMeta, np.ndarray]]:
    """Noise of 0.2 to 1.3 s, with one of 2.3 s that is cut."""
    rng = np.random.default_rng(3)
    for k, meta in enumerate(clip_metas()):
        num_samples = round(RATE * (2.3 if k == 0 else rng.uniform(0.2, 1.3)))
        sound = rng.normal(0, 2000, num_samples).astype(np.int16)
        yield dataclasses.replace(meta, num_samples=num_samples), sound


def phones() -> dict[str, dict[str, str]]:
    """A pronunciation like no other of whatever is said: phones drawn at random, the second stressed."""
    found: dict[str, dict[str, str]] = {}
    for meta in clip_metas():
        if meta.kind != "sound":
            rng = np.random.default_rng([*meta.language.encode(), *meta.text.encode()])
            drawn = rng.choice(list(PHONES), rng.integers(3, 12))
            found.setdefault(meta.language, {})[meta.text] = drawn[0] + "ˈ" + "".join(drawn[1:])
    return found


def write_records(folder: Path, name: str, items: Iterator) -> dict:
    writer, metas = store.RecordWriter(folder / f"{name}.array_record"), []
    for meta, array in items:
        writer.write(array)
        metas.append(meta)
    writer.close()
    return store.rows_of(metas)


def write_dataset(folder: Path, silent: bool = False) -> Dataset:
    """Writes the data set; a silent one has neither sound nor animations, and English alone."""
    languages = LANGUAGES[:1] if silent else LANGUAGES
    index = {
        "picture_size": SIZE,
        "frames": FRAMES,
        "concepts": sorted(NAMES),
        "extra_concepts": sorted(EXTRA_NAMES),
        "names": {language: names()[language] for language in languages},
        "phones": {} if silent else phones(),
        "pictures": write_records(folder, "pictures", pictures()),
        "clips": write_records(folder, "clips", iter(()) if silent else clips()),
        "animations": write_records(folder, "animations", iter(()) if silent else animations()),
        "report": {"skipped": {}},
    }
    store.write_json(folder / store.INDEX, index)
    store.write_json(folder / store.TEXTS, {"names": all_names(), "keywords": {}, "descriptions": {}})
    return store.open_dataset(folder)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The demo's recipe with the tiny set's languages, styles and sizes; the batch's shape is the demo's."""
    demo = recipes.demo()
    data = dataclasses.replace(
        demo.data, languages=LANGUAGES, styles=STYLES, held_out_style=HELD_OUT_STYLE, picture_size=SIZE, frames=FRAMES
    )
    return dataclasses.replace(demo, data=data, text=TextConfig(vocab_size=500))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def silent_dataset(tmp_path_factory) -> Dataset:
    """Pictures with English names, nothing else."""
    return write_dataset(tmp_path_factory.mktemp("silent"), silent=True)


@pytest.fixture(scope="session")
def memory(recipe, dataset) -> Memory:
    return Memory(recipe, dataset)


@pytest.fixture(scope="session")
def space(recipe, dataset, tmp_path_factory) -> IdSpace:
    path = tmp_path_factory.mktemp("tokenizer") / "text.model"
    sentences = [name for by_concept in dataset.all_names.values() for name in by_concept.values()]
    train_tokenizer([*sentences, *map(str, range(10))] * 3, recipe.text.vocab_size, path)
    return IdSpace.load(recipe, path)


@pytest.fixture(scope="session")
def codes(recipe, dataset) -> np.ndarray:
    """As many codes as a picture of the demo has, different for every picture."""
    shape = (len(dataset.pictures), 8, 8)
    return np.random.default_rng(4).integers(0, recipe.codec.num_codes, shape).astype(np.int32)


@pytest.fixture(scope="session")
def mixture(memory, codes) -> Mixture:
    return Mixture(memory, codes)


@pytest.fixture(scope="session")
def many_documents(mixture) -> list[Document]:
    return [mixture(i) for i in range(4000)]


@pytest.fixture(scope="session")
def read_concept() -> Callable[[np.ndarray], str]:
    """The concept that pixels show."""
    return concept_of
