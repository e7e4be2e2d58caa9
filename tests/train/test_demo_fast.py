"""The whole way on the small recipe: every modality trained and measured, killed and resumed, real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from geminid.evaluate.examples import load_examples
from tests.helpers import free_port

pytestmark = [pytest.mark.data, pytest.mark.slow]
STAGES = ("codec", "vision", "audio", "joint")
FIELDS = (
    "num_concepts",
    "wall_s",
    "peak_rss_gib",
    "num_params",
    "tokens",
    "naming_style_en",
    "naming_style_en_exact",
    "naming_style_en_1nn",
    "naming_style_other_mean",
    "hearing_synthetic_to_real",
    "hearing_baseline",
    "hearing_chance",
    "digits_unseen_speakers",
    "watching_unseen",
    "order",
    "order_bag_of_frames",
    "drawing_recognised",
    "codec_psnr_db",
    "codec_codes_used",
    "few_shot",
    "padding_fraction",
)


# What runs in the background may have been told to ignore Ctrl-C. Not by preexec_fn: JAX warns of the fork.
HEED_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def start(*arguments: str, options: tuple[str, ...] = (), own_session: bool = False) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *options, "-m", "geminid", *arguments], start_new_session=own_session,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": "default"},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=540)
    assert process.returncode == 0, err[-2000:]
    return out


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs; its metrics are the last line of what the command prints."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    out = finish(start("demo", "--recipe", "demo_fast", "--run-dir", str(run), "--json"))
    assert json.loads(out.splitlines()[-1]) == json.loads((run / "metrics.json").read_text())
    return run


def stop_when(process: subprocess.Popen, sign: Path, how: signal.Signals) -> str:
    """Sends the signal, to this process alone, as soon as `sign` exists; what it wrote on stderr."""
    while not sign.exists():
        assert process.poll() is None, f"ended before {sign}"
        time.sleep(0.02)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]  # ends when the stages' processes, with the same pipes, have died too


def test_every_figure_is_measured(unbroken):
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert [field for field in FIELDS if not isinstance(metrics.get(field), int | float)] == []
    assert all(np.isfinite(value) for value in metrics.values())
    shares = [key for key in FIELDS if key.startswith(("naming", "hearing", "digits", "watching", "order", "few"))]
    assert all(0 <= metrics[key] <= 1 for key in shares)
    assert metrics["num_concepts"] == 24
    assert metrics["padding_fraction"] <= 0.03
    assert metrics["hearing_chance"] == pytest.approx(1 / 24)


def test_the_report_shows_what_was_seen_heard_and_drawn(unbroken):
    examples = load_examples(unbroken)
    for part in ("pictures", "drawings", "reconstructions", "recordings", "orders", "few_shots"):
        assert getattr(examples, part), part
    assert "<html" in (unbroken / "report.html").read_text()


def test_the_losses_fell(unbroken):
    for stage in STAGES:
        rows = [json.loads(line) for line in (unbroken / "curves" / f"{stage}.jsonl").read_text().splitlines()]
        assert rows[-1]["loss"] < rows[0]["loss"], stage


def test_stopped_killed_and_resumed_it_ends_with_the_same_bits(unbroken, tmp_path):
    run = tmp_path / "run"
    command = ("train", "demo_fast", "--run-dir", str(run))
    stopped = start(*command, options=("-c", HEED_CTRL_C), own_session=True)
    err = stop_when(stopped, run / "stages/vision/checkpoints", signal.SIGINT)
    assert stopped.returncode == 130, err[-2000:]
    assert "Traceback" not in err
    told = [line for line in err.splitlines() if "resume" in line]
    assert told == ["geminid: stopped; the same command resumes where it left off"]
    for sign in ("stages/audio/params.safetensors", "stages/joint/checkpoints/20"):
        stop_when(start(*command), run / sign, signal.SIGKILL)
    finish(start(*command))
    for stage in STAGES:
        name = f"stages/{stage}/params.safetensors"
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), stage
        curve = f"curves/{stage}.jsonl"
        assert (run / curve).read_text() == (unbroken / curve).read_text(), stage
    assert (run / "codes.npy").read_bytes() == (unbroken / "codes.npy").read_bytes()


def test_another_recipe_in_the_same_directory_is_refused(unbroken):
    process = start("train", "demo_fast", "--run-dir", str(unbroken), "--set", "seed=1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert len(err.strip().splitlines()) == 1
    assert "demo_fast" in err


def test_it_names_files_and_draws(unbroken, tmp_path):
    from PIL import Image

    example = load_examples(unbroken).pictures[0]
    picture = tmp_path / "picture.png"
    Image.fromarray(example.pixels).save(picture)
    out = finish(start("name", str(picture), "--run-dir", str(unbroken), "--language", "fr", "--json"))
    answer = json.loads(out.splitlines()[-1])
    assert answer["kind"] == "picture"
    assert 0 < answer["candidates"][0]["probability"] <= 1
    drawn = tmp_path / "drawn.png"
    finish(start("draw", "cat", "--style", "noto", "--out", str(drawn), "--run-dir", str(unbroken), "--json"))
    with Image.open(drawn) as image:
        assert image.size == (32, 32)


def test_a_broken_picture_is_one_line_and_exit_code_2(unbroken, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"nothing")
    process = start("name", str(broken), "--run-dir", str(unbroken))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert len(err.strip().splitlines()) == 1
    assert "broken.png" in err


def status_at(run: Path, process: subprocess.Popen, step: int, controller: int = 0) -> dict:
    """What the run says of itself once so many steps are committed, under this or a later controller."""
    status = run / "slices" / "status.json"
    while True:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.02)
        told = json.loads(status.read_text()) if status.is_file() else {"step": 0, "incarnation": -1}
        if told["step"] >= step and told["incarnation"] >= controller:
            return told


def test_slices_that_are_killed_end_with_the_bits_of_one_process(unbroken: Path, tmp_path: Path):
    """SIGKILL to a slice, to the controller, to all; SIGSTOP to a slice: parameters, curve, cursor are the same."""
    run, port = tmp_path / "run", free_port()
    shutil.copytree(unbroken, run, ignore=shutil.ignore_patterns("joint", "joint.jsonl", "lock", "checkpoints"))
    command = ("train", "demo_fast", "--slices", "3", "--standbys", "1", "--run-dir", str(run), "--json")
    process = start(*command, "--metrics-port", str(port))
    os.kill(status_at(run, process, 5)["slices"]["slice-0@0.1"]["pid"], signal.SIGKILL)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        seen = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line[0] != "#")
    assert float(seen["geminid_step"]) >= 5 and float(seen['geminid_slices{role="active"}']) >= 1
    os.kill(status_at(run, process, 15)["controller"], signal.SIGKILL)
    status_at(run, process, 20, controller=1)
    while not (saved := sorted(int(p.parent.name) for p in run.glob("stages/joint/slices/*/verified.json"))):
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    process = start(*command)
    os.kill(status_at(run, process, 45, controller=2)["slices"]["slice-1@2.2"]["pid"], signal.SIGSTOP)
    result = json.loads(finish(process).splitlines()[-1])
    for file in ("stages/joint/params.safetensors", "stages/joint/cursor.json", "curves/joint.jsonl"):
        assert (run / file).read_bytes() == (unbroken / file).read_bytes(), file
    events = [json.loads(line) for line in (run / "slices" / "events.jsonl").read_text().splitlines()]
    assert any(event["kind"] == "lost" and event["slice"] == "slice-0@0.1" for event in events)
    first, second = (
        [e["step"] for e in events if e["kind"] == "commit" and (e["controller"] > 1) is late] for late in (False, True)
    )
    assert first == list(range(1, len(first) + 1)) and second == list(range(second[0], 61))
    assert second[0] > saved[-1]
    spent = result["classes_s"]["slice-1"]
    assert sum(spent.values()) == pytest.approx(result["elapsed_s"], abs=1e-6)
    finish(start("goodput", str(run)))
    assert "<svg" in (run / "goodput.html").read_text()


@pytest.mark.long
def test_a_whole_node_of_a_cluster_dies_and_the_bits_are_those_of_one_process(unbroken: Path, tmp_path: Path):
    """Two nodes of Ray on this machine; the one without the controller is killed with all of its processes."""
    from ray.cluster_utils import Cluster

    run = tmp_path / "run"
    shutil.copytree(unbroken, run, ignore=shutil.ignore_patterns("joint", "joint.jsonl", "lock", "checkpoints"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        process = start(
            "train", "demo_fast", "--slices", "2", "--standbys", "1", "--run-dir", str(run), "--json",
            "--ray-address", cluster.address,
        )  # fmt: skip
        before = status_at(run, process, 5)["slices"]
        cluster.remove_node(other, allow_graceful=False)
        finish(process)
    finally:
        cluster.shutdown()
    for file in ("stages/joint/params.safetensors", "stages/joint/cursor.json", "curves/joint.jsonl"):
        assert (run / file).read_bytes() == (unbroken / file).read_bytes(), file
    events = [json.loads(line) for line in (run / "slices" / "events.jsonl").read_text().splitlines()]
    assert {event["slice"] for event in events if event["kind"] == "lost"} & before.keys()
