"""Which tensor of theirs is which parameter of ours: rows, and the two ways through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from geminid.train.params import named, params_of

Module = TypeVar("Module", bound=nnx.Module)
SHOWN = 6  # names in an error; the line must stay readable
MATRIX = (1, 0)  # axes: theirs is output first


@dataclass(frozen=True)
class Row:
    """ours: a parameter as `named` gives it. theirs: a tensor; `{}` stands for the layer, the first axis of ours.

    axes: ours is theirs.transpose(axes); None: the same axes.
    """

    ours: str
    theirs: str
    axes: tuple[int, ...] | None = None

    def under(self, ours: str, theirs: str) -> Row:
        """The same row where both names have a prefix."""
        return replace(self, ours=ours + self.ours, theirs=theirs + self.theirs)

    def names(self, num_layers: int) -> list[str]:
        """Their tensors, in the order of the layers."""
        return [self.theirs.format(i) for i in range(num_layers)] if "{}" in self.theirs else [self.theirs]

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each of their tensors where our parameter has `shape`."""
        shape = shape[1:] if "{}" in self.theirs else shape
        return shape if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))

    def to_ours(self, parts: list[np.ndarray]) -> np.ndarray:
        """The parameter from their tensors, dtype kept."""
        parts = [part if self.axes is None else part.transpose(self.axes) for part in parts]
        return np.stack(parts) if "{}" in self.theirs else np.ascontiguousarray(parts[0])

    def to_theirs(self, value: np.ndarray) -> list[np.ndarray]:
        """Their tensors from the parameter, dtype kept."""
        parts = list(value) if "{}" in self.theirs else [value]
        return [np.ascontiguousarray(p if self.axes is None else p.transpose(np.argsort(self.axes))) for p in parts]


def under(table: Iterable[Row], ours: str, theirs: str) -> tuple[Row, ...]:
    """The table of a part, as it stands in the whole."""
    return tuple(row.under(ours, theirs) for row in table)


def paired(table: Iterable[Row], wanted: Mapping[str, Any]) -> list[tuple[Row, tuple[int, ...], list[str]]]:
    """Each row with the shape of its parameter and the names of its tensors. The table must fit the module."""
    rows = {row.ours: row for row in table}
    assert rows.keys() == wanted.keys(), sorted(rows.keys() ^ wanted.keys())
    return [
        (rows[name], leaf.shape, rows[name].names(leaf.shape[0] if leaf.ndim else 0)) for name, leaf in wanted.items()
    ]


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def fitted(make: Callable[[], nnx.Module], table: Iterable[Row], tensors: Mapping[str, Any]) -> None:
    """ValueError lists what is missing, what no row names, and what has another shape than the configuration says."""
    wanted = named(nnx.to_pure_dict(nnx.split(nnx.eval_shape(make))[1]))
    needed = {name: row.their_shape(shape) for row, shape, names in paired(table, wanted) for name in names}
    problems = [
        f"{what}: {listed(names)}"
        for what, names in (
            ("missing", needed.keys() - tensors.keys()),
            ("not known", tensors.keys() - needed.keys()),
            (
                "of another shape",
                [
                    f"{name} {list(tensors[name].shape)}, not {list(shape)}"
                    for name, shape in needed.items()
                    if name in tensors and tuple(tensors[name].shape) != shape
                ],
            ),
        )
        if names
    ]
    if problems:
        raise ValueError(f"the weights do not fit the configuration; tensors {'; '.join(problems)}")


def import_module(
    make: Callable[[], Module], table: Iterable[Row], tensors: Mapping[str, Any], dtype: str | None = None
) -> Module:
    """The module that `make` describes, with the parameters in `tensors` (cast to `dtype` if it is given).

    tensors: arrays, or what has a shape and becomes an array. ValueError where they do not fit, see `fitted`.
    """
    fitted(make, table := tuple(table), tensors)
    graph, state = nnx.split(nnx.eval_shape(make))
    pure = nnx.to_pure_dict(state)
    rows = paired(table, named(pure))
    leaves = [jnp.asarray(row.to_ours([np.asarray(tensors[n]) for n in names]), dtype) for row, _, names in rows]
    nnx.replace_by_pure_dict(state, jax.tree.unflatten(jax.tree.structure(pure), leaves))
    return nnx.merge(graph, state)


def export_module(module: nnx.Module, table: Iterable[Row]) -> dict[str, np.ndarray]:
    """The module's parameters under their names and in their layout, dtypes kept: the inverse of `import_module`."""
    return export_params(params_of(module), table)


def export_params(params: Any, table: Iterable[Row]) -> dict[str, np.ndarray]:
    """The same of nested parameters, or of their gradients."""
    leaves = named(params)
    return {
        name: part
        for row, _, names in paired(table, leaves)
        for name, part in zip(names, row.to_theirs(np.asarray(leaves[row.ours])), strict=True)
    }
