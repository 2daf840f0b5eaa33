"""Serves the dashboard with uvicorn until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.address import join_address
from ...core.descriptors import raise_limit
from ...core.errors import MissingExtraError, PortInUseError
from .idle import idle_limiting_protocol
from .options import DashboardOptions

if TYPE_CHECKING:
    import uvicorn

    from .app import Dashboard

_REQUIRED = ("starlette", "uvicorn", "jinja2", "plotly", "pyarrow", "sqlalchemy")
#: Maximum number of concurrent connections and requests.
_MAX_CONNECTIONS = 128


def check_installed() -> None:
    """Check that the required packages are installed.

    Raises
    ------
    MissingExtraError
        A package of the extra ``dashboard`` is missing.
    """
    for name in _REQUIRED:
        if find_spec(name) is None:
            raise MissingExtraError(name, "dashboard")


def serve_dashboard(options: DashboardOptions, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Parameters
    ----------
    options : DashboardOptions
    on_ready : callable
        Called with the URL once the socket listens.

    Raises
    ------
    MissingExtraError, NotFoundError, StorageError
        See :class:`~farshore.server.dashboard.app.Dashboard`.
    PortInUseError
        Another program listens on the port.
    ConfigError, RefusedError
        See :meth:`DashboardOptions.tls_files`.
    """
    check_installed()
    raise_limit()
    tls_files = options.tls_files()
    listener = _listener(options)

    async def serve() -> None:
        from .app import Dashboard

        dashboard = Dashboard(options)
        server = _server(dashboard, tls_files)
        on_ready(_url(options, listener, secure=tls_files is not None))
        await server.serve(sockets=[listener])

    with listener:
        asyncio.run(serve())


def _listener(options: DashboardOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=_MAX_CONNECTIONS)
    except OSError as error:
        raise PortInUseError(
            f"cannot listen on {join_address(options.host, options.port)} for the dashboard: {error.strerror}",
            hint="choose another port, or stop the other program",
        ) from error


def _server(dashboard: Dashboard, tls_files: tuple[Path, Path] | None) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """Ends the event streams before shutdown waits for open requests."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            dashboard.streams.end()
            await super().shutdown(sockets)

    certificate, key = tls_files or (None, None)
    config = uvicorn.Config(
        dashboard.application,
        http=idle_limiting_protocol(),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16 << 10,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    return Server(config)


def _url(options: DashboardOptions, listener: socket.socket, *, secure: bool) -> str:
    all_interfaces = options.host in ("0.0.0.0", "::")  # noqa: S104 – compared, not bound
    host = socket.gethostname() if all_interfaces else options.host
    return f"{'https' if secure else 'http'}://{join_address(host, listener.getsockname()[1])}/"
