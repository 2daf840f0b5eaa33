"""What a run will send, for traffic estimates: rehearsals of a few rounds or steps, and plans of all messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from .handshake import begin, hello
from .message import Message
from .seeds import Seed
from .transfer import Direction

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """Messages of equal shapes, dtypes, encodings and fields.

    Attributes
    ----------
    direction : {"up", "down"}
    message : Message
        An example. The values of its arrays are irrelevant; its ``round`` or ``step`` is replaced by ``indices``.
    nodes : int64 array, shape [n]
        Sender (``up``) or receiver (``down``) of each message, as an index into :attr:`TrafficPlan.nodes`.
    indices : int64 array, shape [n]
        Round or step of each message, see :attr:`TrafficPlan.unit`.
    """

    direction: Direction
    message: Message
    nodes: IndexArray
    indices: IndexArray

    @classmethod
    def of(cls, direction: Direction, message: Message, nodes: Iterable[int], index: int | Iterable[int] = 0) -> Flow:
        """Return the flow with one message per node in each round or step of ``index``."""
        node_array = np.fromiter(nodes, np.int64)
        index_array = np.array([index] if isinstance(index, int) else list(index), np.int64)
        return cls(direction, message, np.tile(node_array, len(index_array)), np.repeat(index_array, len(node_array)))


@dataclass(frozen=True, slots=True, eq=False)
class PeerFlow:
    """Bytes that nodes send to other nodes directly; one ledger row per node and round or step.

    Attributes
    ----------
    kind : str
    size : int
        Bytes per row.
    nodes, indices : int64 array, shape [n]
        Sender, and round or step, of each row; as in :class:`Flow`.
    """

    kind: str
    size: int
    nodes: IndexArray
    indices: IndexArray


@dataclass(frozen=True, slots=True)
class Setting:
    """The inputs of an estimate besides the workload's configuration.

    Attributes
    ----------
    nodes : tuple of str
        Names of the cohort.
    seed : Seed
        Root seed of the run.
    find : callable
        Returns the path of a data set by name; raises :class:`~farshore.core.errors.DataError` if it was not given.
    assumed : Mapping
        Assumed properties of data sets that are not available; the workload defines their names.
    """

    nodes: tuple[str, ...]
    seed: Seed
    find: Callable[[str], Path]
    assumed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrafficPlan:
    """All messages of a run without failures.

    Attributes
    ----------
    unit : {"round", "step"}
        Meaning of the flows' ``indices``.
    nodes : tuple of str
    flows : sequence of Flow
    notes : sequence of str
        Descriptions of the assumptions; empty if configuration and data determine all sizes.
    baselines : Mapping
        Dense bytes of equivalent training with other methods, by name of the method.
    peers : sequence of PeerFlow
        Traffic between nodes that does not pass the server.
    """

    unit: Literal["round", "step"]
    nodes: tuple[str, ...]
    flows: Sequence[Flow]
    notes: Sequence[str] = ()
    baselines: Mapping[str, int] = field(default_factory=dict)
    peers: Sequence[PeerFlow] = ()


def handshake_flows(nodes: Sequence[str]) -> list[Flow]:
    """Return the flows of the handshake with which every run begins."""
    all_nodes = range(len(nodes))
    return [Flow.of("up", hello(()), all_nodes), Flow.of("down", begin(None), all_nodes)]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A short run whose messages are those of a long one, and how often each of its rounds or steps counts.

    Attributes
    ----------
    config : BaseModel
        Configuration of the short run.
    unit : {"round", "step"}
        Meaning of the indices.
    stands_for : Mapping
        Rounds or steps of the short run -> those of the long one that send the same messages. Messages of an index
        that is not listed count once.
    baselines : Mapping
        As in :attr:`TrafficPlan.baselines`.
    """

    config: BaseModel
    unit: Literal["round", "step"]
    stands_for: Mapping[int, Sequence[int]]
    baselines: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class SupportsRehearsal(Protocol):
    """A workload whose runs are estimated by a short one."""

    def rehearsal(self, config: Any) -> Rehearsal:
        """Return the short run that stands for one of ``config``."""


@runtime_checkable
class SupportsTrafficPlan(Protocol):
    """A workload that can plan the traffic of its runs."""

    def plan(self, config: Any, setting: Setting) -> TrafficPlan:
        """Return the messages of a run.

        Raises
        ------
        ConfigError
            The traffic of such a run cannot be predicted, or ``assumed`` has an unknown name.
        DataError
            A data set is missing, and no properties of it were assumed.
        """
