"""A virtual node's device: the time that its messages take on its link, and the time of its computations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..core.message import Message
from ..core.node_metrics import KIND as METRICS
from ..core.seeds import Seed
from ..core.transfer import Direction
from .clock import Devices
from .population import Population

#: Kinds of messages that do not show that a step was computed.
_NO_STEP = ("control", METRICS)


@dataclass(slots=True)
class _Way:
    """One direction of a link: carries one message after the other.

    Attributes
    ----------
    mbps : float
        0 = unlimited.
    free : float
        When the messages sent so far have left.
    arrived : float
        When the last of them arrives.
    busy : float
        Seconds in use.
    size, count : int
        Bytes and messages carried.
    """

    mbps: float
    free: float = 0.0
    arrived: float = 0.0
    busy: float = 0.0
    size: int = 0
    count: int = 0


@dataclass(slots=True)
class VirtualLink:
    """The link of a node to the server; uplink and downlink are independent.

    Parameters
    ----------
    up_mbps, down_mbps : float
        Bandwidth without what retransmissions take, Mbit/s; 0 = unlimited.
    latency, jitter : float
        Mean and standard deviation of the one-way latency, seconds. Messages keep their order.
    seed : Seed
        For the jitter.
    """

    up_mbps: float = 0.0
    down_mbps: float = 0.0
    latency: float = 0.0
    jitter: float = 0.0
    seed: Seed = field(default_factory=lambda: Seed(0))
    ways: dict[Direction, _Way] = field(init=False)

    def __post_init__(self) -> None:
        self.ways = {"up": _Way(self.up_mbps), "down": _Way(self.down_mbps)}

    def transfer(self, direction: Direction, size: int, at: float) -> float:
        """Send a message of ``size`` bytes at time ``at`` or as soon as the link is free; return its arrival."""
        way = self.ways[direction]
        seconds = size * 8e-6 / way.mbps if way.mbps else 0.0
        way.free = max(at, way.free) + seconds
        way.busy += seconds
        way.size += size
        way.count += 1
        delay = self.latency
        if self.jitter:
            delay += float(self.seed.child(direction, way.count).numpy().normal(0.0, self.jitter))
        way.arrived = max(way.arrived, way.free + max(0.0, delay))
        return way.arrived


@dataclass(slots=True)
class WorkCost:
    """The cost table of a program: how long it computes before it sends a message.

    Parameters
    ----------
    per_step : float
        Seconds of a step, counted once for each round and step that the program sends messages of; control messages
        and metrics do not count.
    per_message : Mapping
        Seconds of a message, by kind.
    factor : float
        Compute factor of the device.

    Attributes
    ----------
    step : (int, int)
        The latest round and step that were counted.
    """

    per_step: float = 0.0
    per_message: Mapping[str, float] = field(default_factory=dict)
    factor: float = 1.0
    step: tuple[int, int] = (-1, -1)

    def seconds(self, message: Message) -> float:
        """Return the seconds that the program computes before it sends ``message``."""
        seconds = self.per_message.get(message.kind, 0.0)
        if message.kind not in _NO_STEP and (message.round, message.step) > self.step:
            self.step = message.round, message.step
            seconds += self.per_step
        return seconds * self.factor


@dataclass(slots=True)
class VirtualDevice:
    """The device of a node.

    Attributes
    ----------
    watts : float
        Power during computation.
    joule_per_mb : Mapping
        Energy per 10^6 bytes and direction.
    """

    link: VirtualLink
    cost: WorkCost
    watts: float = 0.0
    joule_per_mb: Mapping[Direction, float] = field(default_factory=dict)

    def joule(self, computing: float) -> float:
        """Return the energy of ``computing`` seconds and of all bytes so far."""
        moved = sum(self.joule_per_mb.get(name, 0.0) * way.size / 1e6 for name, way in self.link.ways.items())
        return computing * self.watts + moved


def draw_devices(devices: Devices, nodes: Sequence[str], seed: Seed) -> dict[str, VirtualDevice]:
    """Draw the device of each node from a population, as a federated simulation draws those of its clients."""
    table = Population.from_groups(devices.population, len(nodes), seed).columns
    found = {}
    for index, node in enumerate(nodes):
        row = {name: float(column[index]) for name, column in table.items()}
        kept = 1.0 - row["loss"]
        latency, jitter = row["latency_ms"] / 1000, row["jitter_ms"] / 1000
        link = VirtualLink(row["up_mbps"] * kept, row["down_mbps"] * kept, latency, jitter, seed.child("link", node))
        cost = WorkCost(devices.seconds_per_step, devices.seconds_per_message, row["compute_factor"])
        energy: dict[Direction, float] = {"up": row["up_joule_per_mb"], "down": row["down_joule_per_mb"]}
        found[node] = VirtualDevice(link, cost, row["compute_watts"], energy)
    return found
