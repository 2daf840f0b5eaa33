"""The committed protobuf modules match their sources."""

import subprocess
import sys
from pathlib import Path

import pytest

GENERATE = Path(__file__).parents[2] / "proto/generate.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_generated_modules_are_current():
    done = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
