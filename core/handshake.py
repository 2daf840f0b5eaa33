"""How the two programs of a run agree on where to begin: one message each way, before the method's own.

The node says ``hello`` with its versions and the steps it has checkpoints of; the server answers ``begin`` with the
step to begin from, or -1: the highest that all programs of the run hold or, where a method goes on without lost nodes,
the node's own newest that is not behind the server's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .errors import WireError
from .message import Message, Scalar
from .version import Versions


def hello(steps: Iterable[int]) -> Message:
    """A node's first message."""
    here = Versions.here()
    fields: dict[str, Scalar] = {
        "stage": "hello",
        "steps": ",".join(str(step) for step in steps),
        "protocol": here.protocol,
        "farshore": here.farshore,
        "torch": here.torch,
        "python": here.python,
    }
    return Message("control", fields=fields)


def read_hello(message: Message, node: str, *, torch: bool) -> list[int]:
    """The checkpoint steps of a node.

    Parameters
    ----------
    torch : bool
        Whether both ends must have the same torch (major.minor).

    Raises
    ------
    VersionError
        The node's versions do not work with this end's.
    WireError
        It is no hello.
    """
    fields = message.fields
    if message.kind != "control" or fields.get("stage") != "hello":
        raise WireError(f"node {node}: its first message is no hello but a '{message.kind}'")
    try:
        theirs = Versions(int(fields["protocol"]), *(str(fields[n]) for n in ("farshore", "torch", "python")))
        steps = [int(step) for step in str(fields["steps"]).split(",") if step]
    except (KeyError, ValueError) as error:
        raise WireError(f"node {node}: its hello is damaged: {error}") from error
    Versions.here().check(theirs, whose=f"node {node}", torch=torch)
    return steps


def begin(step: int | None) -> Message:
    """The server's first message: the step to continue from, or None."""
    return Message("control", fields={"stage": "begin", "step": -1 if step is None else step})


def read_begin(message: Message) -> int | None:
    """The step to continue from, or None.

    Raises
    ------
    WireError
        It is no begin.
    """
    step = message.fields.get("step")
    if message.kind != "control" or message.fields.get("stage") != "begin" or not isinstance(step, int):
        raise WireError(f"the server's first message is no begin but a '{message.kind}'")
    return step if step >= 0 else None


def common_step(own: Iterable[int], others: Mapping[str, Iterable[int]]) -> int | None:
    """The highest step that every program holds."""
    shared = set(own)
    for steps in others.values():
        shared &= set(steps)
    return max(shared, default=None)


def own_step(steps: Iterable[int], newest: int | None) -> int | None:
    """The highest step that a node holds and that is not behind the server's ``newest``."""
    return max((step for step in steps if newest is not None and step <= newest), default=None)
