"""The shapes of the towers: Gemma 3's picture encoder, Gemma 3n's audio encoder. Plain values, no JAX.

Defaults are the released models'. A value that cannot be is a ValueError here, before anything is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from geminid.config import DecoderConfig


def _divides(part: int, whole: int, parts: str, wholes: str) -> None:
    if part < 1 or whole % part:
        raise ValueError(f"{wholes} {whole} is not divisible by {parts} {part}; choose a divisor")


@dataclass(frozen=True)
class SiglipConfig:
    """SigLIP's picture encoder (Zhai et al. 2023, arXiv 2303.15343): So400m/14 at 896 pixels, as in Gemma 3."""

    picture_size: int = 896  # pixels a side
    patch: int = 14  # pixels a side
    width: int = 1152
    mlp_width: int = 4304
    num_layers: int = 27
    num_heads: int = 16
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _divides(self.patch, self.picture_size, "the patch", "the picture size")
        _divides(self.num_heads, self.width, "the number of heads", "the picture encoder's width")

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.picture_size // self.patch


@dataclass(frozen=True)
class PictureTextConfig:
    """Gemma 3 with pictures (Gemma team 2025, arXiv 2503.19786)."""

    decoder: DecoderConfig
    vision: SiglipConfig
    num_ids: int
    picture_id: int = 262_144  # where soft tokens go; may lie outside the embedding
    soft_grid: int = 16  # soft tokens a side: 256 for each picture

    def __post_init__(self) -> None:
        _divides(self.soft_grid, self.vision.grid, "the soft tokens a side", "the number of patches a side")

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens of one picture."""
        return self.soft_grid**2


@dataclass(frozen=True)
class UsmConfig:
    """Gemma 3n's audio encoder, a Universal Speech Model (Zhang et al. 2023, arXiv 2303.01037)."""

    num_mels: int = 128
    subsample_widths: tuple[int, ...] = (128, 32)  # channels of the convolutions over time and mels
    subsample_kernels: tuple[tuple[int, int], ...] = ((3, 3), (3, 3))  # frames, mels
    subsample_strides: tuple[tuple[int, int], ...] = ((2, 2), (2, 2))
    group_norm_epsilon: float = 1e-3
    width: int = 1536
    num_layers: int = 12  # Conformer blocks
    num_heads: int = 8
    chunk: int = 12  # states that attend together
    left: int = 13  # states that each sees up to itself, itself included
    right: int = 0  # states that each sees after itself
    logit_cap: float = 50.0
    conv_kernel: int = 5
    conv_norm_epsilon: float = 1e-6
    residual_weight: float = 0.5  # of the two MLPs
    clamp: float = 1e10  # states are cut to +- this where a block reads and writes
    reduction: int = 4  # of so many states of the Conformer one is kept

    def __post_init__(self) -> None:
        _divides(self.num_heads, self.width, "the number of heads", "the audio encoder's width")
        if not len(self.subsample_widths) == len(self.subsample_kernels) == len(self.subsample_strides):
            raise ValueError(
                f"{len(self.subsample_widths)} widths, {len(self.subsample_kernels)} kernels and "
                f"{len(self.subsample_strides)} strides of subsampling convolutions; give as many of each"
            )
        least = min(self.num_mels, self.chunk, self.left, self.conv_kernel, self.reduction, *self.mel_sizes)
        if least < 1 or self.right < 0:
            raise ValueError(
                f"mels {self.num_mels} (after the convolutions {list(self.mel_sizes)}), chunk {self.chunk}, left "
                f"{self.left}, convolution {self.conv_kernel} and reduction {self.reduction} must be at least 1, "
                f"right {self.right} at least 0"
            )

    @property
    def mel_sizes(self) -> tuple[int, ...]:
        """Size of the mel axis after each convolution; one zero is put on either side of it before each."""
        sizes, size = [], self.num_mels
        for (_, kernel), (_, stride) in zip(self.subsample_kernels, self.subsample_strides, strict=True):
            size = (size + 2 - kernel) // stride + 1
            sizes.append(size)
        return tuple(sizes)

    @property
    def frames_per_state(self) -> int:
        """Log-mel frames of one state of the Conformer."""
        product = 1
        for frames, _ in self.subsample_strides:
            product *= frames
        return product

    def num_soft_tokens(self, num_frames: int) -> int:
        """Soft tokens of a clip of so many log-mel frames."""
        for frames, _ in self.subsample_strides:
            num_frames = -(-num_frames // frames)
        return -(-num_frames // self.reduction)
