"""The handshakes with which a run process begins: which checkpoint the programs continue from."""

from __future__ import annotations

from ..core.errors import FarshoreError, PeerLostError, VersionError, WireError
from ..core.handshake import ResumeFrom, begin, newest_own_step, read_hello, resume_step
from ..core.message import Message
from ..core.processes import Parent
from ..runs.state_store import StateStore
from .session import RunProcessSession


def handshake_with_all(
    session: RunProcessSession, state: StateStore, parent: Parent, *, torch: bool, wanted: ResumeFrom | None = None
) -> None:
    """Collect the checkpoint steps of all nodes and resume from the newest common step, or from the ``wanted`` one.

    Raises
    ------
    StorageError
        The programs have no such step, see :func:`~farshore.core.handshake.resume_step`.
    """
    steps: dict[str, list[int]] = {}
    channels = session.channels
    while len(steps) < len(channels):
        missing = [name for name in channels if name not in steps]
        parent.send({"type": "waiting", "reason": f"waiting for the node programs of {', '.join(missing)}"})
        node, message = session.receive_any(missing)
        steps[node] = read_hello(message, node, torch=torch)
    own = state.steps()
    step = resume_step(own, steps, wanted=wanted, started_over=state.started_over, run=session.run.id)
    if step is not None and step != own[-1]:
        behind = ", ".join(name for name, held in steps.items() if own[-1] not in held)
        session.log(f"not continuing from step {own[-1]}" + (f", which {behind} lacks" if behind else ""))
    _set_resume_step(session, step)
    for channel in channels.values():
        channel.send(begin(session.resume_step))


def handshake_with_reachable(
    session: RunProcessSession, state: StateStore, parent: Parent, *, torch: bool, wanted: ResumeFrom | None = None
) -> None:
    """Resume from the server's newest checkpoint, or from the ``wanted`` one; skip nodes that fail the handshake.

    Skipped nodes may rejoin later.

    Raises
    ------
    StorageError
        The server has no checkpoint of the step that is wanted.
    """
    _set_resume_step(session, resume_step(state.steps(), {}, wanted=wanted, run=session.run.id))
    missing = list(session.channels)
    while missing:
        parent.send({"type": "waiting", "reason": f"waiting for the node programs of {', '.join(missing)}"})
        fault: FarshoreError | None = None
        try:
            node, message = session.receive_any(missing)
        except (PeerLostError, WireError) as error:
            node, fault = error.name, error
        else:
            fault = _handshake(session, node, message, torch=torch)
        missing.remove(node)
        if fault is not None:
            session.log(f"starting without {node}: {fault}")
            if not isinstance(fault, PeerLostError):
                session.dismiss(node, str(fault))
                parent.send({"type": "unfit", "node": node, "reason": str(fault)})


def _handshake(session: RunProcessSession, node: str, hello: Message, *, torch: bool) -> FarshoreError | None:
    """Send a node the step to resume from; returns the error if it cannot take part."""
    try:
        step = newest_own_step(read_hello(hello, node, torch=torch), session.resume_step)
        session.channels[node].send(begin(step))
    except (PeerLostError, WireError, VersionError) as error:
        return error
    if step != session.resume_step:
        origin = "without a checkpoint" if step is None else f"with its checkpoint of step {step}"
        session.log(f"{node} starts {origin}; the server continues from step {session.resume_step}")
    return None


def _set_resume_step(session: RunProcessSession, step: int | None) -> None:
    session.begin_from(step)
    session.log("starting from the beginning" if step is None else f"continuing from the checkpoint of step {step}")
