"""Serves a dashboard until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.address import join_address
from ...core.errors import MissingExtraError, PortInUseError
from .options import DashboardOptions

if TYPE_CHECKING:
    import uvicorn

    from .app import Dashboard

_NEEDED = ("starlette", "uvicorn", "jinja2", "plotly", "pyarrow", "sqlalchemy")
#: Connections, and requests of them under way, at a time.
_CONNECTIONS = 128


def check_installed() -> None:
    """Make sure that the packages are there.

    Raises
    ------
    MissingExtraError
    """
    for name in _NEEDED:
        if find_spec(name) is None:
            raise MissingExtraError(name, "dashboard")


def serve_dashboard(options: DashboardOptions, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is told the address to open in a browser.

    Raises
    ------
    MissingExtraError, NotFoundError, StorageError
        See :class:`~farshore.server.dashboard.app.Dashboard`.
    PortInUseError
        Another program listens on the port.
    ConfigError, RefusedError
        See :meth:`DashboardOptions.pair`.
    """
    check_installed()
    pair = options.pair()
    listener = _listener(options)

    async def serve() -> None:
        from .app import Dashboard

        dashboard = Dashboard(options)
        server = _server(dashboard, pair)
        on_ready(_address(options, listener, secure=pair is not None))
        await server.serve(sockets=[listener])

    with listener:
        asyncio.run(serve())


def _listener(options: DashboardOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise PortInUseError(
            f"cannot listen on {join_address(options.host, options.port)} for the dashboard: {error.strerror}",
            hint="choose another port, or stop the other program",
        ) from error


def _server(dashboard: Dashboard, pair: tuple[Path, Path] | None) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """Streams end before the server waits for requests under way."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            dashboard.streams.end()
            await super().shutdown(sockets)

    certificate, key = pair or (None, None)
    config = uvicorn.Config(
        dashboard.application,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16 << 10,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    return Server(config)


def _address(options: DashboardOptions, listener: socket.socket, *, secure: bool) -> str:
    everywhere = options.host in ("0.0.0.0", "::")  # noqa: S104 – compared, not bound
    host = socket.gethostname() if everywhere else options.host
    return f"{'https' if secure else 'http'}://{join_address(host, listener.getsockname()[1])}/"
