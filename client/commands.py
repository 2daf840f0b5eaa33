"""Validation of the server's commands: a node trusts them no more than the server trusts a node."""

from __future__ import annotations

import math
import re

from ..core.errors import WireError
from ..proto import control_pb2 as pb

#: Run ids name directories; so do roles and nodes in some methods.
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MOST_NODES, _MOST_CONFIG, _MOST_TICKET, _MOST_NAME = 100_000, 1 << 20, 512, 200


def check_start(command: pb.StartProgram) -> None:
    """Check a command to start a program.

    Raises
    ------
    WireError
        A field is not what a server sends: ids that are no plain names, numbers out of range, or too long texts.
    """
    _check_identifier("run id", command.run_id)
    for what, name in [("node", name) for name in command.nodes] + ([("role", command.role)] if command.role else []):
        _check_identifier(what, name)
    bounds = {
        "nodes": (len(command.nodes), _MOST_NODES),
        "characters of configuration": (len(command.config_json), _MOST_CONFIG),
        "characters of ticket": (len(command.ticket), _MOST_TICKET),
        "characters of method name": (len(command.workload), _MOST_NAME),
    }
    for what, (found, most) in bounds.items():
        if found > most:
            raise _invalid(f"{found} {what} exceed the limit of {most}")
    if command.data_port > 65535:
        raise _invalid(f"{command.data_port} is not a port")
    if command.shard_index >= max(1, command.shard_count):
        raise _invalid(f"shard {command.shard_index} of {command.shard_count}")


def heartbeat_interval(welcome: pb.Welcome) -> float:
    """Return the seconds between heartbeats that the server asks for; 5 if it does not say.

    Raises
    ------
    WireError
        It is not from 0.01 s to an hour.
    """
    seconds = welcome.heartbeat_seconds or 5.0
    if not (math.isfinite(seconds) and 0.01 <= seconds <= 3600):
        raise _invalid(f"{seconds} s between heartbeats")
    return seconds


def _check_identifier(what: str, text: str) -> None:
    if not _IDENTIFIER.fullmatch(text):
        raise _invalid(f"{text[:40]!r} is not a valid {what}")


def _invalid(reason: str) -> WireError:
    return WireError(f"the server sent an invalid command: {reason}", hint="is it a farshore server of this version?")
