"""The members of a session that concern the state of its own side of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.message import Array
from ..core.session import RecordStream
from .state_store import StateStore


class SessionState:
    """Checkpoints and streams of one program; a base class of sessions, see :class:`farshore.core.session.Session`.

    Attributes
    ----------
    state : StateStore
        Set by the session.
    resume_step : int or None
        Step of the checkpoint to continue from; None to start from the beginning.
    newest_step : int or None
        Step of the newest checkpoint: the one resumed from, then the last one saved.
    """

    state: StateStore
    resume_step: int | None = None
    newest_step: int | None = None

    def begin_from(self, step: int | None) -> None:
        """Resume from the checkpoint of ``step``, or start from the beginning for None."""
        self.resume_step = self.newest_step = step
        self.state.begin(step)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Write this side's state after ``step``; the two newest checkpoints are kept."""
        self.state.save(step, tensors, meta)
        self.newest_step = step

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """Read what :meth:`save_checkpoint` wrote."""
        return self.state.load(step)

    def append(self, stream: str, tensors: Mapping[str, Array]) -> int:
        """Append a record to a stream; returns its index."""
        return self.state.append(stream, tensors)

    def stream(self, name: str) -> RecordStream:
        """Return a stream, for reading."""
        return self.state.stream(name)
