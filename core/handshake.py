"""The handshake between node and server program: versions, and the checkpoint step to resume from.

It precedes the messages of the workload. The node sends ``hello`` with its versions and the steps of its checkpoints;
the server replies ``begin`` with the step to resume from, or -1 to start from the beginning. If the workload restarts
after the loss of a node, this is the newest step that all programs have. If it continues without lost nodes, it is the
node's newest step that is not ahead of the server's. A run never begins anew on its own if that would abandon progress.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import StorageError, WireError
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


@dataclass(frozen=True, slots=True)
class ResumeFrom:
    """Where the operator wants a run to continue; by default, from the newest step that all programs hold.

    Attributes
    ----------
    start : bool
        Start over, although there are checkpoints.
    step : int or None
        Continue from this step.
    """

    start: bool = False
    step: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dict."""
        return {"start": self.start, "step": self.step}


def resume_step(
    own: Sequence[int],
    others: Mapping[str, Sequence[int]],
    *,
    wanted: ResumeFrom | None = None,
    started_over: bool = False,
    run: str = "RUN",
) -> int | None:
    """Choose the step from which all programs of a run continue; None = from the beginning.

    Parameters
    ----------
    own : sequence of int
        Steps of the server's checkpoints, ascending.
    others : Mapping[str, sequence of int]
        Those of the nodes.
    wanted : ResumeFrom, optional
        Set if an operator resumes the run; None for an automatic restart of its programs.
    started_over : bool
        Whether the server has set checkpoints of an earlier attempt aside.
    run : str
        Id of the run, for error messages.

    Raises
    ------
    StorageError
        The programs cannot continue from the step that is wanted, or they have no common one although there is
        progress to lose.
    """
    if wanted is not None and wanted.start:
        return None
    step = common_step(own, others)
    if wanted is not None and wanted.step is not None:
        step = wanted.step
        lacking = [f"{name} (has {_listed(s)})" for name, s in {"the server": own, **others}.items() if step not in s]
        if lacking:
            raise StorageError(
                f"cannot continue from step {step}: there is no checkpoint of it on {', '.join(lacking)}",
                hint="give a step that all of them have, or start over with --from-start",
            )
    if step is None and _has_progress(own, others, strict=wanted is not None, started_over=started_over):
        steps = ", ".join(f"{name} has {_listed(s)}" for name, s in {"the server": own, **others}.items())
        raise StorageError(
            f"cannot continue: no step has a checkpoint on the server and on all nodes ({steps})",
            hint=f"restore the missing ones, or start over on purpose: farshore runs resume {run} --from-start",
        )
    return step


def _has_progress(own: Sequence[int], others: Mapping[str, Sequence[int]], *, strict: bool, started_over: bool) -> bool:
    """Whether starting from the beginning, without a common step, would abandon progress.

    A program that is killed while it saves the run's first checkpoint lacks only that one. A restart then may begin
    anew; a resume asks first if it is the server that has it.
    """
    if own:
        return strict or len(own) > 1
    return not started_over and any(len(steps) > 1 for steps in others.values())


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def newest_own_step(steps: Iterable[int], newest: int | None) -> int | None:
    """Return a node's highest checkpoint step that is not ahead of the server's ``newest``, or None."""
    return max((step for step in steps if newest is not None and step <= newest), default=None)
