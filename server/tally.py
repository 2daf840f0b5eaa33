"""Running totals of a run's bytes, for progress lines; the ledger has the exact account."""

from __future__ import annotations

import threading

from ..core.transfer import Recorder, Transfer


class Tally:
    """Passes transfers on and counts them.

    Parameters
    ----------
    recorder : Recorder
        Where the transfers go.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._payload = {"up": 0, "down": 0}
        self._frame = {"up": 0, "down": 0}

    def record(self, transfer: Transfer) -> None:
        """Take one transfer; from any thread."""
        with self._lock:
            self._payload[transfer.direction] += transfer.payload_bytes
            self._frame[transfer.direction] += transfer.frame_bytes
        self._recorder(transfer)

    def figures(self) -> dict[str, int]:
        """Bytes of this epoch so far."""
        with self._lock:
            return {
                "payload_up": self._payload["up"],
                "payload_down": self._payload["down"],
                "frame_up": self._frame["up"],
                "frame_down": self._frame["down"],
            }
