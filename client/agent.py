"""The agent makes a machine a node: it keeps the control stream and runs one node process per run. Never imports torch.

``run(options)`` blocks until SIGTERM or SIGINT, or until the server refuses this node for good; node processes die with it.
It prints nothing; ``options.on_state`` tells what happens.
"""

from __future__ import annotations

from .options import AgentOptions

__all__ = ["AgentOptions", "run"]


def run(options: AgentOptions) -> None:
    """Be a node until told to stop.

    Raises
    ------
    RefusedError
        The server refused the token, the key or the name, or its certificate is not the expected one.
    VersionError
        The server runs another version.
    UnreachableError
        Nobody answers at the address and this node has never joined; a node that has keeps trying.
    DataError
        A data path does not exist.
    """
    raise NotImplementedError
