"""Entry point of the dashboard process, ``farshore.server.dashboard.process``, which the server starts."""

from __future__ import annotations

import logging
import os
import signal
import sys

from ...core.processes import Json, Parent
from .options import DashboardOptions
from .serving import serve_dashboard

#: Lower scheduling priority than the server and run processes.
_NICE = 5


def main() -> int:
    """Serve the dashboard with the options that the server sends; returns the exit code."""
    parent = Parent.connect()
    options = DashboardOptions.from_dict(parent.receive_first()["options"])
    os.nice(_NICE)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    def on_message(message: Json) -> None:
        if message.get("type") == "stop":
            os.kill(os.getpid(), signal.SIGTERM)

    parent.listen(on_message)
    try:
        serve_dashboard(options, lambda address: parent.send({"type": "ready", "address": address}))
    except Exception as error:
        return int(parent.report_failure(error))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Worker threads that still read ledgers must not delay the exit.
    os._exit(code)
