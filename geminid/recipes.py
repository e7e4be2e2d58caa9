"""The named runs. A recipe is a function that returns a `Recipe`; its docstring says what to expect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from geminid.config import (
    AudioConfig,
    CodecConfig,
    DataConfig,
    DecoderConfig,
    JointConfig,
    OptimiserConfig,
    Recipe,
    StageConfig,
    TextConfig,
    VisionConfig,
)


def demo() -> Recipe:
    """Demo: all modalities, 4.6M parameters, from nothing. 2 cores, 20 to 27 min; names 68% of a held-out style."""
    return Recipe(
        name="demo",
        data=DataConfig(),
        text=TextConfig(),
        codec=CodecConfig(),
        vision=VisionConfig(),
        audio=AudioConfig(),
        decoder=DecoderConfig(num_kv_heads=3, smear=True),
        codec_stage=StageConfig(steps=600, batch=64, optimiser=OptimiserConfig(learning_rate=4e-3)),
        vision_stage=StageConfig(steps=700, batch=64, optimiser=OptimiserConfig(learning_rate=5e-3)),
        audio_stage=StageConfig(steps=700, batch=64, optimiser=OptimiserConfig(learning_rate=3e-3)),
        joint=JointConfig(stage=StageConfig(steps=1600, batch=16, optimiser=OptimiserConfig(learning_rate=6e-3))),
    )


def demo_fast() -> Recipe:
    """Demo, fast: every modality and every stage on 24 concepts, for tests. 2 cores, under 3 min; it learns little."""
    return Recipe(
        name="demo_fast",
        data=DataConfig(
            styles=("noto", "noto-v1", "openmoji", "emojione", "emojione-v1", "twemoji"),
            languages=("en", "fr", "es"),
            num_concepts=24,
            extra_concepts=False,
            synthetic_voices=2,
            digit_languages=("en",),
        ),
        text=TextConfig(vocab_size=512),
        codec=CodecConfig(width=32, num_blocks=1),
        vision=VisionConfig(stem_widths=(8, 16), width=48, num_heads=2),
        audio=AudioConfig(conv_widths=(48, 48), width=48, num_layers=1, num_heads=2),
        decoder=DecoderConfig(
            num_layers=2, width=96, num_heads=4, num_kv_heads=2, head_dim=24, mlp_width=256, smear=True
        ),
        codec_stage=StageConfig(steps=60, batch=32, save_every=20),
        vision_stage=StageConfig(steps=60, batch=32, save_every=20),
        audio_stage=StageConfig(steps=40, batch=16, save_every=20),
        joint=JointConfig(
            stage=StageConfig(steps=60, batch=8, save_every=20),
            shards=4,
            max_pictures=64,
            max_clips=32,
            answer_share=0.75,
        ),
        judge_steps=60,
    )


def _large(
    name: str,
    decoder: DecoderConfig,
    encoder_layers: int,
    encoder_width: int,
    rows: int = 256,
    remat: str = "attended",
    logit_chunk: int = 1024,
) -> Recipe:
    """What the large recipes share: 32,768 positions, 256k text pieces, larger pictures, encoders of their own.

    rows: of a batch, each a logical shard with 16 pictures and 4 clips; remat, logit_chunk: as `DecoderConfig` and
    `JointConfig` have them.
    """
    shared = dataclasses.replace(
        decoder, num_kv_heads=1, window=1024, local_per_global=5, rope_theta=1e6, scan_layers=True,
        attention="blockwise", remat=remat, dtype="bfloat16",
    )  # fmt: skip
    optimiser = OptimiserConfig(learning_rate=2e-4, warmup_steps=2000, scan_muon=True, muon_dtype=shared.dtype)
    stage = StageConfig(steps=100_000, batch=rows, optimiser=optimiser)
    return Recipe(
        name=name,
        data=DataConfig(picture_size=256, clip_max_s=30.0, frames=32),
        text=TextConfig(vocab_size=256_000 - 123),  # with the specials and codes a multiple of 256: devices share ids
        codec=CodecConfig(levels=(8, 8, 8, 6, 5), downsample=8, width=512, num_blocks=6),
        vision=VisionConfig(
            stem_widths=(128, 256),
            stem_blocks=0,
            width=encoder_width,
            num_layers=encoder_layers,
            num_heads=16,
            soft_grid=16,
            dtype=shared.dtype,
        ),
        audio=AudioConfig(
            max_s=30.0,
            conv_widths=(256, 512),
            conv_blocks=0,
            width=encoder_width,
            num_layers=encoder_layers,
            num_heads=16,
            conv_kernel=15,
            dtype=shared.dtype,
        ),
        decoder=shared,
        codec_stage=stage,
        vision_stage=stage,
        audio_stage=stage,
        joint=JointConfig(
            stage=stage,
            shards=rows,
            row_length=32_768,
            max_pictures=16 * rows,
            max_clips=4 * rows,
            answer_share=1.0,
            logit_chunk=logit_chunk,
            lookahead=4096,
        ),
    )


def nano1() -> Recipe:
    """Nano-1: 1.8B parameters, as the Gemini report has it. To be planned and compiled, not for a laptop."""
    return _large(
        "nano1", DecoderConfig(num_layers=24, width=1536, num_heads=12, head_dim=128, mlp_width=8960), 12, 768
    )


def nano2() -> Recipe:
    """Nano-2: 3.25B parameters, as the Gemini report has it."""
    return _large(
        "nano2", DecoderConfig(num_layers=28, width=2048, num_heads=16, head_dim=128, mlp_width=12_544), 12, 768
    )


def pro() -> Recipe:
    """Pro: about 100B parameters; the size is ours, the real one is not public. It keeps little: a v5e has 16 GB."""
    decoder = DecoderConfig(num_layers=72, width=8192, num_heads=64, head_dim=128, mlp_width=49_152)
    return _large("pro", decoder, 32, 1536, remat="offload")


def ultra() -> Recipe:
    """Ultra: about 500B parameters; the size is ours, the real one is not public. 512 rows: 16.8M positions a step."""
    decoder = DecoderConfig(num_layers=100, width=16_384, num_heads=128, head_dim=128, mlp_width=90_112)
    return _large("ultra", decoder, 40, 2048, rows=512, logit_chunk=4096)


RECIPES: dict[str, Callable[[], Recipe]] = {f.__name__: f for f in (demo, demo_fast, nano1, nano2, pro, ultra)}


def names() -> tuple[str, ...]:
    return tuple(RECIPES)


def get(name: str) -> Recipe:
    """The recipe called `name`; ValueError lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe '{name}'; known: {', '.join(RECIPES)}")
    return RECIPES[name]()
