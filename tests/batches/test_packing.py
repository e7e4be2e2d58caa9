"""Packing: every document is in one batch, once and whole, with its own pictures and sounds, within the budgets."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geminid.batches.packing import PackedBatches, PackedIterator, Plan, Shape
from geminid.tokens.stream import Stream, Streamer

SHAPE = Shape(
    rows=3,
    length=40,
    pictures=5,
    clips=3,
    picture_size=2,
    soft_per_picture=3,
    soft_per_clip=4,
    num_frames=8,
    num_mels=2,
    answers=120,
)
FIRST_NUMBER = 5000  # ids of synthetic streams from here on are the number of their document


@dataclasses.dataclass(frozen=True)
class Packed:
    """A document as it stands in a batch, read back through sources and slots."""

    ids: np.ndarray
    weights: np.ndarray
    pictures: list[np.ndarray]
    mels: list[np.ndarray]
    slots: list[int]


def unpack(batch: dict, shape: Shape) -> list[Packed]:
    """The documents of a batch, row by row; holds the layout of rows to account on the way."""
    found = []
    for row in range(shape.rows):
        segments = batch["segments"][row]
        count = segments.max()
        lengths = [(segments == k).sum() for k in range(1, count + 1)]
        padding = shape.length - sum(lengths)
        assert segments.tolist() == np.repeat([*range(1, count + 1), 0], [*lengths, padding]).tolist()
        for name in ("ids", "sources", "positions", "weights"):
            assert not batch[name][row][segments == 0].any()
        for k in range(1, count + 1):
            where = segments == k
            assert batch["positions"][row][where].tolist() == list(range(where.sum()))
            found.append(read(batch, row, where, shape))
    return found


def read(batch: dict, row: int, where: np.ndarray, shape: Shape) -> Packed:
    sources = batch["sources"][row][where]
    soft = [int(k) - 1 for k in sources if k]
    num_soft = shape.pictures * shape.soft_per_picture
    slots = [divmod(k, shape.soft_per_picture) for k in soft if k < num_soft]
    runs = [divmod(k - num_soft, shape.soft_per_clip) for k in soft if k >= num_soft]
    picture_slots = [slot for slot, part in slots if part == 0]
    assert slots == list(itertools.product(picture_slots, range(shape.soft_per_picture)))
    clip_slots = list(dict.fromkeys(slot for slot, _ in runs))
    lengths = [sum(slot == s for s, _ in runs) for slot in clip_slots]
    expected = [(*range(n - 1), shape.soft_per_clip - 1) for n in lengths]  # the slot's last is the global one
    assert runs == [(slot, part) for slot, parts in zip(clip_slots, expected, strict=True) for part in parts]
    return Packed(
        batch["ids"][row][where],
        batch["weights"][row][where],
        [batch["pictures"][slot] for slot in picture_slots],
        [batch["mels"][slot, : batch["frames"][slot]] for slot in clip_slots],
        [*picture_slots, *(shape.pictures + slot for slot in clip_slots)],
    )


def check(packed: Packed, stream: Stream, num_frames: int) -> None:
    assert packed.ids.tolist() == stream.ids.tolist()
    assert packed.weights.tolist() == stream.weights.tolist()
    for got, expected in zip(packed.pictures, stream.pictures, strict=True):
        assert (got == expected).all()
    for got, expected in zip(packed.mels, stream.mels, strict=True):
        assert np.array_equal(got, expected[:num_frames])


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


def expected_shapes(shape: Shape) -> dict[str, tuple]:
    rows = dict.fromkeys(("ids", "sources", "segments", "positions", "places"), ((shape.rows, shape.length), np.int32))
    return rows | {
        "weights": ((shape.rows, shape.length), np.float32),
        "pictures": ((shape.pictures, shape.picture_size, shape.picture_size, 3), np.uint8),
        "mels": ((shape.clips, shape.num_frames, shape.num_mels), np.float32),
        "frames": ((shape.clips,), np.int32),
        "answers": ((shape.answers,), np.int32),
    }


def make_stream(space, number: int, num_words: int, clip_frames: tuple[int, ...], num_pictures: int) -> Stream:
    """A document of `number`s with pictures and log-mels that hold the number and their rank in it."""
    ids = [number + FIRST_NUMBER] * num_words
    counts = tuple(-(-frames // 2) for frames in clip_frames)
    for count in counts:
        ids += [space.special("soft_audio")] * count
    ids += ([space.special("soft_image")] * SHAPE.soft_per_picture + [number + FIRST_NUMBER]) * num_pictures
    return Stream(
        np.array(ids, np.int32),
        np.linspace(0, 1, len(ids), dtype=np.float32),
        np.arange(len(ids), dtype=np.int32),
        tuple(np.full((2, 2, 3), (number, rank, 7), np.uint8) for rank in range(num_pictures)),
        tuple(np.full((frames, 2), (number, rank), np.float32) for rank, frames in enumerate(clip_frames)),
        counts,
    )


SPECS = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.lists(st.integers(1, 8), max_size=2).map(tuple),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=12,
)


@given(specs=SPECS, lookahead=st.integers(1, 9), answers=st.sampled_from([36, 60, 120]))
def test_every_document_is_packed_once_unchanged_with_its_own_features(space, specs, lookahead, answers):
    shape = dataclasses.replace(SHAPE, answers=answers)

    def stream_of(i: int) -> Stream:
        return make_stream(space, i, *specs[i % len(specs)])

    batches = iter(PackedBatches(stream_of, shape, space, lookahead))
    packed: list[int] = []
    for _ in range(6):
        oldest = min(batches.get_state()["waiting"], default=0)
        batch = next(batches)
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == expected_shapes(shape)
        with_loss = [b * SHAPE.length + t for b, t in np.argwhere(batch["weights"] > 0)]
        assert batch["answers"].tolist() == with_loss + [0] * (answers - len(with_loss))
        documents = unpack(batch, shape)
        slots = [slot for document in documents for slot in document.slots]
        assert len(slots) == len(set(slots))
        numbers = [int(document.ids[0]) - FIRST_NUMBER for document in documents]
        for number, document in zip(numbers, documents, strict=True):
            check(document, stream_of(number), SHAPE.num_frames)
        assert oldest in numbers, "the oldest document never waits for another batch"
        packed += numbers
    state = batches.get_state()
    assert sorted([*packed, *state["waiting"]]) == list(range(state["next_document"]))
    assert len(state["waiting"]) == lookahead


@given(specs=SPECS, lookahead=st.integers(1, 9), before=st.integers(0, 4))
def test_a_state_in_json_gives_the_same_batches(space, specs, lookahead, before):
    source = PackedBatches(lambda i: make_stream(space, i, *specs[i % len(specs)]), SHAPE, space, lookahead)
    batches = iter(source)
    for _ in range(before):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    resumed = iter(source)
    resumed.set_state(state)
    for _ in range(3):
        assert same(next(resumed), next(batches))
    assert resumed.get_state() == batches.get_state()


def test_slots_that_are_not_used_are_blank(space):
    batch = next(iter(PackedBatches(lambda i: make_stream(space, i, 39, (1,), 0), SHAPE, space, 4)))
    assert batch["frames"].tolist() == [1, 1, 1]
    assert (batch["pictures"] == 255).all()
    assert not batch["mels"][:, 1:].any()
    quiet = next(iter(PackedBatches(lambda i: make_stream(space, i, 40, (), 0), SHAPE, space, 4)))
    assert not quiet["mels"].any() and not quiet["frames"].any()


@pytest.mark.parametrize(
    ("words", "clips", "pictures", "numbers"),
    [
        (41, (), 0, ("41 positions", "has 40", "joint.row_length")),
        (1, (), 6, ("6 pictures and 0 clips", "5 and 3", "joint.max_pictures")),
        (1, (1, 1, 1, 1), 0, ("0 pictures and 4 clips", "5 and 3", "joint.max_clips")),
    ],
)
def test_a_document_that_fits_nowhere_is_one_line(space, words, clips, pictures, numbers):
    def stream_of(i: int) -> Stream:
        return make_stream(space, i, words, clips, pictures) if i == 20 else make_stream(space, i, 5, (), 0)

    with pytest.raises(ValueError) as error:
        for _ in zip(range(20), PackedBatches(stream_of, SHAPE, space, 4), strict=False):
            pass
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in numbers)


def test_a_document_with_more_answers_than_fit_is_one_line(space):
    shape = dataclasses.replace(SHAPE, answers=24)
    fits = PackedBatches(lambda i: make_stream(space, i, 25, (), 0), shape, space, 1)
    assert (next(iter(fits))["segments"] > 0).sum() == 25  # one document: two have 48 positions with loss
    with pytest.raises(ValueError, match=r"loss on 25 positions; .* room for 24: raise joint\.answer_share") as error:
        next(iter(PackedBatches(lambda i: make_stream(space, i, 26, (), 0), shape, space, 1)))
    assert "\n" not in str(error.value)


def test_documents_of_just_the_size_are_packed_without_padding(space):
    batch = next(iter(PackedBatches(lambda i: make_stream(space, i, 40, (), 0), SHAPE, space, 1)))
    assert (batch["segments"] == 1).all()


# --- the demo's shape and documents ---


@pytest.fixture(scope="module")
def streams(space, recipe, mixture) -> dict[int, Stream]:
    return Streams(Streamer(space, recipe.vision, recipe.audio, recipe.joint.code_weight), mixture)


class Streams(dict):
    """The stream of each document of the mixture, made when it is asked for."""

    def __init__(self, streamer: Streamer, mixture):
        super().__init__()
        self.streamer, self.mixture = streamer, mixture

    def __missing__(self, i: int) -> Stream:
        self[i] = self.streamer(self.mixture(i))
        return self[i]


def realistic(recipe, streams, space) -> PackedIterator:
    return iter(PackedBatches(streams.__getitem__, Shape.of(recipe), space, recipe.joint.lookahead))


def test_the_shape_is_the_recipe_s(recipe):
    shape = Shape.of(recipe)
    assert (shape.rows, shape.length) == (recipe.joint.stage.batch, recipe.joint.row_length)
    assert (shape.soft_per_picture, shape.soft_per_clip) == (1 + 1, 1 + 4)
    assert shape.answers == 0.625 * 16 * 128
    assert (shape.num_frames, shape.num_mels) == (128, 128)


def test_fifty_batches_of_the_mixture(recipe, streams, space):
    """At most 3% padding, and all that was packed is there, once."""
    shape, batches = Shape.of(recipe), realistic(recipe, streams, space)
    padding, packed = 0, []
    for _ in range(50):
        before = set(batches.get_state()["waiting"])
        batch = next(batches)
        state = batches.get_state()
        padding += int((batch["segments"] == 0).sum())
        begin = max([-1, *before, *packed]) + 1
        gone = (before | set(range(begin, state["next_document"]))) - set(state["waiting"])
        packed += gone
        documents = unpack(batch, shape)
        assert bag(documents) == bag([streams[i] for i in gone])
        assert len({slot for d in documents for slot in d.slots}) == sum(len(d.slots) for d in documents)
    positions = 50 * shape.rows * shape.length
    assert (state["total"], state["total"] - state["filled"]) == (positions, padding)
    assert padding / positions <= 0.03
    assert sorted([*packed, *state["waiting"]]) == list(range(state["next_document"]))


def bag(documents: list) -> list[tuple]:
    """Everything about documents that a batch keeps, in an order of its own."""

    def value(d) -> tuple:
        pictures = [p.tobytes() for p in d.pictures]
        return (
            d.ids.tobytes(),
            d.weights.tobytes(),
            pictures,
            [np.asarray(mel[:192], np.float32).tobytes() for mel in d.mels],
        )

    return sorted(map(value, documents))


def test_the_mixture_resumes_in_the_middle(recipe, streams, space):
    batches, resumed = realistic(recipe, streams, space), realistic(recipe, streams, space)
    for _ in range(5):
        next(batches)
    resumed.set_state(json.loads(json.dumps(batches.get_state())))
    for _ in range(5):
        assert same(next(resumed), next(batches))


def test_a_row_takes_no_more_documents_than_it_may():
    """Two in each of three rows, though there is room for ten."""
    plan = Plan(dataclasses.replace(SHAPE, documents=2))
    short = Stream(np.zeros(4, np.int32), np.zeros(4, np.float32), np.zeros(4, np.int32), (), ())
    assert [plan.place(short) for _ in range(7)] == [True] * 6 + [False]
    assert [len(row) for row in plan.rows] == [2, 2, 2]
