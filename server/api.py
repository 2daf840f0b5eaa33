"""Public interface of the server package: ``serve(options, on_ready)``.

It blocks until SIGTERM or SIGINT, then stops every run process and returns within five seconds. It prints nothing;
``on_ready`` is called with a :class:`~farshore.server.options.ServerReady` as soon as the port is open.

To connect, the operator on the same machine needs three files in the server's home: ``address`` (``host:port``; exists
while the server runs), ``certificate.pem`` (root certificate, to be verified against the name ``farshore-server``;
absent without TLS) and ``operator.token``. Other submitters get a copy of ``admin.token``.
"""

from __future__ import annotations

import asyncio
import os

from ..core.descriptors import raise_limit
from .options import OnReady, ServeOptions, ServerReady

__all__ = ["OnReady", "ServeOptions", "ServerReady", "serve"]


def serve(options: ServeOptions, on_ready: OnReady | None = None) -> None:
    """Run a server until SIGTERM or SIGINT.

    Raises
    ------
    PortInUseError
        Another program listens on the port.
    RefusedError
        ``insecure`` with a host other than loopback, or another server uses the home.
    ConfigError, StorageError
        A certificate, the home or the run store cannot be used.
    """
    # gRPC's own log repeats, in several lines, what farshore's errors say in one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from .lifecycle import run_server

    raise_limit()
    asyncio.run(run_server(options, on_ready))
