"""How much of a pod works when hosts fail independently: exact, and by simulation.

A cube works when all its 16 hosts do. Goodput is the share of the pod's chips that work in whole slices of one size
(Jouppi et al. 2023, section 2.3 and figure 4), before any time lost to recovery.

Optical switches: a slice takes any cubes that work, so floor(working / k) slices of k cubes run.
Static wiring: the cables are laid for floor(cubes / k) fixed blocks of k cubes, and a block runs only when all of its
cubes work. (This reproduces the published table. A static pod whose slices may lie at any offset would do a little
better: `geminid.plan.placement` searches for those.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from geminid.plan.chips import HOSTS_PER_CUBE


def cube_availability(host: float) -> float:
    """Probability that a cube works, from that of one host."""
    return host**HOSTS_PER_CUBE


def goodput(num_cubes: int, slice_cubes: int, availability: float) -> float:
    """Expected goodput with optical switches. availability: of a cube."""
    working = np.arange(num_cubes + 1)
    used = working // slice_cubes * slice_cubes
    return float(binom.pmf(working, num_cubes, availability) @ used / num_cubes)


def goodput_static(num_cubes: int, slice_cubes: int, availability: float) -> float:
    """Expected goodput with static wiring. availability: of a cube."""
    return num_cubes // slice_cubes * slice_cubes / num_cubes * availability**slice_cubes


@dataclass(frozen=True)
class Simulated:
    """Means over trials and their standard errors."""

    goodput: float
    goodput_se: float
    goodput_static: float
    goodput_static_se: float


def simulate(num_cubes: int, slice_cubes: int, host: float, trials: int, seed: int) -> Simulated:
    """The same by Monte Carlo: every host of every cube drawn. host: availability of one."""
    rng = np.random.default_rng(seed)
    num_slices = num_cubes // slice_cubes
    with_switches, static = np.empty(trials), np.empty(trials)
    for trial in range(trials):
        works = np.all(rng.random((num_cubes, HOSTS_PER_CUBE)) < host, axis=1)
        with_switches[trial] = works.sum() // slice_cubes
        static[trial] = works[: num_slices * slice_cubes].reshape(num_slices, slice_cubes).all(axis=1).sum()
    share, root = slice_cubes / num_cubes, math.sqrt(trials)
    return Simulated(
        float(with_switches.mean() * share),
        float(with_switches.std(ddof=1) * share / root),
        float(static.mean() * share),
        float(static.std(ddof=1) * share / root),
    )


def guaranteed_cubes(num_cubes: int, availability: float, confidence: float) -> int:
    """The most cubes of which at least so many work with that confidence. availability: of a cube."""
    counts = np.arange(num_cubes + 1)
    at_least = binom.sf(counts - 1, num_cubes, availability)
    return int(counts[at_least >= confidence].max())


@dataclass(frozen=True)
class Drain:
    """Rolling maintenance of a whole pod: hours it takes, goodput of the cubes in use with switches and without."""

    hours: float
    moves: int
    goodput: float
    goodput_static: float


def drain(num_cubes: int, job: list[int], at_once: int, hours: float, rewire_s: float) -> Drain:
    """Every cube is serviced for `hours`, `at_once` at a time. job: cubes of each running slice.

    With optical switches a slice pauses `rewire_s` each time that some of its cubes are exchanged for free ones; with
    static wiring it stands still while any of its cubes is serviced. ValueError when too few cubes are free.
    """
    used = sum(job)
    if not used:
        raise ValueError("nothing of the job is placed, so there is nothing to drain around; have fewer cubes fail")
    if at_once < 1 or at_once > num_cubes - used:
        raise ValueError(
            f"draining {at_once} cubes at a time takes as many free ones; the job uses {used} of {num_cubes}: "
            f"drain 1 to {num_cubes - used} at a time, or make the job smaller"
        )
    rounds = math.ceil(num_cubes / at_once)
    touched = [math.ceil(cubes / at_once) for cubes in job]
    elapsed_s = rounds * hours * 3600
    rounds_of_cubes = sum(cubes * times for cubes, times in zip(job, touched, strict=True))
    return Drain(
        rounds * hours,
        used,
        1 - rounds_of_cubes * rewire_s / (used * elapsed_s),
        1 - rounds_of_cubes * hours * 3600 / (used * elapsed_s),
    )
