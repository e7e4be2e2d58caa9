"""Products whose activations go round a ring of devices, against the same products whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def outcome(context: int, tensor: int, length: int) -> dict:
    own = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.parallel.on_ring", *map(str, (context, tensor, length))],
        cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


# the last two: pieces of three positions and of one, which have no equal halves
@pytest.mark.parametrize(("context", "tensor", "length"), [(1, 8, 32), (2, 4, 16), (2, 2, 12), (2, 4, 8)])
def test_rings_give_what_whole_products_give(context, tensor, length):
    got = outcome(context, tensor, length)
    assert len(got["apart"]) == 7 and max(got["apart"]) < 1e-5
    sent = got["collectives"]
    assert sent["collective-permute tensor"] > 0
    assert not {"all-gather tensor", "reduce-scatter tensor", "all-to-all tensor"} & set(sent), sent


def test_a_length_that_devices_do_not_share_is_gathered():
    got = outcome(1, 4, 6)
    assert max(got["apart"]) < 1e-5 and "collective-permute tensor" not in got["collectives"]
