"""What a simulated run is made of: sizes, failure rates, times. Every default names its source."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

CHIPS_A_CUBE = 64  # 4 x 4 x 4 TPUv4 chips
CUBES_A_POD = 64
MAX_PODS = 16
LEAST, MOST = 1e-9, 1e9  # of any number but 0
MOST_SHARDS = 4096  # a pod
MOST_FAULTS = 1e4  # a day: one in nine seconds


@dataclass(frozen=True)
class Rates:
    """Faults a day of one part."""

    machine: float  # takes its cube with it
    cable: float  # an ICI cable; takes a cube with it
    switch: float  # an optical switch; the pod is rewired
    chips_a_machine: int
    cables_a_chip: float
    switches_a_pod: float
    sdc: float  # silent data corruptions a day of the whole run that show in a step


PRESETS = {
    # TPUv4 fleet (Zu et al., NSDI 2024): 0.08% of machines, 0.005% of ICI cables, 0.04% of optical switches a day.
    # Six links a chip, shared by two; 48 switches a SuperPod (Jouppi et al., ISCA 2023). SDC every week or two
    # (Gemini report, section 5).
    "tpuv4": Rates(0.0008, 0.00005, 0.0004, chips_a_machine=4, cables_a_chip=3.0, switches_a_pod=48.0, sdc=0.1),
    # Llama 3 (Grattafiori et al. 2024, section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 GPUs in
    # machines of 8, six of them SDC.
    "llama3": Rates(413 / 54 / 2048, 0.0, 0.0, chips_a_machine=8, cables_a_chip=0.0, switches_a_pod=0.0, sdc=6 / 54),
}


def preset(name: str) -> Rates:
    """Published failure rates by name. Raises ValueError for another name."""
    if name not in PRESETS:
        raise ValueError(f"unknown failure rates {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Inputs:
    """A run and the machines under it; seconds unless the name says otherwise.

    Raises ValueError where a number is negative, not finite or out of range.
    """

    pods: int = 8  # SuperPods: slices of the run, data-parallel
    days: float = 90.0
    rates: Rates = PRESETS["tpuv4"]
    spare_cubes: int = 4  # of 64 in each pod: "a few cubes per SuperPod" (Gemini report)
    repair_h: float = 8.0  # until a cube that broke is back: assumed
    shards_a_pod: int = 4  # logical shards of a step; more of them spread a lost pod's work more evenly
    step_s: float = 12.0  # a step of all pods: assumed
    update_s: float = 1.0  # of it, exchange and update: assumed
    detection_s: float = 30.0  # from a fault to its detection: collectives run into a timeout: assumed
    reconfigure_s: float = 10.0  # optical switches rewire a pod (Gemini report)
    restart_s: float = 180.0  # processes start and load their programs: assumed
    warm_restart_s: float = 30.0  # the same where a hot standby cube has the programs: assumed
    fetch_s: float = (
        15.0  # a pod's state from another pod's memory: 12 bytes x 5e11 parameters at 25 GB/s a host, tenfold
    )
    restore_s: float = 480.0  # from disk; with detection, rewiring and restart "10+ minutes" (Gemini 2.5 report)
    save_s: float = 20.0  # the run stops for it at each disk checkpoint: assumed
    backup_s: float = 3600.0  # between disk checkpoints beside replicas, for which nothing stops: assumed

    def __post_init__(self) -> None:
        for name, value in [*_numbers(self), *_numbers(self.rates)]:
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} is {value}; give a finite number of at least 0")
            if value and not LEAST <= value <= MOST:
                raise ValueError(f"{name} is {value:g}; give 0, or a number of {LEAST:g} to {MOST:g}")
        if not 1 <= self.pods <= MAX_PODS:
            raise ValueError(f"{self.pods} pods cannot be simulated; give 1 to {MAX_PODS}")
        if not 0 <= self.spare_cubes < CUBES_A_POD:
            raise ValueError(
                f"{self.spare_cubes} spare cubes of the {CUBES_A_POD} in a pod leave none; keep at most 63"
            )
        if not 0 < self.days <= 366:
            raise ValueError(f"days is {self.days}; give more than 0 and at most 366")
        if self.backup_s == 0:
            raise ValueError("backup_s is 0; give seconds between disk checkpoints, such as 3600")
        if not 0 < self.update_s < self.step_s:
            raise ValueError(
                f"update_s {self.update_s} must lie between 0 and step_s {self.step_s}: the rest computes gradients"
            )
        if not 1 <= self.shards_a_pod <= MOST_SHARDS:
            raise ValueError(f"shards_a_pod is {self.shards_a_pod}; it must be 1 to {MOST_SHARDS}")
        if self.rates.chips_a_machine < 1:
            raise ValueError(f"chips_a_machine is {self.rates.chips_a_machine}; it must be at least 1")
        if (faults := self.interruptions_a_day + self.rates.sdc) > MOST_FAULTS:
            raise ValueError(f"these rates are {faults:g} faults a day of the run; give at most {MOST_FAULTS:g}")

    @property
    def shard_s(self) -> float:
        """The gradients of one logical shard on one pod."""
        return (self.step_s - self.update_s) / self.shards_a_pod

    @property
    def cube_faults_a_day(self) -> float:
        """Of all cubes of one pod."""
        chips = CUBES_A_POD * CHIPS_A_CUBE
        rates = self.rates
        return chips * (rates.machine / rates.chips_a_machine + rates.cable * rates.cables_a_chip)

    @property
    def interruptions_a_day(self) -> float:
        """Of the whole run with this many spare cubes: faults of cubes in use and of switches."""
        in_use = 1 - self.spare_cubes / CUBES_A_POD
        return self.pods * (self.cube_faults_a_day * in_use + self.rates.switch * self.rates.switches_a_pod)

    @property
    def mean_time_between_s(self) -> float:
        """Between interruptions, silent corruptions among them; infinite where nothing fails."""
        faults = self.interruptions_a_day + self.rates.sdc
        return 86_400 / faults if faults else math.inf

    @property
    def young_interval_s(self) -> float:
        """The best time between disk checkpoints to first order, sqrt(2 x save x MTBF) (Young 1974)."""
        return math.sqrt(2 * self.save_s * self.mean_time_between_s)

    @property
    def daly_interval_s(self) -> float:
        """The same to higher order (Daly 2006, eq. 37)."""
        mean, save = self.mean_time_between_s, self.save_s
        if save >= 2 * mean or math.isinf(mean):
            return mean
        ratio = save / (2 * mean)
        return math.sqrt(2 * save * mean) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def _numbers(values: object) -> list[tuple[str, float]]:
    assert dataclasses.is_dataclass(values)
    pairs = [(field.name, getattr(values, field.name)) for field in dataclasses.fields(values)]
    return [(name, value) for name, value in pairs if isinstance(value, int | float)]
