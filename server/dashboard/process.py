"""A server's dashboard in a process of its own, ``farshore.server.dashboard.process``, spawned by the server."""

from __future__ import annotations

import logging
import os
import signal
import sys

from ...core.processes import Json, Parent
from .options import DashboardOptions
from .serving import serve_dashboard

#: Whoever looks must not take a core away from those who work.
_NICE = 5


def main() -> int:
    """Serve what the server asks for; returns the exit code."""
    parent = Parent.find()
    options = DashboardOptions.of(parent.first()["options"])
    os.nice(_NICE)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    def on_message(message: Json) -> None:
        if message.get("type") == "stop":
            os.kill(os.getpid(), signal.SIGTERM)

    parent.listen(on_message)
    try:
        serve_dashboard(options, lambda address: parent.send({"type": "ready", "address": address}))
    except Exception as error:
        return int(parent.failed(error))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Looks under way in threads must not keep it alive.
    os._exit(code)
