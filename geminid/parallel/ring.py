"""Products of the decoder's layers over `tensor`: positions between blocks are each device's own, columns inside too.

Entering a block, a device needs the positions of all devices of `tensor`; leaving it, sums over all of them of its own.
Neither is one collective, for the product would wait for it: pieces of the positions go round the ring of these
devices, half of them each way, and a piece is multiplied while the next one travels (Wang et al. 2023, ASPLOS,
"Overlap communication with dependent computation via decomposition"). With n devices, [B T D] are a place's positions:

    pieces = entering(x, weights)        n times ([n B T/n F/n] of each weight [D F]), own piece first
    x = leaving(hidden, weight)          hidden: n times [n B T/n F/n]; weight [F D]

Piece k of device d is the first half of the positions of device d + k and the second half of those of device d - k:
`in_order` and `in_turn` go to [B T F] and back. With one device, or a length that the devices do not divide, there is
one piece, [B T F]. The gradient of a weight is one product of all pieces, summed over devices once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from geminid.parallel.sharding import constrain, num_between, on_each, scattered, size_of

RING = "tensor"
Pieces = tuple[Array, ...]


def entering(x: Array, weights: Sequence[Array]) -> list[Pieces]:
    """x [B T D], laid as `between`, times each weight [D F]; see above."""
    if not _is_ring(x):
        whole = constrain(x, None, "positions")
        return [tuple(constrain(whole @ weight, None, "positions", "hidden") for weight in weights)]
    return list(_entering(x, tuple(weights)))


def leaving(pieces: Sequence[Array], weight: Array) -> Array:
    """Sum over devices of the pieces times weight [F D]: [B T D], laid as `between`. Its gradient is made as [D F]."""
    if len(pieces) == 1:
        return scattered(_turned(pieces[0], weight))
    return _leaving(tuple(pieces), weight)


def in_order(pieces: Sequence[Array]) -> Array:
    """What `entering` made of one weight: [B T F], its positions in order."""
    return pieces[0] if len(pieces) == 1 else _in_order(tuple(pieces))


def in_turn(x: Array) -> Pieces:
    """The inverse of `in_order`."""
    return _in_turn(x) if _is_ring(x) else (x,)


def _is_ring(x: Array) -> bool:
    return size_of(RING) > 1 and x.shape[1] % num_between() == 0


# --- on each device ---


def _moved(x: Array, steps: int) -> Array:
    count = jax.lax.axis_size(RING)
    return jax.lax.ppermute(x, RING, [(i, (i + steps) % count) for i in range(count)])


def _halves(x: Array) -> list[Array]:
    return jnp.split(x, [x.shape[-2] // 2], -2)


def _arriving(x: Array, f: Callable[[Array], Pieces]) -> tuple[list[Array], list[Pieces]]:
    """The pieces of all devices, [B T/n D] each, and f of each, which runs while the next one travels."""
    pieces, made = [x], [f(x)]
    for _ in range(1, jax.lax.axis_size(RING)):
        coming = [_moved(half, steps) for half, steps in zip(_halves(pieces[-1]), (-1, 1), strict=True)]
        # or the compiler's schedule lets pieces arrive one after another before the first product
        (coming, first), others = jax.lax.optimization_barrier((coming, made[-1][0])), made[-1][1:]
        made[-1] = first, *others
        pieces.append(jnp.concatenate(coming, -2))
        made.append(f(pieces[-1]))
    return pieces, made


def _summed(pieces: Callable[[int], Array]) -> Array:
    """Sums over devices of this one's positions. pieces(k): what this device adds to piece k, [B T/n D]."""
    count = jax.lax.axis_size(RING)
    first, second = _halves(pieces(1 % count))
    for k in range(2, count + 1):
        first, second = _moved(first, -1), _moved(second, 1)
        own_first, own_second = _halves(pieces(k % count))
        first, second = first + own_first, second + own_second
    return jnp.concatenate([first, second], -2)


def _sorted(pieces: Sequence[Array]) -> Array:
    """The pieces that arrived, [B T/n F] each, as [B T F], their positions in order."""
    count, own = jax.lax.axis_size(RING), jax.lax.axis_index(RING)
    firsts, seconds = (jnp.stack(each) for each in zip(*map(_halves, pieces), strict=True))
    found = []
    for device in range(count):
        for halves, k in ((firsts, device - own), (seconds, own - device)):
            found.append(jax.lax.dynamic_index_in_dim(halves, k % count, 0, keepdims=False))
    return jnp.concatenate(found, -2)


# --- over the mesh ---


def _arrived(x: Array, f: Callable[..., Any], *weights: Array, layouts: Sequence[str]) -> tuple[Any, Array]:
    """f(piece, *weights) of each piece that arrives, and all that arrived, [B T D] in order."""

    def local(x: Array, *weights: Array) -> tuple[Any, Array]:
        pieces, made = _arriving(x, lambda piece: f(piece, *weights))
        return tuple(tuple(y[None] for y in each) for each in made), _sorted(pieces)

    return on_each(local, ("between", *layouts), ("pieces", "positions"))(x, *weights)


@jax.custom_vjp
def _entering(x: Array, weights: Pieces) -> tuple[Pieces, ...]:
    return _entering_forward(x, weights)[0]


def _entering_forward(x: Array, weights: Pieces) -> Any:
    def times(piece: Array, *weights: Array) -> Pieces:
        return tuple(piece @ weight for weight in weights)

    made, arrived = _arrived(x, times, *weights, layouts=["columns"] * len(weights))
    return made, (arrived, weights)


def _entering_backward(kept: Any, gradients: tuple[Pieces, ...]) -> tuple[Array, Pieces]:
    arrived, weights = kept

    def local(gradients: tuple[Pieces, ...], *weights: Array) -> Array:
        def piece(k: int) -> Array:
            terms = [gradient[0] @ weight.T for gradient, weight in zip(gradients[k], weights, strict=True)]
            return functools.reduce(jnp.add, terms)

        return _summed(piece)

    columns = ["columns"] * len(weights)
    d_x = on_each(local, ("pieces", *columns), "between")(gradients, *weights)
    d_weights = []
    for i in range(len(weights)):
        gradient = _in_order(tuple(each[i] for each in gradients))
        d_weights.append(jnp.einsum("...i,...o->io", arrived, gradient))
    return d_x, tuple(d_weights)


_entering.defvjp(_entering_forward, _entering_backward)


@jax.custom_vjp
def _leaving(pieces: Pieces, weight: Array) -> Array:
    def local(pieces: Pieces, weight: Array) -> Array:
        return _summed(lambda k: pieces[k][0] @ weight)

    return on_each(local, ("pieces", "rows"), "between")(pieces, weight)


def _leaving_backward(kept: tuple[Pieces, Array], gradient: Array) -> tuple[Pieces, Array]:
    pieces, weight = kept
    made, arrived = _arrived(gradient, lambda piece, weight: (piece @ weight.T,), weight, layouts=["rows"])
    d_weight = jnp.einsum("...i,...o->oi", _in_order(pieces), arrived).T  # as [D F]: `gathered_layer` turns it again
    return tuple(d_piece for (d_piece,) in made), d_weight


_leaving.defvjp(lambda pieces, weight: (_leaving(pieces, weight), (pieces, weight)), _leaving_backward)


@jax.custom_vjp
def _turned(x: Array, weight: Array) -> Array:
    return x @ weight


def _turned_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = kept
    return gradient @ weight.T, jnp.einsum("...i,...o->oi", x, gradient).T


_turned.defvjp(lambda x, weight: (_turned(x, weight), (x, weight)), _turned_backward)


@jax.custom_vjp
def _in_order(pieces: Pieces) -> Array:
    return on_each(lambda pieces: _sorted([piece[0] for piece in pieces]), ("pieces",), "inside")(pieces)


@jax.custom_vjp
def _in_turn(x: Array) -> Pieces:
    def local(x: Array) -> Pieces:
        count, own = jax.lax.axis_size(RING), jax.lax.axis_index(RING)
        chunks = jnp.stack(jnp.split(x, count, -2))
        firsts, seconds = _halves(chunks)

        def piece(k: int) -> Array:
            at = ((firsts, own + k), (seconds, own - k))
            found = [jax.lax.dynamic_index_in_dim(halves, i % count, 0, keepdims=False) for halves, i in at]
            return jnp.concatenate(found, -2)[None]

        return tuple(piece(k) for k in range(count))

    return on_each(local, ("inside",), "pieces")(x)


_in_order.defvjp(lambda pieces: (_in_order(pieces), None), lambda _, gradient: (_in_turn(gradient),))
_in_turn.defvjp(lambda x: (_in_turn(x), None), lambda _, gradients: (_in_order(gradients),))
