"""The towers' weights in and out, against fixtures that transformers made (`make_fixtures`); no torch needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from geminid.interop.picture_text import PICTURE_TEXT
from geminid.interop.table import Row, export_module, import_module
from geminid.interop.tower_configs import picture_text_config, siglip_config, siglip_values, usm_config, usm_values
from geminid.interop.towers import SIGLIP, USM, part_of, plain_names
from geminid.model.picture_text import picture_sources
from geminid.model.siglip import SiglipEncoder
from geminid.model.towers import SiglipConfig, UsmConfig
from geminid.model.usm import UsmEncoder
from geminid.model.vision import to_float
from tests.interop import small

pytestmark = pytest.mark.usefixtures("quick_compiles")
FOLDER = Path(__file__).parent / "fixtures"
Fixture = tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]


def fixture(name: str) -> Fixture:
    """Config, weights, and the other arrays."""
    path = FOLDER / f"{name}.safetensors"
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["about"])
    arrays = load_file(path)
    return about["config"], part_of(arrays, "weights/"), arrays


@pytest.fixture(scope="module")
def audio() -> Fixture:
    return fixture("gemma3n_audio")


@pytest.fixture(scope="module")
def pictures() -> Fixture:
    return fixture("gemma3_pictures")


# --- the same numbers ---


@pytest.mark.parametrize(("ahead", "expected"), [(False, "soft"), (True, "soft_ahead")])
def test_soft_tokens_of_clips_are_gemma_3ns(audio, ahead, expected):
    values, weights, arrays = audio
    encoder = small.usm(values | (values["ahead"] if ahead else {}), weights)
    soft, kept = jax.jit(encoder)(arrays["mels"], arrays["valid"])
    np.testing.assert_array_equal(kept, arrays["kept"])
    assert small.difference(soft, arrays[expected]) < small.MOST


def test_pictures_and_logits_are_gemma_3s(pictures):
    values, weights, arrays = pictures
    model = small.picture_text(values, weights)
    seen = to_float(arrays["pictures"])
    assert small.difference(jax.jit(model.vision)(seen), arrays["states"]) < small.MOST
    assert small.difference(jax.jit(model.soft_tokens)(seen), arrays["soft"]) < small.MOST
    ids, present = arrays["ids"], arrays["present"]
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    hidden = jax.jit(model)(ids, picture_sources(ids, 3, model.config), present.astype(np.int32), positions, seen)
    got = np.asarray(model.decoder.logits(hidden))
    assert small.difference(got[present], arrays["logits"][present]) < small.MOST


# --- the same bytes ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_out_again_is_byte_for_byte_what_came_in(audio, pictures, dtype):
    for (values, weights, _), make, table in ((audio, small.usm, USM), (pictures, small.picture_text, PICTURE_TEXT)):
        given = plain_names({name: tensor.astype(jnp.dtype(dtype)) for name, tensor in weights.items()})
        again = export_module(make(values, given), table)
        assert again.keys() == given.keys()
        for name, tensor in given.items():
            assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape)
            assert again[name].tobytes() == tensor.tobytes()


def test_a_cast_that_is_asked_for_reaches_every_parameter(audio):
    values, weights, _ = audio
    config = usm_config(values)
    encoder = import_module(lambda: UsmEncoder(config, rngs=nnx.Rngs(0)), USM, weights, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(encoder, nnx.Param))} == {jnp.dtype("bfloat16")}


def test_three_spellings_of_gemma_3s_names_are_one(pictures):
    weights = plain_names(pictures[1])
    assert "vision_tower.vision_model.post_layernorm.bias" in weights
    newer = {name.replace("vision_tower.vision_model.", "vision_tower."): 0 for name in weights}
    loaded = {
        "model." + name.replace("vision_tower.vision_model.", "vision_tower.").replace("model.model.", "model."): 0
        for name in weights
    }
    assert plain_names(newer).keys() == weights.keys() == plain_names(loaded).keys()
    with pytest.raises(ValueError, match=r"'vision_tower\.vision_model\.post_layernorm\.bias' is there twice"):
        plain_names({"vision_tower.post_layernorm.bias": 0, "vision_tower.vision_model.post_layernorm.bias": 0})


@pytest.mark.parametrize("axes", [None, (1, 0), (2, 3, 1, 0), (2, 1, 0)])
def test_a_row_goes_both_ways(axes):
    shape = (2, 3, 4, 5)[: len(axes or (0, 1))]
    value = np.arange(np.prod(shape)).reshape(shape)
    row = Row("x", "x", axes)
    assert row.their_shape(row.to_ours([value]).shape) == shape
    np.testing.assert_array_equal(row.to_theirs(row.to_ours([value]))[0], value)
    layered = Row("x", "{}.x", axes)
    assert layered.to_ours([value, value + 1]).shape[0] == 2
    np.testing.assert_array_equal(layered.to_theirs(layered.to_ours([value, value + 1]))[1], value + 1)


# --- mistakes ---


def broken(change: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = "conformer.1.norm.weight"
    if change == "missing":
        return {key: value for key, value in weights.items() if key != name}
    if change == "unknown":
        return weights | {"conformer.2.norm.weight": weights[name], "lm_head.weight": weights[name]}
    return weights | {name: weights[name][:-1]}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("missing", "tensors missing: conformer.1.norm.weight"),
        ("unknown", "tensors not known: conformer.2.norm.weight, lm_head.weight"),
        ("short", r"tensors of another shape: conformer.1.norm.weight \[15\], not \[16\]"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(audio, change, line):
    values, weights, _ = audio
    with pytest.raises(ValueError, match=f"the weights do not fit the configuration; {line}$"):
        small.usm(values, broken(change, weights))


def test_weights_of_another_family_are_one_line(audio, pictures):
    with pytest.raises(
        ValueError, match=r"missing: conformer.* and 43 more; not known: language_model.* more$"
    ) as found:
        small.usm(audio[0], plain_names(pictures[1]))
    assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=r"no tensor's name begins with 'model\.audio_tower\.'; there are conformer"):
        part_of(audio[1], "model.audio_tower.")


def test_the_table_of_a_part_is_the_same_under_a_prefix(pictures):
    values, weights, arrays = pictures
    config = siglip_config(values["vision_config"])
    part = part_of(plain_names(weights), "vision_tower.vision_model.")
    encoder = import_module(lambda: SiglipEncoder(config, rngs=nnx.Rngs(0)), SIGLIP, part)
    assert small.difference(encoder(to_float(arrays["pictures"])), arrays["states"]) < small.MOST


# --- configurations ---


def test_an_empty_audio_config_is_the_released_one():
    assert usm_config({}) == UsmConfig()
    assert usm_config(usm_values(UsmConfig(right=2, subsample_widths=(8, 4)))) == UsmConfig(
        right=2, subsample_widths=(8, 4)
    )


def test_gemma_3s_vision_config_is_ours():
    """As in google/gemma-3-4b-it's config.json."""
    released = {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    }
    assert siglip_config(released) == SiglipConfig()
    assert siglip_config(siglip_values(SiglipConfig(norm_epsilon=1e-5))) == SiglipConfig(norm_epsilon=1e-5)
    config = picture_text_config({"vision_config": released})
    assert (config.num_soft_tokens, config.picture_id) == (256, 262_144)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: siglip_config({"vision_use_head": True}), "'vision_use_head' True; this one computes False only"),
        (lambda: siglip_config({"hidden_act": "gelu", "vision_use_head": False}), "'hidden_act' 'gelu'"),
        (lambda: SiglipConfig(picture_size=900), "the picture size 900 is not divisible by the patch 14"),
        (lambda: SiglipConfig(num_heads=7), "width 1152 is not divisible by the number of heads 7"),
        (lambda: UsmConfig(chunk=0), "chunk 0"),
        (lambda: UsmConfig(num_mels=0), r"mels 0 \(after the convolutions \[0, 0\]\)"),
        (lambda: UsmConfig(subsample_widths=(8,)), "1 widths, 2 kernels and 2 strides"),
        (
            lambda: usm_config(
                {
                    "sscp_conv_channel_size": [8],
                    "sscp_conv_kernel_size": [[3, 3]],
                    "sscp_conv_stride_size": [[2, 2]],
                }
            ),
            "1 subsampling convolutions; Gemma 3n's audio encoder has 2",
        ),
        (
            lambda: picture_text_config({"mm_tokens_per_image": 200}),
            "200 soft tokens a picture are not a square",
        ),
        (
            lambda: picture_text_config({"mm_tokens_per_image": 9, "vision_config": siglip_values(SiglipConfig())}),
            "patches a side 64 is not divisible by the soft tokens a side 3",
        ),
    ],
)
def test_what_cannot_be_is_one_line(make, line):
    with pytest.raises(ValueError, match=line) as found:
        make()
    assert "\n" not in str(found.value)
