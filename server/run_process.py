"""The run process: executes one run's server program; spawned by a supervisor.

Entry point of ``python -m farshore.server.run_process``. The supervisor sends the launch parameters
(:meth:`farshore.server.orchestrator.Orchestrator.launch_parameters`) as the first message.
"""

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
from .submission import parse_config
from .ticket_router import TicketRouter

_log = logging.getLogger(__name__)

#: Seconds that nodes have to receive the last messages of a finished server program.
_CLOSE_SECONDS = 60.0


def main() -> int:
    """Run the server program that the supervisor requests; returns the exit code."""
    parent = Parent.find()
    parameters = parent.first()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        with ExitStack() as stack:
            result = _run(parent, parameters, stack)
    except Exception as error:
        return int(parent.failed(error))
    parent.send({"type": "finished", "result": json.dumps(result)})
    return 0


def _run(parent: Parent, parameters: Json, stack: ExitStack) -> dict[str, Any]:
    workload = load(str(parameters["workload"]))
    config = parse_config(workload, str(parameters["config"]))
    directory = RunDirectory(Path(parameters["directory"]))
    ledger = stack.enter_context(directory.open_ledger(flush_seconds=0.25))
    metrics = directory.open_metrics(parameters.get("sinks", ()))
    stack.callback(metrics.close)
    traffic = Traffic(ledger.record)
    epoch = int(parameters["epoch"])
    channels = {n: Channel(n, n, "server", epoch=epoch, recorder=traffic.record) for n in parameters["nodes"]}
    run = RunInfo(
        id=str(parameters["run"]),
        workload=workload.name,
        seed=Seed(int(parameters["seed"])),
        epoch=epoch,
        nodes=tuple(channels),
        directory=directory.path,
    )
    data = {name: Path(path) for name, path in parameters["data"].items()}
    admitted, checkpoints = str(parameters["admitted"]), directory.checkpoints
    session = RunProcessSession(run, channels, checkpoints, metrics.write, traffic, data, parent, admitted)
    rejoin = Rejoin(channels, parent, lambda: session.newest_step, torch=workload.uses_torch)
    session.enable_rejoin(rejoin)
    router = TicketRouter()
    for node, ticket in parameters["tickets"].items():
        router.add(ticket, channels[node])

    def on_message(message: Json) -> None:
        kind, node = message.get("type"), str(message.get("node", ""))
        if kind == "cancel":
            session.cancel(str(message.get("reason", "")))
            ledger.flush()
        elif kind == "lost" and node in channels:
            reason = str(message.get("reason", f"node {node} is lost"))
            rejoin.node_lost(node, reason, permanent=bool(message.get("for_good")))
        elif kind == "expect" and node in channels:
            channel = Channel(node, node, "server", epoch=int(message["epoch"]), recorder=traffic.record)
            rejoin.expect(node, channel)
            router.add(str(message["ticket"]), channel)
            parent.send({**message, "type": "expecting"})

    parent.listen(on_message, on_gone=ledger.flush)
    io = stack.enter_context(IoThread("run-io"))
    _listen(io, parent, parameters, router, workload.on_lost_node)
    handshake = _handshake_with_all if workload.on_lost_node == "restart" else _handshake_with_reachable
    handshake(session, channels, directory, parent, torch=workload.uses_torch)
    parent.send({"type": "running", "resume_step": session.resume_step})
    result = workload.server_program(session, config)
    session.check_cancelled()
    # A result that is not JSON-serializable must fail here, as an error of the server program.
    json.dumps(result)
    rejoin.close()
    _close(channels)
    directory.write_result(result)
    return result


def _listen(io: IoThread, parent: Parent, parameters: Json, router: TicketRouter, on_lost_node: str) -> None:
    """Accept the nodes' data connections and report the port to the supervisor."""

    def on_connect(ticket: str, peer: str) -> None:
        if (node := router.node_of(ticket)) is not None:
            parent.send({"type": "dialled", "node": node, "peer": peer})

    socket = Path(parameters["socket"])
    io.call(serve_local(socket, router.serve))
    direct = parameters.get("direct")
    port = io.call(open_direct_port(direct, router.serve, on_connect)) if direct else 0
    parent.send({"type": "ready", "port": port, "on_lost_node": on_lost_node})


def _handshake_with_all(
    session: RunProcessSession,
    channels: Mapping[str, Channel],
    directory: RunDirectory,
    parent: Parent,
    *,
    torch: bool,
) -> None:
    """Collect the checkpoint steps of all nodes and resume from the newest common step."""
    steps: dict[str, list[int]] = {}
    while len(steps) < len(channels):
        missing = [name for name in channels if name not in steps]
        parent.send({"type": "waiting", "reason": f"waiting for the node programs of {', '.join(missing)}"})
        node, message = session.receive_any(missing)
        steps[node] = read_hello(message, node, torch=torch)
    _set_resume_step(session, common_step(directory.checkpoints.steps(), steps))
    for channel in channels.values():
        channel.send(begin(session.resume_step))


def _handshake_with_reachable(
    session: RunProcessSession,
    channels: Mapping[str, Channel],
    directory: RunDirectory,
    parent: Parent,
    *,
    torch: bool,
) -> None:
    """Resume from the server's newest checkpoint; skip nodes that are lost or fail the handshake.

    Skipped nodes may rejoin later.
    """
    _set_resume_step(session, max(directory.checkpoints.steps(), default=None))
    missing = list(channels)
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
        step = own_step(read_hello(hello, node, torch=torch), session.resume_step)
        session.channels[node].send(begin(step))
    except (PeerLostError, WireError, VersionError) as error:
        return error
    if step != session.resume_step:
        origin = "without a checkpoint" if step is None else f"with its checkpoint of step {step}"
        session.log(f"{node} starts {origin}; the server continues from step {session.resume_step}")
    return None


def _set_resume_step(session: RunProcessSession, step: int | None) -> None:
    session.resume_step = session.newest_step = step
    session.log("starting from the beginning" if step is None else f"continuing from the checkpoint of step {step}")


def _close(channels: Mapping[str, Channel]) -> None:
    """Close all channels concurrently; each waits until its node has received everything."""
    with ThreadPoolExecutor(max(1, min(len(channels), 64)), thread_name_prefix="close") as pool:
        list(pool.map(lambda channel: channel.close(_CLOSE_SECONDS), channels.values()))


if __name__ == "__main__":
    code = main()
    # Skip atexit hooks and non-daemon threads of libraries: they can keep a finished process alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
