"""Random changes to pictures and log-mels, inside the jitted step: same key, same bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def _resample(key: Array, count: int, size: int, scale: tuple[float, float], shift: float) -> Array:
    """Linear-interpolation matrices [count, size, size] of random scales and shifts along one axis."""
    a, b = jax.random.split(key)
    factor = jax.random.uniform(a, (count, 1), minval=scale[0], maxval=scale[1])
    offset = jax.random.uniform(b, (count, 1), minval=-shift, maxval=shift) * size
    middle = (size - 1) / 2
    source = (jnp.arange(size) - middle) / factor + middle + offset  # [count, size]
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, :, None] - jnp.arange(size)))


def pictures(key: Array, x: Array, flip: bool = True) -> Array:
    """Scale, shift, mirror, shear, colour and a cut-out patch. x: float [B H W 3] in [-1, 1] on white."""
    batch, height, width, _ = x.shape
    keys = jax.random.split(key, 8)
    ink = 1.0 - x  # white is nothing: what moves out of the frame leaves white
    rows = _resample(keys[0], batch, height, (0.75, 1.1), 0.1)
    columns = _resample(keys[1], batch, width, (0.75, 1.1), 0.1)
    if flip:
        mirrored = jax.random.bernoulli(keys[2], 0.5, (batch, 1, 1))
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    ink = jnp.einsum("bij,bjwc->biwc", rows, ink)
    ink = jnp.einsum("bij,bhjc->bhic", columns, ink)
    mix = jnp.eye(3) + 0.15 * jax.random.normal(keys[3], (batch, 3, 3))
    grey = jax.random.bernoulli(keys[4], 0.1, (batch, 1, 1))
    mix = jnp.where(grey, jnp.full((3, 3), 1 / 3), mix)
    gain = jax.random.uniform(keys[5], (batch, 1, 1, 1), minval=0.7, maxval=1.2)
    ink = gain * jnp.einsum("bhwc,bcd->bhwd", ink, mix)
    corner = jax.random.uniform(keys[6], (batch, 2, 1), minval=-0.3, maxval=1.0)
    side = 0.3
    grids = [jnp.arange(n) / n for n in (height, width)]
    at = [(g >= corner[:, i]) & (g < corner[:, i] + side) for i, g in enumerate(grids)]
    hole = at[0][:, :, None] & at[1][:, None, :]
    ink = jnp.where(hole[..., None], 0.0, ink)
    return jnp.clip(1.0 - ink, -1.0, 1.0)


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

    x: float [B frames mels]; num_frames int [B]. Returns the same shapes.
    """
    batch, length, bands = x.shape
    keys = jax.random.split(key, 8)
    speed = jax.random.uniform(keys[0], (batch, 1), minval=0.8, maxval=1.25)
    source = jnp.arange(length) * speed
    low = jnp.clip(jnp.floor(source).astype(jnp.int32), 0, length - 1)
    high = jnp.minimum(low + 1, length - 1)
    part = (source - low)[..., None]
    take = jax.vmap(lambda rows, at: rows[at])
    x = take(x, low) * (1 - part) + take(x, high) * part
    frames = jnp.clip((num_frames / speed[:, 0]).astype(jnp.int32), 1, length)
    warp = _resample(keys[1], batch, bands, (0.88, 1.14), 0.03)
    floor = jnp.log(1e-3)
    x = floor + jnp.einsum("bij,btj->bti", warp, x - floor)
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
    mean = jnp.mean(x, (1, 2), keepdims=True)
    return jnp.where(hidden, mean, x), frames
