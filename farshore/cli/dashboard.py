"""``farshore dashboard``: show a server's nodes and runs in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit, say

LOGIN = "Require the token on loopback too."
DashboardHost = Annotated[str, typer.Option(help="Interface to listen on; other than loopback, the token is required.")]
DashboardPort = Annotated[int, typer.Option(min=0, max=65535, help="The dashboard's port; 0 = any free one.")]


def dashboard(
    host: DashboardHost = "127.0.0.1",
    port: DashboardPort = 50080,
    home: Annotated[Path | None, typer.Option(help="Home of the server [~/.farshore/server].")] = None,
    store: Annotated[str | None, typer.Option(help="SQLAlchemy URL of its run store [SQLite in the home].")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Host name that browsers may use; repeatable.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Certificate (PEM) to use; needs --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM) of --certificate.")] = None,
    login: Annotated[bool, typer.Option("--login", help=LOGIN)] = False,
    json_: Json = False,
) -> None:
    """Serve the dashboard of a server until Ctrl-C; the server itself need not be running."""
    from ..core.paths import server_home
    from ..server.dashboard.options import TOKEN_FILE, DashboardOptions
    from ..server.dashboard.serving import serve_dashboard

    home_folder = (home or server_home()).expanduser().resolve()
    options = DashboardOptions(home_folder, host, port, login, tuple(name or ()), store, certificate, key)

    def announce(address: str) -> None:
        file = str(home_folder / TOKEN_FILE) if options.needs_login else None
        if json_:
            emit({"address": address, "token_file": file})
            return
        say(f"dashboard  {address}")
        if file:
            say(f"  token in {file}")

    serve_dashboard(options, announce)
