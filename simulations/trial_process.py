"""Entry point of a trial process, which runs one trial after another for an experiment."""

from __future__ import annotations

import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ..core.processes import Json, Parent
from ..core.workloads import load
from .clock import Devices
from .node_simulation import NodeSimulation


def main() -> int:
    """Run each trial that the parent sends until one fails; return that trial's exit code.

    The process ends when the parent does.
    """
    parent = Parent.connect()
    messages: SimpleQueue[Json] = SimpleQueue()
    message = parent.receive_first()
    parent.listen(messages.put)
    while True:
        try:
            result = _run(parent, message["trial"])
        except Exception as error:
            return int(parent.report_failure(error))
        parent.send({"type": "finished", "result": result})
        message = messages.get()


def _run(parent: Parent, trial: dict[str, Any]) -> dict[str, Any]:
    def on_progress(done: int, total: int, values: Any) -> None:
        parent.send({"type": "progress", "done": done, "total": total, "values": dict(values)})

    workload = load(trial["workload"])
    common: dict[str, Any] = {
        "workload": workload,
        "config": workload.config.model_validate(trial["config"]),
        "directory": Path(trial["directory"]),
        "seed": trial["seed"],
        "data": {name: Path(path) for name, path in trial["data"].items()},
        "devices": Devices.model_validate(trial["devices"]) if trial["devices"] else None,
        "on_progress": on_progress,
    }
    if trial["nodes"] is not None:
        return NodeSimulation(**common, nodes=trial["nodes"]).run()
    from .federated.simulation import Simulation

    clients = {name: trial[name] for name in ("clients", "workers", "backend", "address")}
    return Simulation(**common, **clients).run()


if __name__ == "__main__":
    sys.exit(main())
