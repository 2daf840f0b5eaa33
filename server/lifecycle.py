"""Server lifecycle: open the ports, requeue waiting runs, serve until stopped, release all resources."""

from __future__ import annotations

import asyncio
import logging
import signal

from ..core.errors import PortInUseError
from .dashboard_child import DashboardChild
from .grpc_server import GrpcServer
from .metrics_port import MetricsPort
from .options import OnReady, ServeOptions, ServerReady
from .orchestrator import Orchestrator
from .server_log import server_log

_log = logging.getLogger(__name__)


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
            dashboard_url, problem = await _start_dashboard(dashboard)
            if on_ready is not None:
                on_ready(_ready(orchestrator, server, token, metrics.address, dashboard_url, problem))
            await stopping.wait()
        finally:
            await server.stop_listening()  # nodes whose streams end must not connect again
            await asyncio.gather(orchestrator.stop(), *([dashboard.stop()] if dashboard else []))
            await server.close()
    finally:
        await metrics.close()


async def _start_dashboard(dashboard: DashboardChild | None) -> tuple[str, str]:
    """Return the dashboard's URL, or why it is not served: its port is no reason not to serve nodes and runs."""
    if dashboard is None:
        return "", ""
    try:
        return await dashboard.start(), ""
    except PortInUseError as error:
        _log.warning("%s", error)
        return "", f"{error.message.partition(' – ')[0]}; choose another port with --dashboard-port"


def _ready(
    orchestrator: Orchestrator, server: GrpcServer, token: str, metrics: str, dashboard: str, problem: str
) -> ServerReady:
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
        problem,
    )
