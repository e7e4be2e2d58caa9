"""A schedule is played as by hand: rooflines, links that are busy, what waits, loops, transfers between slices."""

from __future__ import annotations

import numpy as np
import pytest

from geminid.plan import chips, hlo, torus
from geminid.plan.estimate import row_major
from geminid.plan.links import Machine
from geminid.plan.schedule import MXU_SHARE, Played, memory_bytes, play

V4 = chips.get("v4")
GATHERED = 1024 * 4096 * 2  # bytes


def machine(shape: str = "4x4x4", mesh: dict[str, int] | None = None, slices: int = 1) -> Machine:
    return row_major(torus.parse(V4, shape), slices, mesh or {"z": 4, "plane": 16})


def played(lines: str, on: Machine | None = None, others: str = "") -> Played:
    entry = f"ENTRY %main (p: f32[]) -> f32[] {{\n{lines}\n}}\n"
    return play(hlo.parse(f"HloModule m, is_scheduled=true, num_partitions=64\n{others}\n{entry}"), on or machine())


PLANE = "replica_groups=[4,16]<=[64]"
ALONG_Z = "replica_groups=[16,4]<=[4,16]T(1,0)"
PARAMETERS = """
  %w = bf16[64,4096]{1,0} parameter(0)
  %x = bf16[4096,4096]{1,0} parameter(1)
"""
START = (
    "  %start{n} = (bf16[64,4096]{{1,0}}, bf16[1024,4096]{{1,0}}) all-gather-start(%w), channel_id={n},"
    " {groups}, dimensions={{0}}, use_global_device_ids=true\n"
)
DONE = "  %done{n} = bf16[1024,4096]{{1,0}} all-gather-done(%start{n})\n"
PRODUCT = "  %dot{n} = bf16[4096,4096]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}\n"
PRODUCT_S = 2 * 4096**3 / (MXU_SHARE * 275e12)
GATHER_S = GATHERED / 180e9


def test_the_books_vector_a_gather_over_x_and_y_takes_46_us():
    line = f"  ROOT %g = bf16[1024,4096]{{1,0}} all-gather(%w), {PLANE}, dimensions={{0}}"
    result = played(PARAMETERS + line)
    assert result.step_s == pytest.approx(46e-6, rel=0.02)
    assert result.exposed_s == result.step_s
    (transfer,) = result.transfers.values()
    assert (transfer.kind, transfer.axes, transfer.num_bytes) == ("all-gather", ("plane",), GATHERED)


def test_an_all_reduce_keeps_the_pods_links_at_their_petabyte_a_second():
    whole = machine("16x16x16", {"all": 4096})
    num_bytes = 2 * 2**30
    line = f"  %p = bf16[{2**30}]{{0}} parameter(0)\n  ROOT %r = bf16[{2**30}]{{0}} all-reduce(%p), to_apply=%add"
    carried = 2 * num_bytes * 4096 / played(line.replace("to_apply=%add", "channel_id=1"), whole).step_s
    assert carried == pytest.approx(1.1e15, rel=0.02)


def test_compute_hides_a_gather_that_is_shorter():
    result = played(PARAMETERS + START.format(n=1, groups=PLANE) + PRODUCT.format(n=1) + DONE.format(n=1))
    assert PRODUCT_S > GATHER_S
    assert result.step_s == pytest.approx(PRODUCT_S)
    assert result.exposed_s == 0
    (transfer,) = result.transfers.values()
    assert transfer.is_async
    assert dict(transfer.overlaps) == {"dot": pytest.approx(PRODUCT_S)}


FUSED = """
%start_of (p: bf16[64,4096]) -> bf16[1024,4096] {{
  %p = bf16[64,4096]{{1,0}} parameter(0)
  %g = bf16[1024,4096]{{1,0}} all-gather(%p), channel_id=7, {groups}, dimensions={{0}}
  ROOT %c = bf16[1024,4096]{{1,0}} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}
%async_collective_fusion.1 (p: bf16[64,4096], q: bf16[4096,4096]) -> (bf16[4096,4096], bf16[1024,4096]) {{
  %p = bf16[64,4096]{{1,0}} parameter(0)
  %q = bf16[4096,4096]{{1,0}} parameter(1)
  %d = bf16[4096,4096]{{1,0}} dot(%q, %q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %g = bf16[1024,4096]{{1,0}} all-gather(%p), channel_id=7, {groups}, dimensions={{0}}
  ROOT %t = (bf16[4096,4096]{{1,0}}, bf16[1024,4096]{{1,0}}) tuple(%d, %g)
}}
%done_of (p: bf16[64,4096]) -> bf16[1024,4096] {{
  %p = bf16[64,4096]{{1,0}} parameter(0)
  %g = bf16[1024,4096]{{1,0}} all-gather(%p), channel_id=7, {groups}, dimensions={{0}}
  ROOT %c = bf16[1024,4096]{{1,0}} custom-call(%g), custom_call_target="AsyncCollectiveDone"
}}
"""


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_gather_that_is_spread_over_fusions_is_one(steps):
    pair = "(bf16[4096,4096]{1,0}, bf16[1024,4096]{1,0})"
    lines = PARAMETERS + "  %s = bf16[1024,4096]{1,0} fusion(%w), kind=kCustom, calls=%start_of\n"
    for i in range(steps):
        lines += f"  %m{i} = {pair} fusion(%w, %x), kind=kOutput, calls=%async_collective_fusion.1\n"
    lines += "  ROOT %f = bf16[1024,4096]{1,0} fusion(%w), kind=kCustom, calls=%done_of"
    result = played(lines, others=FUSED.format(groups=PLANE))
    (transfer,) = result.transfers.values()
    assert (transfer.count, transfer.is_async, transfer.num_bytes) == (1, True, GATHERED)
    assert result.step_s == pytest.approx(max(GATHER_S, steps * PRODUCT_S))
    assert result.exposed_s == pytest.approx(max(0.0, GATHER_S - steps * PRODUCT_S))


def test_an_all_reduce_of_which_a_piece_is_kept_is_a_reduce_scatter():
    fused = f"""
%cut (p: bf16[1024,4096]) -> bf16[64,4096] {{
  %p = bf16[1024,4096]{{1,0}} parameter(0)
  %r = bf16[1024,4096]{{1,0}} all-reduce(%p), channel_id=1, {PLANE}
  %i = s32[] constant(0)
  ROOT %s = bf16[64,4096]{{1,0}} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={{64,4096}}
}}
"""
    lines = (
        "  %g = bf16[1024,4096]{1,0} parameter(0)\n  ROOT %f = bf16[64,4096]{1,0} fusion(%g), kind=kCustom, calls=%cut"
    )
    result = played(lines, others=fused)
    (transfer,) = result.transfers.values()
    assert (transfer.kind, transfer.num_bytes) == ("reduce-scatter", GATHERED)
    assert result.step_s == pytest.approx(GATHER_S)


def test_what_is_waited_for_at_once_shares_the_links_with_what_is_under_way():
    """By hand: A, of 2 s alone, is begun; B, of 1 s, is waited for: at half speed it takes 2 s, and A ends at 3 s."""
    small = f"  %b = bf16[512,4096]{{1,0}} all-gather(%v), channel_id=9, {PLANE}, dimensions={{0}}\n"
    lines = PARAMETERS + "  %v = bf16[32,4096]{1,0} parameter(2)\n" + START.format(n=1, groups=PLANE) + small
    result = played(lines + DONE.format(n=1))
    waits = {each.name: each.exposed_s for each in result.transfers.values()}
    assert waits["b"] == pytest.approx(GATHER_S)  # its own half of GATHER_S, twice
    assert result.step_s == pytest.approx(1.5 * GATHER_S)


def test_two_gathers_share_a_plane_and_do_not_share_different_axes():
    both = "".join(START.format(n=n, groups=PLANE) for n in (1, 2)) + DONE.format(n=1) + DONE.format(n=2)
    assert played(PARAMETERS + both).step_s == pytest.approx(2 * GATHER_S)
    apart = START.format(n=1, groups=PLANE) + START.format(n=2, groups=ALONG_Z) + DONE.format(n=1) + DONE.format(n=2)
    assert played(PARAMETERS + apart).step_s == pytest.approx(GATHERED / 90e9)


def test_shifts_in_opposite_directions_do_not_meet():
    shape = "(bf16[4096,4096]{1,0}, bf16[4096,4096]{1,0}, u32[], u32[])"
    up = ",".join(f"{{{i},{(i // 4) * 4 + (i + 1) % 4}}}" for i in range(64))
    down = ",".join(f"{{{(i // 4) * 4 + (i + 1) % 4},{i}}}" for i in range(64))
    shift = 4096 * 4096 * 2 / 45e9

    def lines(first: str, second: str) -> str:
        starts = "".join(
            f"  %s{n} = {shape} collective-permute-start(%x), source_target_pairs={{{pairs}}}\n"
            for n, pairs in enumerate((first, second))
        )
        return starts + "".join(f"  %d{n} = bf16[4096,4096]{{1,0}} collective-permute-done(%s{n})\n" for n in (0, 1))

    on = machine(mesh={"z": 4, "y": 4, "x": 4})
    assert played(PARAMETERS + lines(up, down), on).step_s == pytest.approx(shift, rel=0.01)
    assert played(PARAMETERS + lines(up, up), on).step_s == pytest.approx(2 * shift, rel=0.01)
    (transfer, _) = played(PARAMETERS + lines(up, down), on).transfers.values()
    assert transfer.axes == ("x",)


LOOP = """
%body (s: (s32[], bf16[4096,4096])) -> (s32[], bf16[4096,4096]) {
  %s = (s32[], bf16[4096,4096]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[4096,4096]{1,0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  %sum = bf16[4096,4096]{1,0} all-reduce(%x), replica_groups=[4,16]<=[64], channel_id=3
  %y = bf16[4096,4096]{1,0} dot(%sum, %sum), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], bf16[4096,4096]{1,0}) tuple(%next, %y)
}
%condition (c: (s32[], bf16[4096,4096])) -> pred[] {
  %c = (s32[], bf16[4096,4096]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %many = s32[] constant(100)
  ROOT %less = pred[] compare(%j, %many), direction=LT
}
"""


def test_a_loop_takes_its_trips():
    lines = """  %x = bf16[4096,4096]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], bf16[4096,4096]{1,0}) tuple(%zero, %x)
  ROOT %loop = (s32[], bf16[4096,4096]{1,0}) while(%t), condition=%condition, body=%body"""
    result = played(lines, others=LOOP)
    sum_s = 2 * 4096 * 4096 * 2 / 180e9
    assert result.step_s == pytest.approx(100 * (PRODUCT_S + sum_s), rel=0.001)
    assert result.exposed_s == pytest.approx(100 * sum_s)
    assert result.flops == 100 * 2 * 4096**3
    (transfer,) = result.transfers.values()
    assert transfer.count == 100
    assert result.loops["loop"][0] == 100


@pytest.mark.parametrize("trips", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("number", [1, 40])
def test_what_begins_before_a_loop_goes_on_beside_all_its_trips(trips, number):
    """A gather over Z and sums over the planes meet on no link: only what outlasts the loop is waited for."""
    start = START.replace("64,4096", f"{64 * number},4096").replace("1024,4096", f"{256 * number},4096")
    lines = f"""  %w = bf16[{64 * number},4096]{{1,0}} parameter(1)
  %x = bf16[4096,4096]{{1,0}} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], bf16[4096,4096]{{1,0}}) tuple(%zero, %x)
{start.format(n=1, groups=ALONG_Z)}
  %loop = (s32[], bf16[4096,4096]{{1,0}}) while(%t), condition=%condition, body=%body
  ROOT %done = bf16[{256 * number},4096]{{1,0}} all-gather-done(%start1)"""
    result = played(lines, others=LOOP.replace("constant(100)", f"constant({trips})"))
    gather = next(each for each in result.transfers.values() if each.kind == "all-gather")
    loop_s = trips * (PRODUCT_S + 2 * 4096 * 4096 * 2 / 180e9)
    assert gather.exposed_s == pytest.approx(max(0.0, gather.seconds - loop_s), rel=1e-6, abs=1e-9)
    assert result.step_s == pytest.approx(max(loop_s, gather.seconds), rel=0.001)


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather"])
def test_of_two_arrays_that_are_summed_both_travel(kind):
    """The shape of an asynchronous sum is its results; of a gather its operands come first."""
    shapes = "f32[1000]{0}, f32[9000]{0}"
    both = f"({shapes})" if kind == "all-reduce" else f"(({shapes}), (f32[4000]{{0}}, f32[36000]{{0}}))"
    lines = f"""  %a = f32[1000]{{0}} parameter(0)
  %b = f32[9000]{{0}} parameter(1)
  %start = {both} {kind}-start(%a, %b), channel_id=3, {ALONG_Z}, dimensions={{0}}
  ROOT %done = ({shapes}) {kind}-done(%start)"""
    (transfer,) = played(lines).transfers.values()
    assert transfer.num_bytes == 4 * 10_000 * (1 if kind == "all-reduce" else 4)


SENT = """
  %g = f32[64,8,128]{2,1,0} parameter(0)
  %x = bf16[4096,4096]{1,0} parameter(1)
  %a = token[] after-all()
  %recv = (f32[64,8,128]{2,1,0}, u32[], token[]) recv(%a), channel_id=1, is_host_transfer=true, NAMES
  %send = (f32[64,8,128]{2,1,0}, u32[], token[]) send(%g, %a), channel_id=2, is_host_transfer=true, NAMES
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %got = (f32[64,8,128]{2,1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
""".replace(
    "NAMES",
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="ALL_REDUCE"}',
)


def test_a_sum_over_two_slices_crosses_the_hosts_network():
    result = played(SENT, machine(slices=2))
    assert result.step_s == pytest.approx(64 * 8 * 128 * 4 / (25e9 / 4))  # 2 x (1 - 1/2) of the bytes; 4 chips a host
    (transfer,) = result.transfers.values()
    assert (transfer.kind, transfer.axes, transfer.is_async) == ("megascale all-reduce", ("slice",), True)


def test_what_is_read_and_written_in_part_costs_its_part():
    text = """HloModule m
%fused (a: f32[100,64,64], i: s32[], b: f32[64,64]) -> f32[64,64] {
  %a = f32[100,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[64,64]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %cut = f32[1,64,64]{2,1,0} dynamic-slice(%a, %i, %zero, %zero), dynamic_slice_sizes={1,64,64}
  %flat = f32[64,64]{1,0} bitcast(%cut)
  ROOT %sum = f32[64,64]{1,0} add(%flat, %b)
}
ENTRY %main (a: f32[100,64,64], i: s32[], b: f32[64,64]) -> f32[64,64] {
  %a.1 = f32[100,64,64]{2,1,0} parameter(0)
  %i.1 = s32[]{:S(6)} parameter(1)
  %b.1 = f32[64,64]{1,0:S(1)} parameter(2)
  ROOT %f = f32[64,64]{1,0} fusion(%a.1, %i.1, %b.1), kind=kLoop, calls=%fused
}
"""
    module = hlo.parse(text)
    assert memory_bytes(module, module.entry, module.entry.root) == (64 * 64 * 4, 64 * 64 * 4)


def test_groups_lie_on_the_torus_as_their_chips_do():
    on = machine("4x4x8", {"a": 8, "b": 16})
    (z,) = on.rings(np.arange(8) * 16)
    assert (z.axis, z.size, z.bandwidth, z.wraps) == ("Z", 8, 90e9, True)
    x, y = on.rings(np.arange(16))
    assert (x.axis, y.axis, x.size, y.size) == ("X", "Y", 4, 4)
    (part,) = on.rings(np.array([0, 2]))  # every other chip: two such pairs share the ring
    assert (part.size, part.hops, part.bandwidth) == (2, 2, 45e9)


HELD, PART = "bf16[8,64,4096]{2,1,0:S(5)}", "bf16[1,64,4096]{2,1,0}"
KEPT = f"  %k = {HELD} parameter(2)\n  %new = {PART} parameter(3)\n  %i = s32[] constant(0)\n"
OUT = (
    f"  %out = (({HELD}, {PART}, s32[], s32[], s32[]), {HELD}, u32[]{{:S(2)}})"
    " dynamic-update-slice-start(%k, %new, %i, %i, %i)\n"
)
IN = (
    f"  %in = (({HELD}, s32[], s32[], s32[]), {PART}, u32[]{{:S(2)}}) dynamic-slice-start(%k, %i, %i, %i),"
    " dynamic_slice_sizes={1,64,4096}\n"
)
HOST_S = 64 * 4096 * 2 / 15e9


@pytest.mark.parametrize(
    ("start", "done"),
    [
        (OUT, f"  ROOT %d = {HELD} dynamic-update-slice-done(%out)"),
        (IN, f"  ROOT %d = {PART} dynamic-slice-done(%in)"),
        ("", f"  ROOT %d = {PART} dynamic-slice(%k, %i, %i, %i), dynamic_slice_sizes={{1,64,4096}}"),
        ("", f"  ROOT %d = {HELD} dynamic-update-slice(%k, %new, %i, %i, %i)"),
    ],
)
def test_a_part_of_what_the_host_keeps_goes_over_pcie(start, done):
    waits = played(PARAMETERS + KEPT + start + done)
    assert waits.step_s == waits.memory_wait_s == pytest.approx(HOST_S)
    assert waits.exposed_s == 0
    assert "host" in {event.lane for event in waits.events}
    if start:
        beside = played(PARAMETERS + KEPT + start + PRODUCT.format(n=1) + done)
        assert PRODUCT_S > HOST_S
        assert beside.step_s == pytest.approx(PRODUCT_S)
        assert beside.memory_wait_s == 0
