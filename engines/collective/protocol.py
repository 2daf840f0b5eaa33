"""The messages of a collective run.

A rank sends ``ready`` and waits for ``form``; then collectives, requests to the rendezvous store and messages of the
engine above follow. At each checkpoint it sends ``kept`` and waits for ``go``, at the end ``end`` and waits for
``done``. ``lost`` replaces any of these answers: the rank starts again with ``ready``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...core.control import Control, Protocol

#: Message kinds of collectives.
KINDS = ("all_reduce", "reduce", "broadcast", "all_gather", "all_to_all", "send", "barrier")

Transport: TypeAlias = Literal["star", "peers"]
Reduction: TypeAlias = Literal["sum", "avg", "min", "max", "product"]

# -- from a rank ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready(Control, what="ready"):
    """A node can join a group.

    Attributes
    ----------
    steps : tuple of int
        Steps of its checkpoints.
    listens : bool
        Whether other nodes may connect to it.
    """

    steps: tuple[int, ...]
    listens: bool


@dataclass(frozen=True, slots=True)
class Kept(Control, what="kept"):
    """The rank has saved a checkpoint; the message's ``step`` is that of the checkpoint."""


@dataclass(frozen=True, slots=True)
class Moved(Control, what="moved"):
    """Bytes that the rank sent to other nodes in the message's ``step``, by kind of collective."""

    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class End(Control, what="end"):
    """The rank has finished; the message's tensors are its result. Engines with more to report add fields."""


@dataclass(frozen=True, slots=True)
class StoreRequest(Control, what="store"):
    """A request to the rendezvous store; the message's ``micro`` numbers it.

    Attributes
    ----------
    do : {"set", "get", "add", "swap", "check", "delete"}
        ``set`` has no reply.
    key : str
    value : bytes
        ``set``, ``swap``: the new value. ``add``: a decimal number.
    expected : bytes, optional
        ``swap``: the value that is replaced.
    """

    do: Literal["set", "get", "add", "swap", "check", "delete"]
    key: str
    value: bytes
    expected: bytes | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Fields of a rank's part of a collective; the message's ``micro`` numbers the group's collectives.

    Attributes
    ----------
    group : str
        Name of the group, or of the sequence of messages between two of its ranks.
    generation : int
    members : tuple of int
        Ranks of the group's members in the default group.
    operation : {"sum", "avg", "min", "max", "product"}, optional
        ``all_reduce``, ``reduce``: the reduction.
    root : int, optional
        Index in the group of the rank that a ``reduce`` has its result on, or that a ``broadcast`` starts from; -1 for
        an ``all_reduce``.
    target : int, optional
        Index in the group of the rank that a ``send`` is addressed to.
    """

    group: str
    generation: int
    members: tuple[int, ...]
    operation: Reduction | None = None
    root: int | None = None
    target: int | None = None


# -- from the server ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form(Control, what="form"):
    """A group of ranks has formed.

    Attributes
    ----------
    generation : int
        Number of the group.
    rank : int
        Rank of the receiver.
    names : tuple of str
        The nodes by rank.
    step : int
        Step to start at.
    source : int
        A rank that holds the checkpoint of that step, if others lack it; else -1.
    transport : {"star", "peers"}
    """

    generation: int
    rank: int
    names: tuple[str, ...]
    step: int
    source: int
    transport: Transport


@dataclass(frozen=True, slots=True)
class Go(Control, what="go"):
    """All ranks have saved the checkpoint."""


@dataclass(frozen=True, slots=True)
class Done(Control, what="done"):
    """All ranks have finished."""


@dataclass(frozen=True, slots=True)
class Lost(Control, what="lost"):
    """The group has ended, since a rank was lost or a node rejoined."""

    why: str


@dataclass(frozen=True, slots=True)
class Failed(Control, what="failed"):
    """The run has failed."""

    why: str


@dataclass(frozen=True, slots=True)
class Stored(Control, what="stored"):
    """The reply of the rendezvous store to the request with the message's ``micro``."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Fields of the server's reply in a collective; see :class:`Request`."""

    group: str
    generation: int


FromRank: TypeAlias = Ready | Kept | Moved | StoreRequest
FromServer: TypeAlias = Form | Go | Done | Lost | Failed | Stored

#: Control messages of a rank, apart from ``end``, whose fields depend on the engine.
FROM_RANK: Protocol[FromRank] = Protocol(Ready, Kept, Moved, StoreRequest)
FROM_SERVER: Protocol[FromServer] = Protocol(Form, Go, Done, Lost, Failed, Stored)
