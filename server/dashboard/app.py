"""Puts the dashboard together: routes, templates, files, and the gate before them."""

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
from .sse import Live, Streams

_HERE = "farshore.server.dashboard"
_LONGEST_FORM = 4096
#: Parts of a page that streams renew: name -> template.
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
    "compare": {"status": "status.html", "compared": "compared.html"},
}


class Dashboard:
    """The application, and what it holds.

    Parameters
    ----------
    options : DashboardOptions
    failures : FailureLimit, optional
        Of sign-ins; for tests.

    Raises
    ------
    MissingExtraError, NotFoundError, StorageError
        Something that it needs is not installed, or the store cannot be read.
    """

    def __init__(self, options: DashboardOptions, failures: RateLimit | None = None) -> None:
        self._options = options
        self.watch = SnapshotCache(options)
        self.streams = Streams()
        self._pages = Pages(self.watch)
        self._templates = _templates()
        self._files = _files()
        self._sessions = Sessions(options.token())
        self._failures = failures or RateLimit()
        self._secure = options.pair() is not None
        everyone = () if is_loopback(options.host) else (options.host, socket.gethostname(), "*")
        self._gate = SecurityMiddleware(
            self._starlette(), self._sessions, (*options.hostnames, *everyone), secure=self._secure
        )

    @property
    def application(self) -> ASGIApp:
        """What a web server calls."""
        return self._gate

    def _starlette(self) -> Starlette:
        pages = {"runs": "/runs", "nodes": "/nodes", "run": "/runs/{run}", "compare": "/compare"}
        routes = [Route("/", self._home)]
        for name, path in pages.items():
            gather = getattr(self._pages, name)
            routes += [Route(path, self._page(name, gather)), Route(f"/live{path}", self._stream(name, gather))]
        routes += [
            Route("/login", self._sign_in, methods=["GET", "POST"]),
            Route("/logout", self._sign_out, methods=["POST"]),
            Route("/assets/{name}", self._file),
        ]
        handlers = {HTTPException: self._refused, FarshoreError: self._failed, Exception: self._failed}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._life)

    @contextlib.asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.streams.end()
            await self.watch.close()

    # ---- pages ---------------------------------------------------------------------------------------------------

    async def _home(self, _: Request) -> Response:
        return RedirectResponse("/runs", 303)

    def _page(self, name: str, gather: Callable[[Request], Awaitable[Values]]) -> Callable[..., Awaitable[Response]]:
        async def page(request: Request) -> Response:
            values = await gather(request)
            query = f"?{request.url.query}" if request.url.query else ""
            live = f"/live{request.url.path}{query}"
            return self._answer(f"{name}.html", {"live": live, **values, "here": name})

        return page

    def _stream(self, name: str, gather: Callable[[Request], Awaitable[Values]]) -> Callable[..., Awaitable[Live]]:
        templates = {part: self._templates.get_template(file) for part, file in _PARTS[name].items()}

        async def stream(request: Request) -> Live:
            await gather(request)  # a run that is not there is told so, before the stream begins

            async def look() -> Mapping[str, object]:
                values = {**await gather(request), "here": name}
                parts = {f"part-{part}": template.render(**values) for part, template in templates.items()}
                return {**parts, **({"charts": values["data"]} if "data" in values else {})}

            return Live(self.streams, look)

        return stream

    def _answer(self, template: str, values: Mapping[str, object], status: int = 200) -> Response:
        common = {"live": "", "here": "", "signed_in": self._sessions.needed, "snapshot": None}
        return HTMLResponse(self._templates.get_template(template).render(**{**common, **values}), status)

    async def _refused(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return Response("this dashboard only shows", 405, media_type="text/plain")
        return self._answer("error.html", {"what": error.detail}, error.status_code)

    async def _failed(self, _: Request, error: Exception) -> Response:
        what = error.message if isinstance(error, FarshoreError) else f"internal error: {type(error).__name__}"
        return self._answer("error.html", {"what": what}, 500)

    # ---- files ---------------------------------------------------------------------------------------------------

    async def _file(self, request: Request) -> Response:
        found = self._files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "there is no such file")
        kind, plain, packed, tag = found
        headers = {"etag": tag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, media_type=kind, headers={**headers, "content-encoding": "gzip"})
        return Response(plain, media_type=kind, headers=headers)

    # ---- signing in ----------------------------------------------------------------------------------------------

    async def _sign_in(self, request: Request) -> Response:
        if not self._sessions.needed:
            return RedirectResponse("/runs", 303)
        values = {"file": TOKEN_FILE, "what": "", "here": "login"}
        if request.method != "POST":
            return self._answer("login.html", values)
        peer = request.client.host if request.client else ""
        if (wait := self._failures.blocked(peer)) > 0:
            what = f"too many wrong tokens from here; wait {wait:.0f} s"
            return self._answer("login.html", {**values, "what": what}, 429)
        session = self._sessions.open(await _form_value(request, "token"))
        if session is None:
            self._failures.failed(peer)
            return self._answer("login.html", {**values, "what": "that is not the token"}, 403)
        answer = RedirectResponse("/runs", 303)
        answer.set_cookie(
            self._gate.cookie, session, max_age=12 * 3600, httponly=True, samesite="strict", secure=self._secure
        )
        return answer

    async def _sign_out(self, request: Request) -> Response:
        self._sessions.close(self._gate.session(request.headers))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self._gate.cookie, httponly=True, samesite="strict", secure=self._secure)
        return answer


async def _form_value(request: Request, name: str) -> str:
    """One field of a small form."""
    body = b""
    with contextlib.suppress(ClientDisconnect):
        async with asyncio.timeout(10):
            async for piece in request.stream():
                body += piece
                if len(body) > _LONGEST_FORM:
                    raise HTTPException(413, "that is too long")
    return parse_qs(body.decode(errors="replace"), max_num_fields=10).get(name, [""])[0].strip()


def _templates() -> Environment:
    made = environment(_HERE, "farshore.reports")
    made.filters |= FILTERS
    # Plotly's script adds a style sheet for its maps, which the policy would refuse aloud, unless one is there.
    sheets = sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly_script())))
    made.globals |= {"run_states": RUN_STATES, "node_states": NODE_STATES, "plotly_sheets": sheets}
    return made


@functools.cache
def _files() -> dict[str, tuple[str, bytes, bytes, str]]:
    """Every file that a browser may ask for: name -> kind, content, the same packed, and its tag."""
    style, script = "text/css", "text/javascript"
    texts = {
        "page.css": (style, asset("page.css")),
        "dashboard.css": (style, asset("dashboard.css", _HERE, "assets")),
        "plotly.css": (style, "/* Plotly's script puts its rules here. */\n"),
        "charts.js": (script, asset("charts.js")),
        "strict.js": (script, asset("strict.js", _HERE, "assets")),
        "dashboard.js": (script, asset("dashboard.js", _HERE, "assets")),
        "plotly.js": (script, plotly_script()),
        "icon.svg": ("image/svg+xml", asset("icon.svg", _HERE, "assets")),
    }
    found = {}
    for name, (kind, text) in texts.items():
        plain = text.encode()
        packed = gzip.compress(plain, 5, mtime=0)
        found[name] = (kind, plain, packed, f'"{hashlib.sha256(plain).hexdigest()[:24]}"')
    return found
