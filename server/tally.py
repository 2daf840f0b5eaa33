"""Running totals of a run's bytes, for progress lines; the ledger has the exact account."""

from __future__ import annotations

import threading
from collections import defaultdict

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
        self._payload = {"up": 0, "down": 0, "peer": 0}
        self._frame = {"up": 0, "down": 0, "peer": 0}
        self._kinds: dict[tuple[str, str], int] = defaultdict(int)

    def record(self, transfer: Transfer) -> None:
        """Take one transfer; from any thread."""
        with self._lock:
            self._payload[transfer.direction] += transfer.payload_bytes
            self._frame[transfer.direction] += transfer.frame_bytes
            self._kinds[transfer.direction, transfer.kind] += transfer.frame_bytes
        self._recorder(transfer)

    def kinds(self) -> dict[str, dict[str, int]]:
        """Frame bytes of this epoch so far: direction -> kind -> bytes."""
        found: dict[str, dict[str, int]] = {"up": {}, "down": {}, "peer": {}}
        with self._lock:
            for (direction, kind), size in self._kinds.items():
                found[direction][kind] = size
        return found

    def figures(self) -> dict[str, int]:
        """Bytes of this epoch so far."""
        with self._lock:
            return {
                "payload_up": self._payload["up"],
                "payload_down": self._payload["down"],
                "frame_up": self._frame["up"],
                "frame_down": self._frame["down"],
            }
