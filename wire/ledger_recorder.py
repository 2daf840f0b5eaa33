"""Records the frames of a channel in the ledger."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..core.transfer import Direction, Recorder, Transfer
from .pack import Packed, Summary


@dataclass(frozen=True, slots=True)
class LedgerRecorder:
    """Creates ledger rows from the frames of one node; does nothing without a recorder.

    Attributes
    ----------
    node : str
    attempt : int
        Restart epoch of the run; 0 = the first attempt.
    recorder : Recorder or None
    """

    node: str
    attempt: int
    recorder: Recorder | None

    def data(self, direction: Direction, sizes: Packed | Summary, position: Summary, frame_bytes: int) -> None:
        """Record a data frame.

        Parameters
        ----------
        direction : {"up", "down"}
        sizes : Packed or Summary
            Gives the dense and payload bytes, and the encoding.
        position : Summary
            Gives the kind, round, step and micro-batch.
        frame_bytes : int
        """
        if self.recorder is None:
            return
        self.recorder(
            Transfer(
                self.node,
                direction,
                position.kind,
                sizes.encoding,
                position.round,
                position.step,
                position.micro,
                sizes.dense_bytes,
                sizes.payload_bytes,
                frame_bytes,
                self.attempt,
                time.time(),
            )
        )

    def overhead(self, direction: Direction, kind: str, frame_bytes: int) -> None:
        """Record an internal frame of the channel, or a retransmission."""
        if self.recorder is not None:
            self.recorder(
                Transfer(self.node, direction, kind, "raw", 0, 0, 0, 0, 0, frame_bytes, self.attempt, time.time())
            )
