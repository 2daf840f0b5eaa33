"""What a run's own messages have cost so far, by direction and in the ledger's three sizes."""

from __future__ import annotations

import threading

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
        self._bytes = {"up": [0, 0, 0], "down": [0, 0, 0]}

    def record(self, transfer: Transfer) -> None:
        """Take one transfer."""
        self._recorder(transfer)
        if transfer.kind not in _OWN:
            with self._lock:
                sums = self._bytes[transfer.direction]
                sums[0] += transfer.dense_bytes
                sums[1] += transfer.payload_bytes
                sums[2] += transfer.frame_bytes

    def bytes(self) -> dict[str, int]:
        """``dense_up``, ``payload_up``, ``frame_up`` and the same ``down``, since this was made."""
        with self._lock:
            return {f"{size}_{way}": sums[i] for way, sums in self._bytes.items() for i, size in enumerate(SIZES)}


#: As in :class:`~farshore.core.transfer.Transfer`, in bytes.
SIZES = ("dense", "payload", "frame")
