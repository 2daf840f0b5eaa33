"""The example of VHL in a custom training loop runs and learns natural and virtual classes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "vhl_in_your_own_client.py"


@pytest.mark.slow
def test_the_example_learns_natural_and_virtual_classes() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--steps", "150"], capture_output=True, text=True, timeout=110, check=True
    )
    found = re.search(r"virtual ([\d.]+)\naccuracy ([\d.]+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) < 1.0  # log 20 = 3.0 at the start
    assert float(found[2]) > 0.6  # 0.1 by chance
