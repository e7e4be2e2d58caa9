"""`geminid plan compile` as typed: mistakes are one line, a program becomes the issue's figures, a page is drawn."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from geminid.cli import main
from geminid.plan import chips, torus
from geminid.plan import compile as compiling
from geminid.plan.requests import CompileRequest
from geminid.recipes import get

PRODUCT = 8192


def answer_of(capsys: pytest.CaptureFixture[str], words: str) -> dict:
    main([*words.split(), "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--recipe ultr", "unknown recipe 'ultr'; known: demo"),
        ("--topology v4", "--topology 'v4' is not of the form CHIP:SHAPE, such as v4:16x16x16"),
        ("--topology v9:4x4x4", "unknown chip 'v9'; known: v4"),
        ("--topology v4:5x5x5", "there is no slice '5x5x5': sides are all at most 4"),
        ("--topology v4:4x4x8_twisted", "--topology 'v4:4x4x8_twisted' is twisted"),
        ("--slices 0", "--slices is 0; it must be 1 to 64"),
        ("--slices 65", "--slices is 65; it must be 1 to 64"),
        ("--mesh fsdp=100", "the mesh has 1 x 100 = 100 places; 1 x v4:16x16x16 has 4096 chips: make them equal"),
        (
            "--slices 2 --mesh slice=1 --mesh fsdp=8192",
            "--mesh slice is no axis of a slice: fsdp, context, tensor; --slices has",
        ),
        ("--mesh fsdp=4096", "512 rows cannot be shared by slice x fsdp = 4096 places"),
        (
            "--mesh fsdp=128 --mesh context=32 --accumulate 3",
            "--accumulate is 3; with this mesh it must be one of [1, 2, 4]",
        ),
        ("--page no/such/page.html", "no/such: no such directory"),
        ("--recipe demo", "no mesh of 4096 chips suits"),
    ],
)
def test_a_mistake_is_one_line(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(["plan", "compile", *words.split()])
    out, err = capsys.readouterr()
    assert (leaving.value.code, out) == (2, "")
    assert err.startswith("geminid: " + expected) and err.count("\n") == 1


def test_without_the_compiler_one_line_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINID_TPU_PLAN", str(tmp_path))
    with pytest.raises(SystemExit) as leaving:
        main(["plan", "compile"])
    assert leaving.value.code == 2
    assert capsys.readouterr().err == (
        "geminid: plan compile needs the TPU compiler in an environment of its own; run: make setup-tpu-plan\n"
    )


@pytest.mark.parametrize("mesh", [("fsdp=64", "tensor=4"), ("fsdp=64", "context=1", "tensor=4")])
def test_an_axis_of_one_may_be_left_out(mesh, tmp_path, monkeypatch):
    asked = {}

    def compiler(recipe, target, sizes, accumulate, out, timeout_s):
        asked.update(sizes=sizes, accumulate=accumulate)
        return {"out_of_memory": "none"}

    monkeypatch.setattr(compiling, "run_compiler", compiler)
    compiling.plan_compile(CompileRequest("v5e:16x16", mesh=mesh), get("pro"))
    assert asked["sizes"] == {"slice": 1, "fsdp": 64, "context": 1, "tensor": 4}
    assert asked["accumulate"] == 1


def test_search_ranks_meshes_of_the_whole_topology(capsys):
    found = answer_of(capsys, "plan compile --search --recipe ultra --slices 2 --top 5")
    assert found["num_chips"] == 8192
    assert all(math.prod(row["mesh"].values()) == 4096 for row in found["meshes"])
    times = [float(f"{row['step_s']:.2g}") for row in found["meshes"]]
    assert times == sorted(times) and 0.3 < found["meshes"][0]["mfu"] < 0.9
    main(["plan", "compile", "--search", "--recipe", "ultra", "--slices", "2", "--top", "5"])
    assert "fsdp=" in capsys.readouterr().out


PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=16
ENTRY %main (w: bf16[512,8192], x: bf16[8192,8192]) -> bf16[8192,8192] {
  %w = bf16[512,8192]{1,0} parameter(0)
  %x = bf16[8192,8192]{1,0} parameter(1)
  %start = (bf16[512,8192]{1,0}, bf16[8192,8192]{1,0}) all-gather-start(%w), channel_id=1, GROUPS, dimensions={0}
  %dot = bf16[8192,8192]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, FIRST
  %done = bf16[8192,8192]{1,0} all-gather-done(%start)
  %sum = f32[8192,8192]{1,0} all-reduce(%dot), channel_id=2, GROUPS
  %a = token[] after-all()
  %recv = (f32[8192,8192]{1,0}, u32[], token[]) recv(%a), channel_id=3, is_host_transfer=true, NAMES
  %send = (f32[8192,8192]{1,0}, u32[], token[]) send(%sum, %a), channel_id=4, is_host_transfer=true, NAMES
  %got = (f32[8192,8192]{1,0}, token[]) recv-done(%recv), channel_id=3, is_host_transfer=true
  ROOT %last = bf16[8192,8192]{1,0} dot(%done, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
""".replace(
    "NAMES",
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_host_transfer_rendezvous="r",_xla_megascale_transfer_type="ALL_REDUCE"}',
)
PROGRAM = PROGRAM.replace("GROUPS", "replica_groups=[1,16]<=[16]").replace(
    "FIRST", 'metadata={op_name="jit(step)/<first>"}'
)
COMPILED = {
    "num_chips": 32, "lower_s": 1.0, "compile_s": 2.0, "arguments_bytes": 4e9, "outputs_bytes": 4e9,
    "aliased_bytes": 4e9, "temporaries_bytes": 1e9, "peak_bytes": 5e9, "program_bytes": 1e7,
    "accumulate": 1, "mesh": {"slice": 2, "fsdp": 16, "context": 1, "tensor": 1},
    "places": np.stack(np.unravel_index(np.arange(16), (4, 4)), -1)[:, ::-1].tolist(),
}  # fmt: skip


def test_the_answer_adds_up_and_the_page_stands_alone(tmp_path):
    target = compiling.Target(torus.parse(chips.get("v5e"), "4x4"), 2)
    page = tmp_path / "page.html"
    answer = compiling.analyse(PROGRAM, COMPILED, get("nano1"), target, page)
    assert (answer["num_chips"], answer["fits"], answer["megascale_transfers"]) == (32, True, 1)
    assert answer["hbm_used_bytes"] == 5.01e9 and answer["hbm_free_bytes"] == pytest.approx(16 * 2**30 - 5.01e9)
    assert answer["flops"] == 2 * 2 * PRODUCT**3 * 32
    rows = {(row["kind"], *row["axes"]): row for row in answer["collectives"]}
    gather, total = rows["all-gather", "fsdp"], rows["all-reduce", "fsdp"]
    assert gather["asynchronous"] and gather["bytes"] == PRODUCT**2 * 2 and list(gather["overlaps"]) == ["<first>"]
    assert not total["asynchronous"] and total["exposed_s"] == pytest.approx(total["seconds"])
    assert rows["megascale all-reduce", "slice"]["bytes"] == PRODUCT**2 * 4
    waits = sum(row["exposed_s"] for row in answer["collectives"])
    assert answer["exposed_comm_s"] == pytest.approx(waits)
    assert answer["step_time_s"] == pytest.approx(answer["compute_s"] + waits + answer["memory_wait_s"])
    assert answer["exposed_comm_fraction"] == pytest.approx(waits / answer["step_time_s"])
    text = page.read_text()
    assert text.count("<svg") == 1 and "&lt;first&gt;" in text and "waiting" in text
    assert not re.search(r"(?:src|href)=|<script|@import|url\(", text)


def test_a_program_that_finds_no_room_says_by_how_much(tmp_path, monkeypatch):
    compiler = tmp_path / "bin" / "python"
    compiler.parent.mkdir()
    compiler.write_text(
        "#!/bin/sh\necho 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm."
        " Used 40.00G of 15.75G hbm.' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("GEMINID_TPU_PLAN", str(tmp_path))
    answer = compiling.plan_compile(CompileRequest("v5e:16x16"), get("nano1"))
    assert not answer["fits"]
    assert answer["hbm_used_bytes"] == 40 * 2**30 and answer["hbm_free_bytes"] == -24.25 * 2**30


@pytest.mark.slow
def test_the_real_compiler_on_a_small_slice(tmp_path):
    try:
        compiling.environment()
    except ValueError as missing:
        pytest.skip(str(missing))
    recipe = get("demo_fast")
    recipe = dataclasses.replace(recipe, joint=dataclasses.replace(recipe.joint, logit_chunk=8))
    answer = compiling.plan_compile(CompileRequest("v5e:2x2", mesh=("fsdp=4",)), recipe)
    assert answer["num_chips"] == 4 and answer["fits"]
    assert answer["flops"] > answer["model_flops"] > 0
    assert {row["axes"][0] for row in answer["collectives"]} == {"fsdp"}
    sums = [row["count"] for row in answer["collectives"] if row["kind"] in ("all-reduce", "reduce-scatter")]
    assert 0 < sum(sums) < 24  # a shard's logits come in 24 chunks: the embedding's gradient is summed once for all
