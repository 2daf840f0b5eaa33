"""What every request passes before a page sees it, and what every answer carries."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .sessions import Sessions

#: Scripts, styles and connections come from here only, and nothing is written into a page but data.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # without any, browsers would hide from us that a form is ours
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
#: The only two things that a browser may ask to be changed: its own session.
_WRITES = ("/login", "/logout")
_OPEN = ("/login", "/assets/")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class SecurityMiddleware:
    """Refuses foreign host names, foreign pages, writes, and whoever has not signed in.

    A page of another site cannot use a browser that runs here: one that had its name resolve to this machine (DNS
    rebinding) sends a ``Host`` that is not ours, and any other is told apart by ``Sec-Fetch-Site`` and ``Origin``.

    Parameters
    ----------
    app : ASGI application
    sessions : Sessions
    hosts : iterable of str
        Names that browsers may ask for, beside loopback; ``*`` = any address in figures, which no name server steers.
    secure : bool
        Whether it listens with TLS.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, hosts: Iterable[str], *, secure: bool) -> None:
        self._app = app
        self._sessions = sessions
        self._hosts = {*_LOOPBACK, *(host.lower() for host in hosts)}
        self._secure = secure

    @property
    def cookie(self) -> str:
        """The session cookie's name."""
        return "__Host-farshore" if self._secure else "farshore"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            answer = self._refusal(scope) or self._app
            await answer(scope, receive, self._with_headers(scope, send))
        # Nothing here speaks WebSocket: the server closes what nobody accepts.

    def session(self, headers: Headers) -> str:
        """The name of the session that a request shows, or empty."""
        try:
            found = SimpleCookie(headers.get("cookie", "")[:4096]).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        host = headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse("this dashboard does not answer to that name", 400)
        allowed = ("GET",) if path.startswith("/live/") else ("GET", "HEAD")
        if method not in allowed and not (method == "POST" and path in _WRITES):
            return PlainTextResponse("this dashboard only shows", 405, headers={"allow": ", ".join(allowed)})
        if _is_foreign(headers, host, method):
            return PlainTextResponse("not from another site", 403)
        if path.startswith(_OPEN) or not self._sessions.needed or self._sessions.valid(self.session(headers)):
            return None
        if path.startswith("/live/"):
            return PlainTextResponse("sign in", 401)
        return RedirectResponse("/login", 303)

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, _ = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            return False
        if name in self._hosts:
            return True
        return "*" in self._hosts and _is_address(name)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        return sending


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_foreign(headers: Headers, host: str, method: str) -> bool:
    """Whether a page of another site had the browser ask; following a link to us is no harm."""
    site = headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") and not (
        method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    ):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != host
