"""The server program of a training run: forms the ranks, records figures, saves the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import NotFoundError
from ...core.message import Array, Message, Tensor
from ...core.session import ServerSession
from ...runs.model_states import load_metadata, save_state
from ..collective.coordinator import Coordinator
from .baseline import baselines
from .config import TrainingConfig
from .protocol import BEST_SCORE, FROM_RANK_0, TOTAL, BestState, Figures, Trained


class RunRecorder:
    """Records what rank 0 sends during a run.

    Parameters
    ----------
    session : ServerSession

    Attributes
    ----------
    latest : dict
        The last value of each figure.
    """

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self.latest: dict[str, float] = {}

    def handle(self, node: str, message: Message) -> None:
        """Record a message of the engine; raises WireError if it is none."""
        match FROM_RANK_0.read(message, f"node {node}"):
            case Figures(values=fields):
                values = {k: float(v) for k, v in fields.items() if isinstance(v, float)}
                self.latest.update(values)
                self._session.metrics(message.step, **values)
                if (total := fields.get(TOTAL)) is not None:
                    self._session.progress(message.step, int(total), **values)
            case BestState(score=score):
                self.save_best(message.tensors, message.step, score)

    def save_best(self, tensors: Mapping[str, Tensor], step: int, score: float) -> None:
        """Save the state with the best score so far."""
        self._save("best", tensors, {"step": str(step), "score": repr(score)})

    def save_last(self, tensors: Mapping[str, Tensor]) -> None:
        """Save the state at the end."""
        self._save("last", tensors, {})

    def best(self) -> dict[str, float]:
        """Return step and score of the best state; empty if none was saved, in this or an earlier program."""
        try:
            metadata = load_metadata(self._path("best"))
        except NotFoundError:
            return {}
        return {"best_step": int(metadata["step"]), BEST_SCORE: float(metadata["score"])}

    def _save(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        arrays: dict[str, Array] = {key: tensor.array for key, tensor in tensors.items()}
        save_state(self._path(name), arrays, {"run": self._session.run.id, **metadata})

    def _path(self, name: str) -> Path:
        return self._session.run.directory / "states" / f"{name}.safetensors"


def serve(session: ServerSession, config: TrainingConfig) -> dict[str, Any]:
    """Serve a run until its ranks have finished; return its result."""
    recorder = RunRecorder(session)
    coordinator = Coordinator(
        session, Trained, transport=config.transport, min_ranks=config.least, on_message=recorder.handle
    )
    final, results = coordinator.run()
    ended: Mapping[str, Any] = next((end.values for end in results.values() if "parameters" in end.values), {})
    values = {k: v for k, v in ended.items() if isinstance(v, int | float)}
    steps, parameters = int(values.get("steps", 0)), int(values.get("parameters", 0))
    if final:
        recorder.save_last(final)
        if BEST_SCORE in values:
            recorder.save_best(final, steps, values[BEST_SCORE])
    plain = baselines(coordinator.formations, steps, parameters)
    best = recorder.best() if config.keep_best else {}
    return {**recorder.latest, **values, **best, "ranks": len(results), "baselines": plain}
