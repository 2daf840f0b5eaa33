"""The virtual network of a run: a device and a link per node, a clock per program, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..core.message import Message
from ..core.seeds import Seed
from ..core.transfer import Direction, Recorder
from .clock import Devices
from .virtual_channel import VirtualChannel, receive_first, virtual_pair
from .virtual_device import VirtualDevice, WorkCost, draw_devices
from .virtual_time import VirtualTime

#: Name of the server's program.
SERVER = "server"


class VirtualNetwork:
    """Clocks, devices and links of an in-process run.

    The link of the server is not a bottleneck: each node has its own to it.

    Parameters
    ----------
    devices : Devices
        Of the nodes, and the cost table.
    nodes : sequence of str
    seed : Seed
        Of the run.
    """

    def __init__(self, devices: Devices, nodes: Sequence[str], seed: Seed) -> None:
        self._time = VirtualTime()
        self._devices: Mapping[str, VirtualDevice] = draw_devices(devices, nodes, seed)
        # The server last: of events at equal times those of nodes come first.
        self._programs = {name: self._time.program(name) for name in (*nodes, SERVER)}
        self._server_cost = WorkCost(per_message=devices.server_seconds_per_message)

    @property
    def now(self) -> float:
        """The server's clock: virtual seconds since the run's start."""
        return self._programs[SERVER].clock

    def clock_of(self, program: str) -> float:
        """Return the clock of a program."""
        return self._programs[program].clock

    def pair(self, node: str, recorder: Recorder | None, attempt: int) -> tuple[VirtualChannel, VirtualChannel]:
        """Return the server's and the node's end of a node's channel."""
        device = self._devices[node]
        programs, costs = (self._programs[SERVER], self._programs[node]), (self._server_cost, device.cost)
        return virtual_pair(node, self._time, programs, costs, device.link, recorder, attempt)

    def receive_any(self, channels: Mapping[str, Any], timeout: float | None) -> tuple[str, Message]:
        """Receive the message of any node that arrives first at the server."""
        return receive_first(self._time, self._programs[SERVER], channels, timeout)

    def finish(self, node: str) -> None:
        """Note that a node's program has ended."""
        self._time.finish(self._programs[node])

    # ---- sums ----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return the duration of the run, and the times of each node in seconds and its energy in joule."""
        nodes = {}
        for name, device in self._devices.items():
            program = self._programs[name]
            ways = device.link.ways
            nodes[name] = {
                "seconds": program.clock,
                "computing": program.computing,
                "waiting": program.waiting,
                "uplink": ways["up"].busy,
                "downlink": ways["down"].busy,
                "joule": device.joule(program.computing),
            }
        server = self._programs[SERVER]
        return {
            "seconds": max(program.clock for program in self._programs.values()),
            "joule": sum(node["joule"] for node in nodes.values()),
            "server": {"seconds": server.clock, "computing": server.computing, "waiting": server.waiting},
            "nodes": nodes,
        }

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def snapshot(self, program: str) -> dict[str, Any]:
        """Return the state of a program's clock and of the links that it sends on; JSON-able."""
        with self._time.changed:
            found = self._programs[program]
            return {
                "clock": [found.clock, found.computing, found.waiting],
                "counted": list(self._cost(program).step),
                "ways": {node: asdict(link.ways[direction]) for node, direction, link in self._ways(program)},
            }

    def restore(self, program: str, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`snapshot` returned."""
        found = self._programs[program]
        found.clock, found.computing, found.waiting = state["clock"]
        round_index, step = state["counted"]
        self._cost(program).step = round_index, step
        for node, direction, link in self._ways(program):
            for name, value in state["ways"].get(node, {}).items():
                setattr(link.ways[direction], name, value)

    def _cost(self, program: str) -> WorkCost:
        return self._server_cost if program == SERVER else self._devices[program].cost

    def _ways(self, program: str) -> list[tuple[str, Direction, Any]]:
        """The links that a program sends on: node, direction and link."""
        if program == SERVER:
            return [(node, "down", device.link) for node, device in self._devices.items()]
        return [(program, "up", self._devices[program].link)]
