"""The home of a node: one process at a time uses it."""

from __future__ import annotations

from ..core.address import parse_address
from ..core.errors import ConfigError
from ..core.home_lock import HomeLock
from ..core.nodes import check_node_name
from .options import AgentOptions


def lock_home(options: AgentOptions) -> HomeLock:
    """Check the node's name and address, and lock its home against other processes.

    Raises
    ------
    ConfigError
        The name or the address is invalid, or another process runs as this node; the message has its id.
    """
    check_node_name(options.name)
    parse_address(options.address)
    refusal = ConfigError(
        f"another process is running as the node '{options.name}'",
        hint="stop it, or choose another name, which has its own home",
    )
    return HomeLock(options.home, refusal)
