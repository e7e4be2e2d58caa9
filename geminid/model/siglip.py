"""Pictures -> states of patches: SigLIP's encoder (Zhai et al. 2023), a plain ViT (Dosovitskiy et al. 2020).

Parameters have the names and meaning of the released weights; `geminid.interop` maps them one to one.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax import Array

from geminid.model.layers import attend
from geminid.model.towers import SiglipConfig


def layer_norm(config: SiglipConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """The exact variance: E[x^2] - E[x]^2 loses digits where the mean is large."""
    return nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, use_fast_variance=False, rngs=rngs)


class SiglipBlock(nnx.Module):
    """Pre-norm block with biases; every patch sees every other."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        width = config.width
        self.norm_attention = layer_norm(config, rngs)
        self.q = nnx.Linear(width, width, rngs=rngs)
        self.k = nnx.Linear(width, width, rngs=rngs)
        self.v = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm_mlp = layer_norm(config, rngs)
        self.up = nnx.Linear(width, config.mlp_width, rngs=rngs)
        self.down = nnx.Linear(config.mlp_width, width, rngs=rngs)

    def attention(self, x: Array) -> Array:
        """x [B n D]."""
        batch, length, width = x.shape
        head_dim = width // self.num_heads
        q, k, v = (part(x).reshape(batch, length, self.num_heads, head_dim) for part in (self.q, self.k, self.v))
        return self.out(attend(q * head_dim**-0.5, k, v, None).reshape(x.shape))

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.norm_attention(x))
        return x + self.down(jax.nn.gelu(self.up(self.norm_mlp(x)), approximate=True))


class SiglipEncoder(nnx.Module):
    """Patches, learned positions, blocks, a last norm."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.config = config
        patch, width = config.patch, config.width
        self.patches = nnx.Conv(3, width, (patch, patch), (patch, patch), padding="VALID", rngs=rngs)
        init = jax.nn.initializers.normal(width**-0.5)
        self.positions = nnx.Param(init(rngs.params(), (config.grid**2, width)))

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> SiglipBlock:
            return SiglipBlock(config, rngs=rngs)

        self.layers = stack(rngs)
        self.norm = layer_norm(config, rngs)

    def __call__(self, pictures: Array) -> Array:
        """pictures float32 [B H W 3] in [-1, 1], square, of the configured size -> states [B grid^2 D], row by row."""
        size = self.config.picture_size
        if pictures.shape[1:] != (size, size, 3):
            raise ValueError(
                f"pictures of shape {pictures.shape[1:]}; this encoder takes {(size, size, 3)}: resize them"
            )
        x = self.patches(pictures).reshape(pictures.shape[0], -1, self.config.width) + self.positions[...]
        graph, weights = nnx.split(self.layers)
        x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graph, layer)(x), None), x, weights)
        return self.norm(x)
