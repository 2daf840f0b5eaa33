"""``farshore certs``: create a certificate authority and issue server certificates from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit, say

app = typer.Typer(
    help="Create a certificate authority to use instead of the server's self-signed certificate.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--dir", help="Folder with the authority's files.")]


@app.command()
def init(folder: Folder = Path("farshore-ca"), json_: Json = False) -> None:
    """Create an authority: ca.pem (public) and ca.key (secret)."""
    from ..server.certificates import certs_init

    certificate = certs_init(folder)
    if json_:
        emit({"certificate": str(certificate), "key": str(folder / "ca.key")})
        return
    say(f"wrote {certificate} (for nodes: node join --certificate) and {folder / 'ca.key'} (keep it secret)")


@app.command()
def issue(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="Host names and addresses of the server.")],
    folder: Folder = Path("farshore-ca"),
    json_: Json = False,
) -> None:
    """Issue a server certificate for HOST..., signed by the authority."""
    from ..server.certificates import certs_issue

    certificate, key = certs_issue(folder, hosts)
    if json_:
        emit({"certificate": str(certificate), "key": str(key)})
        return
    say(f"wrote {certificate} and {key}; to use them:")
    say(f"  farshore server up --certificate {certificate} --key {key}")
