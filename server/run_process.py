"""The run process: executes one run's server program; spawned by a supervisor.

Entry point of ``python -m farshore.server.run_process``. The supervisor sends the launch parameters
(:meth:`farshore.server.orchestrator.Orchestrator.launch_parameters`) as the first message.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..core.handshake import ResumeFrom
from ..core.json_text import to_json
from ..core.node_metrics import KIND as METRICS
from ..core.node_metrics import read_metrics
from ..core.nodes import NodeInfo
from ..core.processes import Json, Parent
from ..core.seeds import Seed
from ..core.session import RunInfo
from ..core.workloads import load
from ..runs.directory import RunDirectory
from ..runs.state_store import StateStore
from ..runs.traffic import Traffic
from ..wire.channel import Channel
from ..wire.cohort import Cohort, CohortChannel
from ..wire.io import IoThread
from ..wire.local import serve_local
from .direct_port import open_direct_port
from .rejoin import Rejoin
from .resume_handshake import handshake_with_all, handshake_with_reachable
from .session import RunProcessSession
from .submission import parse_config
from .ticket_router import TicketRouter

_log = logging.getLogger(__name__)

#: Seconds that nodes have to receive the last messages of a finished server program.
_CLOSE_SECONDS = 60.0


def main() -> int:
    """Run the server program that the supervisor requests; returns the exit code."""
    parent = Parent.connect()
    parameters = parent.receive_first()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        with ExitStack() as stack:
            result = _run(parent, parameters, stack)
    except Exception as error:
        return int(parent.report_failure(error))
    parent.send({"type": "finished", "result": to_json(result)})
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
    nodes = {info.name: info for info in map(NodeInfo.from_json, parameters["nodes"])}

    def open_channel(node: str, epoch: int) -> Channel:
        channel = Channel(node, node, "server", epoch=epoch, recorder=traffic.record)
        channel.handlers = {
            METRICS: lambda message: metrics.write_node(node, message.step, read_metrics(message, node))
        }
        return channel

    channels = {node: open_channel(node, epoch) for node in nodes}
    run = RunInfo(
        id=str(parameters["run"]),
        workload=workload.name,
        seed=Seed(int(parameters["seed"])),
        epoch=epoch,
        nodes=tuple(nodes),
        directory=directory.path,
    )
    data = {name: Path(path) for name, path in parameters["data"].items()}
    cohort = Cohort(
        channels,
        nodes,
        may_join=bool(parameters["may_join"]),
        on_wait=lambda reason: parent.send({"type": "waiting", "reason": reason}),
        on_resume=lambda: parent.send({"type": "running"}),
    )
    state = StateStore(directory.checkpoints, directory.path / "streams")
    stack.callback(state.close)
    admitted = str(parameters["admitted"])
    session = RunProcessSession(run, cohort, state, metrics.write, traffic, data, parent, admitted)
    rejoin = Rejoin(cohort, parent, lambda: session.newest_step, torch=workload.uses_torch)
    router = TicketRouter()
    for node, ticket in parameters["tickets"].items():
        router.add(ticket, channels[node])

    def on_message(message: Json) -> None:
        kind, node = message.get("type"), str(message.get("node", ""))
        if kind == "cancel":
            rejoin.fail(session.cancel(str(message.get("reason", ""))))
            ledger.flush()
        elif kind == "lost":
            reason = str(message.get("reason", f"node {node} is lost"))
            rejoin.node_lost(node, reason, permanent=bool(message.get("for_good")))
        elif kind == "revoke":
            router.remove(node)
            rejoin.node_lost(node, f"node {node}: it was revoked", permanent=False)
        elif kind == "expect":
            channel = open_channel(node, int(message["epoch"]))
            rejoin.expect(node, channel, NodeInfo.from_json(message["info"]))
            router.add(str(message["ticket"]), channel)
            parent.send({"type": "expecting", **{name: message[name] for name in ("node", "ticket", "epoch")}})

    parent.listen(on_message, on_gone=ledger.flush)
    io = stack.enter_context(IoThread("run-io"))
    _listen(io, parent, parameters, router, workload.on_lost_node)
    handshake = handshake_with_all if workload.on_lost_node == "restart" else handshake_with_reachable
    wanted = ResumeFrom(**parameters["resume"]) if parameters.get("resume") else None
    handshake(session, state, parent, torch=workload.uses_torch, wanted=wanted)
    parent.send({"type": "running", "resume_step": session.resume_step})
    result = workload.server_program(session, config)
    session.check_cancelled()
    # A result that is not JSON-serializable must fail here, as an error of the server program.
    to_json(result)
    rejoin.close()
    _close(cohort.channels)
    directory.write_result(result)
    return result


def _listen(io: IoThread, parent: Parent, parameters: Json, router: TicketRouter, on_lost_node: str) -> None:
    """Accept the nodes' data connections and report the port to the supervisor."""

    def on_connect(ticket: str, peer: str) -> bool:
        if (node := router.node_of(ticket)) is not None:
            parent.send({"type": "dialled", "node": node, "peer": peer})
        return node is not None

    socket = Path(parameters["socket"])
    io.call(serve_local(socket, router.serve))
    direct = parameters.get("direct")
    port = io.call(open_direct_port(direct, router.serve, on_connect)) if direct else 0
    parent.send({"type": "ready", "port": port, "on_lost_node": on_lost_node})


def _close(channels: Mapping[str, CohortChannel]) -> None:
    """Close all channels concurrently; each waits until its node has received everything."""
    with ThreadPoolExecutor(max(1, min(len(channels), 64)), thread_name_prefix="close") as pool:
        list(pool.map(lambda channel: channel.close(_CLOSE_SECONDS), channels.values()))


if __name__ == "__main__":
    code = main()
    # Skip atexit hooks and non-daemon threads of libraries: they can keep a finished process alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
