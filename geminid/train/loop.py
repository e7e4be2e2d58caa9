"""The loop of one stage: steps, checkpoints with the data cursor, a curve file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from geminid.config import StageConfig

State = dict[str, Any]  # "params", "optimiser": pytrees of arrays
Step = Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]


def write_array(path: Path, array: np.ndarray) -> None:
    """Complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    os.replace(partial, path)


@dataclasses.dataclass
class Loop:
    """Trains one stage in `directory` and resumes there.

    The state after step i depends on the initial state, the batches and the seed alone: a run that was
    killed and resumed ends with the same bits as one that was not.
    """

    name: str
    directory: Path
    config: StageConfig
    seed: int
    curve: Path
    report: Callable[[int], None] = lambda done: None  # called with the number of steps done

    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        return ocp.CheckpointManager(self.directory.absolute() / "checkpoints", options=options)

    def _restore(self, manager: ocp.CheckpointManager, state: State, batches: Any) -> tuple[int, State]:
        last = manager.latest_step()
        if last is None:
            self._forget_after(0)
            return 0, state
        saved = manager.restore(
            last, args=ocp.args.Composite(state=ocp.args.StandardRestore(state), cursor=ocp.args.JsonRestore())
        )
        batches.set_state(saved["cursor"])
        self._forget_after(last)
        return last, saved["state"]

    def run(self, step: Step, state: State, batches: Any) -> State:
        """Steps from the last checkpoint to the end.

        `batches` is an iterator with get_state and set_state (Grain's); its state is saved with the parameters,
        so that no batch is skipped or seen twice after a resume.
        """
        manager = self._manager()
        begin, state = self._restore(manager, state, batches)
        key = jax.random.key(self.seed)
        rows: list[dict[str, float]] = []
        self.curve.parent.mkdir(parents=True, exist_ok=True)
        self.report(begin)
        for i in range(begin, self.config.steps):
            state, metrics = step(state, next(batches), jax.random.fold_in(key, i))
            done = i + 1
            self.report(done)
            if done % self.config.log_every == 0 or done == self.config.steps:
                rows.append({"step": done, **{k: float(v) for k, v in metrics.items()}})
                if not np.isfinite(rows[-1]["loss"]):
                    raise ValueError(
                        f"stage {self.name}: loss is {rows[-1]['loss']} at step {done}; lower its learning rate"
                    )
            if done % self.config.save_every == 0 or done == self.config.steps:
                # a copy: the next step donates these buffers while the save still writes
                copied = jax.tree.map(lambda x: np.array(x, copy=True), state)
                args = ocp.args.Composite(
                    state=ocp.args.StandardSave(copied), cursor=ocp.args.JsonSave(cursor_of(batches))
                )
                manager.save(done, args=args)
                self._append(rows)
                rows = []
        manager.wait_until_finished()
        manager.close()
        return state

    def _forget_after(self, step: int) -> None:
        """Drops the curve's rows after the checkpoint: those steps are done again."""
        if self.curve.is_file():
            kept = [line for line in self.curve.read_text().splitlines(True) if json.loads(line)["step"] <= step]
            partial = self.curve.with_name(self.curve.name + ".partial")
            partial.write_text("".join(kept))
            os.replace(partial, self.curve)

    def _append(self, rows: list[dict[str, float]]) -> None:
        with self.curve.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def cursor_of(batches: Any) -> Any:
    """The iterator's state as JSON values."""
    return json.loads(json.dumps(batches.get_state(), default=lambda value: value.tolist()))
