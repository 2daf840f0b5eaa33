"""The server program's part of a run: records figures, and writes clusters, embedding and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import MissingExtraError, StorageError
from ...core.message import Array, Message
from ...core.session import ServerSession
from ...reports.chart_files import draw_charts, write_charts
from ...runs.jsonl import read
from ...runs.model_states import save_state
from .config import CCGCConfig
from .messages import FROM_RANK_0
from .metrics import METRICS
from .pictures import result_charts

#: The pictures of a run as an image, if matplotlib is installed.
PICTURE = "clusters.png"


class RunRecorder:
    """Records the figures that rank 0 sends.

    Parameters
    ----------
    session : ServerSession
    config : CCGCConfig
    """

    def __init__(self, session: ServerSession, config: CCGCConfig) -> None:
        self._session, self._config = session, config
        self._history: dict[int, dict[str, float]] = {}

    def handle(self, node: str, message: Message) -> None:
        """Record a message; raises WireError if it is not one of the method's."""
        figures = FROM_RANK_0.read(message, f"node {node}")
        values = {name: float(value) for name, value in figures.values.items()}
        self._history[message.step] = values
        self._session.metrics(message.step, **values)
        shown = {"loss": values["loss"]} if "loss" in values else {}
        if "acc" in values:
            shown["acc"] = values["acc"] / 100  # progress lines have shares
        self._session.progress(message.step, self._config.epochs, **shown)

    def write(self, tensors: Mapping[str, Array], selected: int) -> str:
        """Write what a finished run leaves; returns the name of the picture, empty if none could be drawn.

        Raises
        ------
        StorageError
            The disk refuses it.
        """
        folder = self._session.run.directory
        weights = {n.removeprefix("weights."): a for n, a in tensors.items() if n.startswith("weights.")}
        save_state(folder / "states" / "last.safetensors", weights, {"run": self._session.run.id})
        try:
            for name in ("labels", "embedding"):
                np.save(folder / f"{name}.npy", tensors[name], allow_pickle=False)
            if (table := tensors.get("contingency")) is not None:
                np.savetxt(folder / "contingency.csv", table, "%d", ",")
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {error.strerror}") from error
        drawn = list(result_charts(tensors, self._all_figures(folder), selected))
        write_charts(folder, drawn)
        try:
            draw_charts(drawn, folder / PICTURE)
        except MissingExtraError as error:
            self._session.log(f"no {PICTURE}: {error}")
            return ""
        return PICTURE

    def _all_figures(self, folder: Path) -> list[dict[str, float]]:
        """Return the figures by step; those from before a restart are in the metrics file."""
        before = {int(line["step"]): line for line in read(folder / "metrics.jsonl") if "step" in line}
        return [{**values, "step": step} for step, values in sorted({**before, **self._history}.items())]


def result_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's result: its metrics, rows of metrics from entries ``row.metric``, and what remains."""
    first: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {}
    for name, value in sorted(values.items(), key=lambda entry: _place(entry[0])):
        row, _, metric = name.rpartition(".")
        if row:
            rows.setdefault(row, {})[metric] = value
        elif name in METRICS:
            first[name] = value
        else:
            others[name] = value
    return {**first, **rows, **others}


def _place(name: str) -> int:
    """Return where an entry belongs: fields of a message have no order."""
    metric = name.rpartition(".")[2]
    return METRICS.index(metric) if metric in METRICS else len(METRICS)
