"""The home of a node: one process at a time uses it."""

from __future__ import annotations

from ..core.errors import ConfigError
from ..core.home_lock import HomeLock
from .options import AgentOptions


def lock_home(options: AgentOptions) -> HomeLock:
    """Lock the node's home against other processes.

    Raises
    ------
    ConfigError
        Another process runs as this node; the message has its id.
    """
    refusal = ConfigError(
        f"another process is running as the node '{options.name}'",
        hint="stop it, or choose another name, which has its own home",
    )
    return HomeLock(options.home, refusal)
