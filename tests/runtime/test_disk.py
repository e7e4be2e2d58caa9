"""No intact copy in memory: the disk's is taken. With that bad too the run ends with one line, and nothing is lost."""

from pathlib import Path

import numpy as np
import pytest

from geminid.runtime import messages as m
from geminid.runtime.checkpoints import found
from geminid.train.rundir import read_rows
from tests.runtime.local import SHARDS, Adding, Threads

SAVED, SPOILED, STEPS = 4, 6, 9
POLICY = m.Policy(num_shards=SHARDS, num_steps=STEPS, slices=2, save_every=SAVED, max_strikes=5)


def undisturbed() -> np.ndarray:
    """The last state by hand: gradients summed in shard order."""
    work = Adding()
    leaves = work.first()
    for step in range(STEPS):
        parts = [work.gradient(leaves, step, shard) for shard in range(SHARDS)]
        total = ((parts[0].gradient + parts[1].gradient) + parts[2].gradient) + parts[3].gradient
        leaves = work.update(leaves, total, np.float32(10), np.stack([part.cursor for part in parts]))
    return np.asarray(leaves[0])


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path):
    """Drives a run; at SPOILED steps every slice's memory is spoiled, each at another place, and `also` happens."""

    def drive(also=lambda: None):
        threads, once = Threads("ab", tmp_path / "checkpoints"), [True]

        def at_commit(step: int) -> None:
            if step == SPOILED and once.pop():
                for k, one in enumerate(threads.slices.values()):
                    threads.workers[one.name].submit(one.spoil, 0, 40 + k, 2).result()
                also()
                once.append(False)

        ending = threads.drive(POLICY, tmp_path, at_commit)
        return ending, threads, read_rows(tmp_path / "events.jsonl")

    return drive


def test_with_all_copies_bad_the_checkpoint_is_taken_and_the_bits_are_the_same(run, tmp_path):
    ending, threads, rows = run()
    assert ending.copy is not None and ending.copy.step == STEPS
    findings = [row["finding"] for row in rows if row["kind"] == "record"]
    assert findings.count("bad copy") == 2 and "rollback" in findings
    steps = [row["step"] for row in rows if row["kind"] == "commit"]
    assert steps == [*range(1, SPOILED + 1), *range(SAVED + 1, STEPS + 1)]
    for one in threads.slices.values():
        assert np.asarray(one.held.leaves[0]).tobytes() == undisturbed().tobytes()
    assert [row["step"] for row in read_rows(tmp_path / "curve.jsonl")] == list(range(1, STEPS + 1))


def test_with_the_checkpoint_bad_too_the_run_ends_and_nothing_is_overwritten(run, tmp_path):
    before = {}

    def ruin():
        directory = tmp_path / "checkpoints"
        assert [copy.step for copy in found(directory)] == [SAVED]
        for file in (directory / str(SAVED)).rglob("*"):
            if file.is_file() and file.name != "verified.json":
                file.write_bytes(bytes(b ^ 1 for b in file.read_bytes()))
        before.update(content(directory))

    ending, _, rows = run(ruin)
    assert ending.copy is None
    assert ending.reason == "no intact copy is left, in memory or on disk; nothing was overwritten"
    assert max(row["step"] for row in rows if row["kind"] == "commit") == SPOILED
    assert content(tmp_path / "checkpoints") == before
