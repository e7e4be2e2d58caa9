"""Gemma 3's text model against a fixture that transformers made (`make_fixtures`), and its config.json; no torch."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from geminid.config import DecoderConfig
from geminid.interop.table import export_module
from geminid.interop.text import TEXT, text_config, text_values
from geminid.interop.towers import part_of
from tests.interop import small
from tests.interop.test_towers import fixture

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def made():
    return fixture("gemma3_text")


def test_logits_and_gradients_are_gemma_3s(made):
    values, weights, arrays = made
    decoder = small.text(values, weights)
    ids, present = arrays["ids"], arrays["present"]
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    got = np.asarray(jax.jit(small.text_logits)(decoder, ids, present.astype(np.int32), positions))
    assert small.difference(got[present], arrays["logits"][present]) < small.MOST
    gradients = small.gradients(decoder, ids, present)
    expected = part_of(arrays, "gradients/")
    assert gradients.keys() == expected.keys()
    assert max(small.difference(gradients[name], expected[name]) for name in gradients) < 1e-3


def test_out_again_is_byte_for_byte_what_came_in(made):
    values, weights, _ = made
    again = export_module(small.text(values, weights), TEXT)
    assert again.keys() == weights.keys()
    assert all(again[name].tobytes() == tensor.tobytes() for name, tensor in weights.items())


# --- config.json ---

# As in the files of google/gemma-3-1b-pt and of the text part of google/gemma-3-4b-it.
RELEASED_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}
RELEASED_4B = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def test_released_configs_are_read():
    config, num_ids = text_config(RELEASED_1B)
    assert (config.width, config.num_kv_heads, config.window, config.local_per_global) == (1152, 1, 512, 5)
    assert (config.rope_theta, config.local_rope_theta, config.rope_stretch, num_ids) == (1e6, 1e4, 1.0, 262_144)
    config, num_ids = text_config(RELEASED_4B)
    assert (config.num_heads, config.num_kv_heads, config.rope_stretch, num_ids) == (8, 4, 8.0, 262_208)


@pytest.mark.parametrize("values", [RELEASED_1B, RELEASED_4B, RELEASED_1B | {"sliding_window_pattern": 1}])
def test_a_config_that_is_written_reads_as_the_same(values):
    config, num_ids = text_config(values)
    assert text_config(text_values(config, num_ids)) == (config, num_ids)


def test_rotary_positions_of_every_layer_kind_have_their_own_base():
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
        "full_attention": {"rope_type": "linear", "factor": 2, "rope_theta": 9},
    }
    config, _ = text_config(RELEASED_4B | {"rope_scaling": None, "rope_parameters": ropes})
    assert (config.local_rope_theta, config.rope_theta, config.rope_stretch) == (7.0, 9.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is 50.0; this decoder computes None only"),
        ({"attention_bias": True}, "'attention_bias' is True"),
        ({"tie_word_embeddings": False}, "'tie_word_embeddings' is False"),
        ({"use_bidirectional_attention": True}, "'use_bidirectional_attention' is True"),
        ({"hidden_activation": "relu"}, "'hidden_activation' is 'relu'; this decoder has gelu_pytorch_tanh, silu"),
        ({"num_experts": 8, "quantization_config": {}}, "not known and may change the sums: 'num_experts' 8, 'quanti"),
        ({"hidden_size": "640"}, "'hidden_size' is '640'; it must be a whole number"),
        ({"hidden_size": 640.5}, "'hidden_size' is 640.5; it must be a whole number"),
        ({"num_key_value_heads": True}, "'num_key_value_heads' is True; it must be a whole number"),
        ({"rms_norm_eps": [1]}, r"'rms_norm_eps' is \[1\]; it must be a number"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0; it must be above 0"),
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000; at most 1000 are read"),
        ({"head_dim": 7}, "'head_dim' 7 must be even"),
        ({"num_key_value_heads": 3}, "'num_attention_heads' 4 divisible by 'num_key_value_heads' 3"),
        ({"sliding_window": 0}, "'sliding_window' is 0"),
        ({"sliding_window_pattern": 0}, "'sliding_window_pattern' is 0"),
        ({"layer_types": ["full_attention"]}, "must be a list of 26"),
        ({"layer_types": ["linear_attention"] * 26}, "each sliding_attention or full_attention"),
        (
            {"layer_types": ["sliding_attention", "full_attention"] + ["sliding_attention"] * 24},
            "begins with 1 x sliding_attention and one full_attention but does not repeat them",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "full_attention have the type 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0, "beta": 1}}, "have the field 'beta'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "must be above 0"),
        ({"rope_scaling": 8.0}, "rotary positions of full_attention are 8.0, no object"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "'rope_parameters' is {'rope_theta': 10000.0}; it must hold"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rotary positions of sliding_attention are divided by 2.0; only 1 is read",
        ),
    ],
)
def test_what_our_decoder_does_not_compute_is_one_line(changes, line):
    with pytest.raises(ValueError, match=line) as found:
        text_config(RELEASED_1B | changes)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"smear": True}, "'smear' True"),
        ({"post_norm": False}, "'post_norm' False"),
        ({"attention_soft_cap": 50.0}, "'attention_soft_cap' 50.0"),
    ],
)
def test_a_decoder_that_is_not_gemma_3s_is_not_written_as_one(changes, line):
    with pytest.raises(ValueError, match=f"a decoder with {line} has no form in Gemma 3's layout"):
        text_values(DecoderConfig(**{"post_norm": True, **changes}), 64)
