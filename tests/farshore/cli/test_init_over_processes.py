"""Projects of ``farshore init``, installed on a real server and its nodes, and run with the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farshore.cli import main as cli
from farshore.cli.init import kinds
from farshore.runs.directory import RunDirectory

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(240)]

#: Settings, and what shows in the result that the method did its work.
CASES: dict[str, tuple[list[str], Callable[[dict[str, Any]], bool]]] = {
    "federated": (["--set", "rounds=20", "--set", "per_round=2"], lambda result: result["acc"] > 0.5),
    "training": (["--set", "steps=300"], lambda result: result["accuracy"] > 0.7 and result["ranks"] == 2),
    "workload": (["--set", "items=30"], lambda result: 0 < result["best"] < 29),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the import path with a project of each kind and its entry point, as an installer leaves them."""
    site = tmp_path_factory.mktemp("site")
    for kind in kinds():
        project = site / f"project_{kind}"
        assert cli.execute(["init", f"own_{kind}", "--kind", kind, "--folder", str(project)]) == 0
        (project / f"own_{kind}.py").rename(site / f"own_{kind}.py")
        points = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"]
        info = site / f"own_{kind}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: own_{kind}\nVersion: 0.1.0\n")
        ((group, entries),) = points.items()
        lines = [f"{name} = {target}" for name, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")])))
        patch.syspath_prepend(str(site))  # spawned processes get the path of this one
        yield site


@pytest.fixture(scope="module")
def cluster(start_once: Callable[..., Any], installed: Path) -> Any:
    """A server with two nodes on which the projects are installed."""
    cloud = start_once()
    cloud.join("a", "b")
    return cloud


@pytest.mark.parametrize("kind", kinds())
def test_a_project_runs_on_two_real_nodes(kind: str, cluster: Any) -> None:
    settings, has_worked = CASES[kind]
    command = [sys.executable, "-P", "-m", "farshore", "run", f"own_{kind}", "--nodes", "2", *settings]
    command += ["--seed", "1", "--home", str(cluster.options.home), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["state"] == "finished"
    assert has_worked(ended["result"]), ended["result"]
    rows = RunDirectory.open(Path(cluster.run(ended["id"]).directory)).read_ledger().to_pylist()
    assert {row["node"] for row in rows} == {"a", "b"}
