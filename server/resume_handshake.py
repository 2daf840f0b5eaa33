"""The handshakes with which a run process begins: which checkpoint the programs continue from."""

from __future__ import annotations

from ..core.errors import FarshoreError, PeerLostError, VersionError, WireError
from ..core.handshake import begin, common_step, newest_own_step, read_hello
from ..core.message import Message
from ..core.processes import Parent
from ..runs.state_store import StateStore
from .session import RunProcessSession


def handshake_with_all(session: RunProcessSession, state: StateStore, parent: Parent, *, torch: bool) -> None:
    """Collect the checkpoint steps of all nodes and resume from the newest common step."""
    steps: dict[str, list[int]] = {}
    channels = session.channels
    while len(steps) < len(channels):
        missing = [name for name in channels if name not in steps]
        parent.send({"type": "waiting", "reason": f"waiting for the node programs of {', '.join(missing)}"})
        node, message = session.receive_any(missing)
        steps[node] = read_hello(message, node, torch=torch)
    _set_resume_step(session, common_step(state.steps(), steps))
    for channel in channels.values():
        channel.send(begin(session.resume_step))


def handshake_with_reachable(session: RunProcessSession, state: StateStore, parent: Parent, *, torch: bool) -> None:
    """Resume from the server's newest checkpoint; skip nodes that are lost or fail the handshake.

    Skipped nodes may rejoin later.
    """
    _set_resume_step(session, max(state.steps(), default=None))
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
