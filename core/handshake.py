"""The handshake between node and server program: versions, and the checkpoint step to resume from.

It precedes the messages of the workload. The node sends ``hello`` with its versions and the steps of its checkpoints;
the server replies ``begin`` with the step to resume from, or -1 to start from the beginning. If the workload restarts
after the loss of a node, this is the newest step that all programs have. If it continues without lost nodes, it is the
node's newest step that is not ahead of the server's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .errors import WireError
from .message import Message, Scalar
from .version import Versions


def hello(steps: Iterable[int]) -> Message:
    """Return a node's ``hello`` message, with its versions and checkpoint ``steps``."""
    local = Versions.local()
    fields: dict[str, Scalar] = {
        "stage": "hello",
        "steps": ",".join(str(step) for step in steps),
        "protocol": local.protocol,
        "farshore": local.farshore,
        "torch": local.torch,
        "python": local.python,
    }
    return Message("control", fields=fields)


def read_hello(message: Message, node: str, *, torch: bool) -> list[int]:
    """Check a node's ``hello`` and return the steps of its checkpoints.

    Parameters
    ----------
    message : Message
    node : str
        Name of the node, for error messages.
    torch : bool
        Whether the torch versions must match (major.minor).

    Raises
    ------
    VersionError
        The node's versions are incompatible with those of this process.
    WireError
        The message is not a valid ``hello``.
    """
    fields = message.fields
    if message.kind != "control" or fields.get("stage") != "hello":
        raise WireError(f"node {node}: expected 'hello' first, got '{message.kind}'")
    try:
        theirs = Versions(int(fields["protocol"]), *(str(fields[n]) for n in ("farshore", "torch", "python")))
        steps = [int(step) for step in str(fields["steps"]).split(",") if step]
    except (KeyError, ValueError) as error:
        raise WireError(f"node {node}: invalid 'hello': {error}") from error
    Versions.local().check(theirs, peer=f"node {node}", torch=torch)
    return steps


def begin(step: int | None) -> Message:
    """Return the server's ``begin`` message; ``step`` is None to start from the beginning."""
    return Message("control", fields={"stage": "begin", "step": -1 if step is None else step})


def read_begin(message: Message) -> int | None:
    """Return the step of a ``begin`` message, or None to start from the beginning.

    Raises
    ------
    WireError
        The message is not a valid ``begin``.
    """
    step = message.fields.get("step")
    if message.kind != "control" or message.fields.get("stage") != "begin" or not isinstance(step, int):
        raise WireError(f"expected 'begin' from the server first, got '{message.kind}'")
    return step if step >= 0 else None


def common_step(own: Iterable[int], others: Mapping[str, Iterable[int]]) -> int | None:
    """Return the highest step of which every program has a checkpoint, or None."""
    shared = set(own)
    for steps in others.values():
        shared &= set(steps)
    return max(shared, default=None)


def newest_own_step(steps: Iterable[int], newest: int | None) -> int | None:
    """Return a node's highest checkpoint step that is not ahead of the server's ``newest``, or None."""
    return max((step for step in steps if newest is not None and step <= newest), default=None)
