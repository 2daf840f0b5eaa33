"""``farshore certs``: an own small authority, for those who do not want a self-signed certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Json, emit, say

app = typer.Typer(
    help="An own certificate authority, instead of the server's self-signed certificate.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--dir", help="Folder of the authority's files.")]


@app.command()
def init(folder: Folder = Path("farshore-ca"), json_: Json = False) -> None:
    """Make an authority: ca.pem for everybody, ca.key for nobody else."""
    from ..server.certificates import certs_init

    certificate = certs_init(folder)
    if json_:
        emit({"certificate": str(certificate), "key": str(folder / "ca.key")})
        return
    say(f"wrote {certificate} (give it to nodes: node join --certificate) and {folder / 'ca.key'} (keep it secret)")


@app.command()
def issue(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="Names and addresses of the server.")],
    folder: Folder = Path("farshore-ca"),
    json_: Json = False,
) -> None:
    """Issue a server certificate for HOST..., signed by the authority."""
    from ..server.certificates import certs_issue

    certificate, key = certs_issue(folder, hosts)
    if json_:
        emit({"certificate": str(certificate), "key": str(key)})
        return
    say(f"wrote {certificate} and {key}; use them with")
    say(f"  farshore server up --certificate {certificate} --key {key}")
