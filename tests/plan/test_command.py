"""`geminid plan` as typed: the last line is one JSON object, a table for people, a PNG, one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from geminid.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_issues_command(capsys, tmp_path):
    rows = [
        f"{n:g},{6 * n * d:g},{1.8 + 480 / n**0.35 + 2100 / d**0.37:.9f}"
        for n in (1e8, 2e8, 5e8, 1e9, 2e9)
        for d in (2e9, 1e10, 5e10)
    ]
    runs = tmp_path / "runs.csv"
    runs.write_text("\n".join(["Model Size,Training FLOP,loss", *rows]))
    words = f"plan budget --fit {runs} --flops 1e21 --inference-tokens 1e12 --quality-of 1e9 --replicates 5 --json"
    main(words.split())
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {"E", "A", "B", "alpha", "beta", "objective", "se", "N_opt", "D_opt", "N_serve", "D_serve", "saving"}
    assert names <= set(answer)
    assert answer["E"] == pytest.approx(1.8, rel=1e-3) and answer["alpha"] == pytest.approx(0.35, rel=1e-2)
    assert 6 * answer["N_opt"] * answer["D_opt"] == pytest.approx(1e21)


def test_a_pod_as_json_and_as_a_table(capsys, tmp_path):
    words = ["plan", "topology", "--slice", "8x8x16", "--availability", "0.999", "--trials", "50"]
    main([*words, "--json"])
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["goodput"] > answer["goodput_static"] > 0.7
    main(words)
    assert "goodput_static" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        "plan budget --flops 1e21",
        "plan budget --quality-of 1e9",
        "plan topology --slice 8x8x16",
        "plan topology --job 8x8x16 --job 4x4x4 --failed 0,21",
    ],
)
def test_a_picture_is_whole_or_not_there(words, capsys, tmp_path):
    picture = tmp_path / "plan.png"
    main([*words.split(), "--picture", str(picture)])
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.iterdir()) == [picture]


@pytest.mark.parametrize(
    "words",
    [
        "plan topology --slice 5x5x5",
        "plan topology --slice 16x16x32",
        "plan budget --flops -1",
        "plan budget --flops 1e24 --data text=1e9",
        "plan budget --fit no/such.csv",
        "plan budget --flops 1e20 --picture no/such/place.png",
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(words.split())
    out, err = capsys.readouterr()
    assert (leaving.value.code, out) == (2, "")
    assert err.startswith("geminid: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_planning_imports_no_jax_and_draws_only_when_asked():
    code = (
        "import sys; import geminid.plan.ladder; from geminid.cli import main;"
        "main(['plan', 'budget', '--flops', '1e20', '--json']);"
        "main(['plan', 'topology', '--slice', '4x4x8', '--json']);"
        "print(sorted({'jax', 'matplotlib', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
