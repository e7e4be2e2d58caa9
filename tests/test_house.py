"""The house: what the command answers to mistakes, what stays lazy, and what every file must keep to."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from geminid.cli import main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "geminid"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"av", "flax", "grain", "jax", "matplotlib", "numpy", "optax", "orbax", "PIL", "scipy", "sentencepiece"}
# What belongs to one machine or one place on the network; the data and the lock name packages, never addresses.
FOREIGN = re.compile(
    r"/work/|/root/|/home/\w|/tmp/\w|file:///|(?<!-no-emit)-index-url|(?<!-no-emit)-find-links"
    r"|pypi\.org/simple|pythonhosted\.org|registry\.npmjs\.org|deb\.debian\.org"
)


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command in this process."""
    code = 0
    try:
        main(arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    return code, *capsys.readouterr()


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    """Puts a module with `contents` where the command line imports `name` from."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def tracked_files() -> list[Path]:
    """What git holds or would add; the test is skipped outside a checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


# --- the command line ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "demmo"], "unknown recipe 'demmo'; known: demo"),
        (["train", "demo", "--set", "seeds=1"], "unknown field 'seeds' in the recipe; fields: name, data"),
        (["eval", "demo", "--set", "data.sede=1"], "unknown field 'sede' in 'data'; fields: styles"),
        (["data", "build", "--set", "data.seed=x"], "'data.seed' is a whole number; 'x' is not"),
        (["data", "fetch", "--set", "data"], "override 'data' is not of the form path.to.field=value"),
        (["demo", "--set", "data=1"], "'data' is a group; set one of its fields: styles"),
        (["name", "no/such.png"], "no/such.png: no such file"),
        (["draw", "a cat", "--out", "no/such/place.png"], "no/such: no such directory"),
        (["eval", "demo", "--run-dir", "no/such"], "no/such: no such run"),
        (["train", "demo", "--set", "seed=-1"], "'seed' is -1; it must be between 0 and"),
        (["plan", "budget", "--quality-of", "1e-300"], "--quality-of is 1e-300; it must be at least 1e-40"),
        (["plan", "budget", "--flops", "1e20", "--goodput", "7"], "a cost needs a chip; give --chip v4"),
        (["plan", "budget", "--flops", "1e20", "--epochs", "nan"], "--epochs is nan; it must be"),
        (["plan", "budget", "--fit", "x", "--law", "epoch"], "--fit makes a law, --law epoch names one"),
        (["plan", "budget", "--flops", "1e20", "--picture", "."], ".: is a directory; give the name of a file in it"),
        (["plan", "topology", "--cubes", "-3"], "--cubes is -3; it must be 1 to"),
        (["plan", "goodput", "--set", "detection_s=1e300"], "detection_s is 1e+300; give 0, or a number of 1e-09 to"),
        (["plan", "goodput", "--set", "shards_a_pod=100000"], "shards_a_pod is 100000; it must be 1 to 4096"),
        (["plan", "goodput", "--set", "rates.machine=10000"], "these rates are 7.68e+07 faults a day"),
        (["plan", "compile", "--timeout-s", "nan"], "--timeout-s is nan; it must be above 0"),
        (["tune", "x", "--out", "y", "--alpha", "nan"], "alpha is nan; it must be above 0"),
        (["tune", "x", "--out", "y", "--length", "1000000000"], "length of a tuning is 1000000000; it must be 2 to"),
        (["report", "demo", "--run-dir", "no/such"], "no/such: no such run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("geminid: " + expected)
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("trian demo", "Unrecognized options: trian"),
        ("data", "Expected one of {fetch, build, show}"),
        ("draw cat --seed x", "Error parsing --seed: "),
        ("plan budget --flops abc", "Error parsing --flops: no type matching {None}|FLOAT could be instantiated from"),
        ("plan budget --flop 1", "Unrecognized options: --flop, 1; perhaps you meant --flops; see geminid plan budget"),
        ("train", "Missing from geminid train: STR Which recipe; `geminid recipes` lists them. (required); see"),
    ],
)
def test_words_that_are_no_command_are_one_line_and_exit_with_2(arguments, expected, capsys):
    code, out, err = run_command(capsys, *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("geminid: " + expected) and err.endswith(" --help\n")
    assert err.count("\n") == 1


def test_who_has_read_enough_is_told_nothing():
    command = [sys.executable, "-m", "geminid", "plan", "topology"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("batch 30 is not divisible\nby 8"), 2, "geminid: batch 30 is not divisible by 8"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2, "geminid: x: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "geminid: x: Permission denied"),
        (FileExistsError(errno.EEXIST, "File exists", "x"), 2, "geminid: x is there already, and it is no directory;"),
        (OverflowError("too large"), 2, "geminid: what was asked leaves the range of numbers (too large);"),
        (KeyboardInterrupt(), 130, "geminid: stopped; the same command resumes where it left off"),
        (RuntimeError("write failed: No space left on device"), 1, "geminid: a file could not be written: the disk is"),
    ],
)
def test_errors_of_a_room_become_one_line(error, code, line, capsys, tmp_path, monkeypatch):
    def write_report(run_dir: Path) -> None:
        raise error

    replace_module(monkeypatch, "geminid.evaluate.report", write_report=write_report)
    got, _, err = run_command(capsys, "report", "demo", "--run-dir", str(tmp_path))
    assert got == code
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_defect_keeps_its_traceback(tmp_path, monkeypatch):
    def write_report(run_dir: Path) -> None:
        raise RuntimeError("a defect")

    replace_module(monkeypatch, "geminid.evaluate.report", write_report=write_report)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["report", "demo", "--run-dir", str(tmp_path)])


def test_asked_for_a_traceback_a_mistake_gives_it(monkeypatch):
    monkeypatch.setenv("GEMINID_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown recipe"):
        main(["train", "demmo"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel's always-full file is Linux's")
def test_a_full_disk_is_named_with_its_free_bytes(capsys, tmp_path, monkeypatch):
    def write_report(run_dir: Path) -> None:
        target = run_dir / "report.html"
        try:
            Path("/dev/full").write_text("x")
        except OSError as error:  # the kernel's error, about the file that was meant
            raise OSError(error.errno, error.strerror, str(target)) from error

    replace_module(monkeypatch, "geminid.evaluate.report", write_report=write_report)
    code, _, err = run_command(capsys, "report", "demo", "--run-dir", str(tmp_path))
    assert code == 1
    pattern = (
        rf"geminid: {re.escape(str(tmp_path / 'report.html'))} could not be written: the disk is full \(([\d,]+) bytes"
    )
    found = re.match(pattern, err)
    assert found and err.count("\n") == 1
    status = os.statvfs(tmp_path)
    assert int(found[1].replace(",", "")) <= status.f_blocks * status.f_frsize


def test_json_is_the_last_line(capsys, tmp_path, monkeypatch):
    metrics = {"naming": np.float32(0.5), "codes": np.arange(3), "где": tmp_path, "num_params": 3_000_000}
    metrics["none"] = [math.nan, {"far": math.inf}, np.float32(-np.inf)]

    def measure(recipe, run_dir, dataset_path):
        print("so far, so good")
        return metrics

    replace_module(monkeypatch, "geminid.evaluate.run", evaluate=measure)
    monkeypatch.setattr("geminid.cli._dataset_path", lambda recipe: tmp_path)
    code, out, _ = run_command(capsys, "eval", "demo", "--run-dir", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1]) == {
        "naming": 0.5,
        "codes": [0, 1, 2],
        "где": str(tmp_path),
        "num_params": 3_000_000,
        "none": [None, {"far": None}, None],
    }
    code, out, _ = run_command(capsys, "eval", "demo", "--run-dir", str(tmp_path))
    assert code == 0
    assert "3,000,000" in out


def test_overrides_reach_the_room(capsys, tmp_path, monkeypatch):
    seen = {}

    def run_stages(recipe, run_dir, dataset_path):
        seen.update(steps=recipe.joint.stage.steps, languages=recipe.data.languages, run_dir=run_dir)
        return {"stages": {}}

    replace_module(monkeypatch, "geminid.train.stages", run_stages=run_stages)
    monkeypatch.setattr("geminid.cli._dataset_path", lambda recipe: tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "demo", "--set", "joint.stage.steps=7", "--set", "data.languages=en,fr"]
    code, _, err = run_command(capsys, *arguments)
    assert (code, err) == (0, "")
    assert seen == {"steps": 7, "languages": ("en", "fr"), "run_dir": Path("runs/demo")}


@pytest.mark.parametrize(
    "imports", ["geminid.cli; geminid.cli.main(['--help'])", "geminid.config, geminid.recipes, geminid.overrides"]
)
def test_help_and_config_import_nothing_heavy(imports):
    code = f"import atexit, sys; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr)); import {imports}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ast.literal_eval(done.stderr)}
    assert "geminid" in loaded
    assert not loaded & HEAVY


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "geminid", "train", "demmo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("geminid: unknown recipe 'demmo'; known: demo")
    assert done.stderr.count("\n") == 1


# --- the files ---


def test_nothing_names_a_machine_or_an_index():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in tracked_files()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert found == []


def test_files_are_at_most_600_lines_and_functions_60():
    long = []
    for path in sorted({*MODULES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")}):
        text = path.read_text(encoding="utf-8")
        if (count := text.count("\n")) > 600:
            long.append(f"{path.relative_to(ROOT)}: {count} lines")
        if path in MODULES:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
                    long.append(
                        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}"
                    )
    assert long == []


def test_every_room_says_what_it_is_for():
    silent = [p.parent.name for p in PACKAGE.glob("*/__init__.py") if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_only_parallel_names_partition_specs():
    naming = [p for p in MODULES if re.search(r"\bPartitionSpec\b", p.read_text()) and p.parent != PACKAGE / "parallel"]
    assert naming == []


def test_the_lock_pins_every_requirement_by_hash():
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    locked = {}
    for entry in entries:
        requirement = Requirement(entry.partition(" \\")[0])
        assert [s.operator for s in requirement.specifier] == ["=="], entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
        locked[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), text
