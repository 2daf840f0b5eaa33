"""What an operator can choose about a node, in frozen objects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from ..core.profiles import DeviceProfile
from ..proto.control_pb2 import NodeProfile

State: TypeAlias = Literal["joining", "connected", "disconnected", "program_started", "program_exited", "stopped"]


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How to be a node.

    Attributes
    ----------
    address : str
        ``host:port`` of the server.
    name : str
        Letters, digits, ``.``, ``_`` and ``-``; 1 to 64 of them, the first a letter or digit.
    home : Path
        Directory (made with mode 0700) for the node's key, the server's certificate and checkpoints.
    token : str or None
        Join token; needed the first time only.
    data : Mapping[str, Path]
        Data sets this node holds, by name.
    shard : (int, int) or None
        ``(index, count)`` by hand; None = the node's position in the cohort.
    profile : DeviceProfile
        Its link throttles this node's data connections; its threads bound the programs' compute threads.
    keep_runs : int
        Folders of runs (checkpoints) kept in ``home``; older ones go when a program starts.
    insecure : bool
        No TLS; loopback only.
    ca : Path or None
        PEM file of an own authority to trust instead of the token's fingerprint.
    measure : callable or None
        Measures the machine (``edge.measure.measure_node``); called once, at start.
    accept_apps : frozenset of str
        SHA-256 of apps (code that comes with a run) that may be executed here.
    ask : callable or None
        ``await ask(what, digest)``: asked about every other app; None = they are refused.
    peer_listen : str
        Network interface on which programs may listen for other nodes of their run, in plain text; empty: on none, but
        on loopback where the server is there too.
    on_state : callable or None
        ``on_state(state, detail)``: told when the node joins, connects, loses the server, starts or ends a program.
    """

    address: str
    name: str
    home: Path
    token: str | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    shard: tuple[int, int] | None = None
    profile: DeviceProfile = field(default_factory=DeviceProfile)
    keep_runs: int = 10
    insecure: bool = False
    ca: Path | None = None
    measure: Callable[[], NodeProfile] | None = None
    accept_apps: frozenset[str] = frozenset()
    ask: Callable[[str, str], Awaitable[bool]] | None = None
    peer_listen: str = ""
    on_state: Callable[[State, str], None] | None = None
