"""The server room's front door.

``serve(options, on_ready)`` blocks until SIGTERM or SIGINT, then stops every run process and returns within five
seconds. It prints nothing; ``on_ready`` gets a :class:`~farshore.server.options.ServerReady` as soon as the port is
open. Its operator, at the same machine, needs three files of the home only: ``address`` (``host:port``; there while
the server runs), ``certificate.pem`` (root to dial with, the name to verify is ``farshore-server``; absent without
TLS) and ``operator.token``. Other submitters get a copy of ``admin.token``.
"""

from __future__ import annotations

import asyncio
import os

from .options import OnReady, ServeOptions, ServerReady

__all__ = ["OnReady", "ServeOptions", "ServerReady", "serve"]


def serve(options: ServeOptions, on_ready: OnReady | None = None) -> None:
    """Run a server until it is told to stop.

    Raises
    ------
    PortInUseError
        Another program listens on the port.
    RefusedError
        ``insecure`` off loopback.
    ConfigError, StorageError
        A certificate, the home or the run store cannot be used.
    """
    # gRPC's own log says in another way, and in several lines, what our errors say in one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from .lifecycle import live

    asyncio.run(live(options, on_ready))
