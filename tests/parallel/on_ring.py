"""Run in a process of its own with eight CPU devices: an MLP and a projection by rings, against whole products.

python -m tests.parallel.on_ring CONTEXT TENSOR LENGTH      prints JSON: how far results and gradients are apart, and
what the program sends
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from geminid.parallel.ring import entering, in_order, in_turn, leaving
from geminid.parallel.sharding import SHARDS, make_mesh
from tests.parallel.collectives import found

SHARDED, WIDTH, COLUMNS = 2, 8, 32


def by_ring(x: jax.Array, q: jax.Array, out: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    queries = in_order([piece for (piece,) in entering(x, [q])])
    moved = jnp.cumsum(queries, 1)  # as attention does, what comes before has a part in what comes after
    x = x + leaving(in_turn(moved), out)
    return x + leaving([jnp.tanh(a) * b for a, b in entering(x, [gate, up])], down)


def whole(x: jax.Array, q: jax.Array, out: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    x = x + jnp.cumsum(x @ q, 1) @ out
    return x + (jnp.tanh(x @ gate) * (x @ up)) @ down


def main() -> None:
    context, tensor, length = map(int, sys.argv[1:])
    mesh = make_mesh({"fsdp": 8 // (context * tensor), "context": context, "tensor": tensor})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SHARDED * mesh.shape["fsdp"], 1, length, WIDTH)).astype(np.float32)
    shapes = [(WIDTH, COLUMNS), (COLUMNS, WIDTH)] + [(WIDTH, COLUMNS)] * 2 + [(COLUMNS, WIDTH)]
    weights = [rng.normal(size=shape).astype(np.float32) / 8 for shape in shapes]
    target = rng.normal(size=x.shape).astype(np.float32)

    def results(f, **names):
        def loss(*args):
            made = jax.vmap(f, (0, *[None] * len(weights)), **names)(*args)
            return (made * target).sum(), made

        return jax.jit(jax.value_and_grad(loss, tuple(range(6)), has_aux=True))

    with jax.set_mesh(mesh):
        compiled = results(by_ring, spmd_axis_name=SHARDS).lower(x, *weights).compile()
        (_, made), gradients = compiled(x, *weights)
    (_, wanted), expected = results(whole)(x, *weights)
    apart = [
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())
        for a, b in zip((made, *gradients), (wanted, *expected), strict=True)
    ]
    print(json.dumps({"apart": apart, "collectives": found(compiled.as_text(), mesh)}))


if __name__ == "__main__":
    main()
