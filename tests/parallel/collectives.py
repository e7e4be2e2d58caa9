"""Which collectives a compiled program holds, and over which axes of its mesh: read from the HLO's own text."""

from __future__ import annotations

import re

import numpy as np
from jax.sharding import Mesh

KINDS = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
LINE = re.compile(rf"= .*? ({KINDS})(?:-start)?\(.*?(?:replica_groups|source_target_pairs)=(.*)")
MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}")
IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def found(hlo: str, mesh: Mesh) -> dict[str, int]:
    """{"all-gather slice+fsdp": 3, ...}: collectives in the text, and the axes along which their groups vary."""
    counts: dict[str, int] = {}
    for kind, groups in LINE.findall(hlo):
        axes = axes_of(groups_of(groups), mesh)
        if axes:
            name = f"{kind} {'+'.join(axes)}"
            counts[name] = counts.get(name, 0) + 1
    return counts


def groups_of(text: str) -> list[list[int]]:
    """The groups of devices that a text such as one of these begins with:

    {{0,1},{2,3}}                        each group
    [2,4]<=[2,2,2]T(1,0,2)               numbers in the second shape, transposed, in rows of the first
    mesh['a'=2,'b'=4] {'b'}              numbers in the shape 2 x 4; groups along b
    mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(1)2}        numbers in 4 x 2, transposed, as 2 x 4; groups along
                                                                   the first 2 of b
    """
    if match := MESH.match(text):
        names, iota, order, along = match.groups()
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", names)}
        parts, chosen = [], []
        for name, size in sizes.items():
            part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", along)
            if part is None or part.group(1) is None:
                chosen += [part is not None]
                parts += [size]
            else:
                before, own = int(part.group(1)), int(part.group(2))
                chosen += [False, True, False]
                parts += [before, own, size // (before * own)]
        ids = _numbers(iota or str(np.prod(parts)), order).reshape(parts)
        axes = [i for i, is_chosen in enumerate(chosen) if is_chosen]
        last = np.moveaxis(ids, axes, range(-len(axes), 0))
        return last.reshape(-1, np.prod([parts[i] for i in axes], dtype=int)).tolist()
    if match := IOTA.match(text):
        rows, shape, order = match.groups()
        return _numbers(shape, order).reshape([int(n) for n in rows.split(",")]).tolist()
    groups = re.match(r"\{(\{[\d,]+\},?)+\}", text)
    assert groups, text
    return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", groups.group())]


def _numbers(shape: str, order: str | None) -> np.ndarray:
    sizes = [int(n) for n in shape.split(",")]
    ids = np.arange(np.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in order.split(",")]) if order else ids


def axes_of(groups: list[list[int]], mesh: Mesh) -> list[str]:
    """The mesh axes along which the members of a group differ; devices are numbered in the mesh's order."""
    places = np.array([np.unravel_index(sorted(group), mesh.devices.shape) for group in groups if len(group) > 1])
    if not len(places):
        return []
    varies = (places.max(2) > places.min(2)).any(0)
    return [name for name, does in zip(mesh.axis_names, varies, strict=True) if does]
