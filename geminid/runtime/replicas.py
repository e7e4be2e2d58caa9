"""Where copies of a state are, so that what fails together does not hold them all.

A holder stands in nested failure domains, the largest first: SuperPod, cube, host; on a cluster of single machines the
host alone. While a copy that was lost has not been made again, each domain fails with the probability of its level,
independently of others, and takes with it all that stands in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

Place = tuple[str, ...]  # names of a holder's failure domains, the largest first

# Faults a day of one domain. Host: TPUv4's 0.08% of machines (Zu et al., NSDI 2024). Cube: its 192 optical links at
# 0.005%. SuperPod: 48 optical switches at 0.04%, of which one in a hundred is taken to stop the whole pod.
FAULTS_A_DAY = {"SuperPod": 48 * 0.0004 / 100, "cube": 192 * 0.00005, "host": 0.0008}


def hazards(window_s: float) -> tuple[float, ...]:
    """Probability that a domain of each level fails within `window_s` seconds, the largest domain first."""
    return tuple(-math.expm1(-rate * window_s / 86_400) for rate in FAULTS_A_DAY.values())


def survival(places: Iterable[Place], probabilities: Sequence[float]) -> float:
    """Probability that at least one of the copies at `places` is left.

    probabilities: of a failure by level, as `hazards` gives them; shorter places lack the largest domains.
    """
    found = list(places)
    for place in found:
        if not 1 <= len(place) <= len(probabilities):
            raise ValueError(f"place {'/'.join(place)} has {len(place)} levels; 1 to {len(probabilities)} are known")
    return 1.0 - _all_lost([("",) * (len(probabilities) - len(place)) + place for place in found], probabilities)


def _all_lost(places: Sequence[Place], probabilities: Sequence[float]) -> float:
    """Of copies within one domain that has not failed itself."""
    if not probabilities:
        return 0.0
    lost = 1.0
    for name in dict.fromkeys(place[0] for place in places):
        inside = [place[1:] for place in places if place[0] == name]
        fails = probabilities[0] if name else 0.0
        lost *= fails + (1.0 - fails) * _all_lost(inside, probabilities[1:])
    return lost


def choose(
    candidates: Mapping[str, Place], number: int, beside: Iterable[Place], probabilities: Sequence[float]
) -> list[str]:
    """Up to `number` of the candidates to hold further copies `beside` those at other places.

    One after another, each where it adds most to the survival; of equals the first.
    """
    held, left, chosen = list(beside), dict(candidates), []
    while left and len(chosen) < number:
        best = max(left, key=lambda name: survival([*held, left[name]], probabilities))
        held.append(left.pop(best))
        chosen.append(best)
    return chosen
