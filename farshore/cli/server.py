"""``farshore server``: run the server in the foreground, and manage join tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.address import is_loopback, parse_address
from .code_approval import AcceptApps, accepted_apps
from .connect import connected
from .dashboard import LOGIN, DashboardHost, DashboardPort
from .output import Json, duration, emit, note, say

if TYPE_CHECKING:
    from ..client.admin import AdminClient
    from ..server.options import ServerReady

app = typer.Typer(help="Run a server and manage its join tokens.", no_args_is_help=True)
token = typer.Typer(help="Create and revoke join tokens, with which machines register as nodes.", no_args_is_help=True)
app.add_typer(token, name="token")


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Interface to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 = any free one.")] = 50051,
    home: Annotated[Path | None, typer.Option(help="Folder of its keys and runs [~/.farshore/server].")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Extra host name for the certificate; repeatable.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Certificate (PEM) to use; needs --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM) of --certificate.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS; loopback only.")] = False,
    data_ports: Annotated[str | None, typer.Option(metavar="A-B", help="Ports for direct connections to runs.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A data set of the server; repeatable.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the run store [SQLite in the home].")] = None,
    token_hours: Annotated[float, typer.Option(min=0.01, help="Validity of the first join token, hours.")] = 24.0,
    accept_apps: AcceptApps = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(metavar="csv|tensorboard|mlflow", help="Sink for the metrics of runs; repeatable."),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port for Prometheus metrics over HTTP; 0 = any free port.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Interface of --metrics-port.")] = "127.0.0.1",
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Also serve the dashboard.")] = False,
    dashboard_host: DashboardHost = "127.0.0.1",
    dashboard_port: DashboardPort = 50080,
    dashboard_login: Annotated[bool, typer.Option("--dashboard-login", help=LOGIN)] = False,
    json_: Json = False,
) -> None:
    """Run a server until Ctrl-C or SIGTERM."""
    from ..core.paths import server_home
    from ..server.api import ServeOptions, serve
    from ..server.dashboard.options import DashboardOptions
    from .settings import data_paths

    accepted, ask = accepted_apps(accept_apps or ())
    home_folder = (home or server_home()).expanduser().resolve()
    dashboard_options = DashboardOptions(
        home_folder, dashboard_host, dashboard_port, dashboard_login, tuple(name or ()), store, certificate, key
    )
    options = ServeOptions(
        home=home_folder,
        host=host,
        port=port,
        hostnames=tuple(name or ()),
        insecure=insecure,
        certificate=certificate,
        key=key,
        data_ports=_port_range(data_ports),
        store_url=store,
        data=data_paths(data or ()),
        token_hours=token_hours,
        accept_apps=accepted,
        ask=ask,
        sinks=tuple(sink or ()),
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        dashboard=dashboard_options if dashboard else None,
    )
    serve(options, on_ready=lambda ready: _print_ready(ready, as_json=json_))


@token.command("new")
@connected
def new(
    admin: AdminClient,
    hours: Annotated[float, typer.Option(min=0.01, help="Validity, hours.")] = 24.0,
    uses: Annotated[int, typer.Option(min=0, help="Number of nodes that may use it; 0 = unlimited.")] = 0,
    json_: Json = False,
) -> None:
    """Create a join token and print the command that uses it."""
    reply = admin.create_token(valid_seconds=hours * 3600, uses=uses)
    if json_:
        addresses = _known_reachable(admin.address, reply.addresses)
        emit({"token": reply.token, "id": reply.id, "expires": reply.expires, "addresses": addresses})
        return
    say(f"join token {reply.id}, valid for {duration(hours * 3600)}; on the new node run:")
    _print_join(_known_reachable(admin.address, reply.addresses), reply.token)


@token.command("revoke")
@connected
def revoke(
    admin: AdminClient,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as 'token new' printed it.")],
) -> None:
    """Revoke a join token; nodes that joined with it stay ('nodes revoke' removes one)."""
    admin.revoke(token_id=token_id)
    say(f"revoked join token {token_id}")


def _print_ready(ready: ServerReady, *, as_json: bool) -> None:
    if as_json:
        emit(
            {
                "address": ready.address,
                "addresses": list(ready.addresses),
                "port": ready.port,
                "fingerprint": ready.fingerprint,
                "token": ready.token,
                "admin_token_file": str(ready.admin_token_file),
                "certificate_file": str(ready.certificate_file) if ready.certificate_file else None,
                "home": str(ready.home),
                "metrics": ready.metrics or None,
                "dashboard": ready.dashboard or None,
                "dashboard_problem": ready.dashboard_problem or None,
            }
        )
        return
    say(f"server listening on {', '.join(ready.addresses) or ready.address}")
    say(f"  fingerprint  {ready.fingerprint or 'none (no TLS)'}")
    say(f"  admin token  {ready.admin_token_file}")
    if ready.metrics:
        say(f"  metrics      {ready.metrics}")
    if ready.dashboard:
        say(f"  dashboard    {ready.dashboard}")
    if ready.dashboard_problem:
        note(f"WARNING: {ready.dashboard_problem}")
    if ready.token:
        say("on each node run:")
        _print_join(ready.addresses, ready.token)
    else:
        say("for a new join token: farshore server token new")


def _known_reachable(used: str, listed: Sequence[str]) -> list[str]:
    """Put the address that was used to reach a remote server before those that the server lists."""
    remote = [] if is_loopback(parse_address(used)[0]) else [used]
    return list(dict.fromkeys([*remote, *listed])) or [used]


def _print_join(addresses: Sequence[str], token: str) -> None:
    first, *others = addresses
    say(f"  farshore node join {first} --token {token}")
    if others:
        say(f"  or with the address {', '.join(others)}")


def _port_range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 65536):
        from ..core.errors import ConfigError

        raise ConfigError(f"--data-ports {text}: not a port range", hint="for example --data-ports 50100-50199")
    return int(first), int(last)
