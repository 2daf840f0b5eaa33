"""What Prometheus reads of a server with a real run on it, parsed by its own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from farshore.core.errors import PortInUseError
from farshore.runs.directory import RunDirectory

pytest.importorskip("prometheus_client")
pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]


def scraped(cloud: Any) -> dict[tuple[str, ...], float]:
    """Samples by name and the labels' values, in the order of the labels' names."""
    from prometheus_client.parser import text_string_to_metric_families

    listening = [c.laddr for c in psutil.Process(cloud.server.pid).net_connections("tcp") if c.status == "LISTEN"]
    (port,) = [at.port for at in listening if at.port != int(cloud.local.address.rpartition(":")[2])]
    assert {at.ip.removeprefix("::ffff:") for at in listening} == {"127.0.0.1"}
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_nodes_runs_rounds_and_bytes_are_told(start: Any, until: Any) -> None:
    cloud = start(metrics_port=0, sinks=("csv",))
    assert scraped(cloud)["farshore_nodes", "connected"] == 0
    cloud.join("a")
    run_id = cloud.submit({"rounds": 5, "kilobytes": 64})
    info = cloud.when(run_id, "finished")
    told = scraped(cloud)
    assert told["farshore_nodes", "connected"] == 1
    assert told["farshore_runs", "finished"] == 1
    assert told["farshore_runs", "running"] == 0
    assert told["farshore_run_done", "ping", run_id, "step"] == 5
    assert told["farshore_run_total", "ping", run_id, "step"] == 5
    run = RunDirectory.open(Path(info.directory))
    rows = run.read_ledger().to_pylist()
    for direction, kind in (("up", "echo"), ("down", "block")):
        sent = sum(row["frame_bytes"] for row in rows if row["kind"] == kind)
        assert told["farshore_run_frame_bytes_total", direction, kind, "ping", run_id] == sent
    names = (run.path / "metrics.csv").read_text().splitlines()
    assert names[0] == "step,time,name,value"
    assert len(names) == 6


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    import asyncio
    import socket

    from farshore.server.lifecycle import live
    from farshore.server.options import ServeOptions

    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        options = ServeOptions(home=tmp_path / "home", port=0, metrics_port=number)
        with pytest.raises(PortInUseError, match="for Prometheus"):
            asyncio.run(live(options))
