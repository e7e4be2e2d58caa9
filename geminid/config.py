"""What a run is: frozen dataclasses, plain values, no JAX.

A `Recipe` holds everything that decides a run's bits. Named recipes live in `geminid.recipes`;
`geminid.overrides` changes single fields from the command line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from geminid.limits import check


@dataclass(frozen=True)
class DataConfig:
    """Which public packages are read and how the data set is built from them."""

    styles: tuple[str, ...] = (
        "noto",
        "noto-v1",
        "twemoji",
        "openmoji",
        "fluent-emoji",
        "fluent-emoji-flat",
        "emojione",
        "emojione-v1",
    )
    held_out_style: str = "twemoji"
    languages: tuple[str, ...] = ("en", "fr", "es", "ca", "ru", "bg", "el")
    num_concepts: int | None = None  # None: every core concept
    extra_concepts: bool = True  # also emoji outside the core: the codec learns from them
    picture_size: int = 32  # pixels, square canvas, white background, aspect kept
    synthetic_voices: int = 12  # renderings per (concept, language)
    clip_max_s: float = 2.5  # longer recordings are left out and counted
    animation_packages: tuple[str, ...] = ("@lobehub/fluent-emoji-anim-1",)
    digit_languages: tuple[str, ...] = ("en", "es", "fr", "it", "ru")
    frames: int = 8  # frames kept per animation, evenly spaced
    seed: int = 0


@dataclass(frozen=True)
class TextConfig:
    """SentencePiece unigram model trained on a sample of the whole corpus (Kudo & Richardson 2018)."""

    vocab_size: int = 3072  # text pieces, byte fallback included


@dataclass(frozen=True)
class CodecConfig:
    """Convolutional image codec with a finite scalar quantiser (FSQ, Mentzer et al. 2023)."""

    levels: tuple[int, ...] = (8, 5, 5, 5)  # product = number of image codes
    downsample: int = 4  # pixels per code along one side
    width: int = 96
    num_blocks: int = 2

    @property
    def num_codes(self) -> int:
        product = 1
        for level in self.levels:
            product *= level
        return product


@dataclass(frozen=True)
class VisionConfig:
    """Picture encoder: convolutional stem, ViT blocks, pooling to soft tokens."""

    stem_widths: tuple[int, ...] = (16, 32)  # channels at 2, 4, ... pixels; then `width` at twice the last
    stem_blocks: int = 1  # residual blocks after each halving
    width: int = 128
    num_layers: int = 0  # ViT blocks: on a thousand pictures none learns fastest
    num_heads: int = 4
    soft_grid: int = 1  # soft tokens per side after pooling; one global token is added
    dtype: str = "float32"  # of the ViT blocks

    @property
    def num_soft_tokens(self) -> int:
        return self.soft_grid**2 + 1


@dataclass(frozen=True)
class AudioConfig:
    """USM-style encoder: log-mel, strided convolutions, Conformer (Gulati et al. 2020; Zhang et al. 2023)."""

    sample_rate: int = 16_000
    num_mels: int = 128
    window_s: float = 0.025
    hop_s: float = 0.010
    max_s: float = 1.28  # what comes later is cut: the beginning of a phrase tells it from the others
    conv_widths: tuple[int, ...] = (96, 128)  # stride-2 convolutions over time
    conv_blocks: int = 1  # residual blocks after each of them
    width: int = 128
    num_layers: int = 1  # Conformer blocks
    num_heads: int = 4
    conv_kernel: int = 5
    reduction: int = 8  # states of the Conformer pooled into one soft token
    dtype: str = "float32"  # of the Conformer blocks

    @property
    def num_frames(self) -> int:
        return round(self.max_s / self.hop_s)

    @property
    def frames_per_soft_token(self) -> int:
        return 2 ** len(self.conv_widths) * self.reduction

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens of the longest clip, the global one included."""
        return 1 + -(-self.num_frames // self.frames_per_soft_token)


@dataclass(frozen=True)
class DecoderConfig:
    """Pre-norm decoder; the space contains Gemma 3's text model (Gemma team 2025, arXiv 2503.19786)."""

    num_layers: int = 4
    width: int = 192
    num_heads: int = 6
    num_kv_heads: int = 1  # 1: multi-query attention
    head_dim: int = 32
    mlp_width: int = 512
    norm_epsilon: float = 1e-6
    query_scalar: float | None = None  # queries are divided by its root; None: by that of head_dim
    rope_theta: float = 10_000.0  # global layers
    rope_stretch: float = 1.0  # positions of global layers are divided by it (Chen et al. 2023, arXiv 2306.15595)
    local_rope_theta: float = 10_000.0  # sliding-window layers
    window: int | None = None  # positions a local layer sees; None: every layer is global
    local_per_global: int = 0  # local layers between two global ones
    post_norm: bool = False
    scale_embedding: bool = True  # times sqrt(width), as in Gemma
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    z_loss: float = 1e-4
    activation: str = "gelu_tanh"
    smear: bool = False  # every position also reads what stands before it
    scan_layers: bool = False  # lax.scan over layers: small programs for deep models
    attention: str = "dense"  # of packed rows: dense (a mask of T x T) | blockwise (memory linear in T)
    attention_block: int = 512  # positions of a block, where attention is blockwise
    attention_documents: int = 31  # most documents of a row, where attention is blockwise: a GPU's kernel counts on it
    # what layers keep for the backward pass: none | full | offload (as full, in the host's memory) | attended | dots
    remat: str = "none"
    dtype: str = "float32"


@dataclass(frozen=True)
class OptimiserConfig:
    """How parameters move, with linear warm-up and cosine decay."""

    matrices: str = "muon"  # what moves matrices: muon | adamw; AdamW moves the rest
    learning_rate: float = 2e-3
    final_fraction: float = 0.02
    warmup_steps: int = 50
    momentum: float = 0.95  # Muon's
    scan_muon: bool = False  # its five products of a matrix as a loop: a smaller program, slower on a CPU
    muon_dtype: str = "float32"  # of these products; Jordan et al. 2024 take bfloat16
    beta1: float = 0.9  # AdamW's
    beta2: float = 0.98
    weight_decay: float = 0.05
    clip_norm: float = 1.0


@dataclass(frozen=True)
class StageConfig:
    """One stage of training: how many steps of what batch."""

    steps: int
    batch: int  # pictures, clips, or rows of packed positions
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    save_every: int = 50  # steps between checkpoints
    log_every: int = 10


@dataclass(frozen=True)
class MixtureConfig:
    """Relative number of documents of each task in the joint stage."""

    see: float = 36
    hear: float = 48
    digit: float = 10
    watch: float = 4
    order: float = 6
    draw: float = 16
    translate: float = 4
    few_shot: float = 10


@dataclass(frozen=True)
class JointConfig:
    """The joint stage: every modality, interleaved and packed."""

    stage: StageConfig
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    shards: int = 1  # logical shards of a batch: what slices share among them, however many there are
    row_length: int = 128  # positions of one packed row
    max_pictures: int = 112  # picture slots of one batch
    max_clips: int = 50  # clip slots of one batch
    answer_share: float = 0.625  # of the positions of one batch at most carry loss: the others need no logits
    logit_chunk: int | None = None  # answers whose logits are held at a time; None: all
    lookahead: int = 192  # documents the packer may choose from
    encoder_rate: float = 0.0  # learning-rate factor of the pretrained encoders; 0 holds them
    code_weight: float = 0.4  # loss weight of each id of a written image beside a text piece
    code_spread: float = 0.5  # quantiser levels that the target of an image code reaches around it; 0: that code alone
    misread_codes: float = 0.5  # at most so many of a drawing's codes are read as random ones
    misread_words: float = 0.5  # the same for the pieces of an answer in words
    prompt_dropout: float = 0.1  # drawings without prompt, for classifier-free guidance


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bits of a run."""

    name: str
    data: DataConfig
    text: TextConfig
    codec: CodecConfig
    vision: VisionConfig
    audio: AudioConfig
    decoder: DecoderConfig
    codec_stage: StageConfig
    vision_stage: StageConfig
    audio_stage: StageConfig
    joint: JointConfig
    judge_steps: int = 600
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)

    def fingerprint(self) -> str:
        """16 hex digits that change whenever any field does."""
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()[:16]


def canonical_json(config: Any) -> str:
    """One spelling per value: sorted keys, no spaces."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))


def recipe_from_json(value: Mapping[str, Any]) -> Recipe:
    """The recipe that `dataclasses.asdict` and JSON turned into `value`; TypeError for fields it does not know."""
    return _from_json(Recipe, value)


def _from_json(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"{kind.__name__} is {value!r}, not an object")
        hints = get_type_hints(kind)
        return kind(**{name: _from_json(hints.get(name), part) for name, part in value.items()})  # type: ignore[operator]
    return tuple(value) if isinstance(value, list) else value
