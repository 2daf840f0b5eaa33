"""Running byte counts of a run, by direction and kind; the ledger has the exact account."""

from __future__ import annotations

import threading
from collections import defaultdict, deque

from ..core.transfer import Recorder, Transfer

#: Kinds that channels send on their own account; no method asked for them.
CHANNEL_KINDS = ("ack", "bye", "heartbeat", "hello", "retransmission", "skip")

_OWN = frozenset(CHANNEL_KINDS)
_DIRECTIONS = ("up", "down", "peer")

#: As in :class:`~farshore.core.transfer.Transfer`, in bytes.
SIZES = ("dense", "payload", "frame")

#: Transfers that are added up at once: a lock for each of them would cost more than the sums.
_MOST_WAITING = 1024

#: Kinds that are counted one by one, in all directions, and the name under which further ones are: peers choose names.
_MOST_KINDS, OTHER = 256, "other"


class Traffic:
    """Pass transfers on and count their bytes; any thread may record.

    Parameters
    ----------
    recorder : callable
        Where the transfers go.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        self._waiting: deque[Transfer] = deque()

    def record(self, transfer: Transfer) -> None:
        """Count one transfer."""
        self._recorder(transfer)
        self._waiting.append(transfer)
        if len(self._waiting) >= _MOST_WAITING:
            with self._lock:
                self._add_up()

    def bytes(self) -> dict[str, int]:
        """Bytes of the methods' own messages since this was made.

        The keys are ``dense_up``, ``payload_up``, ``frame_up`` and the same for ``down`` and ``peer``.
        """
        with self._lock:
            self._add_up()
            return self._by_direction(without=_OWN)

    def progress(self) -> dict[str, int]:
        """Payload and frame bytes of all messages, up and down, as progress lines show them."""
        with self._lock:
            self._add_up()
            every = self._by_direction()
        return {name: every[name] for name in ("payload_up", "payload_down", "frame_up", "frame_down")}

    def kinds(self) -> dict[str, dict[str, int]]:
        """Frame bytes of all messages: direction -> kind -> bytes."""
        found: dict[str, dict[str, int]] = {way: {} for way in _DIRECTIONS}
        with self._lock:
            self._add_up()
            for (way, kind), sums in self._sums.items():
                found[way][kind] = sums[2]
        return found

    def _by_direction(self, without: frozenset[str] = frozenset()) -> dict[str, int]:
        found = {f"{size}_{way}": 0 for way in _DIRECTIONS for size in SIZES}
        for (way, kind), sums in self._sums.items():
            if kind not in without:
                for size, count in zip(SIZES, sums, strict=True):
                    found[f"{size}_{way}"] += count
        return found

    def _add_up(self) -> None:
        waiting = self._waiting
        for _ in range(len(waiting)):  # only the holder of the lock removes any
            transfer = waiting.popleft()
            place = transfer.direction, transfer.kind
            if place not in self._sums and len(self._sums) >= _MOST_KINDS:
                place = transfer.direction, OTHER
            sums = self._sums[place]
            sums[0] += transfer.dense_bytes
            sums[1] += transfer.payload_bytes
            sums[2] += transfer.frame_bytes
