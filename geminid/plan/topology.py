"""`geminid plan topology`: slices, their networks, goodput with failing hosts, places for a job, layouts of a mesh."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from geminid.plan import availability, chips, collectives, mesh, placement, torus
from geminid.plan.checks import has_place, not_negative, positive, share
from geminid.plan.chips import CUBE, Chip
from geminid.plan.requests import TopologyRequest

MOST_CUBES = 100_000  # of a pod; more is a mistake
MOST_TRIALS = 1_000_000


def plan_topology(request: TopologyRequest) -> dict[str, Any]:
    """The answer to a request, as `--json` prints it; ValueError for what cannot be.

    Bandwidths in bytes/s, times in s. goodput, goodput_static: with and without optical switches, share of the pod's
    chips; each question of the request adds its keys.
    """
    chip = chips.get(request.chip)
    if request.pods < 1:
        raise ValueError(f"--pods is {request.pods}; it must be 1 or more")
    chosen = None if request.slice is None else torus.parse(chip, request.slice)
    _check_asked_of_a_slice(request)
    not_negative("--seed", request.seed)
    _check_ranges(request, chip)
    has_place(request.picture)
    answer: dict[str, Any] = {"chip": asdict(chip), "pod": _pod(chip)}
    if chosen is not None:
        answer["slice"] = _slice(chosen)
    elif not (request.job or request.cube_availability):
        answer["shapes"] = _shapes(chip)
    if request.bytes is not None and chosen is not None:
        answer |= _collectives(request, chosen)
    if request.availability is not None and chosen is not None:
        answer |= _goodput(request, chosen)
    if request.cube_availability is not None:
        answer["guaranteed"] = _guaranteed(request, chip)
    placed = _place(request, chip) if request.job else {}
    answer = {**placed.get("placement", {}), **answer, **placed}  # the goodput of --availability comes first
    if request.mesh and chosen is not None:
        answer["layouts"] = _layouts(request, chosen)
    if request.picture is not None:
        _draw(request, chip, chosen, placed)
    return answer


def _check_ranges(request: TopologyRequest, chip: Chip) -> None:
    """Also of what this answer does not need."""
    _num_cubes(request, chip)
    if not 2 <= request.trials <= MOST_TRIALS:
        raise ValueError(f"--trials is {request.trials}; it must be 2 to {MOST_TRIALS}")
    if not 0 < request.confidence < 1:
        raise ValueError(f"--confidence is {request.confidence:g}; it must be above 0 and below 1, such as 0.95")
    if request.top < 1:
        raise ValueError(f"--top is {request.top}; it must be 1 or more")


def _check_asked_of_a_slice(request: TopologyRequest) -> None:
    asked = {"--bytes": request.bytes, "--availability": request.availability, "--mesh": request.mesh or None}
    for name, value in asked.items():
        if value is not None and request.slice is None:
            raise ValueError(f"{name} is asked of a slice; give --slice, such as --slice 8x8x16")
    if (request.traffic or request.mesh) and not (request.traffic and request.mesh):
        raise ValueError("a layout takes both --mesh AXIS=SIZE and --traffic AXIS:KIND:BYTES")
    asked = {"--failed": request.failed or None, "--replace": request.replace, "--drain": request.drain}
    for name, value in asked.items():
        if value is not None and not request.job:
            raise ValueError(f"{name} is asked of a placed job; give --job, such as --job 8x8x16")


def _pod(chip: Chip) -> dict[str, Any]:
    whole = torus.Slice(chip, chip.pod)
    return {
        "chips": chip.pod_chips,
        "cubes": math.prod(chip.cube_grid) if chip.has_cubes else None,
        "peak_flops": chip.pod_chips * chip.peak_flops,
        "all_reduce_bandwidth": torus.all_reduce_bandwidth(whole),
        "bisection_bandwidth": torus.bisection_bandwidth(whole),
    }


def _shapes(chip: Chip) -> dict[str, str]:
    """Number of chips -> the shapes of that size; `*` marks those that can be twisted."""
    by_size: dict[str, str] = {}
    for each in torus.shapes(chip):
        name = each.name + "*" * torus.can_twist(each)
        size = str(each.num_chips)
        by_size[size] = f"{by_size[size]}, {name}" if size in by_size else name
    return by_size


def _slice(chosen: torus.Slice) -> dict[str, Any]:
    flat = torus.Slice(chosen.chip, chosen.shape)
    bisection = torus.bisection_bandwidth(chosen)
    return {
        "shape": chosen.name,
        "chips": chosen.num_chips,
        "hosts": -(-chosen.num_chips // chosen.chip.chips_per_host),
        "cubes": math.prod(placement.cubes_of(chosen)) if chosen.is_cubes else None,
        "closed_axes": "".join(
            axis for axis, wrap in zip(torus.AXES[: len(chosen.shape)], chosen.wraps, strict=True) if wrap
        ),
        "can_twist": torus.can_twist(chosen),
        "peak_flops": chosen.num_chips * chosen.chip.peak_flops,
        "hbm_bytes": chosen.num_chips * chosen.chip.hbm_bytes,
        "all_reduce_bandwidth": torus.all_reduce_bandwidth(chosen),
        "bisection_bandwidth": bisection if math.isfinite(bisection) else None,
        "twist_gain": bisection / torus.bisection_bandwidth(flat) - 1 if chosen.twisted else None,
    }


def _collectives(request: TopologyRequest, chosen: torus.Slice) -> dict[str, Any]:
    num_bytes = positive("--bytes", request.bytes or 0.0)
    group = collectives.rings(chosen, request.over)
    answer: dict[str, Any] = {
        "bytes": num_bytes,
        "over": "".join(ring.axis for ring in group),
        "seconds": collectives.on_slice(chosen, num_bytes, request.over),
    }
    if request.pods > 1:
        in_group = math.prod(ring.size for ring in group)
        answer["across_pods_seconds"] = {
            kind: collectives.across_pods_s(kind, num_bytes, request.pods, chosen.chip, in_group)
            for kind in collectives.KINDS
        }
    return answer


def _num_cubes(request: TopologyRequest, chip: Chip) -> int:
    if request.cubes is None:
        return math.prod(chip.cube_grid)
    if not 1 <= request.cubes <= MOST_CUBES:
        raise ValueError(f"--cubes is {request.cubes}; it must be 1 to {MOST_CUBES}")
    return request.cubes


def _goodput(request: TopologyRequest, chosen: torus.Slice) -> dict[str, Any]:
    host = share("--availability", request.availability or 0.0)
    num_cubes, slice_cubes = _num_cubes(request, chosen.chip), math.prod(placement.cubes_of(chosen))
    if slice_cubes > num_cubes:
        raise ValueError(f"a slice {chosen.name} has {slice_cubes} cubes; the pod has {num_cubes}: use a smaller slice")
    cube = availability.cube_availability(host)
    return {
        "host_availability": host,
        "cube_availability": cube,
        "goodput": availability.goodput(num_cubes, slice_cubes, cube),
        "goodput_static": availability.goodput_static(num_cubes, slice_cubes, cube),
        "simulated": asdict(availability.simulate(num_cubes, slice_cubes, host, request.trials, request.seed)),
    }


def _guaranteed(request: TopologyRequest, chip: Chip) -> dict[str, Any]:
    cube = share("--cube-availability", request.cube_availability or 0.0)
    confidence = request.confidence
    num_cubes = _num_cubes(request, chip)
    counted_on = availability.guaranteed_cubes(num_cubes, cube, confidence)
    return {
        "cubes": counted_on,
        "of": num_cubes,
        "spares": num_cubes - counted_on,
        "cube_availability": cube,
        "confidence": confidence,
    }


def _cube_numbers(text: str, num_cubes: int) -> frozenset[int]:
    numbers = [part.strip() for part in text.split(",") if part.strip()]
    for part in numbers:
        if not part.isdecimal() or int(part) >= num_cubes:
            raise ValueError(f"--failed has '{part}'; cubes are numbered 0 to {num_cubes - 1}, such as --failed 3,17")
    return frozenset(map(int, numbers))


def _place(request: TopologyRequest, chip: Chip) -> dict[str, Any]:
    grid = chip.cube_grid
    pod = placement.Pod(grid, _cube_numbers(request.failed, math.prod(grid)))
    job = [torus.parse(chip, text) for text in request.job]
    switched, static = placement.place(pod, job), placement.place_static(pod, job)
    answer: dict[str, Any] = {
        "failed": sorted(pod.failed),
        "placement": {"goodput": switched.goodput(pod), "goodput_static": static.goodput(pod)},
        "slices": [
            {"shape": each.name, "cubes": cubes, "cubes_static": cubes_static}
            for each, cubes, cubes_static in zip(job, switched.slices, static.slices, strict=True)
        ],
    }
    if request.replace is not None:
        rewire_s = not_negative("--rewire-s", request.rewire_s)
        repair = placement.repair(pod, job, switched, request.replace)
        answer["repair"] = {
            "slice": repair.slice_index,
            "failed": request.replace,
            "spare": repair.spare,
            "switch_circuits": repair.switch_circuits,
            "seconds": rewire_s,
        }
    if request.drain is not None:
        running = [len(cubes) for cubes in switched.slices if cubes]
        hours, rewire_s = positive("--drain-hours", request.drain_hours), not_negative("--rewire-s", request.rewire_s)
        answer["drain"] = asdict(availability.drain(len(pod.working), running, request.drain, hours, rewire_s))
    return answer


def _layouts(request: TopologyRequest, chosen: torus.Slice) -> list[dict[str, Any]]:
    sizes = mesh.parse_mesh(request.mesh)
    traffic = mesh.parse_traffic(request.traffic, sizes)
    ranked = mesh.layouts(chosen, request.pods, sizes, traffic)
    return [
        {"seconds": layout.seconds, **layout.describe(), "by_traffic": list(layout.by_traffic)}
        for layout in ranked[: request.top]
    ]


def _draw(request: TopologyRequest, chip: Chip, chosen: torus.Slice | None, placed: Mapping[str, Any]) -> None:
    from geminid.plan import pictures

    assert request.picture is not None
    if placed:
        names = {"optical switches": "cubes", "static wiring": "cubes_static"}
        wirings = {wiring: [each[name] for each in placed["slices"]] for wiring, name in names.items()}
        pictures.placement(request.picture, chip.cube_grid, wirings, placed["failed"])
        return
    if chosen is None:
        raise ValueError("--picture draws a placed job (--job) or the goodput of a slice (--slice); give one of them")
    num_cubes, slice_cubes = _num_cubes(request, chip), math.prod(placement.cubes_of(chosen))
    hosts = np.linspace(0.98, 1, 101)
    cubes = [availability.cube_availability(host) for host in hosts.tolist()]
    curves = {
        "optical switches": [availability.goodput(num_cubes, slice_cubes, cube) for cube in cubes],
        "static wiring": [availability.goodput_static(num_cubes, slice_cubes, cube) for cube in cubes],
    }
    pictures.goodput(request.picture, f"slices of {CUBE**3 * slice_cubes} chips", hosts.tolist(), curves)
