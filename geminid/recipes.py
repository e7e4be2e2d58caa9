"""The named runs. A recipe is a function that returns a `Recipe`; its docstring says what to expect."""

from __future__ import annotations

from collections.abc import Callable

from geminid.config import (
    AudioConfig,
    CodecConfig,
    DataConfig,
    DecoderConfig,
    JointConfig,
    Recipe,
    StageConfig,
    TextConfig,
    VisionConfig,
)


def demo() -> Recipe:
    """Demo: all modalities, about 3M parameters, from nothing. 2 cores, under 30 min."""
    return Recipe(
        name="demo",
        data=DataConfig(),
        text=TextConfig(),
        codec=CodecConfig(),
        vision=VisionConfig(),
        audio=AudioConfig(),
        decoder=DecoderConfig(),
        codec_stage=StageConfig(steps=1500, batch=64),
        vision_stage=StageConfig(steps=2500, batch=128),
        audio_stage=StageConfig(steps=1500, batch=64),
        joint=JointConfig(stage=StageConfig(steps=1500, batch=8)),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {f.__name__: f for f in (demo,)}


def names() -> tuple[str, ...]:
    return tuple(RECIPES)


def get(name: str) -> Recipe:
    """The recipe called `name`; ValueError lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe '{name}'; known: {', '.join(RECIPES)}")
    return RECIPES[name]()
