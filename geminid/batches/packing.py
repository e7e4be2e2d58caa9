"""Documents -> packed batches of a fixed shape, resumable to the bit.

A batch has rows of positions, and slots for pictures, clips and answers that all its rows share. No library packs under
such a shared budget: Grain's packers bound single rows. So the packer is ours and the loader around it Grain's.

B rows, T positions a row, P picture slots, C clip slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from geminid.batches.memory import pad_mels
from geminid.config import Recipe
from geminid.tokens.ids import IdSpace
from geminid.tokens.stream import Stream

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """The fixed shape of a batch."""

    rows: int
    length: int
    pictures: int
    clips: int
    picture_size: int
    soft_per_picture: int
    soft_per_clip: int
    num_frames: int
    num_mels: int
    answers: int  # positions that carry loss
    documents: int | None = None  # of a row at most

    @classmethod
    def of(cls, recipe: Recipe) -> Shape:
        joint = recipe.joint
        return cls(
            joint.stage.batch,
            joint.row_length,
            joint.max_pictures,
            joint.max_clips,
            recipe.data.picture_size,
            recipe.vision.num_soft_tokens,
            recipe.audio.num_soft_tokens,
            recipe.audio.num_frames,
            recipe.audio.num_mels,
            math.ceil(joint.answer_share * joint.stage.batch * joint.row_length),
            recipe.decoder.attention_documents if recipe.decoder.attention == "blockwise" else None,
        )

    def check(self, stream: Stream) -> None:
        """ValueError when a document fits into no batch."""
        if len(stream) > self.length:
            raise ValueError(f"a document of {len(stream)} positions; a row has {self.length}: raise joint.row_length")
        if len(stream.pictures) > self.pictures or len(stream.mels) > self.clips:
            raise ValueError(
                f"a document of {len(stream.pictures)} pictures and {len(stream.mels)} clips; a batch has room for"
                f" {self.pictures} and {self.clips}: raise joint.max_pictures or joint.max_clips"
            )
        if stream.num_answers > self.answers:
            raise ValueError(
                f"a document with loss on {stream.num_answers} positions; a batch has room for {self.answers}: raise"
                " joint.answer_share"
            )


class Plan:
    """Which streams share a batch, and in which row: best fit, oldest first."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.free = [shape.length] * shape.rows
        self.rows: list[list[Stream]] = [[] for _ in range(shape.rows)]
        self.pictures, self.clips, self.answers = shape.pictures, shape.clips, shape.answers

    def place(self, stream: Stream) -> bool:
        """Puts a stream into the fullest row that has room for it; False if none has, or slots are short."""
        if len(stream.pictures) > self.pictures or len(stream.mels) > self.clips or stream.num_answers > self.answers:
            return False
        most = math.inf if self.shape.documents is None else self.shape.documents
        fits = [(room, row) for row, room in enumerate(self.free) if room >= len(stream) and len(self.rows[row]) < most]
        if not fits:
            return False
        _, row = min(fits)
        self.free[row] -= len(stream)
        self.rows[row].append(stream)
        self.pictures -= len(stream.pictures)
        self.clips -= len(stream.mels)
        self.answers -= stream.num_answers
        return True

    @property
    def full(self) -> bool:
        return not any(self.free)


def assemble(rows: list[list[Stream]], shape: Shape, space: IdSpace) -> Batch:
    """Arrays of a batch.

    ids, sources, segments, positions, places int32 [B T], weights float32 [B T] (of predicting ids[:, t] from what
    stands before), pictures uint8 [P S S 3], mels float32 [C frames mels], frames int32 [C]. sources: 0, or
    k > 0: the k-th of the P * soft_per_picture + C * soft_per_clip soft tokens. Segment 0 is padding. answers int32
    [answers]: where weights > 0, as numbers b * T + t; those that are left over are 0, which has no weight.
    """
    size = (shape.rows, shape.length)
    batch: Batch = {name: np.zeros(size, np.int32) for name in ("ids", "sources", "segments", "positions", "places")}
    batch["weights"] = np.zeros(size, np.float32)
    batch["pictures"] = np.full((shape.pictures, shape.picture_size, shape.picture_size, 3), 255, np.uint8)
    mels: list[np.ndarray] = []
    num_pictures = 0
    soft_image, soft_audio = space.special("soft_image"), space.special("soft_audio")
    for row, streams in enumerate(rows):
        begin = 0
        for segment, stream in enumerate(streams, 1):
            at = np.s_[row, begin : begin + len(stream)]
            batch["ids"][at] = stream.ids
            batch["weights"][at] = stream.weights
            batch["places"][at] = stream.places
            batch["segments"][at] = segment
            batch["positions"][at] = np.arange(len(stream))
            sources = batch["sources"][at]
            first = 1 + num_pictures * shape.soft_per_picture
            places = np.flatnonzero(stream.ids == soft_image)
            sources[places] = first + np.arange(len(places))
            for pixels in stream.pictures:
                batch["pictures"][num_pictures] = pixels
                num_pictures += 1
            sources[stream.ids == soft_audio] = _clip_sources(stream, len(mels), shape)
            mels += stream.mels
            begin += len(stream)
    answers = np.flatnonzero(batch["weights"])
    batch["answers"] = np.zeros(shape.answers, np.int32)
    batch["answers"][: len(answers)] = answers
    padded, frames = pad_mels(mels, shape.num_frames)
    batch["mels"] = np.zeros((shape.clips, shape.num_frames, shape.num_mels), np.float32)
    batch["mels"][: len(mels)] = padded if mels else 0.0
    batch["frames"] = np.concatenate([frames, np.zeros(shape.clips - len(mels), np.int32)])
    return batch


def _clip_sources(stream: Stream, num_before: int, shape: Shape) -> np.ndarray:
    """Sources of a stream's soft audio tokens: the first of a clip's slot, as many as it has, and the slot's last."""
    begin = 1 + shape.pictures * shape.soft_per_picture + num_before * shape.soft_per_clip
    runs = []
    for k, count in enumerate(stream.soft_per_mel):
        within = np.append(np.arange(count - 1), shape.soft_per_clip - 1)
        runs.append(begin + k * shape.soft_per_clip + within)
    return np.concatenate(runs) if runs else np.zeros(0, np.int32)


class PackedBatches(grain.IterDataset):
    """Packed batches without end. stream_of(i): the stream of document i, a pure function."""

    def __init__(self, stream_of: Callable[[int], Stream], shape: Shape, space: IdSpace, lookahead: int):
        super().__init__()
        self.stream_of, self.shape, self.space, self.lookahead = stream_of, shape, space, lookahead

    def __iter__(self) -> PackedIterator:
        return PackedIterator(self)


class PackedIterator(grain.DatasetIterator):
    """State: the next document, those that wait, and what has been packed so far."""

    def __init__(self, source: PackedBatches):
        super().__init__()
        self.source = source
        self.next_document = 0
        self.waiting: dict[int, Stream] = {}
        self.filled = self.total = 0

    def __next__(self) -> Batch:
        plan = Plan(self.source.shape)
        self._refill()
        progress = True
        while progress and not plan.full:
            placed = [i for i, stream in self.waiting.items() if plan.place(stream)]
            for i in placed:
                del self.waiting[i]
            self._refill()
            progress = bool(placed)
        self.filled += sum(len(stream) for row in plan.rows for stream in row)
        self.total += self.source.shape.rows * self.source.shape.length
        return assemble(plan.rows, self.source.shape, self.source.space)

    def _refill(self) -> None:
        while len(self.waiting) < self.source.lookahead:
            stream = self.source.stream_of(self.next_document)
            self.source.shape.check(stream)
            self.waiting[self.next_document] = stream
            self.next_document += 1

    def get_state(self) -> dict[str, Any]:
        return {
            "next_document": self.next_document,
            "waiting": list(self.waiting),
            "filled": self.filled,
            "total": self.total,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self.next_document = state["next_document"]
        self.waiting = {i: self.source.stream_of(i) for i in state["waiting"]}
        self.filled, self.total = state["filled"], state["total"]
