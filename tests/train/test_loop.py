"""A stage that is stopped anywhere and taken up again ends with the same bits as one that is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from geminid.batches.pairs import iterate
from geminid.config import StageConfig
from geminid.train.loop import Loop, cursor_of, write_array
from geminid.train.pretrain import make_task

pytestmark = pytest.mark.usefixtures("quick_compiles")
CONFIG = StageConfig(steps=10, batch=4, save_every=4, log_every=3)  # saves after 4, 8, 10; logs 3, 6, 9, 10


class Line(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.arange(6, dtype=jnp.float32).reshape(3, 2))
        self.bias = nnx.Param(jnp.zeros(2))


def loss(line, batch, key):
    """Depends on the parameters, the batch and the step's key."""
    error = batch["x"] @ line.weight[...] + line.bias[...] + jax.random.normal(key, (4, 2))
    return jnp.mean(error**2), {"size": jnp.sum(line.weight[...] ** 2)}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Random access, as the stages' sources are."""

    def __len__(self):
        return CONFIG.steps

    def __getitem__(self, i):
        return {"x": np.random.default_rng(int(i)).standard_normal((4, 3)).astype(np.float32)}


@pytest.fixture(scope="module")
def task():
    return make_task(Line(), loss, CONFIG)


@dataclasses.dataclass
class Stage:
    """One directory, and a loop in it that remembers its checkpoint manager."""

    path: Path
    reported: list[int] = dataclasses.field(default_factory=list)

    def run(self, step, task, batches=None):
        managers = []

        class Watched(Loop):
            def _manager(self):
                managers.append(super()._manager())
                return managers[0]

        loop = Watched("toy", self.path / "toy", CONFIG, 5, self.curve, self.reported.append)
        state = jax.tree.map(jnp.copy, task.state)  # the step donates what it is given
        try:
            return loop.run(step, state, iterate(Numbers()) if batches is None else batches)
        except Exception:
            managers[0].close()  # what a save had begun is there, as after a process that was stopped in between
            raise

    @property
    def curve(self) -> Path:
        return self.path / "curves" / "toy.jsonl"


class Interruption(Exception):
    pass


def interrupted(step, at: int):
    """The step, until it is called for the `at`-th time."""
    calls = iter(range(10_000))

    def run(state, batch, key):
        if next(calls) == at:
            raise Interruption
        return step(state, batch, key)

    return run


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    stage = Stage(tmp_path_factory.mktemp("whole"))
    batches = iterate(Numbers())
    state = stage.run(task.step, task, batches)
    return state, stage.curve.read_bytes(), cursor_of(batches), stage.reported


def test_the_curve_holds_the_logged_steps_and_all_steps_are_reported(whole, task):
    state, curve, _, reported = whole
    rows = [json.loads(line) for line in curve.splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert all(set(row) == {"step", "loss", "size"} for row in rows)
    assert reported == list(range(11))
    # the same steps without a loop
    plain, key = jax.tree.map(jnp.copy, task.state), jax.random.key(5)
    for i in range(10):
        plain, metrics = task.step(plain, Numbers()[i], jax.random.fold_in(key, i))
    assert jax.tree.all(jax.tree.map(np.array_equal, plain, state))
    assert rows[-1]["loss"] == float(metrics["loss"])


@pytest.mark.parametrize("stops", [(0,), (2,), (4,), (7,), (9,), (6, 1, 3)])
def test_a_stopped_run_ends_with_the_same_bits(whole, task, tmp_path, stops):
    stage = Stage(tmp_path)
    for at in stops:
        with pytest.raises(Interruption):
            stage.run(interrupted(task.step, at), task)
    stage.reported.clear()
    batches = iterate(Numbers())
    state = stage.run(task.step, task, batches)
    expected, curve, cursor, _ = whole
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert np.asarray(got).dtype == np.asarray(wanted).dtype
        np.testing.assert_array_equal(got, wanted)
    assert stage.curve.read_bytes() == curve
    assert cursor_of(batches) == cursor
    assert stage.reported == list(range({(0,): 0, (2,): 0, (4,): 4, (7,): 4, (9,): 8, (6, 1, 3): 4}[stops], 11))


def test_a_finished_run_does_no_step_again(whole, task, tmp_path):
    stage = Stage(tmp_path)
    stage.run(task.step, task)
    curve = stage.curve.read_bytes()
    state = stage.run(interrupted(task.step, 0), task)
    assert jax.tree.all(jax.tree.map(np.array_equal, state, whole[0]))
    assert stage.curve.read_bytes() == curve == whole[1]


def test_a_loss_that_is_no_number_stops_the_stage_before_it_is_saved(task, tmp_path):
    steps = iter(range(1, 100))

    def broken(state, batch, key):
        state, metrics = task.step(state, batch, key)
        return state, metrics | {"loss": jnp.nan if next(steps) >= 5 else metrics["loss"]}

    stage = Stage(tmp_path)
    with pytest.raises(ValueError, match="stage toy: loss is nan at step 6; lower its learning rate"):
        stage.run(broken, task)
    assert [json.loads(line)["step"] for line in stage.curve.read_text().splitlines()] == [3]
    assert [path.name for path in (tmp_path / "toy" / "checkpoints").iterdir() if path.name.isdigit()] == ["4"]


def test_an_array_file_is_complete(tmp_path):
    write_array(tmp_path / "a.npy", np.arange(5))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.arange(5))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
