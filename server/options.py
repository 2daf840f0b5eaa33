"""What an operator can choose about a server, in one frozen object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.paths import server_home
from .dashboard.options import DashboardOptions


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve.

    Attributes
    ----------
    home : Path
        Directory (made with mode 0700) for the certificate, the credentials, the run store and the runs.
    host : str
        Interface to listen on; ``127.0.0.1`` for this machine only, ``0.0.0.0`` for all.
    port : int
        The one port; 0 = any free one.
    hostnames : tuple of str
        Further names or addresses the certificate made at first start shall be valid for.
    insecure : bool
        No TLS; refused unless ``host`` is loopback.
    certificate, key : Path or None
        PEM files of an own certificate (see ``farshore certs``) instead of the self-signed one.
    data_ports : tuple of (int, int) or None
        First and last port on which run processes open the data service themselves; None = all through the one port.
    store_url : str or None
        SQLAlchemy URL of the run store; None = SQLite in ``home``.
    runs_directory : Path or None
        Where run directories go; None = ``home/runs``.
    data : Mapping[str, Path]
        Data sets on the server's side, by name.
    heartbeat_seconds : float
        Interval of heartbeats; a node that misses three is lost.
    token_hours : float
        Life of the join token made at first start.
    restarts_per_hour : int
        How often a run may be restarted within an hour before it counts as failed.
    accept_apps : frozenset of str
        SHA-256 of apps (code that comes with a run) that may be executed here, whoever submits the run.
    sinks : tuple of str
        Where the figures of all runs go besides their ``metrics.jsonl``; see :mod:`farshore.runs.sinks`.
    metrics_port : int or None
        Where Prometheus reads the server's own figures over plain HTTP; 0 = any free port, None = nowhere.
    metrics_host : str
        Interface of that port. Whoever reaches it reads names of nodes and runs.
    dashboard : DashboardOptions or None
        Show nodes and runs in a browser, from a process beside this one; None = do not.
    ask : callable or None
        ``await ask(what, digest)``: asked about every other app; None = they are refused.
    """

    home: Path = field(default_factory=server_home)
    host: str = "127.0.0.1"
    port: int = 50051
    hostnames: tuple[str, ...] = ()
    insecure: bool = False
    certificate: Path | None = None
    key: Path | None = None
    data_ports: tuple[int, int] | None = None
    store_url: str | None = None
    runs_directory: Path | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    heartbeat_seconds: float = 5.0
    token_hours: float = 24.0
    restarts_per_hour: int = 20
    accept_apps: frozenset[str] = frozenset()
    ask: Callable[[str, str], Awaitable[bool]] | None = None
    sinks: tuple[str, ...] = ()
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    dashboard: DashboardOptions | None = None


@dataclass(frozen=True, slots=True)
class ServerReady:
    """What a server tells once it listens.

    Attributes
    ----------
    address : str
        ``host:port`` to dial from this machine.
    port : int
        The port in use.
    fingerprint : str
        SHA-256 of the certificate in DER form, hex; empty when insecure.
    token : str
        A fresh join token, only at the first start of this home; else empty.
    admin_token_file : Path
        File (mode 0600) with the token that submitters need.
    certificate_file : Path or None
        PEM file to use as root when dialling; None when insecure.
    home : Path
    metrics : str
        Where Prometheus reads; empty = nowhere.
    dashboard : str
        What to open in a browser; empty without a dashboard.
    """

    address: str
    port: int
    fingerprint: str
    token: str
    admin_token_file: Path
    certificate_file: Path | None
    home: Path
    metrics: str = ""
    dashboard: str = ""


OnReady = Callable[[ServerReady], None]
