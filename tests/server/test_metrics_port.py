"""The Prometheus endpoint of a server with a real run, parsed by prometheus_client."""

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


def scrape(cloud: Any) -> dict[tuple[str, ...], float]:
    """Return samples by name and label values, in the order of the label names."""
    from prometheus_client.parser import text_string_to_metric_families

    listening = [c.laddr for c in psutil.Process(cloud.server.pid).net_connections("tcp") if c.status == "LISTEN"]
    (port,) = [address.port for address in listening if address.port != int(cloud.local.address.rpartition(":")[2])]
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_nodes_runs_progress_and_bytes_are_exported(start: Any, until: Any) -> None:
    cloud = start(metrics_port=0, sinks=("csv",))
    assert scrape(cloud)["farshore_nodes", "connected"] == 0
    cloud.join("a")
    run_id = cloud.submit({"rounds": 5, "kilobytes": 64})
    info = cloud.when(run_id, "finished")
    samples = scrape(cloud)
    assert samples["farshore_nodes", "connected"] == 1
    assert samples["farshore_runs", "finished"] == 1
    assert samples["farshore_runs", "running"] == 0
    assert samples["farshore_run_done", "ping", run_id, "step"] == 5
    assert samples["farshore_run_total", "ping", run_id, "step"] == 5
    run = RunDirectory.open(Path(info.directory))
    rows = run.read_ledger().to_pylist()
    last = max(row["attempt"] for row in rows)  # on a busy machine the node may have been lost once
    rows = [row for row in rows if row["attempt"] == last]
    for direction, kind in (("up", "echo"), ("down", "block")):
        sent = sum(row["frame_bytes"] for row in rows if row["kind"] == kind)
        assert samples["farshore_run_frame_bytes_total", direction, kind, "ping", run_id] == sent
    lines = (run.path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,time,name,value"
    assert len(lines) == 6


def test_a_port_in_use_raises_an_error(tmp_path: Path) -> None:
    import asyncio
    import socket

    from farshore.server.lifecycle import run_server
    from farshore.server.options import ServeOptions

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ServeOptions(home=tmp_path / "home", port=0, metrics_port=port)
        with pytest.raises(PortInUseError, match="for Prometheus"):
            asyncio.run(run_server(options))
