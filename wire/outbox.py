"""Sent frames that the other program has not taken yet, kept in order for retransmission."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import WireError


@dataclass(slots=True)
class Outgoing:
    """A kept frame as chunks; the acknowledgement in its prefix is that of when it was made.

    Attributes
    ----------
    sent : bool
        Whether it has left on any connection.
    record : callable or None
        Called when it leaves for the first time.
    """

    sequence: int
    chunks: tuple[bytes, ...]
    frame_bytes: int
    sent: bool = False
    record: Callable[[], None] | None = None


class Outbox:
    """Frames by number, from 1. Not thread-safe: the channel's lock guards it.

    Parameters
    ----------
    window_bytes : int
        Most bytes of frames that have left and are not taken; one larger frame may be among them alone.
    """

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.bytes = 0
        #: Number of the next frame.
        self.next = 1
        #: Number of the last frame that the other program took.
        self.acknowledged = 0
        self._left_bytes = 0
        self._frames: deque[Outgoing] = deque()
        self._published: dict[str, Outgoing] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def fits(self, size: int) -> bool:
        """Whether a frame of ``size`` bytes may be put in now."""
        return not self._frames or self.bytes + size <= self.window_bytes

    def put(self, chunks: tuple[bytes, ...], size: int) -> None:
        """Keep the next frame."""
        self._append(Outgoing(self.next, chunks, size))

    def publish(self, key: str, chunks: tuple[bytes, ...], size: int, record: Callable[[], None]) -> None:
        """Keep the next frame, which a later one of the same key may supersede; there need not be room for it."""
        self._published[key] = frame = Outgoing(self.next, chunks, size, record=record)
        self._append(frame)

    def _append(self, frame: Outgoing) -> None:
        self._frames.append(frame)
        self.next += 1
        self.bytes += frame.frame_bytes

    def unsent(self, key: str) -> int | None:
        """Number of the published frame of ``key`` that has not left yet; None if there is none."""
        frame = self._published.get(key)
        return None if frame is None or frame.sent else frame.sequence

    def supersede(self, key: str, skip: bytes, record: Callable[[], None]) -> None:
        """Replace the unsent frame of ``key`` by a skip frame of the same number."""
        frame = self._published.pop(key)
        self.bytes += len(skip) - frame.frame_bytes
        frame.chunks, frame.frame_bytes, frame.record = (skip,), len(skip), record

    def at(self, sequence: int) -> Outgoing | None:
        """The frame with that number or, where it was taken, the first that was not; None if there is none."""
        if not self._frames:
            return None
        place = max(sequence - self._frames[0].sequence, 0)
        return self._frames[place] if place < len(self._frames) else None

    def may_leave(self, frame: Outgoing) -> bool:
        """Whether a frame fits in the window with those that have left; always true but for published frames."""
        return frame.sent or not self._left_bytes or self._left_bytes + frame.frame_bytes <= self.window_bytes

    def leave(self, frame: Outgoing) -> None:
        """Note that a frame leaves for the first time."""
        frame.sent = True
        self._left_bytes += frame.frame_bytes

    def taken(self, sequence: int) -> None:
        """Drop all frames up to ``sequence``: the other program took them.

        Raises
        ------
        WireError
            There never was such a frame.
        """
        if sequence >= self.next:
            raise WireError(f"frame {sequence} was acknowledged, which was never sent")
        self.acknowledged = max(self.acknowledged, sequence)
        while self._frames and self._frames[0].sequence <= sequence:
            frame = self._frames.popleft()
            self.bytes -= frame.frame_bytes
            self._left_bytes -= frame.frame_bytes if frame.sent else 0
