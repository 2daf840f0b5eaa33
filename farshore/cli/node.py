"""``farshore node join``: register this machine as a node and work for a server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError
from .code_approval import AcceptApps, accepted_apps
from .output import Json, emit, say

app = typer.Typer(help="Run this machine as a node.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="ADDR", help="HOST:PORT of the server.")],
    token: Annotated[str | None, typer.Option(help="Join token; '-' reads it from standard input.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the join token.")] = None,
    name: Annotated[str | None, typer.Option(help="The node's name [this machine's host name].")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="A local data set; repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label; roles of a run may ask for it. Repeatable.")
    ] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="This node's part of shared data, from 0/N.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Device profile (YAML): link and threads.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder for key and checkpoints [~/.farshore/nodes/NAME].")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Authority (PEM) to trust instead of a fingerprint.")] = None,
    accept_apps: AcceptApps = None,
    peer_listen: Annotated[
        str,
        typer.Option(
            metavar="IFACE",
            help="Accept connections from other nodes on this interface, unencrypted: trusted networks only.",
        ),
    ] = "",
    keep_runs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Keep the checkpoints of the last N finished runs.")
    ] = 10,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS; loopback only.")] = False,
    json_: Json = False,
) -> None:
    """Join a server and work for it until Ctrl-C or SIGTERM. The token is needed the first time only."""
    from ..client.agent import AgentOptions, run
    from ..core.paths import node_home
    from ..core.profiles import DeviceProfile
    from ..edge.measure import measure_node
    from .settings import data_paths

    node_name = name or _host_name()
    accepted, ask = accepted_apps(accept_apps or ())
    options = AgentOptions(
        address=address,
        name=node_name,
        home=(home or node_home(node_name)).expanduser().resolve(),
        token=_token(token, token_file),
        data=data_paths(data or ()),
        labels=_labels(label or ()),
        shard=_shard(shard),
        profile=DeviceProfile.read(profile) if profile else DeviceProfile(),
        accept_apps=accepted,
        ask=ask,
        peer_listen=_interface(peer_listen),
        keep_runs=keep_runs,
        insecure=insecure,
        ca=certificate,
        measure=measure_node,
        on_state=_emit_state if json_ else _print_state,
    )
    run(options)


def _print_state(state: str, detail: str) -> None:
    say(f"{state.replace('_', ' ')}{': ' if detail else ''}{detail}")


def _emit_state(state: str, detail: str) -> None:
    emit({"state": state, "detail": detail})


def _interface(name: str) -> str:
    import psutil

    known = psutil.net_if_addrs()
    if name and name not in known:
        raise ConfigError(f"--peer-listen {name}: no such network interface", hint=f"interfaces are {', '.join(known)}")
    return name


def _host_name() -> str:
    import re
    import socket

    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0])[:64].lstrip("._-") or "node"


def _token(token: str | None, file: Path | None) -> str | None:
    if token is not None and file is not None:
        raise ConfigError("both --token and --token-file are given", hint="give one of them")
    if file is not None:
        try:
            return file.read_text().strip()
        except OSError as error:
            raise ConfigError(f"cannot read the token file {file}: {error.strerror}") from error
    if token == "-":  # noqa: S105 – means standard input
        return sys.stdin.readline().strip()
    return token


def _labels(texts: Sequence[str]) -> dict[str, str]:
    from ..core.nodes import check_label

    labels: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        check_label(key, value)
        if labels.setdefault(key, value) != value:
            raise ConfigError(f"--label {key} is given twice, as '{labels[key]}' and '{value}'")
    return labels


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ConfigError(f"--shard {text}: not of the form I/N", hint="write I/N with I from 0 to N-1, e.g. 0/2")
    return int(index), int(count)
