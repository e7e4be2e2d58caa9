"""What a log says of the cost of checks, on logs whose answer is known."""

import numpy as np
import pytest

from geminid.runtime.overhead import shares
from geminid.runtime.requests import OverheadRequest


def log(digests: float, books: float, audit: float, request: OverheadRequest, drift: float = 0.0) -> list[dict]:
    """Commits of steps of one second plus what checks cost; the machine slows down by `drift`."""
    rng = np.random.default_rng(1)
    rows, now = [], 0.0
    for step in range(request.steps + 1):
        rows.append({"kind": "commit", "step": step, "t": now, "books_s": books})
        took = 1.0 + books + digests * (step // request.block % 2 == 0) + audit * (step % request.audit_every == 0)
        now += took * (1 + drift * step / request.steps) + rng.choice([0.0, 0.0, 0.0, 0.4])  # sometimes
    return [{"kind": "roll call", "t": 0.0}, *rows]


@pytest.mark.parametrize("drift", [0.0, 0.2])
def test_what_was_put_in_is_found(drift):
    request = OverheadRequest(steps=400, block=10, audit_every=40)
    found = shares(log(0.03, 0.002, 0.5, request, drift), request)
    assert found["digest_fraction"] == pytest.approx(0.03, abs=0.005 + 0.02 * drift)
    assert found["overhead_fraction"] == pytest.approx(0.032, abs=0.005 + 0.02 * drift)
    assert found["ledger_fraction"] == pytest.approx(0.002, rel=0.2)
    assert found["audit_fraction"] == pytest.approx(0.5 / 40, rel=0.3)
    low, high = found["overhead_interval"]
    assert low <= found["overhead_fraction"] <= high


def test_a_free_check_costs_nothing():
    request = OverheadRequest(steps=400, block=10, audit_every=40)
    assert shares(log(0.0, 0.0, 0.0, request), request)["overhead_fraction"] == pytest.approx(0.0, abs=0.002)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"slices": 1}, "2 or more"),
        ({"steps": 10}, "--steps 80"),
        ({"audit_every": -10}, "multiple of 10"),
        ({"shards": 1}, "raise --shards"),
    ],
)
def test_a_request_that_could_tell_nothing_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        OverheadRequest(**fields)
