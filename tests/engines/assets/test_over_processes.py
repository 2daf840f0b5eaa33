"""Assets over real processes: sent to each node once, kept on its disk, and used by its next run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from farshore.runs.directory import RunDirectory

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]

NODES = ("a", "b")
SETTINGS: dict[str, Any] = {"rounds": 1, "per_round": 2, "local_epochs": 1, "batch": 256, "partition": {"kind": "iid"}}
SETTINGS |= {"virtual": {"per_class": 20, "batch": 16, "distribution": "ship"}}


def received(cloud: Any) -> dict[str, int]:
    """Run to the end; bytes of assets that each node received."""
    info = cloud.when(cloud.submit(SETTINGS, method="vhl", nodes=NODES), "finished", seconds=120)
    rows = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    return {n: sum(r["payload_bytes"] for r in rows if (r["node"], r["kind"]) == (n, "asset")) for n in NODES}


def test_the_second_run_of_a_node_does_not_receive_what_it_holds(cloud: Any) -> None:
    cloud.join(*NODES)
    size = 10 * 20 * 8 * 8
    assert received(cloud) == {"a": size, "b": size}
    assert received(cloud) == {"a": 0, "b": 0}
    (damaged,) = (p for p in (cloud.folder / "nodes" / "b" / "cache" / "assets").iterdir() if len(p.name) == 64)
    damaged.write_bytes(bytes(size))
    assert received(cloud) == {"a": 0, "b": size}
