"""Entry point of a worker process of a sweep: runs one item after another."""

from __future__ import annotations

import sys
from pathlib import Path
from queue import SimpleQueue

from safetensors.numpy import save_file

from ...core.processes import Json, Parent
from ...core.workloads import load
from .alone import limit_threads, run_alone
from .cells import method_config

#: File of an item's tensors in its folder.
TENSORS = "outcome.safetensors"


def main() -> int:
    """Run each item that the parent sends, until one fails; the process ends when the parent does."""
    parent = Parent.connect()
    messages: SimpleQueue[Json] = SimpleQueue()
    message = parent.receive_first()
    parent.listen(messages.put)
    while True:
        try:
            answer = _run(message)
        except Exception as error:
            return int(parent.report_failure(error))
        parent.send({"type": "finished", **answer})
        message = messages.get()


def _run(message: Json) -> Json:
    workload = load(message["method"])
    limit_threads(workload, message["threads"])
    config = method_config(workload, message["config"])
    folder = Path(message["folder"])
    data = {name: Path(path) for name, path in message["data"].items()}
    outcome = run_alone(workload, config, message["seed"], folder / "run", data)
    if outcome.tensors:
        save_file({name: array.copy(order="C") for name, array in outcome.tensors.items()}, folder / TENSORS)
    return {"metrics": dict(outcome.metrics), "measured": dict(outcome.measured), "tensors": bool(outcome.tensors)}


if __name__ == "__main__":
    sys.exit(main())
