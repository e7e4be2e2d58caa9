"""HLO is read rightly: against programs whose FLOPs, collectives and loops are known by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from geminid.plan import hlo

WIDTH, HIDDEN, ROWS, LAYERS, SIDE = 64, 256, 32, 5, 12

# eight devices are set before JAX starts, so in a process of its own
PROGRAM = f"""
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
def shape(sides, *spec):
    return jax.ShapeDtypeStruct(sides, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

def layers(x, up, down):
    def layer(x, weights):
        x = jnp.tanh(x @ weights[0]) @ weights[1]
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("data"))), None
    return jax.lax.scan(layer, x, (up, down))[0]

def exchange(x):
    def local(x):
        x = jax.lax.all_to_all(x, "model", 0, 0, tiled=True)
        x = jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
        return jax.lax.all_gather(x, "data", tiled=True)
    return jax.shard_map(local, mesh=mesh, in_specs=P(("data", "model")), out_specs=P("model"), check_vma=False)(x)

def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

programs = [
    (layers, [shape(({ROWS}, {WIDTH}), "data"), shape(({LAYERS}, {WIDTH}, {HIDDEN}), None, None, "model"),
              shape(({LAYERS}, {HIDDEN}, {WIDTH}), None, "model")]),
    (exchange, [shape((64, 128), ("data", "model"))]),
    (convolve, [jax.ShapeDtypeStruct((3, {SIDE}, {SIDE}, 8), jnp.float32),
                jax.ShapeDtypeStruct((4, 4, 8, 16), jnp.float32)]),
]
for function, arguments in programs:
    print(jax.jit(function).lower(*arguments).compile().as_text())
    print("=====")
"""
MESH = {"data": 2, "model": 4}


@pytest.fixture(scope="module")
def programs() -> list[hlo.Module]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return [hlo.parse(text) for text in done.stdout.split("=====\n")[:3]]


def moves(module: hlo.Module) -> list[tuple[str, tuple[str, ...]]]:
    """Kind and mesh axes of every collective."""
    found = []
    for computation in module.computations.values():
        for each in computation.instructions:
            kind = each.opcode.removesuffix("-start")
            if kind == "collective-permute":
                found.append((kind, hlo.axes_of(hlo.permutation(each), MESH)))
            elif kind in hlo.COLLECTIVES:
                found.append((kind, hlo.axes_of(hlo.replica_groups(each, 8), MESH)))
    return found


def test_a_scan_of_products_counts_its_flops_and_its_sum_over_one_axis(programs):
    module = programs[0]
    assert module.num_partitions == 8
    a_device = 2 * 2 * ROWS * WIDTH * HIDDEN / 8
    assert hlo.computation_flops(module, module.entry) == LAYERS * a_device
    loops = [each for each in module.entry.instructions if each.opcode == "while"]
    assert [hlo.trip_count(module, each) for each in loops] == [LAYERS]
    assert moves(module) == [("all-reduce", ("model",))]


def test_each_collective_is_found_with_its_axis(programs):
    assert sorted(moves(programs[1])) == [
        ("all-gather", ("data",)), ("all-to-all", ("model",)), ("collective-permute", ("data",)),
    ]  # fmt: skip


def test_a_convolution_counts_its_flops(programs):
    out = (SIDE - 4) // 2 + 1
    expected = 2 * 3 * out * out * 16 * (4 * 4 * 8)
    assert hlo.computation_flops(programs[2], programs[2].entry) == expected


def test_a_convolution_in_groups_of_the_batch():
    """8 pictures in 4 groups, each with 8 of the 32 kernels of 3 x 3 x 16: 2 x 10 x 10 x 32 results of 144 products."""
    line = (
        "ROOT %c = f32[2,10,10,32]{3,2,1,0} convolution(%x, %k), window={size=3x3}, dim_labels=b01f_01io->b01f,"
        " batch_group_count=4"
    )
    parameters = "  %x = f32[8,12,12,16]{3,2,1,0} parameter(0)\n  %k = f32[3,3,16,32]{3,2,1,0} parameter(1)\n"
    module = hlo.parse(f"ENTRY %main () -> f32[] {{\n{parameters}  {line}\n}}\n")
    assert hlo.computation_flops(module, module.entry) == 2 * (2 * 10 * 10 * 32) * 144


def instruction(line: str) -> hlo.Instruction:
    return hlo.parse(f"ENTRY %main () -> f32[] {{\n  {line}\n}}\n").entry.root


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("{}", [list(range(8))]),
    ],
)
def test_groups_in_every_spelling(written, expected):
    each = instruction(f"ROOT %r = f32[4]{{0}} all-reduce(%p), channel_id=1, replica_groups={written}, to_apply=%add")
    np.testing.assert_array_equal(hlo.replica_groups(each, 8), expected)


def test_groups_in_an_unknown_spelling_are_not_taken_for_free():
    with pytest.raises(ValueError, match="groups of devices written as 'torus"):
        hlo.groups_of("torus[4,4], to_apply=%add", 16)


def test_shapes_tuples_memories_and_names():
    each = instruction(
        "ROOT %start.2 = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, u32[]{:S(2)}) copy-start(%x), "
        'metadata={op_name="jit(step)/dot" stack_frame_id=7}'
    )
    assert [(s.dtype, s.sides, s.space) for s in each.shapes] == [("bf16", (8, 128), 1), ("f32", (), 0), ("u32", (), 2)]
    assert each.num_bytes == 8 * 128 * 2 + 4 + 4
    assert (each.opcode, each.operands, each.op_name) == ("copy-start", ("x",), "jit(step)/dot")


WINDOW = """
HloModule jit_step, is_scheduled=true, num_partitions=4
%body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %s = (s32[]{:T(128)}, f32[8,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%s), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[]{:T(128)}, f32[8,8]{1,0}) tuple(%next, %y)
}
%condition (s: (s32[], f32[8,8])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, f32[8,8]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %eight = s32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %eight), direction=LT
}
ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, f32[8,8]{1,0}) tuple(%zero, %p)
  %loop = (s32[]{:T(128)}, f32[8,8]{1,0}) while(%first), condition=%condition, body=%body
  ROOT %result = f32[8,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_that_counts_by_two_as_the_compiler_writes_windowed_products():
    module = hlo.parse(WINDOW)
    assert hlo.trip_count(module, module.entry.by_name["loop"]) == 4
    assert hlo.computation_flops(module, module.entry) == 4 * 2 * 8**3


@pytest.mark.parametrize("first", [8, 9])
def test_a_loop_that_begins_at_its_end_takes_no_trip(first):
    module = hlo.parse(WINDOW.replace("constant(0)", f"constant({first})"))
    assert hlo.trip_count(module, module.entry.by_name["loop"]) == 0
    assert hlo.computation_flops(module, module.entry) == 0


def test_a_loop_whose_first_trip_stands_before_it():
    module = hlo.parse(WINDOW.replace("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} constant(2)"))
    assert hlo.trip_count(module, module.entry.by_name["loop"]) == 3


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule nothing\n")
