"""The example runs and beats K-means on the attributes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "cluster_a_graph.py"


@pytest.mark.slow
def test_the_example_clusters_a_graph_better_than_kmeans_on_attributes() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=110, check=True)
    found = dict(re.findall(r"^(\w+) ([\d.]+)$", done.stdout, re.M))
    assert float(found["CCGC"]) > float(found["kmeans_x"]) + 5
