"""Options of the server, and what it reports when it is ready."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.paths import server_home
from .dashboard.options import DashboardOptions


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Options of a server.

    Attributes
    ----------
    home : Path
        Directory (created with mode 0700) for the certificate, the credentials, the run store and the runs.
    host : str
        Interface to listen on; ``127.0.0.1`` for this machine only, ``0.0.0.0`` for all.
    port : int
        The gRPC port; 0 = any free port.
    hostnames : tuple of str
        Additional names or addresses for the self-signed certificate created at first start.
    insecure : bool
        Serve without TLS; refused unless ``host`` is loopback.
    certificate, key : Path or None
        PEM files of a certificate (see ``farshore certs``) to use instead of the self-signed one.
    data_ports : tuple of (int, int) or None
        First and last port for data services opened by run processes; None = relay all data through ``port``.
    store_url : str or None
        SQLAlchemy URL of the run store; None = SQLite in ``home``.
    runs_directory : Path or None
        Directory for run directories; None = ``home/runs``.
    data : Mapping[str, Path]
        Paths of data sets on the server, by name.
    heartbeat_seconds : float
        Interval of heartbeats; a node that misses three is declared lost.
    token_hours : float
        Lifetime of join tokens by default, including the one created at first start.
    restarts_per_hour : int
        How often a run may be restarted within an hour before it fails.
    accept_apps : frozenset of str
        SHA-256 of apps (code submitted with a run) that the server may execute for any submitter.
    sinks : tuple of str
        Additional destinations for the metrics of all runs; see :mod:`farshore.runs.sinks`.
    metrics_port : int or None
        Port of the Prometheus endpoint (plain HTTP); 0 = any free port, None = no endpoint.
    metrics_host : str
        Interface of that port. It exposes the names of nodes and runs to every client.
    dashboard : DashboardOptions or None
        Options of the dashboard, which runs in a process of its own; None = no dashboard.
    ask : callable or None
        ``await ask(what, digest)`` returns whether any other app may be executed; None = other apps are refused.
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
    """What a server reports once it is listening.

    Attributes
    ----------
    address : str
        ``host:port`` to connect to from this machine.
    port : int
        The port in use.
    fingerprint : str
        SHA-256 of the certificate in DER form, hex; empty when insecure.
    token : str
        A new join token at the first start with this home; else empty.
    admin_token_file : Path
        File (mode 0600) with the token that submitters need.
    certificate_file : Path or None
        PEM file with the root certificate for clients; None when insecure.
    home : Path
    metrics : str
        URL of the Prometheus endpoint; empty without one.
    dashboard : str
        URL of the dashboard; empty without one.
    addresses : tuple of str
        ``host:port`` for nodes to connect to, the best for other machines first.
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
    addresses: tuple[str, ...] = ()


OnReady = Callable[[ServerReady], None]
