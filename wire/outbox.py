"""What was sent and is not taken yet: frames as they left, kept in order for as long as a connection may lose them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..core.errors import WireError


@dataclass(slots=True)
class Outgoing:
    """A frame that is kept, as it leaves; its acknowledgement is that of when it was made."""

    sequence: int
    chunks: tuple[bytes, ...]
    frame_bytes: int
    sent: bool = False


class Outbox:
    """Frames by number, from 1. Not thread-safe: the channel's lock guards it.

    Parameters
    ----------
    window_bytes : int
        Most bytes that it holds; one larger frame may be in it alone.
    """

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.bytes = 0
        #: Number of the next frame.
        self.next = 1
        #: Number of the last frame that the other program took.
        self.acknowledged = 0
        self._frames: deque[Outgoing] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def fits(self, size: int) -> bool:
        """Whether a frame of ``size`` bytes may be put in now."""
        return not self._frames or self.bytes + size <= self.window_bytes

    def put(self, chunks: tuple[bytes, ...], size: int) -> None:
        """Keep the next frame."""
        self._frames.append(Outgoing(self.next, chunks, size))
        self.next += 1
        self.bytes += size

    def at(self, sequence: int) -> Outgoing | None:
        """The frame with that number or, where that was taken, the first that was not; None if there is none."""
        if not self._frames:
            return None
        place = max(sequence - self._frames[0].sequence, 0)
        return self._frames[place] if place < len(self._frames) else None

    def taken(self, sequence: int) -> None:
        """The other program took all frames up to ``sequence``.

        Raises
        ------
        WireError
            There never was such a frame.
        """
        if sequence >= self.next:
            raise WireError(f"frame {sequence} was acknowledged, which was never sent")
        self.acknowledged = max(self.acknowledged, sequence)
        while self._frames and self._frames[0].sequence <= sequence:
            self.bytes -= self._frames.popleft().frame_bytes
