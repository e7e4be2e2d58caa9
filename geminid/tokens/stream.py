"""A document as one sequence of positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geminid.config import AudioConfig, VisionConfig
from geminid.document import Document, Segment
from geminid.tokens.ids import IdSpace, next_places


@dataclass(frozen=True)
class Stream:
    """One document ready to be packed.

    ids int32 [n]; weights float32 [n]: loss weight of predicting ids[i] from what stands before it;
    places int32 [n]: where in a written image ids[i + 1] stands, 0 for nowhere (`geminid.tokens.ids.next_places`);
    pictures uint8 [H W 3] and mels float [frames mels] in the order of their soft tokens;
    soft_per_mel: soft tokens of each of the mels.
    """

    ids: np.ndarray
    weights: np.ndarray
    places: np.ndarray
    pictures: tuple[np.ndarray, ...]
    mels: tuple[np.ndarray, ...]
    soft_per_mel: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_answers(self) -> int:
        """Positions that carry loss."""
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True)
class Streamer:
    """Turns documents into streams; `code_weight` is the loss weight of one image code."""

    space: IdSpace
    vision: VisionConfig
    audio: AudioConfig
    code_weight: float = 1.0

    def soft_tokens_of_clip(self, num_frames: int) -> int:
        """The global one included."""
        return 1 + max(1, -(-min(num_frames, self.audio.num_frames) // self.audio.frames_per_soft_token))

    def _segment(self, segment: Segment) -> tuple[list[int], float]:
        space = self.space
        if segment.kind == "tag":
            return [space.special(segment.text)], 0.0
        if segment.kind == "text":
            return space.encode(segment.text), 1.0
        if segment.kind == "audio":
            assert segment.mel is not None
            count = self.soft_tokens_of_clip(len(segment.mel))
            return [space.special("boa")] + [space.special("soft_audio")] * count, 0.0
        if segment.role == "make":
            assert segment.codes is not None
            return space.encode_codes(segment.codes), self.code_weight
        return [space.special("boi")] + [space.special("soft_image")] * self.vision.num_soft_tokens, 0.0

    def __call__(self, document: Document) -> Stream:
        ids, weights = [self.space.special("bos")], [0.0]
        places = [np.zeros(1, np.int32)]
        for segment in document.segments:
            new, weight = self._segment(segment)
            ids += new
            if segment.role == "make" and segment.codes is not None:
                places.append(next_places(*segment.codes.shape))
            else:
                places.append(np.zeros(len(new), np.int32))
            weights += [weight if segment.role == "make" else 0.0] * len(new)
        made = any(s.role == "make" for s in document.segments)
        if made and document.segments[-1].role == "make":
            ids.append(self.space.special("eos"))
            weights.append(1.0)
            places.append(np.zeros(1, np.int32))
        mels = tuple(s.mel for s in document.segments if s.kind == "audio" and s.mel is not None)
        return Stream(
            np.array(ids, np.int32),
            np.array(weights, np.float32),
            np.concatenate(places),
            tuple(
                s.pixels for s in document.segments if s.kind == "image" and s.role == "see" and s.pixels is not None
            ),
            mels,
            tuple(self.soft_tokens_of_clip(len(mel)) for mel in mels),
        )
