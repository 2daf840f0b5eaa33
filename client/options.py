"""Options of the agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from ..core.profiles import DeviceProfile
from ..proto.control_pb2 import NodeProfile

AgentState: TypeAlias = Literal["joining", "connected", "disconnected", "program_started", "program_exited", "stopped"]


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Options of a node's agent.

    Attributes
    ----------
    address : str
        ``host:port`` of the server.
    name : str
        1 to 64 letters, digits, ``.``, ``_`` and ``-``; the first must be a letter or digit.
    home : Path
        Directory (made with mode 0700) for the node's key, the server's certificate and checkpoints.
    token : str or None
        Join token; needed only the first time.
    data : Mapping[str, Path]
        Paths of the data sets on this node, by name.
    labels : Mapping[str, str]
        Labels of this node; roles of a run may ask for them.
    shard : (int, int) or None
        ``(index, count)`` set explicitly; None = the node's position in the cohort.
    profile : DeviceProfile
        ``link`` throttles this node's data connections; ``threads`` limits the compute threads of node programs.
    keep_runs : int
        Number of finished runs whose directories (checkpoints) are kept in ``home``; older ones are deleted when a
        program starts. Unfinished ones are kept while the disk has space.
    insecure : bool
        Connect without TLS; loopback only.
    ca : Path or None
        PEM file of a private certificate authority to trust instead of the token's fingerprint.
    measure : callable or None
        Measures the machine (``edge.measure.measure_node``); called once, at start.
    accept_apps : frozenset of str
        SHA-256 of apps (code submitted with a run) that this node may execute.
    ask : callable or None
        ``await ask(what, digest)`` returns whether any other app may be executed; None = other apps are refused.
    peer_listen : str
        Network interface on which node programs may listen for other nodes of their run, unencrypted; empty = loopback
        if the server is on loopback, else none.
    on_state : callable or None
        ``on_state(state, detail)``: called when the node joins, connects, disconnects, or a program starts or exits.
    """

    address: str
    name: str
    home: Path
    token: str | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    shard: tuple[int, int] | None = None
    profile: DeviceProfile = field(default_factory=DeviceProfile)
    keep_runs: int = 10
    insecure: bool = False
    ca: Path | None = None
    measure: Callable[[], NodeProfile] | None = None
    accept_apps: frozenset[str] = frozenset()
    ask: Callable[[str, str], Awaitable[bool]] | None = None
    peer_listen: str = ""
    on_state: Callable[[AgentState, str], None] | None = None
