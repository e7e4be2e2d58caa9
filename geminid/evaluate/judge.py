"""An independent picture classifier, trained on real pictures only: it says what a drawing shows.

The decoder's drawings are scored by whether this network, which has never seen a drawing and shares no
weight with the decoder, names the concept that was asked for. Its training pictures are blurred, moved,
scaled, recoloured and made noisy, so that the softness of an image codec does not throw it off. They are
not mirrored: that was measured to cost 2 points on a style it had not seen (78.7% -> 76.4%, 178 classes).

Letters: B pictures of a batch, N pictures to learn from, M to judge, S pixels a side, C classes.
"""

from __future__ import annotations

import functools
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import track

from geminid.train import augment

SIDE = 32  # pixels: the side that the network sees
WIDTHS = (16, 32, 128)  # channels of the three stages, at 16, 8 and 4 pixels a side
BATCH = 64
PEAK_LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1  # Szegedy et al. 2016, arXiv 1512.00567
PREDICT_BATCH = 256
_FORMAT = 1  # of the saved file


class _Block(nnx.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.conv1 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.conv1(nnx.relu(self.norm1(x)))
        return x + self.conv2(nnx.relu(self.norm2(hidden)))


class _Network(nnx.Module):
    """float32 [B, SIDE, SIDE, 3] ink (1 - RGB) -> float32 [B, C] logits."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs):
        first, second, third = WIDTHS
        # 2x2 pixels become channels: a convolution at full side is the slowest part on CPU
        self.stem = nnx.Conv(12, first, (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(first, momentum=0.9, rngs=rngs)
        self.down1 = nnx.Conv(first, second, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.block1 = _Block(second, rngs)
        self.norm1 = nnx.BatchNorm(second, momentum=0.9, rngs=rngs)
        self.down2 = nnx.Conv(second, third, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.block2 = _Block(third, rngs)
        self.norm2 = nnx.BatchNorm(third, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(third * 4, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b = x.shape[0]
        half = SIDE // 2
        x = x.reshape(b, half, 2, half, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, half, half, 12)
        x = nnx.relu(self.stem_norm(self.stem(x)))
        x = self.block1(self.down1(x))
        x = self.block2(self.down2(nnx.relu(self.norm1(x))))
        x = nnx.relu(self.norm2(x))
        # pooled to 2x2, not to one cell: where the ink sits tells concepts apart
        x = x.reshape(b, 2, x.shape[1] // 2, 2, x.shape[2] // 2, -1).mean((2, 4)).reshape(b, -1)
        return self.head(x)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: nnx.GraphDef, state: nnx.State, ink: jax.Array) -> jax.Array:
    network = nnx.merge(graph, state, copy=True)
    network.eval()
    return network(ink)


@dataclass(frozen=True)
class Judge:
    """A trained classifier of pictures."""

    num_classes: int
    graph: nnx.GraphDef
    state: nnx.State

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [M, S, S, 3] RGB on white -> float32 [M, C] log-probabilities."""
        ink = _to_ink(pixels)
        rows = []
        for start in range(0, len(ink), PREDICT_BATCH):
            part = ink[start : start + PREDICT_BATCH]
            # one compiled shape: the last part is filled up and the filling cut off again
            full = np.zeros((PREDICT_BATCH, SIDE, SIDE, 3), np.float32)
            full[: len(part)] = part
            logits = _logits(self.graph, self.state, jnp.asarray(full))
            rows.append(np.asarray(jax.nn.log_softmax(logits))[: len(part)])
        return np.concatenate(rows) if rows else np.zeros((0, self.num_classes), np.float32)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [M, S, S, 3] RGB on white -> int32 [M], the most likely class of each picture."""
        return self.scores(pixels).argmax(-1).astype(np.int32)

    def save(self, path: Path) -> None:
        """Writes one .npz; an interrupted write leaves what was there before."""
        arrays = {"/".join(map(str, name)): np.asarray(leaf[...]) for name, leaf in nnx.to_flat_state(self.state)}
        arrays |= {"#format": np.asarray(_FORMAT), "#classes": np.asarray(self.num_classes)}
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # pyrefly: ignore[bad-argument-type]
        os.replace(temporary, path)


def load_judge(path: Path) -> Judge:
    """The judge that `Judge.save` wrote; ValueError if the file holds something else."""
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a saved judge; delete it and train the judge again") from error
    num_format = int(arrays.pop("#format", -1))
    if num_format != _FORMAT:
        raise ValueError(f"{path} has judge format {num_format}, not {_FORMAT}; delete it and train the judge again")
    num_classes = int(arrays.pop("#classes"))
    graph, state = nnx.split(_Network(num_classes, nnx.Rngs(0)))
    expected = {"/".join(map(str, name)): leaf.shape for name, leaf in nnx.to_flat_state(state)}
    if expected != {name: array.shape for name, array in arrays.items()}:
        raise ValueError(f"{path} holds a judge of another shape; delete it and train the judge again")
    for name, leaf in nnx.to_flat_state(state):
        leaf[...] = jnp.asarray(arrays["/".join(map(str, name))])
    return Judge(num_classes, graph, state)


class _Progress(NamedTuple):
    """What one training step carries to the next."""

    params: nnx.State
    statistics: nnx.State
    optimizer: optax.OptState


def train_judge(
    pixels: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    steps: int = 800,
    seed: int = 0,
    show_progress: bool = True,
) -> Judge:
    """Trains on real pictures: uint8 [N, S, S, 3] RGB on white, int [N] in [0, num_classes).

    A fixed number of steps of BATCH pictures: the same arguments give the same judge, bit for bit, on one
    machine. 800 steps take about 50 s on one core.
    """
    _check(pixels, labels, num_classes, steps)
    ink = jnp.asarray(_to_ink(pixels))
    targets = jnp.asarray(labels, jnp.int32)
    graph, params, statistics = nnx.split(_Network(num_classes, nnx.Rngs(seed)), nnx.Param, nnx.BatchStat)
    progress = _Progress(params, statistics, _optimizer(steps).init(params))
    key = jax.random.key(seed)
    batches = _order(len(pixels), steps, seed)
    bar = track(batches, "Training the judge", console=Console(stderr=True), disable=not show_progress)
    for number, chosen in enumerate(bar):
        progress = _step(graph, steps, progress, jax.random.fold_in(key, number), ink[chosen], targets[chosen])
    jax.block_until_ready(progress.params)
    return Judge(num_classes, *nnx.split(nnx.merge(graph, progress.params, progress.statistics)))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _step(
    graph: nnx.GraphDef, steps: int, progress: _Progress, key: jax.Array, ink: jax.Array, targets: jax.Array
) -> _Progress:
    """One step of `steps` on [B, SIDE, SIDE, 3] and [B]."""
    batch = (1.0 - augment.pictures(key, 1.0 - 2.0 * ink)) / 2.0

    def loss(params: nnx.State) -> tuple[jax.Array, nnx.State]:
        network = nnx.merge(graph, params, progress.statistics, copy=True)
        network.train()
        logits = network(batch)
        wanted = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), LABEL_SMOOTHING)
        return optax.softmax_cross_entropy(logits, wanted).mean(), nnx.state(network, nnx.BatchStat)

    gradients, statistics = jax.grad(loss, has_aux=True)(progress.params)
    updates, state = _optimizer(steps).update(gradients, progress.optimizer, progress.params)
    params = cast(nnx.State, optax.apply_updates(progress.params, updates))
    return _Progress(params, statistics, state)


def _optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW, warm-up over a twentieth of the steps, then a cosine to 0."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_LEARNING_RATE, max(1, steps // 20), max(2, steps))
    return optax.adamw(schedule, weight_decay=WEIGHT_DECAY)


def _check(pixels: np.ndarray, labels: np.ndarray, num_classes: int, steps: int) -> None:
    if len(pixels) != len(labels) or len(pixels) == 0:
        raise ValueError(f"{len(pixels)} pictures and {len(labels)} labels; the judge needs one label a picture")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; use 0 to {num_classes - 1}")
    if steps < 1:
        raise ValueError(f"{steps} steps; the judge needs at least 1")


def _order(num_pictures: int, steps: int, seed: int) -> np.ndarray:
    """int32 [steps, BATCH]: one shuffled pass over the pictures after another."""
    rng = np.random.default_rng(seed)
    num_passes = -(-steps * BATCH // num_pictures)
    passes = [rng.permutation(num_pictures) for _ in range(num_passes)]
    return np.concatenate(passes)[: steps * BATCH].reshape(steps, BATCH).astype(np.int32)


def _to_ink(pixels: np.ndarray) -> np.ndarray:
    """uint8 [M, S, S, 3] -> float32 [M, SIDE, SIDE, 3], white paper = 0, so that moving a picture brings in white."""
    if pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pictures are {pixels.dtype} {list(pixels.shape)}; the judge needs uint8 [M, S, S, 3]")
    ink = 1.0 - pixels.astype(np.float32) / 255.0
    if pixels.shape[1] != SIDE:
        ink = np.asarray(jax.image.resize(ink, (len(ink), SIDE, SIDE, 3), "linear"))
    return ink
