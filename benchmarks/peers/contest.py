"""What is equal on all sides: shapes, first weights, tokens, update. And how much work that is. numpy alone.

Axis letters: B rows, T positions, D width, H heads, K key-value heads, Dh width of a head, F width of the MLP, V ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

THETA, EPSILON = 10_000.0, 1e-6  # of rotary positions; of norms
BATCHES = 8  # different ones, again and again
SQUARE = 2048  # side of the matrices whose product is the measured peak
FIRST_LOSSES = 4  # losses that are compared: that of the first weights, and after so many updates less one


@dataclass(frozen=True)
class Shape:
    """A decoder and its batch."""

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    num_ids: int
    batch: int
    length: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length

    @property
    def num_params(self) -> int:
        """All parameters, the tied embedding once."""
        return sum(math.prod(shape) for shape in weight_shapes(self).values())

    @property
    def flops_per_token(self) -> float:
        """6 N + 12 L H Dh T: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B, forward and backward.

        N counts the embedding once: looking it up is no product, the logits are. The second term is attention without
        regard to causality. It is what the model needs, whatever a contender computes.
        """
        return 6 * self.num_params + 12 * self.num_layers * self.num_heads * self.head_dim * self.length


SHAPES = {
    "small": Shape(4, 256, 4, 4, 64, 704, 8192, 4, 256),  # 5.3M parameters
    "20m": Shape(8, 384, 6, 6, 64, 1024, 16_384, 4, 256),  # 20.5M
    "tiny": Shape(2, 32, 2, 1, 16, 48, 96, 2, 24),  # for tests
    "1b": Shape(16, 2048, 16, 16, 128, 8192, 32_768, 4, 4096),  # 1.1B, OLMo 1B's layers (arXiv 2402.00838): for a GPU
}


@dataclass(frozen=True)
class Update:
    """AdamW (Loshchilov & Hutter 2019) after clipping by the global norm; only the layers' matrices decay."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


def weight_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Under the names and in the layout [out in] of Qwen 3's files."""
    width, heads, kv = shape.width, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, heads),
        "self_attn.q_norm": (shape.head_dim,),
        "self_attn.k_norm": (shape.head_dim,),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (shape.mlp_width, width),
        "mlp.up_proj": (shape.mlp_width, width),
        "mlp.down_proj": (width, shape.mlp_width),
    }
    layers = {f"model.layers.{i}.{name}.weight": s for i in range(shape.num_layers) for name, s in layer.items()}
    return {"model.embed_tokens.weight": (shape.num_ids, width), **layers, "model.norm.weight": (width,)}


def first_weights(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ones, float32: matrices of deviation 1 / sqrt(in), the embedding of 0.02, norms about 1."""
    rng = np.random.default_rng(seed)

    def one(name: str, size: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(size, np.float32)
        if len(size) == 1:
            return np.float32(1.0) + np.float32(0.1) * noise
        return noise * np.float32(0.02 if "embed" in name else size[1] ** -0.5)

    return {name: one(name, size) for name, size in weight_shapes(shape).items()}


def decays(name: str) -> bool:
    """Whether a weight has weight decay."""
    return "_proj" in name


def batches(shape: Shape, seed: int = 1) -> np.ndarray:
    """Token ids int32 [BATCHES B T], common ones often (Zipf): each id is to be foretold but the first of a row."""
    rng = np.random.default_rng(seed)
    share = 1.0 / (10.0 + np.arange(shape.num_ids))
    ids = rng.choice(shape.num_ids, (BATCHES, shape.batch, shape.length), p=share / share.sum())
    return ids.astype(np.int32)
