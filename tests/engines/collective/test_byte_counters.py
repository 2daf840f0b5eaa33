"""The byte counters of the gloo backend agree with the kernel's network counters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces need Linux"),
]
SCRIPT = Path(__file__).with_name("collective_ranks.py")


@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_byte_counters_of_every_collective_agree_with_the_kernel(ranks: int) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), str(ranks)], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if not found:
        pytest.skip("network namespaces are not permitted here")
    assert set(found) == {"all_reduce", "reduce", "broadcast", "all_gather", "all_to_all", "send"}
    for kind, (reported, counted) in found.items():
        # The kernel also counts TCP and IP headers, gloo's message headers and two barriers.
        assert reported < counted < 1.01 * reported + 20_000, (kind, reported, counted)
