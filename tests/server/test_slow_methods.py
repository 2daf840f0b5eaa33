"""A server stays responsive while the module of a submitted method is imported."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]

MODULE = """
import time
from pathlib import Path
from farshore.engines.ping.workload import WORKLOAD

folder = Path(__file__).parent
(folder / "importing").touch()
end = time.monotonic() + 60
while not (folder / "release").exists() and time.monotonic() < end:
    time.sleep(0.02)
"""


def test_a_slow_import_does_not_block_nodes_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any, until: Any
) -> None:
    info = tmp_path / "site" / "sluggish-1.dist-info"
    info.mkdir(parents=True)
    (info.parent / "sluggish.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sluggish\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[farshore.workloads]\nsluggish = sluggish:WORKLOAD\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(info.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(info.parent))
    cloud = start()
    cloud.join("a")
    submitted: list[str] = []
    thread = threading.Thread(target=lambda: submitted.append(cloud.submit({}, method="sluggish", nodes=("nobody",))))
    thread.start()
    try:
        until((info.parent / "importing").exists)
        cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")
        assert cloud.node("a").state == "connected"
        assert submitted == []
    finally:
        (info.parent / "release").touch()
        thread.join(60)
    assert cloud.run(submitted[0]).state == "waiting"
