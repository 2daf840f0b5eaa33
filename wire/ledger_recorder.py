"""What a channel tells the ledger."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..core.transfer import Direction, Recorder, Transfer
from .pack import Packed, Summary


@dataclass(frozen=True, slots=True)
class LedgerRecorder:
    """Turns frames into ledger rows for one node; does nothing without a recorder.

    Attributes
    ----------
    node : str
    attempt : int
        The epoch: 0 is the first attempt at everything.
    recorder : Recorder or None
    """

    node: str
    attempt: int
    recorder: Recorder | None

    def data(self, direction: Direction, summary: Packed | Summary, place: Summary, frame_bytes: int) -> None:
        """Record a data frame."""
        if self.recorder is None:
            return
        self.recorder(
            Transfer(
                self.node,
                direction,
                place.kind,
                summary.encoding,
                place.round,
                place.step,
                place.micro,
                summary.dense_bytes,
                summary.payload_bytes,
                frame_bytes,
                self.attempt,
                time.time(),
            )
        )

    def overhead(self, direction: Direction, kind: str, frame_bytes: int) -> None:
        """Record a frame of the channel's own, or one that is sent again."""
        if self.recorder is not None:
            self.recorder(
                Transfer(self.node, direction, kind, "raw", 0, 0, 0, 0, 0, frame_bytes, self.attempt, time.time())
            )
