"""Which collectives a compiled program holds, and over which axes of its mesh: read from the HLO's own text."""

from __future__ import annotations

import re

from jax.sharding import Mesh

from geminid.plan import hlo

KINDS = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
LINE = re.compile(rf"= .*? ({KINDS})(?:-start)?\(.*?(?:replica_groups|source_target_pairs)=(.*)")


def found(text: str, mesh: Mesh) -> dict[str, int]:
    """{"all-gather slice+fsdp": 3, ...}: collectives in the text, and the axes along which their groups vary."""
    counts: dict[str, int] = {}
    for kind, groups in LINE.findall(text):
        axes = hlo.axes_of(hlo.groups_of(groups, mesh.size), mesh.shape)
        if axes:
            name = f"{kind} {'+'.join(axes)}"
            counts[name] = counts.get(name, 0) + 1
    return counts
