"""Measurement of a node: plausible, fast, and without heavy imports."""

import os
import subprocess
import sys

import psutil

from farshore.edge.measure import matmul_gflops, measure_node


def test_the_profile_describes_this_machine() -> None:
    profile = measure_node(0.05)
    assert profile.cores == os.cpu_count()
    assert profile.memory_bytes == psutil.virtual_memory().total
    assert profile.os.startswith(os.uname().sysname)


def test_the_rate_counts_two_operations_per_multiply_add() -> None:
    # Plausible for any machine; a missing factor n or n² would be outside.
    assert 0.05 < matmul_gflops(0.05) < 20_000


def test_measurement_and_agent_import_no_heavy_packages() -> None:
    code = "import sys, farshore.edge.measure, farshore.client.agent; print([m for m in sys.modules])"
    names = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "pyarrow", "sqlalchemy", "pandas", "transformers", "onnxruntime"):
        assert f"'{heavy}'" not in names
