"""What several test files make."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def filled(make: Callable[[], Module], scale: float, seed: int) -> Module:
    """The module that `make` gives, all its parameters normal with deviation `scale`; nothing is initialised twice."""
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda p: jnp.asarray(scale * rng.standard_normal(p.shape), p.dtype), state))


class Letters:
    """Stands in for SentencePiece: a piece is a letter."""

    def get_piece_size(self) -> int:
        return 26

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
