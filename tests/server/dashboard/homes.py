"""Server home directories for dashboard tests: a run store and run directories, without a running server."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from farshore.core.transfer import Transfer
from farshore.runs.directory import RunDirectory
from farshore.runs.store import NodeRow, RunRow, RunStore
from farshore.server.dashboard.app import Dashboard
from farshore.server.dashboard.options import DashboardOptions

#: A name with markup, script and template syntax, which no page may interpret.
EVIL = """"><script>alert(1)</script><img src=x onerror=alert(2)>'{{7*7}}"""
SECRETS = {"admin.token": "ADMIN-SECRET-1", "operator.token": "OPERATOR-SECRET-2", "self_signed.key": "KEY-SECRET-3"}


class Home:
    """A server's home directory with hand-written content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for name, text in SECRETS.items():
            (path / name).write_text(text + "\n")
        self.store = RunStore(path / "runs.sqlite")

    def node(self, name: str, **values: Any) -> None:
        self.store.save_node(NodeRow(name, b"HASH-SECRET-4", 1e9, **values))

    def run(
        self, run_id: str, workload: str = "vhl", *, rounds: int = 3, state: str = "finished", **values: Any
    ) -> Path:
        """Add a run of two nodes with one update up and one model down per node and round."""
        path = self.path / "runs" / run_id[:20].replace("/", "_")
        config = values.pop("config", {"rounds": rounds})
        info = {"id": run_id, "workload": workload, "config": config, "seed": 3, "nodes": ["a", "b"]}
        run = RunDirectory.create(path, info)
        metrics = run.open_metrics()
        name = values.pop("metric", "acc")
        with run.open_ledger() as ledger:
            for number in range(1, rounds + 1):
                for node in ("a", "b"):
                    kind = values.get("kind", "update")
                    ledger.record(Transfer(node, "up", kind, "int8", number, 0, 0, 4000, 1000, 1100, 0, 1.0))
                    ledger.record(Transfer(node, "down", "model", "raw", number, 0, 0, 4000, 4000, 4100, 0, 1.0))
                metrics.write(number, {name: number / 10})
        metrics.close()
        values.pop("kind", None)
        events = run.open_events()
        events.write(state, epoch=0, reason=str(values.get("reason", "")))
        events.close()
        row = self.store.create_run(workload, id=run_id, directory=str(path), created=1e9 + len(self.store.runs()))
        self.force(replace(row, state=state, started=1e9, ended=1e9 + 60, done=rounds, total=rounds, **values))
        return path

    def force(self, row: RunRow) -> None:
        """Write a row directly, bypassing the checks of state transitions."""
        names = ("state", "reason", "started", "ended", "done", "total", "result_json", "count")
        values = [getattr(row, name) for name in names]
        with sqlite3.connect(self.path / "runs.sqlite") as database:
            columns = ", ".join(f"{name}=?" for name in names)
            database.execute(f"update runs set {columns}, nodes=? where id=?", (*values, json.dumps(row.nodes), row.id))

    def dashboard(self, **options: Any) -> Dashboard:
        return Dashboard(DashboardOptions(self.path, **options))

    def client(self, **options: Any) -> TestClient:
        """An HTTP client of a dashboard of this home."""
        app = self.dashboard(**options).application
        return TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False)
