"""Tuning imported weights with LoRA on captions: held-out loss before and after, and the merged weights as a folder.

N positions that carry loss.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from geminid.model.decoder import Decoder
from geminid.model.lora import adapt, join_adapters, merge, split_adapters
from geminid.tokens.ids import pieces_of
from geminid.tune.captions import Caption
from geminid.tune.requests import TuneConfig

CHUNK = 64  # positions whose logits are held at once: of 262,144 ids each


def caption_loss(decoder: Decoder, ids: Array, counts: Array) -> tuple[Array, Array]:
    """Sum of the negative log-likelihoods of all ids after each row's first, and how many they are.

    ids int [B T], the first `counts` int [B] of which are the row's.
    """
    length = ids.shape[1]
    steps = jnp.arange(length)
    mask = (steps[None, :, None] >= steps) & (steps[None, None, :] < counts[:, None, None])
    hidden, _ = decoder(decoder.embed(ids), jnp.broadcast_to(steps, ids.shape), mask)
    wanted = (steps[None, 1:] < counts[:, None]).reshape(-1)
    pad = -len(wanted) % CHUNK
    states = jnp.pad(hidden[:, :-1].reshape(len(wanted), -1), ((0, pad), (0, 0)))
    targets, wanted = jnp.pad(ids[:, 1:].reshape(-1), (0, pad)), jnp.pad(wanted, (0, pad))

    @jax.checkpoint
    def part(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        states, targets, wanted = chunk
        losses = optax.softmax_cross_entropy_with_integer_labels(decoder.logits(states), targets)
        return total + jnp.sum(jnp.where(wanted, losses, 0.0)), None

    chunks = (states.reshape(-1, CHUNK, states.shape[-1]), targets.reshape(-1, CHUNK), wanted.reshape(-1, CHUNK))
    total, _ = jax.lax.scan(part, jnp.zeros(()), chunks)
    return total, wanted.sum()


def rows_of(captions: Sequence[Caption], encode: Callable[[str], list[int]], length: int) -> tuple[Array, Array]:
    """ids int32 [B length] and how many of each row are its own; what is longer is cut."""
    ids, counts = np.zeros((len(captions), length), np.int32), np.zeros(len(captions), np.int32)
    for row, caption in enumerate(captions):
        encoded = encode(caption.text)[:length]
        ids[row, : len(encoded)], counts[row] = encoded, len(encoded)
    return jnp.asarray(ids), jnp.asarray(counts)


class Tuning:
    """A decoder with adapters, its optimiser, and its compiled step."""

    def __init__(self, decoder: Decoder, config: TuneConfig):
        adapt(decoder, config.rank, config.alpha, jax.random.key(config.seed))
        graph, state = nnx.split(decoder)
        self.decoder = decoder
        self.adapters, self._others, how = split_adapters(state)
        schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, config.steps)
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        self._moments = optimiser.init(self.adapters)

        def loss(adapters: list[Array], others: list[Array], ids: Array, counts: Array) -> tuple[Array, Array]:
            return caption_loss(nnx.merge(graph, join_adapters(adapters, others, how)), ids, counts)

        def mean(*inputs: Any) -> Array:
            total, count = loss(*inputs)
            return total / count

        def step(adapters: list[Array], moments: Any, others: list[Array], ids: Array, counts: Array) -> tuple:
            value, gradients = jax.value_and_grad(mean)(adapters, others, ids, counts)
            updates, moments = optimiser.update(gradients, moments)
            return optax.apply_updates(adapters, updates), moments, value

        self._step, self._loss = jax.jit(step, donate_argnums=(0, 1)), jax.jit(loss)
        self._state = lambda: join_adapters(self.adapters, self._others, how)

    def step(self, ids: Array, counts: Array) -> float:
        """One step; its loss, a nat an id."""
        self.adapters, self._moments, value = self._step(self.adapters, self._moments, self._others, ids, counts)
        return float(value)

    def loss(self, batches: Sequence[tuple[Array, Array]]) -> float:
        """Mean loss of an id over all batches."""
        parts = [self._loss(self.adapters, self._others, *batch) for batch in batches]
        return float(sum(total for total, _ in parts) / sum(count for _, count in parts))

    def merged(self) -> Decoder:
        """The decoder with its adapters added to its weights."""
        nnx.update(self.decoder, self._state())
        merge(self.decoder)
        return self.decoder


def tune(
    decoder: Decoder,
    captions: Sequence[Caption],
    encode: Callable[[str], list[int]],
    config: TuneConfig,
    show: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Decoder, dict[str, Any]]:
    """The tuned decoder, merged, and the figures: held-out loss before and after, overall and by language."""
    learnt = [caption for caption in captions if not caption.held_out]
    languages = sorted({caption.language for caption in captions})
    rng = np.random.default_rng(config.seed)
    kept = {
        language: [c for c in captions if c.held_out and c.language == language][: config.evaluated]
        for language in languages
    }
    held_out = {language: rows_of(rows, encode, config.length) for language, rows in kept.items()}
    tuning = Tuning(decoder, config)

    def measured() -> dict[str, float]:
        return {language: tuning.loss([batch]) for language, batch in held_out.items()}

    before, losses = measured(), []
    for step in range(config.steps):
        chosen = rng.choice(len(learnt), config.batch, replace=False)
        losses.append(tuning.step(*rows_of([learnt[i] for i in chosen], encode, config.length)))
        show(step + 1, losses[-1])
    after = measured()
    figures = {
        "loss_before": statistics.fmean(before.values()),
        "loss_after": statistics.fmean(after.values()),
        "by_language": {language: [before[language], after[language]] for language in languages},
        "num_adapted": sum(leaf.size for leaf in tuning.adapters),
        "num_captions": len(learnt),
        "num_held_out": sum(map(len, kept.values())),
    }
    return tuning.merged(), figures


def encoder_of(path: Path) -> Callable[[str], list[int]]:
    """Text to ids between the tokenizer's marks of begin and end."""
    pieces = pieces_of(path)
    return lambda text: [pieces.bos_id(), *pieces.encode(text), pieces.eos_id()]
