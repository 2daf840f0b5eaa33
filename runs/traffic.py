"""What a run's own messages have cost so far, by direction and in the ledger's three sizes."""

from __future__ import annotations

import threading
from collections import deque

from ..core.transfer import Recorder, Transfer

#: Kinds that channels send on their own account; no method asked for them.
CHANNEL_KINDS = ("ack", "bye", "heartbeat", "hello", "retransmission")

_OWN = frozenset(CHANNEL_KINDS)


class Traffic:
    """Passes transfers on and adds up those that a method asked for; any thread may record.

    Parameters
    ----------
    recorder : callable
        Where the transfers go.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._bytes = {"up": [0, 0, 0], "down": [0, 0, 0], "peer": [0, 0, 0]}
        self._waiting: deque[Transfer] = deque()

    def record(self, transfer: Transfer) -> None:
        """Take one transfer."""
        self._recorder(transfer)
        self._waiting.append(transfer)
        if len(self._waiting) >= _MOST_WAITING:
            with self._lock:
                self._add_up()

    def bytes(self) -> dict[str, int]:
        """``dense_up``, ``payload_up``, ``frame_up`` and the same ``down`` and ``peer``, since this was made."""
        with self._lock:
            self._add_up()
            return {f"{size}_{way}": sums[i] for way, sums in self._bytes.items() for i, size in enumerate(SIZES)}

    def _add_up(self) -> None:
        waiting = self._waiting
        for _ in range(len(waiting)):  # only who holds the lock takes any away
            transfer = waiting.popleft()
            if transfer.kind not in _OWN:
                sums = self._bytes[transfer.direction]
                sums[0] += transfer.dense_bytes
                sums[1] += transfer.payload_bytes
                sums[2] += transfer.frame_bytes


#: Transfers that are added up at once: a lock for each of them would cost more than the sums.
_MOST_WAITING = 1024

#: As in :class:`~farshore.core.transfer.Transfer`, in bytes.
SIZES = ("dense", "payload", "frame")
