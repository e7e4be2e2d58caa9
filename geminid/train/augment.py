"""Random changes to pictures and log-mels, inside the jitted step: same key, same bits."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

LOG_FLOOR = math.log(1e-3)  # log-mel of silence, see `geminid.tokens.audio`
SPEEDS = (0.8, 1.25)


def _resample(key: Array, count: int, size: int, scale: tuple[float, float], shift: float) -> Array:
    """Linear-interpolation matrices [count, size, size] of random scales and shifts along one axis."""
    a, b = jax.random.split(key)
    factor = jax.random.uniform(a, (count, 1), minval=scale[0], maxval=scale[1])
    offset = jax.random.uniform(b, (count, 1), minval=-shift, maxval=shift) * size
    middle = (size - 1) / 2
    source = (jnp.arange(size) - middle) / factor + middle + offset  # [count, size]
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, :, None] - jnp.arange(size)))


def pictures(key: Array, x: Array) -> Array:
    """Pictures on white, float [B S S 3] in [-1, 1], each moved, scaled, blurred, recoloured and made noisy.

    They are not mirrored: a style that was not seen is named 2 points worse after that (78.7% -> 76.4%).
    """
    batch, side = x.shape[:2]
    keys = iter(jax.random.split(key, 9))

    def uniform(low: float, high: float, *shape: int) -> Array:
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    ink = (1.0 - x) / 2.0  # white is nothing: what moves out of the frame leaves white
    blur = jnp.exp(uniform(math.log(0.35), math.log(1.6), batch, 1, 1)) * side / 32  # pixels
    scale, stretch = uniform(0.8, 1.15, batch, 1, 1), uniform(0.92, 1.08, batch, 1, 1)
    reach = 3.0 * side / 32
    rows = _moved(uniform(-reach, reach, batch, 1, 1), scale * stretch, blur, side)
    columns = _moved(uniform(-reach, reach, batch, 1, 1), scale / stretch, blur, side)
    ink = jnp.einsum("bij,bjkc->bikc", rows, ink)
    ink = jnp.einsum("bij,bkjc->bkic", columns, ink)
    ink = ink * uniform(0.7, 1.3, batch, 1, 1, 3) + uniform(-0.06, 0.06, batch, 1, 1, 3)
    ink = ink + jax.random.normal(next(keys), ink.shape) * uniform(0.0, 0.06, batch, 1, 1, 1)
    return 1.0 - 2.0 * jnp.clip(ink, 0.0, 1.0)


def _moved(shift: Array, scale: Array, blur: Array, side: int) -> Array:
    """[B 1 1] each, shift and blur in pixels -> [B side side]: moves, scales and blurs along one axis.

    Each row is a Gaussian over the source pixels, normalised over a margin beyond the picture: what lies
    there is paper, so a row that reaches out of the picture sums to less than 1.
    """
    middle = (side - 1) / 2
    target = jnp.arange(side, dtype=jnp.float32)[None, :, None]
    source = jnp.arange(-side, 2 * side, dtype=jnp.float32)[None, None, :]
    centre = (target - middle) / scale + middle + shift
    weights = jnp.exp(-0.5 * ((source - centre) / blur) ** 2)
    return (weights / weights.sum(-1, keepdims=True))[:, :, side : 2 * side]


def codec_pictures(key: Array, x: Array) -> Array:
    """Mirror, turn by quarters, exchange colour channels, shift by whole pixels: what a codec must not mind."""
    batch = x.shape[0]
    keys = jax.random.split(key, 4)
    flips = jax.random.bernoulli(keys[0], 0.5, (3, batch, 1, 1, 1))
    x = jnp.where(flips[0], x[:, ::-1], x)
    x = jnp.where(flips[1], x[:, :, ::-1], x)
    x = jnp.where(flips[2], x.transpose(0, 2, 1, 3), x)
    order = jax.vmap(lambda k: jax.random.permutation(k, 3))(jax.random.split(keys[1], batch))
    shuffled = jnp.take_along_axis(x, order[:, None, None, :], 3)
    x = jnp.where(jax.random.bernoulli(keys[2], 0.3, (batch, 1, 1, 1)), shuffled, x)
    down, right = jax.random.randint(keys[3], (2, batch), -2, 3)
    return jax.vmap(lambda picture, shift: jnp.roll(picture, shift, (0, 1)))(x, jnp.stack([down, right], 1))


def mels(key: Array, x: Array, num_frames: Array) -> tuple[Array, Array]:
    """Speed, vocal-tract warp, tilt, gain, noise, masks (SpecAugment, Park et al. 2019).

    x: float [B frames mels]; num_frames int [B]. Returns the same shapes. What stands after a clip's frames
    does not matter.
    """
    batch, length, bands = x.shape
    x = jnp.where(_present(length, num_frames), x, LOG_FLOOR)
    keys = jax.random.split(key, 8)
    speed = jax.random.uniform(keys[0], (batch, 1), minval=SPEEDS[0], maxval=SPEEDS[1])
    speed = jnp.maximum(speed, num_frames[:, None] / length)  # a clip that is slowed down keeps its end
    source = jnp.arange(length) * speed
    low = jnp.clip(jnp.floor(source).astype(jnp.int32), 0, length - 1)
    high = jnp.minimum(low + 1, length - 1)
    part = (source - low)[..., None]
    take = jax.vmap(lambda rows, at: rows[at])
    x = take(x, low) * (1 - part) + take(x, high) * part
    frames = jnp.clip((num_frames / speed[:, 0]).astype(jnp.int32), 1, length)
    warp = _resample(keys[1], batch, bands, (0.88, 1.14), 0.03)
    x = LOG_FLOOR + jnp.einsum("bij,btj->bti", warp, x - LOG_FLOOR)
    band = jnp.linspace(-1, 1, bands)
    slope, bend = jax.random.normal(keys[2], (2, batch, 1, 1))
    tilt = 0.6 * slope * band + 0.4 * bend * band**2
    gain = 0.7 * jax.random.normal(keys[3], (batch, 1, 1))
    noise = jax.random.uniform(keys[4], (batch, 1, 1), minval=-7.0, maxval=-3.0)
    noise = noise + 0.3 * jax.random.normal(keys[5], x.shape)
    x = jnp.logaddexp(x + tilt + gain, noise)

    def stripes(key: Array, size: int, widest: int) -> Array:
        a, b = jax.random.split(key)
        start = jax.random.uniform(a, (batch, 1)) * size
        wide = jax.random.uniform(b, (batch, 1)) * widest
        at = jnp.arange(size)
        return (at >= start) & (at < start + wide)

    hidden = stripes(keys[6], bands, bands // 6)[:, None, :] | stripes(keys[7], length, 12)[:, :, None]
    heard = _present(length, frames)
    mean = jnp.sum(jnp.where(heard, x, 0.0), (1, 2), keepdims=True) / (frames[:, None, None] * bands)
    return jnp.where(hidden, mean, x), frames


def _present(length: int, num_frames: Array) -> Array:
    """bool [B length 1]: frames that belong to the clip."""
    return (jnp.arange(length) < num_frames[:, None])[..., None]
