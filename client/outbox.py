"""Queue of events and log lines for the server that outlives a broken control stream."""

from __future__ import annotations

import asyncio
from collections import deque

from ..proto import control_pb2 as pb

_MAX_LINES = 5000
_LINES_PER_EVENT = 200


class Outbox:
    """Queues events and log lines in order; beyond a limit, the oldest log lines are dropped and counted.

    The last ``ProgramExited`` events are kept and sent again on a new stream, as they may have been lost with the old
    one; the server ignores duplicates of a (run, restart epoch).
    """

    def __init__(self) -> None:
        self._events: deque[pb.NodeEvent] = deque()
        self._lines: deque[tuple[str, str]] = deque()
        self._dropped = 0
        self._sent_exits: deque[pb.NodeEvent] = deque(maxlen=32)
        self._ready = asyncio.Event()

    def put(self, event: pb.NodeEvent) -> None:
        """Queue an event."""
        self._events.append(event)
        self._ready.set()

    def line(self, run_id: str, line: str) -> None:
        """Queue a line for a run's log."""
        if len(self._lines) >= _MAX_LINES:
            self._lines.popleft()
            self._dropped += 1
        self._lines.append((run_id, line))
        self._ready.set()

    def reopen(self) -> None:
        """Requeue the exit events that may have been lost with the previous stream."""
        self._events.extendleft(reversed(self._sent_exits))
        self._sent_exits.clear()
        if self._events or self._lines:
            self._ready.set()

    async def take(self) -> pb.NodeEvent:
        """Wait for the next event and remove it; log lines come before the exit event of their program."""
        while not self._events and not self._lines:
            self._ready.clear()
            await self._ready.wait()
        if self._lines:
            return pb.NodeEvent(log=self._take_lines())
        event = self._events.popleft()
        if event.WhichOneof("event") == "exited":
            self._sent_exits.append(event)
        return event

    def _take_lines(self) -> pb.LogLines:
        run_id = self._lines[0][0]
        batch = pb.LogLines(run_id=run_id)
        if self._dropped:
            batch.lines.append(f"({self._dropped} lines were lost while the server was unreachable)")
            self._dropped = 0
        while self._lines and self._lines[0][0] == run_id and len(batch.lines) < _LINES_PER_EVENT:
            batch.lines.append(self._lines.popleft()[1])
        return batch
