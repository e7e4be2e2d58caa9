"""The towers beside transformers' on the same random weights, float32."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from geminid.interop.picture_text import PICTURE_TEXT
from geminid.interop.table import export_module, paired
from geminid.interop.tower_configs import picture_text_values, usm_values
from geminid.interop.towers import SIGLIP, USM
from geminid.model.picture_text import picture_sources
from geminid.model.siglip import SiglipEncoder
from geminid.model.towers import SiglipConfig, UsmConfig
from geminid.model.usm import UsmEncoder
from geminid.train.params import named

torch = pytest.importorskip("torch", reason="parity beside transformers needs torch and transformers")
pytest.importorskip("transformers", reason="parity beside transformers needs torch and transformers")

from transformers import (  # noqa: E402
    Gemma3ForConditionalGeneration,
    Gemma3nAudioConfig,
    Gemma3nAudioEncoder,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.interop import peers, small  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compiles")
AUDIO = {
    "as released": {},
    "sees ahead": {"conf_attention_context_right": 3, "conf_attention_chunk_size": 5},
    "no left context": {"conf_attention_context_left": 1},
    "context longer than a chunk": {"conf_attention_chunk_size": 3, "conf_attention_context_left": 11},
    "caps that bite": {"conf_attention_logit_cap": 0.5, "gradient_clipping": 1.0},
    "other shapes": {
        "conf_reduction_factor": 1,
        "conf_conv_kernel_size": 3,
        "conf_residual_weight": 0.7,
        "rms_norm_eps": 1e-2,
        "sscp_conv_group_norm_eps": 0.1,
        "sscp_conv_kernel_size": ((5, 3), (3, 3)),
        "sscp_conv_stride_size": ((2, 2), (3, 1)),
    },
}


def clips(num_frames: int, num_mels: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Three clips: whole, half, and one whose beginning is missing."""
    rng = np.random.default_rng(num_frames)
    mels = rng.normal(size=(3, num_frames, num_mels)).astype(np.float32)
    at = np.arange(num_frames)
    return mels, np.stack([at >= 0, at <= num_frames // 2, at >= num_frames // 3])


@pytest.mark.parametrize("changes", AUDIO.values(), ids=AUDIO)
def test_soft_tokens_of_padded_clips_are_gemma_3ns(changes):
    theirs = peers.audio_encoder(**changes)
    ours = jax.jit(small.usm(theirs.config.to_dict(), peers.weights(theirs)))
    mels, valid = clips(200)
    expected, kept = peers.hear(theirs, mels, valid)
    got, got_kept = ours(mels, valid)
    np.testing.assert_array_equal(got_kept, kept)
    assert small.difference(got, expected) < small.MOST


@pytest.mark.parametrize("num_frames", [1, 4, 5, 47, 48, 49, 96, 97])  # 48 frames are one chunk
def test_clips_of_any_length_are_gemma_3ns(num_frames):
    theirs = peers.audio_encoder()
    ours = small.usm(theirs.config.to_dict(), peers.weights(theirs))
    mels, valid = clips(num_frames)
    expected, kept = peers.hear(theirs, mels, valid)
    got, got_kept = jax.jit(ours)(mels, valid)
    assert got.shape[1] == ours.config.num_soft_tokens(num_frames)
    np.testing.assert_array_equal(got_kept, kept)
    assert small.difference(got, expected) < small.MOST


def pictures(num: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (num, 40, 40, 3)).astype(np.float32)


def test_states_and_soft_tokens_of_pictures_are_gemma_3s():
    theirs = peers.picture_text()
    ours = small.picture_text(theirs.config.to_dict(), peers.weights(theirs))
    states, soft = peers.see(theirs, pictures(3))
    assert small.difference(jax.jit(ours.vision)(pictures(3)), states) < small.MOST
    assert small.difference(jax.jit(ours.soft_tokens)(pictures(3)), soft) < small.MOST


def interleaved() -> tuple[np.ndarray, np.ndarray]:
    """Two rows: two pictures with words around, then one after padding on the left. Ids and presence [2 54]."""
    ids = np.random.default_rng(3).integers(1, peers.PICTURE_ID, (2, 54))
    for row, start in ((0, 5), (0, 24), (1, 32)):
        ids[row, start : start + 16] = peers.PICTURE_ID
    present = np.arange(54) >= np.array([[0], [9]])
    return np.where(present, ids, 0), present


@pytest.mark.parametrize(("local_per_global", "window"), [(0, 6), (1, 6), (1, 20), (3, 1), (3, 6)])
def test_logits_with_pictures_are_gemma_3s(local_per_global, window):
    """Windows shorter than a picture's 16 soft tokens, and longer."""
    theirs = peers.picture_text(local_per_global, window)
    ours = small.picture_text(theirs.config.to_dict(), peers.weights(theirs))
    ids, present = interleaved()
    expected = peers.read(theirs, ids, present, pictures(3))
    sources = picture_sources(ids, 3, ours.config)
    positions = np.broadcast_to(np.arange(54), ids.shape)
    hidden = jax.jit(ours)(ids, sources, present.astype(np.int32), positions, pictures(3))
    got = np.asarray(ours.decoder.logits(hidden))
    assert small.difference(got[present], expected[present]) < small.MOST


def test_packed_rows_give_each_documents_logits():
    """Two documents in one row against transformers reading each alone."""
    theirs = peers.picture_text()
    ours = small.picture_text(theirs.config.to_dict(), peers.weights(theirs))
    ids = interleaved()[0][:1]
    lengths = (22, 32)
    first, second = ids[:, :22], ids[:, 22:]
    expected = np.concatenate(
        [
            peers.read(theirs, first, first > 0, pictures(2)[:1]),
            peers.read(theirs, second, second > 0, pictures(2)[1:]),
        ],
        1,
    )
    segments = np.repeat([[1, 2]], lengths, axis=1)
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    hidden = ours(ids, picture_sources(ids, 2, ours.config), segments, positions, pictures(2))
    assert small.difference(ours.decoder.logits(hidden), expected) < small.MOST


def test_a_picture_id_outside_the_embedding_is_placed_all_the_same():
    theirs = peers.picture_text(image_token_id=64)
    ours = small.picture_text(theirs.config.to_dict(), peers.weights(theirs))
    ids, present = interleaved()
    ids = np.where(ids == peers.PICTURE_ID, 64, ids)
    positions = np.broadcast_to(np.arange(54), ids.shape)
    hidden = ours(ids, picture_sources(ids, 3, ours.config), present.astype(np.int32), positions, pictures(3))
    expected = peers.read(theirs, ids, present, pictures(3))
    got = np.asarray(ours.decoder.logits(hidden))
    assert small.difference(got[present], expected[present]) < small.MOST


# --- weights in and out ---


def test_exported_pictures_and_text_load_in_transformers_with_the_same_tensors(tmp_path):
    theirs = peers.picture_text()
    values = theirs.config.to_dict()
    ours = small.picture_text(values, peers.weights(theirs))
    save_file(export_module(ours, PICTURE_TEXT), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(picture_text_values(ours.config)))
    again, notes = Gemma3ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values()), notes
    before, after = peers.weights(theirs), peers.weights(again)
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    ids, present = interleaved()
    expected = peers.read(theirs, ids, present, pictures(3))
    np.testing.assert_array_equal(peers.read(again.eval(), ids, present, pictures(3)), expected)


def test_an_exported_audio_encoder_loads_in_transformers_with_the_same_tensors(tmp_path):
    theirs = peers.audio_encoder(**AUDIO["other shapes"])
    ours = small.usm(theirs.config.to_dict(), peers.weights(theirs))
    save_file(export_module(ours, USM), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(usm_values(ours.config)))
    again, notes = Gemma3nAudioEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values()), notes
    before, after = peers.weights(theirs), peers.weights(again)
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    mels, valid = clips(60)
    np.testing.assert_array_equal(peers.hear(again.eval(), mels, valid)[0], peers.hear(theirs, mels, valid)[0])


@pytest.mark.parametrize(
    ("make", "table", "theirs"),
    [
        (lambda: SiglipEncoder(SiglipConfig(), rngs=nnx.Rngs(0)), SIGLIP, lambda: SiglipVisionModel(released_siglip())),
        (lambda: UsmEncoder(UsmConfig(), rngs=nnx.Rngs(0)), USM, lambda: Gemma3nAudioEncoder(Gemma3nAudioConfig())),
    ],
    ids=["SigLIP", "USM"],
)
def test_the_released_sizes_have_the_released_tensors(make, table, theirs):
    """Names and shapes of the full models; no weight is made on either side."""
    with torch.device("meta"):
        expected = {name: tuple(parameter.shape) for name, parameter in theirs().named_parameters()}
    rows = paired(table, named(nnx.to_pure_dict(nnx.split(nnx.eval_shape(make))[1])))
    assert {name: row.their_shape(shape) for row, shape, names in rows for name in names} == expected


def released_siglip() -> SiglipVisionConfig:
    """`vision_config` of google/gemma-3-4b-it."""
    return SiglipVisionConfig(
        hidden_size=1152,
        image_size=896,
        intermediate_size=4304,
        num_attention_heads=16,
        num_hidden_layers=27,
        patch_size=14,
        vision_use_head=False,
    )
