"""Plays a scheduled HLO module on a model of one chip and its links: how long the step takes, what waits for whom.

One stream computes, in the order of the schedule. An instruction takes the longer of its matrix products at the chip's
peak and its main-memory traffic at the chip's bandwidth (Williams et al. 2009, the roofline). A collective takes the
time that `geminid.plan.collectives` gives it, a permutation that of its fullest link, both longer where others are on
their links (`geminid.plan.links`). For an asynchronous one the compute stream waits at its `done` alone. Transfers
between slices hold the network of the host, one after another. What the compute stream waits for links or network is
exposed communication. Vector units are not modelled: elementwise work costs its memory traffic. Loops whose length
depends on data take the trips that the caller expects.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from geminid.plan import hlo
from geminid.plan.chips import HOST_BANDWIDTH
from geminid.plan.collectives import across_pods_s, seconds
from geminid.plan.hlo import Computation, Instruction, Module
from geminid.plan.links import ALL, Held, Links, Machine, Travelling

MXU_SHARE = 0.9  # of the peak that large matrix products reach
FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id",
     "replica-id", "opt-barrier", "add-dependency", "domain", "custom-call")
)  # fmt: skip
MEGASCALE = "xla_megascale_runtime"
HOST = 5  # the compiler's number of the host's memory
MOVES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")  # within a memory, or from one to another
SLICING = ("dynamic-slice", "slice", "gather")


@dataclass
class Transfer:
    """One collective or transfer of the program: what it moves each time, how often, and what it makes others wait."""

    name: str
    kind: str
    axes: tuple[str, ...]
    num_bytes: float
    seconds: float
    is_async: bool
    count: float = 0.0
    exposed_s: float = 0.0
    overlaps: defaultdict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # seconds of compute beside it, by operation


@dataclass(frozen=True)
class Event:
    """begin_s, end_s: in the step, or in the loop that it is in."""

    lane: str
    name: str
    begin_s: float
    end_s: float
    label: str = ""


@dataclass
class Played:
    """loops: by name, trips, and the events of one trip after the first."""

    step_s: float = 0.0
    compute_s: float = 0.0
    exposed_s: float = 0.0
    memory_wait_s: float = 0.0
    flops: float = 0.0
    transfers: dict[str, Transfer] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    loops: dict[str, tuple[int, float, list[Event]]] = field(default_factory=dict)
    unknown_loops: set[str] = field(default_factory=set)


def play(module: Module, machine: Machine, expected_trips: int = 1) -> Played:
    """The whole step. expected_trips: of loops whose length depends on data."""
    player = _Player(module, machine, expected_trips)
    player.run(module.entry, player.played.events, 0.0, 1.0)
    player.played.step_s = player.now
    return player.played


class _Player:
    def __init__(self, module: Module, machine: Machine, expected_trips: int):
        self.module, self.machine, self.expected_trips = module, machine, expected_trips
        self.played = Played()
        self.links = Links(len(machine.places))
        self.free: dict[str, float] = {}  # network or copy engine -> when it is free again
        self.finish: dict[str, tuple[float | Travelling, Transfer | None]] = {}  # of what was started
        self.open: dict[str, Transfer] = {}
        self._costs: dict[tuple[str, str], tuple[float, float]] = {}
        self._moves: dict[str, tuple[str, tuple[str, ...], float, float, Held]] = {}
        self._skipped = 0.0  # of the loop's trips that were not played
        self._names: dict[str, str] = {}  # send or recv -> the name that both ends of a transfer know it by

    @property
    def now(self) -> float:
        return self.links.now

    def run(self, computation: Computation, events: list[Event], zero: float, weight: float) -> None:
        """Plays one computation. events: where to note what happens, from `zero` on; weight: how often it happens."""
        for each in computation.instructions:
            begin = self.now
            lane = self._play(computation, each, events, zero, weight)
            if lane and self.now > begin:
                events.append(Event(lane, each.name, begin - zero, self.now - zero, each.op_name))

    def _play(
        self, computation: Computation, each: Instruction, events: list[Event], zero: float, weight: float
    ) -> str | None:
        """Moves the clock on; the lane of what the compute stream did, or None where that is noted already."""
        opcode = each.opcode
        if opcode == "while":
            self._loop(each, weight)
            return "loops"
        if opcode in ("conditional", "call"):
            self._branch(each, events, zero, weight)
            return None
        if opcode.removesuffix("-start") in hlo.COLLECTIVES:
            self._collective(computation, each, hlo.Collective(each, False), events, zero, weight)
            return None
        if opcode in ("send", "recv"):
            self._send(each, events, zero, weight)
            return None
        if opcode.endswith("-done"):
            return self._done(computation, each, weight)
        if opcode.removesuffix("-start") in MOVES and (opcode.endswith("-start") or is_of_host(computation, each)):
            return self._move(computation, each, events, zero, weight)
        inner = hlo.collective_within(self.module, each) if opcode in ("fusion", "async-start") else None
        part = hlo.fusion_part(self.module, each)
        if inner is not None and part == "done":
            return self._finished(inner.channel, weight)
        if inner is not None and not (part == "step" and inner.channel in self.finish):
            self._collective(computation, each, inner, events, zero, weight)
            return None
        if opcode in FREE:
            return None
        self._compute(computation, each, weight)
        return "compute"

    def _compute(self, computation: Computation, each: Instruction, weight: float) -> None:
        key = computation.name, each.name
        if key not in self._costs:
            flops = hlo.flops(self.module, computation, each)
            chip = self.machine.chip
            traffic = sum(memory_bytes(self.module, computation, each)) / chip.hbm_bandwidth
            self._costs[key] = flops, max(flops / (MXU_SHARE * chip.peak_flops), traffic)
        flops, duration = self._costs[key]
        self.links.pass_time(duration)
        self.played.flops += flops * weight
        self.played.compute_s += duration * weight
        for transfer in self.open.values():
            transfer.overlaps[each.op_name.rpartition("/")[2] or each.opcode] += duration * weight

    def _hold(self, resource: str, duration: float) -> float:
        """When a transfer ends that begins now, or once its resource is free."""
        self.free[resource] = max(self.now, self.free.get(resource, 0.0)) + duration
        return self.free[resource]

    def _move(
        self, computation: Computation, each: Instruction, events: list[Event], zero: float, weight: float
    ) -> str | None:
        """A copy that the compute stream does not make itself; it waits for one without a `done`."""
        num_bytes, resource, bandwidth = moved_bytes(computation, each), "copies", self.machine.chip.hbm_bandwidth
        if is_of_host(computation, each):
            resource, bandwidth = "host", HOST_BANDWIDTH
        until = self._hold(resource, num_bytes / bandwidth)
        if resource == "host":
            events.append(Event("host", each.name, until - num_bytes / bandwidth - zero, until - zero, each.op_name))
        if not each.opcode.endswith("-start"):
            return self._wait(until, None, weight)
        self.finish[each.name] = until, None
        return None

    def _wait(self, until: float | Travelling, transfer: Transfer | None, weight: float) -> str | None:
        begin = self.now
        if isinstance(until, Travelling):
            self.links.wait_for(until)
        else:
            self.links.pass_time(max(0.0, until - begin))
        wait = self.now - begin
        if transfer is None:
            self.played.memory_wait_s += wait * weight
            return "memory"
        transfer.exposed_s += wait * weight
        self.played.exposed_s += wait * weight
        return "waiting"

    def _collective(
        self, computation: Computation, each: Instruction, inner: hlo.Collective, events: list[Event], zero: float,
        weight: float,
    ) -> None:  # fmt: skip
        """inner: the collective itself, where `each` is a fusion or wrapper around it."""
        key = f"{computation.name}/{each.name}"
        if key not in self._moves:
            self._moves[key] = self._describe(inner)
        kind, axes, num_bytes, duration, links = self._moves[key]
        is_fused = hlo.fusion_part(self.module, each) == "start"
        is_async = is_fused or each.opcode.endswith("-start")
        transfer = self.played.transfers.setdefault(key, Transfer(each.name, kind, axes, num_bytes, duration, is_async))
        transfer.count += weight
        begin, before = self.now, self._skipped

        def ended(at: float) -> None:
            end = at - (self._skipped - before)
            events.append(Event("links " + "".join(sorted({link[0] for link in links})), each.name,
                                begin - zero, end - zero, f"{kind} over {', '.join(axes)}"))  # fmt: skip

        travelling = self.links.begin(links, duration, ended)
        if is_async:
            started = inner.channel if is_fused else each.name
            self.finish[started] = travelling, transfer
            self.open[started] = transfer
            return
        if each.opcode == "fusion":  # compute and collective in one kernel: the longer of the two
            self._compute(computation, each, weight)
            events.append(Event("compute", each.name, begin - zero, self.now - zero, each.op_name))
        computed = self.now
        self._wait(travelling, transfer, weight)
        if self.now > computed:
            events.append(Event("waiting", each.name, computed - zero, self.now - zero, kind))

    def _describe(self, collective: hlo.Collective) -> tuple[str, tuple[str, ...], float, float, Held]:
        """Kind, mesh axes, bytes a chip has part in, seconds and links of a collective."""
        machine, each = self.machine, collective.instruction
        kind = each.opcode.removesuffix("-start")
        is_start = each.opcode.endswith("-start")
        if kind == "collective-permute":
            pairs = hlo.permutation(each)
            num_bytes = each.shapes[0].num_bytes
            return kind, hlo.axes_of(pairs, machine.mesh), num_bytes, *machine.permuted(pairs, num_bytes)
        groups = hlo.replica_groups(each, len(machine.places))
        arrays = [shape.num_bytes for shape in each.shapes]
        if is_start and kind != "all-reduce" and len(arrays) > 1:  # operands, then results; of a sum results alone
            arrays = arrays[len(arrays) // 2 :]
        num_bytes = sum(arrays)
        if kind in ("reduce-scatter", "all-to-all"):
            num_bytes *= groups.shape[1]
        if collective.is_cut:
            kind = "reduce-scatter"
        rings = machine.rings(groups[0])
        links = {ring.axis + sign: ALL for ring in rings for sign in "+-"}
        axes = hlo.axes_of(groups, machine.mesh)
        return kind, axes, num_bytes, seconds(_KINDS.get(kind, kind), num_bytes, rings), links

    def _send(self, each: Instruction, events: list[Event], zero: float, weight: float) -> None:
        """A transfer between slices goes by the name that both ends know it by; it begins with the send."""
        if MEGASCALE not in each.rest:
            self.finish[each.name] = self.now, None
            return
        known = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', each.rest)
        name = known[1] if known else each.name
        if each.opcode == "recv":
            self.finish[each.name] = math.inf, None
            self.finish["recv of " + name] = math.inf, None
            self.open.setdefault(name, Transfer(name, "", (), 0.0, 0.0, True))
            self._names[each.name] = name
            return
        machine = self.machine
        found = re.search(r'_xla_megascale_transfer_type="([^"]*)"', each.rest)
        kind = (found[1] if found else "ALL_REDUCE").lower().replace("_", "-")
        num_bytes = each.shapes[0].num_bytes
        num_chips = len(machine.places)
        duration = across_pods_s(
            kind if kind in ("all-gather", "reduce-scatter", "all-reduce", "all-to-all") else "all-gather",
            num_bytes * num_chips, max(machine.num_slices, 2), machine.chip, num_chips,
        )  # fmt: skip
        transfer = self.played.transfers.setdefault(
            "megascale/" + name, Transfer(name, "megascale " + kind, ("slice",), num_bytes, duration, True)
        )
        transfer.count += weight
        until = self._hold("network", duration)
        events.append(Event("network", each.name, until - duration - zero, until - zero, transfer.kind))
        self.finish[each.name] = self.finish["recv of " + name] = until, transfer
        self._names[each.name] = name
        self.open[name] = transfer

    def _done(self, computation: Computation, each: Instruction, weight: float) -> str | None:
        started = each.operands[0] if each.operands else ""
        if each.opcode == "recv-done" and started in self._names:
            name = self._names[started]
            self.open.pop(name, None)
            until, transfer = self.finish.get("recv of " + name, (self.now, None))
            return self._wait(self.now if until == math.inf else until, transfer, weight)
        return self._finished(started, weight)

    def _finished(self, started: str, weight: float) -> str | None:
        self.open.pop(started, None)
        until, transfer = self.finish.pop(started, (self.now, None))
        return self._wait(until, transfer, weight)

    def _branch(self, each: Instruction, events: list[Event], zero: float, weight: float) -> None:
        """A call, or the longest branch of a conditional."""
        inner = [self.module.computations[name] for role, name in each.called.items() if role != "condition"]
        longest = max(inner, key=lambda c: (hlo.computation_flops(self.module, c), len(c.instructions)))
        self.run(longest, events, zero, weight)

    def _loop(self, each: Instruction, weight: float) -> None:
        """The first trip and one more are played; the others take as long as that one."""
        body = self.module.computations[each.called["body"]]
        trips = hlo.trip_count(self.module, each)
        if trips is None:
            self.played.unknown_loops.add(each.name)
            trips = self.expected_trips
        if trips == 0:
            return
        free, finish = self.free.copy(), self.finish.copy()
        self.run(body, [], self.now, weight)
        if trips == 1:
            return
        begin, events = self.now, []
        left_s = {each: each.left_s for each in self.links.travelling}
        free, finish = _common(free, self.free), _common(finish, self.finish)
        self.run(body, events, begin, weight * (trips - 1))
        trip_s = self.now - begin
        self.played.loops[each.name] = trips, trip_s, events
        self._repeat(trips - 2, trip_s, left_s, free, finish)

    def _repeat(
        self, trips: int, trip_s: float, left_s: dict[Travelling, float], free: dict[str, float], finish: dict[str, Any]
    ) -> None:
        """More trips like the last. What had begun before the loop goes on meanwhile, as fast as in that trip; what the
        trip began and has not ended stands as it does after it.

        left_s: of what travelled before that trip; free, finish: what is there since before the loop.
        """
        jump = trips * trip_s
        self.links.travel({each: trips * (left - each.left_s) for each, left in left_s.items()})
        self.links.now += jump
        self._skipped += jump
        self.free = {name: at if free.get(name) == at else at + jump for name, at in self.free.items()}
        for name, (until, transfer) in self.finish.items():
            if not isinstance(until, Travelling) and name not in finish:
                self.finish[name] = until + jump, transfer


def _common(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in before.items() if after.get(name) == value}


_KINDS = {"ragged-all-to-all": "all-to-all", "collective-broadcast": "all-gather"}


# --- main-memory traffic ---


def memory_bytes(module: Module, computation: Computation, each: Instruction) -> tuple[float, float]:
    """Bytes that an instruction reads from main memory and writes to it; of arrays read or written in part, the part.

    What stands in memory on the chip costs nothing.
    """
    opcode = each.opcode
    if opcode == "fusion":
        inner = module.computations[each.called["calls"]]
        read = sum(
            _read(module, inner, i) for i, name in enumerate(each.operands)
            if all(shape.space == 0 for shape in computation.by_name[name].shapes)
        )  # fmt: skip
        return read, _written(module, inner, each)
    sides = [computation.by_name[name] for name in each.operands]
    if opcode in SLICING:
        size = sum(shape.num_bytes for shape in each.shapes)
        return size, size
    if opcode == "dynamic-update-slice":
        return sides[1].num_bytes, sides[1].num_bytes
    return sum(map(_main, sides)), _main(each)


def is_of_host(computation: Computation, each: Instruction) -> bool:
    """Whether a copy reads or writes the host's memory."""
    sides = [each, *(computation.by_name[name] for name in each.operands if name in computation.by_name)]
    return any(shape.space == HOST for side in sides for shape in side.shapes)


def moved_bytes(computation: Computation, each: Instruction) -> float:
    """Bytes of what a copy moves: of an array that is written in part, the part."""
    name = each.opcode.removesuffix("-start")
    if name == "dynamic-update-slice":
        return computation.by_name[each.operands[1]].num_bytes
    # of a start: operands, then the result, then what its `done` needs
    result = each.shapes[len(each.operands)] if name == "dynamic-slice" and each.opcode != name else each.shapes[0]
    return result.num_bytes


def _main(each: Instruction) -> float:
    return sum(shape.num_bytes for shape in each.shapes if shape.space == 0)


def _users(inner: Computation, name: str) -> Iterator[tuple[Instruction, str]]:
    """Users of a value, and the name that they know it by, past bitcasts and copies."""
    for user in inner.users.get(name, ()):
        if user.opcode in ("bitcast", "copy"):
            yield from _users(inner, user.name)
        else:
            yield user, name


def _read(module: Module, inner: Computation, index: int) -> float:
    parameter = inner.parameters.get(index)
    if parameter is None:
        return 0.0
    total = 0.0
    for user, name in _users(inner, parameter.name):
        if user.opcode in SLICING and user.operands[0] == name:
            total += user.num_bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.opcode == "fusion":
            nested = module.computations[user.called["calls"]]
            total += sum(_read(module, nested, i) for i, operand in enumerate(user.operands) if operand == name)
        else:
            return parameter.num_bytes
    return min(total, parameter.num_bytes)


def _written(module: Module, inner: Computation, outer: Instruction) -> float:
    roots = [inner.root]
    if inner.root.opcode == "tuple":
        roots = [inner.by_name[name] for name in inner.root.operands]
    total = 0.0
    for root, shape in zip(roots, outer.shapes, strict=False):
        while root.opcode in ("bitcast", "convert", "copy"):
            root = inner.by_name[root.operands[0]]
        if shape.space:
            continue
        if root.opcode == "fusion":
            total += min(shape.num_bytes, _written(module, module.computations[root.called["calls"]], root))
        elif root.opcode == "dynamic-update-slice":
            total += inner.by_name[root.operands[1]].num_bytes
        else:
            total += shape.num_bytes
    return total
