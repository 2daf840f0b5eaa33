"""ASGI middleware of the dashboard: host and origin checks, read-only methods, sign-in, and security headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .sessions import Sessions

#: Scripts, styles and connections only from the dashboard itself; no inline code.
CONTENT_SECURITY_POLICY = "; ".join(
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
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # "no-referrer" would make browsers post our own forms with "origin: null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
#: The only paths that accept POST: they open and close the browser's own session.
_POST_PATHS = ("/login", "/logout")
#: Path prefixes that need no session.
_PUBLIC_PATHS = ("/login", "/assets/")
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


class SecurityMiddleware:
    """Rejects requests with unknown host names, from other sites, with writing methods, or without a session.

    Pages of other sites cannot use a browser on this machine to read the dashboard: DNS rebinding is detected by the
    ``Host`` header, other cross-site requests by ``Sec-Fetch-Site`` and ``Origin``. All responses get security headers.

    Parameters
    ----------
    app : ASGI application
    sessions : Sessions
    hosts : iterable of str
        Accepted host names in addition to loopback; ``*`` accepts any IP address, which DNS rebinding cannot forge.
    secure : bool
        Whether the server uses TLS.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, hosts: Iterable[str], *, secure: bool) -> None:
        self._app = app
        self._sessions = sessions
        self._hosts = {*_LOOPBACK_HOSTS, *(host.lower() for host in hosts)}
        self._secure = secure

    @property
    def cookie(self) -> str:
        """Name of the session cookie."""
        return "__Host-farshore" if self._secure else "farshore"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            handler = self._rejection(scope) or self._app
            await handler(scope, receive, self._with_headers(scope, send))
        # WebSocket connections are not accepted; the server closes them.

    def session(self, headers: Headers) -> str:
        """Id of the session in the request's cookie, or an empty string."""
        try:
            found = SimpleCookie(headers.get("cookie", "")[:4096]).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _rejection(self, scope: Scope) -> Response | None:
        """Response that rejects the request, or None to accept it."""
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        host = headers.get("host", "")
        if not self._is_allowed_host(host):
            return PlainTextResponse("unknown host name", 400)
        allowed = ("GET",) if path.startswith("/live/") else ("GET", "HEAD")
        if method not in allowed and not (method == "POST" and path in _POST_PATHS):
            return PlainTextResponse("this dashboard is read-only", 405, headers={"allow": ", ".join(allowed)})
        if _is_cross_site(headers, host, method):
            return PlainTextResponse("cross-site requests are not allowed", 403)
        if path.startswith(_PUBLIC_PATHS) or not self._sessions.required or self._sessions.valid(self.session(headers)):
            return None
        if path.startswith("/live/"):
            return PlainTextResponse("sign-in required", 401)
        return RedirectResponse("/login", 303)

    def _is_allowed_host(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, _ = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            return False
        if name in self._hosts:
            return True
        return "*" in self._hosts and _is_address(name)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        return send_with_headers


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_cross_site(headers: Headers, host: str, method: str) -> bool:
    """Whether a page of another site caused the request; plain navigation by a link is allowed."""
    site = headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") and not (
        method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    ):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != host
