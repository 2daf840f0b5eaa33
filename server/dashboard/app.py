"""The dashboard's ASGI application: routes, templates, static files and sign-in behind the security middleware."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import hashlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from urllib.parse import parse_qs

from jinja2 import Environment
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ...core.address import is_loopback
from ...core.errors import FarshoreError
from ...reports.page import asset, environment, plotly_script
from ..rate_limit import RateLimit
from .formatting import FILTERS
from .middleware import SecurityMiddleware
from .options import TOKEN_FILE, DashboardOptions
from .pages import NODE_STATES, RUN_STATES, Pages, Values
from .sessions import Sessions
from .snapshot import SnapshotCache
from .sse import EventStream, Streams

_PACKAGE = "farshore.server.dashboard"
_MAX_FORM_BYTES = 4096
#: Parts of a page that its event stream updates, by page: name -> template.
_PARTS = {
    "runs": {"status": "status.html", "summary": "runs_summary.html", "list": "runs_list.html"},
    "nodes": {"status": "status.html", "summary": "nodes_summary.html", "list": "nodes_list.html"},
    "run": {
        "status": "status.html",
        "state": "run_state.html",
        "summary": "run_summary.html",
        "failures": "run_failures.html",
        "metrics": "run_metrics.html",
        "drawn": "charts.html",
        "nodes": "run_nodes.html",
        "details": "run_details.html",
    },
    "compare": {"status": "status.html", "comparison": "comparison_view.html"},
}


class Dashboard:
    """The dashboard application and its state.

    Parameters
    ----------
    options : DashboardOptions
    rate_limit : RateLimit, optional
        Limit of failed sign-ins; for tests.

    Raises
    ------
    MissingExtraError, NotFoundError, StorageError
        A required package is not installed, or the run store cannot be read.
    """

    def __init__(self, options: DashboardOptions, rate_limit: RateLimit | None = None) -> None:
        self._options = options
        self.snapshots = SnapshotCache(options)
        self.streams = Streams()
        self._pages = Pages(self.snapshots)
        self._templates = _templates()
        self._assets = _assets()
        self._sessions = Sessions(options.token())
        self._rate_limit = rate_limit or RateLimit()
        self._secure = options.tls_files() is not None
        own_hosts = () if is_loopback(options.host) else (options.host, socket.gethostname(), "*")
        self._middleware = SecurityMiddleware(
            self._starlette(), self._sessions, (*options.hostnames, *own_hosts), secure=self._secure
        )

    @property
    def application(self) -> ASGIApp:
        """The ASGI application, including the security middleware."""
        return self._middleware

    def _starlette(self) -> Starlette:
        pages = {"runs": "/runs", "nodes": "/nodes", "run": "/runs/{run}", "compare": "/compare"}
        routes = [Route("/", self._index)]
        for name, path in pages.items():
            load = getattr(self._pages, name)
            routes += [Route(path, self._page(name, load)), Route(f"/live{path}", self._stream(name, load))]
        routes += [
            Route("/login", self._sign_in, methods=["GET", "POST"]),
            Route("/logout", self._sign_out, methods=["POST"]),
            Route("/assets/{name}", self._asset),
        ]
        handlers = {HTTPException: self._on_http_error, FarshoreError: self._on_error, Exception: self._on_error}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.streams.end()
            await self.snapshots.close()

    # ---- pages ---------------------------------------------------------------------------------------------------

    async def _index(self, _: Request) -> Response:
        return RedirectResponse("/runs", 303)

    def _page(self, name: str, load: Callable[[Request], Awaitable[Values]]) -> Callable[..., Awaitable[Response]]:
        async def page(request: Request) -> Response:
            values = await load(request)
            query = f"?{request.url.query}" if request.url.query else ""
            live = f"/live{request.url.path}{query}"
            return self._render(f"{name}.html", {"live": live, **values, "page": name})

        return page

    def _stream(self, name: str, load: Callable[[Request], Awaitable[Values]]) -> Callable[..., Awaitable[EventStream]]:
        templates = {part: self._templates.get_template(file) for part, file in _PARTS[name].items()}

        async def stream(request: Request) -> EventStream:
            await load(request)  # errors such as an unknown run must be raised before the stream starts

            async def render_parts() -> Mapping[str, object]:
                values = {**await load(request), "page": name}
                parts = {f"part-{part}": template.render(**values) for part, template in templates.items()}
                return {**parts, **({"charts": values["data"]} if "data" in values else {})}

            return EventStream(self.streams, render_parts)

        return stream

    def _render(self, template: str, values: Mapping[str, object], status: int = 200) -> Response:
        defaults = {"live": "", "page": "", "signed_in": self._sessions.required, "snapshot": None}
        return HTMLResponse(self._templates.get_template(template).render(**{**defaults, **values}), status)

    async def _on_http_error(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return Response("this dashboard is read-only", 405, media_type="text/plain")
        return self._render("error.html", {"message": error.detail}, error.status_code)

    async def _on_error(self, _: Request, error: Exception) -> Response:
        message = error.message if isinstance(error, FarshoreError) else f"internal error: {type(error).__name__}"
        return self._render("error.html", {"message": message}, 500)

    # ---- static files --------------------------------------------------------------------------------------------

    async def _asset(self, request: Request) -> Response:
        found = self._assets.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "file not found")
        media_type, content, compressed, etag = found
        headers = {"etag": etag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(compressed, media_type=media_type, headers={**headers, "content-encoding": "gzip"})
        return Response(content, media_type=media_type, headers=headers)

    # ---- sign-in -------------------------------------------------------------------------------------------------

    async def _sign_in(self, request: Request) -> Response:
        if not self._sessions.required:
            return RedirectResponse("/runs", 303)
        values = {"file": TOKEN_FILE, "message": "", "page": "login"}
        if request.method != "POST":
            return self._render("login.html", values)
        peer = request.client.host if request.client else ""
        if (wait := self._rate_limit.blocked(peer)) > 0:
            message = f"too many failed attempts from this address; try again in {wait:.0f} s"
            return self._render("login.html", {**values, "message": message}, 429)
        session = self._sessions.open(await _form_value(request, "token"))
        if session is None:
            self._rate_limit.failed(peer)
            return self._render("login.html", {**values, "message": "wrong token"}, 403)
        response = RedirectResponse("/runs", 303)
        response.set_cookie(
            self._middleware.cookie, session, max_age=12 * 3600, httponly=True, samesite="strict", secure=self._secure
        )
        return response

    async def _sign_out(self, request: Request) -> Response:
        self._sessions.close(self._middleware.session(request.headers))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(self._middleware.cookie, httponly=True, samesite="strict", secure=self._secure)
        return response


async def _form_value(request: Request, name: str) -> str:
    """Read one field of a small form."""
    body = b""
    with contextlib.suppress(ClientDisconnect):
        async with asyncio.timeout(10):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_FORM_BYTES:
                    raise HTTPException(413, "form too large")
    return parse_qs(body.decode(errors="replace"), max_num_fields=10).get(name, [""])[0].strip()


def _templates() -> Environment:
    templates = environment(_PACKAGE, "farshore.reports")
    templates.filters |= FILTERS
    # plotly.js adds a style sheet for its maps unless an element of that id exists; the security policy forbids it.
    sheets = sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly_script())))
    templates.globals |= {"run_states": RUN_STATES, "node_states": NODE_STATES, "plotly_sheets": sheets}
    return templates


@functools.cache
def _assets() -> dict[str, tuple[str, bytes, bytes, str]]:
    """The static files: name -> media type, content, gzip-compressed content, etag."""
    style, script = "text/css", "text/javascript"
    texts = {
        "page.css": (style, asset("page.css")),
        "dashboard.css": (style, asset("dashboard.css", _PACKAGE, "assets")),
        "plotly.css": (style, "/* plotly.js inserts its rules here. */\n"),
        "charts.js": (script, asset("charts.js")),
        "strict.js": (script, asset("strict.js", _PACKAGE, "assets")),
        "dashboard.js": (script, asset("dashboard.js", _PACKAGE, "assets")),
        "plotly.js": (script, plotly_script()),
        "icon.svg": ("image/svg+xml", asset("icon.svg", _PACKAGE, "assets")),
    }
    found = {}
    for name, (media_type, text) in texts.items():
        content = text.encode()
        compressed = gzip.compress(content, 5, mtime=0)
        found[name] = (media_type, content, compressed, f'"{hashlib.sha256(content).hexdigest()[:24]}"')
    return found
