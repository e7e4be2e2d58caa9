"""Reads scheduled HLO text: computations, loops, collectives and their groups, FLOPs.

The text is what `compiled.as_text()` of JAX gives: one instruction a line, in the order in which it will be issued when
the module says `is_scheduled=true`. The language is described at https://openxla.org/xla/operation_semantics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ITEM_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2,
    "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "token": 0, "opaque": 0,
}  # fmt: skip
COLLECTIVES = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
ASYNC_PARTS = {'"AsyncCollectiveStart"': "start", '"AsyncCollectiveDone"': "done"}

_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPCODE = re.compile(r" ?([a-z][a-z0-9\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """One array: element type, sides, and the memory it lives in (0: main memory; others are on the chip)."""

    dtype: str
    sides: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.sides)

    @property
    def num_bytes(self) -> float:
        return self.size * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Instruction:
    """shapes: of the result, a tuple's in order. rest: everything after the operands, as it is written."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool
    literal: str = ""  # what stands in the parentheses of a constant or parameter

    def attribute(self, name: str) -> str | None:
        """The text of `name=...` up to the comma that ends it, brackets counted."""
        at = re.search(rf"(?:^|[ ,]){name}=", self.rest)
        if at is None:
            return None
        begin, depth = at.end(), 0
        for i in range(begin, len(self.rest)):
            c = self.rest[i]
            if c in "{[(":
                depth += 1
            elif c in "}])":
                depth -= 1
            elif c == "," and depth == 0:
                return self.rest[begin:i]
        return self.rest[begin:]

    @cached_property
    def called(self) -> dict[str, str]:
        """Role -> computation: calls, body, condition, to_apply, branch0, branch1, ..."""
        found = dict(_CALLED.findall(self.rest))
        branches = _BRANCHES.search(self.rest)
        if branches:
            found |= {f"branch{i}": name for i, name in enumerate(_NAME.findall(branches[1]))}
        for i, role in enumerate(("true_computation", "false_computation")):
            if role in found:
                found[f"branch{i}"] = found.pop(role)
        return found

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def num_bytes(self) -> float:
        return sum(shape.num_bytes for shape in self.shapes)


@dataclass(frozen=True)
class Collective:
    """One inside a fusion. is_cut: an all-reduce of which each device keeps its piece, which is a reduce-scatter."""

    instruction: Instruction
    is_cut: bool

    @property
    def channel(self) -> str:
        return self.instruction.attribute("channel_id") or self.instruction.name


@dataclass(frozen=True)
class Computation:
    """Instructions in the order of the schedule."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {each.name: each for each in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for each in self.instructions:
            for operand in dict.fromkeys(each.operands):
                found.setdefault(operand, []).append(each)
        return found

    @property
    def root(self) -> Instruction:
        return next((each for each in self.instructions if each.is_root), self.instructions[-1])

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(each.literal): each for each in self.instructions if each.opcode == "parameter"}


@dataclass(frozen=True)
class Module:
    """A whole program, as each of its partitions runs it."""

    computations: Mapping[str, Computation]
    entry: Computation
    num_partitions: int
    is_scheduled: bool


def parse(text: str) -> Module:
    """ValueError when the text holds no entry computation."""
    computations: dict[str, Computation] = {}
    entry, name, is_entry, lines = None, "", False, []
    for line in text.splitlines():
        if line.endswith("{") and (head := _COMPUTATION.match(line)):
            name, is_entry, lines = head[2], bool(head[1]), []
        elif line == "}" and name:
            made = Computation(name, tuple(lines))
            computations[name] = made
            entry, name = (made if is_entry else entry), ""
        elif name and " = " in line:
            lines.append(_instruction(line))
    if entry is None:
        raise ValueError("this text has no ENTRY computation; give the text of a compiled program")
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
    return Module(computations, entry, int(partitions[1]) if partitions else 1, "is_scheduled=true" in text[:1000])


def _instruction(line: str) -> Instruction:
    head = _HEAD.match(line)
    assert head, line
    shape_text, opcode, after = _split_shape(head[3])
    inside, rest = _split_parenthesis(after)
    is_value = opcode in ("constant", "parameter", "iota")
    return Instruction(
        head[2],
        opcode,
        tuple(_shapes(shape_text)),
        () if is_value else tuple(_NAME.findall(inside)),
        rest,
        bool(head[1]),
        inside if is_value else "",
    )


def _split_shape(text: str) -> tuple[str, str, str]:
    """`shape opcode(rest` -> shape, opcode, what follows the parenthesis; a tuple's shape is in parentheses itself."""
    begin = 0
    if text.startswith("("):
        depth = 0
        for begin, c in enumerate(text):
            depth += (c == "(") - (c == ")")
            if depth == 0:
                begin += 1
                break
        found = _OPCODE.match(text, begin)
    else:
        found = re.compile(r" ([a-z][a-z0-9\-]*)\(").search(text)
    assert found, text[:200]
    return text[: found.start()], found[1], text[found.end() :]


def _split_parenthesis(text: str) -> tuple[str, str]:
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return text[:i], text[i + 1 :].lstrip(", ")
    return text, ""


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, sides, layout in _SHAPE.findall(text):
        if dtype in ITEM_BYTES:
            space = re.search(r"S\((\d+)\)", layout)
            yield Shape(dtype, tuple(int(side.lstrip("<=")) for side in sides.split(",") if side), _space(space))


def _space(found: re.Match[str] | None) -> int:
    return int(found[1]) if found else 0


# --- loops ---


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often a while loop runs: what the compiler noted, or (bound - first) / step of its counter; else None.

    The first is 0 where the loop's state says nothing else: of a loop whose first trip stands before it, it is 1.
    """
    noted = re.search(r"known_trip_count\W+n\W+(\d+)", loop.rest)
    if noted:
        return int(noted[1])
    condition, body = (module.computations[loop.called[role]] for role in ("condition", "body"))
    found = _bound(module, condition)
    if found is None:
        return None
    index, bound = found
    moved = _origin(body, body.by_name[body.root.operands[index]])
    step = _constant_added(module, body, moved)
    return None if step is None else max(0, -(-(bound - _first(module, loop, index)) // step))


def _first(module: Module, loop: Instruction, index: int) -> int:
    """The number at which an element of a loop's state begins."""
    around = next(each for each in module.computations.values() if each.by_name.get(loop.name) is loop)
    state = _origin(around, around.by_name[loop.operands[0]])
    if state.opcode != "tuple":
        return 0
    first = _origin(around, around.by_name[state.operands[index]])
    return int(first.literal) if _is_number(first) else 0


def _origin(computation: Computation, instruction: Instruction) -> Instruction:
    """What a chain of copies, bitcasts and the like begins with."""
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start", "reshape"):
        instruction = computation.by_name[instruction.operands[0]]
    return instruction


def _outermost(module: Module, computation: Computation, instruction: Instruction) -> tuple[Instruction, list]:
    """An instruction, or the root of the fusion that it is, with its operands as seen from outside."""
    outer = [_origin(computation, computation.by_name[name]) for name in instruction.operands]
    if instruction.opcode != "fusion":
        return instruction, outer
    inner = module.computations[instruction.called["calls"]]
    root = _origin(inner, inner.root)
    sides = [_origin(inner, inner.by_name[name]) for name in root.operands]
    return root, [outer[int(side.literal)] if side.opcode == "parameter" else side for side in sides]


def _is_number(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.literal.lstrip("-").isdigit()


def _bound(module: Module, condition: Computation) -> tuple[int, int] | None:
    """Which element of the loop's state counts, and the number at which the loop ends."""
    root, sides = _outermost(module, condition, _origin(condition, condition.root))
    direction = root.attribute("direction")
    counters = [side for side in sides if side.opcode == "get-tuple-element"]
    bounds = [int(side.literal) for side in sides if _is_number(side)]
    if root.opcode != "compare" or len(counters) != 1 or len(bounds) != 1 or direction not in ("LT", "GT", "NE", "LE"):
        return None
    return int(counters[0].attribute("index") or 0), bounds[0] + (direction == "LE")


def _constant_added(module: Module, body: Computation, moved: Instruction) -> int | None:
    root, sides = _outermost(module, body, moved)
    steps = [int(side.literal) for side in sides if _is_number(side)]
    return steps[0] if root.opcode == "add" and len(steps) == 1 and steps[0] > 0 else None


# --- groups of devices ---


MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}")
IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def replica_groups(instruction: Instruction, num_partitions: int) -> np.ndarray:
    """Who takes part together: int [groups size], numbers of partitions."""
    return groups_of(instruction.rest.partition("replica_groups=")[2], num_partitions)


def groups_of(text: str, num_partitions: int) -> np.ndarray:
    """int [groups size] of a text that begins with one of these; all together where it is empty or {}.

    {{0,1},{2,3}}                        each group
    [2,4]<=[2,2,2]T(1,0,2)               numbers in the second shape, transposed, in rows of the first
    mesh['a'=2,'b'=4] {'b'}              numbers in the shape 2 x 4; groups along b
    mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(1)2}        numbers in 4 x 2, transposed, as 2 x 4; groups along
                                                                   the first 2 of b
    """
    if match := MESH.match(text):
        names, shape, order, along = match.groups()
        parts, taking = _mesh_parts(names, along)
        ids = _numbered(shape or str(math.prod(parts)), order).reshape(parts)
        return np.moveaxis(ids, taking, range(-len(taking), 0)).reshape(-1, math.prod(parts[i] for i in taking))
    if match := IOTA.match(text):
        rows, shape, order = match.groups()
        return _numbered(shape, order).reshape(_numbers(rows))
    listed = re.match(r"\{(?:\{[\d,]+\},? ?)+\}", text)
    if listed is None and text and not text.startswith("{}"):
        raise ValueError(f"groups of devices written as '{text[:40]}' are not known; so their cost is not either")
    if listed is None:
        return np.arange(num_partitions)[None]
    return np.array([_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[0])])


def _mesh_parts(names: str, along: str) -> tuple[list[int], list[int]]:
    """Sizes of a mesh's axes, one that is taken in part in three: before, the part, after; and which are taken."""
    parts, taking = [], []
    for name, size in re.findall(r"'([^']+)'=(\d+)", names):
        taken = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", along)
        if taken is None:
            parts.append(int(size))
            continue
        before, own = (int(taken[1]), int(taken[2])) if taken[1] else (1, int(size))
        taking.append(len(parts) + 1)
        parts += [before, own, int(size) // (before * own)]
    return parts, taking


def _numbered(shape: str, order: str | None) -> np.ndarray:
    """0, 1, ... in a shape such as "4,2", transposed by an order such as "1,0"."""
    sides = _numbers(shape)
    ids = np.arange(math.prod(sides)).reshape(sides)
    return ids.transpose(_numbers(order)) if order else ids


def permutation(instruction: Instruction) -> np.ndarray:
    """source_target_pairs of a collective-permute, int [pairs 2]."""
    return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{(\d+,\d+)\}", instruction.rest)])


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ; partitions count through the mesh row by row."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), -1)  # [groups size axes]
    differs = (places != places[:, :1]).any((0, 1))
    return tuple(name for name, yes in zip(mesh, differs, strict=True) if yes)


# --- floating-point operations ---


def flops(module: Module, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of matrix products and convolutions in one instruction, those of the computations it calls included.

    Loops count their trips (an unknown number counts once), conditionals their longest branch. Two a multiply-add.
    """
    if instruction.opcode == "dot":
        return _dot_flops(computation, instruction)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    inner = {role: module.computations[name] for role, name in instruction.called.items()}
    if instruction.opcode == "while":
        trips = trip_count(module, instruction)
        return (1 if trips is None else trips) * computation_flops(module, inner["body"])
    if instruction.opcode == "conditional":
        return max(computation_flops(module, each) for each in inner.values())
    called = [each for role, each in inner.items() if role in ("calls", "to_apply")]
    if instruction.opcode in ("fusion", "call", "async-start") or instruction.opcode.endswith("-start"):
        return sum(computation_flops(module, each) for each in called)
    return 0.0


def computation_flops(module: Module, computation: Computation) -> float:
    return sum(flops(module, computation, each) for each in computation.instructions)


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text or "")]


def _dot_flops(computation: Computation, dot: Instruction) -> float:
    left = computation.by_name[dot.operands[0]].shapes[0]
    contracted = math.prod(left.sides[i] for i in _numbers(dot.attribute("lhs_contracting_dims")))
    return 2.0 * dot.shapes[0].size * contracted


def _convolution_flops(computation: Computation, convolution: Instruction) -> float:
    """By dim_labels such as b01f_01io->b01f; positions outside the input and between dilated ones cost nothing."""
    labels = convolution.attribute("dim_labels") or ""
    left, _, right = labels.partition("->")
    inputs, _, kernels = left.partition("_")
    kernel = computation.by_name[convolution.operands[1]].shapes[0]
    source = computation.by_name[convolution.operands[0]].shapes[0]
    result = convolution.shapes[0]
    spatial = [c for c in right if c.isdigit()]
    total = 2.0 * kernel.sides[kernels.index("i")]
    total *= result.sides[right.index("b")] * result.sides[right.index("f")]
    window = _window(convolution.attribute("window"), len(spatial))
    for i, c in enumerate(spatial):
        total *= _valid(source.sides[inputs.index(c)], kernel.sides[kernels.index(c)],
                        result.sides[right.index(c)], window[i])  # fmt: skip
    return total


def _window(text: str | None, rank: int) -> list[dict[str, int]]:
    """stride, pad (before), lhs_dilate and rhs_dilate of each spatial side."""
    fields = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\d_x\-]+)", text or "")}

    def of(name: str, i: int, default: int) -> int:
        return int(fields[name][i].partition("_")[0]) if name in fields else default

    names = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
    return [{name: of(name, i, default) for name, default in names.items()} for i in range(rank)]


def _valid(source: int, kernel: int, result: int, window: Mapping[str, int]) -> int:
    """Pairs of an output place and a kernel place that meet an element of the input."""
    if kernel == 1 and window["lhs_dilate"] == 1 and window["pad"] == 0:
        return result
    at = np.arange(result)[:, None] * window["stride"] - window["pad"] + np.arange(kernel) * window["rhs_dilate"]
    inside = (at >= 0) & (at < (source - 1) * window["lhs_dilate"] + 1) & (at % window["lhs_dilate"] == 0)
    return int(inside.sum())


def collective_within(module: Module, instruction: Instruction) -> Collective | None:
    """The first collective inside the computation that a fusion or async-start calls."""
    if (name := instruction.called.get("calls")) is None:
        return None
    computation = module.computations[name]
    for each in computation.instructions:
        if each.opcode.removesuffix("-start") in COLLECTIVES:
            return Collective(each, each.opcode == "all-reduce" and _is_cut(computation, each))
        if (found := collective_within(module, each)) is not None:
            return found
    return None


def _is_cut(computation: Computation, all_reduce: Instruction) -> bool:
    """Whether each device keeps its own piece alone: the TPU compiler writes a reduce-scatter so."""
    users = computation.users.get(all_reduce.name, ())
    return bool(users) and all(user.opcode == "dynamic-slice" for user in users)


def fusion_part(module: Module, instruction: Instruction) -> str | None:
    """Which part of a collective that the TPU compiler spreads over fusions: start, step or done; None: of none.

    The collective is repeated in each of them, under one channel_id; the steps compute something else beside it.
    """
    if instruction.opcode != "fusion":
        return None
    name = instruction.called["calls"]
    target = module.computations[name].root.attribute("custom_call_target")
    if target in ASYNC_PARTS:
        return ASYNC_PARTS[target]
    return "step" if name.startswith("async_collective_fusion") else None
