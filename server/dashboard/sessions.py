"""Who is signed in: random names in memory, each for half a day. Nothing about them survives the process."""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

_SECONDS = 12 * 3600.0
_MOST = 256


class Sessions:
    """Sessions of those who showed the token.

    Parameters
    ----------
    token : str
        What has to be shown; empty = nobody has to.
    clock : callable
        Monotonic seconds; for tests.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()

    @property
    def needed(self) -> bool:
        """Whether one has to sign in at all."""
        return bool(self._token)

    def open(self, token: str) -> str | None:
        """A new session's name for whoever shows the token, compared in constant time; None for others.

        The oldest of more than 256 sessions ends.
        """
        if not self._token or not hmac.compare_digest(token.encode(errors="replace"), self._token.encode()):
            return None
        name = secrets.token_urlsafe(32)
        self._until[name] = self._clock() + _SECONDS
        while len(self._until) > _MOST:
            self._until.popitem(last=False)
        return name

    def valid(self, name: str) -> bool:
        """Whether that session is open."""
        return self._until.get(name, 0.0) > self._clock()

    def close(self, name: str) -> None:
        """End a session."""
        self._until.pop(name, None)
