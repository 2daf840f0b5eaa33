"""The budget of a node's control stream: messages and bytes per second, then back-pressure, then dismissal."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.errors import RefusedError
from ..core.token_bucket import TokenBucket
from ..proto import control_pb2 as pb

#: Messages and bytes per second, and bursts of them. An agent sends its log lines at a fraction of this.
_MESSAGES, _MESSAGE_BURST = 100.0, 1_000.0
_BYTES, _BYTE_BURST = float(2 << 20), float(16 << 20)
#: Log lines that count as one message, most messages as which they count (the log takes only so many lines of one),
#: and the messages as which a request to open a run counts.
_LINES_PER_MESSAGE, _MOST_LINE_MESSAGES, _OPEN_MESSAGES = 100, 200, 50
#: Seconds over the budget, without a pause, after which a node is dismissed.
DISMISS_SECONDS = 20.0


class StreamBudget:
    """Accounts the events of one control stream.

    Parameters
    ----------
    node : str
        Its name, for errors.
    clock : callable
        Returns monotonic seconds; replaceable in tests.
    """

    def __init__(self, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._node, self._clock = node, clock
        self._messages = TokenBucket(_MESSAGES, _MESSAGE_BURST, clock)
        self._bytes = TokenBucket(_BYTES, _BYTE_BURST, clock)
        self._over_since: float | None = None

    def spend(self, event: pb.NodeEvent) -> float:
        """Account an event; returns the seconds for which nothing more must be read.

        Raises
        ------
        RefusedError
            The node has used up its budget for ``DISMISS_SECONDS``, without a pause in which it recovers.
        """
        messages = 1 + min(len(event.log.lines) / _LINES_PER_MESSAGE, _MOST_LINE_MESSAGES)
        if event.WhichOneof("event") == "open":
            messages = _OPEN_MESSAGES
        wait = max(self._messages.spend(messages), self._bytes.spend(event.ByteSize()))
        now = self._clock()
        if self._messages.recovered and self._bytes.recovered:
            self._over_since = None
        elif self._over_since is None:
            self._over_since = now if wait else None
        elif now - self._over_since > DISMISS_SECONDS:
            raise RefusedError(
                f"node {self._node} sent more than {_MESSAGES:.0f} messages or {_BYTES / 1e6:.0f} MB per second "
                f"for {DISMISS_SECONDS:.0f} s"
            )
        return wait
