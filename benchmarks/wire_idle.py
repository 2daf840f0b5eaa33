"""Memory and CPU time that idle nodes cost a server process."""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from wire_far import SPAWN, Process

from farshore.wire.channel import Channel
from farshore.wire.grpc_attach import METHOD, OPTIONS, TICKET
from farshore.wire.pump import pump


@dataclass
class Idle:
    """Cost of idle nodes for the server process."""

    nodes: int
    bytes_per_node: float
    cpu_share: float


def run_idle_nodes(pipe: Any, port: int, count: int) -> None:
    """Run many idle nodes, each with its own connection, which answer heartbeats like real nodes."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1 << 14, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)

    async def node(number: int) -> None:
        options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call: Any = channel.stream_stream(METHOD)(metadata=((TICKET, f"idle-{number}"),))

            async def read() -> bytes | None:
                chunk = await call.read()
                return None if chunk is grpc.aio.EOF else chunk

            await pump(Channel("server", f"idle-{number}", "node"), read, call.write)

    async def run_all() -> None:
        tasks = []
        for number in range(count):
            tasks.append(asyncio.create_task(node(number)))
            if number % 50 == 49:
                await asyncio.sleep(0.2)
        await asyncio.sleep(3)
        pipe.send(sum(not task.done() for task in tasks))
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        for task in tasks:
            task.cancel()

    asyncio.run(run_all())


def measure_idle(server: Process, count: int, seconds: float) -> Idle:
    """Attach ``count`` idle nodes and measure the server for ``seconds``, including heartbeats."""
    _, before = server.usage()
    parent_end, child_end = SPAWN.Pipe()
    process = SPAWN.Process(target=run_idle_nodes, args=(child_end, server.port, count), daemon=True)
    process.start()
    attached = parent_end.recv()
    cpu, _ = server.usage()
    time.sleep(seconds)
    after, memory = server.usage()
    parent_end.send("stop")
    process.join(20)
    process.kill()
    return Idle(attached, (memory - before) / max(1, attached), (after - cpu) / seconds)
