"""``farshore server``: the orchestrator in the foreground, and its join tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .code_approval import AcceptApps, accepted_apps
from .connect import connected
from .dashboard import LOGIN, DashboardHost, DashboardPort
from .output import Json, duration, emit, say

if TYPE_CHECKING:
    from ..client.admin import AdminClient
    from ..server.options import ServerReady

app = typer.Typer(help="The server: listen for nodes and runs, and hand out join tokens.", no_args_is_help=True)
token = typer.Typer(help="Join tokens: with one, a machine becomes a node.", no_args_is_help=True)
app.add_typer(token, name="token")


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Interface to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 = any free one.")] = 50051,
    home: Annotated[Path | None, typer.Option(help="Where its keys and runs live [~/.farshore/server].")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Host name its certificate shall also carry.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Own certificate (PEM); needs --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM) of --certificate.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS; loopback only.")] = False,
    data_ports: Annotated[str | None, typer.Option(metavar="A-B", help="Ports that runs open directly.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="Data set on the server.")] = None,
    store: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the run store [SQLite in the home].")] = None,
    token_hours: Annotated[float, typer.Option(min=0.01, help="Life of the first join token, hours.")] = 24.0,
    accept_apps: AcceptApps = None,
    sink: Annotated[
        list[str] | None, typer.Option(metavar="csv|tensorboard|mlflow", help="Where runs' figures go too; repeat it.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Let Prometheus read here, over HTTP; 0 = any free port.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Interface of --metrics-port.")] = "127.0.0.1",
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Show nodes and runs in a browser, too.")] = False,
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
    where = (home or server_home()).expanduser().resolve()
    shown = DashboardOptions(
        where, dashboard_host, dashboard_port, dashboard_login, tuple(name or ()), store, certificate, key
    )
    options = ServeOptions(
        home=where,
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
        dashboard=shown if dashboard else None,
    )
    serve(options, on_ready=lambda ready: _announce(ready, as_json=json_))


@token.command("new")
@connected
def new(
    admin: AdminClient,
    hours: Annotated[float, typer.Option(min=0.01, help="How long it is valid.")] = 24.0,
    uses: Annotated[int, typer.Option(min=0, help="How many nodes may use it; 0 = any number.")] = 0,
    json_: Json = False,
) -> None:
    """Make a join token and print the command that uses it."""
    reply = admin.create_token(valid_seconds=hours * 3600, uses=uses)
    if json_:
        emit({"token": reply.token, "id": reply.id, "expires": reply.expires, "address": admin.address})
        return
    say(f"join token {reply.id}, valid for {duration(hours * 3600)}; on the machine that shall be a node:")
    say(f"  farshore node join {admin.address} --token {reply.token}")


@token.command("revoke")
@connected
def revoke(
    admin: AdminClient,
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as 'token new' printed it.")],
) -> None:
    """Make a join token useless; nodes that joined with it stay ('nodes revoke' removes one)."""
    admin.revoke(token_id=token_id)
    say(f"revoked join token {token_id}")


def _announce(ready: ServerReady, *, as_json: bool) -> None:
    if as_json:
        emit(
            {
                "address": ready.address,
                "port": ready.port,
                "fingerprint": ready.fingerprint,
                "token": ready.token,
                "admin_token_file": str(ready.admin_token_file),
                "certificate_file": str(ready.certificate_file) if ready.certificate_file else None,
                "home": str(ready.home),
                "metrics": ready.metrics or None,
                "dashboard": ready.dashboard or None,
            }
        )
        return
    say(f"server listens on {ready.address}")
    say(f"  fingerprint  {ready.fingerprint or 'none: it runs without TLS'}")
    say(f"  admin token  {ready.admin_token_file}")
    if ready.metrics:
        say(f"  metrics      {ready.metrics}")
    if ready.dashboard:
        say(f"  dashboard    {ready.dashboard}")
    if ready.token:
        say("on each machine that shall be a node:")
        say(f"  farshore node join {ready.address} --token {ready.token}")
    else:
        say("for a new join token: farshore server token new")


def _port_range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 65536):
        from ..core.errors import ConfigError

        raise ConfigError(f"--data-ports {text}: not a range of ports", hint="write e.g. --data-ports 50100-50199")
    return int(first), int(last)
