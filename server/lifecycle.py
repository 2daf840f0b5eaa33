"""A server's life: open the port, take up the runs that waited, serve until told to stop, leave nothing behind."""

from __future__ import annotations

import asyncio
import signal

from .dashboard_child import DashboardChild
from .grpc_server import GrpcServer
from .metrics_port import MetricsPort
from .options import OnReady, ServeOptions, ServerReady
from .orchestrator import Orchestrator
from .server_log import server_log


async def live(options: ServeOptions, on_ready: OnReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is told once the port is open.

    Raises
    ------
    As :func:`farshore.server.api.serve`.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    orchestrator = Orchestrator(options)
    try:
        with server_log(options.home):
            await _serve(orchestrator, options, on_ready, stopping)
    finally:
        orchestrator.release()


async def _serve(
    orchestrator: Orchestrator, options: ServeOptions, on_ready: OnReady | None, stopping: asyncio.Event
) -> None:
    port, metrics = GrpcServer(orchestrator), MetricsPort(orchestrator)
    dashboard = DashboardChild(options.dashboard) if options.dashboard else None
    try:
        metrics.open()
        await port.open()
        try:
            # At once: runs come in from now on, and it takes those under way for runs of an earlier start.
            token = orchestrator.begin()
            shown = await dashboard.start() if dashboard else ""
            if on_ready is not None:
                on_ready(_ready(orchestrator, port, token, metrics.address, shown))
            await stopping.wait()
        finally:
            await asyncio.gather(orchestrator.end(), *([dashboard.stop()] if dashboard else []))
            await port.close()
    finally:
        await metrics.close()


def _ready(orchestrator: Orchestrator, port: GrpcServer, token: str, metrics: str, dashboard: str) -> ServerReady:
    identity = orchestrator.identity
    return ServerReady(
        port.address,
        port.number,
        identity.fingerprint,
        token,
        identity.admin_token_file,
        identity.certificate_file,
        identity.home,
        metrics,
        dashboard,
    )
