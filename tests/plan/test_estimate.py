"""The step model against what MaxText publishes for its own runs."""

from __future__ import annotations

import dataclasses
import math

import pytest

from geminid.plan import chips, torus
from geminid.plan.estimate import Stack, estimate, meshes, of_recipe, row_major
from geminid.recipes import get
from geminid.tokens.ids import num_ids

LENGTH = 2048
# github.com/AI-Hypercomputer/maxtext, configs/v5e and configs/v5p: parameters in units of 1e9, chip, slice, `tensor`,
# rows a chip, recomputation (`minimal` keeps every product), MFU in % by slices
PUBLISHED = [
    (16, "v5e", "16x16", 1, 6, "full", {1: 61.10, 2: 59.37, 4: 59.14, 8: 58.27, 16: 56.56, 32: 54.65}),
    (32, "v5e", "16x16", 1, 4, "full", {1: 66.86, 2: 64.81, 4: 64.10, 8: 63.67, 16: 62.26, 32: 60.40}),
    (64, "v5e", "16x16", 1, 2, "full", {1: 59.90, 2: 56.66, 4: 55.85, 8: 54.96, 16: 53.29, 32: 50.18}),
    (128, "v5e", "16x16", 16, 1, "dots", {1: 56.06, 2: 55.82, 4: 54.93, 8: 52.93, 16: 50.86, 32: 46.25}),
    (128, "v5p", "4x4x8", 8, 1, "dots", {1: 68.68, 2: 66.34}),
    (512, "v5p", "8x8x8", 8, 2, "full", {1: 63.99, 2: 61.45}),
]


def maxtext(billions: int) -> Stack:
    """`global_parameter_scale`: doubles heads and MLP, then width, then layers; every position sees every key there."""
    third, rest = divmod(int(math.log2(billions)), 3)
    heads, layers = 16 << (third + (rest > 0)), 16 << third
    return Stack(
        num_layers=layers,
        width=2048 << (third + (rest > 1)),
        mlp_width=7168 << (third + (rest > 0)),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=128,
        num_ids=32_000,
        keys=(float(LENGTH),) * layers,
    )


@pytest.mark.parametrize(("billions", "chip", "shape", "tensor", "rows", "remat", "published"), PUBLISHED)
def test_maxtexts_table_within_ten_points(billions, chip, shape, tensor, rows, remat, published):
    stack, block = maxtext(billions), torus.parse(chips.get(chip), shape)
    assert stack.num_params == pytest.approx(billions * 1e9, rel=0.04)
    mesh = {"fsdp": block.num_chips // tensor, "context": 1, "tensor": tensor}
    for slices, mfu in published.items():
        positions = rows * LENGTH * block.num_chips * slices
        modelled = estimate(stack, positions, row_major(block, slices, mesh), remat, has_ring=False).mfu
        assert 100 * modelled == pytest.approx(mfu, abs=10)


def test_meshes_use_every_chip_and_share_every_row():
    block, recipe = torus.parse(chips.get("v4"), "8x8x8"), get("pro")
    found = list(meshes(block, 2, recipe))
    assert found
    for mesh in found:
        assert math.prod(mesh.values()) == 512
        assert (recipe.joint.stage.batch // 2) % mesh["fsdp"] == 0
        assert recipe.decoder.num_heads % mesh["tensor"] == 0


def test_key_value_heads_that_no_mesh_shares_are_not_proposed():
    recipe = get("pro")
    decoder = dataclasses.replace(recipe.decoder, num_heads=48, num_kv_heads=3)
    found = list(meshes(torus.parse(chips.get("v5e"), "16x16"), 1, dataclasses.replace(recipe, decoder=decoder)))
    assert {mesh["tensor"] for mesh in found} == {1}


def test_ultras_decoder_has_half_a_trillion_parameters_and_its_layers_their_windows():
    recipe = get("ultra")
    stack = of_recipe(recipe, num_ids(recipe))
    assert stack.num_params == pytest.approx(5.1e11, rel=0.02)
    assert [stack.keys[i] for i in (0, 4, 5)] == [1024.0, 1024.0, 16_384.0]
