"""The ranks of any process group train as one machine: without the platform, over gloo, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from farshore.algorithms.ccgc.ranks import Alone

from .gloo_ranks import losses


@pytest.mark.slow
def test_two_gloo_ranks_have_the_losses_of_one_machine(tmp_path: Path) -> None:
    script = Path(__file__).with_name("gloo_ranks.py")
    files = [tmp_path / f"{rank}.json" for rank in range(2)]
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), "2", str(tmp_path / "store"), str(file)])
        for rank, file in enumerate(files)
    ]
    assert [rank.wait(100) for rank in ranks] == [0, 0]
    one, other = (json.loads(file.read_text()) for file in files)
    assert one == other
    assert one == pytest.approx(losses(Alone()), rel=1e-4)
