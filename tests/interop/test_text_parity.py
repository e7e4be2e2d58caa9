"""The text model beside transformers' on the same random weights, float32."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from geminid.interop.table import export_module, paired
from geminid.interop.text import TEXT, text_config, text_values
from geminid.train.params import named, params_of

torch = pytest.importorskip("torch", reason="parity beside transformers needs torch and transformers")
pytest.importorskip("transformers", reason="parity beside transformers needs torch and transformers")

from transformers import Gemma3ForCausalLM  # noqa: E402

from tests.interop import peers, small  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compiles")
SHAPES = {
    "grouped-query": {},
    "multi-query, logits capped, positions stretched": {
        "num_key_value_heads": 1,
        "final_logit_softcapping": 1.5,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "all layers global, other base, epsilon and activation": {
        "num_key_value_heads": 4,
        "sliding_window_pattern": 1,
        "rope_theta": 500.0,
        "rms_norm_eps": 0.1,
        "hidden_activation": "silu",
    },
    "no layer global, a window of two positions": {"sliding_window_pattern": 6, "sliding_window": 2},
    "every other layer global, other local base": {"sliding_window_pattern": 2, "rope_local_base_freq": 50.0},
}
MOST_OF_GRADIENTS = 1e-3


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Three rows of 40, four to six windows long: whole, and padded on the left by 9 and by 17."""
    ids = np.random.default_rng(5).integers(1, 64, (3, 40))
    return ids, np.arange(40) >= np.array([[0], [9], [17]])


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_logits_and_gradients_of_padded_rows_are_gemma_3s(changes):
    theirs = peers.text(**changes)
    ours = small.text(theirs.config.to_dict(), peers.weights(theirs))
    ids, present = rows()
    positions = np.broadcast_to(np.arange(40), ids.shape)
    got = np.asarray(jax.jit(small.text_logits)(ours, ids, present.astype(np.int32), positions))
    assert small.difference(got[present], peers.text_logits(theirs, ids, present)[present]) < small.MOST
    expected = peers.text_gradients(theirs, ids, present)
    gradients = small.gradients(ours, ids, present)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert small.difference(gradient, expected[name]) < MOST_OF_GRADIENTS, name


def test_packed_rows_give_each_documents_logits():
    """Three documents in one row, two of them longer than the window, against transformers reading each alone."""
    theirs = peers.text()
    ours = small.text(theirs.config.to_dict(), peers.weights(theirs))
    ids = rows()[0][:1]
    lengths = (22, 3, 15)
    parts = np.split(ids, np.cumsum(lengths)[:-1], axis=1)
    expected = np.concatenate([peers.text_logits(theirs, part, part > 0) for part in parts], 1)
    segments = np.repeat([[1, 2, 3]], lengths, axis=1)
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    assert small.difference(small.text_logits(ours, ids, segments, positions), expected) < small.MOST


def test_a_causal_mask_without_windows_would_be_seen():
    """The measure tells: without local layers the logits are others."""
    theirs = peers.text()
    values = theirs.config.to_dict() | {"layer_types": ["full_attention"] * 5}
    ours = small.text(values, peers.weights(theirs))
    ids, present = rows()
    positions = np.broadcast_to(np.arange(40), ids.shape)
    got = np.asarray(small.text_logits(ours, ids, present.astype(np.int32), positions))
    assert small.difference(got[present], peers.text_logits(theirs, ids, present)[present]) > 1e-2


@pytest.mark.parametrize("spelling", ["both", "older", "newer"])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_written_config_is_the_same_model_in_transformers(changes, spelling, tmp_path):
    """Both spellings of the rotary positions together, and each alone as other versions write them."""
    theirs = peers.text(**changes)
    config, num_ids = text_config(theirs.config.to_dict())
    values = text_values(config, num_ids)
    left_out = {"both": (), "older": ("rope_parameters",), "newer": ("rope_theta", "rope_local_base_freq")}[spelling]
    values = {name: value for name, value in values.items() if name not in left_out}
    ours = small.text(values, peers.weights(theirs))
    assert ours.config == config
    save_file(export_module(ours, TEXT), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(values))
    again, notes = Gemma3ForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not any(notes.values()), notes
    before, after = peers.weights(theirs), peers.weights(again)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    ids, present = rows()
    expected = peers.text_logits(theirs, ids, present)
    np.testing.assert_array_equal(peers.text_logits(again.eval(), ids, present), expected)


def test_the_table_names_every_tensor_of_transformers():
    theirs = peers.text()
    ours = small.text(theirs.config.to_dict(), peers.weights(theirs))
    names = {name for _, _, names in paired(TEXT, named(params_of(ours))) for name in names}
    assert names == {name for name, _ in theirs.named_parameters()}
