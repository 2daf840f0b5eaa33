"""Runs a Flower app on Flower's own simulation engine, with Ray or with an in-process backend."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np


def run_on_flower(app: Path, changes: dict[str, Any], nodes: int, directory: Path, *, ray: bool = False) -> None:
    """Run the app in a folder on Flower's simulation engine, with ``directory`` as working directory."""
    import flwr.simulation.run_simulation  # noqa: F401 – the package has a function of that name
    from flwr.app import Context, RecordDict
    from flwr.common.config import get_fused_config_from_dir, get_project_config
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supercore.telemetry import EventType

    engine: Any = sys.modules["flwr.simulation.run_simulation"]
    parts = get_project_config(app)["tool"]["flwr"]["app"]["components"]
    run = Run.create_empty(7)
    run.override_config, run.primary_task_id, run.federation_id = changes, 3, NOOP_FEDERATION_ID
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 3, 7, SUPERLINK_NODE_ID
    context = Context(
        run_id=7, node_id=0, node_config={}, state=RecordDict(), run_config=get_fused_config_from_dir(app, changes)
    )
    directory.mkdir(parents=True)
    before = list(sys.path), set(sys.modules)
    with contextlib.chdir(directory), contextlib.nullcontext() if ray else _inline():
        engine._run_simulation(
            num_supernodes=nodes,
            exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
            client_app_attr=parts["clientapp"],
            server_app_attr=parts["serverapp"],
            server_app_context=context,
            app_dir=str(app),
            run=run,
            is_app=True,
            backend_name="ray" if ray else "inline",
        )
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(app):
            del sys.modules[name]


@contextlib.contextmanager
def _inline() -> Any:
    """Replace Flower's Ray backend by one that runs clients in the engine's own worker."""
    from flwr.server.superlink.fleet.vce.backend import Backend

    class Inline(Backend):
        def __init__(self, backend_config: Any) -> None:
            self._app: Any = None

        def build(self, app_fn: Any) -> None:
            self._app = app_fn()

        @property
        def num_workers(self) -> int:
            return 1

        def is_worker_idle(self) -> bool:
            return True

        def terminate(self) -> None:
            pass

        def process_message(self, message: Any, context: Any) -> Any:
            return self._app(message, context), context

    name = "flwr.server.superlink.fleet.vce.backend.raybackend"
    before, fake = sys.modules.get(name), types.ModuleType(name)
    fake.RayBackend = Inline  # type: ignore[attr-defined]
    sys.modules[name] = fake
    try:
        yield
    finally:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before


def arrays(directory: Path, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays that the app saved under ``name``."""
    with np.load(directory / f"{name}.npz") as found:
        return {key: found[key] for key in found.files}
