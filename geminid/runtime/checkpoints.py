"""Disk checkpoints of a run of slices: for the loss of everything. Orbax writes them; each is read back and digested.

A checkpoint counts once its digest has been written beside it, which happens after it was read back with that digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from geminid.runtime.digest import state_digest
from geminid.runtime.messages import Copy
from geminid.train.rundir import read_json, write_json

KEPT = 2
VERIFIED = "verified.json"


class Checkpoints:
    """Of one run, in `directory`; state arrays by name."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory, self.names = directory.absolute(), tuple(names)
        self._keys = [f"{k:04d}" for k in range(len(names))]

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def save(self, copy: Copy, leaves: Sequence[Any]) -> bool:
        """Writes, reads back, marks as good; True when the copy that was read has the digest that was agreed on."""
        path = self._path(copy.step)
        arrays = {key: np.asarray(leaf) for key, leaf in zip(self._keys, leaves, strict=True)}
        with alone() as checkpointer:
            checkpointer.save(path / "state", arrays, force=True)
        if (digest := self._digest_on_disk(copy.step)) != copy.digest:
            return False
        write_json(path / VERIFIED, {"step": copy.step, "digest": digest, "names": list(self.names)})
        self._forget()
        return True

    def _digest_on_disk(self, step: int) -> int | None:
        leaves = self._read(step)
        return None if leaves is None else state_digest(self.names, leaves)

    def _read(self, step: int) -> list[np.ndarray] | None:
        try:
            with alone() as checkpointer:
                arrays = checkpointer.restore(self._path(step) / "state")
        except (OSError, ValueError, KeyError):
            return None
        return [np.asarray(arrays[key]) for key in self._keys] if set(arrays) == set(self._keys) else None

    def load(self, copy: Copy) -> list[np.ndarray] | None:
        """The state at `copy.step`, not digested; None when it cannot be read."""
        return self._read(copy.step)

    def _forget(self) -> None:
        for copy in found(self.directory)[:-KEPT]:
            remove(self._path(copy.step))


def alone() -> ocp.StandardCheckpointer:
    """Of this process, even where others belong to the same JAX runtime: they hold the same state."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix="alone"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def found(directory: Path) -> list[Copy]:
    """Checkpoints that were verified when they were written, oldest first."""
    marks = [read_json(path) for path in directory.glob(f"*/{VERIFIED}")]
    return sorted((Copy(mark["step"], mark["digest"]) for mark in marks), key=lambda copy: copy.step)


def remove(path: Path) -> None:
    """The mark first, so that half a checkpoint is none."""
    import shutil

    (path / VERIFIED).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
