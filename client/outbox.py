"""Queue of events and log lines for the server that outlives a broken control stream."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from ..core.bounds import MAX_ERROR, MAX_LINE, MAX_TRACEBACK, cut, cut_start
from ..core.token_bucket import TokenBucket
from ..proto import control_pb2 as pb

_MAX_LINES = 5000
_LINES_PER_EVENT, _CHARACTERS = 200, 128 << 10
#: Batches of lines and their bytes per second, and bursts of them: a fraction of what the server accepts of a node.
_BATCHES, _BATCH_BURST = 20.0, 100.0
_BYTES, _BYTE_BURST = float(512 << 10), float(4 << 20)


class Outbox:
    """Queues events and log lines in order; beyond a limit, the oldest log lines are dropped and counted.

    Log lines leave at a bounded rate, so that a program that prints in a loop does not flood the server.

    The last ``ProgramExited`` events are kept and sent again on a new stream, as they may have been lost with the old
    one; the server ignores duplicates of a (run, restart epoch).
    """

    def __init__(self) -> None:
        self._events: deque[pb.NodeEvent] = deque()
        self._lines: deque[tuple[str, str]] = deque()
        self._dropped = 0
        self._sent_exits: deque[pb.NodeEvent] = deque(maxlen=32)
        self._ready = asyncio.Event()
        self._batches = TokenBucket(_BATCHES, _BATCH_BURST)
        self._bytes = TokenBucket(_BYTES, _BYTE_BURST)
        self._paid_at = 0.0

    def put(self, event: pb.NodeEvent) -> None:
        """Queue an event; too long texts of an exit event are cut."""
        if event.WhichOneof("event") == "exited":
            event.exited.error = cut(event.exited.error, MAX_ERROR)
            event.exited.traceback = cut_start(event.exited.traceback, MAX_TRACEBACK)
        self._events.append(event)
        self._ready.set()

    def line(self, run_id: str, line: str) -> None:
        """Queue a line for a run's log."""
        if len(self._lines) >= _MAX_LINES:
            self._lines.popleft()
            self._dropped += 1
        self._lines.append((run_id, cut(line, MAX_LINE)))
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
        while self._lines and (wait := self._paid_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self._lines:
            event = pb.NodeEvent(log=self._take_lines())
            self._paid_at = time.monotonic() + max(self._batches.spend(1.0), self._bytes.spend(event.ByteSize()))
            return event
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
        size = 0
        while (
            self._lines and self._lines[0][0] == run_id and len(batch.lines) < _LINES_PER_EVENT and size < _CHARACTERS
        ):
            line = self._lines.popleft()[1]
            batch.lines.append(line)
            size += len(line)
        return batch
