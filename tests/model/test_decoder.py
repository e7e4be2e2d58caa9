"""The decoder against one written in numpy, and what must not change its numbers: caches, scans, rematerialisation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from geminid.config import DecoderConfig
from geminid.model.decoder import Decoder, layer_windows
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
NUM_IDS, ROWS, LENGTH = 23, 2, 8
PLAIN = DecoderConfig(num_layers=2, width=12, num_heads=4, num_kv_heads=1, head_dim=6, mlp_width=20)
GEMMA = dataclasses.replace(  # everything switched on
    PLAIN,
    num_kv_heads=2,
    window=3,
    local_per_global=1,
    norm_epsilon=1e-2,
    query_scalar=11.0,
    rope_theta=1000.0,
    rope_stretch=3.0,
    local_rope_theta=50.0,
    post_norm=True,
    attention_soft_cap=2.0,
    logit_soft_cap=3.0,
)
LOCAL = dataclasses.replace(PLAIN, window=3, local_per_global=2)  # both layers are local
IDS = np.random.default_rng(0).integers(0, NUM_IDS, (ROWS, LENGTH))
POSITIONS = np.broadcast_to(np.arange(LENGTH), IDS.shape)


def causal(length: int = LENGTH) -> np.ndarray:
    return np.broadcast_to(np.tril(np.ones((length, length), bool)), (ROWS, length, length))


def decoder_of(config: DecoderConfig) -> Decoder:
    """Random parameters, norms included; equal for configurations of equal shapes."""
    return filled(lambda: Decoder(config, NUM_IDS, rngs=nnx.Rngs(0)), 0.4, seed=1)


def hidden_of(config: DecoderConfig):
    """jit: (parameters, ids) -> hidden states and cache of a full causal pass."""
    graph, state = nnx.split(decoder_of(config))

    @jax.jit
    def run(state, ids):
        decoder = nnx.merge(graph, state)
        return decoder(decoder.embed(ids), jnp.asarray(POSITIONS), jnp.asarray(causal()))

    return lambda ids: run(state, jnp.asarray(ids))


@pytest.fixture(scope="module")
def gemma():
    return hidden_of(GEMMA)


def numpy_decoder(config: DecoderConfig, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states and logits in float64, layer by layer, head by head."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), nnx.to_pure_dict(nnx.state(decoder_of(config))))
    groups, half = config.num_heads // config.num_kv_heads, config.head_dim // 2

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * (1 + scale)

    def turn(x, is_local):  # [T Dh]
        theta = config.local_rope_theta if is_local else config.rope_theta
        positions = np.arange(len(x))[:, None] / (1 if is_local else config.rope_stretch)
        numbers = x[:, :half] + 1j * x[:, half:]
        numbers = numbers * np.exp(1j * positions * theta ** (-np.arange(half) / half))
        return np.concatenate([numbers.real, numbers.imag], -1)

    def heads(x, weight, count):
        return (x @ weight).reshape(len(x), count, -1).transpose(1, 0, 2)

    def layer(x, p, is_local):
        normed, a = norm(x, p["norm_attention"]["scale"]), p["attention"]
        q = [turn(norm(h, a["q_norm"]["scale"]), is_local) for h in heads(normed, a["q"], config.num_heads)]
        k = [turn(norm(h, a["k_norm"]["scale"]), is_local) for h in heads(normed, a["k"], config.num_kv_heads)]
        v = heads(normed, a["v"], config.num_kv_heads)
        mixed = []
        for h in range(config.num_heads):
            scores = q[h] @ k[h // groups].T / np.sqrt(config.query_scalar or config.head_dim)
            if config.attention_soft_cap:
                scores = config.attention_soft_cap * np.tanh(scores / config.attention_soft_cap)
            distance = np.arange(len(x))[:, None] - np.arange(len(x))
            seen = (distance >= 0) & (not is_local or distance < config.window)
            weights = np.where(seen, np.exp(scores), 0)
            mixed.append(weights / weights.sum(-1, keepdims=True) @ v[h // groups])
        mixed = np.concatenate(mixed, -1) @ a["out"]
        x = x + (norm(mixed, p["post_attention"]["scale"]) if config.post_norm else mixed)
        normed, m = norm(x, p["norm_mlp"]["scale"]), p["mlp"]
        gate = normed @ m["gate"]
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        hidden = (gate * (normed @ m["up"])) @ m["down"]
        return x + (norm(hidden, p["post_mlp"]["scale"]) if config.post_norm else hidden)

    out = []
    for row in ids:
        x = params["embedding"][row] * np.sqrt(config.width)
        for i in range(config.num_layers):
            is_local = config.window is not None and (i + 1) % (config.local_per_global + 1) != 0
            x = layer(x, jax.tree.map(lambda p, i=i: p[i], params["layers"]), is_local)
        out.append(norm(x, params["norm"]["scale"]))
    scores = np.stack(out) @ params["embedding"].T
    cap = config.logit_soft_cap
    return np.stack(out), scores if cap is None else cap * np.tanh(scores / cap)


def test_gemma_is_the_numpy_decoder(gemma):
    hidden, logits = numpy_decoder(GEMMA, IDS)
    got = gemma(IDS)[0]
    np.testing.assert_allclose(got, hidden, atol=2e-5)
    decoder = decoder_of(GEMMA)
    np.testing.assert_allclose(decoder.logits(got), logits, atol=2e-5)
    assert np.abs(decoder.logits(100 * got)).max() <= 3.0


def test_plain_is_the_numpy_decoder():
    hidden, logits = numpy_decoder(PLAIN, IDS)
    got = hidden_of(PLAIN)(IDS)[0]
    np.testing.assert_allclose(got, hidden, atol=2e-5)
    np.testing.assert_allclose(decoder_of(PLAIN).logits(got), logits, atol=5e-5)


def test_a_later_id_changes_no_earlier_state(gemma):
    before = np.asarray(gemma(IDS)[0])
    for at in range(LENGTH):
        changed = IDS.copy()
        changed[0, at] = (changed[0, at] + 1) % NUM_IDS
        after = np.asarray(gemma(changed)[0])
        np.testing.assert_array_equal(after[0, :at], before[0, :at])
        np.testing.assert_array_equal(after[1], before[1])
        assert np.abs(after[0, at] - before[0, at]).max() > 1e-3


def test_two_local_layers_of_window_3_see_4_positions_back():
    run = hidden_of(LOCAL)
    changed = IDS.copy()
    changed[:, 1] = (changed[:, 1] + 1) % NUM_IDS
    difference = np.abs(np.asarray(run(changed)[0]) - np.asarray(run(IDS)[0])).max((0, 2))
    assert (difference > 1e-4).tolist() == [1 <= t <= 5 for t in range(LENGTH)]
    assert (difference[6:] == 0).all()


def test_every_third_layer_is_global():
    config = dataclasses.replace(PLAIN, num_layers=7, window=4, local_per_global=2)
    assert [w == 4 for w in layer_windows(config)] == [True, True, False, True, True, False, True]
    assert min(layer_windows(PLAIN)) > 1_000_000


def test_decoding_in_pieces_with_a_cache_equals_one_pass(gemma):
    whole, (whole_keys, whole_values) = gemma(IDS)
    graph, state = nnx.split(decoder_of(GEMMA))

    @jax.jit
    def go_on(state, ids, positions, mask, key_positions, cache):
        decoder = nnx.merge(graph, state)
        return decoder(decoder.embed(ids), positions, mask, key_positions, cache)

    heads = (GEMMA.num_layers, ROWS, 0, GEMMA.num_kv_heads, GEMMA.head_dim)
    cache = (jnp.zeros(heads), jnp.zeros(heads))
    hidden, begin = [], 0
    for count in (4, 1, 3):
        now = slice(begin, begin + count)
        mask = causal()[:, now, : now.stop]
        part, new = go_on(state, IDS[:, now], POSITIONS[:, now], mask, POSITIONS[:, : now.stop], cache)
        cache = tuple(jnp.concatenate(pair, 2) for pair in zip(cache, new, strict=True))
        hidden.append(part)
        begin += count
    np.testing.assert_allclose(np.concatenate(hidden, 1), whole, atol=1e-5)
    np.testing.assert_allclose(cache[0], whole_keys, atol=1e-5)
    np.testing.assert_allclose(cache[1], whole_values, atol=1e-5)


def test_scanned_and_rematerialised_layers_give_the_same_values_and_gradients():
    target = np.random.default_rng(2).standard_normal((ROWS, LENGTH, NUM_IDS)).astype(np.float32)
    state = nnx.state(decoder_of(GEMMA))

    def value_and_gradients(**changes):
        graph = nnx.graphdef(decoder_of(dataclasses.replace(GEMMA, **changes)))

        def loss(state):
            decoder = nnx.merge(graph, state)
            hidden, cache = decoder(decoder.embed(jnp.asarray(IDS)), jnp.asarray(POSITIONS), jnp.asarray(causal()))
            return jnp.mean((decoder.logits(hidden) - target) ** 2), cache

        (value, cache), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
        return value, cache, jax.tree.leaves(gradients)

    value, cache, gradients = value_and_gradients()
    assert min(float(jnp.abs(g).max()) for g in gradients) > 0  # every parameter takes part
    for remat in ("full", "offload", "dots"):
        other_value, other_cache, other_gradients = value_and_gradients(scan_layers=True, remat=remat)
        np.testing.assert_allclose(other_value, value, rtol=1e-6)
        for a, b in zip((*other_cache, *other_gradients), (*cache, *gradients), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_unknown_remat_policy_is_refused():
    decoder = decoder_of(dataclasses.replace(PLAIN, remat="some"))
    with pytest.raises(ValueError, match="unknown remat policy 'some'; known: none, full, offload, attended, dots"):
        decoder(decoder.embed(jnp.asarray(IDS)), jnp.asarray(POSITIONS), jnp.asarray(causal()))


def test_half_precision_is_used_where_it_is_asked_for():
    config = dataclasses.replace(PLAIN, dtype="bfloat16", scan_layers=True)
    hidden, cache = hidden_of(config)(IDS)
    assert {hidden.dtype, cache[0].dtype, cache[1].dtype} == {jnp.dtype("bfloat16")}
    logits = decoder_of(config).logits(hidden)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, numpy_decoder(PLAIN, IDS)[1], atol=0.5)
