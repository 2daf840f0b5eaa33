"""One run's server program in a process of its own, ``farshore.server.run_process``, spawned by a supervisor."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..core.errors import FarshoreError, PeerLostError, VersionError, WireError
from ..core.handshake import begin, common_step, own_step, read_hello
from ..core.message import Message
from ..core.processes import Json, Parent
from ..core.seeds import Seed
from ..core.session import RunInfo
from ..core.workloads import load
from ..runs.directory import RunDirectory
from ..runs.traffic import Traffic
from ..wire.channel import Channel
from ..wire.io import IoThread
from ..wire.local import serve_local
from .direct_port import open_direct_port
from .rejoin import Rejoin
from .session import RunProcessSession
from .submission import configuration
from .ticket_router import TicketRouter

_log = logging.getLogger(__name__)

#: Seconds that nodes get to take what the finished server program sent.
_CLOSE_SECONDS = 60.0


def main() -> int:
    """Run the server program that the supervisor asks for; returns the exit code."""
    parent = Parent.find()
    specification = parent.first()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        with ExitStack() as stack:
            result = _run(parent, specification, stack)
    except Exception as error:
        return int(parent.failed(error))
    parent.send({"type": "finished", "result": json.dumps(result)})
    return 0


def _run(parent: Parent, specification: Json, stack: ExitStack) -> dict[str, Any]:
    workload = load(str(specification["workload"]))
    config = configuration(workload, str(specification["config"]))
    directory = RunDirectory(Path(specification["directory"]))
    ledger = stack.enter_context(directory.open_ledger(flush_seconds=0.25))
    metrics = directory.open_metrics(specification.get("sinks", ()))
    stack.callback(metrics.close)
    traffic = Traffic(ledger.record)
    epoch = int(specification["epoch"])
    channels = {n: Channel(n, n, "server", epoch=epoch, recorder=traffic.record) for n in specification["nodes"]}
    run = RunInfo(
        id=str(specification["run"]),
        workload=workload.name,
        seed=Seed(int(specification["seed"])),
        epoch=epoch,
        nodes=tuple(channels),
        directory=directory.path,
    )
    data = {name: Path(path) for name, path in specification["data"].items()}
    admitted, kept = str(specification["admitted"]), directory.checkpoints
    session = RunProcessSession(run, channels, kept, metrics.write, traffic, data, parent, admitted)
    returning = Rejoin(channels, parent, lambda: session.newest_step, torch=workload.uses_torch)
    session.use(returning)
    doors = TicketRouter()
    for node, ticket in specification["tickets"].items():
        doors.open(ticket, channels[node])

    def on_message(message: Json) -> None:
        kind, node = message.get("type"), str(message.get("node", ""))
        if kind == "cancel":
            session.cancel(str(message.get("reason", "")))
            ledger.flush()
        elif kind == "lost" and node in channels:
            reason = str(message.get("reason", f"node {node} is lost"))
            returning.lost(node, reason, for_good=bool(message.get("for_good")))
        elif kind == "expect" and node in channels:
            again = Channel(node, node, "server", epoch=int(message["epoch"]), recorder=traffic.record)
            returning.expect(node, again)
            doors.open(str(message["ticket"]), again)
            parent.send({**message, "type": "expecting"})

    parent.listen(on_message, on_gone=ledger.flush)
    io = stack.enter_context(IoThread("run-io"))
    _listen(io, parent, specification, doors, workload.on_lost_node)
    agree = _agree if workload.on_lost_node == "restart" else _agree_with_whoever_is_there
    agree(session, channels, directory, parent, torch=workload.uses_torch)
    parent.send({"type": "running", "resume_step": session.resume_step})
    result = workload.server_program(session, config)
    session.check_cancelled()
    # Told to be JSON-able while the program can still be blamed.
    json.dumps(result)
    returning.close()
    _close(channels)
    directory.write_result(result)
    return result


def _listen(io: IoThread, parent: Parent, specification: Json, doors: TicketRouter, on_lost_node: str) -> None:
    """Open the doors for the nodes' connections and tell the supervisor where they are."""

    def dialled(ticket: str, peer: str) -> None:
        if (node := doors.node_of(ticket)) is not None:
            parent.send({"type": "dialled", "node": node, "peer": peer})

    socket = Path(specification["socket"])
    io.call(serve_local(socket, doors.serve))
    direct = specification.get("direct")
    port = io.call(open_direct_port(direct, doors.serve, dialled)) if direct else 0
    parent.send({"type": "ready", "port": port, "on_lost_node": on_lost_node})


def _agree(
    session: RunProcessSession,
    channels: Mapping[str, Channel],
    directory: RunDirectory,
    parent: Parent,
    *,
    torch: bool,
) -> None:
    """Hear every node's checkpoints and tell all of them where to begin."""
    held: dict[str, list[int]] = {}
    while len(held) < len(channels):
        missing = [name for name in channels if name not in held]
        parent.send({"type": "waiting", "reason": f"waiting for the programs of {', '.join(missing)}"})
        node, message = session.receive_any(missing)
        held[node] = read_hello(message, node, torch=torch)
    _begin(session, common_step(directory.checkpoints.steps(), held))
    for channel in channels.values():
        channel.send(begin(session.resume_step))


def _agree_with_whoever_is_there(
    session: RunProcessSession,
    channels: Mapping[str, Channel],
    directory: RunDirectory,
    parent: Parent,
    *,
    torch: bool,
) -> None:
    """Begin from the server's newest checkpoint; nodes that are lost or do not fit are left out for now."""
    _begin(session, max(directory.checkpoints.steps(), default=None))
    missing = list(channels)
    while missing:
        parent.send({"type": "waiting", "reason": f"waiting for the programs of {', '.join(missing)}"})
        fault: FarshoreError | None = None
        try:
            node, message = session.receive_any(missing)
        except (PeerLostError, WireError) as error:
            node, fault = error.name, error
        else:
            fault = _greet(session, node, message, torch=torch)
        missing.remove(node)
        if fault is not None:
            session.log(f"beginning without {node}: {fault}")
            if not isinstance(fault, PeerLostError):
                session.dismiss(node, str(fault))
                parent.send({"type": "unfit", "node": node, "reason": str(fault)})


def _greet(session: RunProcessSession, node: str, hello: Message, *, torch: bool) -> FarshoreError | None:
    """Tell a node where it begins; returns why it cannot take part, if so."""
    try:
        step = own_step(read_hello(hello, node, torch=torch), session.resume_step)
        session.channels[node].send(begin(step))
    except (PeerLostError, WireError, VersionError) as error:
        return error
    if step != session.resume_step:
        words = "nothing" if step is None else f"step {step}"
        session.log(f"{node} remembers {words} where the server continues from step {session.resume_step}")
    return None


def _begin(session: RunProcessSession, step: int | None) -> None:
    session.resume_step = session.newest_step = step
    session.log("starting afresh" if step is None else f"continuing from the checkpoint of step {step}")


def _close(channels: Mapping[str, Channel]) -> None:
    """Close all channels at once; each waits until its node took what was sent."""
    with ThreadPoolExecutor(max(1, min(len(channels), 64)), thread_name_prefix="close") as pool:
        list(pool.map(lambda channel: channel.close(_CLOSE_SECONDS), channels.values()))


if __name__ == "__main__":
    code = main()
    # Libraries' atexit hooks and their threads must not keep a finished program alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
