"""What a run is going to send, told before it runs: the contract between methods and estimates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .handshake import begin, hello
from .message import Message
from .seeds import Seed
from .transfer import Direction

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """Messages of one size.

    Attributes
    ----------
    direction : {"up", "down"}
    message : Message
        One of them. Its values mean nothing, its shapes, types, encodings and fields are those of all of them; its
        ``round`` or ``step`` is replaced by each of ``places``.
    nodes : int64 array, shape [n]
        Who sends or gets each message: a place in :attr:`TrafficPlan.nodes`.
    places : int64 array, shape [n]
        The round or step that each belongs to.
    """

    direction: Direction
    message: Message
    nodes: Places
    places: Places

    @classmethod
    def of(cls, direction: Direction, message: Message, nodes: Iterable[int], place: int | Iterable[int] = 0) -> Flow:
        """A message of each of ``nodes`` at one place, or at each of several."""
        who = np.fromiter(nodes, np.int64)
        when = np.array([place] if isinstance(place, int) else list(place), np.int64)
        return cls(direction, message, np.tile(who, len(when)), np.repeat(when, len(who)))


@dataclass(frozen=True, slots=True, eq=False)
class PeerFlow:
    """Bytes that nodes send to other nodes: one row of the ledger for each node and place.

    Attributes
    ----------
    kind : str
    size : int
        Bytes.
    nodes, places : int64 array, shape [n]
        As of :class:`Flow`.
    """

    kind: str
    size: int
    nodes: Places
    places: Places


@dataclass(frozen=True, slots=True)
class Setting:
    """What an estimate knows beside the method's configuration.

    Attributes
    ----------
    nodes : tuple of str
        The cohort.
    seed : Seed
        The run's.
    find : callable
        Path of a data set by name; raises :class:`~farshore.core.errors.DataError` where none was given.
    assumed : Mapping
        Figures that stand for data that are not there, by the method's own names.
    """

    nodes: tuple[str, ...]
    seed: Seed
    find: Callable[[str], Path]
    assumed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrafficPlan:
    """All messages of a run in which nothing fails.

    Attributes
    ----------
    unit : {"round", "step"}
        What flows are counted by.
    nodes : tuple of str
    flows : sequence of Flow
    notes : sequence of str
        What was assumed, in words; empty where the sizes follow from configuration and data alone.
    baselines : Mapping
        Dense bytes of what the same training would have sent by other means.
    peers : sequence of PeerFlow
        What does not go through the server.
    """

    unit: Literal["round", "step"]
    nodes: tuple[str, ...]
    flows: Sequence[Flow]
    notes: Sequence[str] = ()
    baselines: Mapping[str, int] = field(default_factory=dict)
    peers: Sequence[PeerFlow] = ()


def greetings(nodes: Sequence[str]) -> list[Flow]:
    """How every run begins, whatever the method: hello and begin."""
    everybody = range(len(nodes))
    return [Flow.of("up", hello(()), everybody), Flow.of("down", begin(None), everybody)]


@runtime_checkable
class Plans(Protocol):
    """A workload that can tell what its runs will send."""

    def plan(self, config: Any, setting: Setting) -> TrafficPlan:
        """The messages of a run.

        Raises
        ------
        ConfigError
            What such a run sends cannot be told beforehand, or ``assumed`` holds a name that means nothing here.
        DataError
            A data set is not there, and nothing was assumed of it.
        """
