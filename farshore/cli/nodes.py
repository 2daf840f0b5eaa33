"""``farshore nodes``: list, revoke and trust the nodes of a server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..reports.units import size
from .connect import connected
from .output import Json, duration, emit, note, say, table

if TYPE_CHECKING:
    from ..client.admin import AdminClient
    from ..proto.control_pb2 import NodeInfo

app = typer.Typer(help="List, revoke and trust the nodes of a server.", no_args_is_help=True)


@app.command("ls")
@connected
def ls(admin: AdminClient, json_: Json = False) -> None:
    """List nodes with their state, hardware, data sets and runs."""
    nodes = admin.nodes()
    if json_:
        emit([as_dict(node) for node in nodes])
        return
    columns = ("name", "state", "cores", "memory", "GFLOP/s", "accelerators", "labels", "data", "runs", "seen")
    table(
        columns,
        [_row(node) for node in nodes],
        "no nodes have joined; see 'farshore server token new'",
    )
    for node in nodes:
        if node.state == "contested":
            _warn(node)


def _warn(node: NodeInfo) -> None:
    """Say what to do about a node whose key was copied."""
    note(f"WARNING: the node '{node.name}' gets no new runs: {node.reason}")
    note(
        "  If its folder was copied or restored by mistake, stop the copy, then admit the machine that connected last:"
    )
    note(f"    farshore nodes trust {node.name}")
    note("  If its key may be stolen, give the right machine a new one, with a token from 'farshore server token new':")
    note(f"    farshore node join … --name {node.name} --token TOKEN")


@app.command("trust")
@connected
def trust(admin: AdminClient, name: Annotated[str, typer.Argument(help="The node's name.")]) -> None:
    """Admit a node again whose key was used in two places: the machine that connected last with success."""
    node = admin.trust(name)
    where = f", which was last at {node.address}," if node.address else ""
    say(f"the node {name}{where} is admitted again; if its key is used in two places once more, give it a new one")


@app.command("revoke")
@connected
def revoke(admin: AdminClient, name: Annotated[str, typer.Argument(help="The node's name.")]) -> None:
    """Revoke a node's key: it is disconnected and needs a new token to join again."""
    admin.revoke(node=name)
    say(f"revoked node {name}")


def as_dict(node: NodeInfo) -> dict[str, Any]:
    """Convert a node to JSON-able fields, named as in the protocol."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(node, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _accelerators(node: NodeInfo) -> str:
    counts: dict[str, int] = {}
    for device in node.profile.accelerators:
        label = device.name or device.kind
        counts[label] = counts.get(label, 0) + 1
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items()) or "–"


def _row(node: NodeInfo) -> tuple[object, ...]:
    return (
        node.name,
        f"{node.state} ({node.reason})" if node.reason else node.state,
        node.profile.cores or "–",
        size(node.profile.memory_bytes) if node.profile.memory_bytes else "–",
        f"{node.profile.matmul_gflops:.0f}" if node.profile.matmul_gflops else "–",
        _accelerators(node),
        ", ".join(f"{key}={value}" for key, value in sorted(node.labels.items())) or "–",
        ", ".join(node.data) or "–",
        ", ".join(node.runs) or "–",
        f"{duration(time.time() - node.last_seen)} ago" if node.last_seen else "–",
    )
