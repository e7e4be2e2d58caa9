"""How a run of slices goes, for Prometheus: the controller serves it, and a new controller counts from nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from geminid.runtime.driver import Driver
from geminid.runtime.members import Role
from geminid.runtime.timeline import useful_ns


@dataclass(frozen=True)
class Snapshot:
    """Of one moment. seconds: (device, activity) -> s."""

    step: int = 0
    goodput: float = 0.0
    survival: float = 0.0
    roles: dict[str, int] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, driver: Driver) -> Snapshot:
        controller, ledger, now_ns = driver.controller, driver.spans.ledger, time.monotonic_ns()
        opened = min((account.opened_ns for account in ledger.accounts.values()), default=now_ns)
        totals = {device: ledger.totals(now_ns, [device]) for device in ledger.accounts}
        roles = Counter(str(member.role) for member in controller.members.by_name.values())
        return cls(
            controller.step,
            sum(map(useful_ns, totals.values())) / (controller.policy.slices * max(1, now_ns - opened)),
            controller.survival,
            {str(role): roles[str(role)] for role in Role},
            {(device, str(a)): ns / 1e9 for device, classes in totals.items() for a, ns in classes.items() if ns},
            dict(driver.findings),
        )


class Metrics:
    """Serves the latest snapshot at http://HOST:PORT/metrics, as long as the process lives."""

    def __init__(self, port: int, host: str) -> None:
        self.snapshot = Snapshot()
        registry = CollectorRegistry()
        registry.register(self)  # pyrefly: ignore[bad-argument-type]
        try:
            start_http_server(port, host, registry)
        except OSError as error:
            reason = f"metrics cannot be served at {host}:{port} ({error.strerror}); give another --metrics-port"
            raise RuntimeError(reason) from error

    def collect(self) -> Iterator[Metric]:
        now = self.snapshot
        yield GaugeMetricFamily("geminid_step", "Committed steps.", now.step)
        yield GaugeMetricFamily("geminid_goodput_ratio", "Useful over elapsed time of the slices wanted.", now.goodput)
        what = "Probability that a copy in memory outlives ten minutes, from where copies are."
        yield GaugeMetricFamily("geminid_copy_survival_ratio", what, now.survival)
        yield family(GaugeMetricFamily("geminid_slices", "Slices by role.", labels=["role"]), now.roles)
        what = "Findings of the controller: lost slices, bad copies, wrong gradients."
        yield family(CounterMetricFamily("geminid_findings", what, labels=["finding"]), now.findings)
        seconds = CounterMetricFamily("geminid_seconds", "Time by class.", labels=["device", "activity"])
        for labels, value in now.seconds.items():
            seconds.add_metric(labels, value)
        yield seconds


def family(made: Metric, values: dict[str, int]) -> Metric:
    for label, value in values.items():
        made.add_metric([label], value)  # pyrefly: ignore[missing-attribute]
    return made
