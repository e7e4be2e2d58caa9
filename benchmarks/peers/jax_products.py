"""The measured peak of those that run on JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.peers.contest import SQUARE


def products_of(dtype: str) -> Callable[[int], None]:
    """As `worker.Contender.products`."""
    square = jnp.full((SQUARE, SQUARE), 1 / SQUARE, dtype)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()

    def products(count: int) -> None:
        x = square
        for _ in range(count):
            x = product(x, square)
        x.block_until_ready()

    return products
