"""Sign-in sessions of the dashboard: random ids in memory that expire after 12 hours."""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

_LIFETIME = 12 * 3600.0
_MAX_SESSIONS = 256


class Sessions:
    """Sessions that were opened with the sign-in token.

    Parameters
    ----------
    token : str
        The sign-in token; empty: no sign-in is required.
    clock : callable
        Monotonic seconds; for tests.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._expiry: OrderedDict[str, float] = OrderedDict()

    @property
    def required(self) -> bool:
        """Whether sign-in is required."""
        return bool(self._token)

    def open(self, token: str) -> str | None:
        """Open a session and return its id, or None if ``token`` is wrong; compares in constant time.

        Beyond 256 sessions, the oldest one is closed.
        """
        if not self._token or not hmac.compare_digest(token.encode(errors="replace"), self._token.encode()):
            return None
        session_id = secrets.token_urlsafe(32)
        self._expiry[session_id] = self._clock() + _LIFETIME
        while len(self._expiry) > _MAX_SESSIONS:
            self._expiry.popitem(last=False)
        return session_id

    def valid(self, session_id: str) -> bool:
        """Whether the session is open."""
        return self._expiry.get(session_id, 0.0) > self._clock()

    def close(self, session_id: str) -> None:
        """Close a session."""
        self._expiry.pop(session_id, None)
