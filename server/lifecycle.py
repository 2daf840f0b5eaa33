"""Server lifecycle: open the ports, requeue waiting runs, serve until stopped, release all resources."""

from __future__ import annotations

import asyncio
import signal

from .dashboard_child import DashboardChild
from .grpc_server import GrpcServer
from .metrics_port import MetricsPort
from .options import OnReady, ServeOptions, ServerReady
from .orchestrator import Orchestrator
from .server_log import server_log


async def run_server(options: ServeOptions, on_ready: OnReady | None = None) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is called once the port is open.

    Raises the errors of :func:`farshore.server.api.serve`.
    """
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    orchestrator = Orchestrator(options)
    try:
        with server_log(options.home):
            await _serve(orchestrator, options, on_ready, stopping)
    finally:
        orchestrator.release()


async def _serve(
    orchestrator: Orchestrator, options: ServeOptions, on_ready: OnReady | None, stopping: asyncio.Event
) -> None:
    server, metrics = GrpcServer(orchestrator), MetricsPort(orchestrator)
    dashboard = DashboardChild(options.dashboard) if options.dashboard else None
    try:
        metrics.open()
        await server.open()
        try:
            # Before any await: it marks unfinished runs as interrupted, which must not hit newly submitted ones.
            token = orchestrator.start()
            dashboard_url = await dashboard.start() if dashboard else ""
            if on_ready is not None:
                on_ready(_ready(orchestrator, server, token, metrics.address, dashboard_url))
            await stopping.wait()
        finally:
            await asyncio.gather(orchestrator.stop(), *([dashboard.stop()] if dashboard else []))
            await server.close()
    finally:
        await metrics.close()


def _ready(orchestrator: Orchestrator, server: GrpcServer, token: str, metrics: str, dashboard: str) -> ServerReady:
    identity = orchestrator.identity
    return ServerReady(
        server.address,
        server.port,
        identity.fingerprint,
        token,
        identity.admin_token_file,
        identity.certificate_file,
        identity.home,
        metrics,
        dashboard,
        server.addresses,
    )
