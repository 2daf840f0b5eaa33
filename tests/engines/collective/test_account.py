"""What ranks say that they sent to each other is what the kernel counted on the network between them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux", reason="networks of one's own are Linux'"),
]
SCRIPT = Path(__file__).with_name("collective_ranks.py")


@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_the_account_of_every_collective_is_the_kernels(ranks: int) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), str(ranks)], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if not found:
        pytest.skip("no network namespace may be made here")
    assert set(found) == {"all_reduce", "reduce", "broadcast", "all_gather", "all_to_all", "send"}
    for kind, (told, counted) in found.items():
        # Headers of TCP and IP, gloo's own of a message, and two barriers come on top.
        assert told < counted < 1.01 * told + 20_000, (kind, told, counted)
