"""A server starts and serves although a waiting run's method can no longer be imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import MethodError

pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]

SOUND = "from farshore.engines.ping.workload import WORKLOAD\n"


@pytest.mark.parametrize(
    "broken", ["import no_such_package_at_all\n", "def x(:\n", "OTHER = 1\n", "raise SystemExit\n"]
)
def test_the_run_fails_with_the_reason_and_the_server_serves(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any
) -> None:
    site = tmp_path / "site"
    info = site / "fragile-1.dist-info"
    info.mkdir(parents=True)
    (site / "fragile.py").write_text(SOUND)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[farshore.workloads]\nfragile = fragile:WORKLOAD\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(site))
    cloud = start()
    waiting = cloud.submit({}, method="fragile", nodes=("nobody",))
    assert cloud.run(waiting).state == "waiting"
    cloud.server.kill()
    cloud.server.join()
    (site / "fragile.py").write_text(broken)
    cloud.up()
    assert "cannot be imported" in cloud.when(waiting, "failed").reason
    with pytest.raises(MethodError, match="cannot be imported"):
        cloud.submit({}, method="fragile", nodes=("nobody",))
    cloud.join("a")
    cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")
